"""Sizes in bytes as text. Every size that a person reads is formatted here."""

from __future__ import annotations

KIB, MIB, GIB = 2**10, 2**20, 2**30


def format_bytes(count: float) -> str:
    """Format a size in binary units: `812 bytes`, `64 KiB`, `3.2 MiB`, `512 MiB`, `11.9 GiB`.

    A size keeps its unit whatever it stands beside, and never reads 1024 of a smaller unit.
    """
    if round(count) < KIB:
        return f"{count:.0f} byte" + ("s" if round(count) != 1 else "")
    if round(count / KIB) < KIB:
        return f"{count / KIB:.0f} KiB"
    if round(count / MIB) < KIB:
        return f"{count / MIB:.1f} MiB" if round(count / MIB, 1) < 10 else f"{count / MIB:.0f} MiB"
    return f"{count / GIB:.1f} GiB"
