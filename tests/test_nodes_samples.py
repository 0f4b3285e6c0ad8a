"""A few of a run's first weights tell its checkpoint from another."""

import pytest
import torch
from fakes_checkpoint import build_networks, write_tiny_checkpoint, write_tiny_folder

from resalign.backend.errors import ExportError
from resalign.nodes import samples as module

MODULES = (
    "conv_in",
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.attentions.0.proj_in",
    "up_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
)


@pytest.fixture(scope="module")
def weights():
    return build_networks("sd1")["unet"].state_dict()


def test_the_file_of_the_run_passes_in_either_layout_and_dtype(tmp_path, weights):
    taken = module.samples_of(weights, MODULES)
    assert set(taken) == set(MODULES) and {len(v) for v in taken.values()} == {8}
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        path = write_tiny_checkpoint(tmp_path / f"{dtype}.safetensors", dtype=dtype)
        module.check_samples(path, taken)
    module.check_samples(write_tiny_folder(tmp_path / "folder"), taken)


def test_an_fp8_file_passes_for_the_run_on_it(tmp_path, weights):
    rounded = {n: t.to(torch.float8_e4m3fn) for n, t in weights.items()}
    path = write_tiny_checkpoint(tmp_path / "a.safetensors", dtype=torch.float8_e4m3fn)
    module.check_samples(path, module.samples_of(rounded, MODULES))


def test_another_checkpoint_is_refused_with_the_way_out(tmp_path, weights):
    path = write_tiny_checkpoint(tmp_path / "other.safetensors", seed=1)
    with pytest.raises(ExportError, match=r"other.safetensors is not .* `source`, or write from"):
        module.check_samples(path, module.samples_of(weights, MODULES))


def test_one_changed_module_among_the_sampled_is_enough(tmp_path, weights):
    path = write_tiny_checkpoint(tmp_path / "a.safetensors", dtype=torch.float32)
    taken = module.samples_of(weights, MODULES)
    taken["conv_in"][3] += 0.01
    with pytest.raises(ExportError, match="conv_in has other weights"):
        module.check_samples(path, taken)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path, weights):
    path = write_tiny_checkpoint(tmp_path / "a.safetensors")
    with pytest.raises(ExportError, match=r"it has no down_blocks\.9"):
        module.check_samples(path, {"down_blocks.9": [0.0]})


def test_few_modules_are_spread_over_many():
    weights = {f"m{i:03}.weight": torch.full((3,), float(i)) for i in range(100)}
    taken = module.samples_of(weights, [f"m{i:03}" for i in range(100)])
    assert list(taken) == [f"m{i:03}" for i in range(0, 96, 12)]
    assert taken["m012"] == [12.0, 12.0, 12.0]
