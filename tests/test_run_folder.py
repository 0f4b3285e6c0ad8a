import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
import torch

import resalign as ra
from resalign.backend.plan.file import from_json
from resalign.backend.run import sealed
from resalign.backend.run.folder import RunFolder
from resalign.scripts.resalign_webui.runs import read_runs

PLAN = ra.HardeningPlan(concept=ra.Concept("weapons", prompts=("a gun",)))
OTHER = ra.HardeningPlan(concept=ra.Concept("weapons", prompts=("a gun",)), seed=3)


def saved(path, step=2, records=3):
    with RunFolder.create(path, PLAN) as run:
        for number in range(1, records + 1):
            run.append({"step": number, "harm": 0.5 / number})
            if number == step:
                run.save_state(step, {"m": torch.arange(3.0)}, {"inner_steps": 8, "q": 0.1})


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    saved(tmp_path / "run")
    with RunFolder.open(tmp_path / "run", PLAN) as run:
        step, tensors, values = run.load_state()
    assert (step, values) == (2, {"inner_steps": 8, "q": 0.1})
    torch.testing.assert_close(tensors, {"m": torch.arange(3.0)}, rtol=0, atol=0)


def test_a_tensor_file_that_the_library_cannot_open_is_an_error_of_ours(tmp_path, monkeypatch):
    """safetensors says it in a RuntimeError: it ended a run with a traceback once in a while."""
    path = tmp_path / "adapter.safetensors"
    sealed.write_tensors(path, {"a": torch.zeros(1)}, {})

    def none_left(*_, **__):
        raise RuntimeError(f"unable to open file <{path}> in read-only mode: Too many open files")

    monkeypatch.setattr(sealed, "safe_open", none_left)
    for read in (sealed.read_tensors, sealed.read_header):
        with pytest.raises(ra.RunError, match=r"adapter.safetensors cannot be read: .* open files"):
            read(path)


def test_a_loaded_state_does_not_hang_on_its_file(tmp_path):
    """It stays as it was read when the file is overwritten in place, and starts on 64 bytes."""
    saved(tmp_path)
    with RunFolder.open(tmp_path) as run:
        loaded = run.load_state()
    assert loaded is not None
    tensor = loaded[1]["m"]
    file = tmp_path / "state.safetensors"
    with file.open("r+b") as stream:
        stream.write(b"\xff" * file.stat().st_size)
    assert tensor.tolist() == [0.0, 1.0, 2.0]
    assert tensor.data_ptr() % 64 == 0


def test_where_a_run_began_is_kept_when_it_goes_on_elsewhere(tmp_path):
    """The first answer stands."""
    began = {"instructions": "AVX2", "torch": "2.13.0", "threads": 8}
    with RunFolder.create(tmp_path, PLAN) as run:
        assert run.machine(began) == began
    with RunFolder.open(tmp_path) as run:
        assert run.machine(began | {"threads": 2}) == began


def test_records_after_the_saved_step_are_cut_when_a_run_continues(tmp_path):
    saved(tmp_path, step=2, records=3)
    with RunFolder.open(tmp_path) as run:
        assert [r["step"] for r in run.records()] == [1, 2, 3]
        run.load_state()
        run.append({"step": 3, "harm": 9.0})
        assert [r["harm"] for r in run.records()] == [0.5, 0.25, 9.0]


def test_a_run_without_a_saved_state_starts_over(tmp_path):
    saved(tmp_path, step=99, records=2)
    with RunFolder.open(tmp_path) as run:
        assert run.load_state() is None
        assert run.records() == []


def test_reading_a_run_changes_nothing(tmp_path):
    saved(tmp_path, step=1)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    run = RunFolder.open(tmp_path, read_only=True)
    assert run.load_state()[0] == 1
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    with pytest.raises(RuntimeError, match="read-only"):
        run.append({"step": 4})


