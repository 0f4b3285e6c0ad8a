"""A host like A1111 that is quick to make, and a package index of tiny wheels for it.

The host is a real venv: pip is real, torch and numpy are empty modules. The extension in it is
our installer with a self-check that imports the family and does what SELF_CHECK says.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

OLD = {"accelerate": "0.31.0", "diffusers": "0.31.0", "peft": "0.13.2", "transformers": "4.46.1"}
NEW = {"accelerate": "1.15.0", "diffusers": "0.42.1", "peft": "0.21.2", "transformers": "5.24.0"}
REST = {"filelock": "3.15", "matplotlib": "3.9", "safetensors": "0.8.0", "scipy": "1.14",
        "tomli": "2.2", "pillow": "11.0", "tqdm": "4.67"}  # fmt: skip
# What pip would love to fetch, and must not.
TRAPS = {"torch": "9.9.0", "numpy": "2.9.0"}
NEEDS = {"peft": ["torch>=1.13", "numpy>=1.17"], "scipy": ["numpy>=1.23"]}
SELF_CHECK = """
import os, sys, time
import torch, diffusers, peft, transformers, accelerate, safetensors, numpy
print("self-check of", diffusers.__version__, "with torch", torch.__version__, flush=True)
time.sleep(float(os.environ.get("SELF_CHECK_SECONDS", "0")))
if diffusers.__version__ in os.environ.get("SELF_CHECK_REFUSES", "").split():
    sys.exit(f"ERROR ImportError: no luck with {diffusers.__version__}")
"""


def metadata_of(name: str, version: str) -> str:
    needs = "".join(f"Requires-Dist: {need}\n" for need in NEEDS.get(name, ()))
    return f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{needs}"


def wheel(folder: Path, name: str, version: str, ballast: int = 0) -> None:
    """Write one; with `ballast` further bytes in it."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/__init__.py": f'__version__ = "{version}"\n',
        f"{info}/METADATA": metadata_of(name, version),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if ballast:
        files[f"{name}/ballast.txt"] = "x" * ballast
    files[f"{info}/RECORD"] = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


class WebuiHost:
    """The host's folder, its Python, and our extension in it."""

    def __init__(self, folder: Path, root: Path, name: str = "any-name") -> None:
        self.root = folder / "host"
        (self.root / "modules").mkdir(parents=True)
        (self.root / "launch.py").touch()
        self.extension = self.root / "extensions" / name
        webui = self.extension / "scripts" / "resalign_webui"
        webui.mkdir(parents=True)
        for file in ("install.py", "requirements.txt"):
            shutil.copy(root / file, self.extension)
        for file in ("__init__.py", "environment.py", "side_venv.py"):
            shutil.copy(root / "scripts" / "resalign_webui" / file, webui)
        (webui / "self_check.py").write_text(SELF_CHECK)
        self.index = folder / "index"
        for versions in (OLD, NEW, REST, TRAPS):
            for package, version in versions.items():
                wheel(self.index, package, version)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
        self.python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        (self.site,) = (folder / "venv").glob("[Ll]ib/**/site-packages")
        spec = importlib.util.find_spec("pip")
        assert spec and spec.origin, "these tests need pip"
        pip = Path(spec.origin).parent
        for part in (pip, *pip.parent.glob("pip-*.dist-info")):
            (self.site / part.name).symlink_to(part, target_is_directory=True)
        self.put(torch="2.1.2", numpy="1.26.2", transformers="4.30.2", safetensors="0.4.2")

    @property
    def environments(self) -> Path:
        return self.extension / ".webui-env"

    def put(self, **versions: str) -> None:
        """Have the host hold these packages, in place of other versions of them."""
        for name, version in versions.items():
            for old in self.site.glob(f"{name}*"):
                shutil.rmtree(old)
            (self.site / name).mkdir()
            (self.site / name / "__init__.py").write_text(f'__version__ = "{version}"\n')
            info = self.site / f"{name}-{version}.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(metadata_of(name, version))

    def environment(self, **more: str) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "RESALIGN_"))}
        return {
            **kept, "PYTHONPATH": f"{self.root}{os.pathsep}", "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.index), "PIP_CONFIG_FILE": os.devnull, **more,
        }  # fmt: skip

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Begin `install.py` as the host does, without waiting for it."""
        return subprocess.Popen(
            [self.python, str(self.extension / "install.py"), *arguments], cwd=self.root,
            env=self.environment(**environment), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip

    def install(self, *arguments: str, **environment: str) -> str:
        """Run `install.py` to its end; what it printed. It must end with 0 and no complaint."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, "")
        return out

    def worker(self, code: str) -> str:
        """The output of `code` in the worker's Python, started as the worker is."""
        found = self.status()
        assert found[0] == "ready", found
        result = subprocess.run(
            [found[3], "-I", "-c", code], capture_output=True, text=True, check=True, timeout=60
        )
        return result.stdout.strip()

    def status(self, **environment: str) -> list[str]:
        """environment.status() as the tab gets it, in the host's Python."""
        code = (
            f"import sys; sys.path.insert(0, {str(self.extension / 'scripts')!r})\n"
            "from resalign_webui import environment\n"
            "print(*environment.status(), sep='\\n')\n"
        )
        result = subprocess.run(
            [self.python, "-c", code], capture_output=True, text=True, check=True, timeout=60,
            env=self.environment(**environment),
        )  # fmt: skip
        return result.stdout.splitlines()

    def freeze(self) -> list[str]:
        """Every file of the host's site-packages, with its time of change."""
        return sorted(
            f"{path.relative_to(self.site)} {path.stat().st_mtime_ns}"
            for path in self.site.rglob("*")
            if "__pycache__" not in path.parts and not path.is_dir()
        )


def kill_hard(process: subprocess.Popen[str]) -> None:
    """kill -9 of a started installer and all it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
