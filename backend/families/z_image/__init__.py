"""Z-Image: a flow-matching transformer in a single stream that reads Qwen3 4B, 1024 pixels."""

from ..base.autoencoder import AutoencoderLatents
from ..base.family import Family, MetadataNames
from .config import DENOISER, PATCH, SIDE, TEXT, VAE, published
from .host import HOST
from .layout import Layout
from .lora import LORA_NAMES
from .networks import Networks, denoise
from .process import flow_process
from .recognition import RECOGNITION
from .text import Texts

TARGETS = {
    "attention": r"^\.layers\.\d+\.attention\.(to_[qkv]|to_out\.0)$",
    "cross_attention_kv": r"$^",
    "feed_forward": r"^\.layers\.\d+\.feed_forward\.w[123]$",
    "convolution": r"$^",
}


Z_IMAGE = Family(
    name="z_image",
    title="Z-Image",
    licence="Apache-2.0, as published with Z-Image and Z-Image Turbo",
    denoiser=DENOISER,
    text_encoders=(TEXT,),
    vae=VAE,
    targets=TARGETS,
    text_input=r"^\.cap_embedder\.1$",
    # the refiners and the caption's embedder work on lists of samples, one behind the other
    entrances=r"^\.(all_x_embedder|all_final_layer|t_embedder|noise_refiner|context_refiner|"
    r"cap_embedder)|adaLN_modulation",
    config=published,
    denoise=denoise,
    process=flow_process,
    native_side=lambda prediction: SIDE,
    recognition=RECOGNITION,
    networks=Networks(),
    tensors=Layout(),
    texts=Texts(),
    latents=AutoencoderLatents(published(VAE), PATCH),
    lora=LORA_NAMES,
    host=HOST,
    metadata=MetadataNames(
        lambda prediction: "z-image",
        implementation="https://github.com/Tongyi-MAI/Z-Image",
        tag="z-image",
        notices={"modelspec.license": "Apache-2.0"},
    ),
    no_cross_attention="image and text attend to each other in one stream, and the text changes "
    "from block to block",
    guidance=(4.0, 5.0),
)
