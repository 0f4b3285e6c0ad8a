"""Values that the common tests expect of each family's hardened files and LoRAs, written out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import family_cases
from family_cases import Case


@dataclass(frozen=True, kw_only=True)
class Loras:
    """Values that the common tests expect of one family's LoRAs.

    prefix: with which all keys begin; key: one of them. family: to name where modules do not tell
    it. reader: diffusers' class that reads them; network: its denoiser's class.
    claims: (module in a LoRA's keys, width, is it this family's); ends: of the keys in these.
    """

    prefix: str
    key: str
    reader: str
    network: str
    claims: tuple[tuple[str, int, bool], ...]
    ends: tuple[str, str] = ("lora_A", "lora_B")
    family: str = ""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """One family's expectations.

    trained: modules that an adapter of a plan's default targets has. changed: the tensors of the
    denoiser's file that its export changes. probe: one of the modules. linears: linear layers of
    the denoiser. module, whole: a module, and its tensor in a file that holds everything.
    fused, parts: a tensor that holds three matrices, and their modules, None where none does.
    architecture: in the metadata of a result; entries: others, as regular expressions.
    blocks: (part of a name, part that it must not have) of modules that people train; trainable:
    how many there are. erased_too: layers besides them that are erased from.
    """

    case: Case
    trained: frozenset[str]
    changed: frozenset[str]
    probe: str
    linears: int
    module: str
    whole: str
    architecture: str
    entries: dict[str, str]
    blocks: tuple[str, str]
    trainable: int
    erased_too: frozenset[str]
    loras: Loras
    fused: str | None = None
    parts: tuple[str, str, str] | None = None
    closed_form: tuple[str, str] | None = None  # title and reason of its refusal
    quantised_daily: bool = field(default=False)  # or with the slow tests

    @property
    def fakes(self) -> Any:
        return self.case.fakes

    def __str__(self) -> str:
        return self.case.name


_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")

ANIMA = Exported(
    case=family_cases.ANIMA,
    trained=frozenset(
        f"transformer_blocks.{block}.attn{i}.{part}"
        for block in (0, 1) for i in (1, 2) for part in _ATTENTION
    ),
    changed=frozenset(
        f"net.blocks.{block}.{kind}_attn.{part}_proj.weight"
        for block in (0, 1) for kind in ("self", "cross") for part in ("q", "k", "v", "output")
    ),
    probe="transformer_blocks.1.attn2.to_v",
    linears=2 * 16 + 6,
    module="transformer_blocks.0.ff.net.0.proj",
    whole="model.diffusion_model.blocks.0.mlp.layer1.weight",
    architecture="anima",
    entries={
        "modelspec.license": r".*CircleStone Labs Non-Commercial License v1\.2.*"
        r"NVIDIA Open Model License.*",
        "modelspec.attribution": r".*modified.*",
    },
    blocks=("transformer_blocks", ".norm"),
    trainable=20,
    erased_too=frozenset({"proj_out"}),
    loras=Loras(
        claims=(
            ("diffusion_model.blocks.0.self_attn.q_proj", 2048, True),
            ("lora_unet_blocks_27_cross_attn_output_proj", 2048, True),
            ("lora_unet_blocks_0_mlp_layer1", 2048, True),
            ("transformer.transformer_blocks.0.attn2.to_k", 1024, True),
            ("transformer_blocks.1.attn1.to_q", 64, True),  # an adapter in memory
            ("transformer.transformer_blocks.1.attn2.to_k", 4096, False),  # PixArt
            ("diffusion_model.blocks.0.self_attn.q", 2048, False),  # Wan
            # SD 2
            ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 1024, False),
            ("transformer.single_transformer_blocks.0.attn.to_q", 3072, False),  # FLUX
        ),
        prefix="diffusion_model.blocks.",
        key="diffusion_model.blocks.1.cross_attn.output_proj.lora_A.weight",
        family="anima",
        reader="AnimaLoraLoaderMixin", network="CosmosTransformer3DModel",
        ends=("lora_down", "lora_up"),
    ),
)  # fmt: skip

KLEIN = Exported(
    case=family_cases.KLEIN,
    trained=frozenset(
        [f"transformer_blocks.0.attn.{part}" for part in (*_ATTENTION, *_ADDED)]
        + [f"single_transformer_blocks.{block}.attn.{part}"
           for block in (0, 1) for part in ("to_qkv_mlp_proj", "to_out")]
    ),
    changed=frozenset(
        [f"double_blocks.0.{kind}_attn.{part}.weight"
         for kind in ("img", "txt") for part in ("qkv", "proj")]
        + [f"single_blocks.{block}.linear{i}.weight" for block in (0, 1) for i in (1, 2)]
    ),
    probe="single_transformer_blocks.1.attn.to_out",
    linears=25,
    module="single_transformer_blocks.0.attn.to_qkv_mlp_proj",
    whole="model.diffusion_model.single_blocks.0.linear1.weight",
    fused="double_blocks.0.img_attn.qkv.weight",
    parts=tuple(f"transformer_blocks.0.attn.to_{part}" for part in "qkv"),
    architecture="flux-2-klein-4b",
    entries={
        "modelspec.license": r"Apache-2\.0",
        "modelspec.implementation": r".*black-forest-labs/flux2",
    },
    closed_form=("FLUX.2 klein 4B", "jointly"),
    blocks=("transformer_blocks", "|"),
    trainable=16,
    erased_too=frozenset({"context_embedder", "proj_out"}),
    loras=Loras(
        claims=(
            ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072, True),
            ("transformer.transformer_blocks.0.ff.linear_in", 3072, True),
            ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 4096, False),
            ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 6144, False),
            ("transformer.single_transformer_blocks.0.proj_mlp", 3072, False),
        ),
        prefix="transformer.",
        key="transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
        reader="Flux2LoraLoaderMixin", network="Flux2Transformer2DModel",
    ),
    quantised_daily=True,
)  # fmt: skip

Z_IMAGE = Exported(
    case=family_cases.Z_IMAGE,
    trained=frozenset(
        f"layers.{layer}.attention.{part}" for layer in (0, 1) for part in _ATTENTION
    ),
    changed=frozenset(
        f"layers.{layer}.attention.{part}.weight" for layer in (0, 1) for part in ("qkv", "out")
    ),
    probe="layers.1.attention.to_v",
    linears=4 * 7 + 3 + 3 + 3,  # blocks, their modulation, the ends, what reads text and time
    module="layers.0.attention.to_k",
    whole="model.diffusion_model.layers.0.attention.qkv.weight",
    fused="layers.0.attention.qkv.weight",
    parts=tuple(f"layers.0.attention.to_{part}" for part in "qkv"),
    architecture="z-image",
    entries={"modelspec.license": r"Apache-2\.0"},
    closed_form=("Z-Image", "in one stream"),
    blocks=("layers.", "adaLN"),
    trainable=14,
    erased_too=frozenset(),
    loras=Loras(
        claims=(
            ("transformer.layers.0.attention.to_q", 3840, True),
            ("diffusion_model.layers.0.attention.qkv", 3840, True),
            ("lora_unet_layers_29_feed_forward_w1", 3840, True),
            ("diffusion_model.layers.0.attention.qkv", 2304, False),  # Lumina Image 2
            ("text_encoder.layers.0.self_attn.q_proj", 2560, False),
        ),
        prefix="transformer.layers.",
        key="transformer.layers.1.attention.to_out.0.lora_A.weight",
        reader="ZImageLoraLoaderMixin", network="ZImageTransformer2DModel",
    ),
)  # fmt: skip

EXPORTED = (ANIMA, KLEIN, Z_IMAGE)
