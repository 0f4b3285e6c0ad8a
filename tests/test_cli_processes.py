"""The command line as a process: signals, and one of several ranks."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest
from marks import slow

from resalign.backend.cli import main


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("stop", slow(signal.SIGINT, signal.SIGTERM))
def test_a_signal_ends_a_process_with_130_and_its_state(stop, package_folder, tmp_path):
    """The program itself, in a process of its own, with an engine that only sleeps."""
    code = f"""
        import signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
        from importlib.util import module_from_spec, spec_from_file_location
        root = {str(package_folder)!r}
        spec = spec_from_file_location(
            "resalign", root + "/__init__.py", submodule_search_locations=[root])
        sys.modules["resalign"] = module = module_from_spec(spec)
        spec.loader.exec_module(module)
        import torch
        from types import SimpleNamespace
        import resalign.backend.jobs.harden as jobs
        from resalign.backend.checkpoint import load
        from resalign.backend.cli import main
        from resalign.backend.hardening import run

        def slow(model, plan, *, run_folder, on_progress, ranks):
            run_folder.save_state(2, {{"t": torch.zeros(1)}}, {{}})
            print("going", flush=True)
            time.sleep(60)

        run.harden, load.load_checkpoint = slow, lambda path, **_: SimpleNamespace()
        report = jobs.CheckReport(
            problems=(), warnings=(), checkpoint="m", device="cpu", images={{}})
        jobs.check_job = lambda job, **_: report
        sys.exit(main(["harden", "--checkpoint", "m", "--concept", "weapons", "--output", "o"]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=tmp_path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "going\n"
    time.sleep(0.1)
    process.send_signal(stop)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert "interrupted after step 2 of 300; continue with: resalign resume" in error
    assert "Traceback" not in error


def test_other_ranks_leave_what_is_no_ranks_work_to_the_first(monkeypatch, capsys):
    """`accelerate launch -m resalign presets` lists them once."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert main(["presets"]) == 0
    assert capsys.readouterr().out == ""
    monkeypatch.setenv("RANK", "0")
    assert main(["presets"]) == 0
    assert "weapons" in capsys.readouterr().out
