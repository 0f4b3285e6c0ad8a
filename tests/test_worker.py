"""The worker's protocol and requests: everything that needs no weights."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from resalign.backend.cli import main as command_line
from resalign.backend.errors import ConfigError, RunError
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import to_json
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.progress import Progress
from resalign.backend.worker import protocol
from resalign.backend.worker.protocol import Lines, StopFlag, Stopped, parse
from resalign.backend.worker.requests import HardenRequest, check_files, parse_request
from resalign.backend.worker.serve import judge

ROOT = Path(os.path.abspath(os.sep))
PLAN = HardeningPlan(concepts=(Concept("weapon", ("a pistol",)),))
HARDEN = {
    "job": "harden", "checkpoint": "demo", "plan": to_json(PLAN), "run_folder": str(ROOT / "run"),
}  # fmt: skip
LORA = {"job": "try_lora", "original": "demo", "lora": str(ROOT / "l"), "prompt": "a cat"}


def run_worker(package_folder, text, *options):
    """A worker that gets `text`, then the end of stdin."""
    return subprocess.run(
        [sys.executable, "-I", "-u", *options, package_folder / "backend/worker/__main__.py"],
        input=text, capture_output=True, text=True, timeout=120, cwd=ROOT,
    )  # fmt: skip


def test_a_request_becomes_values_with_every_default():
    request = parse_request(HARDEN)
    assert isinstance(request, HardenRequest) and request.plan == PLAN
    assert (request.device, request.preview_every, request.show_pictures) == ("auto", 10, False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"job": "hardne"}, "job is 'hardne'; choose from check, harden, resume, export"),
        ({"previev_every": 1}, "'previev_every' is not a field of the job harden; did you"),
        ({"zzz": 1}, "its fields are checkpoint, plan, run_folder, device"),
        ({"preview_every": "10"}, "harden.preview_every: expected a whole number, not '10'"),
        ({"preview_every": True}, "harden.preview_every: expected a whole number, not True"),
        ({"preview_every": -1}, "preview_every is -1; it must be at least 0"),
        ({"show_pictures": 1}, "harden.show_pictures: expected true or false, not 1"),
        ({"checkpoint": "model.safetensors"}, "harden.checkpoint is 'model.*; give an absolute"),
        ({"run_folder": "run"}, "harden.run_folder is 'run'; give an absolute path"),
        ({"run_folder": "demo"}, "harden.run_folder is 'demo'; give an absolute path"),
        ({"plan": []}, r"harden.plan: expected a table of fields, not \[\]"),
        ({"plan": {**to_json(PLAN), "outer_step": 1}}, "harden.plan.outer_step is not a field"),
        ({"plan": {**to_json(PLAN), "retain_set": {"folder": "cats"}}},
         "harden.plan.retain_set.folder is 'cats'; give an absolute path"),
        ({"plan": {**to_json(PLAN), "fine_tunes": [{"name": "u", "data": "dogs"}]}},
         r"harden.plan.fine_tunes\[0\].data is 'dogs'; give an absolute path"),
        ({"plan": {**to_json(PLAN), "fine_tunes": [{"name": "u", "data": "retain"}]}}, ""),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_request_is_said_by_its_name(change, message):
    if message == "":
        parse_request({**HARDEN, **change})
    else:
        with pytest.raises(ConfigError, match=message):
            parse_request({**HARDEN, **change})


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ([], "expected an object with `job`"),
        ({**HARDEN, "job": "check", "budget": -1}, "budget is -1; it must be at least 0"),
        ({**HARDEN, "job": "check", "preview_every": 1}, "not a field of the job check"),
        ({"job": "harden", "checkpoint": "demo"}, "harden.plan is missing"),
        (LORA, "give `hardened` or `run_folder`, one of them"),
        ({**LORA, "hardened": "demo", "width": 65}, "width is 65; it must be a multiple of 8"),
        ({**LORA, "hardened": "demo", "count": 0}, "count is 0; it must be at least 1"),
        ({"job": "lora", "run_folder": str(ROOT), "output": str(ROOT), "format": "x"},
         "lora.format is 'x'; choose from kohya, diffusers"),
        ({"job": "probe", "checkpoints": [{"name": "a", "path": "m"}], "folder": str(ROOT),
          "plan": {"concepts": [{"name": "w", "prompts": ["a gun"]}]}},
         r"probe.checkpoints\[0\].path is 'm'; give an absolute path"),
    ],
)  # fmt: skip
def test_the_other_jobs_are_as_strict(request_, message):
    with pytest.raises(ConfigError, match=message):
        parse_request(request_)


def test_files_are_looked_for_before_anything_is_loaded(tmp_path):
    there = tmp_path / "there.safetensors"
    there.touch()
    run = tmp_path / "run"
    run.mkdir()
    (run / "plan.json").touch()
    export = {"job": "export", "run_folder": str(run), "output": str(tmp_path / "out.safetensors")}
    check_files(parse_request(export))
    for change, message in (
        ({"run_folder": str(tmp_path)}, "not a run folder"),
        ({"output": str(tmp_path / "no" / "out")}, "does not exist; create it"),
        ({"output": str(there)}, "exists already"),
        ({"checkpoint": str(tmp_path / "gone")}, "export.checkpoint: .*gone does not exist"),
    ):
        with pytest.raises(ConfigError, match=message):
            check_files(parse_request({**export, **change}))
    check_files(parse_request({**export, "output": str(there), "overwrite": True}))
    check_files(parse_request(HARDEN))


def test_a_wrong_request_is_answered_without_loading_torch(package_folder):
    done = run_worker(package_folder, '{"job": "nothing"}\n', "-X", "importtime")
    event = parse(done.stdout.strip())
    assert done.returncode == protocol.USER
    assert (event["event"], event["kind"]) == ("failed", "user")
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "json" in loaded and not {"torch", "numpy", "safetensors"} & loaded


@pytest.mark.parametrize(
    ("text", "message"), [("", "stdin ended before one came"), ("{job\n", "is not valid JSON")]
)
def test_a_worker_without_a_request_says_so(package_folder, text, message):
    done = run_worker(package_folder, text)
    assert done.returncode == protocol.USER
    assert message in parse(done.stdout.strip())["message"]


def test_the_command_line_offers_the_worker_for_programs(capsys):
    with pytest.raises(SystemExit) as end:
        command_line(["worker", "--help"])
    assert end.value.code == 0 and "docs/formats.md" in capsys.readouterr().out


def test_the_command_is_the_same_worker(package_folder):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.path.insert(0, sys.argv[1]); import conftest; "
         "from resalign.backend.cli import main; sys.exit(main(['worker']))",
         Path(__file__).parent],
        input="{}\n", capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == protocol.USER, done.stderr
    assert "job is None" in parse(done.stdout.strip())["message"]


@pytest.mark.parametrize(
    ("line", "event"),
    [
        ('@resalign {"event": "x", "n": 1}', {"event": "x", "n": 1}),
        ("a library speaks", None),
        ('@resalign {"event": 1}', None),
        ("@resalign [1]", None),
        ("@resalign {", None),
        (' @resalign {"event": "x"}', None),
    ],
)
def test_only_whole_events_are_events(line, event):
    assert parse(line) == event


def test_lines_are_split_wherever_the_pipe_cuts_them():
    out, into = os.pipe()
    lines = Lines(out)
    os.write(into, b"one\ntw")
    assert lines() == b"one\n"
    os.write(into, b"o\n\nlast")
    os.close(into)
    assert [lines(), lines(), lines(), lines()] == [b"two\n", b"\n", b"last", b""]
    os.close(out)


@pytest.mark.parametrize("end", [b"cancel\n", b""])
def test_cancel_and_the_end_of_stdin_both_stop(end):
    flag, said = StopFlag(), [end, b"anything\n"]
    open_still = threading.Event()  # after a cancel
    flag.check()
    flag.watch(lambda: said.pop() if said else open_still.wait(), linger=3600)
    assert flag._set.wait(10)
    with pytest.raises(Stopped):
        flag.check()


def test_a_worker_without_a_host_does_not_wait_for_ever_for_a_step_to_end():
    code = """if True:
        import sys, time
        sys.path.insert(0, sys.argv[1])
        import conftest
        from resalign.backend.worker.protocol import Lines, StopFlag
        StopFlag().watch(Lines(), linger=0.1)
        time.sleep(60)
    """
    done = subprocess.run(
        [sys.executable, "-c", code, Path(__file__).parent], input=b"", timeout=30
    )
    assert done.returncode == protocol.STOPPED


def test_a_stop_is_no_exception_that_a_library_could_swallow():
    assert not issubclass(Stopped, Exception)


def test_pictures_go_over_the_pipe_only_when_they_change(monkeypatch):
    sent = []
    channel = protocol.Channel.__new__(protocol.Channel)
    channel._shown = None
    monkeypatch.setattr(channel, "send", lambda event, **fields: sent.append(fields["state"]))
    live = LiveState("harden", on_change=channel.state)
    live.report(now=True)
    from PIL import Image

    live.picture(Image.new("RGB", (64, 64)), "a", flagged=False)
    live(Progress(stage="harden", step=1, total=2, values={"harm": 1.0}))
    assert ["pictures" in state for state in sent] == [True, True, False]
    assert len(live.state["pictures"]) == 1
    json.dumps(sent, allow_nan=False)


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (RunError("give another folder"), "user", "give another folder"),
        (ModuleNotFoundError("x", name="diffusers.models"), "user", "environment again"),
        (ModuleNotFoundError("x", name="resalign.gone"), "bug", "ModuleNotFoundError: x"),
        (MemoryError("lower forget_batch"), "memory", "lower forget_batch"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "memory", "can't allocate"),
        (RuntimeError("shape mismatch"), "bug", "RuntimeError: shape mismatch"),
        (OSError(28, "No space left on device"), "user", "the disk is full"),
        (OSError(5, "Input/output error"), "bug", "OSError"),
    ],
)
def test_whose_mistake_it_was_is_told_apart(error, kind, text):
    found, message = judge(error)
    assert found == kind and text in message


def test_a_probes_curves_are_one_per_model_and_attack_from_where_it_was():
    live = LiveState("probe")

    def look(model, attack, at, seed=0, **values):
        labels = {"model": model, "attack": attack, "seed": str(seed), "at": str(at)}
        live(Progress(stage="probing", step=1, total=9, values=values, labels=labels))

    for model, before in (("original", 0.9), ("hardened", 0.1)):
        look(model, "before", 0, **{"drift": 3.0, "unsafe (x)": before, "unsafe (y)": 7.0})
        look(model, "lora", 50, **{"drift": 3.0, "unsafe (x)": before + 0.05})
    look("hardened", "lora", 50, seed=1, **{"recovered (denoising)": 0.3})
    assert live.state["curves"] == {
        "original: before": [[0, 0.9]],
        "original: lora": [[0, 0.9], [50, 0.95]],
        "hardened: before": [[0, 0.1]],
        "hardened: lora": [[0, 0.1], [50, 0.15]],
        "hardened: lora (seed 1)": [[0, 0.1], [50, 0.3]],
    }
