"""Installs what a host lacks of requirements.txt; A1111 and Forge run it at every start.

In milliseconds when nothing is missing, and it never stops the host's start: a failure is
printed with the command to run by hand. Everything that the host has installed is pinned while
pip runs, so torch and the host's own versions stay as they are.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
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


def missing(requirements: str) -> list[str]:
    """The requirements (one per line, `name>=version`) that are not met here."""
    found = []
    for line in requirements.splitlines():
        line = line.split("#")[0].strip()
        if not line:
            continue
        wanted, _, marker = (part.strip() for part in line.partition(";"))
        bound = re.fullmatch(r'python_version\s*<\s*"([\d.]+)"', marker)
        if bound and sys.version_info[:2] >= numbers(bound.group(1)):
            continue
        name, _, lowest = (part.strip() for part in wanted.partition(">="))
        if name in HOSTS_OWN:
            continue
        try:
            if numbers(metadata.version(name)) >= numbers(lowest):
                continue
        except metadata.PackageNotFoundError:
            pass
        found.append(wanted)
    return found


def pins(requirements: list[str]) -> str:
    """Every installed package at its version, except those that are to be installed."""
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


def main() -> None:
    requirements: list[str] = []
    try:
        requirements = missing((HERE / "requirements.txt").read_text(encoding="utf-8"))
        if requirements:
            install(requirements)
    except Exception as error:  # the host must start, whatever is wrong with our requirements
        quoted = " ".join(f'"{wanted}"' for wanted in requirements)
        print(
            f"ResAlign: its requirements are not complete ({error}). By hand: "
            f"{sys.executable} -m pip install {quoted or '-r ' + str(HERE / 'requirements.txt')}",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
