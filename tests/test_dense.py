"""A change of all weights as a value: merged, exported, kept, added to a LoRA, and undone."""

from __future__ import annotations

import pytest
import torch
from fakes_checkpoint import build_networks, write_tiny_checkpoint
from fakes_export import random_adapter
from safetensors.torch import load_file

from fakes import random_conditioning, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.adapter.dense import DenseAdapter, summed
from resalign.backend.adapter.dense_denoiser import DenseDenoiser
from resalign.backend.adapter.formats import save_lora
from resalign.backend.adapter.lora import Adapter
from resalign.backend.adapter.low_rank import nearest_lora
from resalign.backend.adapter.merge_in_place import merged
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ConfigError, ExportError
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.probe.subjects import adapter_digest
from resalign.backend.run.folder import RunFolder

INPUTS = torch.randn(2, 4, 8, 8), torch.tensor([500, 20]), random_conditioning(2)
PLAN = HardeningPlan(concepts=(Concept("bad", prompts=("bad",)),))


def dense_on(network, *leaves: str, seed: int = 0, size: float = 0.05) -> DenseAdapter:
    """Random changes of the tensors whose names end in `leaves`; all without any."""
    random = torch.Generator().manual_seed(seed)
    return DenseAdapter(
        {
            name: torch.randn(tensor.shape, generator=random) * size
            for name, tensor in network.named_parameters()
            if not leaves or name.endswith(leaves)
        }
    )


def test_training_all_weights_is_undone_bit_for_bit_and_kept_as_differences():
    model = tiny_model()
    start = {name: tensor.clone() for name, tensor in model.denoiser.named_parameters()}
    plain = model.denoise(*INPUTS)
    with DenseDenoiser(model) as denoiser:
        assert denoiser.theta.keys() == start.keys()
        with torch.no_grad():
            for tensor in denoiser.theta.values():
                tensor.add_(torch.randn_like(tensor) * 0.02)
        changed = denoiser(*INPUTS).detach()
        with denoiser.frozen():
            assert torch.equal(denoiser(*INPUTS), plain)
        assert torch.equal(denoiser(*INPUTS).detach(), changed)
        adapter = denoiser.adapter()
    assert all(torch.equal(t, start[n]) for n, t in model.denoiser.named_parameters())
    assert not any(tensor.requires_grad for tensor in model.denoiser.parameters())
    with merged(model, adapter):
        torch.testing.assert_close(model.denoise(*INPUTS), changed)
    assert torch.equal(model.denoise(*INPUTS), plain)


def test_a_tensor_that_did_not_change_is_not_part_of_the_adapter():
    model = tiny_model()
    with DenseDenoiser(model) as denoiser:
        denoiser.set({"conv_in.bias": denoiser.theta["conv_in.bias"] + 1})
        assert denoiser.adapter().parameters == ("conv_in.bias",)


@pytest.mark.parametrize("kind", ["low-rank", "dense"])
def test_a_stage_of_all_weights_starts_from_what_was_changed_before(kind):
    """Its frozen model is the original, and its result is the change of both."""
    model = tiny_model()
    earlier = random_adapter(model.denoiser) if kind == "low-rank" else dense_on(model.denoiser)
    plain = model.denoise(*INPUTS)
    with merged(model, earlier):
        expected = model.denoise(*INPUTS)
    with DenseDenoiser(model, earlier=earlier) as denoiser:
        torch.testing.assert_close(denoiser(*INPUTS).detach(), expected)
        with denoiser.frozen():
            assert torch.equal(denoiser(*INPUTS), plain)
        found = denoiser.adapter()
    for name in earlier.parameters:
        torch.testing.assert_close(found.change(name), earlier.change(name), atol=1e-6, rtol=1e-3)
    assert torch.equal(model.denoise(*INPUTS), plain)


def test_a_lora_stage_after_one_of_all_weights_adds_up():
    """θ is off in the frozen model, the dense change is not; the sum is dense and exact."""
    model, before = tiny_model(), dense_on(tiny_model().denoiser)
    plain = model.denoise(*INPUTS)
    with AdaptedDenoiser(model, AdapterConfig(rank=2), earlier=before) as denoiser:
        for tensor in denoiser.theta.values():
            torch.nn.init.normal_(tensor, std=0.2)
        now, both = denoiser(*INPUTS).detach(), denoiser.adapter()
        with denoiser.frozen():
            only_dense = denoiser(*INPUTS)
    assert torch.equal(model.denoise(*INPUTS), plain)
    assert isinstance(both, DenseAdapter)
    with merged(model, both):
        torch.testing.assert_close(model.denoise(*INPUTS), now)
    with merged(model, before):
        torch.testing.assert_close(model.denoise(*INPUTS), only_dense)


