"""Run inside ComfyUI's Python: its MODEL, CLIP and VAE of a flow-matching family against our
backend.

python host_flow_bridge.py COMFYUI_DIR MODELS PACKAGE_DIR FAMILY; the last line printed is JSON.
MODELS holds the three files and the tokenizers, and receives exported files and a LoRA.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

COMFYUI, MODELS, PACKAGE, FAMILY = sys.argv[1:5]
sys.argv = ["main.py", "--cpu"]
sys.path[:0] = [COMFYUI, str(Path(__file__).parent)]
os.chdir(COMFYUI)

import torch  # noqa: E402
from host_bridge_package import largest, load_package  # noqa: E402

# type of the CLIP, a batch of latents, and the conditioning of it
KINDS: dict[str, tuple[str, tuple[int, ...], tuple[int, int]]] = {
    "flux2_klein": ("FLUX2", (2, 128, 4, 6), (512, 96)),
    "anima": ("STABLE_DIFFUSION", (2, 16, 1, 8, 12), (512, 1024)),
    "z_image": ("LUMINA2", (2, 16, 6, 10), (7, 32)),  # 15 tokens of the image, filled up to 32
}
PROMPTS = ["a photo of a cat", "größer [brackets] " + 40 * "many words "]
FILES = {n: str(Path(MODELS, f"{n}.safetensors")) for n in ("model-base", "qwen", "vae")}
found: dict[str, Any] = {}
random = torch.Generator().manual_seed(0)
clip_type, size, (tokens, width) = KINDS[FAMILY]
x, sigma = torch.randn(size, generator=random), torch.tensor([0.3, 0.8])
context = torch.randn(2, tokens, width, generator=random)


def theirs(model: Any) -> Any:
    import comfy.model_management

    comfy.model_management.load_models_gpu([model])
    more = {"num_tokens": tokens} if FAMILY == "z_image" else {}
    clean = model.model.apply_model(x, sigma, c_crossattn=context, **more)
    velocity = (x - clean) / sigma.view(-1, *[1] * (x.ndim - 1))
    return velocity.reshape(*x.shape[:2], *x.shape[-2:]).clone()


def ours(backend: Any) -> Any:
    from resalign.backend.families.base.conditioning import Conditioning

    parts = {"context": torch.nn.functional.pad(context, (0, 0, 0, 512 - tokens))}
    if FAMILY == "z_image":
        parts["mask"] = (torch.arange(512) < tokens).long().expand(2, -1)
    images = x.reshape(*x.shape[:2], *x.shape[-2:])
    return backend.denoise(images.clone(), 1000 * sigma.clone(), Conditioning(parts))


def loaded(path: str) -> Any:
    import comfy.sd

    return comfy.sd.load_diffusion_model(path, model_options={"dtype": torch.float32})


def host_parts() -> tuple[Any, Any, Any]:
    """Return what the loaders give; core's loader of VAEs notes the file."""
    import comfy.sd
    import comfy.utils

    clip = comfy.sd.load_clip([FILES["qwen"]], clip_type=getattr(comfy.sd.CLIPType, clip_type))
    state, metadata = comfy.utils.load_torch_file(FILES["vae"], return_metadata=True)
    vae = comfy.sd.VAE(sd=state, metadata=metadata, dtype=torch.float32)
    vae.patcher.cached_patcher_init = (None, (FILES["vae"],))
    return loaded(FILES["model-base"]), clip, vae


def as_sampled(model: Any, clip: Any, prompt: str) -> Any:
    """The denoiser's context as ComfyUI's sampler makes it of a prompt."""
    ((embedding, entries),) = clip.encode_from_tokens_scheduled(clip.tokenize(prompt))
    given = {**entries, "cross_attn": embedding, "device": torch.device("cpu"), "noise": x[:1]}
    with torch.inference_mode():  # outside of it ComfyUI leaves Anima's conditioner for later
        return model.model.extra_conds(**given)["c_crossattn"].cond


def compare_texts(model: Any, clip: Any, backend: Any, filed: Any) -> None:
    from resalign.backend.model.encode import encode_prompts

    texts, expected = (encode_prompts(one, PROMPTS) for one in (backend, filed))
    found["text_size"] = float(texts["context"].abs().mean())
    found["text"] = max(largest(texts[name], part) for name, part in expected.parts.items())
    differences = []
    for prompt in (*PROMPTS, ""):
        sampled, own = as_sampled(model, clip, prompt), encode_prompts(backend, [prompt])
        kept = own["context"][:, -sampled.shape[1] :]
        if "mask" in own:
            kept = own["context"][:, : int(own["mask"].sum())]
        differences.append(largest(sampled, kept))
    found["sampled"] = max(differences)
    found["inference_tensors"] = sum(part.is_inference() for part in texts.parts.values())


