"""Tokenizers do not ship with the package: they are read from the model's places.

A diffusers folder has Qwen3's in `tokenizer`. Beside single files it is looked for in a folder of
that name, and in ComfyUI, whose `models` folder the files lie in: Qwen 2.5's tokenizer there has
the same tokens. Other tokenizers are found in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...errors import CheckpointError

_ABOVE = 4  # folders above the model's in which the host's own is looked for
PAD = "<|endoftext|>"


@dataclass(frozen=True, slots=True)
class TokenizerPlace:
    """Places that may hold a tokenizer, and the marks by which it is recognised.

    what: for readers. folders: their names beside the model, the usual one first. host: its folder
    in ComfyUI. files: sets of files of which a folder needs one. tokens: that it must have.
    """

    what: str
    folders: tuple[str, ...]
    host: Path
    files: tuple[tuple[str, ...], ...]
    tokens: tuple[str, ...]


QWEN3 = TokenizerPlace(
    "Qwen3",
    ("tokenizer", "qwen_3_4b", "qwen3_4b", "qwen3"),
    Path("comfy", "text_encoders", "qwen25_tokenizer"),
    (("tokenizer.json",), ("vocab.json", "merges.txt")),
    ("<|im_start|>", "<|im_end|>", "<think>", "</think>", PAD),
)


def load_tokenizer(title: str, places: Sequence[Path], wanted: TokenizerPlace = QWEN3) -> Any:
    """Load the tokenizer from the first folder that holds one; a CheckpointError says how to give
    it. title: of the model, for that."""
    folder = find_tokenizer(places, wanted)
    if folder is None:
        name = wanted.folders[0]
        shown = " or ".join(str(place / name) for place in places[:2]) or name
        files = " or ".join(" and ".join(each) for each in wanted.files)
        raise CheckpointError(
            f"{title} needs the tokenizer of {wanted.what}, which is not part of a weights file: "
            f"put the folder `{name}` of the published model ({files}, with "
            f"tokenizer_config.json) at {shown}"
        )
    return _load(folder, wanted)


def find_tokenizer(places: Sequence[Path], wanted: TokenizerPlace = QWEN3) -> Path | None:
    """Return the folder that `load_tokenizer` would read."""
    return next(_holding(places, wanted), None)


def _holding(places: Sequence[Path], wanted: TokenizerPlace) -> Iterator[Path]:
    for place in places:
        here = place.absolute()
        own = [here / name for name in wanted.folders]
        hosts = [above / wanted.host for above in list(here.parents)[:_ABOVE]]
        for folder in (*own, *hosts):
            if any(all((folder / file).is_file() for file in files) for files in wanted.files):
                yield folder


def _load(folder: Path, wanted: TokenizerPlace) -> Any:
    from transformers import AutoTokenizer

    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(f"{folder} is not a readable tokenizer ({error})") from None
    lacking = [token for token in wanted.tokens if not _is_token(tokenizer, token)]
    if lacking:
        raise CheckpointError(
            f"{folder} is not the tokenizer of {wanted.what}: it has no token {lacking[0]}; give "
            f"the folder `{wanted.folders[0]}` of the published model"
        )
    return tokenizer


def _is_token(tokenizer: Any, token: str) -> bool:
    return tokenizer(token, add_special_tokens=False).input_ids == [
        tokenizer.convert_tokens_to_ids(token)
    ]
