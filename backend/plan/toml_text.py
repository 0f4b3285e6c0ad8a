"""TOML, from wherever it is: Python has it since 3.11; before, tomli does, or pip's copy of it.

The tab reads concepts in A1111's process, often a Python 3.10, where nothing may be installed.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING or sys.version_info >= (3, 11):
    from tomllib import TOMLDecodeError, loads  # pyright: ignore[reportMissingImports]
else:
    try:
        from tomli import TOMLDecodeError, loads
    except ModuleNotFoundError:
        from pip._vendor.tomli import TOMLDecodeError, loads

__all__ = ["TOMLDecodeError", "loads"]
