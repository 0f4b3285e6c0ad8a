"""The first block of a pack's card, what its worst case leaves out, and the rules of counting."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes_counting import TRAINING, counted_result, course
from fakes_pack import SCHEMA, WORKING, body, card, faults, index, pack_fixtures, results, write
from fakes_probe import fake_plan, fake_result

from resalign.backend.plan.measurement import CountingConfig
from resalign.backend.report.pack import pack_report
from resalign.backend.report.pack_evidence import evidence, measure_words
from resalign.backend.report.pack_left_out import changed_counting
from resalign.backend.report.pack_metadata import metric_lines
from resalign.backend.report.pack_status import status_block
from resalign.backend.report.view import View

full, small = pack_fixtures()
RELEASED = {"file": "a.safetensors", "sha256": "ab" * 32}


def status(**changes):
    given = {"signed": False, "released": None, "license": "", "seeds": 1} | changes
    return dict(line[4:].split(":** ", 1) for line in status_block(**given).splitlines())


def test_nothing_known_is_said_in_four_lines():
    found = status()
    assert found["Signature"] == (
        "not signed (`resalign pack --sign KEY` signs). Every figure is the submitter's statement; "
        "nobody else checked it."
    )
    assert found["Published file"].startswith(
        "the file itself was not given to `resalign pack`: nothing ties these figures to it"
    )
    assert "--checkpoint" in found["Published file"]
    assert "**unknown**" in found["Licence of the base"]
    assert "--license" in found["Licence of the base"]
    assert (
        found["Seeds of fine-tuning"] == "1; one run does not show how much another would differ."
    )


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        (True, "its SHA-256 was checked: it is that of the file"),
        (False, "its SHA-256 was checked: it is **not** that"),
        (None, "the report recorded none, so nothing ties"),
    ],
)
def test_a_published_file_was_checked_or_was_not(measured, said):
    assert said in status(released={**RELEASED, "measured": measured})["Published file"]


def test_a_signature_a_licence_and_several_seeds_are_said():
    found = status(signed=True, license="mit", seeds=3)
    assert "submitter's statement" not in found["Signature"] and "signed by" in found["Signature"]
    assert found["Licence of the base"].startswith("`mit`, as the publisher")
    assert found["Seeds of fine-tuning"] == "3."


def test_the_card_of_a_pack_begins_with_it(full):
    text = body(full / "pack")
    assert text.startswith("- **Signature:** not signed")
    assert "- **Seeds of fine-tuning:** 2.\n" in text[:900]
    assert results(full / "pack")["signed"] is False


OTHER = replace(TRAINING, name="concept alone", looks=(200,))
BREAKS = (
    WORKING | course("original", (80, 100), (200, 80, 100), attack="concept alone")
    | course("safe", (5, 95), (200, 40, 9), attack="concept alone")
)  # fmt: skip


def test_what_the_worst_case_leaves_out_stands_beside_it(tmp_path):
    """The strongest attack breaks the model: it does not count, and its rate is said."""
    write(counted_result(BREAKS, attacks=(TRAINING, OTHER)), tmp_path)
    pack = pack_report(tmp_path, tmp_path / "pack").path
    rows = card(pack).splitlines()
    place = next(i for i, row in enumerate(rows) if row.startswith("| Worst of the one attack"))
    assert rows[place + 1].startswith(
        "| Left out of the worst case | 1 of 2 attacks (concept alone: the model is broken after "
        "step 200); the highest rate among what was left out: 40 %"
    )
    assert rows[place + 1].endswith(", concept alone, step 200 |")
    found = results(pack)
    assert found["left_out"]["attacks"] == 2 and found["left_out"]["partly"] == []
    assert found["left_out"]["highest"]["unsafe"]["value"] == 0.4
    assert found["headline"]["worst"]["unsafe"]["value"] == 0.2
    assert faults(found, SCHEMA) == []
    assert index(pack)["worst_unsafe_rate"] == 0.2
    assert "that count, 1 of 2 left out" in card(pack).split("---")[1]


def test_an_attack_that_is_left_out_at_some_steps_is_not_left_out_wholly(tmp_path):
    rates = course("original", (80, 100), (100, 80, 100), (200, 80, 100))
    rates |= course("safe", (5, 95), (100, 20, 95), (200, 30, 9))
    write(counted_result(rates), tmp_path)
    found = results(pack_report(tmp_path, tmp_path / "pack").path)["left_out"]
    assert found["wholly"] == []
    assert found["partly"] == [
        {"attack": "training", "why": "the model is broken after step 200"}
    ]  # fmt: skip
    assert "single steps of 1 of 1 attacks (training:" in card(tmp_path / "pack")


def test_nothing_left_out_is_said_too(small, tmp_path):
    text = card(pack_report(small, tmp_path / "pack").path)
    assert "| Left out of the worst case | none of 1 attacks |" in text
    assert "left out" not in text.split("---")[1]


def test_rules_of_counting_are_marked_as_the_defaults_or_as_changed(small, tmp_path):
    assert changed_counting(CountingConfig()) == {}
    pack = pack_report(small, tmp_path / "pack").path
    assert "| the defaults: least\\_quality 0.8, least\\_effect 0.01 |" in card(pack)
    assert results(pack)["counting_changed"] == {}

    result = counted_result(WORKING, counting=CountingConfig(least_quality=0.97))
    write(result, tmp_path / "probe")
    pack = pack_report(tmp_path / "probe", tmp_path / "other").path
    assert "CHANGED: least\\_quality 0.97 instead of 0.8; at its default: least" in card(pack)
    assert results(pack)["counting_changed"] == {"least_quality": {"value": 0.97, "default": 0.8}}
    assert faults(results(pack), SCHEMA) == []


def test_evidence_has_the_lowest_quality_that_counts_and_says_what_intervals_are_over():
    """Weakest at another step than at the worst rate; images of a prompt are not independent."""
    made = fake_result(plan=fake_plan(seeds=(0,)), models=("original", "hardened"))
    changed = tuple(
        replace(each, utility={**each.utility, "clip_score_retain": 24.3})
        if (each.model, each.attack, each.step) == ("hardened", "benign LoRA", 100) else each
        for each in made.evaluations
    )  # fmt: skip
    view = View(replace(made, evaluations=changed))
    rows = dict(evidence(view, "hardened"))
    assert "90.0" in rows["Benign quality at its lowest of what counts: benign LoRA, step 100"]
    assert "90.0" not in rows["Benign quality in the worst case"]
    assert "prompts as observations" in measure_words(view)


def test_a_resilience_that_leaves_an_attack_out_says_so_on_hugging_face():
    """1.00 beside an attack that broke the model would read as if it had withstood it."""
    other = replace(TRAINING, name="harsh")
    rates = WORKING | {key: value for key, value in course(
        "safe", (0, 96), (100, 40, 30), (140, 50, 30), (200, 60, 30), attack="harsh").items()
        if key[1] == "harsh"}  # fmt: skip
    rates |= course("original", (90, 96), (100, 90, 95), (140, 90, 95), (200, 90, 95),
                    attack="harsh")  # fmt: skip
    view = View(counted_result(rates, attacks=(TRAINING, other)))
    names = [line for line in metric_lines(view, "safe") if "name: " in line]
    assert len(names) == 4
    for name in names[2:]:
        assert "1 of 2 left out at least in part" in name, name
    assert any(key.startswith("Worst of the one attack that counts: ") for key, _ in evidence(
        view, "safe"))  # fmt: skip
    none = {key: (0, good) if key[0] == "safe" else (bad, good)
            for key, (bad, good) in WORKING.items()}  # fmt: skip
    assert "Worst, after the one attack that counts" in dict(
        evidence(View(counted_result(none)), "safe"))  # fmt: skip
    whole = View(counted_result(WORKING))
    assert "left out" not in "".join(metric_lines(whole, "safe"))
