"""Files and folders of strangers: refused quickly and clearly, and never run or written through."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from fakes_comfy import load_nodes

from resalign.backend.cli import main
from resalign.backend.data.concept import load_concepts
from resalign.backend.errors import ResAlignError, RunError
from resalign.backend.jobs.device import resolve_device
from resalign.backend.jobs.resume import job_in
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import load_job, load_probe_job
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.job import Job
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, ScorerConfig
from resalign.backend.plan.probe import ProbeCheckpoint, ProbeJob, ProbePlan
from resalign.backend.plan.toml_text import TOMLDecodeError
from resalign.backend.plan.toml_text import loads as toml_loads
from resalign.backend.probe.budget import BudgetSpent, check_size, timed
from resalign.backend.probe.folder import save_job
from resalign.backend.progress import Progress
from resalign.backend.report.markdown_text import code_text, escape
from resalign.backend.report.markup import tag
from resalign.backend.report.schema import load_report
from resalign.backend.run.folder import RunFolder
from resalign.backend.text.json_text import JsonError, loads
from resalign.backend.text.shown import visible
from resalign.backend.worker.protocol import LONGEST, Lines
from resalign.backend.worker.serve import read_request

DEEP = "[" * 100_000 + "]" * 100_000
HOSTILE_JSON = {
    "nested": f'{{"plan": {DEEP}}}',
    "deep objects": '{"a":' * 5000 + "1" + "}" * 5000,
    "fairly deep": "[" * 150 + "]" * 150,
    "huge integer": f'{{"plan": {{"seed": {"9" * 5000}}}}}',
    "long integer": f'{{"plan": {{"seed": {"9" * 1000}}}}}',
    "not text": "\udcff",
}
HOSTILE_TOML = {
    "nested": "plan = " + DEEP,
    "dotted": ".".join("a" * 60_000) + " = 1",
    "dotted tables": "[" + ".".join("a" * 60_000) + "]",
    "huge integer": f"seed = {'9' * 5000}",
}
PLAN = HardeningPlan(concepts=(Concept("weapon", prompts=("a gun",)),))
RLO, ESCAPE = "\u202e", "\x1b"


@pytest.fixture
def quickly():
    started = time.perf_counter()
    yield
    assert time.perf_counter() - started < 5  # under a second on a machine with nothing else to do


@pytest.fixture
def stranger(monkeypatch, tmp_path):
    """Folders are begun by somebody else within the call."""

    def begin(make):
        ours = os.environ["XDG_STATE_HOME"]
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "their state"))
        make()
        monkeypatch.setenv("XDG_STATE_HOME", ours)

    return begin


@pytest.mark.parametrize("text", HOSTILE_JSON.values(), ids=HOSTILE_JSON)
def test_hostile_json_is_refused_wherever_it_is_read(tmp_path, quickly, capsys, text):
    data = text.encode("utf-8", "surrogateescape")
    with pytest.raises(JsonError):
        loads(data)
    for name in ("plan.json", "job.json", "report.json", "concept.json"):
        (tmp_path / name).write_bytes(data)
    assert main(["check", str(tmp_path / "plan.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    for read in (
        lambda: load_job(tmp_path / "plan.json"),
        lambda: load_probe_job(tmp_path / "plan.json"),
        lambda: RunFolder.open(tmp_path, read_only=True),
        lambda: job_in(tmp_path),
        lambda: load_report(tmp_path / "report.json"),
        lambda: load_concepts(tmp_path / "concept.json"),
        lambda: read_request(data + b"\n"),
    ):
        with pytest.raises(ResAlignError):
            read()


@pytest.mark.parametrize("text", HOSTILE_TOML.values(), ids=HOSTILE_TOML)
def test_hostile_toml_is_refused(tmp_path, quickly, text):
    with pytest.raises(TOMLDecodeError):
        toml_loads(text)
    (tmp_path / "plan.toml").write_text(text)
    assert main(["check", str(tmp_path / "plan.toml")]) == 2
    with pytest.raises(ResAlignError):
        load_concepts(tmp_path / "plan.toml")


def test_sentences_with_many_full_stops_are_no_dotted_key():
    text = "a. " * 300
    assert toml_loads(f'prompts = ["{text}"]') == {"prompts": [text]}
    with pytest.raises(TOMLDecodeError, match="parts"):
        toml_loads("x = { " + " . ".join("a" * 200) + " = 1 }")


@pytest.mark.parametrize("value", ["1e400", "1" + "0" * 399, "NaN", "[[[[]]]]", "{}"])
def test_a_number_beyond_all_ranges_is_refused_by_its_field(tmp_path, quickly, value):
    (tmp_path / "p.json").write_text(
        f'{{"checkpoint": "a", "output": "b", "plan": {{"learning_rate": {value}, '
        '"concepts": [{"name": "a", "prompts": ["b"]}]}}'
    )
    with pytest.raises(ResAlignError, match="learning_rate"):
        load_job(tmp_path / "p.json")


def test_a_grid_of_a_million_users_is_refused(tmp_path, quickly):
    rates = [1e-6 * (n + 1) for n in range(1000)]
    grid = {"learning_rate": rates, "steps": list(range(1, 1001))}
    plan = {"concepts": [{"name": "a", "prompts": ["b"]}], "fine_tune_grid": [grid]}
    (tmp_path / "p.json").write_text(json.dumps({"checkpoint": "a", "output": "b", "plan": plan}))
    with pytest.raises(ResAlignError, match="combinations"):
        load_job(tmp_path / "p.json")


def test_control_and_bidirectional_characters_are_shown_as_escapes():
    assert visible(f"a{RLO}gnp.exe{ESCAPE}]0;x\x07\x9b2J\n\tä") == (
        "a\\u202egnp.exe\\x1b]0;x\\x07\\x9b2J\n\tä"
    )
    assert tag("p", f"<{RLO}", title=f"{ESCAPE}[2J") == '<p title="\\x1b[2J">&lt;\\u202e</p>'
    assert RLO not in escape(f"*{RLO}") and ESCAPE not in code_text(ESCAPE)


def test_names_cannot_control_the_terminal(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / f"a{ESCAPE}[2J{RLO}.safetensors")]) == 2
    shown = capsys.readouterr().err
    assert "\\x1b[2J\\u202e" in shown and ESCAPE not in shown and RLO not in shown


def probe_of(folder: Path, command: tuple[str, ...]) -> ProbeJob:
    plan = ProbePlan(
        concepts=PLAN.concepts, scorers=(ScorerConfig(name="command", command=command),)
    )
    checkpoints = (ProbeCheckpoint(name="original", path=str(folder / "none.safetensors")),)
    return ProbeJob(checkpoints=checkpoints, output=str(folder), plan=plan, device="cpu")


def test_resume_runs_no_command_that_this_user_did_not_type(tmp_path, stranger, capsys):
    """A received folder with nothing but a job file."""
    touched, folder = tmp_path / "touched", tmp_path / "probe"
    command = (sys.executable, "-c", f"open({str(touched)!r}, 'w')")
    job = probe_of(folder, command)
    stranger(lambda: save_job(job, []))
    assert [path.name for path in folder.iterdir()] == ["job.json"]
    assert main(["resume", str(folder)]) == 2
    assert "--run-commands" in capsys.readouterr().err
    assert job_in(folder, allow=lambda question: True) == job
    save_job(job, [])  # as `resalign probe` does: now it is this user's
    assert job_in(folder) == job
    assert not touched.exists()


def test_a_mark_holds_for_the_job_it_was_made_for(tmp_path):
    """A command put into a folder of this user's takes its mark away."""
    folder = tmp_path / "probe"
    save_job(probe_of(folder, ("true",)), [])
    fields = json.loads((folder / "job.json").read_text())
    fields["plan"]["scorers"][0]["command"] = ["false"]
    del fields["checksum"]
    (folder / "job.json").write_text(json.dumps(fields))
    with pytest.raises(RunError, match="run the command 'false'"):
        job_in(folder)


