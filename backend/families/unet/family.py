"""A U-Net family as a `Family` value, from what it has of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from ..base.autoencoder import AutoencoderLatents
from ..base.family import Family, MetadataNames
from ..base.host import HostNames
from .layout import UNetLayout
from .lora import UNetLoraNames
from .networks import UNetNetworks, denoise
from .recognition import UNetRecognition
from .spec import UNetSpec
from .text import UNetTexts

if TYPE_CHECKING:
    from ..base.process import NoiseProcess

TARGETS = {
    "attention": r"\.attn[12]\.to_(q|k|v|out\.0)$",
    "cross_attention_kv": r"\.attn2\.to_(k|v)$",
    "feed_forward": r"\.ff\.net\.(0\.proj|2)$",
    "convolution": r"\.resnets\.\d+\.(conv1|conv2|conv_shortcut)$|samplers\.0\.conv$",
}
ENTRANCES = r"^\.(conv_in|time_embedding|add_embedding)\b|\.time_emb_proj$"


def unet_family(
    spec: UNetSpec,
    *,
    title: str,
    licence: str,
    native_side: Callable[[str], int],
    architecture: Callable[[str], str],
    last_layer: int,
    civitai: str = "",
) -> Family:
    """Put a family together. last_layer: of the text encoders, as hosts count it (-1 is the last);
    a family with two reads its own whatever a host says."""
    return Family(
        name=spec.name,
        title=title,
        licence=licence,
        denoiser="unet",
        text_encoders=tuple(text.component for text in spec.texts),
        vae="vae",
        targets=TARGETS,
        text_input=TARGETS["cross_attention_kv"],
        entrances=ENTRANCES,
        config=spec.config,
        denoise=denoise,
        process=_process,
        native_side=native_side,
        recognition=UNetRecognition(spec),
        networks=UNetNetworks(spec),
        tensors=UNetLayout(spec),
        texts=UNetTexts(spec),
        latents=AutoencoderLatents(spec.config("vae")),
        lora=UNetLoraNames(spec),
        host=HostNames(tuple(text.host for text in spec.texts), last_layer, spec.sized, webui=True),
        metadata=MetadataNames(architecture, civitai=civitai),
    )


def _process(file: str, config: Mapping[str, Any]) -> NoiseProcess:
    from .process import noise_schedule  # brings torch along

    return noise_schedule(file, config)
