"""The worker's environment in A1111 and Forge, made by the real pip from tiny wheels."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import pytest
from fakes_webui_env import NEW, OLD, WebuiHost, kill_hard, wheel

import resalign as ra
from resalign.backend.plan.file import read_file

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and links of POSIX")
VERSIONS = (
    "import torch, numpy, diffusers, peft, safetensors\n"
    "print(*(m.__version__ for m in (torch, numpy, diffusers, peft, safetensors)))\n"
)


@pytest.fixture(scope="module")
def host(root, tmp_path_factory) -> WebuiHost:
    return WebuiHost(tmp_path_factory.mktemp("webui"), root)


@pytest.fixture
def new_host(root, tmp_path) -> WebuiHost:
    return WebuiHost(tmp_path, root)


def wait_for(process, text: str) -> None:
    """Until the started installer has printed `text`."""
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"it ended without {text!r}: {process.communicate()}")


def made(host: WebuiHost) -> list[Path]:
    return sorted(path for path in host.environments.glob("py*-*-*") if path.is_dir())


# In this order: one host through its life, as each build takes a few seconds.


def test_before_the_first_start_the_tab_is_told_what_to_do(host):
    state, reason, command, python = host.status()
    assert (state, python) == ("missing", "None")
    assert "not been made" in reason
    assert command == f'"{host.python}" "{host.extension / "install.py"}" --webui'


def test_a_start_makes_it_around_the_host_s_torch_and_leaves_the_host_alone(host):
    before = host.freeze()
    said = host.install()
    assert "the host's packages stay untouched" in said
    assert "Attempting uninstall" not in said
    assert host.worker(VERSIONS) == "2.1.2 1.26.2 0.31.0 0.13.2 0.8.0"
    shared = host.worker("import torch; print(torch.__file__)")
    assert shared == str(host.site / "torch" / "__init__.py")
    assert host.freeze() == before


def test_the_next_start_does_nothing_in_milliseconds(host):
    before = made(host)
    start = time.perf_counter()
    spent = os.times()
    assert host.install() == ""
    wall = time.perf_counter() - start
    after = os.times()
    used = after.children_user + after.children_system - spent.children_user - spent.children_system
    assert used < 0.5, f"{used} s of CPU, {wall} s"
    assert made(host) == before


def test_an_update_of_the_host_s_torch_has_it_made_again(host):
    host.put(torch="2.13.0+cu130")
    assert host.status()[:2] == [
        "broken",
        "the worker's environment no longer matches the host: "
        "it was made for torch 2.1.2, and the host has 2.13.0+cu130 now",
    ]
    host.install()
    assert host.worker(VERSIONS) == f"2.13.0+cu130 1.26.2 {NEW['diffusers']} {NEW['peft']} 0.8.0"
    assert len(made(host)) == 2  # a worker may still run in the old one
    host.install()
    assert len(made(host)) == 1


def test_without_a_network_it_says_so_keeps_the_host_going_and_tries_again(host):
    """A requirement that an update of the extension brings cannot be fetched."""
    requirements = host.extension / "requirements.txt"
    text = requirements.read_text()
    requirements.write_text(text + "einops>=0.8\n")
    before = made(host)
    nobody = {"PIP_NO_INDEX": "", "PIP_FIND_LINKS": "", "PIP_INDEX_URL": "http://127.0.0.1:9/"}
    said = host.install(**nobody)
    assert "there is no connection to the package index" in said
    by_hand = f'"{host.python}" "{host.extension / "install.py"}" --webui'
    assert said.splitlines()[-1].endswith(f"By hand: {by_hand}")
    state, reason, command, python = host.status()
    assert (state, command, python) == ("broken", by_hand, "None")
    assert "it lacks einops>=0.8" in reason and "no connection" in reason
    assert set(made(host)) == set(before)
    requirements.write_text(text)
    assert host.install() == ""
    assert host.status()[0] == "ready"


@pytest.mark.slow
def test_what_was_torn_is_never_taken_for_ready_and_goes(new_host):
    process = new_host.start(SELF_CHECK_SECONDS="60")
    wait_for(process, "self-check of")
    kill_hard(process)
    (torn,) = made(new_host)
    assert new_host.status()[0] == "missing"
    new_host.install()
    (whole,) = made(new_host)
    assert whole != torn
    assert new_host.status()[0] == "ready"


@pytest.mark.slow
def test_two_starts_at_once_make_one(new_host):
    first = new_host.start(SELF_CHECK_SECONDS="2")
    wait_for(first, "self-check of")
    assert new_host.status()[0] == "building"
    assert "another process is making it" in new_host.install()
    out, err = first.communicate(timeout=60)
    assert (first.returncode, err) == (0, ""), out
    assert len(made(new_host)) == 1
    assert new_host.status()[0] == "ready"


@pytest.mark.slow
def test_ctrl_c_ends_it_with_nothing_left_and_no_error(new_host):
    process = new_host.start(SELF_CHECK_SECONDS="60")
    wait_for(process, "self-check of")
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    assert "stopped" in out and "--webui" in out
    assert made(new_host) == []


@pytest.mark.slow
def test_a_host_that_has_all_is_used_itself(new_host):
    new_host.put(**OLD, filelock="3.15", safetensors="0.8.0", scipy="1.14", matplotlib="3.9",
                 pillow="11.0", tqdm="4.67", tomli="2.2")  # fmt: skip
    new_host.install()
    assert made(new_host) == []
    assert new_host.status()[3] == str(new_host.python)
    new_host.put(transformers="4.30.2")  # another extension wanted that one
    assert new_host.status()[:2] == [
        "broken", "the worker's environment no longer matches the host: it lacks transformers>=4.44"
    ]  # fmt: skip


@pytest.mark.slow
def test_where_the_newest_do_not_work_the_older_set_is_tried(new_host):
    new_host.put(torch="2.13.0")
    said = new_host.install(SELF_CHECK_REFUSES=NEW["diffusers"])
    assert f"no luck with {NEW['diffusers']}" in said
    assert new_host.worker(VERSIONS) == "2.13.0 1.26.2 0.31.0 0.13.2 0.8.0"
    assert len(made(new_host)) == 1


@pytest.mark.slow
def test_what_cannot_work_is_not_tried_at_each_start_but_by_hand(new_host):
    refused = {"SELF_CHECK_REFUSES": OLD["diffusers"]}
    assert "no luck with" in new_host.install(**refused)
    said = new_host.install(**refused)
    assert len(said.splitlines()) == 1 and "no luck with" in said
    assert made(new_host) == []
    said = new_host.install("--webui")
    assert said.splitlines()[-1].startswith("ResAlign: ready, ")


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_told_with_the_way_out(new_host):
    new_host.environments.write_text("a file where the folder should be")
    said = new_host.install()
    assert ".webui-env" in said and "RESALIGN_WEBUI_ENV can name a folder" in said
    elsewhere = new_host.root / "elsewhere"
    new_host.install(RESALIGN_WEBUI_ENV=str(elsewhere))
    assert new_host.status(RESALIGN_WEBUI_ENV=str(elsewhere))[0] == "ready"


def test_before_the_host_has_torch_nothing_is_made(new_host):
    for path in new_host.site.glob("torch*"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    assert "has no torch yet" in new_host.install()
    assert made(new_host) == []


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare for a small disk")
def test_a_full_disk_is_told_and_leaves_nothing_half_made(new_host, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    environment = new_host.environment(RESALIGN_WEBUI_ENV=str(disk), PIP_NO_CACHE_DIR="1")
    wheel(new_host.index, "diffusers", OLD["diffusers"], ballast=4 << 20)
    code = (
        f"mount -t tmpfs -o size=3m tmpfs {disk} && "
        f"{new_host.python} {new_host.extension / 'install.py'} && ls {disk}"
    )
    result = subprocess.run(
        ["unshare", "-rm", "sh", "-c", code], cwd=new_host.root, env=environment, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    if "unshare" in result.stderr or "mount" in result.stderr:
        pytest.skip(f"no user namespaces here: {result.stderr.strip()}")
    assert result.returncode == 0, result.stderr
    assert "the disk is full" in result.stdout
    assert "By hand: " in result.stdout
    names = result.stdout.split("By hand: ")[1].splitlines()[1:]
    assert [name for name in names if name.count("-") > 1] == []


@pytest.fixture
def environment(root):
    return importlib.import_module("resalign.scripts.resalign_webui.environment")


def test_outside_a_web_ui_the_worker_runs_with_our_own_python(environment):
    assert environment.worker_python() == Path(sys.executable)


def test_in_a_web_ui_without_it_the_worker_s_python_is_an_error_that_helps(
    environment, monkeypatch, tmp_path
):
    monkeypatch.setitem(sys.modules, "modules.script_callbacks", types.ModuleType("x"))
    monkeypatch.setenv("RESALIGN_WEBUI_ENV", str(tmp_path))
    with pytest.raises(ra.RunError, match=r"not been made yet. By hand: .*install.py\" --webui"):
        environment.worker_python()
    monkeypatch.setenv("RESALIGN_PYTHON", "/a/python/of/the/user's")
    assert environment.worker_python() == Path("/a/python/of/the/user's")


def test_a_damaged_record_is_broken_and_no_crash(environment, monkeypatch, tmp_path):
    monkeypatch.setenv("RESALIGN_WEBUI_ENV", str(tmp_path))
    for text in ("", "[]", "{}", '"x"', '{"torch": 3}', "\udcff"):
        (tmp_path / f"{environment.key()}.json").write_bytes(text.encode(errors="replace"))
        assert environment.status().state == "broken", text


def test_what_is_asked_of_pip_is_what_the_package_says_it_needs(environment, root):
    stated = read_file(root / "pyproject.toml")["project"]["dependencies"]
    named = {line.partition(";")[0].strip() for line in stated}
    found = environment.installer().needed(environment.requirements() + "\ntomli>=2.0")
    assert {wanted for wanted, _, _ in found} | {"tomli>=2.0", "torch>=2.1"} == named | {
        "torch>=2.1"
    }


def test_it_imports_the_standard_library_alone(root):
    """install.py runs these modules in a host's Python before anything of ours is there."""
    for name in ("environment", "side_venv"):
        tree = ast.parse((root / "scripts" / "resalign_webui" / f"{name}.py").read_text())
        for node in tree.body:
            if isinstance(node, ast.Import):
                assert {alias.name for alias in node.names} <= set(sys.stdlib_module_names)
            elif isinstance(node, ast.ImportFrom):
                local = node.level == 1 and node.module == "side_venv"
                assert local or node.module.split(".")[0] in sys.stdlib_module_names
