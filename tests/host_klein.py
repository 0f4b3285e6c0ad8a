"""Runs inside a real ComfyUI's interpreter: what it computes with FLUX.2 klein's files.

python host_klein.py COMFYUI_DIR INPUTS OUTPUTS FILE HARDENED LORA VAE; the last line printed is
JSON. INPUTS holds x, sigma, context and latents. OUTPUTS receives a velocity for FILE, for
HARDENED, and for FILE with LORA; and the picture of the latents by VAE.
"""

import json
import sys

folder, inputs, outputs, plain, hardened, lora, vae = sys.argv[1:]
sys.path.insert(0, folder)
sys.argv = ["host", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

given = load_file(inputs)


def velocity(patcher):
    x, sigma = given["x"], given["sigma"]
    with torch.no_grad():
        clean = patcher.model.apply_model(x, sigma, c_crossattn=given["context"])
    return (x - clean) / sigma.view(-1, 1, 1, 1)


def loaded(path):
    return comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})


model = loaded(plain)
found = {"plain": velocity(model), "hardened": velocity(loaded(hardened))}
patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(lora), 1.0, 0.0)
modules = sum(len(patches) for patches in patched.patches.values())
patched.patch_model(device_to=torch.device("cpu"))
found["lora"] = velocity(patched)
decoder = comfy.sd.VAE(sd=comfy.utils.load_torch_file(vae), dtype=torch.float32)
found["picture"] = decoder.decode(given["latents"]).movedim(-1, 1) * 2 - 1
save_file({name: tensor.float().contiguous() for name, tensor in found.items()}, outputs)
print(json.dumps({"modules": modules, "model": type(model.model).__name__}))
