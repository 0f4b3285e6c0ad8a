"""A preset's attack was renamed: results with the old name load, resume and compare."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from fakes_probe import fake_plan, fake_result

from resalign.backend.errors import RunError
from resalign.backend.jobs.probe import probe_job
from resalign.backend.plan.attack import MergeAttack
from resalign.backend.plan.probe import BEFORE
from resalign.backend.plan.probe_presets import MERGED, PROBE_PRESETS
from resalign.backend.probe.folder import ProbeFolder
from resalign.backend.probe.former_names import as_stored, with_present_names
from resalign.backend.report.build import write_report
from resalign.backend.report.compare import compare_reports

OLD = "half the original"


def named(name, weight=0.5):
    return replace(fake_plan(), merges=(MergeAttack(name=name, weight=weight),))


def test_the_presets_say_what_is_merged():
    merges = [merge for one in PROBE_PRESETS.values() for merge in one.fields.get("merges", ())]
    assert [merge.weight for merge in merges if merge.name == MERGED] == [0.5] * 3
    assert not [merge for merge in merges if "half" in merge.name]


@pytest.mark.parametrize("weight", [0.5, 0.3])
def test_the_command_that_began_an_old_probe_continues_it(tmp_path, monkeypatch, weight):
    models = fake_result().models
    ProbeFolder.begin(tmp_path, named(OLD, weight), models, {}).close()
    begun = []

    def run(subjects, plan, **_):
        ProbeFolder.begin(tmp_path, plan, models, {}).close()
        begun.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr("resalign.backend.jobs.probe.run_probe", run)
    if weight != 0.5:  # somebody's own attack, which happens to have the name
        with pytest.raises(RunError, match="another probe"):
            probe_job(named(MERGED), folder=tmp_path, subjects=())
        return
    with pytest.raises(KeyboardInterrupt):
        probe_job(named(MERGED), folder=tmp_path, subjects=())
    assert begun == [named(OLD)], "under its own names, which its results have"


def test_a_new_probe_and_a_folder_of_another_kind_keep_the_plan(tmp_path):
    assert as_stored(named(MERGED), tmp_path) == named(MERGED)
    (tmp_path / "plan.json").write_text("{}", encoding="utf-8")
    assert as_stored(named(MERGED), tmp_path) == named(MERGED)


def test_an_old_and_a_new_report_are_of_one_group(tmp_path):
    for folder, name in (("old", OLD), ("new", MERGED)):
        write_report(fake_result(plan=named(name)), tmp_path / folder, pictures=tmp_path)
    compare_reports([tmp_path / "old", tmp_path / "new"], tmp_path / "both")
    (group,) = json.loads((tmp_path / "both" / "leaderboard.json").read_text())["groups"]
    assert MERGED in group["attacks"] and OLD not in group["attacks"]
    assert len(group["rows"]) == 4


def test_only_the_preset_s_attack_is_renamed():
    result = fake_result(plan=named(OLD))
    found = with_present_names(result)
    assert {each.attack for each in found.evaluations} - {BEFORE} >= {MERGED}
    assert len(found.evaluations) == len(result.evaluations)
    own = fake_result(plan=named(OLD, 0.3))
    assert with_present_names(own) is own
