"""The worker as a file: `python -I -u .../backend/worker/__main__.py`.

Isolated mode (`-I`) keeps the host's PYTHONPATH and working directory off the path, so the
package is not importable by name either: it is loaded here from where this file lies.
"""

import sys


def _load(name: str) -> None:
    """Load the package under `name`, whatever its folder is called."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    root = Path(__file__).resolve().parent.parent.parent
    spec = spec_from_file_location(
        name, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec and spec.loader, root
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    if __package__:  # python -m resalign.backend.worker
        from .serve import main
    else:
        from importlib import import_module

        _load("resalign")
        main = import_module("resalign.backend.worker.serve").main
    sys.exit(main())
