"""Writes a model card in Markdown beside an export, from the run's own record.

The card states what was done, the evidence, and the limits of the protection; a figure that was not
measured reads `not measured`. The front matter follows Hugging Face
(https://huggingface.co/docs/hub/model-cards). A card has no pictures, which may show the concept.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..checkpoint.metadata import Provenance
from ..checkpoint.save import ExportReport
from ..families import Family, all_families, find_family
from ..hardening.stages import stage_plans
from ..plan.concept import shown_name
from ..plan.file import plan_hash
from ..plan.hardening import HardeningPlan
from ..plan.methods import (
    DISTILLATION,
    FACTS,
    TEST_RUN,
    method_in_words,
    simulates_users,
    steps_of_test_run,
)
from ..run.records import ErasedLayer, StepRecord
from ..statistics.intervals import wilson
from .license_fields import license_fields
from .markdown_text import code_text, escape


def provenance_of(
    plan: HardeningPlan,
    records: Sequence[StepRecord | Mapping[str, Any]] = (),
    *,
    probe: Mapping[str, Any] | None = None,
    base_model: str = "",
    license: str = "",  # noqa: A002
    erased: Sequence[ErasedLayer] = (),
) -> Provenance:
    """Provenance of an export: how its adapter was made.

    records: of the outer steps, as values or as read from the run folder.
    probe: {"scorer": name, "results": [{"fine_tune", "images", "flagged_before",
    "flagged_after"}, ...]}, rates from 0 to 1; None where nothing was measured.
    erased: the layers of an erasure, of whichever stage.
    """
    plain = not simulates_users(plan)
    return Provenance(
        method=method_words(plan),
        concepts=tuple(concept.name for concept in plan.concepts),
        plan_sha256=plan_hash(plan),
        seed=plan.seed,
        base_model=base_model,
        license=license,
        training={
            "harm_loss": FACTS[plan.method].loss or plan.harm.loss,
            "simulate": "none" if plain else plan.simulate,
            "simulated_users": len(plan.fine_tunes),
            "solver": plan.solver.method,
            **training_summary(records),
            **_erased(erased),
        },
        probe=probe or {},
    )


def _erased(layers: Sequence[ErasedLayer]) -> dict[str, Any]:
    """Sum an erasure up; nothing where there was none."""
    if not layers:
        return {}
    return {
        "erased_directions": sum(layer.removed for layer in layers),
        "erased_of": sum(layer.width for layer in layers),
        "erased_layers": sum(layer.removed > 0 for layer in layers),
    }


def method_words(plan: HardeningPlan) -> str:
    """Methods of a plan's stages in words: `closed-form edit (UCE-like), then ResAlign (...)`."""
    stages = [*(own for _, own in stage_plans(plan)), plan]
    return ", then ".join(method_in_words(stage) for stage in stages)


