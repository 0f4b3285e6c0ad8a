"""The probe from the command line, on real files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resalign.backend.cli import main
from resalign.backend.probe.folder import EVALUATIONS
from resalign.backend.probe.recorded import _results

PLAN = """
output = "{output}"
[[checkpoints]]
name = "original"
path = "original.safetensors"
[[checkpoints]]
name = "hardened"
path = "hardened.safetensors"
[plan]
pictures = 2
[plan.forget_set]
prompts = ["bad"]
images = 4
sampling_steps = 2
[plan.retain_set]
prompts = ["good"]
images = 4
sampling_steps = 2
[plan.generation]
steps = 2
[[plan.concepts]]
name = "bad"
prompts = ["bad"]
[[plan.prompts]]
kind = "retain"
prompts = ["good"]
[[plan.merges]]
name = "half"
[[plan.fine_tunes]]
name = "training"
concept_share = 0.5
steps = 2
batch = 2
rank = 2
"""
HARDEN = """
checkpoint = "original.safetensors"
output = "hardened.safetensors"
[plan]
outer_steps = 2
warm_up_steps = 2
forget_batch = 1
retain_batch = 1
[plan.forget_set]
prompts = ["bad"]
images = 2
sampling_steps = 2
[plan.retain_set]
prompts = ["good"]
images = 2
sampling_steps = 2
[[plan.concepts]]
name = "bad"
prompts = ["bad"]
"""


def said(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with an original, a hardened checkpoint with its run, and a finished probe."""
    folder = tmp_path_factory.mktemp("place")
    write_tiny_checkpoint(folder / "original.safetensors", dtype=torch.float32)
    (folder / "harden.toml").write_text(HARDEN)
    (folder / "probe.toml").write_text(PLAN.format(output="probe"))
    assert main(["harden", str(folder / "harden.toml")]) == 0
    assert main(["probe", str(folder / "probe.toml")]) == 0
    return folder


@pytest.fixture(scope="module")
def recorded(place) -> Path:
    """An export with the probe's outcome in its header."""
    target = place / "recorded.safetensors"
    run = str(place / "hardened.safetensors.run")
    assert main(["export", run, "--output", str(target), "--probe", str(place / "probe")]) == 0
    return target


def test_a_probe_ends_in_a_report(place, capsys):
    """Three files for readers, the web and programs, and the headline on the screen."""
    assert main(["report", str(place / "probe")]) == 0
    text = capsys.readouterr().out
    assert "report.html" in text and "esilience" in text
    for name in ("report.html", "report.md", "report.json"):
        assert (place / "probe" / name).stat().st_size > 500
    assert str(place) not in (place / "probe" / "report.json").read_text()


@pytest.mark.slow
def test_flags_do_what_a_plan_file_does(place, capsys, monkeypatch):
    """Without a plan file: checkpoints, a concept, a LoRA of one's own; no training."""
    monkeypatch.chdir(place)
    (place / "prompts.csv").write_text("prompt,sd_seed,sd_guidance_scale\na tree,7,3\n")
    flags = [
        "--concept", "weapons", "--preset", "none", "--output", "flags", "--merge", "original:1",
        "--lora", "hardened-lora.safetensors:-1", "--forget", "pictures", "--retain", "pictures",
    ]  # fmt: skip
    (place / "pictures").mkdir(exist_ok=True)
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (64, 64), (number * 90, 0, 0)).save(place / "pictures" / f"{number}.png")
        (place / "pictures" / f"{number}.txt").write_text("a red thing")
    for kind in ("unsafe", "neighbour", "retain"):
        flags += [f"--{kind}-prompts", "prompts.csv"]
    assert main(["probe", "original.safetensors", "hardened.safetensors", *flags, "--json"]) == 0
    events = said(capsys)
    points = [event for event in events if event["event"] == "progress" and event.get("labels")]
    assert {point["labels"]["attack"] for point in points} == {
        "before", "1 of original", "hardened-lora",
    }  # fmt: skip
    assert any(point.get("pictures") for point in points)
    assert any("drift" in point["values"] for point in points)
    done = events[-1]
    assert done["event"] == "done" and done["complete"]


@pytest.mark.slow
def test_a_probe_that_was_stopped_is_gone_on_with(place, capsys):
    """`resume` takes a probe's folder as it takes a run's."""
    looks = place / "probe" / EVALUATIONS
    lines = looks.read_text().splitlines(keepends=True)
    looks.write_text("".join(lines[:4]))
    assert main(["report", str(place / "probe")]) == 0
    assert "not finished" in capsys.readouterr().out
    assert main(["resume", str(place / "probe")]) == 0
    capsys.readouterr()
    again = looks.read_text().splitlines()
    assert len(again) == len(lines)

    def plain(line: str) -> dict:
        return {**json.loads(line), "seconds": None, "checksum": None}

    assert [plain(line) for line in again] == [plain(line) for line in lines]


