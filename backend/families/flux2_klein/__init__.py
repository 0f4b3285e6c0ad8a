"""FLUX.2 klein 4B: a flow-matching transformer that reads Qwen3 4B, 1024 pixels."""

from ..base.family import Family, MetadataNames
from .config import DENOISER, SIDE, TEXT, VAE, published
from .host import HOST
from .latents import Latents
from .layout import Layout
from .lora import LORA_NAMES
from .networks import Networks, denoise
from .process import flow_process
from .recognition import RECOGNITION
from .text import Texts

_BOTH = r"single_transformer_blocks\.\d+\.attn\.(to_qkv_mlp_proj|to_out)$"
_DOUBLE = r"\.transformer_blocks\.\d+\.attn\."

TARGETS = {
    "attention": rf"{_DOUBLE}(to_[qkv]|to_out\.0|add_[qkv]_proj|to_add_out)$|{_BOTH}",
    "cross_attention_kv": rf"{_DOUBLE}add_[kv]_proj$",
    "feed_forward": rf"\.ff(_context)?\.linear_(in|out)$|{_BOTH}",
    "convolution": r"$^",
}


FLUX2_KLEIN = Family(
    name="flux2_klein",
    title="FLUX.2 klein 4B",
    licence="Apache-2.0, as published with FLUX.2 klein 4B and its base",
    denoiser=DENOISER,
    text_encoders=(TEXT,),
    vae=VAE,
    targets=TARGETS,
    text_input=r"^\.context_embedder$",
    entrances=r"^\.(x_embedder|time_guidance_embed|(double|single)_stream_modulation|norm_out)",
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
        lambda prediction: "flux-2-klein-4b",
        implementation="https://github.com/black-forest-labs/flux2",
        tag="flux",
        notices={"modelspec.license": "Apache-2.0"},
    ),
    no_cross_attention="image and text attend to each other jointly, and the text changes from "
    "block to block",
    guidance=(4.0, 5.0),
)
