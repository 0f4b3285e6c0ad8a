import json
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

import resalign as ra
from resalign.backend.cli import main
from resalign.backend.cli.console import live_line
from resalign.backend.families import find_family
from resalign.backend.jobs import check as checking
from resalign.backend.jobs import export as outputs_module
from resalign.backend.run.folder import RunFolder
from resalign.backend.run.records import SimulationRecord, StepRecord

STEPS = 6


def record(step: int, simulated: bool = True) -> StepRecord:
    user = SimulationRecord(
        name="u", steps=8, harm_after=-0.2, q=0.6, move=1.0, first_loss=0.1, last_loss=0.1
    )
    return StepRecord(
        step=step, harm=-0.3, retain=0.01, resilience_weight=0.8, retain_weight=8.0,
        learning_rate=1e-4, gradient_norm=1.0, seconds=0.1,
        simulations=(user,) if simulated else (),
    )  # fmt: skip


class FakeEngine:
    """Takes the steps of a plan without a network; can be told to stop before one of them."""

    def __init__(self):
        self.stop_at: int | None = None
        self.error: BaseException = KeyboardInterrupt()
        self.begun_at: list[int] = []

    def harden(self, model, plan, *, run_folder, on_progress, ranks):
        state = run_folder.load_state()
        first = (state[0] if state else 0) + 1
        self.begun_at.append(first)
        for step in range(first, plan.outer_steps + 1):
            if step == self.stop_at:
                raise self.error
            run_folder.append(record(step, step > plan.warm_up_steps).to_json())
            run_folder.save_state(step, {"theta": torch.zeros(2)}, {})
            run_folder.save_adapter(ra.Adapter({}, rank=4, alpha=4.0), {"step": step})
            on_progress(
                ra.Progress(
                    stage="harden", step=step, total=plan.outer_steps,
                    values=record(step).values(), message="user u",
                )
            )  # fmt: skip
        return SimpleNamespace(warnings=("a user does not relapse",), seconds=1.0)


@pytest.fixture
def engine(monkeypatch, tmp_path):
    """The command line with everything that needs weights replaced."""

    fake = FakeEngine()
    info = SimpleNamespace(
        title="Stable Diffusion 1.x", layout="ldm", family=find_family("sd1"), bytes=1000,
        export_bytes=1000,
        path=tmp_path / "model.safetensors",
        resolution=512, configs={}, files={"unet": ()}, headers={}, sources=lambda component: {},
        cautions=(),
    )  # fmt: skip
    monkeypatch.setattr(checking, "detect", lambda path, **_: info)
    monkeypatch.setattr(checking, "_check_loadable", lambda info: None)
    monkeypatch.setattr(checking, "copies_of", lambda info: ())
    needed = SimpleNamespace(
        words=("about 3.1 GiB",), total=3 * 2**30, fits=None, changes={}, to_json=dict
    )
    monkeypatch.setattr(checking, "memory_needed", lambda *_: needed)
    monkeypatch.setattr("resalign.backend.hardening.run.harden", fake.harden)
    monkeypatch.setattr(
        "resalign.backend.checkpoint.load.load_checkpoint", lambda path, **_: SimpleNamespace()
    )

    def export(checkpoint, adapter, target, **_):
        target.write_text("hardened")
        return SimpleNamespace(touched=1, untouched=2, tensor_sha256="11", sha256="00", warnings=())

    def card(report):
        path = tmp_path / "out.md"
        path.write_text("card")
        return path

    def lora(adapter, path, **_):
        path.write_text("lora")
        return path

    monkeypatch.setattr(outputs_module, "export_merged", export)
    monkeypatch.setattr(outputs_module, "write_card", card)
    monkeypatch.setattr(outputs_module, "save_lora", lora)
    return fake


@pytest.fixture
def flags(tmp_path):
    (tmp_path / "model.safetensors").write_text("")
    return [
        "--checkpoint", str(tmp_path / "model.safetensors"), "--concept", "weapons",
        "--output", str(tmp_path / "out.safetensors"), "--preset", "quick",
        "--steps", str(STEPS), "--device", "cpu",
    ]  # fmt: skip


