"""The report of a probe: its JSON, its Markdown, and several side by side."""

import hashlib
import json
import math
from dataclasses import replace

import pytest
from fakes_probe import PETS, SUBJECTS, fake_plan, fake_result

from resalign.backend.errors import ExportError, RunError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.measurement import ScorerConfig
from resalign.backend.plan.probe import ProbeJob, ProbePlan
from resalign.backend.probe.results import Evaluation, ModelInfo, ProbeResult, Scores, SetEvaluation
from resalign.backend.probe.summarise import summarise
from resalign.backend.report.build import build_report, curve_png, write_report
from resalign.backend.report.plan_words import job_json
from resalign.backend.report.schema import load_report, to_report_json, without_paths
from resalign.backend.report.view import View
from resalign.backend.statistics.intervals import wilson


@pytest.fixture(scope="module")
def result():
    return fake_result()


def all_flagged(result: ProbeResult, key: tuple) -> ProbeResult:
    """The result with every image of one evaluation's unsafe set flagged."""
    place = next(
        place for place, evaluation in enumerate(result.evaluations) if evaluation.key == key
    )
    unsafe, *others = result.evaluations[place].sets
    scores = replace(unsafe.scores[0], flagged=(True,) * unsafe.images)
    return changed_look(result, place, sets=(replace(unsafe, scores=(scores,)), *others))


def changed_look(result: ProbeResult, place: int, **changes) -> ProbeResult:
    evaluations = list(result.evaluations)
    evaluations[place] = replace(evaluations[place], **changes)
    return replace(result, evaluations=tuple(evaluations))


def test_a_report_is_read_back_as_it_was_written(result, tmp_path):
    """Every image's value and flag comes back, so that any figure can be computed again."""
    files = write_report(result, tmp_path)

    assert load_report(files.json) == without_paths(result)
    assert load_report(tmp_path) == load_report(files.json)


def test_a_report_names_no_folder_of_the_machine_that_made_it(result, tmp_path):
    files = write_report(result, tmp_path)
    for path in (files.json, files.html, files.markdown):
        text = path.read_text(encoding="utf-8")
        assert "/home/ann" not in text and "/opt" not in text and str(tmp_path) not in text
    found = load_report(files.json)
    assert found.models[0].source == "original.safetensors"
    assert found.plan.fine_tunes[0].data == "pets"
    assert found.warnings == ("2 pictures of old were skipped: they cannot be read",)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("see C:\\Users\\ann\\pets\\a.png", "see a.png"),
        ("see ~/pets/a.png", "see a.png"),
        ("see \\\\server\\share\\a.png", "see a.png"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("3/4 of 1 / 2", "3/4 of 1 / 2"),
    ],
)
def test_only_paths_lose_their_folders(result, said, kept):
    assert without_paths(replace(result, warnings=(said,))).warnings == (kept,)


def test_a_figure_that_is_no_number_is_null_and_comes_back_as_nan(result, tmp_path):
    broken = changed_look(result, 0, utility={"drift": math.nan, "kid": math.inf})
    path = write_report(broken, tmp_path).json

    record = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert record["looks"][0]["utility"] == {"drift": None, "kid": None}
    assert math.isnan(load_report(path).evaluations[0].utility["drift"])
    assert to_report_json(load_report(path)) == to_report_json(broken)


@pytest.mark.slow
def test_the_same_result_gives_the_same_bytes(tmp_path):
    first, second = (
        write_report(
            fake_result(tmp_path / name, plan=fake_plan(pictures=3)), tmp_path / name,
            pictures=tmp_path / name,
        )
        for name in "ab"
    )  # fmt: skip
    for name in ("json", "html", "markdown"):
        assert getattr(first, name).read_bytes() == getattr(second, name).read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as a report"),
        ("[]", "is not the report of a probe"),
        ('{"schema": 1, "models": []}', "is not the report of a probe"),
        ('{"schema": 2, "kind": "resalign probe report"}', "schema 2.*up to 1: update resalign"),
        ('{"schema": "x", "kind": "resalign probe report"}', "schema x"),
        ('{"schema": 1, "kind": "resalign probe report"}', "is damaged.*'plan'"),
    ],
)
def test_what_is_no_report_is_refused_with_the_reason(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(RunError, match=message):
        load_report(tmp_path)


def test_a_report_with_a_plan_of_another_version_is_refused(result, tmp_path):
    path = write_report(result, tmp_path).json
    record = json.loads(path.read_text())
    record["plan"]["novelty"] = 1
    path.write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"another version: plan\.novelty"):
        load_report(path)


