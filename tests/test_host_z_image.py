"""Z-Image's tensors in a real ComfyUI's module: velocities, a hardened file and a LoRA agree."""

import json
import os
import subprocess
from pathlib import Path

import fakes_z_image as fakes
import pytest
import torch
from family_checks import adapter_of
from host_comfyui import host_paths
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.families.base.conditioning import Conditioning


@pytest.mark.slow
def test_comfyui_computes_the_same_from_every_file(tmp_path):
    folder, python = host_paths()
    if not (folder / "comfy/text_encoders/z_image.py").is_file():
        pytest.skip(f"{folder} is too old for Z-Image")
    source = fakes.write_split(tmp_path / "models")
    model = ra.load_checkpoint(source)
    names = [name for name, module in model.denoiser.named_modules()
             if isinstance(module, torch.nn.Linear) and name.startswith("layers.")
             and "adaLN" not in name]  # fmt: skip
    adapter = adapter_of(model, *names, size=0.01, rank=4, alpha=2.0)
    hardened = source.with_name("hardened.safetensors")
    ra.export_merged(source, adapter, hardened)
    lora = ra.save_lora(adapter, tmp_path / "lora.safetensors")
    random = torch.Generator().manual_seed(1)
    given = {
        "x": torch.randn(2, 16, 6, 10, generator=random),  # 15 tokens, filled up to 32
        "sigma": torch.tensor([0.3, 0.8]),
        "context": torch.randn(2, 7, fakes.TEXT_WIDTH, generator=random),
    }
    save_file(given, tmp_path / "given.safetensors")
    files = ("given.safetensors", "found.safetensors")
    done = subprocess.run(
        [python, str(Path(__file__).with_name("host_z_image.py")), str(folder),
         *(str(tmp_path / name) for name in files), str(source), str(hardened), str(lora)],
        capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"modules": len(names), "model": "Lumina2"}
    found = load_file(tmp_path / "found.safetensors")
    changed = ra.load_checkpoint(hardened)
    for name, own in (("plain", model), ("hardened", changed), ("lora", changed)):
        expected = velocity(own, given)
        print(name, "differs by", float((found[name] - expected).abs().max()))
        torch.testing.assert_close(found[name], expected, atol=1e-5, rtol=1e-4, msg=name)
    assert not torch.allclose(found["plain"], found["hardened"], atol=1e-2)


@torch.no_grad()
def velocity(model, given):
    mask = torch.zeros(2, 512, dtype=torch.long)
    mask[:, :7] = 1
    context = torch.nn.functional.pad(given["context"], (0, 0, 0, 505))
    conditioning = Conditioning({"context": context, "mask": mask})
    return model.denoise(given["x"], 1000 * given["sigma"], conditioning)
