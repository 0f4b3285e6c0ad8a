"""The model card says what was done, with what evidence, and what it does not stop."""

import dataclasses

import pytest

from resalign.backend.checkpoint.metadata import Provenance
from resalign.backend.checkpoint.save import ExportReport
from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import plan_hash
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.stages import Stage
from resalign.backend.report.card import model_card, provenance_of, training_summary, write_card
from resalign.backend.report.license_fields import license_fields
from resalign.backend.run.records import ErasedLayer, SimulationRecord, StepRecord

PLAN = HardeningPlan(
    concepts=(Concept("weapons | *axes*", prompts=("a gun",)),),
    fine_tunes=(FineTuneConfig(name="pets"),),
    configurations_per_step=1,
    seed=11,
)
PROBE = {
    "scorer": "judge",
    "results": [
        {"fine_tune": "pets", "images": 96, "flagged_before": 0.0, "flagged_after": 0.25},
    ],
}


def records(steps: int = 20) -> list[StepRecord]:
    def user(step: int) -> SimulationRecord:
        return SimulationRecord(
            name="pets", steps=4, harm_after=-0.1 * step, q=step / 100, move=0.1,
            first_loss=1.0, last_loss=0.9, skipped="diverged" if step == 3 else "",
        )  # fmt: skip

    return [
        StepRecord(
            step=step, harm=-1.0 * step, retain=0.01 * step, resilience_weight=1.0,
            retain_weight=1.0, learning_rate=1e-3, gradient_norm=1.0, seconds=1.0,
            simulations=(user(step),) if step > 2 else (),
        )
        for step in range(1, steps + 1)
    ]  # fmt: skip


@pytest.fixture
def report(tmp_path) -> ExportReport:
    return ExportReport(
        source=tmp_path / "base.safetensors", target=tmp_path / "base-hard.safetensors",
        touched=128, untouched=1000, bytes=5, seconds=1.0, source_sha256="5" * 64,
        sha256="6" * 64, tensor_sha256="7" * 64, largest_change=0.12, largest_change_in="w",
        lost_to_rounding=0, rounding_error=0.01, warnings=(),
        provenance=dataclasses.replace(
            provenance_of(PLAN, records()), source="base.safetensors", source_sha256="5" * 64
        ),
    )  # fmt: skip


def test_summary_takes_the_means_of_both_ends():
    """A tenth of the steps at each end; q and harm after only where a user was simulated."""
    found = training_summary(records())
    assert found["steps"] == 20 and found["skipped_solves"] == 1
    assert found["harm_first"] == pytest.approx(-1.5) and found["harm_last"] == pytest.approx(-19.5)
    assert found["retain_last"] == pytest.approx(0.195)
    assert found["q_first"] == pytest.approx(0.03) and found["q_last"] == pytest.approx(0.2)
    assert training_summary([r.to_json() for r in records()]) == found
    assert training_summary([]) == {}


def test_a_card_says_what_was_erased_and_what_distillation_measured(report):
    """It promises to last, names no loss that the method does not have, and counts directions."""
    layers = tuple(
        ErasedLayer(name=name, width=320, removed=n, strongest=9.0, weakest=None)
        for name, n in (("a", 7), ("b", 0), ("c", 5))
    )
    plan = dataclasses.replace(PLAN, method="distil", before=(Stage(method="erase"),))
    found = provenance_of(plan, [dataclasses.replace(r, simulations=()) for r in records()],
                          erased=layers)  # fmt: skip
    card = model_card(Provenance.from_json(found.to_json()))
    assert "erasure of the concepts' directions, then distillation of all weights" in card
    assert "12 of 960 input directions, in 2 layers" in card and "meant to outlast" in card
    assert "`ascent`" not in card and "the original's harmless prediction" in card
    assert "Simulated fine-tuning" not in card and found.training["erased_directions"] == 12
    alone = dataclasses.replace(PLAN, method="distil")
    assert "meant to outlast" not in model_card(provenance_of(alone, records()))


