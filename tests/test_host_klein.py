"""FLUX.2 klein's files in a real ComfyUI: velocities, a hardened file, a LoRA and the VAE agree."""

import json
import os
import subprocess
from pathlib import Path

import fakes_klein as fakes
import pytest
import torch
from family_checks import adapter_of
from host_comfyui import host_paths
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.families import find_family
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.model.encode import decode_latents

KLEIN = find_family("flux2_klein")
# ComfyUI reads the number of heads off the width: one of 128 is the smallest.
SIZES = {
    "attention_head_dim": 128, "num_attention_heads": 1, "axes_dims_rope": (32,) * 4,
    "timestep_guidance_channels": 256,
}  # fmt: skip


@pytest.mark.slow
def test_comfyui_computes_the_same_from_every_file(tmp_path):
    folder, python = host_paths()
    if not (folder / "comfy/text_encoders/flux.py").is_file() or "Flux2" not in (
        folder / "comfy/supported_models.py"
    ).read_text(encoding="utf-8"):
        pytest.skip(f"{folder} is too old for FLUX.2")
    source = write_models(tmp_path / "models")
    model = ra.load_checkpoint(source)
    names = [name for name, module in model.denoiser.named_modules()
             if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name]  # fmt: skip
    adapter = adapter_of(model, *names, size=0.04, rank=4, alpha=2.0)
    hardened = source.with_name("hardened-base.safetensors")
    ra.export_merged(source, adapter, hardened)
    lora = ra.save_lora(adapter, tmp_path / "lora.safetensors")
    random = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn(2, 128, 4, 6, generator=random), "sigma": torch.tensor([0.3, 0.8]),
        "context": torch.randn(2, 512, 3 * fakes.TEXT_WIDTH, generator=random),
        "latents": torch.randn(1, 128, 4, 6, generator=random),
    }  # fmt: skip
    save_file(given, tmp_path / "given.safetensors")
    files = ("given.safetensors", "found.safetensors")
    done = subprocess.run(
        [python, str(Path(__file__).with_name("host_klein.py")), str(folder),
         *(str(tmp_path / name) for name in files), str(source), str(hardened), str(lora),
         str(source.parents[1] / fakes.VAE_FILE)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1]) == {"modules": len(names), "model": "Flux2"}
    found = load_file(tmp_path / "found.safetensors")
    changed = ra.load_checkpoint(hardened)
    for name, own in (("plain", model), ("hardened", changed), ("lora", changed)):
        expected = velocity(own, given)
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4, msg=name)
    assert not torch.allclose(found["plain"], found["hardened"], atol=1e-2)
    picture = decode_latents(model, given["latents"])
    torch.testing.assert_close(found["picture"], picture, atol=1e-4, rtol=1e-3)


def write_models(folder):
    """Random files: denoiser at the smallest width, VAE at the only one, that ComfyUI takes."""
    source = fakes.write_split(folder)
    from diffusers import AutoencoderKLFlux2, Flux2Transformer2DModel

    torch.manual_seed(0)
    network = Flux2Transformer2DModel(**fakes.denoiser_class_config(**SIZES))
    vae = AutoencoderKLFlux2()
    vae.bn.running_mean.normal_(std=0.3)
    vae.bn.running_var.uniform_(0.5, 1.5)
    save_file(fakes.native_denoiser(network.state_dict()), source, {"format": "pt"})
    save_file(fakes.native_vae(vae.state_dict()), folder / fakes.VAE_FILE)
    return source


@torch.no_grad()
def velocity(model, given):
    context = Conditioning({"context": given["context"]})
    return model.denoise(given["x"], 1000 * given["sigma"], context)