def test_a_half_written_last_record_is_dropped(tmp_path):
    saved(tmp_path, step=3)
    with (tmp_path / "steps.jsonl").open("a") as file:
        file.write('{"step": 4, "ha')
    with RunFolder.open(tmp_path) as run:
        assert len(run.records()) == 3
        run.load_state()
        run.append({"step": 4, "harm": 1.0})
        assert run.records()[-1] == {"step": 4, "harm": 1.0}


def test_a_damaged_record_is_named_where_no_state_repeats_it(tmp_path):
    saved(tmp_path, step=99)
    (tmp_path / "steps.jsonl").write_text('{"step": 1}\nrubbish\n{"step": 3}\n')
    with pytest.raises(ra.RunError, match="line 2"):
        RunFolder.open(tmp_path, read_only=True).records()


def test_figures_that_are_not_finite_keep_the_records_valid_json(tmp_path):
    with RunFolder.create(tmp_path, PLAN) as run:
        run.append({"step": 1, "harm": float("nan"), "more": [float("inf"), 1.0]})
        assert run.records() == [{"step": 1, "harm": None, "more": [None, 1.0]}]


def test_another_plan_is_refused_and_the_difference_named(tmp_path):
    saved(tmp_path)
    with pytest.raises(ra.RunError, match="seed: 0, not 3"):
        RunFolder.open(tmp_path, OTHER)
    with pytest.raises(ra.RunError, match="seed: 0, not 3"):
        RunFolder.create(tmp_path, OTHER)


def test_a_run_with_saved_steps_is_not_begun_again(tmp_path):
    saved(tmp_path)
    with pytest.raises(ra.RunError, match="resalign resume"):
        RunFolder.create(tmp_path, PLAN)


def test_a_folder_prepared_by_the_command_line_is_taken_over_by_the_engine(tmp_path):
    job = ra.Job(checkpoint="a", output="b", plan=PLAN, device="cpu")
    RunFolder.create(tmp_path, job).close()
    with RunFolder.create(tmp_path, PLAN) as run:
        assert run.job == job
    assert RunFolder.open(tmp_path, read_only=True).job == job


def test_a_failed_save_leaves_the_state_before_it(tmp_path, monkeypatch):
    saved(tmp_path, step=2)
    with RunFolder.open(tmp_path) as run:

        def full_disk(*_, **__):
            raise OSError("No space left on device")

        monkeypatch.setattr("resalign.backend.run.files.os.replace", full_disk)
        with pytest.raises(ra.RunError, match="No space"):
            run.save_state(3, {"m": torch.zeros(3)}, {})
        monkeypatch.undo()
        assert run.load_state()[0] == 2


def test_a_damaged_state_is_named(tmp_path):
    saved(tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:50])
    with RunFolder.open(tmp_path) as run, pytest.raises(ra.RunError, match=r"state\.safetensors"):
        run.load_state()


def test_the_same_adapter_is_the_same_bytes(tmp_path):
    tensors = {f"m{i}.lora_A.weight": torch.full((2, 3), float(i)) for i in range(5)}
    files = []
    for name, ordered in (("a", tensors), ("b", dict(reversed(tensors.items())))):
        with RunFolder.create(tmp_path / name, PLAN) as run:
            run.save_adapter(ra.Adapter(ordered, rank=2, alpha=4.0), {"b": 1, "a": 2})
        files.append((tmp_path / name / "adapter.safetensors").read_bytes())
    assert files[0] == files[1]
    adapter, metadata = RunFolder.open(tmp_path / "a", read_only=True).load_adapter()
    assert (adapter.rank, adapter.alpha, metadata) == (2, 4.0, {"b": 1, "a": 2})
    torch.testing.assert_close(adapter.tensors, tensors, rtol=0, atol=0)


def test_a_run_without_result_says_how_to_finish_it(tmp_path):
    saved(tmp_path)
    with pytest.raises(ra.RunError, match="resalign resume"):
        RunFolder.open(tmp_path, read_only=True).load_adapter()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ra.RunError, match="not a run folder"):
        RunFolder.open(tmp_path)


