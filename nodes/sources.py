"""The files that MODEL, CLIP and VAE were loaded from, and the lists of files to choose from.

A model may lie in one file (checkpoints), or its denoiser, text encoder and VAE in a folder each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

# An input of core's loaders that names a file: the folder that it lies in.
LOADERS = {
    "ckpt_name": "checkpoints", "unet_name": "diffusion_models",
    "clip_name": "text_encoders", "vae_name": "vae",
}  # fmt: skip
CHECKPOINTS, DENOISERS = "checkpoints", "diffusion_models"
_CLASHING = DENOISERS + "/"  # before a name that is also a checkpoint's


def model_files() -> list[str]:
    """List the files that hold a denoiser, by the names that ComfyUI's loaders show."""
    import folder_paths

    whole, alone = (folder_paths.get_filename_list(kind) for kind in (CHECKPOINTS, DENOISERS))
    # A name that both folders have stands for the checkpoint.
    return [*whole, *(_CLASHING + name if name in whole else name for name in alone)]


def model_file(name: str) -> Path:
    """Return the path of a name from that list."""
    import folder_paths

    places = ((CHECKPOINTS, name), (DENOISERS, name), (DENOISERS, name.removeprefix(_CLASHING)))
    for kind, own in places:
        if found := folder_paths.get_full_path(kind, own):
            return Path(found)
    return Path(folder_paths.get_full_path_or_raise(CHECKPOINTS, name))


def source_file(model: Any, hidden: Any = None) -> Path | None:
    """Return the file that the MODEL was loaded from, if it is known.

    In this order: what the loader says, and the file of the loader that the node's `model` input
    leads to in the graph.
    """
    from . import bridge

    return bridge.source_of(model) or _in_graph(hidden, "model")


def companions(model: Any, clip: Any, vae: Any, path: Path, hidden: Any = None) -> dict[str, str]:
    """Return the files of the components that the MODEL's file does not hold, by component.

    What the loaders of CLIP and VAE say, what the graph says, or the only fitting file in ComfyUI's
    folders. A CheckpointError says which one is not found.
    """
    from ..backend.checkpoint.detect import detect
    from . import bridge

    family = bridge.family_of(model)
    held = detect(path, alone=True).configs
    parts = {family.vae: ("vae", vae), **dict.fromkeys(family.text_encoders, ("clip", clip))}
    named = {}
    for component, (link, part) in parts.items():
        if component not in held:
            file = bridge.source_of(part.patcher) or _in_graph(hidden, link)
            named[component] = str(file or "")
    if not named:
        return {}
    info = detect(path, parts=named, folders=host_folders())
    return {component: str(info.files[component][0]) for component in named}


def host_folders() -> list[Path]:
    """Return ComfyUI's folders of text encoders and VAEs."""
    import folder_paths

    kinds = ("text_encoders", "vae")
    return [Path(folder) for kind in kinds for folder in folder_paths.get_folder_paths(kind)]


def _in_graph(hidden: Any, link: str) -> Path | None:
    import folder_paths

    prompt, node = getattr(hidden, "prompt", None), getattr(hidden, "unique_id", None)
    field, name = loaded_name(prompt, node, link)
    found = folder_paths.get_full_path(LOADERS[field], name) if name else None
    return Path(found) if found else None


def loaded_name(prompt: Any, node: Any, link: str = "model") -> tuple[str, str]:
    """Return the loader's input at the start of a node's chain of `link` inputs, and the file's
    name in it; empty if there is none.

    prompt: the graph in the API format. The export compares weights before it uses the file.
    """
    seen: set[str] = set()
    while isinstance(prompt, dict) and str(node) in prompt and str(node) not in seen:
        seen.add(str(node))
        inputs = prompt[str(node)].get("inputs", {})
        for field in LOADERS:
            if isinstance(inputs.get(field), str):
                return field, inputs[field]
        following = inputs.get(link)
        node = following[0] if isinstance(following, (list, tuple)) and following else None
    return "", ""