def test_a_plan_file_asks_before_it_runs_a_command(tmp_path, capsys):
    (tmp_path / "none.safetensors").write_text("")
    (tmp_path / "probe.toml").write_text(
        'output = "out"\n[[checkpoints]]\nname = "a"\npath = "none.safetensors"\n'
        '[plan]\n[[plan.concepts]]\nname = "a"\nprompts = ["b"]\n'
        '[[plan.scorers]]\nname = "command"\ncommand = ["rm", "-rf"]\n'
    )
    assert main(["probe", str(tmp_path / "probe.toml")]) == 2
    assert "'rm -rf'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_resume_writes_only_beside_a_strangers_run(tmp_path, stranger):
    run, away = tmp_path / "here" / "run", tmp_path / "away"
    run.parent.mkdir()
    job = Job(checkpoint="a.safetensors", output=str(away / "x.safetensors"), plan=PLAN)
    stranger(lambda: RunFolder.create(run, job).close())
    with pytest.raises(RunError, match=r"would write to .*x\.safetensors.*--output"):
        job_in(run)
    told = job_in(run, output=str(tmp_path / "mine.safetensors"))
    assert told.output == str(tmp_path / "mine.safetensors") and told.run_folder == str(run)
    RunFolder.create(tmp_path / "ours", job).close()
    assert job_in(tmp_path / "ours").output == job.output


