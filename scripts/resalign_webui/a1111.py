"""A1111 and Forge. Their modules are imported when they are needed, never when this is loaded."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...backend.errors import ResAlignError
from . import environment
from .host import SETTINGS
from .mending import lines_of

PREFIX = "resalign_"  # of our names among the host's settings


class A1111:
    """The host that this process is."""

    @property
    def name(self) -> str:
        return "Forge" if find_spec("modules_forge") else "A1111"

    def checkpoints(self) -> list[tuple[str, Path]]:
        """By name: the title changes when the host has computed a hash. Pickles and GGUF, which
        cannot be hardened, are left out."""
        from modules import sd_models

        found: dict[str, Path] = {}
        for info in list(sd_models.checkpoints_list.values()):
            path = Path(info.filename)
            if path.suffix.lower() == ".safetensors":
                label = info.name if info.name not in found else str(path)
                found[label] = path
        return sorted(found.items())

    def loras(self) -> list[tuple[str, Path]]:
        folder = self.lora_folder()
        return [
            (path.relative_to(folder).as_posix(), path)
            for path in sorted(folder.rglob("*.safetensors"))
        ]

    def checkpoint_folder(self) -> Path:
        from modules import sd_models, shared

        return Path(getattr(shared.cmd_opts, "ckpt_dir", None) or sd_models.model_path)

    def lora_folder(self) -> Path:
        from modules import paths_internal, shared

        chosen = getattr(shared.cmd_opts, "lora_dir", None)
        return Path(chosen) if chosen else Path(paths_internal.models_path) / "Lora"

    def output_folder(self) -> Path:
        from modules import paths_internal

        return Path(paths_internal.default_output_dir)

    def remote(self) -> bool:
        """As the host itself judges when it forbids the installing of extensions."""
        from modules import shared

        named = ("listen", "share", "server_name", "ngrok")
        return any(getattr(shared.cmd_opts, name, None) for name in named)

    def worker_python(self) -> str:
        try:
            return str(environment.worker_python())
        except ResAlignError:
            raise ResAlignError(self.missing()) from None  # without paths for other machines

    def missing(self) -> str:
        try:
            environment.worker_python()
        except ResAlignError:
            found = environment.status()
        else:
            return ""
        by_hand = "" if self.remote() else f"\nBy hand: {found.command}"  # has a path in it
        return f"No job can run yet: {found.reason}.{by_hand}"

    def mend(self) -> Iterator[str]:
        return lines_of(environment.build)

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Under the host's own queue, so its pictures wait. The model leaves the GPU meanwhile:
        Forge moves it back when it is next used, A1111 has to be told.

        `shared.sd_model` is not touched: looking at it can load a model.
        """
        from modules import call_queue, sd_models

        with call_queue.queue_lock:
            model = sd_models.model_data.sd_model
            if model is not None:
                sd_models.unload_model_weights(model)
            try:
                yield
            finally:
                if model is not None:
                    sd_models.send_model_to_device(model)

    def refresh_checkpoints(self) -> None:
        from modules import shared

        shared.refresh_checkpoints()

    def exported(self, source: Path, output: Path) -> None:
        """The host reads a `.yaml` beside a checkpoint (SD 2 in v-prediction): it goes along."""
        described = source.with_suffix(".yaml")
        if described.is_file():
            shutil.copyfile(described, output.with_suffix(".yaml"))
        self.refresh_checkpoints()

    def setting(self, name: str) -> Any:
        from modules import shared

        return getattr(shared.opts, PREFIX + name, SETTINGS[name][0])


def add_settings() -> None:
    """Our entries on the host's settings page."""
    from modules import shared

    section = ("resalign", "ResAlign")
    for name, (default, label) in SETTINGS.items():
        shared.opts.add_option(PREFIX + name, shared.OptionInfo(default, label, section=section))
