"""What a checkpoint is, from its headers alone: family, prediction type, layout, configs.

Nothing is fetched and, one small tensor apart, no weights are read: milliseconds for any size.
A checkpoint of unusual proportions may say in its metadata what shapes cannot tell, under the key
`resalign.config`: JSON such as {"unet": {"attention_head_dim": 4, "norm_num_groups": 8}}.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import CheckpointError
from . import architecture
from .architecture import Shapes
from .family import TITLES, VOCABULARY, components_of, family_config, text_encoders_of
from .header import Header, read_header
from .keys import UNET, VAE
from .prediction import prediction_type, wants_zero_terminal_snr
from .refuse import REFINER, UNCLIP, other_kind, refused_channels

if TYPE_CHECKING:
    from ..model.schedule import PredictionType  # imports torch, which takes seconds

Layout = Literal["ldm", "diffusers"]
CONFIG_KEY = "resalign.config"
_CLIP_PREFIXES = ("cond_stage_model.transformer.text_model.", "cond_stage_model.transformer.")
_OPEN_CLIP_PREFIXES = ("cond_stage_model.model.", "conditioner.embedders.0.model.")
_SDXL_PREFIXES = (
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.1.model.",
)


def _count(value: Any) -> bool:
    return type(value) is int and 0 < value <= 4096


def _counts(value: Any) -> bool:
    return _count(value) or (isinstance(value, list) and len(value) < 9 and all(map(_count, value)))


def _number(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value < 1e4


# What the metadata key may override, and which values are ones.
_OVERRIDABLE: dict[str, dict[str, Callable[[Any], bool]]] = {
    "unet": {
        "attention_head_dim": _counts,
        "norm_num_groups": _count,
        "sample_size": _count,
        "addition_time_embed_dim": _count,
    },
    "vae": {"norm_num_groups": _count, "scaling_factor": _number, "sample_size": _count},
    "text_encoder": {
        "num_attention_heads": _count,
        "hidden_act": lambda value: value in ("quick_gelu", "gelu"),
    },
    "scheduler": {
        "prediction_type": lambda value: value in ("epsilon", "v_prediction"),
        "beta_start": _number,
        "beta_end": _number,
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointInfo:
    """One checkpoint, detected but not loaded.

    path: the .safetensors file, or the diffusers folder.
    family: `sd1`, `sd2` or `sdxl`. layout: `ldm` (one file) or `diffusers` (a folder).
    zero_terminal_snr: its schedule ends in pure noise (marker key `ztsnr`).
    configs: in diffusers' form: `unet`, `vae`, `text_encoder`, `text_encoder_2`, `scheduler`.
    prefixes: what the names of each component begin with in the file; empty in a folder.
    files: the weight files of each component; all the same one in the layout `ldm`.
    headers: the header of each of these files.
    dtypes: storage types of each component, the most frequent (by bytes) first, e.g. ("F16",).
    bytes: size of all weight files.
    """

    path: Path
    family: str
    layout: Layout
    prediction_type: PredictionType
    zero_terminal_snr: bool
    configs: dict[str, dict[str, Any]]
    prefixes: dict[str, str]
    files: dict[str, tuple[Path, ...]] = field(repr=False)
    headers: dict[Path, Header] = field(repr=False)
    dtypes: dict[str, tuple[str, ...]]
    tensor_count: int
    bytes: int
    metadata: dict[str, str] = field(repr=False)

    @property
    def title(self) -> str:
        """Family for a reader, e.g. `Stable Diffusion 1.x`."""
        return TITLES[self.family]

    @property
    def components(self) -> tuple[str, ...]:
        return components_of(self.family)

    @property
    def resolution(self) -> int:
        """Native side in pixels: latents' side times the VAE's reduction."""
        reduction = 2 ** (len(self.configs["vae"]["block_out_channels"]) - 1)
        return int(self.configs["unet"]["sample_size"]) * reduction


def detect(path: str | Path) -> CheckpointInfo:
    """What the checkpoint at `path` is; a CheckpointError says why it cannot be used."""
    path = Path(path)
    if path.is_dir():
        from .folder import detect_folder  # it builds the same value from configs instead

        return detect_folder(path)
    header = read_header(path)
    return detect_ldm(path, header)


def detect_ldm(path: Path, header: Header) -> CheckpointInfo:
    """The same for a single file whose header has been read."""
    file, tensors = path.name, header.tensors
    other = other_kind(tensors)
    if other:
        raise CheckpointError(other.sentence(file))
    unet = Shapes(file, tensors, UNET)
    if "input_blocks.0.0.weight" in unet:
        other = refused_channels(unet["input_blocks.0.0.weight"][1])
        if other:
            raise CheckpointError(other.sentence(file))
    prefixes = {"unet": UNET, "vae": VAE} | _text_prefixes(file, tensors, unet)
    shaped_unet = architecture.unet_config(unet)
    family = _family(prefixes, shaped_unet)
    if any(name.startswith(VAE + "taesd_") for name in tensors):
        raise CheckpointError(f"{file} has a TAESD in place of its VAE: give one with the full VAE")

    configs = {name: family_config(family, name) for name in (*components_of(family), "scheduler")}
    configs["unet"] |= shaped_unet
    if family != "sd1":
        widths = shaped_unet["block_out_channels"]
        configs["unet"]["attention_head_dim"] = architecture.heads_of_width_64(widths)
    configs["vae"] |= architecture.vae_config(Shapes(file, tensors, VAE))
    for name in text_encoders_of(family):
        shapes = Shapes(file, tensors, prefixes[name])
        if "token_embedding.weight" in shapes:
            configs[name] |= architecture.open_clip_config(shapes, drop_last=family == "sd2")
        else:
            configs[name] |= architecture.clip_config(shapes, drop_last=family == "sd2")

    prediction = prediction_type(path, header, family)
    if family == "sd2" and prediction == "v_prediction":
        configs["unet"]["sample_size"] = 96  # the 768-pixel models
    configs["scheduler"]["prediction_type"] = prediction
    if wants_zero_terminal_snr(header):  # PNDM, the scheduler of SD 1.x, knows no such thing
        configs["scheduler"] = family_config("sd2", "scheduler") | {
            "prediction_type": prediction, "rescale_betas_zero_snr": True
        }  # fmt: skip
    _override(file, configs, header.metadata)
    check_configs(file, family, configs)
    return CheckpointInfo(
        path=path,
        family=family,
        layout="ldm",
        prediction_type=configs["scheduler"]["prediction_type"],
        zero_terminal_snr=bool(configs["scheduler"].get("rescale_betas_zero_snr")),
        configs=configs,
        prefixes=prefixes,
        files=dict.fromkeys(components_of(family), (path,)),
        headers={path: header},
        dtypes={name: dtypes_of([header], prefixes[name]) for name in components_of(family)},
        tensor_count=len(tensors),
        bytes=header.data_start + header.data_bytes,
        metadata=dict(header.metadata),
    )


def dtypes_of(headers: list[Header], prefix: str = "") -> tuple[str, ...]:
    """Storage types of the tensors whose names begin with `prefix`, the largest share first."""
    sizes: dict[str, int] = {}
    for header in headers:
        for name, entry in header.tensors.items():
            if name.startswith(prefix) and "position_ids" not in name:
                sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return tuple(sorted(sizes, key=lambda dtype: (-sizes[dtype], dtype)))


def check_configs(file: str, family: str, configs: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse what the networks could not be built with, or would silently do wrong."""
    unet = configs["unet"]
    texts = [configs[name] for name in text_encoders_of(family)]
    if max(len(unet["block_out_channels"]), unet["layers_per_block"]) > 16 or any(
        text["num_hidden_layers"] > 128 for text in texts
    ):
        raise CheckpointError(f"{file}: its config has more layers than any model of its family")
    other = refused_channels(unet["in_channels"])
    if other:
        raise CheckpointError(other.sentence(file))
    width = sum(text["hidden_size"] for text in texts)
    if unet["cross_attention_dim"] != width:
        raise CheckpointError(
            f"{file}: its U-Net reads text embeddings of width {unet['cross_attention_dim']}, but "
            f"its text encoders give {width}; parts of two families were put together"
        )
    for text in texts:
        if text["vocab_size"] < VOCABULARY or text["max_position_embeddings"] != 77:
            raise CheckpointError(
                f"{file}: its text encoder knows {text['vocab_size']} tokens and "
                f"{text['max_position_embeddings']} positions, not CLIP's {VOCABULARY} and 77; "
                "such models are not supported"
            )
    for name in ("unet", "vae"):
        groups = configs[name].get("norm_num_groups", 32)
        if any(channels % groups for channels in configs[name]["block_out_channels"]):
            raise CheckpointError(
                f"{file}: the {name} has widths {configs[name]['block_out_channels']}, which "
                f"{groups} groups do not divide; state them in the metadata key {CONFIG_KEY}, e.g. "
                f'{{"{name}": {{"norm_num_groups": 8}}}}'
            )
    kind = configs["scheduler"]["prediction_type"]
    if kind not in ("epsilon", "v_prediction"):
        raise CheckpointError(
            f"{file} predicts {kind!r}; only epsilon and v_prediction models can be hardened"
        )
    if kind == "epsilon" and configs["scheduler"].get("rescale_betas_zero_snr"):
        raise CheckpointError(
            f"{file} says that it predicts ε and that its schedule ends in pure noise, where ε "
            "tells nothing of the image: correct its metadata or marker keys (`v_pred`, `ztsnr`)"
        )


