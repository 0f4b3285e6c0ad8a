"""Loading a checkpoint holds its weights once, and one tensor more."""

import ctypes
import gc
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import (
    build_networks,
    ldm_tensors,
    write_sparse,
    write_tiny_checkpoint,
)

from resalign.backend.checkpoint.load import load_checkpoint

original = lru_cache(build_networks)  # never changed here


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone tells its peak")
def test_loading_never_holds_more_than_the_weights_and_one_tensor(tmp_path):
    """Measured on the process: peak of resident memory above what it was before."""
    path = write_sparse(tmp_path / "m.safetensors", wide_tensors(), "F16")
    weights = 2 * path.stat().st_size  # in float32
    assert weights > 120e6
    load_checkpoint(write_tiny_checkpoint(tmp_path / "warm.safetensors"))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # or memory freed by earlier tests is used again, unseen

    before = reset_peak()
    model = load_checkpoint(path)
    grown = peak() - before

    assert model.denoiser.config.block_out_channels[-1] == 256
    assert 0.9 * weights < grown < 1.1 * weights + 20e6


def wide_tensors():
    """An SD 1.x checkpoint of some 40 million parameters, without storage."""
    from diffusers import UNet2DConditionModel

    networks = dict(original())
    options = dict(networks["unet"].config) | {"block_out_channels": (64, 128, 256, 256)}
    with torch.device("meta"):
        networks["unet"] = UNet2DConditionModel.from_config(options)
    return ldm_tensors(networks)


def status(field):
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise AssertionError(field)


def reset_peak():
    Path("/proc/self/clear_refs").write_text("5")
    return status("VmRSS")


def peak():
    return status("VmHWM")
