"""Anima's files in a real ComfyUI: velocities, a hardened file, a LoRA, the conditioner, the VAE
and both tokenizers agree."""

import json
import os
import subprocess
from pathlib import Path

import fakes_anima as fakes
import pytest
import torch
from family_checks import adapter_of
from host_comfyui import host_paths
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.families import find_family
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.qwen3.tokenizer import PAD
from resalign.backend.model.encode import decode_latents

ANIMA = find_family("anima")
# ComfyUI takes 16 heads, 1024 of text and 256 of modulation for granted
SIZES = {
    "num_attention_heads": 16, "attention_head_dim": 24, "text_embed_dim": 1024,
    "adaln_lora_dim": 256,
}  # fmt: skip
PROMPTS = ["a cat", "1girl, solo, masterpiece, café 猫", "x" * 40]


@pytest.mark.slow
def test_comfyui_computes_the_same_from_every_file(tmp_path):
    folder, python = host_paths()
    if not (folder / "comfy/text_encoders/anima.py").is_file():
        pytest.skip(f"{folder} is too old for Anima")
    source = write_models(tmp_path / "models")
    model = ra.load_checkpoint(source)
    names = [name for name, module in model.denoiser.named_modules()
             if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name
             and ".norm" not in name]  # fmt: skip
    adapter = adapter_of(model, *names, size=0.04, rank=4, alpha=2.0)
    hardened = source.with_name("hardened.safetensors")
    ra.export_merged(source, adapter, hardened)
    lora = ra.save_lora(adapter, tmp_path / "lora.safetensors")
    given = inputs()
    save_file(given, tmp_path / "given.safetensors")
    files = ("given.safetensors", "found.safetensors")
    done = subprocess.run(
        [python, str(Path(__file__).with_name("host_anima.py")), str(folder),
         *(str(tmp_path / name) for name in files), str(source), str(hardened), str(lora),
         str(source.parents[1] / fakes.VAE_FILE), json.dumps(PROMPTS)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert (told["modules"], told["model"]) == (len(names), "Anima")
    found = load_file(tmp_path / "found.safetensors")
    changed = ra.load_checkpoint(hardened)
    for name, own in (("plain", model), ("hardened", changed), ("lora", changed)):
        expected = velocity(own, given)
        print(name, "differs by", float((found[name] - expected).abs().max()))
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4, msg=name)
    assert not torch.allclose(found["plain"], found["hardened"], atol=1e-2)
    torch.testing.assert_close(found["text"], conditioned(model, given), atol=1e-5, rtol=1e-4)
    picture = decode_latents(model, given["latents"])
    torch.testing.assert_close(found["picture"], picture, atol=1e-4, rtol=1e-3)
    assert tokens_of(folder) == told["ids"]


def inputs():
    random = torch.Generator().manual_seed(1)
    return {
        "x": torch.randn(2, 16, 8, 12, generator=random), "sigma": torch.tensor([0.3, 0.8]),
        "context": torch.randn(2, 512, 1024, generator=random),
        "latents": 0.3 * torch.randn(1, 16, 8, 12, generator=random),
        "states": torch.randn(1, 5, fakes.TEXT_WIDTH, generator=random),
        "ids": torch.randint(0, fakes.VOCABULARY, (1, 7), generator=random),
    }  # fmt: skip


def write_models(folder):
    """Random files: the denoiser at the smallest width that ComfyUI takes, beside a small
    conditioner; a VAE of its own structure, narrow."""
    from diffusers import AnimaTextConditioner, AutoencoderKLQwenImage, CosmosTransformer3DModel

    source = fakes.write_split(folder)
    torch.manual_seed(0)
    network = CosmosTransformer3DModel(**fakes.denoiser_class_config(**SIZES))
    adapter = AnimaTextConditioner(
        source_dim=fakes.TEXT_WIDTH, target_dim=1024, model_dim=32, num_layers=1,
        num_attention_heads=2, target_vocab_size=fakes.VOCABULARY,
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(base_dim=8)
    whole = fakes.native_denoiser(network.state_dict()) | {
        f"llm_adapter.{name}": tensor for name, tensor in adapter.state_dict().items()
    }
    save_file({f"net.{name}": t for name, t in whole.items()}, source, {"format": "pt"})
    save_file(fakes.native_vae(vae.state_dict(), 2), folder / fakes.VAE_FILE)
    return source


@torch.no_grad()
def velocity(model, given):
    context = Conditioning({"context": given["context"]})
    return model.denoise(given["x"], 1000 * given["sigma"], context)


@torch.no_grad()
def conditioned(model, given):
    ones = torch.ones(1, 7), torch.ones(1, 5)
    return model.text_encoders[1](given["states"], given["ids"], *ones)


def tokens_of(folder):
    """Our ids by the tokenizers that lie in ComfyUI itself, which need no other place."""
    found = ANIMA.networks.tokenizers((folder.resolve() / "models" / "diffusion_models",))
    assert found[0].convert_tokens_to_ids(PAD) == 151643
    model = type("Loaded", (), {"tokenizers": found})
    ids, mask, targets, kept = ANIMA.texts.tokenise(model, PROMPTS)  # type: ignore[arg-type]
    return [[ids[i][mask[i].bool()].tolist(), targets[i][kept[i].bool()].tolist()]
            for i in range(len(PROMPTS))]  # fmt: skip
