"""Writes example_workflows/*.json and their pictures, and the blueprint in subgraphs/.

    python tools/workflows.py http://127.0.0.1:8188

The graphs are described here in ComfyUI's API format with places for the nodes; a running ComfyUI
with this pack, driven in headless Chromium (playwright), turns them into workflow files and
pictures. No checkpoint has to be there. Run it again when a node's inputs change.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
Graph = dict[str, dict[str, Any]]
BLUEPRINT_NAME = "Harden and Export"
SD15, SDXL = "v1-5-pruned-emaonly-fp16.safetensors", "sd_xl_base_1.0.safetensors"
FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]


def node(kind: str, x: int, y: int, title: str = "", **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs, "_meta": {"title": title}, "at": (x, y)}


def hardening(checkpoint: str, resolution: int = 0, **settings: Any) -> Graph:
    """Load, concepts, settings, Harden Model (5): what the examples begin with."""
    return {
        "1": node("CheckpointLoaderSimple", 40, 130, ckpt_name=checkpoint),
        "2": node("ResAlign_ConceptList", 40, 290, preset="weapons"),
        "3": node("ResAlign_HardeningSettings", 40, 560, resolution=resolution, **settings),
        "5": node(
            "ResAlign_HardenModel", 420, 130, model=["1", 0], clip=["1", 1], vae=["1", 2],
            concepts=["2", 0], settings=["3", 0],
        ),
    }  # fmt: skip


def sampler(number: int, model: list[Any], x: int, y: int, title: str) -> Graph:
    """A KSampler with decoder and preview, numbered from `number`; texts are 20 and 21."""
    first, second, third = (str(number + k) for k in range(3))
    return {
        first: node(
            "KSampler", x, y, title, model=model, seed=42, steps=20, cfg=7.0,
            sampler_name="euler", scheduler="normal", denoise=1.0, positive=["20", 0],
            negative=["21", 0], latent_image=["22", 0],
        ),
        second: node("VAEDecode", x, y + 310, samples=[first, 0], vae=["1", 2]),
        third: node("PreviewImage", x, y + 400, title, images=[second, 0]),
    }  # fmt: skip


def texts(x: int, y: int) -> Graph:
    return {
        "20": node("CLIPTextEncode", x, y, "prompt", clip=["1", 1], text="a photo of a red fox"),
        "21": node("CLIPTextEncode", x, y + 230, "negative prompt", clip=["1", 1], text=""),
        "22": node("EmptyLatentImage", x, y + 460, width=512, height=512, batch_size=1),
    }


def export(x: int, y: int, **more: Any) -> Graph:
    return {
        "8": node("ResAlign_ExportHardenedCheckpoint", x, y, run=["5", 3], **more),
        "9": node("ResAlign_SaveHardeningLora", x, y + 460, run=["5", 3]),
    }


WORKFLOWS: dict[str, Graph] = {
    "quick_harden_and_compare": {
        **hardening(SD15, preset="fast"),
        **texts(800, 130),
        **sampler(23, ["1", 0], 1230, 130, "original"),
        **sampler(26, ["5", 0], 1580, 130, "hardened"),
        "11": node("LossGraphNode", 420, 860, loss=["5", 2], filename_prefix="loss_graph"),
    },
    "full_harden_with_probe": {
        **hardening(SD15, preset="balanced"),
        "4": node("ResAlign_FineTuningSettings", 40, 1010, preset="balanced"),
        "6": node(
            "ResAlign_ResilienceProbe", 800, 130, before=["1", 0], clip=["1", 1], vae=["1", 2],
            run=["5", 3], preset="quick",
        ),
        "7": node("ResAlign_ShowReport", 1180, 130, report=["6", 2]),
        "10": node("PreviewImage", 1180, 360, "curve", images=["6", 1]),
        **export(1580, 130, report=["6", 2]),
    },
    "try_my_lora": {
        **hardening(SD15, preset="balanced"),
        "12": node(
            "ResAlign_TryMyLora", 800, 130, before=["1", 0], after=["5", 0], clip=["1", 1],
            vae=["1", 2], lora="my_lora.safetensors", prompt="a portrait",
        ),
        "13": node("PreviewImage", 1230, 130, "original and hardened, both with my LoRA",
                   images=["12", 2]),
    },
    "harden_sdxl": {
        **hardening(
            SDXL, 512, preset="balanced", precision="bf16", gradient_checkpointing=True
        ),
        **export(800, 130),
    },
}  # fmt: skip
WORKFLOWS["full_harden_with_probe"]["5"]["inputs"]["fine_tuning"] = ["4", 0]


def blueprint_graph() -> Graph:
    """Harden Model (5) and the export (8) between neighbours, whose links become its sockets."""
    graph = hardening(SD15, preset="balanced") | {
        "4": node("ResAlign_FineTuningSettings", 0, 0, preset="balanced"),
        "8": node("ResAlign_ExportHardenedCheckpoint", 0, 0, run=["5", 3]),
        "30": node("PreviewAny", 0, 0, source=["8", 0]),
        "31": node("LossGraphNode", 0, 0, loss=["5", 2], filename_prefix="loss"),
        "32": node("ResAlign_TryMyLora", 0, 0, after=["5", 0]),
        "33": node("ResAlign_SaveHardeningLora", 0, 0, run=["5", 3]),
    }
    graph["5"]["inputs"]["fine_tuning"] = ["4", 0]
    return {key: {f: v for f, v in one.items() if f != "at"} for key, one in graph.items()}


def api(name: str) -> Graph:
    """A workflow in the API format, without places; what is left out is the node's default."""
    return {
        key: {"class_type": one["class_type"], "inputs": dict(one["inputs"])}
        for key, one in WORKFLOWS[name].items()
    }


