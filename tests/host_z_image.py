"""Runs inside a real ComfyUI's interpreter: what it computes with Z-Image's tensors.

python host_z_image.py COMFYUI_DIR INPUTS OUTPUTS FILE HARDENED LORA; the last line printed is JSON.
INPUTS holds x, sigma and context. OUTPUTS receives a velocity for FILE, for HARDENED, and for FILE
with LORA. ComfyUI's loader takes one width only: its module is built by hand.
"""

import json
import sys

folder, inputs, outputs, plain, hardened, lora = sys.argv[1:]
sys.path.insert(0, folder)
sys.argv = ["host", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.ldm.lumina.model as host  # noqa: E402
import comfy.model_patcher  # noqa: E402
import comfy.ops  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.supported_models  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

given = load_file(inputs)
CONFIG = {
    "image_model": "lumina2", "patch_size": 2, "in_channels": 16, "dim": 96, "cap_feat_dim": 32,
    "n_layers": 2, "n_refiner_layers": 1, "qk_norm": True, "n_heads": 3, "n_kv_heads": 3,
    "axes_dims": [8, 12, 12], "axes_lens": [1536, 512, 512], "rope_theta": 256.0,
    "ffn_dim_multiplier": 8 / 3, "z_image_modulation": True, "time_scale": 1000.0,
    "pad_tokens_multiple": 32,
}  # fmt: skip


def loaded(path):
    config = comfy.supported_models.ZImage(dict(CONFIG))
    config.set_inference_dtype(torch.float32, None)
    config.unet_config["dtype"] = torch.float32
    model = config.get_model({}, "")
    network = model.diffusion_model
    how = {"dtype": torch.float32, "device": "cpu", "operations": comfy.ops.manual_cast}
    # widths below 1024 have another embedding of times here than in diffusers
    network.t_embedder = host.TimestepEmbedder(1024, output_size=96, **how)
    found = network.load_state_dict(load_file(path), strict=False)
    assert not found.missing_keys, found.missing_keys
    assert found.unexpected_keys == ["norm_final.weight"], found.unexpected_keys
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, cpu, cpu)


def velocity(patcher):
    x, sigma, context = given["x"], given["sigma"], given["context"]
    with torch.no_grad():
        clean = patcher.model.apply_model(
            x, sigma, c_crossattn=context, num_tokens=context.shape[1]
        )
    return (x - clean) / sigma.view(-1, 1, 1, 1)


model = loaded(plain)
found = {"plain": velocity(model), "hardened": velocity(loaded(hardened))}
patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(lora), 1.0, 0.0)
modules = sum(len(patches) for patches in patched.patches.values())
patched.patch_model(device_to=torch.device("cpu"))
found["lora"] = velocity(patched)
save_file({name: tensor.float().contiguous() for name, tensor in found.items()}, outputs)
print(json.dumps({"modules": modules, "model": type(model.model).__name__}))
