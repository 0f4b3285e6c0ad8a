"""Fast methods, and several in a row: what each solves, and that the next builds on the last."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from fakes import encoded_data, random_conditioning, tiny_model
from resalign.backend.adapter.apply import AdaptedDenoiser
from resalign.backend.adapter.lora import Adapter
from resalign.backend.adapter.stack import stacked
from resalign.backend.errors import ConfigError, DivergenceError
from resalign.backend.hardening.closed_form import closed_form
from resalign.backend.hardening.projection import leading, watched
from resalign.backend.hardening.run import harden
from resalign.backend.hardening.stages import stage_plans
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import from_json, to_json
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.stages import EditConfig, ProjectionConfig, Stage
from resalign.backend.run.folder import RunFolder

CONCEPT = Concept("bad", prompts=("bad",))
USER = FineTuneConfig(name="user", learning_rate=1e-2, steps=2, batch=2)


def plan(**changes) -> HardeningPlan:
    settings = {
        "concepts": (CONCEPT,), "fine_tunes": (USER,), "adapter": AdapterConfig(rank=2),
        "outer_steps": 3, "warm_up_steps": 1, "learning_rate": 1e-2, "save_every": 1,
    }  # fmt: skip
    return HardeningPlan(**(settings | changes))


def run(hardening_plan: HardeningPlan, folder=None, **options):
    return harden(tiny_model(), hardening_plan, run_folder=folder, data=encoded_data(), **options)


def random_adapter(modules, rank, alpha, seed=0) -> Adapter:
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_A.weight"] = torch.randn(rank, 6, generator=random)
        tensors[f"{module}.lora_B.weight"] = torch.randn(5, rank, generator=random)
    return Adapter(tensors, rank, alpha)


def test_stacked_adapters_add_up():
    """ΔW of each module is the sum, at unlike ranks and strengths, where both have it or one."""
    one, two = random_adapter("ab", 2, 1.0), random_adapter("bc", 3, 6.0, seed=1)
    both = stacked(one, two)
    assert both.modules == ("a", "b", "c") and both.rank == 5 and both.scale == 1
    torch.testing.assert_close(both.delta("a"), one.delta("a"))
    torch.testing.assert_close(both.delta("b"), one.delta("b") + two.delta("b"))
    torch.testing.assert_close(both.delta("c"), two.delta("c"))


def test_an_earlier_adapter_acts_beside_theta_and_goes_with_the_frozen_model():
    """Prediction, frozen prediction, and the adapter handed on are what merging gives."""
    from resalign.backend.adapter.merge_in_place import merged

    model = tiny_model()
    inputs = torch.randn(1, 4, 8, 8), torch.tensor([500]), random_conditioning(1)
    plain = model.denoise(*inputs)
    with AdaptedDenoiser(model, AdapterConfig(rank=2, targets=("cross_attention_kv",))) as first:
        for tensor in first.theta.values():
            torch.nn.init.normal_(tensor, std=0.3)
        earlier = first.adapter()
    with merged(model, earlier):
        expected = model.denoise(*inputs)
    with AdaptedDenoiser(model, AdapterConfig(rank=3), earlier=earlier) as denoiser:
        torch.testing.assert_close(denoiser(*inputs), expected)
        with denoiser.frozen():
            assert torch.equal(denoiser(*inputs), plain)
        for tensor in denoiser.theta.values():
            torch.nn.init.normal_(tensor, std=0.1)
        both, now = denoiser.adapter(), denoiser(*inputs)
        with denoiser.fresh_lora(2, seed=1):
            torch.testing.assert_close(denoiser(*inputs), now)
    assert torch.equal(model.denoise(*inputs), plain)  # the adapter is off again, bit for bit
    with merged(model, both):
        torch.testing.assert_close(model.denoise(*inputs), now)


def test_the_closed_form_solves_its_least_squares():
    """At full rank W(I + D) is the minimum: the gradient of the objective is 0 there."""
    data, settings = encoded_data(), EditConfig(retain_weight=0.5, ridge=0.01)
    edit = closed_form((CONCEPT,), data, settings, rank=10_000, part="context")
    assert edit.lost == 0
    d = edit.u.double() @ edit.v.double()
    tokens = data.forget["bad"].conditioning["context"].double()
    goal = data.anchors["bad"]["context"].double().expand_as(tokens).flatten(0, 1)
    tokens = tokens.flatten(0, 1)
    kept = (
        torch.cat([data.retain.conditioning["context"], data.empty["context"]])
        .double()
        .flatten(0, 1)
    )
    change = d.clone().requires_grad_(True)
    square = (tokens.square().sum(1).mean() + 0.5 * kept.square().sum(1).mean()) / d.shape[0]

    def objective(d):
        concept = (tokens + tokens @ d.T - goal).square().sum(1).mean()
        rest = 0.5 * (kept @ d.T).square().sum(1).mean()
        return concept + rest + 0.01 * square * d.square().sum()

    value = objective(change)
    (gradient,) = torch.autograd.grad(value, change)
    start = torch.zeros_like(d).requires_grad_(True)
    (at_start,) = torch.autograd.grad(objective(start), start)
    assert gradient.norm() < 1e-5 * at_start.norm()


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_the_edit_of_several_concepts_is_their_weighted_least_squares(strength):
    """A run adds W D to each W, with D from rows that are solved for directly."""
    concepts = (replace(CONCEPT, weight=3.0), Concept("worse", prompts=("worse",), weight=1.0))
    settings = EditConfig(retain_weight=0.5, ridge=0.02, strength=strength)
    own = plan(method="closed_form", concepts=concepts, edit=settings,
               adapter=AdapterConfig(rank=16, alpha=4))  # fmt: skip
    model, data = tiny_model(), encoded_data(("bad", "worse"))
    result = harden(model, own, data=data)

    given, wanted = [], []
    for concept in concepts:
        tokens = data.forget[concept.name].conditioning["context"].double()
        goals = data.anchors[concept.name]["context"].double().expand_as(tokens)
        share = (concept.weight / 4 / (len(tokens) * tokens.shape[1])) ** 0.5
        given.append(share * tokens.flatten(0, 1))
        wanted.append(share * (goals - tokens).flatten(0, 1))
    kept = torch.cat([data.retain.conditioning["context"], data.empty["context"]])
    kept = kept.double().flatten(0, 1)
    given.append((0.5 / len(kept)) ** 0.5 * kept)
    ridge = 0.02 * sum(rows.square().sum() for rows in given) / 16
    given.append(ridge.sqrt() * torch.eye(16, dtype=torch.float64))
    wanted += [torch.zeros_like(rows) for rows in given[2:]]
    d = strength * torch.linalg.lstsq(torch.cat(given), torch.cat(wanted)).solution.T

    for name in result.adapter.modules:
        weight = model.denoiser.get_submodule(name).weight
        torch.testing.assert_close(
            result.adapter.delta(name), (weight.double() @ d).float(), rtol=1e-3, atol=1e-5
        )
    (record,) = result.records
    assert (record.resilience_weight, record.retain_weight) == (0, 0.5)
    assert (record.learning_rate, record.gradient_norm, record.simulations) == (0, 0, ())
    assert record.harm < 0 < record.retain and result.warnings == ()
    assert 0 < record.seconds < 60


@pytest.mark.parametrize("part", ["harm", "retain"])
def test_an_edit_after_which_a_loss_is_not_finite_is_an_error(part):
    data = encoded_data()
    broken = data.retain if part == "retain" else data.forget["bad"]
    (bucket,) = broken.buckets
    broken = replace(broken, buckets=(replace(bucket, latents=bucket.latents * float("nan")),))
    changes = {"retain": broken} if part == "retain" else {"forget": {"bad": broken}}
    with pytest.raises(DivergenceError, match=f"^outer step 1: {part} is not finite"):
        harden(tiny_model(), plan(method="closed_form"), data=replace(data, **changes))


def test_a_rank_too_small_for_the_edit_is_a_warning():
    result = run(plan(method="closed_form", adapter=AdapterConfig(rank=1)))
    lost = closed_form((CONCEPT,), encoded_data(), EditConfig(), rank=1, part="context").lost
    assert lost > 0.05
    assert result.warnings == (f"rank 1 holds {1 - lost:.0%} of the edit: raise adapter.rank",)


def test_tokens_that_are_at_their_goal_already_are_left_alone():
    """No edit, of which nothing is lost."""
    data = encoded_data()
    same = replace(data, anchors={"bad": data.forget["bad"].conditioning[:1]})
    one = replace(data.forget["bad"], conditioning=data.forget["bad"].conditioning[:1])
    edit = closed_form(
        (CONCEPT,), replace(same, forget={"bad": one}), EditConfig(), rank=2, part="context"
    )
    assert edit.lost == 0 and not (edit.u @ edit.v).any()


def test_what_the_rank_leaves_out_is_told():
    """Cut to one rank the edit loses energy; the best cut loses less than a worse one would."""
    data = encoded_data()
    whole = closed_form((CONCEPT,), data, EditConfig(), rank=10_000, part="context")
    cut = closed_form((CONCEPT,), data, EditConfig(), rank=1, part="context")
    full, one = whole.u @ whole.v, cut.u @ cut.v
    assert 0 < cut.lost < 1
    assert (full - one).norm() ** 2 / full.norm() ** 2 == pytest.approx(cut.lost, rel=1e-3)


def test_the_edit_moves_a_concepts_keys_and_values_towards_the_anchors():
    """K of a concept's token comes nearer to K of the anchor's, and a retained token's stays."""
    result = run(plan(method="closed_form", adapter=AdapterConfig(rank=16, alpha=4)))
    assert len(result.records) == 1 and result.plan.outer_steps == 1
    model, data = tiny_model(), encoded_data()
    module = result.adapter.modules[0]
    assert all(".attn2.to_" in name for name in result.adapter.modules)
    weight = model.denoiser.get_submodule(module).weight
    changed = weight + result.adapter.delta(module)
    tokens = data.forget["bad"].conditioning["context"]
    goal = data.anchors["bad"]["context"].expand_as(tokens)
    before = (tokens - goal) @ weight.T
    after = tokens @ changed.T - goal @ weight.T
    assert after.norm() < 0.7 * before.norm()
    kept = data.retain.conditioning["context"]
    assert (kept @ (changed - weight).T).norm() < 0.5 * (kept @ weight.T).norm()


