"""The front end of a real ComfyUI in headless Chromium, kept off everything but this machine.

Needs the Python package playwright and a Chromium: $CHROMIUM, or the one on the PATH.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from host_comfyui import CHECKPOINT

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update",
         "--disable-sync"]  # fmt: skip
READY = "window.app?.graph && window.app?.extensionManager && window.app?.vueAppReady !== false"

# An example workflow at the size of the reduced checkpoint, as `host_comfyui.reduced` makes it.
REDUCE = """async ([checkpoint, changes]) => {
  const of = (type) => app.graph.nodes.filter((node) => node.type === type);
  const set = (node, values) => {
    for (const [name, value] of Object.entries(values)) {
      const widget = node.widgets.find((one) => one.name === name);
      if (!widget) throw new Error(`${node.type} has no widget ${name}`);
      widget.value = value;
      widget.callback?.(value);
    }
  };
  const imageSet = (prompts, target, input, x, y) => {
    const made = LiteGraph.createNode('ResAlign_ImageSet');
    app.graph.add(made);
    made.pos = [x, y];
    set(made, { prompts, count: 2 });
    made.connect(0, target, target.inputs.findIndex((one) => one.name === input));
  };
  for (const node of of('CheckpointLoaderSimple')) set(node, { ckpt_name: checkpoint });
  for (const node of of('ResAlign_HardeningSettings')) {
    const { preset = 'fast', ...others } = changes;
    set(node, { preset }); // which shows further widgets
    set(node, { resolution: 64, outer_steps: 4, ...others });
  }
  for (const node of of('ResAlign_HardenModel')) set(node, { preview_every: 2 });
  for (const node of of('ResAlign_FineTuningSettings')) set(node, { preset: 'quick' });
  for (const node of of('ResAlign_ResilienceProbe'))
    set(node, { steps: 2, images: 2, sampling_steps: 2, resolution: 64 });
  for (const node of of('EmptyLatentImage')) set(node, { width: 64, height: 64 });
  for (const node of of('KSampler')) set(node, { steps: 2 });
  for (const node of [...of('ResAlign_TryMyLora'), ...of('ResAlign_DrawConcept')])
    set(node, { width: 64, height: 64, steps: 2 });
  for (const node of of('ResAlign_ConceptList')) imageSet('a pistol', node, 'images', -380, 290);
  for (const node of of('ResAlign_HardenModel'))
    imageSet('a cat\\na tree', node, 'retain', -380, 620);
}"""
FIT = """() => {
  const boxes = [...app.graph.nodes, ...app.graph.groups].map(
    ({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]);
  for (const { pos } of app.graph.reroutes?.values() ?? []) boxes.push([...pos, ...pos]);
  const [x0, y0] = [0, 1].map(i => Math.min(...boxes.map(b => b[i])) - 30);
  const [x1, y1] = [2, 3].map(i => Math.max(...boxes.map(b => b[i])) + 30);
  const w = innerWidth - 80, h = innerHeight - 120;
  const s = Math.min(w / (x1 - x0), h / (y1 - y0), 1.1);
  app.canvas.ds.scale = s;
  app.canvas.ds.offset = [-x0 + 70 / s, -y0 + 95 / s];
  app.canvas.setDirty(true, true);
}"""
CLOSE = """(type) => {
  const node = app.graph.nodes.find((one) => one.type === type);
  const s = Math.min((innerHeight - 130) / (node.size[1] + 60), 1.6);
  app.canvas.ds.scale = s;
  app.canvas.ds.offset = [-node.pos[0] - node.size[0] / 2 + (innerWidth + 60) / 2 / s,
                          -node.pos[1] + 130 / s];
  app.canvas.setDirty(true, true);
}"""
BOX = """([type, name]) => {
  const found = [];
  const walk = (graph) => {
    for (const node of graph?.nodes ?? []) {
      if (node.type === type && node[name]) found.push(node[name]);
      if (node.subgraph) walk(node.subgraph);
    }
  };
  walk(app.rootGraph ?? app.graph);
  const box = found[0];
  return box ? { text: box.innerText, status: box.dataset.status ?? '',
                 stage: box.resalignState?.stage ?? '', step: box.resalignState?.step ?? 0,
                 images: box.querySelectorAll('img').length,
                 lines: box.querySelectorAll('polyline').length } : null;
}"""


class Front:
    """One page of the front end, and what went wrong in it."""

    def __init__(self, page: Any, address: str) -> None:
        self.page, self.address = page, address
        self.errors: list[str] = []
        self.outside: list[str] = []
        self.queued, self.seen = 0.0, {}
        page.on("pageerror", self._failed)
        page.on("console", self._heard)
        page.route("**/*", self._asked)

    def _failed(self, error: Any) -> None:
        """Errors of our scripts: 0.3.64's front end raises one of its own when it starts."""
        if "resalign" in f"{error}\n{error.stack}".lower():
            self.errors.append(f"{error}\n{error.stack}")

    def _heard(self, message: Any) -> None:
        place = f"{message.location.get('url', '')} {message.text}"
        if "Unhandled message" in message.text:
            return  # the front end's: one that came before it had loaded its extensions
        if message.type in ("error", "warning") and "resalign" in place.lower():
            self.errors.append(f"{message.type}: {place}")

    def _asked(self, route: Any) -> None:
        url = route.request.url
        if url.startswith((self.address, "data:", "blob:")):
            route.continue_()
        else:
            self.outside.append(url)
            route.abort()

    def open(self) -> None:
        self.page.goto(self.address)
        self.page.wait_for_function(READY, timeout=90_000)
        self.page.wait_for_timeout(2500)
        self.page.keyboard.press("Escape")  # the templates of a first visit

    def set(self, **settings: Any) -> None:
        for name, value in settings.items():
            self.page.evaluate(
                "([id, value]) => app.extensionManager.setting.set(id, value)",
                ["Comfy." + name.replace("_", "."), value],
            )
        self.page.wait_for_timeout(500)

    def reopen(self) -> None:
        """Reload, as F5 does; what a new page has to say of its own start is not waited for."""
        self.page.wait_for_timeout(1500)  # the workflow is kept as a draft a moment later
        self.open()

    def show(self, workflow: Any, name: str) -> None:
        """Open a workflow as dropping its file does."""
        self.page.evaluate("([flow, name]) => app.loadGraphData(flow, true, true, name)",
                           [workflow, name])  # fmt: skip
        self.page.wait_for_timeout(1500)

    def load(self, path: Path, *, checkpoint: str = CHECKPOINT, **changes: Any) -> None:
        """Open an example and make it small; `changes` are of Hardening Settings."""
        self.show(json.loads(path.read_text(encoding="utf-8")), path.stem)
        self.page.evaluate(REDUCE, [checkpoint, changes])
        self.page.wait_for_timeout(500)

    def queue(self) -> None:
        self.queued, self.seen = time.monotonic(), {}
        self.page.evaluate("() => app.queuePrompt(0, 1)")

    def see(self, box: dict[str, Any] | None) -> None:
        """Note the seconds from the queue to the first word, picture and curve, and to the end."""
        there = {
            "word": box and box["status"] and not box["text"].startswith("starting"),
            "picture": box and box["images"], "loss": box and box["lines"],
            "hardened": box and box["status"] == "done",
        }  # fmt: skip
        for name in (name for name, found in there.items() if found):
            self.seen.setdefault(name, round(time.monotonic() - self.queued))

    def box(self, kind: str, name: str) -> dict[str, Any] | None:
        """The text of our widget on the first node of a kind, and how much is in it."""
        return self.page.evaluate(BOX, [f"ResAlign_{kind}", f"resalign{name}"])

    def wait(self, condition: Any, timeout: float = 600) -> Any:
        """Until `condition()` gives something true, which is returned."""
        for _ in range(int(timeout / 0.2)):
            if found := condition():
                return found
            self.page.wait_for_timeout(200)
        raise AssertionError(f"it did not come to that within {timeout} s; {self.errors}")

    def done(self, kind: str = "HardenModel", timeout: float = 600) -> dict[str, Any]:
        def ended() -> Any:
            box = self.box(kind, "Live")
            if kind == "HardenModel":
                self.see(box)
            return box and box["status"] == "done" and box

        return self.wait(ended, timeout)

    def at(self, kind: str, stage: str, step: int) -> dict[str, Any] | None:
        """The live box of a node that is at `step` of a stage or further, if it is."""
        box = self.box(kind, "Live")
        return box if box and box["stage"] == stage and box["step"] >= step else None

    def pictures(self, kind: str) -> int:
        """How many pictures the nodes of a kind show as their output."""
        count = "(kind) => app.graph.nodes.filter((n) => n.type === kind && n.imgs?.length).length"
        return self.page.evaluate(count, kind)

    def finished(self, timeout: float = 400) -> None:
        """Until nothing of the queue is left."""
        count = """() => fetch('/prompt').then((answer) => answer.json())
                         .then((told) => told.exec_info.queue_remaining)"""
        self.page.wait_for_timeout(1500)
        self.wait(lambda: self.page.evaluate(count) == 0, timeout)
        self.seen["all"] = round(time.monotonic() - self.queued)
        self.page.wait_for_timeout(3000)

    def interrupt(self) -> None:
        self.page.evaluate("() => fetch('/interrupt', {method: 'POST'})")

    def bare(self) -> None:
        """Only the graph: no map, no canvas menu, no figures of the canvas."""
        self.set(VueNodes_Enabled=False, Minimap_Visible=False, Graph_CanvasInfo=False,
                 Graph_CanvasMenu=False)  # fmt: skip

    def close_up(self, kind: str) -> None:
        """Bring the first node of a kind close, with what is at its sides."""
        self.page.evaluate(CLOSE, f"ResAlign_{kind}")
        self.page.wait_for_timeout(1500)

    def shoot(self, path: Path, *, fit: bool = True, clip: bool = False) -> Path:
        """A picture of the page, or of its canvas alone."""
        if fit:
            self.page.evaluate(FIT)
            self.page.wait_for_timeout(1500)
        kind: dict[str, Any] = {"type": "jpeg", "quality": 80} if path.suffix == ".jpg" else {}
        if clip:
            width, height = self.page.viewport_size["width"], self.page.viewport_size["height"]
            kind["clip"] = {"x": 60, "y": 84, "width": width - 60, "height": height - 84}
        self.page.screenshot(path=path, **kind)
        return path


@contextmanager
def front(address: str, *, size: tuple[int, int] = (1600, 1000)) -> Iterator[Front]:
    """A page in Chromium, or a skip that says what is missing."""
    sync_api = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: no browser to test in"
    )
    chromium = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium on the PATH, and CHROMIUM is not set")
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=FLAGS)
        try:
            page = browser.new_page(viewport={"width": size[0], "height": size[1]}, locale="en-US")
            yield Front(page, address)
        finally:
            browser.close()
