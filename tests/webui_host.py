"""A1111 and Forge made small: runs scripts/resalign_tab.py as they do, in this process.

    python webui_host.py PORT FOLDER [--auth NAME:PASSWORD] [--listen] [--fake STEPS PAUSE]

Run by an interpreter with one of the hosts' versions of gradio. The modules that the tab uses
are stubs below; `backend` is a namespace package of the host's, as Forge's is, and every
extension stays on sys.path, as in Forge. Prints one line of JSON when the page is served.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import threading
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CALLBACKS: dict[str, list] = {}
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"


class CheckpointInfo:
    def __init__(self, path: Path, name: str) -> None:
        self.filename, self.name, self.title = str(path), name, name


class Options:
    """shared.opts: what is not set yet has its default."""

    def __init__(self) -> None:
        self.data_labels: dict = {}

    def add_option(self, key, info) -> None:
        self.data_labels[key] = info

    def __getattr__(self, key):
        labels = self.__dict__.get("data_labels", {})
        if key in labels:
            return labels[key].default
        raise AttributeError(key)


class OptionInfo:
    def __init__(self, default=None, label="", component=None, component_args=None, section=None):
        self.default, self.label, self.section = default, label, section


def stub_modules(folder: Path, listen: bool) -> None:
    """`modules` of the host, with what the tab may use of it."""
    made = {}
    for name in ("script_callbacks", "shared", "sd_models", "call_queue", "paths_internal"):
        module = made[name] = types.ModuleType(f"modules.{name}")
        sys.modules[f"modules.{name}"] = module
    package = sys.modules["modules"] = types.ModuleType("modules")
    package.__path__ = []
    for name, module in made.items():
        setattr(package, name, module)
    for name in ("on_ui_tabs", "on_ui_settings", "on_app_started", "on_script_unloaded"):
        setattr(
            made["script_callbacks"], name,
            lambda function, name=name: CALLBACKS.setdefault(name, []).append(function),
        )  # fmt: skip
    models = made["sd_models"]
    models.model_path, models.checkpoints_list = str(folder / "models"), {}
    models.model_data = types.SimpleNamespace(sd_model=None)

    def list_models() -> None:
        models.checkpoints_list.clear()
        for path in sorted((folder / "models").rglob("*.*")):
            name = str(path.relative_to(folder / "models"))
            models.checkpoints_list[f"{name} [{len(name)}]"] = CheckpointInfo(path, name)

    shared = made["shared"]
    shared.cmd_opts = types.SimpleNamespace(
        ckpt_dir=None, lora_dir=str(folder / "loras"), listen=listen, share=False
    )
    shared.opts, shared.OptionInfo, shared.refresh_checkpoints = Options(), OptionInfo, list_models
    made["call_queue"].queue_lock = threading.Lock()
    made["paths_internal"].default_output_dir = str(folder / "outputs")
    made["paths_internal"].models_path = str(folder)
    list_models()


def stub_backend(folder: Path) -> None:
    """Forge's `backend`: no __init__.py, imported before any extension."""
    host = folder / "host"
    (host / "backend").mkdir(parents=True, exist_ok=True)
    (host / "backend" / "errors.py").write_text("OWNER = 'the host'\n")
    sys.path.insert(0, str(host))
    importlib.import_module("backend")
    sys.path.insert(0, str(ROOT))


class Broken:
    """One module of ours cannot be imported."""

    def find_spec(self, name, path=None, target=None):
        if name == "resalign_ext.scripts.resalign_webui.a1111":
            raise ImportError("broken on purpose")


