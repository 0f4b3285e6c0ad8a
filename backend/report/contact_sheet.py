"""Puts pictures side by side on one contact sheet, with names of columns and rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

SIDE = 256  # pixels of a cell's longer side, at most
_SMALLEST = 96
_LABEL = 22
_GAP = 6
_BACK, _INK = (32, 32, 32), (230, 230, 230)


def draw_contact_sheet(
    columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Any]]], *, side: int = SIDE
) -> Any:
    """Draw one PIL image of labelled columns and rows; None in a row leaves its cell empty."""
    from PIL import Image, ImageDraw

    cells = [cell for _, row in rows for cell in row if cell is not None]
    size = max((max(cell.size) for cell in cells), default=64)
    size = max(_SMALLEST, min(side, size))
    step = size + _GAP
    wide, high = _GAP + step * len(columns), _LABEL + (step + _LABEL) * len(rows) + _GAP
    drawn = Image.new("RGB", (wide, high), _BACK)
    pen = ImageDraw.Draw(drawn)
    for x, name in enumerate(columns):
        pen.text((_GAP + x * step, 5), _fitting(pen, name, size), fill=_INK)
    for y, (name, row) in enumerate(rows):
        top = _LABEL + y * (step + _LABEL)
        pen.text((_GAP, top + 4), _fitting(pen, name, wide - 2 * _GAP), fill=_INK)
        for x, cell in enumerate(row):
            if cell is not None:
                shown = cell.convert("RGB").resize((size, size))
                drawn.paste(shown, (_GAP + x * step, top + _LABEL))
    return drawn


def _fitting(pen: Any, text: str, width: int) -> str:
    text = text.encode("latin-1", "replace").decode("latin-1")  # all that Pillow's own font has
    if pen.textlength(text) <= width:
        return text
    while text and pen.textlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