LOAD = """async ([graph, places]) => {
  await app.loadApiJson(graph, 'example');
  await new Promise(done => setTimeout(done, 600));
  for (const node of app.graph.nodes) {
    const [x, y] = places[String(node.id)];
    node.pos = [x, y];
    const wanted = graph[String(node.id)];
    for (const widget of node.widgets ?? []) // a file that is not here keeps its name
      if (typeof wanted.inputs[widget.name] === 'string') widget.value = wanted.inputs[widget.name];
      else if (widget.name === 'control_after_generate') widget.value = 'fixed'; // to compare
    const size = node.computeSize();
    node.setSize([Math.max(size[0], 300), size[1]]);
  }
  app.canvas.setDirty(true, true);
  const workflow = app.graph.serialize();
  for (const node of workflow.nodes) delete node.properties?.ver;
  return workflow;
}"""
BLUEPRINT = """async ([graph, inside, name]) => {
  await app.loadApiJson(graph, 'blueprint');
  await new Promise(done => setTimeout(done, 600));
  const chosen = new Set(app.graph.nodes.filter(node => inside.includes(String(node.id))));
  const { node } = app.graph.convertToSubgraph(chosen);
  node.title = name;
  node.subgraph.name = name;
  const workflow = app.graph.serialize();
  const kept = workflow.nodes.filter(one => one.type === node.subgraph.id);
  for (const one of kept) {
    one.pos = [0, 0];
    for (const input of one.inputs) input.link = null;
    for (const output of one.outputs) output.links = [];
  }
  return { revision: 0, last_node_id: kept[0].id, last_link_id: 0, nodes: kept, links: [],
           definitions: workflow.definitions, extra: {}, version: 0.4 };
}"""
FIT = """() => {
  const boxes = app.graph.nodes.map(
    ({ pos, size }) => [pos[0], pos[1] - 30, pos[0] + size[0], pos[1] + size[1]]);
  const [x0, y0] = [0, 1].map(i => Math.min(...boxes.map(b => b[i])) - 30);
  const [x1, y1] = [2, 3].map(i => Math.max(...boxes.map(b => b[i])) + 30);
  const c = app.canvas.canvas, w = innerWidth - 70, h = innerHeight - 110;
  const s = Math.min(w / (x1 - x0), h / (y1 - y0), 1);
  app.canvas.ds.scale = s;
  app.canvas.ds.offset = [-x0 + 65 / s, -y0 + 95 / s];
  app.canvas.setDirty(true, true);
}"""


def main(address: str) -> None:
    from playwright.sync_api import sync_playwright

    folder = ROOT / "example_workflows"
    folder.mkdir(exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path="/usr/bin/chromium", args=FLAGS)
        page = browser.new_page(viewport={"width": 1600, "height": 1000})
        page.route(
            "**/*",
            lambda r: r.continue_() if r.request.url.startswith((address, "data:", "blob:"))
            else r.abort(),
        )  # fmt: skip
        page.goto(address)
        page.wait_for_function("window.app?.graph && window.app?.extensionManager")
        page.wait_for_timeout(2500)
        for name, graph in WORKFLOWS.items():
            plain = {k: {f: v for f, v in n.items() if f != "at"} for k, n in graph.items()}
            places = {key: one["at"] for key, one in graph.items()}
            workflow = page.evaluate(LOAD, [plain, places])
            text = json.dumps(workflow, indent=1, ensure_ascii=False) + "\n"
            (folder / f"{name}.json").write_text(text, encoding="utf-8")
            page.evaluate(FIT)
            page.wait_for_timeout(1500)
            page.screenshot(path=folder / f"{name}.jpg", type="jpeg", quality=70)
        blueprint = page.evaluate(BLUEPRINT, [blueprint_graph(), ["5", "8"], BLUEPRINT_NAME])
        (ROOT / "subgraphs").mkdir(exist_ok=True)
        text = json.dumps(blueprint, indent=1, ensure_ascii=False) + "\n"
        (ROOT / "subgraphs" / f"{BLUEPRINT_NAME}.json").write_text(text, encoding="utf-8")
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8188")
