"""Weights mixed with another checkpoint's, against direct arithmetic on both."""

import copy
from functools import cache

import pytest
import torch
from fakes_checkpoint import build_networks, ldm_tensors, write_tiny_checkpoint, write_tiny_folder
from fakes_export import random_adapter
from marks import slow
from torch import Tensor

from resalign.backend.checkpoint.info import CheckpointInfo
from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.errors import CheckpointError
from resalign.backend.probe import mixing
from resalign.backend.probe.mixing import mixed


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints: `a`, `b` (another seed, fp16), `b` as a folder; an SDXL."""
    folder = tmp_path_factory.mktemp("checkpoints")
    write_tiny_checkpoint(folder / "a.safetensors", dtype=torch.float32)
    write_tiny_checkpoint(folder / "b.safetensors", seed=1)
    write_tiny_folder(folder / "b", seed=1)
    return folder


@pytest.fixture(scope="module")
def model(folder):
    return load_checkpoint(folder / "a.safetensors")


@pytest.fixture(scope="module")
def in_type(folder):
    """Both checkpoints loaded in a type, once; `mix` leaves a model as it was."""

    @cache
    def load(name, dtype=None):
        return load_checkpoint(folder / f"{name}.safetensors", dtype=dtype)

    return load


def parts(model) -> dict[str, Tensor]:
    """Copies of all weights of denoiser and text encoders."""
    networks = {"unet": model.denoiser}
    networks |= {f"text_encoder{i or ''}": net for i, net in enumerate(model.text_encoders)}
    return {
        f"{component}.{name}": tensor.detach().clone()
        for component, network in networks.items()
        for name, tensor in network.named_parameters()
    }


def same_bits(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[name].view(torch.uint8), two[name].view(torch.uint8)) for name in one
    )


def mix(model, *args) -> dict[str, Tensor]:
    """Return the mixed weights, after checking that the old ones are restored exactly."""
    before = parts(model)
    with mixed(model, *args) as changed:
        assert changed is model
        inside = parts(changed)
    assert same_bits(before, parts(model))
    return inside


@pytest.mark.parametrize("weight", [0.3, -0.5, *slow(0.5, 2.0)])
@pytest.mark.parametrize("part", ["denoiser", "all"])
def test_is_the_weighted_mean_of_both(model, folder, in_type, weight, part):
    """(1 − w) · W + w · W_other of each tensor; what is not asked for keeps every bit."""
    own, other = parts(model), parts(in_type("b"))

    found = mix(model, folder / "b.safetensors", weight, part)

    for name, tensor in found.items():
        if part == "denoiser" and not name.startswith("unet."):
            assert torch.equal(tensor, own[name])
        else:
            expected = (1 - weight) * own[name].double() + weight * other[name].double()
            torch.testing.assert_close(tensor.double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, *slow(torch.float32, torch.bfloat16)])
@pytest.mark.parametrize("other", ["b.safetensors", "b"])
def test_weight_1_is_the_other_and_weight_0_the_model(folder, in_type, dtype, other):
    """Bit for bit, in the model's type, whatever the layout of either."""
    model = in_type("a", dtype)

    found = mix(model, folder / other, 1.0, "all")

    assert same_bits(found, parts(in_type("b", dtype)))
    assert same_bits(mix(model, folder / other, 0.0, "all"), parts(model))