def run_script(path: Path) -> None:
    """As modules.script_loading.load_module: by path, under the file's name, in no sys.modules."""
    spec = importlib.util.spec_from_file_location(path.name, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def fake_jobs(steps: int, pause: float) -> None:
    """Play jobs instead of running them."""
    sys.path.append(str(Path(__file__).parent))
    import fakes_webui

    inside = sys.modules["resalign_ext.scripts.resalign_webui.inside"]
    inside.manager = lambda host, folder: fakes_webui.FakeJobs(
        host, folder, package="resalign_ext", steps=steps, pause=pause
    )
    inside.host.missing = lambda: ""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--auth", default="")
    parser.add_argument("--listen", action="store_true")
    parser.add_argument("--fake", nargs=2, default=None)
    parser.add_argument("--break", dest="broken", action="store_true")
    args = parser.parse_args()
    for name in ("models", "loras", "outputs"):
        (args.folder / name).mkdir(parents=True, exist_ok=True)
    stub_modules(args.folder, args.listen)
    stub_backend(args.folder)
    import gradio as gr

    if args.broken:
        sys.meta_path.insert(0, Broken())
    run_script(ROOT / "scripts" / "resalign_tab.py")
    if args.fake and "resalign_ext" in sys.modules:
        fake_jobs(int(args.fake[0]), float(args.fake[1]))
    for callback in CALLBACKS.get("on_ui_settings", []):
        callback()
    tabs = [tab for callback in CALLBACKS["on_ui_tabs"] for tab in callback()]
    head = (ROOT / "javascript" / "resalign.js").read_text(encoding="utf-8")
    with gr.Blocks(analytics_enabled=False, title="host") as demo, gr.Tabs(elem_id="tabs"):
        with gr.TabItem("txt2img", id="txt2img", elem_id="tab_txt2img"):
            gr.HTML("<p>the host's own</p>")
        for blocks, label, name in tabs:
            with gr.TabItem(label, id=name, elem_id=f"tab_{name}"):
                blocks.render()
    demo.queue(64)  # as both hosts write it
    auth = [tuple(args.auth.split(":"))] if args.auth else None
    app, url, _ = demo.launch(
        server_port=args.port, quiet=True, prevent_thread_lock=True, auth=auth, share=False
    )
    add_script(app, head)
    for callback in CALLBACKS.get("on_app_started", []):
        callback(demo, app)
    print(json.dumps({"url": url, "gradio": gr.__version__, "settings": sorted(
        sys.modules["modules"].shared.opts.data_labels)}), flush=True)  # fmt: skip
    sys.stdin.readline()  # the test closes it, or writes a line
    demo.close(verbose=False)  # Reload UI does so first, and waits for whoever streams
    for callback in CALLBACKS.get("on_script_unloaded", []):
        callback()
    left = [name for name in sys.modules if name.startswith("resalign_ext")]
    print(json.dumps({"left": left}), flush=True)
    os._exit(0)


def add_script(app, script: str) -> None:
    """Put our javascript/ into the page, as the hosts do: into what the page's route answers."""
    from starlette.middleware import Middleware  # noqa: F401
    from starlette.types import Message

    class Adding:
        def __init__(self, inner):
            self.inner = inner

        async def __call__(self, scope, receive, send):
            if scope["type"] != "http" or scope["path"] != "/":
                return await self.inner(scope, receive, send)
            start: list[Message] = []
            body = bytearray()

            async def hold(message):
                if message["type"] == "http.response.start":
                    start.append(message)
                    return
                body.extend(message.get("body", b""))
                if message.get("more_body"):
                    return
                page = bytes(body)
                plain = not any(k == b"content-encoding" for k, _ in start[0]["headers"])
                if plain:
                    page = page.replace(b"</head>", f"<script>{script}</script></head>".encode(), 1)
                headers = [(k, v) for k, v in start[0]["headers"] if k != b"content-length"]
                headers.append((b"content-length", str(len(page)).encode()))
                await send({**start[0], "headers": headers})
                await send({"type": "http.response.body", "body": page})

            headers = [(k, v) for k, v in scope["headers"] if k != b"accept-encoding"]
            return await self.inner({**scope, "headers": headers}, receive, hold)

    if app.middleware_stack is None:
        app.middleware_stack = app.build_middleware_stack()
    app.middleware_stack = Adding(app.middleware_stack)


if __name__ == "__main__":
    main()
