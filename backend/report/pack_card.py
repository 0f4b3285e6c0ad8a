"""Writes the model card of a pack: `README.md`, which Hugging Face shows and reads."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..checkpoint.metadata import Provenance
from ..plan.concept import shown_names
from ..plan.methods import TEST_RUN
from ..plan.probe import too_short
from ..probe.kept_picture import BLURRED
from ..probe.recorded import paths_of
from ..probe.results import ModelInfo
from .card import LIMITS, done_rows
from .law_notes import law_markdown
from .licence_terms import licence_terms
from .limits import ABUSE, limits
from .markdown_text import code_text, escape, table
from .pack_evidence import evidence, measure_words
from .pack_metadata import front_matter
from .pack_pictures import PackedPictures
from .pack_results import DIGESTS
from .pack_sign import SIGNATURE
from .pack_status import NOT_GIVEN, status_block
from .plan_words import plan_rows
from .view import View
from .words import series

_UNKNOWN_LICENSE = (
    "The licence of the base model is unknown: neither the files nor the publisher of this pack "
    "stated it. Find it before you use or publish this checkpoint."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """Facts that a card states besides the report's figures.

    model: the one that is published. license, base_model: of the base; "" if unknown.
    provenance: from the header of the published file. released: its `file`, `sha256` and whether it
    was `measured`; None if it was not given. pictures: those in the pack. test_run: it made the
    model. signed: with the publisher's key.
    """

    model: str
    license: str = ""
    base_model: str = ""
    provenance: Provenance | None = None
    released: Mapping[str, Any] | None = None
    pictures: PackedPictures
    plan_sha256: str = ""
    test_run: bool = False
    signed: bool = False


def pack_card(view: View, facts: CardFacts) -> str:
    info = next(each for each in view.models if each.name == facts.model)
    parts = [
        front_matter(view, facts.model, facts.license, facts.base_model),
        f"# {escape(facts.model)}",
        *_warnings(view, facts),
        status_block(
            signed=facts.signed,
            released=facts.released,
            license=facts.license,
            seeds=len(view.result.plan.seeds),
        ),
        f"Concepts measured: **{escape(series(shown_names(view.result.plan.concepts)))}**.",
        f"**{ABUSE}**",
        "## Evidence",
        measure_words(view),
        table(["", ""], evidence(view, facts.model)),
        escape(model_sentence(view, facts.model)),
        "Every attack, step and interval is in `report.html` and `report.md`; `results.json` has "
        "the figures for programs (`results.schema.json` describes it), `report.json` the score of "
        "every picture.",
    ]
    if facts.provenance:
        parts += ["## What was done", table(["", ""], done_rows(facts.provenance))]
    parts += [
        "## What was not tested",
        "\n".join(
            f"- {escape(text)}"
            for text in [*limits(view.result, kind=view.kind, scorer=view.scorer), ABUSE]
        ),
        "## What this does not protect against",
        LIMITS,
        "## Checkpoints",
        table(["name", "file", "SHA-256", "method"], map(_checkpoint, view.models)),
        "Measured by the probe. The first is the original.",
        *_released(facts),
        "## Plan, seeds and versions",
        table(["", ""], [(key, escape(text)) for key, text in plan_rows(view.result)]),
        f"The exact plan is `probe.json` (SHA-256 `{facts.plan_sha256}`).",
        "## Replay",
        _replay(view, facts, info),
        "## Licence",
        _licence(view, facts),
        "## Law that may concern a release",
        law_markdown(),
        f"**{ABUSE}**",
        "## This pack",
        _pack(facts),
    ]
    return "\n\n".join(parts) + "\n"


def _warnings(view: View, facts: CardFacts) -> list[str]:
    """Return what a reader must know before any figure."""
    said, missing = [], view.summary.missing
    if facts.test_run:
        said.append(f"**This model comes from {TEST_RUN}.**")
    short = too_short(view.result.plan)
    if view.result.plan.test_run:
        said.append(f"**{short[:1].upper()}{short[1:]}.**")
    if not view.result.complete:
        what = f": {missing} evaluation{'s are' if missing != 1 else ' is'} missing"
        said.append(
            f"**This probe is not finished**{what if missing else ''}. Every figure below may "
            "change, and the worst may be yet to come."
        )
    if view.of(facts.model).broken:
        said.append(
            "**This model is broken before any attack.** It no longer draws harmless pictures as "
            "the original does, so its unsafe rates say nothing about safety."
        )
    if facts.released and facts.released["measured"] is False:
        said.append(
            f"**`{code_text(facts.released['file'])}` is not byte for byte the file that was "
            "measured.** An export that records a probe in its header changes the SHA-256; "
            "`resalign verify` compares the weights."
        )
    if plain := facts.pictures.plain:
        said.append(
            f"**`pictures/` holds {plain} pictures that were flagged and are not blurred.**"
        )
    if short and not view.result.plan.test_run:
        said.append(f"**{short[:1].upper()}{short[1:]}.**")
    return said


def model_sentence(view: View, model: str) -> str:
    """Return the model's own sentence of the headline."""
    names = [each.name for each in view.models[1:]] or [view.original.name]
    if model in names:
        return view.sentences()[names.index(model)]
    return f"{model}: the original of this probe, without any protection."


