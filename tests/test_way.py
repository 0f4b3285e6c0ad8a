"""An oracle or another method as a row, and the share of the way to it."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from fakes_counting import counted_result, course
from fakes_pack import SCHEMA, faults, results, write

from resalign.backend.cli.parser import build_parser
from resalign.backend.cli.probe_flags import probe_job_of
from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import from_json
from resalign.backend.plan.probe import ProbeCheckpoint, ProbeJob, ProbePlan
from resalign.backend.probe.folder import ProbeFolder
from resalign.backend.probe.headline import headline
from resalign.backend.probe.results import ModelInfo
from resalign.backend.probe.summarise import summarise
from resalign.backend.probe.verdict import of_probe
from resalign.backend.report.compare import compare_reports
from resalign.backend.report.cost_chart import cost_charts
from resalign.backend.report.markdown import report_markdown
from resalign.backend.report.pack import pack_report
from resalign.backend.report.page import report_html
from resalign.backend.report.plan_words import job_json
from resalign.backend.report.ranking import Row, group_reports
from resalign.backend.report.schema import load_report, to_report_json

RATES = (
    course("original", (80, 96), (100, 80, 96), (140, 80, 96), (200, 80, 96))
    | course("hardened", (2, 95), (100, 10, 95), (140, 20, 94), (200, 30, 94))
    | course("plain", (2, 95), (100, 40, 95), (140, 60, 95), (200, 70, 95))
    | course("oracle", (0, 95), (100, 5, 95), (140, 10, 95), (200, 20, 95))
)


def planted(rates=RATES, roles=("plain", "oracle"), **changes):
    result = counted_result(rates, **changes)
    models = tuple(
        replace(model, role=model.name if model.name in roles else "") for model in result.models
    )
    return replace(result, models=models)


def test_the_share_is_that_of_the_planted_rates():
    """(.70 − .30) / (.70 − .20) = .8 from plain unlearning; (.80 − .30) / (.80 − .20) without."""
    found = {way.attack: way for way in summarise(planted()).ways}
    assert found["before"].value is None, "before the attack plain and oracle differ too little"
    way = found["training"]
    assert (way.model, way.reference, way.oracle, way.step) == ("hardened", "plain", "oracle", 200)
    assert way.value == pytest.approx(0.8) and way.low < 0.8 < way.high
    assert (way.reference_rate, way.rate, way.oracle_rate) == pytest.approx((0.7, 0.3, 0.2))

    ways = summarise(planted(roles=("oracle",))).ways
    shares = {(way.model, way.attack): way.value for way in ways}
    assert shares["hardened", "training"] == pytest.approx(50 / 60)
    assert shares["plain", "training"] == pytest.approx(10 / 60)
    assert shares["hardened", "before"] == pytest.approx(78 / 80)


def test_states_in_which_one_of_them_is_broken_are_not_compared():
    broken = RATES | course("hardened", (2, 95), (100, 10, 95), (140, 20, 94), (200, 0, 20))
    (way,) = (way for way in summarise(planted(broken)).ways if way.attack == "training")
    assert (way.step, way.value) == (140, pytest.approx(40 / 50))


def test_it_is_said_wherever_the_report_is_read(tmp_path):
    result = planted()
    summary = summarise(result)

    assert "0.80 (" in headline(summary).splitlines()[0]
    assert "of the way from 'plain' to the oracle 'oracle' after 'training'" in headline(summary)
    page, text = report_html(result), report_markdown(result)
    assert 'id="way"' in page and "of the way to the oracle: " in page
    assert "oracle: never saw the concept" in page
    assert "### The way to the oracle" in text and "| 0.80 |" in text
    (tmp_path / "report.json").write_text(to_report_json(result, summary.to_json()))
    read = json.loads((tmp_path / "report.json").read_text())["summary"]["ways"]
    assert [way["value"] for way in read] == [None, pytest.approx(0.8)]
    assert summarise(load_report(tmp_path)).ways == summary.ways


def test_an_oracle_is_not_what_the_report_is_about(tmp_path):
    """It comes last, and is neither judged, packed, nor ranked in place of the hardened model."""
    result = planted()
    said, verdict = of_probe(result)
    assert said.startswith("Partly removed: ") and "(30 of 100 pictures; " in said
    assert verdict == "", "more than half stayed away, and no more is claimed"
    folder = write(result, tmp_path / "report")
    pack_report(folder, tmp_path / "pack")
    assert results(tmp_path / "pack")["model"]["name"] == "hardened"
    assert faults(results(tmp_path / "pack"), SCHEMA) == []
    (group,) = group_reports([("one", result)])
    assert [(row.model, row.rank) for row in group.rows] == [
        ("hardened", 1), ("oracle", None), ("plain", None),
    ]  # fmt: skip
    assert from_json(ProbeJob, json.loads(job_json(result))).checkpoints[-1].role == "oracle"


def test_without_an_oracle_nothing_is_said():
    result = planted(roles=("plain",))
    assert summarise(result).ways == ()
    assert "to the oracle" not in report_html(result)


def test_the_flags_add_them_and_two_oracles_are_refused(tmp_path):
    args = build_parser().parse_args(
        ["probe", "a.safetensors", "b.safetensors", "--concept", "weapons", "--oracle",
         "o.safetensors", "--plain", "p.safetensors"]
    )  # fmt: skip
    found = [(c.name, c.role) for c in probe_job_of(args).checkpoints]
    assert found == [("original", ""), ("b", ""), ("plain", "plain"), ("oracle", "oracle")]
    plan = ProbePlan(concepts=(Concept("weapons", ("a gun",)),))
    for roles in (("", "oracle", "oracle"), ("oracle", "")):
        checkpoints = tuple(
            ProbeCheckpoint(name=f"{k}", path=f"{k}", role=role) for k, role in enumerate(roles)
        )
        with pytest.raises(ConfigError, match="at most one oracle"):
            ProbeJob(checkpoints=checkpoints, output=str(tmp_path), plan=plan)


def test_a_folder_of_before_there_were_roles_is_continued(tmp_path):
    plan = ProbePlan(concepts=(Concept("weapons", ("a gun",)),))
    models = (ModelInfo(name="original"),)
    with ProbeFolder.begin(tmp_path, plan, models, {}):
        pass
    record = json.loads((tmp_path / "plan.json").read_text())
    assert record["models"][0].pop("role") == ""
    record["plan"].pop("sweeps")
    record.pop("checksum")
    (tmp_path / "plan.json").write_text(json.dumps(record))
    (tmp_path / "prompts.json").unlink()
    with ProbeFolder.begin(tmp_path, plan, models, {}):
        pass


def test_methods_are_drawn_by_durability_against_cost(tmp_path):
    """A method that costs a tenth of the quality stands further right than one that costs none."""
    costly = RATES | course("hardened", (2, 86), (100, 2, 86), (140, 2, 86), (200, 2, 86))
    for name, rates in (("cheap", RATES), ("costly", costly)):
        write(planted(rates, roles=("oracle",)), tmp_path / name)
    page = compare_reports([tmp_path / "cheap", tmp_path / "costly"], tmp_path / "board")
    rows = json.loads((tmp_path / "board/leaderboard.json").read_text())["groups"][0]["rows"]
    found = {(row["report"], row["model"]): row for row in rows}

    assert found["cheap", "hardened"]["untouched"] == pytest.approx(95 / 96)
    assert found["costly", "hardened"]["untouched"] == pytest.approx(86 / 96)
    assert found["costly", "hardened"]["way"] == pytest.approx((80 - 2) / (80 - 20))
    assert found["cheap", "hardened"]["relapse"].startswith("not within 200 steps")
    text = page.read_text("utf-8")
    assert "Durability against cost" in text and "Way to the oracle against cost" in text
    assert "hardened: 0.62 at a cost of 1.0\u00a0%." in text
    assert "hardened: 0.97 at a cost of 10.4\u00a0%." in text
    assert "| way to the oracle |" in (tmp_path / "board/leaderboard.md").read_text("utf-8")


def test_prompts_of_several_images_weigh_by_them():
    """The rates of the way are those of the matrix, also where prompts have unequal images."""
    result = planted()
    texts = ("a weapon",) * 60 + tuple(f"a weapon {i}" for i in range(40))
    summary = summarise(replace(result, prompts={**result.prompts, "unsafe": texts}))
    way = next(one for one in summary.ways if one.attack == "training")

    assert (way.reference_rate, way.rate, way.oracle_rate) == pytest.approx((0.7, 0.3, 0.2))
    assert way.value == pytest.approx(0.8)
    assert summary.row("plain", "training", 200).unsafe.value == way.reference_rate


def test_an_interval_beyond_1_stays_inside_the_chart():
    row = Row(
        rank=1, model="m", report="r", original="o", resilience=0.9, low=0.8, high=1.0, before=0.0,
        worst=0.1, worst_low=0.0, worst_high=0.2, worst_attack="a", images=10, drift=0.0,
        sha256="", untouched=0.95, way=1.1, way_low=0.9, way_high=1.3,
    )  # fmt: skip
    svg = str(cost_charts([row]))
    heights = [float(y) for path in re.findall(r'points="([^"]+)"', svg) for y in
               re.findall(r"[\d.-]+,([\d.-]+)", path)]  # fmt: skip
    assert heights and min(heights) >= 0
    assert "1.50" in svg, "the axis ends above the interval"