@pytest.mark.slow
def test_a_recorded_probe_is_verified(recorded, capsys):
    """Everything that the header of an export says is found to hold."""
    with safe_open(recorded, framework="pt") as file:
        assert "flagged_after" in file.metadata()["resalign.probe"]
    capsys.readouterr()
    assert main(["verify", str(recorded)]) == 0
    text = capsys.readouterr().out
    assert "WRONG" not in text and "not checked" not in text
    assert "all 6 evaluations agree in every image" in text
    assert "came out again" in text and "read the plan" in text
    assert main(["verify", str(recorded), "--no-probe", "--json"]) == 0
    last = said(capsys)[-1]
    assert last["verified"] is True and "No figure was measured again" in last["says"][1]


@pytest.mark.slow
def test_figures_that_were_never_measured_are_found_by_repeating_them(recorded, capsys):
    """Hashes agree with a header that was written anew; only the replay gives it away."""
    tensors = load_file(recorded)
    with safe_open(recorded, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["resalign.probe"])
    for row in record["looks"]:
        row[4] = row[5] - row[4] if row[4] in (0, row[5]) else 0
    record["results"] = _results(record["looks"], record["model"])  # else refused at once
    forged = recorded.with_name("figures.safetensors")
    save_file(tensors, forged, metadata={**metadata, "resalign.probe": json.dumps(record)})
    assert main(["verify", str(forged), "--no-probe"]) == 0
    assert "No figure was measured again" in capsys.readouterr().out
    assert main(["verify", str(forged)]) == 1
    text = capsys.readouterr().out
    assert "differ by more than chance" in text and "A check failed" in text


def test_a_file_that_was_changed_is_found_out(place, capsys):
    """One weight that is not what the header says is enough, and the exit code tells."""
    tensors = load_file(place / "hardened.safetensors")
    with safe_open(place / "hardened.safetensors", framework="pt") as file:
        metadata = file.metadata()
    name = "first_stage_model.decoder.conv_in.weight"
    tensors[name][0, 0, 0, 0] += 1
    forged = place / "forged.safetensors"
    save_file(tensors, forged, metadata=metadata)
    assert main(["verify", str(forged), "--no-probe"]) == 1
    assert "tensors as recorded" in capsys.readouterr().out
    assert main(["verify", str(place / "original.safetensors")]) == 2
    assert "nothing to verify" in capsys.readouterr().err


@pytest.mark.parametrize(
    "planted",
    [
        {"scorers": [{"name": "command", "command": ["touch", "RAN"]}]},
        {"loras": [{"name": "l", "loras": [{"path": "/etc/passwd"}]}]},
        {"prompts": [{"kind": "unsafe", "file": "/etc/passwd"}]},
    ],
)
def test_a_recorded_plan_cannot_name_files_or_commands(recorded, capsys, tmp_path, planted):
    """A checkpoint from a stranger gets nothing run or read by being verified."""
    planted = json.loads(json.dumps(planted).replace("RAN", str(tmp_path / "RAN")))
    tensors = load_file(recorded)
    with safe_open(recorded, framework="pt") as file:
        metadata = file.metadata()
    record = json.loads(metadata["resalign.probe"])
    record["plan"] |= planted
    forged = recorded.with_name("planted.safetensors")
    save_file(tensors, forged, metadata={**metadata, "resalign.probe": json.dumps(record)})
    assert main(["verify", str(forged)]) == 2
    assert "names files or commands" in capsys.readouterr().err
    assert not (tmp_path / "RAN").exists()


def test_reports_are_compared(place, capsys):
    """A page with every model of every report."""
    assert main(["report", str(place / "probe")]) == 0
    other = place / "other.json"
    other.write_bytes((place / "probe" / "report.json").read_bytes())
    page = ["compare", str(place / "probe"), str(other)]
    assert main([*page, "--output", str(place / "comparison")]) == 0
    assert capsys.readouterr().out.count("comparison")
    assert any(path.suffix == ".html" for path in (place / "comparison").iterdir())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["probe"], "plan file"),
        (["probe", "original.safetensors"], "--concept"),
        (["probe", "gone.safetensors", "--concept", "weapons"], "gone.safetensors"),
        (["probe", "probe.toml", "hardened.safetensors"], "give no others"),
        (["probe", "original.safetensors", "--concept", "weapons", "--preset", "brief"], "brief"),
        (
            ["probe", "original.safetensors", "--concept", "weapons", "--seeds", "one"],
            "not a whole number",
        ),
        (["report", "hardened.safetensors.run"], "hardening run"),
        (["report", "nowhere"], "nowhere"),
        (["compare", "nowhere"], "nowhere"),
        (["verify", "hardened.safetensors", "--source", "gone"], "gone"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(place, capsys, monkeypatch, arguments, message):
    """A user's slip says what to do, and no traceback."""
    monkeypatch.chdir(place)
    assert main(arguments) == 2
    captured = capsys.readouterr().err
    assert message in captured and "Traceback" not in captured
