"""Which function runs a command. Its module is imported when the command runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .console import Console

Command = Callable[[argparse.Namespace, "Console"], int]

COMMANDS = {  # command: (module, function)
    "demo": ("files", "demo"),
    "check": ("hardening", "check"),
    "harden": ("hardening", "harden"),
    "resume": ("resuming", "resume"),
    "export": ("files", "export"),
    "lora": ("files", "lora"),
    "inspect": ("files", "inspect"),
    "plan new": ("files", "plan_new"),
    "presets": ("files", "presets"),
    "probe": ("probing", "probe"),
    "report": ("probing", "report"),
    "audit": ("auditing", "audit"),
    "compare": ("probing", "compare"),
    "pack": ("packing", "pack"),
    "verify": ("verifying", "verify"),
    "ui": ("serving", "ui"),
    "worker": ("serving", "worker"),
}


def load_command(name: str) -> Command:
    module, function = COMMANDS[name]
    return getattr(import_module(f".{module}", __package__), function)
