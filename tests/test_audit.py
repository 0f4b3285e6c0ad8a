"""The audit corrects a judge with known misses, and its sheet hides which model drew a picture."""

import json
import shutil
from dataclasses import replace

import pytest
from fakes_audit import (
    PROMPTS,
    SENSITIVITY,
    SPECIFICITY,
    TRUTH,
    audited_fixtures,
    labels_of,
)
from fakes_counting import counted_result, course
from fakes_pack import SCHEMA, card, faults, results

from resalign.backend.cli import main
from resalign.backend.errors import ConfigError, RunError
from resalign.backend.jobs.audit import apply_labels, begin_audit
from resalign.backend.probe.audit import draw_sample, labels_record, read_audit
from resalign.backend.report.build import write_report
from resalign.backend.report.pack import pack_report
from resalign.backend.report.schema import load_report

written, place = audited_fixtures()


def save_labels(result, audit, folder, **changes):
    record = labels_record(audit, labels_of(result, audit, folder)) | changes
    path = folder.parent / "labels.json"
    path.write_text(json.dumps(record), "utf-8")
    return path


def test_a_judge_with_known_misses_comes_out_right(place, capsys):
    """The judge finds 60 % and invents 10 %: 200 labels give back what the pictures show."""
    result, folder = place
    assert main(["audit", str(folder), "--pictures", "200"]) == 0
    audit = read_audit(folder)
    labels = save_labels(result, audit, folder)
    assert main(["audit", str(folder), "--labels", str(labels)]) == 0

    summary = json.loads((folder / "report.json").read_text("utf-8"))["summary"]
    found = summary["audit"]
    assert found["labelled"] == 200
    assert found["sensitivity"]["low"] <= SENSITIVITY <= found["sensitivity"]["high"]
    assert found["specificity"]["low"] <= SPECIFICITY <= found["specificity"]["high"]
    observed = {(row["model"], row["attack"]): row["unsafe"]["value"] for row in summary["rows"]}
    for row in found["rows"]:
        truth = TRUTH[row["model"], row["attack"]]
        assert row["rate"]["low"] <= truth <= row["rate"]["high"]
    assert observed["original", "before"] < 0.7, "uncorrected, it says far too little"
    said = capsys.readouterr().out
    assert "Corrected by the detector's mistakes on 200 labelled pictures:" in said
    page, text = (
        (folder / "report.html").read_text("utf-8"),
        (folder / "report.md").read_text("utf-8"),
    )
    for written in (page, text):
        assert "Audit by a person" in written and "Corrected by the detector" in written
    pack_report(folder, folder / "pack")
    assert faults(results(folder / "pack"), SCHEMA) == []
    assert results(folder / "pack")["audit"]["labelled"] == 200
    assert "Worst rate, corrected by the audit" in card(folder / "pack")
    kept = {model["model"]: model["resilience"] for model in found["models"]}["hardened"]
    assert kept["low"] <= 1 - 0.4 / 0.9 <= kept["high"]


def test_the_report_keeps_its_audit_when_it_is_read_and_written_again(place):
    result, folder = place
    audit = begin_audit(folder, count=40).audit
    apply_labels(folder, save_labels(result, audit, folder))

    read = load_report(folder)
    assert read.audit.labelled == 40
    before = (folder / "report.json").read_bytes()
    write_report(read, folder, pictures=folder)
    assert (folder / "report.json").read_bytes() == before


def test_half_of_the_sample_is_flagged_and_any_part_of_it_is_random(written):
    result, folder = written
    audit = draw_sample(result, folder, count=50)
    flags = [
        result.evaluation(p.model, p.attack, p.seed, p.step).sets[0].scores[0].flagged[p.place]
        for p in audit.pictures
    ]
    assert len(set(audit.pictures)) == 50 and sum(flags) == 25
    assert 5 <= sum(flags[:25]) <= 20, "not one stratum after the other"
    assert len({(p.model, p.attack) for p in audit.pictures}) == len(TRUTH)
    assert audit.flagged + audit.unflagged == PROMPTS * len(TRUTH)
    assert (
        audit
        == draw_sample(result, folder, count=50)
        != draw_sample(result, folder, count=50, seed=1)
    )
    everything = draw_sample(result, folder, count=10_000)
    assert len(everything.pictures) == PROMPTS * len(TRUTH)


def test_the_sheet_says_nothing_of_whose_picture_it_is(place):
    """No model, attack, prompt, file or verdict; and every picture is blurred, flagged or not."""
    _, folder = place
    page = begin_audit(folder, count=30).page.read_text("utf-8")
    body = page[page.index("<body>") : page.index("<script>")]

    assert body.count("<figure") == 30 == body.count('class="veil"')
    assert body.count("data-src=") == 30 and body.count(" src=") == 30, "only veils are shown"
    for told in ("original", "hardened", "training", "a weapon", ".png", "flagged", "judge"):
        assert told not in body.replace("what a detector said", "")
    assert "default-src &#x27;none&#x27;" in page and "://" not in body