def test_leading_directions_hold_the_energy_asked_for():
    """A diagonal matrix gives its largest entries, as few as do."""
    basis = leading(torch.diag(torch.tensor([1.0, 5.0, 3.0, 1.0])), 0.75)
    torch.testing.assert_close(basis.abs(), torch.eye(4)[:, [1, 2]])
    assert leading(torch.eye(4), 1.0).shape == (4, 4)
    small = leading(torch.diag(torch.tensor([0.01, 0.05, 0.03, 0.01])), 0.75)
    torch.testing.assert_close(small.abs(), basis.abs())
    assert leading(torch.eye(4), 0.5).shape == (4, 2)  # no more than are needed


def test_projected_layers_do_not_feel_what_must_stay():
    """After projecting, A x = 0 for inputs that were watched, not for others."""
    layer = torch.nn.Linear(6, 5)
    seen = torch.randn(2, 6)
    projection = watched({"layer": layer}, [lambda: layer(seen)], energy=1 - 1e-6)
    theta = {"layer.lora_A.weight": torch.randn(3, 6)}
    other = torch.randn(1, 6)
    projection.apply(theta)
    assert (theta["layer.lora_A.weight"] @ seen.T).abs().max() < 1e-5
    assert (theta["layer.lora_A.weight"] @ other.T).abs().max() > 1e-3
    assert projection.share == pytest.approx(2 / 6)


