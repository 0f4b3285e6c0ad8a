"""The command line: parse, one call of the backend, print."""

from .main import main

__all__ = ["main"]