def events(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_help_takes_less_than_a_tenth_of_a_second_and_loads_nothing_heavy(package_folder, tmp_path):
    """The time is that of building the parser: a busy machine's start of Python is not ours."""
    code = f"""
        import sys, time
        from importlib.util import module_from_spec, spec_from_file_location
        root = {str(package_folder)!r}
        spec = spec_from_file_location(
            "resalign", root + "/__init__.py", submodule_search_locations=[root])
        sys.modules["resalign"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
        start = time.process_time()
        from resalign.backend.cli import main
        try:
            main(["--help"])
        except SystemExit as end:
            code = end.code
        taken = time.process_time() - start
        heavy = {{"torch", "numpy", "tqdm", "PIL", "safetensors"}} & set(sys.modules)
        print(taken < 0.1, sorted(heavy), code, taken, file=sys.stderr)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert done.stderr.startswith("True [] 0"), done.stderr
    for command in COMMANDS:
        assert command in done.stdout


COMMANDS = ("demo", "check", "harden", "export", "resume", "lora", "inspect", "plan", "presets")


@pytest.mark.parametrize("command", [[], *[[name] for name in COMMANDS], ["plan", "new"]])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    assert "usage: resalign" in capsys.readouterr().out


def test_verify_says_when_it_needs_a_text_encoder(capsys):
    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert "where either file has none" in " ".join(capsys.readouterr().out.split())


def test_hardening_writes_everything_and_says_what(engine, flags, tmp_path, capsys):
    assert main(["harden", *flags]) == 0
    shown = capsys.readouterr()
    for name in ("out.safetensors", "out-lora.safetensors", "out.md", "out-curves.png"):
        assert (tmp_path / name).is_file(), name
        assert str(tmp_path / name) in shown.out
    assert str(tmp_path / "out.safetensors.run") in shown.out
    with Image.open(tmp_path / "out-curves.png") as curves:
        assert curves.size[0] > 500
    assert "warning: a user does not relapse" in shown.err
    run = RunFolder.open(tmp_path / "out.safetensors.run", read_only=True)
    assert len(run.records()) == STEPS
    assert run.job is not None
    assert run.job.plan.warm_up_steps == round(8 * STEPS / 20), "the warm-up keeps its share"


def test_a_program_reads_one_object_per_line(engine, flags, capsys):
    assert main(["harden", *flags, "--json"]) == 0
    found = events(capsys.readouterr().out)
    steps = [e["step"] for e in found if e["event"] == "progress"]
    assert steps == list(range(1, STEPS + 1)), "no step is left out, however fast they come"
    assert found[-2]["event"] != "done"
    assert found[-1]["event"] == "done"
    assert found[-1]["output"].endswith("out.safetensors")
    assert (found[-1]["tensor_sha256"], found[-1]["sha256"]) == ("11", "00")


def test_an_interrupt_keeps_the_steps_and_says_how_to_go_on(engine, flags, tmp_path, capsys):
    engine.stop_at = 4
    assert main(["harden", *flags]) == 130
    error = capsys.readouterr().err
    folder = tmp_path / "out.safetensors.run"
    assert f"interrupted after step 3 of {STEPS}" in error
    assert f"resalign resume {folder}" in error
    assert not (tmp_path / "out.safetensors").exists()

    engine.stop_at = None
    assert main(["resume", str(folder)]) == 0
    assert engine.begun_at == [1, 4]
    assert (tmp_path / "out.safetensors").exists()


def test_the_same_command_twice_does_not_begin_again(engine, flags, tmp_path, capsys):
    engine.stop_at = 4
    main(["harden", *flags])
    assert main(["harden", *flags]) == 2
    assert "resalign resume" in capsys.readouterr().err
    assert engine.begun_at == [1]


def test_a_finished_run_is_only_exported_again(engine, flags, tmp_path):
    main(["harden", *flags])
    (tmp_path / "out.safetensors").unlink()
    assert main(["resume", str(tmp_path / "out.safetensors.run"), "--overwrite"]) == 0
    assert engine.begun_at == [1]
    assert (tmp_path / "out.safetensors").exists()


def test_a_run_stopped_early_is_not_exported_unless_asked(engine, flags, tmp_path, capsys):
    engine.stop_at = 4
    main(["harden", *flags])
    folder = str(tmp_path / "out.safetensors.run")
    other = str(tmp_path / "other.safetensors")
    assert main(["export", folder, "--output", other]) == 2
    assert "stopped after step 3" in capsys.readouterr().err
    assert main(["export", folder, "--output", other, "--unfinished"]) == 0
    assert (tmp_path / "other.safetensors").exists()


def test_a_mistake_is_one_line_and_exit_2_and_a_bug_keeps_its_traceback(engine, flags, capsys):
    engine.stop_at, engine.error = 2, ra.DivergenceError("outer step 2: lower gamma")
    assert main(["harden", *flags]) == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == "resalign: outer step 2: lower gamma"
    engine.stop_at, engine.error = 1, ZeroDivisionError("a bug")
    with pytest.raises(ZeroDivisionError):
        main(["harden", *flags, "--run-folder", flags[1] + ".other"])


def test_a_full_device_says_what_to_lower(engine, flags, capsys):
    engine.stop_at, engine.error = 2, torch.cuda.OutOfMemoryError("CUDA out of memory.\nmore")
    assert main(["harden", *flags]) == 2
    error = capsys.readouterr().err
    assert "gradient_checkpointing" in error
    assert "Traceback" not in error


def test_flags_replace_fields_of_a_plan_file(engine, tmp_path, capsys):
    plan = tmp_path / "plan.toml"
    assert main(["plan", "new", str(plan), "--preset", "quick"]) == 0
    (tmp_path / "model.safetensors").write_text("")
    arguments = [str(plan), "--seed", "5", "--steps", "3", "--concept", "drugs", "--device", "cpu"]
    assert main(["harden", *arguments]) == 0
    run = RunFolder.open(tmp_path / "model-hardened.safetensors.run", read_only=True)
    assert (run.plan.seed, run.plan.outer_steps) == (5, 3)
    assert [concept.name for concept in run.plan.concepts] == ["drugs"]
    assert main(["harden", str(plan), "--preset", "paper"]) == 2
    assert "leave it out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.toml"], r"none.toml does not exist"),
        (["harden", "--concept", "weapons"], "--checkpoint and --output"),
        (["harden", "--checkpoint", "a", "--output", "b", "--concept", "cats"], "drugs"),
        (["resume", "nowhere"], "is not a run folder"),
        (["lora", "nowhere", "--output", "x"], "is not a run folder"),
        (
            ["plan", "new", "p.toml", "--preset", "best"],
            "balanced, quick, edit, redirect, durable, durable-max, paper",
        ),
        (["inspect", "none.safetensors"], "none.safetensors"),
    ],
)
def test_mistakes_say_what_to_do(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    shown = capsys.readouterr()
    assert message in shown.err
    assert shown.err.startswith("resalign: ")
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.out == ""


def test_check_lists_every_problem_at_once(engine, tmp_path, capsys):
    images = tmp_path / "pets"
    images.mkdir()
    Image.new("RGB", (64, 64)).save(images / "good.png")
    (images / "good.txt").write_text("a cat")
    (images / "bad.png").write_bytes(b"no image")
    (images / "bad.txt").write_text("a dog")
    (tmp_path / "out.safetensors").write_text("")
    arguments = [
        "check", "--checkpoint", str(tmp_path / "m.safetensors"), "--concept", "weapons",
        "--output", str(tmp_path / "out.safetensors"), "--retain", str(images),
        "--forget", str(tmp_path / "none"), "--device", "cuda:99",
    ]  # fmt: skip
    assert main([*arguments, "--json"]) == 2
    (report, error) = events(capsys.readouterr().out)
    problems = "\n".join(report["problems"])
    for part in ("exists already", "bad.png", "none", "cuda:99"):
        assert part in problems
    assert error["event"] == "error"
    assert report["images"] == {str(images): 1}


def test_check_refuses_the_source_as_target_and_a_full_disk(engine, tmp_path, monkeypatch, capsys):
    source = tmp_path / "m.safetensors"
    source.write_text("")
    monkeypatch.setattr(
        checking.shutil, "disk_usage", lambda _: SimpleNamespace(free=10, total=10, used=0)
    )
    arguments = ["check", "--checkpoint", str(source), "--concept", "weapons", "--device", "cpu"]
    assert main([*arguments, "--output", str(source), "--overwrite"]) == 2
    shown = capsys.readouterr().out
    assert "is the checkpoint itself" in shown
    assert "are free there" in shown


def test_check_passes_what_harden_takes(engine, flags, capsys):
    assert main(["check", *flags]) == 0
    shown = capsys.readouterr().out
    assert "Stable Diffusion 1.x" in shown
    assert "memory      about 3.1 GiB" in shown


def test_presets_and_their_plans_are_listed(capsys):
    assert main(["presets", "--json"]) == 0
    (listed,) = events(capsys.readouterr().out)
    assert {"weapons", "nudity", "violence"} <= set(listed["concepts"])
    assert set(listed["plans"]) == {
        "balanced", "quick", "edit", "redirect", "durable", "durable-max", "paper",
    }  # fmt: skip


def test_the_live_line_shows_the_figures_in_a_fixed_order():
    values = {"q": 0.61234, "harm": -0.3, "harm_after": -0.2, "retain": 1e-5, "inner_steps": 8.0}
    expected = "L_harm(θ) -0.3  L_harm(θ*) -0.2  q 0.612  L_retain 1e-05  inner steps 8"
    assert live_line(values) == expected


def test_a_rank_timeout_is_more_than_nothing(capsys, flags):
    assert main(["harden", *flags, "--rank-timeout", "0"]) == 2
    assert "--rank-timeout is 0" in capsys.readouterr().err