def _text_prefixes(file: str, tensors: Mapping[str, Any], unet: Shapes) -> dict[str, str]:
    def has(prefix: str, leaf: str) -> bool:
        return prefix + leaf in tensors

    clip, open_clip = "embeddings.token_embedding.weight", "token_embedding.weight"
    if "label_emb.0.0.weight" in unet:
        first, second = _SDXL_PREFIXES
        if has(first, clip) and has(second, open_clip):
            return {"text_encoder": first, "text_encoder_2": second}
        if has("conditioner.embedders.0.model.", open_clip):
            raise CheckpointError(REFINER.sentence(file))
        if has("cond_stage_model.model.", open_clip):
            raise CheckpointError(UNCLIP.sentence(file))
    else:
        for prefix in _CLIP_PREFIXES:
            if has(prefix, clip):
                return {"text_encoder": prefix}
        for prefix in _OPEN_CLIP_PREFIXES:
            if has(prefix, open_clip):
                return {"text_encoder": prefix}
    raise CheckpointError(
        f"{file} lacks a text encoder (or one of SDXL's two) under the names of SD 1.x, SD 2.x or "
        "SDXL: give the whole checkpoint, with U-Net, text encoder and VAE in one file"
    )


def _family(prefixes: Mapping[str, str], unet: Mapping[str, Any]) -> str:
    if "text_encoder_2" in prefixes:
        return "sdxl"
    if prefixes["text_encoder"] in _OPEN_CLIP_PREFIXES or unet["use_linear_projection"]:
        return "sd2"
    return "sd1"