def _checkpoint(info: ModelInfo) -> list[str]:
    texts = (info.source, info.sha256)
    cells = [f"`{code_text(text)}`" if text else "not recorded" for text in texts]
    return [escape(info.name), *cells, escape(info.method) or "not recorded"]


def _released(facts: CardFacts) -> list[str]:
    if not facts.released:
        return [f"The published file: {NOT_GIVEN}."]
    file, sha256 = code_text(facts.released["file"]), facts.released["sha256"]
    return [f"Published with this pack: `{file}`, SHA-256 `{sha256}`."]


def _replay(view: View, facts: CardFacts, info: ModelInfo) -> str:
    default = info.source or f"{info.name}.safetensors"
    file = _argument(facts.released["file"] if facts.released else default)
    source = _argument(view.original.source or "ORIGINAL")
    text = (
        "```sh\nsha256sum -c SHA256SUMS    # the files of this pack\n"
        "resalign pack . --check    # whether pages, card and figures follow from its scores\n"
        f"resalign verify {file} --source {source}    # the checkpoint\n"
        "resalign probe probe.json    # the whole measurement again\n```\n\n"
        "The first two do not show that anything was measured: whoever changes scores and packs "
        "again passes them. `resalign verify` compares hashes and tensors with the file's header "
        "and source. It also repeats the probe if `resalign export --probe` recorded it in the "
        "file. `probe.json` names files without their folders: put them beside it. With the "
        "versions above a CPU gives the same pictures; on a GPU or another machine their last bits "
        "differ, so compare rates by their intervals."
    )
    if paths := paths_of(view.result.plan):
        names = ", ".join(f"`{code_text(path)}`" for path in dict.fromkeys(paths))
        text += f" To repeat all of it you need these, which are not in the pack: {names}."
    return text


def _licence(view: View, facts: CardFacts) -> str:
    base = escape(facts.base_model or view.original.source or view.original.name)
    if not facts.license:
        return f"Base: {base}. {_UNKNOWN_LICENSE}"
    stated = code_text(facts.license)
    said = [f"Base: {base}. The licence stated for it, `{stated}`, is carried over to this card."]
    for term in licence_terms(facts.license):
        mark = "**Warning:** " if term.forbids else ""
        said.append(f"{mark}{term.text} [Its text]({term.source}).")
    return "\n\n".join(said)


def _pack(facts: CardFacts) -> str:
    text = "`SHA256SUMS` lists the SHA-256 of every other file here."
    if facts.signed:
        text = (
            f"`{SIGNATURE}` is the publisher's signature of every other file here, for `python -m "
            f"model_signing verify key PACK --signature PACK/{SIGNATURE} --public_key KEY`. "
            "`SHA256SUMS` lists the SHA-256 of every file besides the two."
        )
    return f"{text} {_pictures(facts.pictures)}"


def _pictures(packed: PackedPictures) -> str:
    if packed.kept == "none":
        return "Its pictures were left out, by the publisher's choice (`--pictures none`)."
    text = "It has no pictures."
    if count := len(packed.files):
        text = f"`pictures/` holds {count} pictures, {packed.blurred} of them blurred; " + (
            f"**{packed.plain} were flagged and are not blurred**."
            if packed.plain
            else "those that a scorer flagged are among these."
            if packed.blurred
            else "no scorer flagged any."
        )
    if packed.kept == BLURRED and count:
        text += (
            " Pictures of unsafe prompts whose score is at least half of the threshold are "
            "blurred too, where the scorer has one. A scorer may have missed others."
        )
    if count:
        text += f"\n\nEach has a digest in `report.json`: {DIGESTS}."
    if packed.lost:
        text += f" {len(packed.lost)} pictures that the report names are missing or damaged."
    return text


def _argument(name: str) -> str:
    """Make a file's name one word of a shell."""
    name = code_text(name)
    plain = re.fullmatch(r"[\w.+/-]+", name, re.ASCII) and not name.startswith("-")
    return name if plain else "'./" + name.replace("'", "'\\''") + "'"