def test_a_report_that_does_not_exist_names_the_file(tmp_path):
    with pytest.raises(RunError, match=r"nothing\.json does not exist"):
        load_report(tmp_path / "nothing.json")


def test_a_failed_report_leaves_the_old_one_as_it_was(result, tmp_path, monkeypatch):
    files = write_report(result, tmp_path)
    old = files.json.read_bytes()

    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("resalign.backend.report.build.report_markdown", fail)
    with pytest.raises(KeyboardInterrupt):
        write_report(replace(result, warnings=()), tmp_path)
    assert files.json.read_bytes() == old
    assert {path.name for path in tmp_path.iterdir()} == {
        "report.json", "report.html", "report.md"
    }  # fmt: skip


def test_a_folder_that_cannot_be_written_is_an_error_that_names_it(result, tmp_path):
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(ExportError, match=r"report\.json cannot be written"):
        write_report(result, tmp_path / "taken")


def test_rates_are_pooled_over_seeds_with_wilsons_interval(result):
    evaluations = [k for k in result.evaluations_of("hardened", "concept 10 %") if k.step == 200]
    hits = sum(k.sets[0].scores[0].hits for k in evaluations)

    found = View(result).rows("hardened", "concept 10 %")[-1].unsafe

    assert (len(evaluations), found.flagged, found.images) == (2, hits, 48)
    few, many = wilson(hits / 48 * len(SUBJECTS), len(SUBJECTS)), wilson(hits, 48)
    assert few[0] <= found.low <= many[0] and many[1] <= found.high <= few[1]


def test_images_of_one_prompt_that_always_agree_are_worth_one_image():
    """Four images of each of 10 prompts, all alike: the interval is that of 10 images, not 40."""
    flags = tuple(prompt < 4 for prompt in range(10) for _ in range(4))
    part = SetEvaluation(
        kind="unsafe", images=40,
        scores=(Scores(scorer="judge", values=tuple(map(float, flags)), flagged=flags),),
    )  # fmt: skip
    result = ProbeResult(
        plan=ProbePlan(
            concepts=(Concept("weapons", ("a gun",)),), scorers=(ScorerConfig(name="judge"),)
        ),
        models=(ModelInfo(name="original"),),
        evaluations=(Evaluation(model="original", sets=(part,)),),
        prompts={"unsafe": tuple(f"prompt {k}" for k in range(10) for _ in range(4))},
    )
    rate = summarise(result).base
    assert (rate.flagged, rate.images) == (16, 40)
    assert (rate.low, rate.high) == pytest.approx(wilson(4, 10))


def test_the_worst_attack_is_the_highest_rate_at_any_step(result):
    """An attack whose rate falls again towards its end counts with its peak."""
    assert View(result).worst("hardened").attack == "concept 10 %"
    view = View(all_flagged(result, ("hardened", "benign LoRA", 0, 50)))
    assert view.worst("hardened").attack == "benign LoRA"
    assert view.worst("hardened").step == view.peak("hardened", "benign LoRA").step == 50


def test_an_attack_that_needs_the_original_is_shown_and_does_not_count(result):
    """Whoever has the original needs no attack: such rows must not decide the headline."""
    view = View(all_flagged(result, ("hardened", "merge with original", 0, 0)))
    assert view.peak("hardened", "merge with original").unsafe.value == 1
    assert view.worst("hardened").attack == view.worst_overall() == "concept 10 %"
    assert view.of("hardened").with_original.resilience.value < 0.1


def test_the_markdown_has_every_rate_with_n_and_interval_and_no_picture(tmp_path):
    result = fake_result(tmp_path, plan=fake_plan(pictures=1))
    text = write_report(result, tmp_path, pictures=tmp_path).markdown.read_text(encoding="utf-8")

    rate = View(result).worst("hardened").unsafe
    low, high = (f"{100 * bound:.1f}" for bound in (rate.low, rate.high))
    assert f"({low} to {high}\u00a0%; {rate.flagged} of 48, step 200" in text
    assert text.count("Resilience 0.") == 2 and "n = 48" in text
    assert "What these numbers cannot tell" in text and "![" not in text and "data:" not in text


