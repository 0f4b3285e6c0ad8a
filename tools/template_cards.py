"""Draws the cards of the example workflows: a picture of the graph above what the example does.

ComfyUI's template browser shows a pack's picture and file name, and takes no description from it
(front ends 1.49.6 and 1.58.1), so the description is part of the picture.
`python tools/workflows.py --stills` draws them.
"""

from __future__ import annotations

import base64
from html import escape
from pathlib import Path
from typing import Any

WIDTH, HEIGHT, STRIP = 1800, 1700, 470
DESCRIPTIONS = {
    "1 Quick harden and compare": "A test run with pictures before and after. "
    "About 2 minutes on a GPU. SD 1.x",
    "2 Full harden with probe": "Harden, measure against real fine-tuning, export a checkpoint. "
    "About two hours on a GPU. SD 1.x",
    "3 Try my LoRA": "Apply a LoRA to the original and to the hardened model, and compare. SD 1.x",
    "Harden Anima": "Harden Anima from its three files, and export its denoiser. Many hours",
    "Harden FLUX.2 klein": "Harden FLUX.2 klein base 4B from its three files, and export its "
    "denoiser. Many hours",
    "Harden SDXL": "Harden an SDXL checkpoint and export it. Many hours on a GPU",
}
_PAGE = """<style>
body {{ margin: 0; width: {width}px; height: {height}px; background: #1b1b1b; }}
img {{ display: block; width: 100%; height: {graph}px; object-fit: contain; }}
p {{ box-sizing: border-box; margin: 0; height: {strip}px; padding: 44px 60px; background: #23405a;
  color: #fff; font: 500 96px/1.3 Inter, "DejaVu Sans", sans-serif; overflow: hidden; }}
</style><img src="data:image/jpeg;base64,{still}"><p>{text}</p>"""


def draw_card(page: Any, still: bytes, name: str, path: Path) -> None:
    """Write the card of an example, drawn in a tab of its own, from a JPEG of its graph."""
    tab = page.context.browser.new_page(viewport={"width": WIDTH, "height": HEIGHT})
    tab.set_content(_PAGE.format(
        width=WIDTH, height=HEIGHT, strip=STRIP, graph=HEIGHT - STRIP,
        still=base64.b64encode(still).decode(), text=escape(DESCRIPTIONS[name]),
    ))  # fmt: skip
    tab.wait_for_function("document.images[0].complete")
    p = "document.querySelector('p')"
    if tab.evaluate(f"{p}.scrollHeight > {p}.clientHeight"):
        raise ValueError(f"the description of {name} does not fit its card")
    tab.screenshot(path=path, type="jpeg", quality=80)
    tab.close()