def test_names_of_a_file_are_worked_out_once_a_network(model, folder, monkeypatch):
    """Once for each of a thousand tensors, mixing took longer than loading."""
    asked, sources = [], CheckpointInfo.sources

    def count(info, component):
        asked.append(component)
        return sources(info, component)

    monkeypatch.setattr(CheckpointInfo, "sources", count)
    with mixed(model, folder / "b.safetensors", 0.5, "all"):
        assert sorted(asked) == ["text_encoder", "unet"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd2", "sdxl"])
def test_all_families_are_read_from_either_layout(tmp_path, family):
    """OpenCLIP's stacked and transposed tensors, SDXL's two encoders: each in its place."""
    other = write_tiny_checkpoint(tmp_path / "b.safetensors", family, seed=1)
    model = load_checkpoint(write_tiny_folder(tmp_path / "a", family), dtype=torch.float16)

    found = mix(model, other, 1.0, "all")

    assert same_bits(found, parts(load_checkpoint(other, dtype=torch.float16)))


def test_subtracts_the_adapter(tmp_path):
    """Hardened = original + ΔW: weight 1 gives exactly the original, 2 the original − ΔW."""
    path = write_tiny_checkpoint(tmp_path / "original.safetensors", dtype=torch.float32)
    original = load_checkpoint(path)
    adapter = random_adapter(original.denoiser)
    export_merged(path, adapter, tmp_path / "hardened.safetensors")
    hardened = load_checkpoint(tmp_path / "hardened.safetensors")

    assert same_bits(mix(hardened, path, 1.0, "all"), parts(original))
    found, changed = mix(hardened, path, 2.0, "all"), 0
    for name, tensor in parts(original).items():
        module = name.removeprefix("unet.").removesuffix(".weight")
        if module not in adapter.modules:
            assert torch.equal(found[name], tensor)
            continue
        delta = adapter.delta(module)
        torch.testing.assert_close(found[name], tensor - delta, rtol=1e-5, atol=1e-6)
        changed += bool(delta.abs().max() > 1e-3)
    assert changed == len(adapter.modules)


@pytest.mark.slow
def test_state_dicts_do_as_well_as_a_file(model, folder):
    """For hosts, and for originals that are in memory anyway."""
    other = load_checkpoint(folder / "b.safetensors")
    memory = {
        "unet": other.denoiser.state_dict(),
        "text_encoder": other.text_encoders[0].state_dict(),
    }

    for weight in (0.25, 1.0):
        found = mix(model, memory, weight, "all")
        assert same_bits(found, mix(model, folder / "b.safetensors", weight, "all"))


@pytest.mark.slow
def test_its_own_file_changes_nothing(model):
    """The original as the other of the original, at any weight: equal weights stay."""
    for weight in (0.3, 1.0, 2.0, -1.7):
        assert same_bits(mix(model, model.source, weight, "all"), parts(model))


def test_the_other_is_never_in_memory_as_a_whole(model, folder, monkeypatch):
    """Each tensor read from the file is gone before the next one is read."""
    import weakref

    read, alive, most = mixing.TensorFile.read, weakref.WeakSet(), 0

    def watched(self, source):
        nonlocal most
        tensor = read(self, source)
        alive.add(tensor)
        most = max(most, len(alive))
        return tensor

    monkeypatch.setattr(mixing.TensorFile, "read", watched)
    mix(model, folder / "b.safetensors", 0.5, "all")
    assert 1 <= most <= 2


def test_an_exception_inside_puts_every_bit_back(model, folder):
    """Whatever is raised passes through, also what is no `Exception`."""
    before = parts(model)

    def interrupted() -> None:
        with mixed(model, folder / "b.safetensors", 0.5):
            assert not same_bits(before, parts(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert same_bits(before, parts(model))


def refused(model, other, message: str, weight: float = 0.5, part: str = "all") -> None:
    """An error of a user's, and a model that is as before."""
    before = parts(model)
    with pytest.raises(CheckpointError, match=message), mixed(model, other, weight, part):
        pass
    assert same_bits(before, parts(model))


def test_another_family_is_named(model, tmp_path):
    """Both are said."""
    path = write_tiny_checkpoint(tmp_path / "xl.safetensors", "sdxl")
    refused(model, path, "xl.safetensors is SDXL base, but the model is Stable Diffusion 1.x")


def test_weights_that_predict_another_thing_are_not_mixed(tmp_path):
    """ε and v of one family have the same names and no common meaning."""
    eps = write_tiny_checkpoint(tmp_path / "eps.safetensors", "sd2", prediction_type="v_prediction")
    model = load_checkpoint(write_tiny_checkpoint(tmp_path / "v.safetensors", "sd1"))
    refused(model, eps, "only checkpoints of one family")
    one = write_tiny_checkpoint(tmp_path / "one.safetensors", prediction_type="v_prediction")
    refused(model, one, "v_prediction, but the model epsilon")


def test_missing_and_damaged_files_are_named(model, folder, tmp_path):
    """The error names missing tensors, their number and the file."""
    name = "model.diffusion_model.middle_block.0.out_layers.3.bias"
    path = write_tiny_checkpoint(tmp_path / "part.safetensors", drop=(name,))
    refused(model, path, r"part.safetensors lacks 1 of the 7\d\d .*mid_block.resnets.0.conv2.bias")
    whole = (folder / "b.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-50])
    refused(model, tmp_path / "cut.safetensors", "cut.safetensors is truncated")
    refused(model, tmp_path / "none.safetensors", "does not exist")
    refused(model, {"unet": {}}, "the other model lacks", part="denoiser")


def test_another_shape_is_another_architecture(model):
    """Broadcasting would make a wrong weight without a word."""
    state = dict(model.denoiser.state_dict()) | {"conv_in.bias": torch.zeros(1)}
    refused(model, {"unet": state}, r"conv_in.bias is \[1\], in the model \[32\]", part="denoiser")


@pytest.mark.slow
def test_nan_and_overflow_are_errors(model, folder, tmp_path):
    """NaN in the other at any weight; a sum that the model's type cannot hold."""
    ldm = ldm_tensors(build_networks())
    name = "model.diffusion_model.input_blocks.0.0.weight"
    bad = {name: torch.full_like(ldm[name], float("nan")).half()}
    path = write_tiny_checkpoint(tmp_path / "nan.safetensors", extra=bad)
    for weight in (0.0, 0.5, 1.0):
        refused(model, path, "conv_in.weight mixed with nan.safetensors.*NaN", weight)
    half = copy.copy(model)
    half.denoiser = copy.deepcopy(model.denoiser).half()
    half.denoiser.conv_in.weight[0] = 3e4
    refused(half, folder / "b.safetensors", "does not fit into float16", -1.5, "denoiser")
