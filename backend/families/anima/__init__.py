"""Anima: a flow-matching transformer of Cosmos' kind that reads Qwen3 0.6B, 1024 pixels."""

from ..base.family import Family, MetadataNames
from .config import CONDITIONER, DENOISER, SIDE, TEXT, VAE, published
from .host import HOST
from .latents import Latents
from .layout import Layout
from .lora import LORA_NAMES
from .networks import Networks, denoise
from .process import flow_process
from .recognition import RECOGNITION
from .text import Texts

TARGETS = {
    "attention": r"^\.transformer_blocks\.\d+\.attn[12]\.(to_[qkv]|to_out\.0)$",
    "cross_attention_kv": r"^\.transformer_blocks\.\d+\.attn2\.to_[kv]$",
    "feed_forward": r"^\.transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)$",
    "convolution": r"$^",
}
_LICENCE = "CircleStone Labs Non-Commercial License v1.2; NVIDIA Open Model License"
_TERMS = (
    "Anima's published weights are licensed by CircleStone Labs LLC for non-commercial use "
    "(CircleStone Labs Non-Commercial License v1.2, which names exceptions) and, as a derivative "
    "of NVIDIA's Cosmos-Predict2-2B, under the NVIDIA Open Model License. A hardened copy is a "
    "derivative of both: publish it with both licences and these notices, and say that it was "
    "changed. The texts are at https://huggingface.co/circlestone-labs/Anima; they change, and "
    "they decide"
)


ANIMA = Family(
    name="anima",
    title="Anima",
    licence="CircleStone Labs Non-Commercial License v1.2 and NVIDIA Open Model License",
    denoiser=DENOISER,
    text_encoders=(TEXT, CONDITIONER),
    vae=VAE,
    targets=TARGETS,
    text_input=r"\.attn2\.to_[kv]$",
    entrances=r"^\.(patch_embed|time_embed|norm_out)|\.norm[123]\.linear_[12]$",
    config=published,
    denoise=denoise,
    process=flow_process,
    native_side=lambda prediction: SIDE,
    recognition=RECOGNITION,
    networks=Networks(),
    tensors=Layout(),
    texts=Texts(),
    latents=Latents(),
    lora=LORA_NAMES,
    host=HOST,
    metadata=MetadataNames(
        lambda prediction: "anima",
        implementation="https://github.com/nvidia-cosmos/cosmos-predict2",
        tag="anima",
        notices={
            "modelspec.license": _LICENCE,
            "modelspec.attribution": "Anima, licensed by CircleStone Labs LLC; licensed by NVIDIA "
            "Corporation under the NVIDIA Open Model License; built on NVIDIA Cosmos; modified",
        },
        terms=_TERMS,
    ),
    guidance=(4.0, 5.0),
)
