"""Makes the package importable as `resalign`, whatever its folder is called.

By default that is this checkout; with RESALIGN_TEST_WHEEL=1 it is whatever is installed, so that
CI tests what it ships. Tests import `resalign`, and helpers (`fakes`) from this folder.
"""

from __future__ import annotations

import atexit
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TESTS_THE_WHEEL = os.environ.get("RESALIGN_TEST_WHEEL") == "1"


def import_package(name: str, root: Path):
    """Import the folder `root` as the package `name`, as the loaders of the hosts do."""
    spec = importlib.util.spec_from_file_location(
        name, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert spec and spec.loader, root
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


# Marks of jobs (backend/run/trust.py) are made with a key of these tests, also in what they start
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(prefix="resalign-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_STATE_HOME"], ignore_errors=True)

# A shell that begins us in the background has Ctrl-C ignored, nohup SIGHUP, and so would
# what tests begin
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

if TESTS_THE_WHEEL:
    import resalign

    assert Path(resalign.__file__).resolve().parent != ROOT, (
        "RESALIGN_TEST_WHEEL=1, but `resalign` is this checkout: install the built wheel first"
    )
else:
    import_package("resalign", ROOT)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long runs of `reliability`, unless they are asked for."""
    if "reliability" in (config.getoption("markexpr") or ""):
        return
    long = [item for item in items if item.get_closest_marker("reliability")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository's folder."""
    return ROOT


@pytest.fixture(scope="session")
def package_folder() -> Path:
    """The folder of the package under test: the checkout's, or that of the installed wheel."""
    return Path(sys.modules["resalign"].__file__ or "").resolve().parent


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """PyTorch's rounding depends on its number of threads: the same in all tests, everywhere."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def vocabulary_read_once():
    """CLIP's tokenizers are loaded from their files once a process: hundreds of tests load models.

    Nothing changes a loaded tokenizer: every call states its padding and truncation.
    """
    import json

    from resalign.backend.families.clip import networks

    load, loaded = networks.load_tokenizer, {}

    def load_once(options):
        key = json.dumps(dict(options), sort_keys=True)
        if key not in loaded:
            loaded[key] = load(options)
        return loaded[key]

    networks.load_tokenizer = load_once
    yield
    networks.load_tokenizer = load


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory):
    """Loaded tiny checkpoints by family, the same ones for all tests: none leaves one changed."""
    from fakes_lora import build_models

    return build_models(tmp_path_factory.mktemp("tiny_models"))


@pytest.fixture
def no_quick_looks(monkeypatch):
    """Small probes of tests are taken for long ones, so that nothing says that they are short."""
    from resalign.backend.plan import probe

    monkeypatch.setattr(probe, "FEWEST_TRAININGS", 0)


@pytest.fixture(scope="session")
def launcher():
    """Starts ranks, as several processes; begun when a test first asks for it."""
    from fakes_ranks import Launcher

    started = Launcher()
    yield started
    started.close()


@pytest.fixture(autouse=True)
def threads_stay_as_they_were():
    """A test that leaves another number of threads behind fails, and the next is not harmed."""
    import torch

    yield
    left = torch.get_num_threads()
    torch.set_num_threads(1)
    assert left == 1, f"this test left PyTorch on {left} threads"