def test_a_run_that_exists_is_continued_and_another_one_begun(tmp_path):
    saved(tmp_path / "old", step=2)
    with RunFolder.of(tmp_path / "old", PLAN) as run:
        assert run.steps_saved == 2
        assert RunFolder.of(run, PLAN) is run
    with RunFolder.of(tmp_path / "new", PLAN) as run:
        assert run.steps_saved == 0
    assert RunFolder.of(None, PLAN) is None
    with pytest.raises(ra.RunError, match="seed: 0, not 3"):
        RunFolder.of(tmp_path / "old", OTHER)


def test_a_run_that_was_never_closed_can_be_opened_again_in_its_process(tmp_path):
    first = RunFolder.create(tmp_path, PLAN)
    second = RunFolder.open(tmp_path)
    first.close()
    second.append({"step": 1})
    second.close()
    with pytest.raises(RuntimeError, match="closed"):
        second.append({"step": 2})


@pytest.mark.skipif(os.name == "nt", reason="flock")
def test_a_folder_that_an_older_version_works_on_is_in_use_and_afterwards_free(tmp_path):
    """Older versions locked the same file and wrote their process number into it."""
    import fcntl

    RunFolder.create(tmp_path, PLAN).close()
    (tmp_path / "run.pid").unlink()
    with (tmp_path / "run.lock").open("w") as file:
        file.write("4711")
        file.flush()
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ra.RunError, match=r"in use by another run \(process 4711\)"):
            RunFolder.open(tmp_path)
    with RunFolder.open(tmp_path):
        assert (tmp_path / "run.pid").read_text() == str(os.getpid())


def test_a_folder_that_cannot_be_locked_says_so(tmp_path, monkeypatch):
    from filelock import FileLock

    def fail(*args, **options):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(FileLock, "acquire", fail)
    with pytest.raises(ra.RunError, match=r"cannot be locked .*not supported.* on a local disk"):
        RunFolder.create(tmp_path, PLAN)


@pytest.mark.skipif(os.name == "nt", reason="kill -9")
def test_a_process_has_its_run_to_itself_and_when_killed_leaves_a_state_that_loads(
    tmp_path, package_folder
):
    code = f"""
        import importlib.util, sys
        root = {str(package_folder)!r}
        spec = importlib.util.spec_from_file_location(
            "resalign", root + "/__init__.py", submodule_search_locations=[root])
        sys.modules["resalign"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        import resalign as ra, torch
        from resalign.backend.run.folder import RunFolder
        plan = ra.HardeningPlan(concept=ra.Concept("weapons", prompts=("a gun",)))
        run = RunFolder.create({str(tmp_path / "run")!r}, plan)
        for step in range(1, 10**9):
            run.append({{"step": step}})
            run.save_state(step, {{"m": torch.full((50_000,), float(step))}}, {{"step": step}})
            if step == 3:
                print("going", flush=True)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    with pytest.raises(ra.RunError, match=f"process {process.pid}"):
        RunFolder.open(tmp_path / "run")
    time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    with RunFolder.open(tmp_path / "run", PLAN) as run:
        step, tensors, values = run.load_state()
        assert step >= 3
        assert values == {"step": step}
        assert (tensors["m"] == step).all()
        assert [r["step"] for r in run.records()] == list(range(1, step + 1))


def test_the_tab_reads_a_run_as_it_is_written(tmp_path):
    """Its plan without the checksum, since the tab builds a plan of it again."""
    saved(tmp_path / "run", step=2)
    (found,) = read_runs(tmp_path)
    assert found.steps == 2 and from_json(ra.HardeningPlan, found.plan) == PLAN
    (tmp_path / "run" / "plan.json").write_text("[" * 100_000)
    assert read_runs(tmp_path) == []
