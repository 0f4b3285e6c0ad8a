import ast
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest


@pytest.fixture
def installer(root, monkeypatch):
    """install.py as a module, with pip replaced by a list of the commands it would have got."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("resalign_install", root / "install.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.commands = []
    monkeypatch.setattr(module.subprocess, "run", lambda args, **_: module.commands.append(args))
    return module


@pytest.fixture
def installed(installer, monkeypatch):
    """The versions this fake Python has."""
    versions: dict[str, str] = {}

    def version(name):
        if name not in versions:
            raise installer.metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(installer.metadata, "version", version)
    return versions


def test_nothing_missing_runs_nothing_and_takes_milliseconds(installer, installed, root):
    for line in (root / "requirements.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            installed[line.split(">=")[0]] = "999.1.0+cpu"
    start = time.process_time()
    installer.main()
    assert time.process_time() - start < 0.2
    assert installer.commands == []


@pytest.mark.parametrize(
    ("have", "wanted", "expected"),
    [
        ({}, "peft>=0.13", ["peft>=0.13"]),
        ({"peft": "0.9.0"}, "peft>=0.13", ["peft>=0.13"]),
        ({"peft": "0.13"}, "peft>=0.13", []),
        ({"peft": "0.13.0rc1"}, "peft>=0.13", []),
        ({"peft": "1.0+cu121"}, "peft>=0.13  # why", []),
        ({}, '# note\n\ntomli>=2; python_version < "3.0"', []),
        ({}, 'tomli>=2; python_version < "99.0"', ["tomli>=2"]),
        ({}, "torch>=2.4\ntorchvision", []),
    ],
)
def test_what_is_missing_is_found_by_version(installer, installed, have, wanted, expected):
    installed.update(have)
    assert installer.missing(wanted) == expected


def test_pip_may_change_only_what_was_missing(installer, installed, monkeypatch):
    kept = []
    monkeypatch.setattr(
        installer.subprocess,
        "run",
        lambda args, **_: kept.append((args, Path(args[args.index("-c") + 1]).read_text())),
    )
    installer.install(["peft>=0.13"])
    ((command, constraints),) = kept
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == "peft>=0.13"
    pinned = {line.split("==")[0].lower() for line in constraints.splitlines()}
    assert "torch" in pinned
    assert "peft" not in pinned


def test_a_failure_is_printed_with_what_to_do_and_does_not_stop_the_host(
    installer, installed, monkeypatch, capsys
):
    def no_network(*_, **__):
        raise subprocess.CalledProcessError(1, "pip")

    monkeypatch.setattr(installer.subprocess, "run", no_network)
    installer.main()
    assert "-m pip install" in capsys.readouterr().err


def test_it_imports_nothing_of_ours_and_nothing_heavy(root):
    tree = ast.parse((root / "install.py").read_text())
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        (node.module or ".").split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
    }
    assert imported <= set(sys.stdlib_module_names)


def test_run_as_the_hosts_run_it_our_folder_is_off_the_path(root, tmp_path):
    """Forge runs `python <extension>/install.py`: `import backend` must not find ours there."""
    extension = tmp_path / "extension"
    (extension / "backend").mkdir(parents=True)
    (extension / "backend" / "__init__.py").write_text("")
    (extension / "requirements.txt").write_text("pip>=1\n")
    shutil.copy(root / "install.py", extension)
    with (extension / "install.py").open("a") as file:
        file.write("\nimport importlib.util\nprint(importlib.util.find_spec('backend'))\n")
    result = subprocess.run(
        [sys.executable, str(extension / "install.py")],
        cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert result.stdout.strip() == "None"


@pytest.mark.parametrize(
    ("files", "webui"),
    [
        (("launch.py", "modules/shared.py"), True),  # A1111, Forge
        (("main.py", "nodes.py", "comfy/model.py"), False),
        (("launch.py",), False),
        (("modules/shared.py",), False),
    ],
)
@pytest.mark.parametrize("told_by", ["cwd", "PYTHONPATH"])
def test_only_in_a1111_and_forge_the_worker_s_environment_is_looked_after(
    installer, monkeypatch, tmp_path, files, webui, told_by
):
    for name in files:
        (tmp_path / "host" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "host" / name).touch()
    host = str(tmp_path / "host")
    monkeypatch.chdir(host if told_by == "cwd" else tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", host]) if told_by != "cwd" else "")
    done = []
    monkeypatch.setattr(installer, "for_webui", lambda *, by_hand: done.append(by_hand))
    monkeypatch.setattr(installer, "missing", lambda _: [])
    installer.main()
    assert done == ([False] if webui else [])
    installer.main(["--webui"])
    assert done[-1] is True
