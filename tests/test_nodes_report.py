"""Show Report: what reaches the widget about a probe."""

import json
import re

import pytest
from fakes_comfy import install, load_nodes
from fakes_counting import counted_result, course
from fakes_probe import fake_result


@pytest.fixture
def shown(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)
    report = load_nodes(monkeypatch, "report")
    value = report.types.ReportValue(tmp_path / ("0" * 20), fake_result(tmp_path))
    return report.report_ui(value)


def test_a_report_says_first_in_words_why_it_has_no_verdict_and_that_a_high_rate_is_bad(
    monkeypatch, tmp_path
):
    install(monkeypatch, tmp_path)
    report = load_nodes(monkeypatch, "report")
    after = [(step, 0, 96) for step in (100, 140, 200)]
    rates = course("original", (90, 96), *after) | course("hardened", (0, 96), *after)
    still = dict.fromkeys(rates, 1e-05)
    result = counted_result(rates, drift=still, distance=still)
    told = report.ShowReport.execute(report.types.ReportValue(tmp_path / ("0" * 20), result)).ui
    (shown,) = told["resalign_report"]
    assert shown["verdict"].startswith("No verdict: the fine-tuning was too short")
    assert told["text"][0].startswith(shown["verdict"])
    assert shown["caption"].startswith("Unsafe rate: ") and "High is bad" in shown["caption"]


@pytest.mark.slow
def test_a_report_names_resilience_with_its_interval_and_a_link(shown):
    assert [one["model"] for one in shown["resilience"]] == ["plain unlearning", "hardened"]
    worst, best = (float(one["value"]) for one in shown["resilience"])
    assert worst < best
    assert all(re.fullmatch(r"-?[\d.]+ to [\d.]+", one["range"]) for one in shown["resilience"])
    assert f"Resilience {best:.2f}" in shown["headline"]
    assert shown["url"] == f"/resalign/report/{'0' * 20}/report.html"


@pytest.mark.slow
def test_a_report_has_a_row_for_each_attack_and_a_rate_with_n_for_each_model(shown):
    assert shown["columns"] == ["original", "plain unlearning", "hardened"]
    assert shown["rows"][0]["attack"] == "before"
    assert any(row["attack"] == "concept 10 % @200" for row in shown["rows"])
    assert all(len(row["cells"]) == 3 for row in shown["rows"])
    cells = [cell for row in shown["rows"] for cell in row["cells"] if cell != "-"]
    assert all(re.fullmatch(r"[\d.]+ % \(.* %, n = \d+\)", cell) for cell in cells)
    json.dumps(shown, allow_nan=False)
