"""Erasing a concept's directions: each part against its closed form, and the step as a whole."""

from __future__ import annotations

import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from fakes import encoded_data, random_set, tiny_model
from resalign.backend.hardening.erase import step as erase_step
from resalign.backend.hardening.erase.moments import Moments, in_groups, measure, rows_of
from resalign.backend.hardening.erase.subspace import concept_directions, without
from resalign.backend.hardening.run import harden
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durable import EraseConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.run.folder import RunFolder
from resalign.backend.run.records import StepRecord

WIDTH = 8
SCALES = torch.tensor([0.1, 3.0, 1.0, 0.5, 2.0, 1.5, 0.7, 1.2])


def moments(rows: torch.Tensor) -> torch.Tensor:
    return (rows.T @ rows / len(rows)).double()


def orthonormal(width: int, count: int, seed: int = 0) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, count, generator=random))[0]


def plan(**changes) -> HardeningPlan:
    settings = {
        "concepts": (Concept("bad", prompts=("bad",)),), "method": "erase",
        "erase": EraseConfig(samples=12, batch=5, ratio=1.5), "forget_batch": 2,
        "retain_batch": 2,
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))


@pytest.fixture(scope="module")
def problem():
    """Inputs of 8 numbers. The concept adds strength along one direction u, which the rest has
    little of; the rest has unlike strengths along the others."""
    random = torch.Generator().manual_seed(0)
    basis = orthonormal(WIDTH, WIDTH)
    rest = torch.randn(4000, WIDTH, generator=random) * SCALES @ basis.T
    concept = torch.randn(4000, WIDTH, generator=random) * SCALES
    concept[:, 0] *= 30
    weight = torch.randn(5, WIDTH, generator=random)
    return basis, rest, concept @ basis.T, weight


def test_a_layer_loses_exactly_the_concepts_own_direction(problem):
    """The moments are known: λ is 30² along u and 1 elsewhere. W' maps u to zero, and answers as W
    does to everything that is not correlated with u."""
    basis, _, _, weight = problem
    basis, scales = basis.double(), SCALES.double()
    kept = (basis * scales.square()) @ basis.T
    scales[0] *= 30
    found = concept_directions(kept, (basis * scales.square()) @ basis.T, ratio=4.0, floor=1e-6)
    expected = torch.ones(WIDTH).double()
    expected[-1] = 900
    torch.testing.assert_close(found.strengths, expected)
    new, old = without(weight, found).double(), weight.double()
    assert (new @ basis[:, 0]).abs().max() < 1e-6
    torch.testing.assert_close(new @ basis[:, 1:], old @ basis[:, 1:], atol=1e-6, rtol=1e-5)
    random = found._replace(vectors=orthonormal(WIDTH, 1, seed=5).double())  # another direction
    assert (without(weight, random).double() @ basis[:, 0]).norm() > 0.1 * (
        old @ basis[:, 0]
    ).norm()


def test_outputs_on_what_stays_change_least_of_all_weights_that_lose_the_direction(problem):
    """The change is the least in the C-norm: any other with W' S q = 0 costs more."""
    _, rest, concept, weight = problem
    c = moments(rest)
    found = concept_directions(c, moments(concept), ratio=4.0, floor=1e-6)
    lost = (found.root @ found.vectors).float()  # S Q, which W' must send to 0
    new = without(weight, found)
    assert (new @ lost).abs().max() < 1e-5

    def cost(changed):
        change = (changed - weight).double()
        return float((change @ c @ change.T).trace())

    random = torch.Generator().manual_seed(1)
    for _ in range(20):  # any other change within the constraint
        other = torch.randn(weight.shape, generator=random) * 0.1
        other -= (other @ lost) @ torch.linalg.pinv(lost)
        assert ((new + other) @ lost).abs().max() < 1e-4
        assert cost(new + other) > cost(new)
    plain = weight - (weight @ lost) @ torch.linalg.pinv(lost)  # orthogonal, not C-orthogonal
    assert cost(plain) > cost(new)


def test_eigenvalues_are_those_of_the_generalised_problem(problem):
    """λ of F q = λ C q, and the same whatever basis or scale the inputs have."""
    _, rest, concept, weight = problem
    c, f = moments(rest), moments(concept)
    found = concept_directions(c, f, ratio=4.0, floor=1e-9)
    expected = torch.linalg.eigvals(torch.linalg.solve(c, f)).real.sort().values
    torch.testing.assert_close(found.strengths, expected)
    mix = torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(2)).double()
    mixed = concept_directions(mix.T @ c @ mix, mix.T @ f @ mix, ratio=4.0, floor=1e-12)
    torch.testing.assert_close(mixed.strengths, expected, rtol=1e-5, atol=1e-6)
    solved = without(weight.double() @ torch.linalg.inv(mix).T, mixed)  # the same layer
    torch.testing.assert_close(
        solved @ mix.T, without(weight.double(), found), rtol=1e-4, atol=1e-4
    )


