"""Runs inside a real ComfyUI's interpreter: what it computes with Anima's files.

python host_anima.py COMFYUI_DIR INPUTS OUTPUTS FILE HARDENED LORA VAE PROMPTS; the last line
printed is JSON. INPUTS holds x, sigma, context, latents, states and ids. OUTPUTS receives a
velocity for FILE, for HARDENED, and for FILE with LORA; the conditioner's vectors; and the picture
of the latents by VAE. ComfyUI fixes the size of the conditioner (135 million numbers): a smaller
one is put in its place.
"""

import json
import sys

folder, inputs, outputs, plain, hardened, lora, vae, prompts = sys.argv[1:]
sys.path.insert(0, folder)
sys.argv = ["host", "--cpu"]

import comfy.options  # noqa: E402

comfy.options.enable_args_parsing()

import comfy.latent_formats  # noqa: E402
import comfy.ldm.anima.model as host  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.text_encoders.anima  # noqa: E402
import comfy.utils  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

given = load_file(inputs)


class SmallAdapter(host.LLMAdapter):
    def __init__(self, **how):
        sizes = {"source_dim": 32, "target_dim": 1024, "model_dim": 32, "num_layers": 1}
        super().__init__(**sizes, num_heads=2, **how)
        own = {name: how[name] for name in ("device", "dtype")}
        self.embed = how["operations"].Embedding(272, 1024, **own)


host.LLMAdapter = SmallAdapter


def velocity(patcher):
    x, sigma = given["x"].unsqueeze(2), given["sigma"]
    with torch.no_grad():
        clean = patcher.model.apply_model(x, sigma, c_crossattn=given["context"])
    return ((x - clean) / sigma.view(-1, 1, 1, 1, 1)).squeeze(2)


def loaded(path):
    return comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})


model = loaded(plain)
found = {"plain": velocity(model), "hardened": velocity(loaded(hardened))}
with torch.no_grad():
    network = model.model.diffusion_model
    found["text"] = network.preprocess_text_embeds(given["states"], given["ids"])
patched, _ = comfy.sd.load_lora_for_models(model, None, load_file(lora), 1.0, 0.0)
modules = sum(len(patches) for patches in patched.patches.values())
patched.patch_model(device_to=torch.device("cpu"))
found["lora"] = velocity(patched)
decoder = comfy.sd.VAE(sd=comfy.utils.load_torch_file(vae), dtype=torch.float32)
raw = comfy.latent_formats.Wan21().process_out(given["latents"].unsqueeze(2))
found["picture"] = decoder.decode(raw).reshape(*given["latents"].shape[:1], 64, 96, 3)
found["picture"] = found["picture"].movedim(-1, 1) * 2 - 1
save_file({name: tensor.float().contiguous() for name, tensor in found.items()}, outputs)
tokenizer = comfy.text_encoders.anima.AnimaTokenizer()
tokens = [tokenizer.tokenize_with_weights(prompt) for prompt in json.loads(prompts)]
ids = [[[t[0] for t in each[key][0]] for key in ("qwen3_06b", "t5xxl")] for each in tokens]
print(json.dumps({"modules": modules, "model": type(model.model).__name__, "ids": ids}))