def test_all_passes_count_and_layers_with_one_input_share_its_directions():
    """Two passes of one input each: two directions, of the smallest number that holds them."""
    layers = {name: torch.nn.Linear(6, 5) for name in ("q", "k", "other")}
    first, second, apart = torch.randn(3, 1, 4, 6).unbind()
    apart[:, :] = apart[:, :1]  # one direction

    def once(seen):
        return lambda: [layers["q"](seen), layers["k"](seen), layers["other"](apart)]

    found = watched(layers, [once(first[:, :1]), once(second[:, :1])], energy=1 - 1e-6).bases
    assert found["q"] is found["k"] and found["q"].shape == (6, 2)
    assert found["other"].shape == (6, 1)
    seen = torch.cat([first[0, :1], second[0, :1]])
    torch.testing.assert_close(seen @ found["q"] @ found["q"].T, seen, rtol=1e-4, atol=1e-5)
    assert not any(layer._forward_pre_hooks for layer in layers.values())


def test_inputs_weigh_by_their_square():
    """Σ xxᵀ of (3, 0) and (0, 1) is 9 and 1: nine tenths of it is the first's."""
    layer = torch.nn.Linear(2, 1)
    passes = [lambda: layer(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))]
    basis = watched({"layer": layer}, passes, energy=0.89).bases["layer"]
    torch.testing.assert_close(basis.abs(), torch.tensor([[1.0], [0.0]]))
    assert watched({"layer": layer}, passes, energy=0.91).bases["layer"].shape == (2, 2)