def test_a_convolution_loses_channels_in_every_place_of_its_kernel(problem):
    _, rest, concept, _ = problem
    found = concept_directions(moments(rest), moments(concept), ratio=4.0, floor=1e-6)
    kernel = torch.randn(5, WIDTH, 3, 3, generator=torch.Generator().manual_seed(3))
    new = without(kernel, found)
    for row in range(3):
        for column in range(3):
            torch.testing.assert_close(
                new[:, :, row, column], without(kernel[:, :, row, column], found)
            )


def test_nothing_is_taken_where_both_are_alike_and_a_wide_deficient_layer_stays_finite():
    """Fewer samples than inputs: C has eigenvalues of 0, which the floor keeps from dividing."""
    random = torch.Generator().manual_seed(0)
    rest = torch.randn(40, 300, generator=random)
    same = concept_directions(moments(rest), moments(rest), ratio=1.5, floor=1e-3)
    assert same.removed == 0
    weight = torch.randn(4, 300, generator=random)
    torch.testing.assert_close(without(weight, same), weight)
    other = moments(torch.randn(40, 300, generator=random))
    found = concept_directions(moments(rest), other, ratio=4.0, floor=1e-3)
    new = without(weight, found)
    assert found.removed > 0 and new.isfinite().all()
    assert (new @ (found.root @ found.vectors).float()).abs().max() < 1e-4


def test_moments_are_those_of_tokens_and_places_with_weights_and_shared_inputs():
    linear, other, conv = nn.Linear(4, 2), nn.Linear(4, 3), nn.Conv2d(4, 2, 3)
    random = torch.Generator().manual_seed(0)
    tokens = [torch.randn(2, 5, 4, generator=random) for _ in range(2)]
    image = torch.randn(2, 4, 6, 6, generator=random)

    def run(x):
        return lambda: (linear(x), other(x), conv(image))

    found = measure(
        {"linear": linear, "other": other, "conv": conv},
        [(1.0, run(tokens[0])), (3.0, run(tokens[1]))],
    )
    a, b = (moments(x.flatten(0, 1)) for x in tokens)
    torch.testing.assert_close(found.of("linear"), (a + 3 * b) / 4, rtol=1e-5, atol=1e-6)
    assert found.owner("other") == "linear" and found.of("other").dtype == torch.float64
    places = image.permute(0, 2, 3, 1).reshape(-1, 4)
    torch.testing.assert_close(found.of("conv"), moments(places), rtol=1e-5, atol=1e-6)
    linear(tokens[0])  # no hook is left
    torch.testing.assert_close(found.of("linear"), (a + 3 * b) / 4, rtol=1e-5, atol=1e-6)
    assert found.sharing(["other", "conv"]) == {"linear": ["other"], "conv": ["conv"]}
    assert torch.equal(found.of("linear"), found.take("linear"))
    with pytest.raises(KeyError):
        found.of("other")


def test_layers_are_measured_in_groups_within_the_memory():
    layers = {name: nn.Linear(width, 1) for name, width in zip("abcd", (2, 2, 4, 1), strict=True)}
    sizes = [list(group) for group in in_groups(layers, 2, room=2 * 8 * 8)]
    assert sizes == [["a", "b"], ["c"], ["d"]]


def run(own: HardeningPlan, folder=None, concepts=("bad",), **options):
    return harden(tiny_model(), own, run_folder=folder, data=encoded_data(concepts), **options)


@pytest.fixture(scope="module")
def once():
    return run(plan())


def test_a_run_reports_each_layer_and_changes_only_those(once, tmp_path):
    """λ and count by layer, in the record and in the folder; what reads latents and times stays."""
    (record,) = once.records
    removed = {layer.name for layer in record.erased if layer.removed}
    assert {f"{name}.weight" for name in removed} == set(once.adapter.parameters)
    assert removed and not any("time_emb" in n or n == "conv_in" for n in removed)
    names = {layer.name for layer in record.erased}
    assert "conv_out" in names and "mid_block.attentions.0.transformer_blocks.0.attn2.to_k" in names
    for layer in record.erased:
        assert (layer.weakest is None) == (layer.removed == 0)
        assert layer.removed == 0 or layer.strongest >= layer.weakest > 1.5
    result = run(plan(), tmp_path)
    kept = RunFolder.open(tmp_path, read_only=True)
    assert [StepRecord.from_json(r) for r in kept.records()] == list(result.records)
    adapter, _ = kept.load_adapter()
    assert all(torch.equal(t, once.adapter.tensors[n]) for n, t in adapter.tensors.items())


def test_memory_changes_the_passes_and_not_the_result():
    """One layer at a time or all at once: the same weights."""
    few = replace(plan().erase, targets=("cross_attention_kv",), batch=12)
    whole, small = run(plan(erase=few)), run(plan(erase=replace(few, memory=1e-6)))
    assert small.adapter.parameters == whole.adapter.parameters != ()
    for name in small.adapter.parameters:
        torch.testing.assert_close(small.adapter.change(name), whole.adapter.change(name))


