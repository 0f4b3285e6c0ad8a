"""A small stand-in for ComfyUI: what our nodes import from it, and nothing of its code.

`comfy(monkeypatch, base)` puts it into `sys.modules` and loads our nodes against it. Unknown
arguments of a Schema or an input are errors, as in ComfyUI.
"""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

SCHEMA = {
    "node_id", "display_name", "category", "inputs", "outputs", "hidden", "description",
    "search_aliases", "is_input_list", "is_output_node", "is_experimental", "not_idempotent",
    "is_deprecated",
}  # fmt: skip
PLAIN = {"id", "display_name", "optional", "tooltip", "lazy", "extra_dict", "advanced"}
WIDGET = PLAIN | {"default", "socketless", "force_input"}
KINDS = {
    "Int": WIDGET | {"min", "max", "step", "control_after_generate", "display_mode"},
    "Float": WIDGET | {"min", "max", "step", "round", "display_mode"},
    "String": WIDGET | {"multiline", "placeholder", "dynamic_prompts"},
    "Boolean": WIDGET | {"label_on", "label_off"},
    "Combo": WIDGET | {"options", "control_after_generate", "upload", "image_folder", "remote"},
    "MultiCombo": WIDGET | {"options", "placeholder", "chip", "control_after_generate"},
    "Model": PLAIN, "Clip": PLAIN, "Vae": PLAIN, "Conditioning": PLAIN, "Latent": PLAIN,
    "Image": PLAIN, "LoraModel": PLAIN, "LossMap": PLAIN, "AnyType": PLAIN,
}  # fmt: skip
OUTPUT = {"id", "display_name", "tooltip", "is_output_list"}


class Socket:
    """One input or output: its kind, its id and what it was declared with."""

    def __init__(self, kind: str, allowed: set[str], id: str | None, options: dict) -> None:  # noqa: A002
        unknown = set(options) - allowed
        if unknown:
            raise TypeError(f"{kind} {id}: unexpected {sorted(unknown)}")
        self.kind, self.id, self.options = kind, id, options
        self.optional = options.get("optional", False)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__dict__.get("options", {}).get(name)


def _type(kind: str, allowed: set[str]) -> type:
    class Input(Socket):
        def __init__(self, id: str, *, advanced: bool | None = None, **options: Any) -> None:  # noqa: A002
            if advanced is not None:
                options["advanced"] = advanced
            super().__init__(kind, allowed, id, options)

    class Output(Socket):
        def __init__(self, id: str | None = None, **options: Any) -> None:  # noqa: A002
            super().__init__(kind, OUTPUT, id, options)

    return type(kind, (), {"Input": Input, "Output": Output, "io_type": kind})


class Option:
    def __init__(self, key: str, inputs: list) -> None:
        self.key, self.inputs = key, inputs


class Schema:
    def __init__(self, *, search_aliases: Any = (), **fields: Any) -> None:
        self.search_aliases = search_aliases
        unknown = set(fields) - SCHEMA
        if unknown:
            raise TypeError(f"Schema: unexpected {sorted(unknown)}")
        self.inputs, self.outputs, self.hidden = [], [], []
        self.is_output_node = self.is_input_list = False
        self.description = ""
        self.__dict__.update(fields)


class NodeOutput:
    def __init__(self, *args: Any, ui: Any = None, **more: Any) -> None:
        self.args, self.ui, self.more = args, ui, more
        self.result = args


class ComfyNode:
    hidden = types.SimpleNamespace(unique_id="1", prompt=None, extra_pnginfo=None)


class ComfyExtension:
    async def on_load(self) -> None: ...


class Interrupted(BaseException):
    """ComfyUI's InterruptProcessingException: no Exception."""


