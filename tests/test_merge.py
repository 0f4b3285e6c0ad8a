"""W + ΔW in the type of W."""

import pytest
import torch

from resalign.backend.adapter.merge import merged_weight
from resalign.backend.errors import ExportError

HALF = [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]


def random(*shape: int, size: float = 1.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * size


@pytest.mark.parametrize("dtype", HALF)
def test_is_the_rounded_sum_of_the_stored_weight_and_the_change(dtype):
    """Every element is the value of the type nearest to the exact sum, ties to even."""
    weight, delta = random(20, 30).to(dtype), random(20, 30, seed=1)

    merged = merged_weight(weight, delta, "w")

    assert merged.weight.dtype == dtype
    exact = weight.double() + delta.double()
    assert torch.equal(merged.weight.float(), exact.float().to(dtype).float())


def test_float64_is_not_narrowed():
    """A change below float32's resolution arrives in a float64 weight."""
    weight = random(4, 4).double()

    merged = merged_weight(weight, torch.full((4, 4), 1e-12), "w")

    torch.testing.assert_close(
        merged.weight - weight, torch.full((4, 4), 1e-12).double(), rtol=1e-3, atol=0
    )


def test_leaves_its_inputs_alone():
    """Neither the weight nor the change is written to, in any type."""
    weight, delta = random(3, 3), random(3, 3, seed=1)
    before = weight.clone(), delta.clone()

    merged_weight(weight, delta, "w")

    assert torch.equal(weight, before[0]) and torch.equal(delta, before[1])


def test_norms_are_those_of_weight_change_and_rounding():
    """In float32 the rounding is next to nothing; the relative change is ‖ΔW‖ / ‖W‖."""
    weight, delta = random(50, 50), random(50, 50, size=0.1, seed=1)

    merged = merged_weight(weight, delta, "w")

    assert merged.relative_change == pytest.approx(delta.norm().item() / weight.norm().item())
    assert merged.error_norm < 1e-5 * merged.change_norm and not merged.lost


def test_an_update_below_the_types_resolution_counts_as_lost():
    """A change of 1 % of each weight survives fp16 and bf16 mostly, and fp8 not at all."""
    weight = random(50, 50)
    found = {dtype: merged_weight(weight.to(dtype), weight * 0.01, "w").lost for dtype in HALF}

    assert found == {
        torch.float16: False,
        torch.bfloat16: False,
        torch.float8_e4m3fn: True,
        torch.float8_e5m2: True,
    }


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float16, 7e4), (torch.float8_e4m3fn, 500), (torch.float8_e5m2, 7e4)]
)
def test_an_overflow_names_the_tensor_and_the_type(dtype, size):
    """A sum that the type cannot hold is an error, never an infinity in the file."""
    with pytest.raises(ExportError, match=f"w.1: .*{str(dtype)[6:]}"):
        merged_weight(torch.ones(2, 2).to(dtype), torch.full((2, 2), float(size)), "w.1")


def test_tells_a_broken_source_from_a_broken_adapter():
    """NaN in the weight blames the file, NaN in the change blames the run."""
    good, bad = torch.ones(2, 2), torch.full((2, 2), float("nan"))
    with pytest.raises(ExportError, match="already holds NaN"):
        merged_weight(bad, good, "w")
    with pytest.raises(ExportError, match="diverged"):
        merged_weight(good, bad, "w")


def test_another_shape_is_another_model():
    """Broadcasting would make a wrong weight without a word."""
    with pytest.raises(ExportError, match=r"\[4, 4\].*\[1, 4\]"):
        merged_weight(torch.ones(4, 4), torch.ones(1, 4), "w")
