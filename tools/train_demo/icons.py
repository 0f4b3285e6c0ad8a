"""Stage `sprites`: one image of all drawings, from icon packs in Iconify's JSON format."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

from PIL import Image

PACKS = {  # style: npm package under @iconify-json
    "noto": "noto",
    "classic": "noto-v1",
    "twemoji": "twemoji",
    "emojione": "emojione",
    "firefox": "fxemoji",
    "flat": "fluent-emoji-flat",
}
NAMES = {  # where a pack's name, stripped of hyphens, is not the class itself; first found wins
    "car": ("automobile",),
    "house": ("house", "housewithgarden", "housebuilding"),
    "knife": ("kitchenknife", "hocho"),
    "gun": ("pistol",),
    "sword": ("crossedswords",),
}
WATER_PISTOLS = {("gun", "noto"), ("gun", "twemoji"), ("gun", "flat")}
COLUMNS = 10


def _svg(pack: dict, name: str) -> str:
    icon = pack["icons"].get(name) or pack["icons"][pack["aliases"][name]["parent"]]
    x, y = (icon.get(k, pack.get(k, 0)) for k in ("left", "top"))
    w, h = (icon.get(k, pack.get(k, 16)) for k in ("width", "height"))
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{x} {y} {w} {h}" width="{w}" height="{h}">{icon["body"]}</svg>'
    )


def _draw(svg: str, size: int) -> Image.Image:
    """Render, crop to what is drawn, centre on a square of `size` pixels."""
    import resvg_py

    png = bytes(
        resvg_py.svg_to_bytes(svg_string=svg, width=512, height=512, skip_system_fonts=True)
    )
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.crop(image.getchannel("A").point(lambda v: 255 * (v > 20)).getbbox())
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS)


def write_sheet(icons: Path, folder: Path, classes: tuple[str, ...], size: int) -> int:
    """Write `sprites.png` and `sprites.json` into `folder`; returns how many sprites.

    Args:
        icons: the folder `node_modules/@iconify-json` with the packs.
        folder: where to write.
        classes: what to draw, in the order of the image.
        size: pixels of a cell.
    """
    drawn: list[tuple[dict, Image.Image]] = []
    sources = {}
    for style, package in PACKS.items():
        pack = json.loads((icons / package / "icons.json").read_text(encoding="utf-8"))
        version = json.loads((icons / package / "package.json").read_text(encoding="utf-8"))
        sources[style] = f"@iconify-json/{package} {version['version']}"
        names = {
            re.sub("[^a-z0-9]", "", name.lower()): name
            for name in [*pack["icons"], *pack.get("aliases", {})]
        }
        for class_ in classes:
            name = next((names[n] for n in NAMES.get(class_, (class_,)) if n in names), None)
            if name is None or (class_, style) in WATER_PISTOLS:
                continue
            cell = {"class": class_, "style": style, "icon": name}
            drawn.append((cell, _draw(_svg(pack, name), size)))
    rows = -(-len(drawn) // COLUMNS)
    sheet = Image.new("RGBA", (COLUMNS * size, rows * size))
    for i, (cell, image) in enumerate(drawn):
        cell["x"], cell["y"] = i % COLUMNS * size, i // COLUMNS * size
        sheet.paste(image, (cell["x"], cell["y"]))
    sheet.save(folder / "sprites.png", optimize=True)
    text = json.dumps({"sources": sources, "cells": [cell for cell, _ in drawn]}, indent=1)
    (folder / "sprites.json").write_text(text + "\n", encoding="utf-8")
    return len(drawn)