def test_a_users_words_are_no_markup_in_the_markdown(tmp_path):
    hostile = fake_result(models=("original", "a|b <img src=x> `c` [d](e)"))
    text = write_report(hostile, tmp_path).markdown.read_text(encoding="utf-8")
    assert "<img" not in text.replace("\\<img", "") and "a\\|b" in text
    rows = [line for line in text.splitlines() if line.startswith("| before any attack")]
    assert rows[0].replace("\\|", "").count("|") == 4


def test_the_limits_name_what_was_not_tried(result):
    from resalign.backend.report.limits import limits

    said = " ".join(limits(result, kind="unsafe", scorer="judge"))
    assert "full fine-tuning" in said and "DreamBooth" in said and "concept alone" in said
    assert "LoRAs made by others" not in said and "merges with other checkpoints" not in said
    assert "24 images of 8 prompts" in said
    unfinished = limits(replace(result, complete=False), kind="unsafe", scorer="judge")
    assert "not finished" in unfinished[0]


def test_a_probe_without_an_image_scorer_reports_the_scorer_of_models():
    """`denoising` draws nothing: its own set carries the headline."""
    plan = replace(fake_plan(), scorers=(ScorerConfig(name="denoising"),))
    full = fake_result(plan=plan)
    evaluations = tuple(
        replace(evaluation, sets=tuple(p for p in evaluation.sets if p.kind == "concept"))
        for evaluation in full.evaluations
    )
    view = View(replace(full, evaluations=evaluations, prompts={}))
    assert (view.scorer, view.kind) == ("denoising", "concept")
    assert view.before("original").images == 8


def test_a_probe_with_one_look_still_has_a_report(tmp_path):
    """Reports are written while a probe is under way."""
    plan = ProbePlan(concepts=(Concept("x", ("x",)),), scorers=(ScorerConfig(name="judge"),))
    scores = Scores(scorer="judge", values=(0.1, 0.9), flagged=(False, True))
    evaluation = Evaluation(
        model="m", sets=(SetEvaluation(kind="unsafe", images=2, scores=(scores,)),)
    )
    model = fake_result(models=("m",)).models[0]
    result = ProbeResult(plan=plan, models=(model,), evaluations=(evaluation,), complete=False)

    files = write_report(result, tmp_path)

    assert "not finished" in files.html.read_text(encoding="utf-8")
    assert "not finished" in files.markdown.read_text(encoding="utf-8")
    assert curve_png(result, tmp_path / "c.png").is_file()


def test_the_plan_in_a_report_is_a_plan_file_that_runs(result, tmp_path):
    from resalign.backend.plan.file import load_probe_job

    (tmp_path / "probe.json").write_text(job_json(result), encoding="utf-8")
    job = load_probe_job(tmp_path / "probe.json")
    assert isinstance(job, ProbeJob)
    assert [c.name for c in job.checkpoints] == [m.name for m in result.models]
    assert job.plan.fine_tunes[0].looks == (25, 50, 100, 200)


def test_the_curves_are_a_picture_and_the_same_probe_the_same(result, tmp_path):
    from PIL import Image

    first, second = (curve_png(result, tmp_path / f"{name}.png") for name in "ab")
    with Image.open(first) as picture:
        assert picture.width > 800 and picture.height > 300
    assert first.read_bytes() == second.read_bytes()


def test_a_name_that_looks_like_mathematics_is_drawn_as_it_is(tmp_path):
    curve_png(fake_result(models=("original", "costs $5 \\frac")), tmp_path / "c.png")


def test_hardening_and_probe_make_one_report(result):
    from resalign.backend.adapter.lora import Adapter
    from resalign.backend.hardening.run import HardenResult

    plan = HardeningPlan(
        concepts=(Concept("weapons", ("a gun",)),),
        fine_tunes=(FineTuneConfig(name="a", data=PETS),),
    )
    hardened = HardenResult(adapter=Adapter({}, 4, 4.0), records=(), plan=plan, seconds=12.0)

    report = build_report(plan, hardened, result)

    text, record = report.to_markdown(), report.to_json()
    assert text.startswith("## Hardening") and "## Resilience probe: weapons" in text
    assert record["probe"]["schema"] == 1 and PETS not in json.dumps(record)
    assert record["hardening"]["plan_sha256"] in text


def test_the_numbers_of_a_report_do_not_change(result):
    """Every byte of report.json, figures and intervals included; a change here is one for users."""
    text = to_report_json(result, summarise(result).to_json())
    assert hashlib.sha256(text.encode()).hexdigest() == (
        "e198560c1668cc3a40c59d7208064981ccbb49e096bba232b891aab438d075cb"
    )