def _override(file: str, configs: dict[str, dict[str, Any]], metadata: Mapping[str, str]) -> None:
    """Apply the metadata key `resalign.config`: few fields, as the file comes from a stranger."""
    if CONFIG_KEY not in metadata:
        return
    try:
        overrides = json.loads(metadata[CONFIG_KEY])
        items = [(name, *item) for name, fields in overrides.items() for item in fields.items()]
    except (ValueError, RecursionError, AttributeError):
        raise CheckpointError(
            f"{file}: the metadata key {CONFIG_KEY} must be JSON that maps components to fields, "
            'e.g. {"unet": {"norm_num_groups": 8}}'
        ) from None
    for component, key, value in items:
        if component not in configs or key not in _OVERRIDABLE[component.removesuffix("_2")]:
            raise CheckpointError(
                f"{file}: the metadata key {CONFIG_KEY} sets {component}.{key}; it may set "
                + "; ".join(f"{name}: {', '.join(keys)}" for name, keys in _OVERRIDABLE.items())
            )
        if not _OVERRIDABLE[component.removesuffix("_2")][key](value):
            raise CheckpointError(
                f"{file}: the metadata key {CONFIG_KEY} sets {component}.{key} to {value!r}, which "
                "is no value for it"
            )
        configs[component][key] = value
