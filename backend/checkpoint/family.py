"""What ships with the package for each family: configs in diffusers' form, and the tokenizer.

Nothing is ever fetched: `families/<family>/*.json` and `families/tokenizer/` are all that is needed
to build the networks. Sizes there are those of the published models; a file's own shapes and
metadata override them (`detect.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError

if TYPE_CHECKING:
    from .detect import CheckpointInfo

FOLDER = Path(__file__).parent / "families"
TOKENIZER_FOLDER = FOLDER / "tokenizer"
TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "SDXL base"}
VOCABULARY = 49408  # tokens of CLIP's tokenizer


def text_encoders_of(family: str) -> tuple[str, ...]:
    """Component names of a family's text encoders."""
    return ("text_encoder", "text_encoder_2") if family == "sdxl" else ("text_encoder",)


def components_of(family: str) -> tuple[str, ...]:
    """Component names of all networks of a family, as diffusers names their folders."""
    return ("unet", *text_encoders_of(family), "vae")


def family_config(family: str, name: str) -> dict[str, Any]:
    """One shipped config, e.g. `family_config("sd1", "unet")`."""
    return json.loads((FOLDER / family / f"{name}.json").read_text(encoding="utf-8"))


def tokenizer_names(family: str) -> tuple[str, ...]:
    return tuple(name.replace("text_encoder", "tokenizer") for name in text_encoders_of(family))


def load_tokenizers(family: str) -> tuple[Any, ...]:
    """CLIPTokenizers of a family, from shipped files: SD 2.x and SDXL's second pad with "!"."""
    from transformers import CLIPTokenizer

    found = []
    for name in tokenizer_names(family):
        options = family_config(family, name)
        del options["tokenizer_class"]
        found.append(
            CLIPTokenizer.from_pretrained(str(TOKENIZER_FOLDER), local_files_only=True, **options)
        )
    return tuple(found)


def config_folder(info: CheckpointInfo, target: str | Path) -> Path:
    """Write a diffusers config folder (no weights) that describes a detected checkpoint.

    For `StableDiffusionPipeline.from_single_file(file, config=folder)`, offline and for any size:
    model_index.json, the configs of all components, and the tokenizers.
    """
    target = Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} exists and is not an empty folder: choose another name")
    target.mkdir(parents=True, exist_ok=True)
    _write(target / "model_index.json", family_config(info.family, "model_index"))
    for component in components_of(info.family):
        _write(target / component / "config.json", info.configs[component])
    _write(target / "scheduler" / "scheduler_config.json", info.configs["scheduler"])
    for name in tokenizer_names(info.family):
        _write(target / name / "tokenizer_config.json", family_config(info.family, name))
        for file in ("vocab.json", "merges.txt"):
            shutil.copyfile(TOKENIZER_FOLDER / file, target / name / file)
    return target


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
