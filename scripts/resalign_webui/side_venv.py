"""Builds a venv of the host's Python that also sees the host's packages, last on its path.

The host's torch (several GB, built for the machine's GPU) is reused, and only what is missing or
too old is downloaded. Imports only the standard library, as install.py runs it too.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import cache
from importlib import metadata
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

OnLine = Callable[[str], None]
HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent

FAMILY = ("accelerate", "diffusers", "peft", "transformers")  # compatible only as a set
OLD_FAMILY = (
    "accelerate==0.31.0", "diffusers==0.31.0", "peft==0.13.2", "transformers==4.46.1"
)  # fmt: skip
NEWEST_NEEDS_TORCH = (2, 6)
# Compiled against each other: the worker must use the host's versions.
COMPILED = re.compile(r"(torch\w*|numpy|triton|xformers|nvidia[-_].*)", re.IGNORECASE)
NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|NameResolution|name resolution|ProxyError"
    r"|Max retries|Network is unreachable|getaddrinfo",
    re.IGNORECASE,
)
# Lines in which pip says that the host's package is fine or stays.
NOISE = re.compile(
    r"Requirement already satisfied"
    r"|\s*(Attempting uninstall|Found existing installation|Not uninstalling|Can't uninstall)"
)
# Variables that would point Python or pip away from the new venv.
ELSEWHERE = re.compile(r"PYTHON(PATH|HOME|STARTUP)|PIP_(USER|TARGET|PREFIX|ROOT|REQUIRE_V.*)")


class BuildError(Exception):
    """Says why the environment could not be built. again: another attempt may succeed."""

    def __init__(self, reason: str, again: bool = True) -> None:
        super().__init__(reason)
        self.again = again


@cache
def installer() -> ModuleType:
    """Load install.py, which looks up versions; by path, as `install` may be another module."""
    spec = spec_from_file_location("resalign_install", ROOT / "install.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def make(prefix: Path, requirements: str, on_line: OnLine) -> dict:
    """Build an environment that passes the self-check, in `<prefix>-<time>` if it needs a folder.

    Returns python (the worker's interpreter), site (its package folders), and the versions of
    torch and Python that it was built for.
    """
    torch = installer().installed("torch")
    if not torch:
        raise BuildError(f"{sys.executable} has no torch yet, which the worker is to share")
    path = _ask(sys.executable, "import json, sys; print(json.dumps(sys.path))")
    sites = [entry for entry in json.loads(path) if Path(entry).name.endswith("-packages")]
    found = {"torch": torch, "version": platform.python_version()}
    if not installer().missing(requirements, sites):
        on_line("The host has all that is needed: trying it.")
        if not _self_check(Path(sys.executable), on_line):
            return {**found, "python": sys.executable, "site": sites}
    problem = ""
    for family in _families(torch, requirements, sites):
        new = prefix.with_name(f"{prefix.name}-{time.time_ns()}")
        try:
            on_line("[1/4] Making an empty environment.")
            python, site = _venv(new, sites, on_line)
            _install(python, family, requirements, sites, on_line)
            lacking = installer().missing(requirements, [site, *sites])
            problem = f"it lacks {', '.join(lacking)}" if lacking else _self_check(python, on_line)
            if not problem:
                return {**found, "python": str(python), "site": [site, *sites]}
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        shutil.rmtree(new, ignore_errors=True)
        on_line(f"That did not work: {problem}")
    raise BuildError(f"no versions of {', '.join(FAMILY)} work here: {problem}", again=False)


def _families(torch: str, requirements: str, sites: list[str]) -> list[tuple[str, ...]]:
    """Return the sets of versions to try, the likeliest first. `>=`: the newest available."""
    needed = installer().needed(requirements)
    bounds = tuple(wanted for wanted, name, _ in needed if name in FAMILY)
    sets: list[tuple[str, ...]] = [OLD_FAMILY]
    if installer().numbers(torch) >= NEWEST_NEEDS_TORCH:
        sets.insert(0, bounds)
    if not installer().missing("\n".join(bounds), sites):
        sets.insert(0, ())  # the host's own
    return sets


def _venv(new: Path, sites: list[str], on_line: OnLine) -> tuple[Path, str]:
    """Create a venv that sees the host's packages too; return its Python and site-packages."""
    run([sys.executable, "-m", "venv", "--without-pip", str(new)], on_line)
    python = new / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    site = _ask(python, "import sysconfig; print(sysconfig.get_path('purelib'))")
    # Lines of a .pth file are appended: whatever the venv holds itself is found first.
    (Path(site) / "zz_host.pth").write_text("\n".join(sites) + "\n", encoding="utf-8")
    if not installer().installed("pip", sites):  # the host's pip serves, if it has one
        run([str(python), "-I", "-m", "ensurepip"], on_line)
    return python, site


def _install(
    python: Path, family: tuple[str, ...], requirements: str, sites: list[str], on_line: OnLine
) -> None:
    """Install the family as a set, then what else is missing."""
    command = [
        str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-user",
        "--prefer-binary", "--no-input", "--retries", "2", "--progress-bar", "off",
    ]  # fmt: skip
    if os.environ.get("INDEX_URL"):  # the hosts' own variable, for a mirror
        command += ["--index-url", os.environ["INDEX_URL"]]
    with tempfile.TemporaryDirectory() as temporary:
        constraints = Path(temporary) / "constraints.txt"
        there = {p.metadata["Name"]: p.version for p in metadata.distributions(path=sites)}
        fixed = [f"{name}=={v}" for name, v in there.items() if name and COMPILED.fullmatch(name)]
        constraints.write_text("\n".join(fixed), encoding="utf-8")
        command += ["-c", str(constraints)]
        if family:
            on_line(f"[2/4] Fetching {', '.join(family)}.")
            run([*command, "--upgrade", *family], on_line)
        needed = installer().needed(requirements)
        on_line("[3/4] Fetching what else is missing.")
        run([*command, *(wanted for wanted, name, _ in needed if name not in FAMILY)], on_line)


def _self_check(python: Path, on_line: OnLine) -> str:
    """Return why a worker does not run with this Python, "" if it does."""
    on_line("[4/4] Trying a step of hardening with it.")
    try:
        run([str(python), "-I", str(HERE / "self_check.py")], on_line)
    except BuildError as error:
        return str(error)
    return ""


def _ask(python: Path | str, code: str) -> str:
    lines: list[str] = []
    run([str(python), "-c", code], lines.append)
    return lines[-1]


def run(command: list[str], on_line: OnLine) -> None:
    """Run a command, passing each line of output to on_line; a failure is a BuildError.

    Runs in an empty folder, so that no file of the current one is taken for a module.
    """
    lines: list[str] = []
    environment = {k: v for k, v in os.environ.items() if not ELSEWHERE.fullmatch(k)}
    with tempfile.TemporaryDirectory() as empty:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, encoding="utf-8", errors="replace", env=environment, cwd=empty,
        )  # fmt: skip
        try:
            assert process.stdout
            with process.stdout:
                for line in process.stdout:
                    line = line.rstrip()
                    lines.append(line)
                    if line and not NOISE.match(line):
                        on_line(line)
            code = process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
    if code:
        raise BuildError(_reason(lines, code))


def _reason(lines: list[str], code: int) -> str:
    said = "\n".join(lines)
    errors = [line for line in lines if line.startswith("ERROR")]
    last = (errors or lines or [f"{code} was its exit code"])[-1]
    if "No space left" in said or "[Errno 28]" in said:
        return f"the disk is full ({last})"
    if NO_NETWORK.search(said):
        return f"there is no connection to the package index ({last})"
    return last