@pytest.mark.parametrize(("samples", "passes"), [(4, 2), (5, 3)])
def test_as_many_samples_are_looked_at_as_the_plan_says(samples, passes):
    """In batches of 2; one pass more without gradients is the step's own, for L_retain."""
    model, sizes = tiny_model(), []
    model.denoiser.register_forward_pre_hook(
        lambda _, given: sizes.append(len(given[0])) if not torch.is_grad_enabled() else None
    )
    own = plan(method="project", projection=ProjectionConfig(samples=samples), outer_steps=1,
               retain_batch=2)  # fmt: skip
    harden(model, own, data=encoded_data())
    assert sizes == [2] * (passes + 1)


def test_convolutions_are_refused_by_name():
    layer = torch.nn.Conv2d(4, 4, 3)
    with pytest.raises(ConfigError, match=r"block\.conv1 is a convolution"):
        watched({"block.conv1": layer}, [], energy=0.9)


def test_a_projected_run_stays_out_of_the_retain_subspace():
    """The run's own A is orthogonal to what it was kept out of, at its end."""
    own = plan(method="project", projection=ProjectionConfig(energy=0.5, samples=8))
    result, model = run(own), tiny_model()
    from resalign.backend.bilevel.objective import Objective
    from resalign.backend.hardening.feed import Feed
    from resalign.backend.hardening.projection import retain_projection

    with AdaptedDenoiser(model, own.adapter) as denoiser:
        objective = Objective(denoiser, model.process, own.harm)
        feed = Feed(own, encoded_data(), objective, model.process, model.device)
        found = retain_projection(denoiser, feed, own.projection)
    assert result.records[-1].resilience_weight == 0  # nobody is simulated
    for module, basis in found.bases.items():
        rows = result.adapter.tensors[f"{module}.lora_A.weight"]
        assert (rows @ basis).norm() < 1e-4 * rows.norm()


def test_a_projected_run_is_kept_out_from_its_first_step_on():
    """Kept out of all that its layers are given, θ has no gradient even at its beginning."""
    shape = AdapterConfig(rank=2, targets=("feed_forward",))
    free = run(plan(adapter=shape, fine_tunes=(), outer_steps=1))
    kept = run(plan(method="project", adapter=shape, projection=ProjectionConfig(energy=1.0),
                    outer_steps=1))  # fmt: skip
    assert kept.records[0].gradient_norm < 1e-3 * free.records[0].gradient_norm


@pytest.mark.slow
def test_redirecting_trains_towards_the_anchor_without_simulated_users():
    """The harm loss is the distance to the anchor's prediction: never negative, and it falls."""
    result = run(plan(method="redirect", outer_steps=30, learning_rate=2e-2))
    losses = [record.harm for record in result.records]
    assert min(losses) >= 0 and sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert all(not record.simulations for record in result.records)


