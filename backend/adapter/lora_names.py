"""The modules of a model under every name by which LoRA files call them.

A table for the model at hand rather than rules: what is not in it, the model does not have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_FLAT_UNET = ("lora_unet_", "lycoris_")
_FLAT_TEXT = {1: ("lora_te_",), 2: ("lora_te1_", "lora_te2_")}  # by the number of encoders
_COMFY_TEXT = {
    "sd1": ("clip_l",), "sd2": ("clip_h",), "sdxl": ("clip_l", "clip_g"),
}  # fmt: skip
_TEXT = "text_model."

Place = tuple[str, str]  # component (`unet`, `text_encoder`, ...), module


def stems(
    family: str, unet: Mapping[str, str], texts: Mapping[str, Iterable[str]]
) -> dict[str, Place]:
    """Name in a file, up to the part of the change, to component and module.

    Args:
        unet: module in diffusers to its LDM name, e.g. `conv_in` to `input_blocks.0.0`.
        texts: by component (`text_encoder`, then `text_encoder_2`), modules as they are in the
            loaded network, with or without `text_model.`.
    """
    found: dict[str, Place] = {}
    for module, ldm in unet.items():
        place = ("unet", module)
        for prefix in _FLAT_UNET:
            found[prefix + module.replace(".", "_")] = place
            found[prefix + ldm.replace(".", "_")] = place
        for prefix in ("unet.", "base_model.model.", ""):
            found[prefix + module] = place
        for prefix in ("diffusion_model.", "model.diffusion_model."):
            found[prefix + ldm] = place
    names = zip(texts.items(), _FLAT_TEXT.get(len(texts), ()), _COMFY_TEXT[family], strict=False)
    for (component, modules), flat, comfy in names:
        dotted = [f"{component}.", f"text_encoders.{comfy}.transformer."]
        if len(texts) == 1:  # of two encoders PEFT's own files do not say which they are for
            dotted.append("base_model.model.")
        for module in modules:
            place = (component, module)
            short = module.removeprefix(_TEXT)
            top = short.startswith("text_projection")
            full = short if top else _TEXT + short
            found[flat + full.replace(".", "_")] = place
            for prefix in dotted:
                found[prefix + full] = found[prefix + short] = place
    return found
