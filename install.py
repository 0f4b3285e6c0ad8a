"""Gets what a host lacks for ResAlign; A1111 and Forge run this file at every start.

A1111 and Forge: their packages are never touched. The worker gets an environment of its own:
scripts/resalign_webui says which, and where. Other hosts: what is missing of
requirements.txt is installed into theirs, with everything already there pinned while pip runs.

In milliseconds when nothing is to do, and it never stops the host's start: a failure is printed
with the command to run by hand.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    # The hosts run this file with our folder first on the path, where our `backend` would hide
    # Forge's from whatever is imported next.
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != HERE]

from importlib import metadata  # noqa: E402

Version = tuple[int, ...]
# Never given to pip: theirs is built for the machine's GPU, and theirs must stay.
HOSTS_OWN = {"torch", "torchvision", "torchaudio", "xformers"}


def numbers(version: str) -> Version:
    """`1.10.0rc1` and `1.10+cpu` as (1, 10, 0) and (1, 10); enough to compare lower bounds."""
    release = re.match(r"\d+(\.\d+)*", version)
    return tuple(int(part) for part in release.group().split(".")) if release else ()


def needed(requirements: str) -> Iterator[tuple[str, str, str]]:
    """(`name>=version`, name, version) of each line that is ours to bring for this Python."""
    for line in requirements.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        wanted, _, marker = (part.strip() for part in line.partition(";"))
        bound = re.fullmatch(r"""python_version\s*<\s*["']([\d.]+)["']""", marker)
        if bound and sys.version_info[:2] >= numbers(bound.group(1)):
            continue
        name, _, lowest = (part.strip() for part in wanted.partition(">="))
        if name not in HOSTS_OWN:
            yield wanted, name, lowest


def missing(requirements: str, path: list[str] | None = None) -> list[str]:
    """The requirements (one per line, `name>=version`) not met here, or in the folders `path`."""
    return [
        wanted
        for wanted, name, lowest in needed(requirements)
        if numbers(installed(name, path)) < (numbers(lowest) or (0,))
    ]


def installed(name: str, path: list[str] | None = None) -> str:
    """The version of `name`, "" if there is none."""
    try:
        if path is None:
            return metadata.version(name)
        found = next(iter(metadata.distributions(name=name, path=path)), None)
    except metadata.PackageNotFoundError:
        return ""
    return found.version if found else ""


def pins(requirements: list[str]) -> str:
    """List every installed package at its version, except those that are to be installed."""
    changing = {re.split(r"[<>=!~]", wanted)[0].strip().lower() for wanted in requirements}
    lines = set()
    for package in metadata.distributions():
        name, version = package.metadata["Name"], package.version
        if name and re.fullmatch(r"[\w.!+-]+", version or "") and name.lower() not in changing:
            lines.add(f"{name}=={version}")
    return "\n".join(sorted(lines))


def install(requirements: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = Path(folder) / "constraints.txt"
        constraints.write_text(pins(requirements), encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
        print(f"ResAlign: installing {', '.join(requirements)}", flush=True)
        environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        subprocess.run(
            [*command, "-c", str(constraints), *requirements], check=True, env=environment
        )


def webui_root() -> Path | None:
    """The root of A1111 or Forge, if one of them runs this file: its cwd and its PYTHONPATH."""
    places = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    for place in (Path(entry) for entry in places if entry):
        if (place / "launch.py").is_file() and (place / "modules").is_dir():
            return place
    return None


def for_webui(*, by_hand: bool) -> None:
    """Have the worker's environment made or repaired, if it is not ready.

    All goes to stdout: the hosts show stderr only of an installer that fails, and ours must not.
    """
    environment = worker_environment()
    if not by_hand and environment.tidy():
        return
    after = environment.build(lambda line: print(f"ResAlign: {line}", flush=True), again=by_hand)
    if after.state != "ready":
        print(f"ResAlign: {after.reason}. By hand: {after.command}")
    elif by_hand:
        print(f"ResAlign: ready, {after.python}")


def worker_environment() -> ModuleType:
    """scripts/resalign_webui/environment.py, as part of a package that nobody else can be."""
    folder = HERE / "scripts" / "resalign_webui"
    spec = spec_from_file_location(
        "resalign_webui", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if not spec or not spec.loader:
        raise ModuleNotFoundError(f"{folder} is not there")
    package = module_from_spec(spec)
    sys.modules["resalign_webui"] = package
    spec.loader.exec_module(package)
    return import_module("resalign_webui.environment")


def main(arguments: list[str] | None = None) -> None:
    """`--webui`: as A1111 and Forge, whoever runs it."""
    by_hand = "--webui" in (arguments or [])
    command = f'"{sys.executable}" "{HERE / "install.py"}" --webui'
    shown = sys.stderr
    try:
        if by_hand or webui_root():
            shown = sys.stdout
            for_webui(by_hand=by_hand)
            return
        pip = f"{sys.executable} -m pip install"
        command = f'{pip} -r "{HERE / "requirements.txt"}"'
        requirements = missing((HERE / "requirements.txt").read_text(encoding="utf-8"))
        if requirements:
            command = " ".join([pip, *(f'"{wanted}"' for wanted in requirements)])
            install(requirements)
    except KeyboardInterrupt:
        print(f"ResAlign: stopped. By hand: {command}", file=shown)
    except Exception as error:  # the host must start, whatever is wrong with our requirements
        print(
            f"ResAlign: its requirements are not complete ({error}). By hand: {command}",
            file=shown,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
