"""`python -m resalign`: the same as the command `resalign`."""

import sys

from .backend.cli import main

if __name__ == "__main__":
    sys.exit(main())