def test_stages_follow_one_another_in_folders_of_their_own(tmp_path):
    """Each starts from the one before; the result has all ranks; the run's folder tells of each."""
    before = (Stage(method="closed_form", rank=3), Stage(method="project", steps=2))
    told = []
    result = run(plan(before=before), tmp_path, on_progress=lambda p: told.append(p.stage))
    assert result.adapter.rank == 3 + 2 + 2
    assert [path.name for path in sorted((tmp_path / "stages").iterdir())] == [
        "1-closed_form", "2-project",
    ]  # fmt: skip
    assert list(dict.fromkeys(told))[-3:] == ["stage 1-closed_form", "stage 2-project", "harden"]
    first, _ = RunFolder.open(tmp_path / "stages/1-closed_form", read_only=True).load_adapter()
    second, _ = RunFolder.open(tmp_path / "stages/2-project", read_only=True).load_adapter()
    kept = {name: tensor[:3] for name, tensor in second.tensors.items() if ".lora_A." in name}
    assert all(torch.equal(tensor, kept[name]) for name, tensor in first.tensors.items()
               if ".lora_A." in name)  # fmt: skip
    stored, _ = RunFolder.open(tmp_path, read_only=True).load_adapter()
    assert all(torch.equal(t, result.adapter.tensors[n]) for n, t in stored.tensors.items())


@pytest.mark.slow
def test_a_run_stopped_in_any_stage_ends_in_the_same_bytes(tmp_path):
    """Stopped in the first, the second and the last stage, and begun again each time."""
    own = plan(before=(Stage(method="redirect", steps=3), Stage(method="project", steps=3)))
    expected = run(own)
    for stage in ("stage 1-redirect", "stage 2-project", "harden"):

        def stop(progress, stage=stage):
            if progress.stage == stage and progress.step == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(own, tmp_path, on_progress=stop)
    result = run(own, tmp_path)
    assert all(
        torch.equal(tensor, expected.adapter.tensors[name])
        for name, tensor in result.adapter.tensors.items()
    )


def test_each_stage_has_its_own_seed_and_the_plans_other_fields():
    own = plan(before=(Stage(method="redirect", steps=7, rank=9),), seed=5)
    ((name, stage),) = stage_plans(own)
    assert (name, stage.method, stage.outer_steps, stage.adapter.rank) == (
        "1-redirect", "redirect", 7, 9,
    )  # fmt: skip
    assert stage.seed != own.seed and stage.before == () and stage.concepts == own.concepts


def test_stages_survive_json_and_unknown_methods_are_refused():
    own = plan(before=(Stage(method="closed_form"),), edit=EditConfig(ridge=0.1))
    assert from_json(HardeningPlan, to_json(own)) == own
    with pytest.raises(ConfigError, match="closed_form"):
        replace(own, method="magic")
    with pytest.raises(ConfigError, match="ridge"):
        EditConfig(ridge=0)


def test_only_the_tables_of_methods_tell_them_apart(package_folder):
    """Elsewhere a method is asked what it does, not what it is called."""
    asks = re.compile(
        r"""(?:plan|stage|self)\.method\s*(?:==|!=|in\b|not in\b)|["'](?:project|closed_form)["']"""
    )
    found = {
        path.relative_to(package_folder).as_posix()
        for folder in ("backend", "nodes", "scripts")
        for path in (package_folder / folder).rglob("*.py")
        if asks.search(path.read_text(encoding="utf-8"))
    }
    values = {name for name in found if name.startswith("backend/plan/")}
    assert values and found - values == {"backend/hardening/methods.py"}


def test_the_warnings_of_stages_reach_the_result(tmp_path):
    """Named, once, and again when a finished stage is read back."""
    edit = plan(before=(Stage(method="closed_form", rank=1),))
    first = run(edit, tmp_path / "run")
    (warning,) = first.warnings
    assert re.fullmatch(
        r"stage 1-closed_form: rank 1 holds \d+% of the edit: raise adapter.rank", warning
    )
    assert run(edit, tmp_path / "run").warnings == first.warnings