def training_summary(records: Sequence[StepRecord | Mapping[str, Any]]) -> dict[str, Any]:
    """First and last losses of a run: means over a tenth of its steps at each end.

    q and harm_after are those of the steps that simulated a user. A figure that was
    never recorded is absent.
    """
    steps = [record.to_json() if isinstance(record, StepRecord) else record for record in records]
    figures: dict[str, Any] = {"steps": len(steps)} if steps else {}
    for name in ("harm", "harm_after", "q", "retain"):
        series = [value for step in steps if (value := _figure(step, name)) is not None]
        if series:
            end = max(1, len(series) // 10)
            figures[f"{name}_first"] = _rounded(_mean(series[:end]))
            figures[f"{name}_last"] = _rounded(_mean(series[-end:]))
    skipped = sum(bool(user.get("skipped")) for step in steps for user in step["simulations"])
    if skipped:
        figures["skipped_solves"] = skipped
    return figures


def model_card(
    provenance: Provenance | Mapping[str, Any],
    *,
    report: ExportReport | None = None,
    title: str = "",
) -> str:
    """Build the card. provenance: the value, or its JSON. report: adds the export's own figures."""
    if not isinstance(provenance, Provenance):
        provenance = Provenance.from_json(provenance)
    if report is not None and not provenance.source_sha256:
        provenance = report.provenance
    title = title or (_name(report.target) if report else "Hardened checkpoint")
    parts = [
        _front_matter(provenance, report),
        f"# {escape(title)}",
        _opening(provenance),
        "## What was done",
        _table(done_rows(provenance, report)),
        "## Evidence",
        _training(provenance.training),
        _probe(provenance.probe),
        "## What this does not protect against",
        LIMITS,
    ]
    if terms := _family_of(report).metadata.terms:
        parts += ["## Licence", terms]
    if report and report.warnings:
        parts[5:5] = ["\n".join(f"- **Warning:** {escape(warning)}" for warning in report.warnings)]
    return "\n\n".join(parts) + "\n"


def card_path(target: Path) -> Path:
    """Return the path of the card of an export."""
    return target.with_name(f"{_name(target)}.md")


def curves_path(target: Path) -> Path:
    """Return the path of the curves of an export."""
    return target.with_name(f"{_name(target)}-curves.png")


def write_card(report: ExportReport, provenance: Provenance | None = None) -> Path:
    """Write `<name>.md` beside the export; return its path."""
    path = card_path(report.target)
    card = model_card(provenance or report.provenance, report=report)
    path.write_text(card, encoding="utf-8", newline="\n")
    return path


def _front_matter(provenance: Provenance, report: ExportReport | None) -> str:
    family = _family_of(report)
    stated = provenance.license
    if not stated and family.metadata.terms:  # not to be left out of a card
        stated = family.metadata.notices.get("modelspec.license", "")
    lines = [*license_fields(stated), *common_fields(provenance.base_model, family.metadata.tag)]
    return "\n".join(["---", *lines, "---"])


def _family_of(report: ExportReport | None) -> Family:
    return find_family(report.family) if report and report.family else all_families()[0]


def common_fields(base_model: str, family_tag: str) -> list[str]:
    """Return the lines of the front matter that every card has, for Hugging Face to read."""
    tags = ["text-to-image", family_tag, "resalign", "concept-removal", "safety"]
    return [
        *([f"base_model: {json.dumps(base_model)}"] if base_model else []),
        "base_model_relation: finetune",
        "library_name: diffusers",
        "pipeline_tag: text-to-image",
        "tags:",
        *(f"- {tag}" for tag in tags if tag),
    ]


def _opening(provenance: Provenance) -> str:
    concepts = (
        ", ".join(escape(shown_name(concept)) for concept in provenance.concepts) or "not recorded"
    )
    lasting = any(facts.words in provenance.method for facts in FACTS.values() if facts.lasts)
    aim = "removed, in a way meant to outlast later fine-tuning" if lasting else "removed"
    source = code_text(provenance.source) or "its source"
    said = f"A copy of `{source}` with these concepts {aim}: {concepts}."
    if steps_of_test_run(provenance.training):
        said = f"**This checkpoint comes from {TEST_RUN}.**\n\n{said}"
    return said


def done_rows(provenance: Provenance, report: ExportReport | None = None) -> list[tuple[str, str]]:
    """Return what was done to a checkpoint, as rows of a table; cells are Markdown."""
    training = provenance.training
    rows = [("Method", escape(provenance.method))]
    if training.get("simulate", "none") != "none":
        count, way = training["simulated_users"], training["simulate"]
        users = f"{count} configurations, simulated as `{way}`"
        rows += [("Simulated fine-tuning", users), ("Linear solve", f"`{training['solver']}`")]
    if "harm_loss" in training:
        rows += [("Loss on the concepts", f"`{training['harm_loss']}`")]
    if "erased_directions" in training:
        count, of = training["erased_directions"], training["erased_of"]
        text = f"{count} of {of} input directions, in {training['erased_layers']} layers"
        rows += [("Erased", text)]
    rows += [
        ("Outer steps", _said(training.get("steps"))),
        ("Seed", _said(provenance.seed)),
        ("Plan (SHA-256)", _hash(provenance.plan_sha256)),
        ("Source (SHA-256)", _hash(provenance.source_sha256)),
    ]
    if report:
        rows += [
            *([("This file (SHA-256)", _hash(report.sha256))] if report.sha256 else []),
            ("This file, tensors only", _hash(report.tensor_sha256)),
            ("Tensors changed", f"{report.touched}; {report.untouched} others byte-identical"),
            ("Largest relative change", f"{report.largest_change:.3g}"),
            ("Update lost to rounding", f"{report.rounding_error:.2%} (by norm)"),
        ]
    if provenance.copies:
        copies = (
            f"`{code_text(str(copy['where']))}` {escape(str(copy['fate']))}"
            + " unopened" * (copy["fate"] == "kept" and not copy["tensors"])
            for copy in provenance.copies
        )
        rows += [("Further copies of the denoiser", ", ".join(copies))]
    versions = ", ".join(f"{name} {version}" for name, version in provenance.versions.items())
    return [*rows, ("Written with", versions or "not recorded")]


def _training(training: Mapping[str, Any]) -> str:
    if "harm_first" not in training:
        return "Training record: not available."
    names = {
        "harm": "L_harm(θ), loss on the concepts (lower: less of them)",
        "harm_after": "L_harm(θ*), the same after simulated fine-tuning",
        "q": "q = L_harm(θ*) / L_harm(θ); 1: nothing came back",
        "retain": "L_retain(θ), distance to the original elsewhere",
    }
    if training.get("harm_loss") == DISTILLATION:
        names |= _DISTILLED
    rows = [
        f"| {meaning} | {training[name + '_first']:.4g} | {training[name + '_last']:.4g} |"
        for name, meaning in names.items()
        if f"{name}_first" in training
    ]
    text = "\n".join(["| during hardening | first | last |", "| --- | --- | --- |", *rows])
    if training.get("skipped_solves"):
        text += (
            f"\n\n{training['skipped_solves']} linear solves failed and were replaced by the "
            "first-order gradient."
        )
    return text + "\n\nThese are losses of the training itself, not a measurement of pictures."


def _probe(probe: Mapping[str, Any]) -> str:
    results: Iterable[Mapping[str, Any]] = probe.get("results", ())
    rows = [
        f"| {escape(str(each['fine_tune']))} | {each['images']} "
        f"| {_rate(each['flagged_before'], each['images'])} "
        f"| {_rate(each['flagged_after'], each['images'])} |"
        for each in results
    ]
    if not rows:
        return (
            "Share of unsafe pictures before and after real fine-tuning: **not measured**. "
            "The losses above do not stand in for it."
        )
    verdict, headline = (escape(str(probe.get(name, ""))) for name in ("verdict", "headline"))
    scorer = code_text(str(probe.get("scorer", "not recorded")))
    return "\n".join([
        *([f"**{verdict}**", ""] if verdict else []),
        *([headline, ""] if headline else []),
        f"Share of pictures flagged by `{scorer}`, with 95 % intervals (Wilson):",
        "",
        "| attack | pictures (n) | before | after |",
        "| --- | --- | --- | --- |",
        *rows,
    ])  # fmt: skip


_DISTILLED = {  # what these figures are where all weights are trained towards the original
    "harm": "distance to the original's harmless prediction, asked for the concepts",
    "retain": "distance to the original elsewhere",
}
LIMITS = """\
Ordinary fine-tuning (LoRA, full, DreamBooth) is resisted to the extent measured above and no
further; data, rates and lengths that were not measured may bring the concepts back. Not stopped:

- a determined attacker: long or targeted fine-tuning on pictures of the concepts;
- subtracting the hardening LoRA where it has been published, or merging with the original model;
- image-to-image and inpainting from a picture that already shows the concept;
- textual inversion, and prompts searched for by optimisation;
- concepts that are not on the list, and neighbours of those that are.

This file contains no content filter. Keep one where pictures are shown to people."""


def _name(target: Path) -> str:
    return target.stem if target.suffix == ".safetensors" else target.name


def _table(rows: Iterable[tuple[str, str]]) -> str:
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows)])


def _figure(step: Mapping[str, Any], name: str) -> float | None:
    if name in ("harm", "retain"):
        return step[name]
    values = [user[name] for user in step["simulations"] if user[name] is not None]
    return _mean(values) if values else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _rate(rate: float, images: int) -> str:
    low, high = wilson(rate * images, images)
    return f"{rate:.1%} ({low:.1%} to {high:.1%})"


def _hash(value: str) -> str:
    return f"`{value}`" if value else "not recorded"


def _said(value: Any) -> str:
    return "not recorded" if value is None else str(value)
