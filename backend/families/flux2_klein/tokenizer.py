"""The tokenizer of Qwen3, which does not ship with the package: it is read from the model's places.

A diffusers folder has it in `tokenizer`. Beside single files it is looked for in a folder of that
name, and in ComfyUI, whose `models` folder the files lie in: Qwen 2.5's tokenizer there has the
same tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

FOLDERS = ("tokenizer", "qwen_3_4b", "qwen3_4b", "qwen3")
_HOST = Path("comfy", "text_encoders", "qwen25_tokenizer")
_ABOVE = 4  # folders above the model's in which the host's own is looked for
_FILES = (("tokenizer.json",), ("vocab.json", "merges.txt"))
PAD = "<|endoftext|>"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", PAD)


def load_tokenizer(places: Sequence[Path]) -> Any:
    """Load the tokenizer from the first folder that holds one; a CheckpointError says how to give
    it."""
    folder = next(_holding(places), None)
    if folder is None:
        shown = " or ".join(str(place / FOLDERS[0]) for place in places[:2]) or "tokenizer"
        raise CheckpointError(
            "FLUX.2 klein needs the tokenizer of Qwen3, which is not part of a weights file: put "
            "the folder `tokenizer` of the published model (tokenizer.json or vocab.json and "
            f"merges.txt, with tokenizer_config.json) at {shown}"
        )
    return _load(folder)


def find_tokenizer(places: Sequence[Path]) -> Path | None:
    """Return the folder that `load_tokenizer` would read."""
    return next(_holding(places), None)


def _holding(places: Sequence[Path]) -> Iterator[Path]:
    for place in places:
        here = place.absolute()
        own = [here / name for name in FOLDERS]
        hosts = [above / _HOST for above in list(here.parents)[:_ABOVE]]
        for folder in (*own, *hosts):
            if any(all((folder / file).is_file() for file in files) for files in _FILES):
                yield folder


def _load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{folder} is not a readable tokenizer ({error})") from None
    lacking = [token for token in SPECIAL if not _is_token(tokenizer, token)]
    if lacking:
        raise CheckpointError(
            f"{folder} is not the tokenizer of Qwen3: it has no token {lacking[0]}; give the "
            "folder `tokenizer` of the published model"
        )
    return tokenizer


def _is_token(tokenizer: Any, token: str) -> bool:
    return tokenizer(token, add_special_tokens=False).input_ids == [
        tokenizer.convert_tokens_to_ids(token)
    ]
