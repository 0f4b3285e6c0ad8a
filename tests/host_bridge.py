"""Run inside ComfyUI's Python: its MODEL, CLIP and VAE against what our backend makes of them.

python host_bridge.py COMFYUI_DIR CHECKPOINT PACKAGE_DIR; the last line printed is JSON.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

COMFYUI, CHECKPOINT, PACKAGE = sys.argv[1:4]
sys.argv = ["main.py", "--cpu"]
sys.path[:0] = [COMFYUI, os.path.dirname(os.path.abspath(__file__))]
os.chdir(COMFYUI)

import torch  # noqa: E402
from host_bridge_package import largest, load_package  # noqa: E402

PROMPT = "a photo of a cat"


def compare() -> dict[str, Any]:
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sd

    load_package(PACKAGE)
    from resalign import AdapterConfig
    from resalign.backend.adapter.apply import AdaptedDenoiser
    from resalign.backend.model.encode import decode_latents, encode_images, encode_prompts
    from resalign.nodes import bridge

    found: dict[str, Any] = {}
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 16, 16, generator=random)
    context = torch.randn(2, 77, 768, generator=random)
    times = torch.tensor([1.0, 601.0])

    def theirs(model: Any) -> Any:
        comfy.model_management.load_models_gpu([model])
        return model.model.diffusion_model(latents, times, context=context).clone()

    def ours(backend: Any) -> Any:
        with torch.no_grad():
            return backend.denoiser(
                latents.clone(), times.clone(), encoder_hidden_states=context.clone()
            ).sample

    def text(clip: Any) -> Any:
        return clip.encode_from_tokens(clip.tokenize(PROMPT))

    with torch.inference_mode():  # as ComfyUI's executor does
        model, clip, vae = comfy.sd.load_checkpoint_guess_config(CHECKPOINT)[:3]
        before = theirs(model)
        source = bridge.source_of(model)
        found["source"] = source and str(source)
        found["patched_at_first"] = bridge.is_patched(model)
        with bridge.to_backend(model, clip, vae) as backend:
            plain = ours(backend)
            found["eps"] = largest(before, plain)
            found["eps_size"] = float(before.abs().mean())
            found["text"] = largest(encode_prompts(backend, [PROMPT])["context"], text(clip))
            encoded = encode_images(backend, torch.rand(1, 3, 64, 64, generator=random) * 2 - 1)
            found["latent_shape"] = list(encoded.shape)
            found["image_shape"] = list(decode_latents(backend, encoded).shape)
            found["family"] = backend.family.name
            found["prediction"] = backend.process.prediction_type
            parts = [*backend.denoiser.parameters(), encoded, backend.process.alphas_cumprod]
            parts += [one for net in backend.text_encoders for one in net.parameters()]
            found["inference_tensors"] = sum(one.is_inference() for one in parts)
            with AdaptedDenoiser(backend, AdapterConfig(rank=4, alpha=2.0)) as adapted:
                prediction = backend.denoiser(
                    latents.clone(), times.clone(), encoder_hidden_states=context.clone()
                ).sample
                prediction.square().mean().backward()
                last = [t for name, t in adapted.theta.items() if name.endswith("lora_B.weight")]
                found["trains"] = all(t.grad is not None and bool(t.grad.any()) for t in last)
                with torch.no_grad():
                    for tensor in last:
                        tensor.normal_(0, 0.05, generator=random)
                changed = ours(backend)
                adapter = adapted.adapter()
        found["left"] = [backend.denoiser is None, backend.vae is None, backend.text_encoders == ()]

        lora = bridge.lora_model(adapter, bridge.places_of(model))
        patched = bridge.with_adapter(model, lora)
        after = theirs(patched)
        found["adapter"] = largest(after, changed)
        found["adapter_effect"] = largest(changed, plain)
        found["patched"] = bridge.is_patched(patched)
        bare = bridge.without_adapter(patched, lora)
        found["without"] = [
            bridge.without_adapter(model, lora) is None,
            bridge.fingerprint(bare) == bridge.fingerprint(model),
        ]
        bridge.mark(patched, lora, bridge.fingerprint(model))
        again = bridge.with_adapter(patched, lora)
        found["hardened"] = [
            bridge.is_hardened(m) for m in (patched, patched.clone(), again, model)
        ]
        skipping = clip.clone()
        skipping.clip_layer(-2)
        with bridge.to_backend(patched, skipping, vae) as backend:
            found["patched_eps"] = largest(after, ours(backend))
            context_2 = encode_prompts(backend, [PROMPT])["context"]
            found["text_skip_2"] = largest(context_2, text(skipping))
            found["skip_effect"] = largest(context_2, text(clip))
        print_of = bridge.fingerprint
        first = print_of(model, clip, vae)
        found["same_when_cloned"] = print_of(model.clone(), clip.clone(), vae) == first
        others = [(patched, clip, vae), (model, skipping, vae), (model, clip, None)]
        found["others_differ"] = [print_of(*parts) != first for parts in others]
        theirs(model)  # the patches of the other one are taken off again
        found["same_when_loaded_again"] = print_of(model, clip, vae) == first
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(compare()))