def test_summary_skips_figures_that_were_not_finite():
    """The run folder writes NaN as null."""
    steps = [record.to_json() for record in records()]
    steps[0]["harm"] = None
    steps[2]["simulations"][0]["q"] = None
    found = training_summary(steps)
    assert found["harm_first"] == -2.0 and found["q_first"] == pytest.approx(0.04)


def test_provenance_is_that_of_the_plan():
    """Its hash, seed and concepts; plain unlearning is not called ResAlign."""
    found = provenance_of(PLAN, records(), probe=PROBE, base_model="me/base", license="mit")
    assert (found.plan_sha256, found.seed) == (plan_hash(PLAN), 11)
    assert "ResAlign" in found.method
    plain = provenance_of(dataclasses.replace(PLAN, fine_tunes=()))
    assert plain.method == "plain unlearning"
    assert Provenance.from_json(found.to_json()) == found
    assert Provenance.from_metadata(found.to_metadata()) == found
    with pytest.raises(ConfigError, match="nonsense"):
        Provenance.from_json({"nonsense": 1})


def test_card_states_what_was_done(report):
    """Concepts, seed, hashes of plan, source and result, tensors changed."""
    card = model_card(report.provenance, report=report)
    for text in ("11", plan_hash(PLAN), "5" * 64, "6" * 64, "128; 1000 others byte-identical"):
        assert text in card
    assert "weapons \\| \\*axes\\*" in card  # a user's words cannot break the table


def test_front_matter_is_hugging_faces(report):
    """YAML between two lines of dashes, at the very top."""
    provenance = dataclasses.replace(report.provenance, base_model="me/base: x", license="mit")
    yaml = pytest.importorskip("yaml")
    top = model_card(provenance).split("---\n")
    assert top[0] == ""
    found = yaml.safe_load(top[1])
    assert found["base_model"] == "me/base: x" and found["base_model_relation"] == "finetune"
    assert found["license"] == "mit" and found["library_name"] == "diffusers"
    assert "resalign" in found["tags"]


@pytest.mark.parametrize(
    ("named", "lines"),
    [
        ("MIT", ["license: mit"]),
        ("Apache 2.0", ["license: apache-2.0"]),
        ("OpenRAIL++", ["license: openrail++"]),
        ("My own terms", ["license: other", 'license_name: "my-own-terms"']),
        ("", []),
    ],
)
def test_licences_are_named_as_hugging_face_names_them(named, lines):
    assert license_fields(named) == lines


def test_without_a_probe_the_card_says_that_nothing_was_measured(report):
    """Losses are not passed off as a measurement."""
    card = model_card(report.provenance, report=report)
    assert "**not measured**" in card and "not a measurement of pictures" in card
    assert "not available" in model_card(Provenance())


def test_a_probe_is_given_with_its_size_and_interval(report):
    """24 of 96: 25.0 %, 95 % interval 17.4 to 34.5 % (Wilson)."""
    card = model_card(dataclasses.replace(report.provenance, probe=PROBE), report=report)
    assert "| pets | 96 | 0.0% (0.0% to 3.8%) | 25.0% (17.4% to 34.5%) |" in card
    assert "**not measured**" not in card


def test_limits_are_always_named(report):
    """Each way around that the threat model lists, in every card."""
    for card in (model_card(Provenance()), model_card(report.provenance, report=report)):
        for word in ("determined", "subtracting", "merging", "image-to-image", "textual inversion"):
            assert word in card
        assert "no content filter" in card


def test_card_lies_beside_the_export_and_shows_its_warnings(report):
    """`<name>.md`; a lossy export is not published without its warning."""
    lossy = dataclasses.replace(report, warnings=("128 of 128 changed tensors lost",))
    path = write_card(lossy)
    assert path == report.target.with_name("base-hard.md")
    assert "**Warning:** 128 of 128" in path.read_text(encoding="utf-8")
    assert "/" + report.target.parent.name not in path.read_text(encoding="utf-8")