def test_two_concepts_weigh_as_the_plan_weighs_them():
    """F is their weighted mean: all weight on one of them is nearly that one alone."""
    both = tuple(Concept(name, prompts=(name,)) for name in ("bad", "worse"))
    own = plan(concepts=(replace(both[0], weight=1e6), both[1]))
    alone, together = run(plan()), run(own, concepts=("bad", "worse"))
    even = run(plan(concepts=both), concepts=("bad", "worse"))

    def strongest(result):
        return [layer.strongest for layer in result.records[0].erased]

    assert strongest(together) == pytest.approx(strongest(alone), rel=1e-3)
    assert strongest(even) != pytest.approx(strongest(alone), rel=1e-2)


def test_more_varied_images_count_among_what_must_stay():
    """A set that holds the concept itself: no direction is the concept's own by more than 2."""
    data = encoded_data()
    own = plan(erase=EraseConfig(samples=60, batch=20, ratio=2.5))
    before = harden(tiny_model(), own, data=data).records[0].erased
    varied = replace(data, varied=data.forget["bad"])
    after = harden(tiny_model(), own, data=varied).records[0].erased
    assert sum(layer.removed for layer in after) < sum(layer.removed for layer in before)
    assert max(layer.strongest for layer in after) < max(layer.strongest for layer in before)


def test_targets_narrow_the_layers_and_a_high_ratio_warns():
    text_only = EraseConfig(samples=4, batch=4, targets=("cross_attention_kv",), ratio=1e6)
    result = run(plan(erase=text_only))
    assert {layer.name.rpartition(".")[2] for layer in result.records[0].erased} == {"to_k", "to_v"}
    assert result.adapter.parameters == () and "lower erase.ratio" in result.warnings[0]


def test_measuring_can_be_stopped_between_two_passes(tmp_path):
    def stop(progress):
        if progress.micro_step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(plan(), tmp_path, on_progress=stop)
    assert run(plan(), tmp_path).adapter.parameters


def test_rows_are_tokens_of_any_batch():
    assert rows_of(nn.Linear(3, 1), torch.zeros(2, 4, 5, 3)).shape == (40, 3)
    assert rows_of(nn.Conv2d(3, 1, 1), torch.zeros(2, 3, 4, 5)).shape == (40, 3)
    assert Moments().weight == 1.0 and len(random_set(3, 1)) == 3


def test_each_layers_matrices_are_freed_before_the_next_layers(monkeypatch, problem):
    """A single matrix of width 12,288 takes 1.2 GB."""
    _, rest, concept, _ = problem
    found = concept_directions(moments(rest), moments(concept), ratio=4.0, floor=1e-3)
    assert found.vectors.untyped_storage().nbytes() == 8 * WIDTH * found.removed  # of all: 8 · 8²
    alive: list[weakref.ref[torch.Tensor]] = []

    def watched(kept, concept, **settings):
        assert not any(matrix() is not None for matrix in alive)
        found = concept_directions(kept, concept, **settings)
        alive[:] = [weakref.ref(matrix) for matrix in (kept, concept, found.root, found.inverse)]
        return found

    monkeypatch.setattr(erase_step, "concept_directions", watched)
    result = run(plan(erase=EraseConfig(samples=4, batch=4, targets=("cross_attention_kv",))))
    assert len(alive) == 4 and len(result.records[0].erased) > 1


def test_decompositions_count_as_progress_too():
    """In a wide layer they take minutes on a CPU, when the passes are long done."""
    reports = []
    run(plan(), on_progress=lambda progress: reports.append(progress))
    inside = [each for each in reports if each.micro_total]
    assert {each.message for each in inside} == {"measuring layers", "finding directions"}
    assert inside[-1].micro_step == inside[-1].micro_total
    assert all(each.micro_step <= each.micro_total for each in inside)


def test_directions_are_found_where_lapack_s_fast_way_gives_up(monkeypatch):
    """On rows that depend on each other, as those of patches at the edge do."""
    rest, concept = (torch.randn(30, 4, generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    kept = moments(rest @ orthonormal(WIDTH, 4).T)  # of rank 4
    strong = moments((concept * torch.tensor([9.0, 1, 1, 1])) @ orthonormal(WIDTH, 4).T)
    weight = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(3))
    expected = concept_directions(kept, strong, ratio=4.0, floor=1e-3)

    def fails(matrix):
        raise torch.linalg.LinAlgError("the algorithm failed to converge")

    monkeypatch.setattr(torch.linalg, "eigh", fails)
    found = concept_directions(kept, strong, ratio=4.0, floor=1e-3)
    assert found.removed == expected.removed > 0
    torch.testing.assert_close(found.strengths[4:], expected.strengths[4:])  # the rest is rounding
    torch.testing.assert_close(without(weight, found), without(weight, expected))