def compare_images(backend: Any, filed: Any) -> None:
    from resalign.backend.model.encode import decode_latents, encode_images

    images = torch.rand(2, 3, 64, 96, generator=random) * 2 - 1
    latents = encode_images(backend, images)
    found["latents"] = largest(latents, encode_images(filed, images))
    found["latent_shape"] = list(latents.shape)
    pictures = decode_latents(backend, latents)
    found["pictures"] = largest(pictures, decode_latents(filed, latents))
    found["inference_tensors"] += int(latents.is_inference())


def train(backend: Any) -> tuple[Any, Any]:
    """Take one backward pass; return a random adapter, and the velocity with it."""
    import resalign as ra
    from resalign.backend.adapter.apply import AdaptedDenoiser

    with AdaptedDenoiser(backend, ra.AdapterConfig(rank=4, alpha=2.0)) as adapted:
        ours(backend).square().mean().backward()
        last = [t for name, t in adapted.theta.items() if name.endswith("lora_B.weight")]
        found["trains"] = all(t.grad is not None and bool(t.grad.any()) for t in last)
        with torch.no_grad():
            for tensor in last:
                tensor.normal_(0, 0.2, generator=random)
            return adapted.adapter(), ours(backend)


def dense_change(backend: Any) -> Any:
    from resalign.backend.adapter.dense import DenseAdapter

    names = [n for n, p in backend.denoiser.named_parameters()
             if p.dim() == 2 and "pad_token" not in n]  # fmt: skip
    return DenseAdapter(
        {n: 0.05 * torch.randn(backend.denoiser.get_parameter(n).shape, generator=random)
         for n in names}
    )  # fmt: skip


def compare_results(model: Any, filed: Any, adapter: Any, changed: Any, dense: Any) -> None:
    import comfy.sd
    import comfy.utils

    import resalign as ra
    from resalign.nodes import bridge

    before = theirs(model)
    found["modules"] = len(adapter.modules)
    lora = bridge.lora_model(adapter, bridge.places_of(model))
    patched = bridge.with_adapter(model, lora)
    found["patches"] = sum(len(patches) for patches in patched.patches.values())
    after = theirs(patched)
    found["effect"], found["patched"] = largest(before, after), largest(after, changed)
    exported = Path(MODELS, "out-base.safetensors")
    ra.export_merged(filed, adapter, exported)
    found["exported"] = largest(theirs(loaded(str(exported))), after)
    file = ra.save_lora(adapter, Path(MODELS, "lora.safetensors"), family=filed.family)
    tensors = comfy.utils.load_torch_file(str(file), safe_load=True)
    by_file = comfy.sd.load_lora_for_models(model, None, tensors, 1.0, 0.0)[0]
    found["lora_file"] = largest(theirs(by_file), after)
    whole = bridge.with_adapter(model, bridge.lora_model(dense, bridge.places_of(model)))
    exported = Path(MODELS, "dense-base.safetensors")
    ra.export_merged(filed, dense, exported)
    found["dense"] = [
        largest(theirs(whole), before), largest(theirs(whole), theirs(loaded(str(exported))))
    ]  # fmt: skip
    found["dense_changes"] = len(dense.parameters)
    bare = bridge.without_adapter(patched, lora)
    found["without"] = bridge.fingerprint(bare) == bridge.fingerprint(model)
    found["unchanged"] = largest(theirs(model), before)


def compare() -> dict[str, Any]:
    import comfy.options

    comfy.options.enable_args_parsing()
    import host_tiny_pack  # noqa: F401

    load_package(PACKAGE)
    import resalign as ra
    from resalign.nodes import bridge, sources

    filed = ra.load_checkpoint(
        FILES["model-base"], parts={"text_encoder": FILES["qwen"], "vae": FILES["vae"]}
    )
    with torch.inference_mode():  # as ComfyUI's executor does
        model, clip, vae = host_parts()
        before = theirs(model)
        source = bridge.source_of(model)
        assert source is not None
        found["sources"] = [str(source), str(bridge.source_of(clip.patcher))]
        found["companions"] = sources.companions(model, clip, vae, source)
        found["difference"] = bridge.difference_from_file(
            model, clip, vae, source, found["companions"]
        )
        with bridge.to_backend(model, clip, vae) as backend:
            found["family"] = backend.family.name
            found["velocity_size"] = float(before.abs().mean())
            with torch.no_grad():
                found["velocity"] = largest(before, ours(backend))
            compare_texts(model, clip, backend, filed)
            compare_images(backend, filed)
            weights = backend.denoiser.parameters()
            found["inference_tensors"] += sum(one.is_inference() for one in weights)
            adapter, changed = train(backend)
            dense = dense_change(backend)
        compare_results(model, filed, adapter, changed, dense)
    return found


if __name__ == "__main__":
    print("\n" + json.dumps(compare()))
