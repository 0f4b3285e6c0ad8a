"""Stage `export`: writing and hashing a checkpoint of SDXL's size on this machine's disk."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch
from fakes_export import random_adapter

from gpu_stages.models import network, write_checkpoint
from resalign.backend.checkpoint.hashing import sha256_of
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.families import find_family


def run(device: str, small: bool, out: Path, tell: Any) -> None:
    family = find_family("sdxl")
    source = write_checkpoint(out / "sdxl.safetensors", "sdxl", device, small)
    with torch.device("cpu" if small else "meta"):
        denoiser = network(family, family.denoiser, small)
    adapter = random_adapter(denoiser)
    size = source.stat().st_size
    copy, target = out / "copy.safetensors", out / "hardened.safetensors"
    work = {
        "copy": lambda: shutil.copyfile(source, copy),
        "hash": lambda: sha256_of(source),
        "export": lambda: export_merged(source, adapter, target, overwrite=True),
    }
    for name, do in work.items():
        began = time.perf_counter()
        do()
        seconds = time.perf_counter() - began
        tell(result="file", what=name, MB=round(size / 1e6), seconds=round(seconds, 2),
             **{"MB/s": round(size / 1e6 / seconds)})  # fmt: skip
    for path in (source, copy, target):
        path.unlink()
