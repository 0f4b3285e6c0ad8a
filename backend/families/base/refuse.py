"""Files that people have and that cannot be hardened: what they are, and what to do instead.

They are recognised by tensor names alone. Each entry is one sentence for the user: "<file> is
<what>: <advice>".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from .quantised_forms import quantised_form
from .relatives import SUPPORTED, relative
from .shapes import StoredTensor


@dataclass(frozen=True, slots=True)
class Other:
    """A recognised file that is not a supported checkpoint. kind: one word, for programs."""

    kind: str
    what: str
    advice: str

    def sentence(self, file: str) -> str:
        return f"{file} is {self.what}: {self.advice}"


_SUPPORTED = (
    "only SD 1.x, SD 2.x, SDXL base, FLUX.2 klein 4B, Anima and Z-Image checkpoints (and "
    "fine-tunes of them) can be hardened"
)
_DAMAGED = "it is incomplete, or of an unknown layout; fetch the original"
_WHOLE = (
    "give the whole checkpoint, with U-Net, text encoder and VAE in one file, or the denoiser's "
    "file of FLUX.2 klein, Anima or Z-Image"
)

# (kind, what it is, advice, parts of names; a leading | anchors to the start, a trailing | to the
# end of a name). The first match decides.
_BY_NAME: tuple[tuple[str, str, str, tuple[str, ...]], ...] = (
    (
        "lora", "a LoRA, not a checkpoint", "merge it into its base model first, then harden the "
        "result",
        (".lora_up.", ".lora_down.", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.",
         ".lora_mid.", ".hada_w1_a|", ".lokr_w1", ".lokr_w2", ".oft_blocks|", ".oft_diag|",
         "_lora.up.", "_lora.down.", ".dora_scale|", "|lora_unet_", "|lora_te", ".diff|",
         ".diff_b|"),
    ),
    (
        "text_encoder", "a text encoder alone, not a checkpoint", _WHOLE,
        ("|model.embed_tokens.weight|", "|embed_tokens.weight|", "|shared.weight|"),
    ),
    (
        "embedding", "a textual-inversion embedding, not a checkpoint",
        "give the checkpoint that it is used with",
        ("|emb_params|", "|string_to_param", "|clip_g|", "|clip_l|"),
    ),
    (
        "controlnet", "a ControlNet or other add-on, not a checkpoint",
        "give the checkpoint that it is used with",
        ("|control_model.", "|controlnet_", "|zero_convs.", "|input_hint_block.", "|adapter.body.",
         "|ip_adapter.", "|image_proj.", "|control_add_embedding."),
    ),
    (
        "motion", "a video motion module (AnimateDiff), not a checkpoint",
        "give the image checkpoint that it is used with", (".motion_modules.", "|motion_modules."),
    ),
    (
        "svd", "a video model (Stable Video Diffusion or alike)", _SUPPORTED,
        (".time_stack.", ".time_mixer.", ".temporal_transformer_blocks.", ".temp_convs."),
    ),
    (
        "sd3", "a Stable Diffusion 3 model", _SUPPORTED,
        ("|model.diffusion_model.joint_blocks.", "|joint_blocks.", ".context_block.adaLN"),
    ),
    (
        "flux", "a Flux model", _SUPPORTED,
        ("|model.diffusion_model.double_blocks.", "|double_blocks.", "|single_transformer_blocks.",
         "|model.diffusion_model.single_blocks."),
    ),
    (
        "other", "a transformer-based image or video model", _SUPPORTED,
        ("|model.diffusion_model.double_layers.", "|model.diffusion_model.double_stream_blocks.",
         "|double_stream_blocks.", "|model.diffusion_model.blocks.",
         "|model.diffusion_model.layers.", "|model.diffusion_model.transformer_blocks.",
         "|model.diffusion_model.t_block.", "|blocks.0.", "|layers.0.", "|transformer_blocks.0."),
    ),
    (
        "cascade", "a Stable Cascade model", _SUPPORTED,
        ("|model.diffusion_model.clip_mapper.", "|model.diffusion_model.clip_txt_mapper.",
         "|clip_mapper.", "|effnet_mapper."),
    ),
    (
        "edm", "a checkpoint with an EDM noise schedule (Playground 2.5, CosXL)",
        "its schedule is not supported; " + _SUPPORTED,
        ("|edm_",),
    ),
)  # fmt: skip

_DENOISERS = ("sd3", "flux", "other")  # kinds of which more can be said
UNCLIP = Other("unclip", "an SD 2.x unCLIP model (it takes images as prompts)", _SUPPORTED)
REFINER = Other("refiner", "the SDXL refiner", "harden the SDXL base checkpoint instead")

_PARTS = (
    ("unet", "a U-Net alone", ("|model.diffusion_model.", "|diffusion_model.", "|input_blocks.",
                               "|down_blocks.", "|unet.")),
    ("vae", "a VAE alone", ("|first_stage_model.", "|decoder.", "|encoder.conv_in.", "|vae.",
                            "|encoder.down", "|taesd_decoder.")),
    ("text_encoder", "a text encoder alone",
     ("|text_model.", "|cond_stage_model.", "|conditioner.", "|encoder.block.", "|embeddings.",
      "|transformer.resblocks.", "|text_encoder", "|transformer.text_model.")),
)  # fmt: skip

_REFINER_WIDTH = 1280
_TEXT_WIDTHS = (768, 1024, 2048, _REFINER_WIDTH)
_DOWN = re.compile(r"lora[._](linear_layer\.)?(down|A)\b|lora\.down|lora_down|lora_A")


def quantised_kind(tensors: Mapping[str, StoredTensor]) -> Other | None:
    """Return what a file with quantised weights is; None where its weights are floating point."""
    form = quantised_form(tensors)
    if not form:
        return None
    return Other(
        "quantised", f"a quantised checkpoint ({form})",
        "its weights cannot be changed and kept so; give the original in bf16, fp16 or fp32",
    )  # fmt: skip


def other_kind(tensors: Mapping[str, StoredTensor]) -> Other | None:
    """Return what a file is if it is surely not a checkpoint of a U-Net family, else None."""
    names = "|" + "||".join(tensors) + "|"
    for kind, what, advice, marks in _BY_NAME:
        if any(mark in names for mark in marks):
            if kind in _DENOISERS:
                shapes = {name: entry.shape for name, entry in tensors.items()}
                named, packed = relative(shapes), quantised_kind(tensors)
                if packed and not named:  # its names are not those of the original
                    return packed
                if named in SUPPORTED:  # and yet not recognised by the family
                    return Other("unknown", f"{named} without some of its tensors", _DAMAGED)
                what = named or what
            return Other(kind, what, advice)
    if packed := quantised_kind(tensors):
        return packed
    parts = [part for part in _PARTS if any(mark in names for mark in part[2])]
    if len(parts) == 1:
        kind, what, _ = parts[0]
        return Other(kind, f"{what}, not a checkpoint", _WHOLE)
    if "|noise_augmentor." in names or "|embedder.model.visual." in names:
        return UNCLIP
    if not parts:
        return Other(
            "unknown", "of an unknown layout, not a Stable Diffusion checkpoint", _SUPPORTED
        )
    if "|model.diffusion_model." not in names:
        return Other("unknown", "of an unknown layout (diffusers' names in a single file)",
                     "give the file it was made from, or the diffusers folder")  # fmt: skip
    return None


def other_lora(shapes: Mapping[str, tuple[int, ...]], metadata: Mapping[str, str]) -> str:
    """Return the base of a LoRA for a model that cannot be hardened; empty where it is not one."""
    if is_transformer_lora(shapes):
        return "Flux, SD 3 or another transformer"
    if text_width(shapes) == _REFINER_WIDTH:
        return "the SDXL refiner"
    return "Flux" if "flux" in stated_base(metadata) else ""


def is_transformer_lora(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """True if a LoRA changes modules that only the transformers after SDXL have."""
    marks = (
        r"double_blocks|single_transformer_blocks|joint_blocks|single_blocks"
        r"|^((transformer|base_model\.model)\.)?transformer_blocks"  # a U-Net's lie in others
    )
    return any(re.search(marks, name) for name in shapes)


def text_width(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Width of the text embeddings that a LoRA's cross-attention reads; 0 where it has none of a
    published width."""
    for name, shape in shapes.items():
        if re.search(r"attn2[._](processor[.])?to_[kv][._]", name) and _DOWN.search(name):
            width = shape[1] if len(shape) > 1 else 0
            if width in _TEXT_WIDTHS:
                return width
    return 0


def stated_base(metadata: Mapping[str, str]) -> str:
    """Return what a LoRA's metadata say of its base, in lower case."""
    names = ("ss_base_model_version", "modelspec.architecture")
    return "".join(metadata.get(name, "") for name in names).lower()


def refused_channels(in_channels: int) -> Other | None:
    """Return what a U-Net with additional input channels is; None for one that has none."""
    kinds = {
        9: ("inpainting", "an inpainting model (9 input channels)"),
        8: ("pix2pix", "an InstructPix2Pix-type model (8 input channels)"),
        5: ("depth", "a depth-to-image model (5 input channels)"),
        7: ("upscaler", "an upscaling model (7 input channels)"),
    }
    if in_channels == 4:
        return None
    kind, what = kinds.get(in_channels, ("other", f"a model with {in_channels} input channels"))
    return Other(kind, what, "harden the text-to-image checkpoint that it was made from instead")
