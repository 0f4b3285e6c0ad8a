"""`python -m resalign.backend`: the command line, where no `resalign` script is installed."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