def test_links_in_a_strangers_folder_are_refused(tmp_path, stranger):
    """Resuming appends to files, so a link would have it append to a file elsewhere."""
    (tmp_path / "precious").write_text("mine")
    run = tmp_path / "run"
    job = Job(checkpoint="a.safetensors", output=str(tmp_path / "x.safetensors"), plan=PLAN)
    stranger(lambda: RunFolder.create(run, job).close())
    (run / "steps.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="is a link"):
        job_in(run)
    (run / "run.lock").unlink()
    (run / "run.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(RunError, match="is a link"):
        RunFolder.open(run)
    assert (tmp_path / "precious").read_text() == "mine"


@pytest.mark.skipif(os.name == "nt", reason="needs symbolic links")
def test_links_in_a_circle_are_one_line(tmp_path, capsys):
    one, two = tmp_path / "one", tmp_path / "two"
    one.symlink_to(two)
    two.symlink_to(one)
    flags = ["--checkpoint", str(one / "a.safetensors"), "--concept", "weapons"]
    for command in (
        ["inspect", str(one / "a.safetensors")],
        ["resume", str(one)],
        ["check", *flags, "--output", str(one / "b.safetensors")],
    ):
        assert main(command) == 2
        assert capsys.readouterr().err.count("\n") == 1


HOSTILE_PLANS = {
    "prompts": {"prompts": (PromptSet(kind="unsafe", prompts=("a",) * 100_000),)},
    "pictures": {"prompts": (PromptSet(kind="unsafe", prompts=("a",) * 9, images=10_000),)},
    "a set": {"forget_set": ImageSet(prompts=("a",), images=1_000_000)},
    "a batch": {"generation": GenerationConfig(batch=1024, resolution=4096)},
}


@pytest.mark.parametrize("fields", HOSTILE_PLANS.values(), ids=HOSTILE_PLANS)
def test_verify_refuses_counts_that_no_honest_record_has(quickly, fields):
    check_size(ProbePlan(concepts=PLAN.concepts))
    with pytest.raises(RunError, match="more than the"):
        check_size(ProbePlan(concepts=PLAN.concepts, **fields))


def test_verify_stops_when_its_budget_is_spent():
    now = [0.0]
    seen: list[Progress] = []
    report = timed(seen.append, 2, clock=lambda: now[0])
    report(Progress(stage="probing", step=1, total=10**6))
    now[0] = 121
    with pytest.raises(BudgetSpent):
        report(Progress(stage="probing", step=2, total=10**6))
    assert [progress.step for progress in seen] == [1]


def test_only_the_reports_own_files_are_served(monkeypatch, tmp_path, host_folder):
    routes, key = load_nodes(monkeypatch, "routes"), "0123456789abcdef0123"
    folder = host_folder / "resalign" / "probes" / key
    folder.mkdir(parents=True)
    for name in ("report.html", "report.json", "job.json", "plan.json", "looks.jsonl"):
        (folder / name).write_text("{}")
    (folder / "report.md").symlink_to(folder / "job.json")
    assert routes.report_file(key, "report.html") == folder / "report.html"
    for bad in ("job.json", "plan.json", "report.json", "report.md", "a\0.html", "a" * 5000,
                "\udcff.html", "pictures/a.png", "report.html/", "./report.html"):  # fmt: skip
        assert routes.report_file(key, bad) is None, bad
        assert routes.report_file(bad, "report.html") is None, bad


@pytest.fixture
def host_folder(monkeypatch, tmp_path):
    import fakes_comfy

    fakes_comfy.install(monkeypatch, tmp_path)
    return tmp_path / "output"


def test_a_workers_line_is_bounded(quickly):
    read, write = os.pipe()

    def send() -> None:
        with os.fdopen(write, "wb") as file:
            for _ in range(3 * LONGEST >> 20):
                file.write(b"x" * (1 << 20))
            file.write(b"\ncancel\n")

    sender = threading.Thread(target=send)
    sender.start()
    lines = Lines(read)
    line = lines()
    assert len(line) == LONGEST + 2 and line.endswith(b"x\n")
    assert lines() == b"cancel\n" and lines() == b""
    sender.join()
    os.close(read)
    with pytest.raises(ResAlignError, match="longer than"):
        read_request(line)


@pytest.mark.parametrize(
    "request_",
    [
        {"job": []},
        {"job": "resume", "run_folder": "/" + "a" * 100_000},
        {"job": "resume", "run_folder": "/\0"},
        {"job": "export", "run_folder": ["/a"], "output": "/b"},
        {"job": "probe", "checkpoints": {"a": 1}, "plan": [], "folder": "/b"},
        [],
    ],
)
def test_a_worker_refuses_odd_requests_in_one_line(request_):
    with pytest.raises(ResAlignError) as found:
        read_request(json.dumps(request_).encode() + b"\n")
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("device", ["xpu", "meta", "hpu", "cuda:99", "nonsense"])
def test_devices_that_do_not_exist_are_refused(device):
    with pytest.raises(ResAlignError, match="device is"):
        resolve_device(device)
