"""Names in users' LoRA files: which tensors belong together, and how strong they are.

    kohya, LyCORIS     lora_unet_<module with _>.lora_down.weight, .lora_up.weight, .alpha, ...
    diffusers          unet.<module>.lora_A.weight, .lora.down.weight, .processor.to_q_lora.down...
    PEFT               base_model.model.<module>.lora_A.weight, .hada_w1_a, .lokr_w1, ...
    ComfyUI            diffusion_model.<module>.lora_up.weight, .diff, ...

A name is a module (`stem`) and a part of its change; parts are called alike here whoever wrote
the file. Where the file has no alpha, PEFT's settings give it: diffusers keeps them as JSON in the
metadata, PEFT in `adapter_config.json` beside the file. Without either, alpha is the rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from ..errors import CheckpointError
from ..text import json_text

_PART = re.compile(
    r"(?P<stem>.+?)(?:"
    r"(?:(?:\.lora|\.lora_linear_layer|_lora)\.|\.lora_)(?P<side>down|up|mid)\.weight"
    r"|\.lora_(?P<peft>[AB])(?:\.[^.]+)?\.weight"
    r"|\.(?P<magnitude>lora_magnitude_vector)(?:\.default)?(?:\.weight)?"
    r"|\.(?P<own>alpha|dora_scale|hada_w[12]_[ab]|hada_t[12]|lokr_w[12](?:_[ab])?|lokr_t2"
    r"|diff|diff_b|w_norm|b_norm)(?:\.default)?"
    r")"
)
_OLD_OUTPUT = re.compile(r"\.attn[12]\.to_out$")  # a transformer's may be called so today
_SIDES = {"A": "down", "B": "up"}
_OTHER_KINDS = {
    "OFT": ("oft_blocks", "oft_diag", "oft_R", "oft_r."), "GLoRA": (".a1.weight", ".b1.weight"),
    "IA3": ("on_input", "ia3_l"), "BOFT": ("boft_",), "GLoKr": ("glora",),
    "textual inversion": ("bundle_emb", "emb_params", "string_to_param", "clip_l", "clip_g"),
    "a LoRA with its own biases": ("lora_bias", "lora_B.bias", "lora_up.bias"),
    "a LoRA of embeddings": ("lora_embedding",),
}  # fmt: skip
METADATA_KEY = "lora_adapter_metadata"  # where diffusers keeps PEFT's settings
BARE = "base_model.model."  # PEFT's own files


class Names(NamedTuple):
    """Sorted names. groups: stem to part to the tensor's name. rest: names outside any LoRA."""

    groups: dict[str, dict[str, str]]
    rest: list[str]


def sort_names(names: Iterable[str]) -> Names:
    """Sort a file's tensors by the module that they change. No name is lost or used twice."""
    groups: dict[str, dict[str, str]] = {}
    rest = []
    for name in sorted(names):
        found = _PART.fullmatch(name)
        part = found and (
            found["side"]
            or _SIDES.get(found["peft"])
            or ("magnitude" if found["magnitude"] else found["own"])
        )
        stem = found and _present_stem(found["stem"])
        if not stem or not part or part in groups.get(stem, ()):
            rest.append(name)
        else:
            groups.setdefault(stem, {})[part] = name
    return Names(groups, rest)


def _present_stem(stem: str) -> str:
    """Rename a layer of old diffusers, which put LoRAs beside it: `attn1.processor.to_out`."""
    present = stem.replace(".processor.", ".")
    old = present != stem or _OLD_OUTPUT.search(present)
    return present + ".0" if old and present.endswith(".to_out") else present


def other_kind(names: Iterable[str]) -> str:
    """Return the unsupported kind that leftover names belong to; empty if unknown."""
    for name in names:
        for kind, marks in _OTHER_KINDS.items():
            if any(mark in name for mark in marks):
                return kind
    return ""


@dataclass(frozen=True, slots=True)
class Strengths:
    """Strengths s = alpha / rank of the modules of a file that does not keep alpha beside each.

    settings: PEFT's, by what the module names begin with: `unet`, `text_encoder`; empty in PEFT's
    own files and where diffusers saved a single network.
    """

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def scale(self, stem: str, rank: int | None, alpha: float | None) -> float:
        """Return s. alpha: the file's, beside the module. rank: None without low-rank factors."""
        if alpha is not None:
            return alpha / rank if rank else 1.0
        module = stem.removeprefix(BARE)
        prefix, _, inner = module.partition(".")
        if prefix in self.settings:
            settings, module = self.settings[prefix], inner
        else:
            settings = self.settings.get("", {})
        rank = rank or _pattern(settings, "rank_pattern", module) or settings.get("r")
        alpha = _pattern(settings, "alpha_pattern", module)
        if alpha is None:
            alpha = settings.get("lora_alpha", settings.get("alpha"))
        if alpha is None or not rank:
            return 1.0
        return float(alpha) / (rank**0.5 if settings.get("use_rslora") else rank)


def strengths(file: str, metadata: Mapping[str, str], config: str | None) -> Strengths:
    """Read the metadata's JSON (diffusers) and the text of `adapter_config.json` (PEFT)."""
    settings: dict[str, dict[str, Any]] = {}
    for key, value in _json(f"{file}: its {METADATA_KEY}", metadata.get(METADATA_KEY)).items():
        component, _, name = key.rpartition(".")
        settings.setdefault(component, {})[name] = value
    if config is not None:
        settings[""] = _json(f"adapter_config.json beside {file}", config)
    for part in settings.values():
        _check(file, part)
    return Strengths(settings)


def _check(file: str, settings: Mapping[str, Any]) -> None:
    for name in ("r", "lora_alpha", "alpha"):
        value = settings.get(name)
        if value is not None and (type(value) not in (int, float) or not abs(value) < 1e9):
            raise CheckpointError(f"{file}: its PEFT settings give {name} as {value!r}: fetch it "
                                  "again, settings included")  # fmt: skip
    for name in ("rank_pattern", "alpha_pattern"):
        if not isinstance(settings.get(name) or {}, dict):
            raise CheckpointError(f"{file}: {name} of its PEFT settings is not a table")


def _pattern(settings: Mapping[str, Any], name: str, module: str) -> Any:
    """Look up by PEFT's rule: the first key that, as a pattern, ends the module's name."""
    for key, value in (settings.get(name) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return None


def _json(what: str, text: str | None) -> dict[str, Any]:
    try:
        found = json_text.loads(text) if text else {}
    except json_text.JsonError:
        raise CheckpointError(f"{what} is not JSON: fetch the file again") from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{what} is not a JSON object: fetch the file again")
    return found
