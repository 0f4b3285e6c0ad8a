"""A1111, Forge and their forks as a host. Their modules are imported on use, not at load.

Forge Neo takes several folders (`--ckpt-dirs`, `--lora-dirs`), and drops a model that is unloaded.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...backend.errors import ResAlignError
from . import environment, graphics
from .building import lines_of
from .host import SETTINGS, dangling

PREFIX = "resalign_"  # of our names among the host's settings


class A1111:
    """Implements `Host` for the process that A1111 or Forge runs in."""

    @property
    def name(self) -> str:
        if self.every_family:
            return "Forge Neo"
        return "Forge" if find_spec("modules_forge") else "A1111"

    @property
    def every_family(self) -> bool:
        """Return whether this is Forge Neo, which alone has folders for text encoders."""
        from modules import shared

        return hasattr(shared.cmd_opts, "text_encoder_dirs")

    def checkpoints(self) -> list[tuple[str, Path]]:
        """List checkpoints by name, without pickles and GGUF, which cannot be hardened.

        The host's title is not used, as it changes once the host has computed a hash.
        """
        from modules import sd_models

        found: dict[str, Path] = {}
        for info in list(sd_models.checkpoints_list.values()):
            path = Path(info.filename)
            if path.suffix.lower() == ".safetensors" and not dangling(path):
                label = info.name if info.name not in found else str(path)
                found[label] = path
        return sorted(found.items())

    def model_parts(self) -> list[tuple[str, Path]]:
        return _listed(_part_folders()) if self.every_family else []

    def loras(self) -> list[tuple[str, Path]]:
        return _listed([self.lora_folder(), *_folders("lora_dirs")])

    def checkpoint_folder(self) -> Path:
        from modules import sd_models, shared

        return Path(getattr(shared.cmd_opts, "ckpt_dir", None) or sd_models.model_path)

    def lora_folder(self) -> Path:
        from modules import paths_internal, shared

        chosen = getattr(shared.cmd_opts, "lora_dir", None)
        return Path(chosen) if chosen else Path(paths_internal.models_path) / "Lora"

    def further_folders(self) -> list[Path]:
        from modules import sd_models

        named = [*_folders("ckpt_dirs"), *_folders("lora_dirs"), *_part_folders()]
        return [Path(sd_models.model_path), *named]

    def output_folder(self) -> Path:
        from modules import paths_internal

        return Path(paths_internal.default_output_dir)

    def remote(self) -> bool:
        """Decide as the host does when it forbids installing extensions."""
        from modules import shared

        named = ("listen", "share", "server_name", "ngrok")
        return any(getattr(shared.cmd_opts, name, None) for name in named)

    def worker_python(self) -> str:
        try:
            return str(environment.worker_python())
        except ResAlignError:
            raise ResAlignError(self.missing()) from None  # without paths for visitors

    def missing(self) -> str:
        try:
            environment.worker_python()
        except ResAlignError:
            found = environment.status()
        else:
            return ""
        by_hand = "" if self.remote() else f"\nBy hand: {found.command}"  # contains a path
        return f"No job can run yet: {found.reason}.{by_hand}"

    def build_worker(self) -> Iterator[str]:
        return lines_of(environment.build)

    def sees_gpu(self) -> bool:
        """Follow the device that the host has chosen for itself."""
        try:
            from modules import devices

            return str(devices.device.type) != "cpu"
        except (ImportError, AttributeError):  # a fork without it
            return graphics.seen()

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Hold the host's queue, so that its own jobs wait, and move its model off the GPU.

        Forge moves the model back when it is next used; A1111 needs a call. Forge Neo has no such
        call and reads the model from its file again. `shared.sd_model` is not read, as reading it
        can load a model.
        """
        from modules import call_queue, sd_models

        move_back = getattr(sd_models, "send_model_to_device", None)
        with call_queue.queue_lock:
            model = sd_models.model_data.sd_model
            if model is not None:
                sd_models.unload_model_weights(model)
            if move_back is None:
                model = None  # the last reference: its main memory is free during the job
            try:
                yield
            finally:
                if model is not None and move_back is not None:
                    move_back(model)

    def refresh_checkpoints(self) -> None:
        from modules import shared

        shared.refresh_checkpoints()

    def exported(self, source: Path, output: Path) -> None:
        """Copy the `.yaml` that the host reads beside a checkpoint (v-prediction models)."""
        described = source.with_suffix(".yaml")
        if described.is_file():
            shutil.copyfile(described, output.with_suffix(".yaml"))
        self.refresh_checkpoints()

    def setting(self, name: str) -> Any:
        from modules import shared

        return getattr(shared.opts, PREFIX + name, SETTINGS[name][0])


def _folders(option: str) -> list[Path]:
    """Return the folders of an option that only Forge Neo has, and that may be repeated."""
    from modules import shared

    return [Path(folder) for folder in getattr(shared.cmd_opts, option, None) or ()]


def _part_folders() -> list[Path]:
    """Return the folders in which Forge Neo looks for text encoders and VAEs."""
    from modules import paths_internal

    own = [Path(paths_internal.models_path) / name for name in ("text_encoder", "VAE")]
    return [*own, *_folders("text_encoder_dirs"), *_folders("vae_dirs")]


def _listed(folders: list[Path]) -> list[tuple[str, Path]]:
    """List (label, file) of each file below the folders; labels are unique."""
    found: dict[str, Path] = {}
    for folder in dict.fromkeys(folders):
        for path in sorted(folder.rglob("*.safetensors")):
            if not dangling(path):
                label = path.relative_to(folder).as_posix()
                found[label if label not in found else str(path)] = path
    return list(found.items())


def add_settings() -> None:
    """Add our entries to the host's settings page."""
    from modules import shared

    section = ("resalign", "ResAlign")
    for name, (default, label) in SETTINGS.items():
        shared.opts.add_option(PREFIX + name, shared.OptionInfo(default, label, section=section))
