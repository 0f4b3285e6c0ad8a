"""Makes a real ComfyUI's Qwen3 4B tiny, so that FLUX.2 klein's text encoder fits a test: as a
custom node pack, or imported by a script. Only sizes change; the code that encodes is ComfyUI's."""

from functools import partial

import comfy.sd
import comfy.text_encoders.flux as flux
import comfy.text_encoders.llama as llama

SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 1,
    "num_key_value_heads": 1,
}  # fmt: skip
TAPS = [1, 2, 3]  # of four layers, where the published ones are 9, 18 and 27 of 36
_MARK = "model.layers.0.post_attention_layernorm.weight"
NODE_CLASS_MAPPINGS = {}

llama.Qwen3_4BConfig = partial(llama.Qwen3_4BConfig, **SIZES)
_build = flux.Qwen3_4BModel.__init__
_build.__defaults__ = (_build.__defaults__[0], TAPS, *_build.__defaults__[2:])
_detect = comfy.sd.detect_te_model


def detect_te_model(sd):
    if _MARK in sd and sd[_MARK].shape[0] == SIZES["hidden_size"]:
        return comfy.sd.TEModel.QWEN3_4B
    return _detect(sd)


comfy.sd.detect_te_model = detect_te_model