def test_labels_of_another_sample_are_refused(place):
    result, folder = place
    audit = begin_audit(folder, count=20).audit
    for changes, message in (
        ({"sample": "0" * 16}, "another audit"),
        ({"labels": ["yes"]}, "for each"),
        ({"labels": ["maybe"] * 20}, "'maybe' is not one of yes, no, unsure"),
        ({"labels": [None] * 20}, "no picture is labelled"),
        ({"kind": "something"}, "not a file of audit labels"),
        ({"schema": 9}, "update resalign"),
    ):
        with pytest.raises(RunError, match=message):
            apply_labels(folder, save_labels(result, audit, folder, **changes))


def test_an_unfinished_sheet_counts_with_what_it_has_and_unsure_is_left_out(place):
    result, folder = place
    audit = begin_audit(folder, count=40).audit
    answers = [*labels_of(result, audit, folder)[:18], "unsure", "unsure", *[None] * 20]
    found = apply_labels(folder, save_labels(result, audit, folder, labels=answers)).summary.audit

    assert (found.labelled, found.unsure, found.pictures) == (18, 2, 40)
    assert found.hits + found.misses + found.false_alarms + found.clear == 18


def test_labels_are_not_lost_by_beginning_again(place):
    result, folder = place
    audit = begin_audit(folder, count=20).audit
    apply_labels(folder, save_labels(result, audit, folder))

    with pytest.raises(ConfigError, match="20 labels of an audit: `overwrite`"):
        begin_audit(folder)
    assert begin_audit(folder, overwrite=True).audit.labelled == 0


def test_a_picture_that_was_changed_is_found_out(place):
    result, folder = place
    audit = draw_sample(result, folder, count=20)
    first, other = (
        folder / result.evaluation(p.model, p.attack, p.seed, p.step).sets[0].pictures[p.place]
        for p in audit.pictures[:2]
    )
    shutil.copyfile(other, first)
    with pytest.raises(RunError, match="not the picture that was scored"):
        begin_audit(folder, count=20)


def test_pictures_that_were_kept_blurred_cannot_be_judged(place):
    result, folder = place
    part = result.evaluations[0].sets[0]
    name = part.pictures[0].replace(".png", "-blurred.png")
    shutil.copyfile(folder / part.pictures[0], folder / name)
    blurred = replace(part, pictures=(name, *part.pictures[1:]))
    changed = replace(result.evaluations[0], sets=(blurred,))
    result = replace(result, evaluations=(changed, *result.evaluations[1:]))
    with pytest.raises(ConfigError, match=r"1 pictures were kept blurred.*`keep_pictures` all"):
        draw_sample(result, folder, count=10)


def test_a_probe_without_pictures_or_labels_has_nothing_to_correct(tmp_path):
    result = counted_result(course("original", (80, 96), (200, 80, 96)))
    write_report(result, tmp_path)

    with pytest.raises(ConfigError, match="holds no pictures"):
        begin_audit(tmp_path)
    with pytest.raises(RunError, match="has no audit"):
        apply_labels(tmp_path, tmp_path / "labels.json")
    assert "Audit by a person" not in (tmp_path / "report.html").read_text("utf-8")


def test_counts_and_seeds_belong_to_the_beginning(place, capsys):
    _, folder = place
    assert main(["audit", str(folder), "--labels", "x.json", "--pictures", "3"]) == 2
    assert "begin one" in capsys.readouterr().err


@pytest.mark.slow
def test_in_a_browser_the_sheet_is_labelled_by_keyboard(place):
    """No answer before the picture was shown; labels survive a reload and are saved as JSON."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        pytest.skip("no chromium on this machine")
    result, folder = place
    sheet = begin_audit(folder, count=4)
    truth = labels_of(result, sheet.audit, folder)
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path, args=["--no-sandbox", "--disable-gpu"]
        )
        page = browser.new_context(offline=True, viewport={"width": 400, "height": 800}).new_page()
        said = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(sheet.page.as_uri())
        page.keyboard.press("y")
        assert "Look first" in page.inner_text("#given")
        for answer in truth:
            assert page.locator("img.real:visible").count() == 0
            page.keyboard.press("Space")
            assert page.locator("img.real:visible").count() == 1
            page.keyboard.press(answer[0])
        page.reload()
        assert "4 labelled" in page.inner_text("#count") and page.is_visible("#done")
        assert page.evaluate("document.documentElement.scrollWidth") <= 400
        with page.expect_download() as found:
            page.keyboard.press("s")
        saved = found.value.path()
        assert found.value.suggested_filename == "audit-labels.json" and said == []
        assert apply_labels(folder, saved).audit.labelled == 4
        browser.close()
    assert [each.label for each in read_audit(folder).pictures] == truth
