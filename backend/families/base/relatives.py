"""Names the denoisers that hosts load and no family here takes, to refuse each by its name.

Several share most of their tensors with a supported one, or with each other. They are told apart by
the names of tensors, without prefix, and by the width of what the image and the text enter by.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

Shape = tuple[int, ...]
SUPPORTED = ("Anima", "Z-Image")  # what `relative` may also find
_PREFIX = re.compile(r"^(model\.diffusion_model\.|diffusion_model\.|model\.model\.|net\.)")
_FLUX = "double_blocks.0.img_attn.qkv.weight"
_FLUX_CHANNELS = 64  # 16 of the VAE in patches of 2 × 2
_LONGCAT_TEXT, _LUMINA_WIDTH = 3584, 2304


def relative(shapes: Mapping[str, Shape]) -> str:
    """Return what a denoiser is, as a reader knows it; empty where that is not known."""
    own = {_PREFIX.sub("", name): shape for name, shape in shapes.items()}
    if "cap_embedder.1.weight" in own and "noise_refiner.0.attention.k_norm.weight" in own:
        return _lumina(own)
    if any(name.startswith("joint_blocks.0.") for name in own):
        return "Stable Diffusion 3 or 3.5"
    if any(name.startswith("llm_adapter.") for name in own):
        return "Anima"
    if any(name.startswith("distilled_guidance_layer.") for name in own):
        radiance = any(name.startswith("nerf_blocks.") for name in own)
        return "Chroma Radiance" if radiance else "Chroma"
    return _flux(own) if _FLUX in own else ""


def _flux(own: Mapping[str, Shape]) -> str:
    image, text = own.get("img_in.weight"), own.get("txt_in.weight")
    if not image or not text:  # absent, or a scalar
        return ""
    if "double_blocks.0.img_mlp.gate_proj.weight" in own:
        return "Ovis Image"
    if text[-1] == _LONGCAT_TEXT:
        return "LongCat Image"
    if image[-1] != _FLUX_CHANNELS:
        return f"FLUX.1 Fill, or a FLUX.1 with control ({image[-1]} input channels)"
    guided = "guidance_in.in_layer.weight" in own
    return "FLUX.1 dev, Krea or Kontext" if guided else "FLUX.1 schnell"


def _lumina(own: Mapping[str, Shape]) -> str:
    if own["cap_embedder.1.weight"][:1] == (_LUMINA_WIDTH,):
        return "NewBie" if "clip_text_pooled_proj.0.weight" in own else "Lumina Image 2"
    if "siglip_embedder.0.weight" in own:
        return "Z-Image Omni"
    return "Z-Image in pixel space" if "dec_net.cond_embed.weight" in own else "Z-Image"
