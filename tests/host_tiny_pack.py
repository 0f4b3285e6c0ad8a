"""Makes a real ComfyUI's flow-matching models tiny, so that they fit a test: as a custom node pack,
or imported by a script. Only sizes change; the code that encodes, predicts and loads is ComfyUI's.

Qwen3 4B and 0.6B get the sizes below, Anima's text conditioner that of `CONDITIONER`, and Z-Image's
loader takes a width of 96 beside its own.
"""

from functools import partial

import comfy.ldm.anima.model as anima
import comfy.ldm.lumina.model as lumina
import comfy.model_detection
import comfy.sd
import comfy.supported_models
import comfy.text_encoders.flux as flux
import comfy.text_encoders.llama as llama

_LAYERS = {"num_hidden_layers": 4, "num_attention_heads": 1, "num_key_value_heads": 1}
LARGE = {"hidden_size": 32, "intermediate_size": 48, **_LAYERS}  # in the place of 4B
SMALL = {"hidden_size": 48, "intermediate_size": 64, **_LAYERS}  # in the place of 0.6B
TAPS = [1, 2, 3]  # of four layers, where FLUX.2 klein's are 9, 18 and 27 of 36
CONDITIONER = {"source_dim": 48, "target_dim": 1024, "model_dim": 32, "num_layers": 1}
WIDTH, HEADS = 96, 3  # of Z-Image
_MARK = "model.layers.0.post_attention_layernorm.weight"
NODE_CLASS_MAPPINGS = {}


# --- text encoders --------------------------------------------------------------------------------

llama.Qwen3_4BConfig = partial(llama.Qwen3_4BConfig, **LARGE)
llama.Qwen3_06BConfig = partial(llama.Qwen3_06BConfig, **SMALL)
_build = flux.Qwen3_4BModel.__init__
_build.__defaults__ = (_build.__defaults__[0], TAPS, *_build.__defaults__[2:])
_detect = comfy.sd.detect_te_model
_SIZES = {
    LARGE["hidden_size"]: comfy.sd.TEModel.QWEN3_4B,
    SMALL["hidden_size"]: comfy.sd.TEModel.QWEN3_06B,
}


def detect_te_model(sd):
    found = _SIZES.get(sd[_MARK].shape[0]) if _MARK in sd else None
    return found or _detect(sd)


comfy.sd.detect_te_model = detect_te_model


# --- denoisers ------------------------------------------------------------------------------------


class SmallAdapter(anima.LLMAdapter):
    def __init__(self, **how):
        super().__init__(**CONDITIONER, num_heads=2, **how)


anima.LLMAdapter = SmallAdapter
_read = comfy.model_detection.detect_unet_config
_embedder = lumina.TimestepEmbedder


def detect_unet_config(state_dict, key_prefix, metadata=None):
    """ComfyUI asserts one of two widths before it says anything."""
    text = state_dict.get(f"{key_prefix}cap_embedder.1.weight")
    if text is None or text.shape[0] != WIDTH:
        return _read(state_dict, key_prefix, metadata=metadata)
    return {
        "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": WIDTH,
        "cap_feat_dim": text.shape[1], "n_layers": 2, "n_refiner_layers": 1, "qk_norm": True,
        "n_heads": HEADS, "n_kv_heads": HEADS, "axes_dims": [8, 12, 12],
        "axes_lens": [1536, 512, 512], "rope_theta": 256.0, "ffn_dim_multiplier": 8 / 3,
        "z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32,
    }  # fmt: skip


def embedder(width, output_size=None, **how):
    """Widths below 1024 have another embedding of times in ComfyUI than in diffusers."""
    return _embedder(1024, output_size=WIDTH, **how) if width == WIDTH else _embedder(
        width, output_size=output_size, **how
    )  # fmt: skip


comfy.model_detection.detect_unet_config = detect_unet_config
lumina.TimestepEmbedder = embedder
comfy.supported_models.ZImage.unet_config = {"image_model": "lumina2", "dim": WIDTH}
