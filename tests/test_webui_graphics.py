"""Times on a machine without a GPU: nothing is promised that only a GPU can keep."""

from datetime import date

import pytest
from fakes_webui import host_with_a_checkpoint, write_run

from resalign.backend.plan.concept import Concept
from resalign.backend.plan.durations import NAMES, PURPOSES
from resalign.backend.plan.file import to_json
from resalign.backend.plan.presets import preset_plan
from resalign.scripts.resalign_webui import graphics, measure_forms, pace, thoroughness
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui.host import DEMO

MINE = "model.safetensors"
PLAN = to_json(preset_plan("balanced", [Concept("cat", ("a cat",))]))
FOUND, CHOSEN = "No GPU was found: times are not known", "No GPU is used: times are not known"


@pytest.fixture
def tab(tmp_path):
    return host_with_a_checkpoint(tmp_path)


def measure(host, device, seconds):
    """Let a hardening of the checkpoint on a device have taken so many seconds a pass."""
    run = hosts.runs_folder(host) / f"on {device}"
    write_run(run, PLAN, str(host.checkpoint_folder() / MINE), 160)
    (run / "job.json").write_text(
        f'{{"checkpoint": "{host.checkpoint_folder() / MINE}", "device": "{device}"}}'
    )
    state = {"status": "done", "pace": {"drawing": seconds}, "request": {"run_folder": str(run)}}
    pace.remember(hosts.work_folder(host), state, date(2026, 11, 28))


@pytest.mark.parametrize(
    ("gpu", "setting", "typed", "said"),
    [
        (True, "auto", "", ""), (False, "auto", "", FOUND), (True, "cpu", "", CHOSEN),
        (True, "auto", "cpu", CHOSEN), (False, "cpu", "auto", FOUND), (True, "cpu", "auto", ""),
        (False, "auto", "cuda:1", ""), (False, "mps", "", ""),
    ],
)  # fmt: skip
def test_without_a_gpu_no_choice_has_a_time_and_the_lines_say_why(tab, gpu, setting, typed, said):
    host, actions = tab
    host.gpu, host.settings["device"] = gpu, setting
    labels = [label for label, _ in actions.preset_choices(MINE, 0, typed)]
    plain = [f"{NAMES[name]}: {PURPOSES[name]}" for name in thoroughness.PRESETS]
    assert (labels == plain) is bool(said)
    lines = (
        actions.preset_line("fast", MINE, 0, typed),
        actions.attacks_line("quick", "none", MINE, typed),
    )
    for line in lines:
        assert (said in line and "expect many times what a GPU takes" in line) if said else True
        assert ("minute" in line or "hour" in line) is not bool(said)
        assert ("No GPU" in line) is bool(said)


def test_the_demo_keeps_its_times_without_a_gpu(tab):
    host, actions = tab
    before = actions.preset_choices(DEMO), actions.preset_line("fast", DEMO)
    host.gpu = False
    assert (actions.preset_choices(DEMO), actions.preset_line("fast", DEMO)) == before
    assert "No GPU" not in actions.attacks_line("quick", "none", DEMO)


def test_a_measured_pace_counts_for_its_own_device_alone(tab):
    host, actions = tab
    host.gpu = False
    measure(host, "cuda", 0.02)
    assert "No GPU is used" in actions.preset_line("fast", MINE, 0, "cpu")
    measure(host, "cpu", 3.0)
    line = actions.preset_line("fast", MINE, 0, "cpu")
    assert "about 1 hour" in line and "2026-11-28, cpu" in line and "No GPU" not in line
    assert "Test run: 1 h; " in actions.preset_choices(MINE, 0, "cpu")[0][0]
    assert "2026-11-28, cuda" in actions.preset_line("fast", MINE, 0, "cuda"), "kept beside it"
    probe = actions.attacks_line("quick", "none", MINE, "cpu")
    assert "About 32 hours" in probe and "a job here" in probe
    assert actions.preset_line("fast", MINE) == line, "auto: the newest"
    assert measure_forms.THE_RUN not in probe


def test_signs_of_a_gpu_are_looked_for_without_torch(monkeypatch, tmp_path):
    sign = tmp_path / "kfd"
    monkeypatch.setattr(graphics, "_SIGNS", (str(sign),))
    monkeypatch.setattr(graphics.shutil, "which", lambda name: None)
    monkeypatch.setattr(graphics.sys, "platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert not graphics.seen()
    sign.touch()
    assert graphics.seen()
    sign.unlink()
    monkeypatch.setattr(graphics.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert graphics.seen()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not graphics.seen(), "hidden from torch"
    monkeypatch.setattr(graphics.sys, "platform", "darwin")
    for machine in ("arm64", "x86_64"):
        monkeypatch.setattr(graphics.platform, "machine", lambda name=machine: name)
        assert graphics.seen() is (machine == "arm64")