def test_sums_of_both_kinds_add_each_tensor():
    network = tiny_model().denoiser
    lora, dense = random_adapter(network, ("attention",)), dense_on(network, "to_q.weight", ".bias")
    for both in (summed(lora, dense), summed(dense, lora)):
        assert set(both.parameters) == {*lora.parameters, *dense.parameters}
        for name in both.parameters:
            parts = [one.change(name) for one in (lora, dense) if name in one.parameters]
            torch.testing.assert_close(both.change(name), sum(parts))
    assert isinstance(summed(lora, lora), Adapter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_export_adds_biases_and_norms_too_and_keeps_all_other_bytes(tmp_path, dtype):
    source = write_tiny_checkpoint(tmp_path / "base.safetensors", dtype=dtype)
    network = build_networks("sd1")["unet"]
    adapter = dense_on(network, "to_k.weight", "norm1.bias", "norm2.weight", "conv_in.weight")

    report = export_merged(source, adapter, tmp_path / "out.safetensors")

    assert report.touched == len(adapter.parameters) > 4
    found = verify_export(source, tmp_path / "out.safetensors", adapter)
    assert len(found.changed) == report.touched
    before, after = load_file(source), load_file(tmp_path / "out.safetensors")
    name = "model.diffusion_model.input_blocks.0.0.weight"
    change = adapter.change("conv_in.weight")
    assert torch.equal(after[name], (before[name].float() + change).to(dtype))


def test_a_run_folder_keeps_it_and_tells_it_from_a_lora(tmp_path):
    adapter = dense_on(tiny_model().denoiser, "to_q.weight", ".bias")
    with RunFolder.create(tmp_path, PLAN) as folder:
        folder.save_adapter(adapter, {"step": 3})
    found, metadata = RunFolder.open(tmp_path, read_only=True).load_adapter()
    assert isinstance(found, DenseAdapter) and metadata == {"step": 3}
    assert set(found.tensors) == set(adapter.tensors)
    assert all(torch.equal(t, adapter.tensors[n]) for n, t in found.tensors.items())
    other = DenseAdapter({n: t * 2 for n, t in adapter.tensors.items()})
    assert adapter_digest(found) == adapter_digest(adapter) != adapter_digest(other)


def test_the_nearest_lora_is_exact_at_full_rank_and_states_its_error():
    """By the singular values that are left out; a bias counts as left out as a whole."""
    random = torch.Generator().manual_seed(0)
    matrix, kernel = (torch.randn(s, generator=random) for s in ((6, 4), (5, 3, 2, 2)))
    whole = nearest_lora(DenseAdapter({"a.weight": matrix, "b.weight": kernel}), 5)
    assert whole.error < 1e-6
    torch.testing.assert_close(whole.adapter.delta("a"), matrix)
    torch.testing.assert_close(whole.adapter.delta("b"), kernel)

    bias = torch.full((4,), 2.0)
    some = nearest_lora(DenseAdapter({"a.weight": matrix, "a.bias": bias}), 1)
    left = torch.linalg.svdvals(matrix)[1:].square().sum() + 16
    expected = (left / (matrix.square().sum() + 16)).sqrt()
    assert some.error == pytest.approx(float(expected), rel=1e-5)
    with pytest.raises(ExportError, match="no weight"):
        nearest_lora(DenseAdapter({"a.bias": bias}), 1)


def test_it_is_not_written_as_a_lora_unasked(tmp_path):
    with pytest.raises(ExportError, match="resalign lora RUN --rank 16"):
        save_lora(dense_on(tiny_model().denoiser, ".bias"), tmp_path / "x.safetensors")


def test_weights_in_half_precision_are_refused():
    with pytest.raises(ConfigError, match="fp32"):
        DenseDenoiser(tiny_model(dtype=torch.float16))


def test_the_frozen_copy_may_be_of_half_precision():
    model = tiny_model()
    plain = model.denoise(*INPUTS)
    with DenseDenoiser(model, teacher="bf16") as denoiser, denoiser.frozen():
        found = denoiser(*INPUTS)
        assert {tensor.dtype for tensor in denoiser.teacher.parameters()} == {torch.bfloat16}
    assert found.dtype == torch.float32
    assert 0 < (found - plain).norm() < 0.05 * plain.norm()


def test_a_frozen_copy_that_waits_predicts_the_same():
    model = tiny_model()
    plain = model.denoise(*INPUTS)
    with DenseDenoiser(model, waits=True) as denoiser:
        denoiser.set({"conv_out.bias": torch.ones(4)})
        for _ in range(2):
            with denoiser.frozen():
                assert torch.equal(denoiser(*INPUTS), plain)