class Host:
    """State that a test can look at and set: events, progress, pending interrupt."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []
        self.progress: list[tuple[int, int, Any]] = []
        self.routes: dict[str, Any] = {}
        self.interrupt = False
        self.freed: list[Any] = []
        self.cache_emptied = 0


def install(monkeypatch: Any, base: Path) -> Host:
    """Put the fake host into `sys.modules`; folders of the host lie under `base`."""
    import torch

    host = Host()
    io = types.ModuleType("comfy_api.latest.io")
    for kind, allowed in KINDS.items():
        setattr(io, kind, _type(kind, allowed))
    io.DynamicCombo = _type("DynamicCombo", PLAIN | {"options"})
    io.DynamicCombo.Option = Option
    io.Custom = lambda name: _type(name, WIDGET)
    io.Schema, io.NodeOutput, io.ComfyNode = Schema, NodeOutput, ComfyNode
    io.Hidden = types.SimpleNamespace(
        unique_id="UNIQUE_ID", prompt="PROMPT", extra_pnginfo="EXTRA_PNGINFO"
    )
    ui = types.ModuleType("comfy_api.latest.ui")
    ui.PreviewImage = lambda image, cls=None, **more: types.SimpleNamespace(
        as_dict=lambda: {"images": [{"shape": tuple(image.shape)}]}
    )
    ui.PreviewText = lambda text: types.SimpleNamespace(as_dict=lambda: {"text": (text,)})
    latest = types.ModuleType("comfy_api.latest")
    latest.io, latest.ui, latest.ComfyExtension = io, ui, ComfyExtension

    paths = types.ModuleType("folder_paths")
    paths.base_path = str(base)
    for name in ("output", "temp", "user", "input"):
        (base / name).mkdir(parents=True, exist_ok=True)
        setattr(paths, f"get_{name}_directory", lambda name=name: str(base / name))
    (base / "models").mkdir(exist_ok=True)
    folder = lambda kind: base / "models" / kind  # noqa: E731
    paths.get_filename_list = lambda kind: sorted(p.name for p in folder(kind).glob("*.*"))
    paths.get_full_path = lambda kind, name: (
        str(folder(kind) / name) if (folder(kind) / name).is_file() else None
    )
    paths.get_full_path_or_raise = lambda kind, name: str(folder(kind) / name)
    paths.get_folder_paths = lambda kind: [str(folder(kind))]

    management = types.ModuleType("comfy.model_management")

    def throw() -> None:
        if host.interrupt:
            host.interrupt = False
            raise Interrupted

    management.InterruptProcessingException = Interrupted
    management.throw_exception_if_processing_interrupted = throw
    management.get_torch_device = lambda: torch.device("cpu")
    management.get_total_memory = lambda device=None: 24 * 2**30
    management.unet_offload_device = lambda: torch.device("cpu")
    management.free_memory = lambda size, device, **more: host.freed.append((size, str(device)))
    management.unload_all_models = lambda: host.freed.append("all")
    management.load_models_gpu = lambda models, **more: None

    def empty(force: bool = False) -> None:
        host.cache_emptied += 1

    management.soft_empty_cache = empty
    utils = types.ModuleType("comfy.utils")

    class ProgressBar:
        def __init__(self, total: int, node_id: str | None = None) -> None:
            self.total = total

        def update_absolute(self, value: int, total: int | None = None, preview: Any = None):
            throw()
            host.progress.append((value, total or self.total, preview))

    utils.ProgressBar = ProgressBar
    package = types.ModuleType("comfy")
    package.model_management, package.utils = management, utils

    server = types.ModuleType("server")

    class Routes:
        def get(self, path: str):
            def keep(handler: Any) -> Any:
                host.routes[path] = handler
                return handler

            return keep

    instance = types.SimpleNamespace(
        routes=Routes(), client_id="client", last_prompt_id="prompt",
        send_sync=lambda event, data, client=None: host.events.append((event, data)),
    )  # fmt: skip
    server.PromptServer = types.SimpleNamespace(instance=instance)
    execution = types.ModuleType("comfy_execution")
    execution.graph_utils = types.ModuleType("comfy_execution.graph_utils")

    class ExecutionBlocker:
        def __init__(self, message: str | None) -> None:
            self.message = message

    execution.graph_utils.ExecutionBlocker = ExecutionBlocker
    root = types.ModuleType("comfy_api")
    root.latest = latest
    for name, module in {
        "comfy_api": root, "comfy_api.latest": latest, "folder_paths": paths, "comfy": package,
        "comfy.model_management": management, "comfy.utils": utils, "server": server,
        "comfy_execution": execution, "comfy_execution.graph_utils": execution.graph_utils,
    }.items():  # fmt: skip
        monkeypatch.setitem(sys.modules, name, module)
    return host


def load_nodes(monkeypatch: Any, name: str = "") -> Any:
    """Our `nodes` package, or one module of it, loaded afresh against the fake host."""
    for loaded in [m for m in sys.modules if m.startswith("resalign.nodes")]:
        monkeypatch.delitem(sys.modules, loaded)
    return importlib.import_module("resalign.nodes" + (f".{name}" if name else ""))
