"""Run inside ComfyUI's Python: its MODEL, CLIP and VAE of FLUX.2 klein against our backend.

python host_klein_bridge.py COMFYUI_DIR MODELS PACKAGE_DIR; the last line printed is JSON. MODELS
holds the three files and `tokenizer`, and receives an exported file and a LoRA.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

COMFYUI, MODELS, PACKAGE = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path[:0] = [COMFYUI, str(Path(__file__).parent)]
os.chdir(COMFYUI)

import torch  # noqa: E402
from host_bridge_package import largest, load_package  # noqa: E402

PROMPTS = ["a photo of a cat", "", "größer (brackets:1.3) " + 40 * "many words "]


def compare() -> dict[str, Any]:
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sd
    import comfy.utils
    import host_tiny_qwen  # noqa: F401

    load_package(PACKAGE)
    import resalign as ra
    from resalign.backend.adapter.apply import AdaptedDenoiser
    from resalign.backend.adapter.dense import DenseAdapter
    from resalign.backend.families.base.conditioning import Conditioning
    from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts
    from resalign.nodes import bridge, sources

    files = {
        name: str(Path(MODELS, name + ".safetensors")) for name in ("klein-base", "qwen", "vae")
    }
    found: dict[str, Any] = {}
    random = torch.Generator().manual_seed(0)
    x = torch.randn(2, 128, 4, 6, generator=random)
    sigma = torch.tensor([0.3, 0.8])
    context = torch.randn(2, 512, 96, generator=random)

    def theirs(model: Any) -> Any:
        comfy.model_management.load_models_gpu([model])
        clean = model.model.apply_model(x, sigma, c_crossattn=context)
        return ((x - clean) / sigma.view(-1, 1, 1, 1)).clone()

    def ours(backend: Any) -> Any:
        with torch.no_grad():
            return backend.denoise(
                x.clone(), 1000 * sigma.clone(), Conditioning({"context": context.clone()})
            )

    def loaded(path: str) -> Any:
        return comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})

    filed = ra.load_checkpoint(
        files["klein-base"], parts={"text_encoder": files["qwen"], "vae": files["vae"]}
    )
    with torch.inference_mode():  # as ComfyUI's executor does
        model = loaded(files["klein-base"])
        clip = comfy.sd.load_clip([files["qwen"]], clip_type=comfy.sd.CLIPType.FLUX2)
        state, metadata = comfy.utils.load_torch_file(files["vae"], return_metadata=True)
        vae = comfy.sd.VAE(sd=state, metadata=metadata)
        before = theirs(model)
        source = bridge.source_of(model)
        found["sources"] = [str(source), str(bridge.source_of(clip.patcher))]
        vae.patcher.cached_patcher_init = (None, (files["vae"],))  # as core's loader does
        found["companions"] = sources.companions(model, clip, vae, source)
        parts = found["companions"]
        found["difference"] = bridge.difference_from_file(model, clip, vae, source, parts)
        with bridge.to_backend(model, clip, vae) as backend:
            found["family"] = backend.family.name
            found["velocity_size"] = float(before.abs().mean())
            found["velocity"] = largest(before, ours(backend))
            texts = encode_prompts(backend, PROMPTS)["context"]
            expected = encode_prompts(filed, PROMPTS)["context"]
            found["text_size"], found["text"] = float(texts.abs().mean()), largest(texts, expected)
            images = torch.rand(1, 3, 64, 96, generator=random) * 2 - 1
            latents = encode_images(backend, images)
            found["latents"] = largest(latents, encode_images(filed, images))
            found["latent_shape"] = list(latents.shape)
            pictures = decode_latents(backend, latents)
            found["pictures"] = largest(pictures, decode_latents(filed, latents))
            tensors = [*backend.denoiser.parameters(), texts, latents]
            found["inference_tensors"] = sum(one.is_inference() for one in tensors)
            config = ra.AdapterConfig(rank=4, alpha=2.0)
            with AdaptedDenoiser(backend, config) as adapted:
                value = backend.denoise(
                    x.clone(), 1000 * sigma.clone(), Conditioning({"context": context.clone()})
                )
                value.square().mean().backward()
                last = [t for name, t in adapted.theta.items() if name.endswith("lora_B.weight")]
                found["trains"] = all(t.grad is not None and bool(t.grad.any()) for t in last)
                with torch.no_grad():
                    for tensor in last:
                        tensor.normal_(0, 0.2, generator=random)
                changed = ours(backend)
                adapter = adapted.adapter()
            names = [n for n, p in backend.denoiser.named_parameters() if p.dim() == 2]
            dense = DenseAdapter(
                {n: 0.05 * torch.randn(backend.denoiser.get_parameter(n).shape, generator=random)
                 for n in names}
            )  # fmt: skip
        found["modules"] = len(adapter.modules)
        lora = bridge.lora_model(adapter, bridge.places_of(model))
        patched = bridge.with_adapter(model, lora)
        after = theirs(patched)
        found["effect"], found["patched"] = largest(before, after), largest(after, changed)
        ra.export_merged(filed, adapter, Path(MODELS, "out-base.safetensors"))
        found["exported"] = largest(
            theirs(loaded(str(Path(MODELS, "out-base.safetensors")))), after
        )
        file = ra.save_lora(adapter, Path(MODELS, "lora.safetensors"))
        tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
        by_file = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]
        found["lora_file"] = largest(theirs(by_file), after)
        whole = bridge.with_adapter(model, bridge.lora_model(dense, bridge.places_of(model)))
        ra.export_merged(filed, dense, Path(MODELS, "dense-base.safetensors"))
        dense_file = theirs(loaded(str(Path(MODELS, "dense-base.safetensors"))))
        found["dense"] = [largest(theirs(whole), before), largest(theirs(whole), dense_file)]
        found["dense_changes"] = len(dense.parameters)
        bare = bridge.without_adapter(patched, lora)
        found["without"] = bridge.fingerprint(bare) == bridge.fingerprint(model)
        theirs(model)
        found["unchanged"] = largest(theirs(model), before)
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(compare()))
