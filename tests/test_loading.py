"""The package loads under every name and from every place that its hosts use."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path

import pytest

import resalign as ra
from resalign.backend.plan.file import read_file


def run_python(code: str, *, cwd: Path, **environment: str) -> str:
    """The output of a fresh, isolated interpreter for `code`."""
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=cwd, capture_output=True, text=True, timeout=240,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **environment},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


LOAD = """
    import sys, time
    from importlib.util import module_from_spec, spec_from_file_location

    def load(name, root):
        spec = spec_from_file_location(
            name, root + "/__init__.py", submodule_search_locations=[root])
        module = module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module
"""


def test_every_public_name_resolves():
    missing = {}
    for name in ra.__all__:
        try:
            getattr(ra, name)
        except (ImportError, AttributeError) as error:
            missing[name] = str(error)
    assert missing == {}


def test_all_is_complete():
    """All public names are in `__all__`, in dir(), and known to type checkers."""
    promised = {
        "load_checkpoint", "HardeningPlan", "Concept", "ImageSet", "FineTuneConfig",
        "fine_tune_grid", "AdapterConfig", "HarmConfig", "SolverConfig", "RegulatorConfig", "Ramp",
        "Job", "harden", "HardenResult", "resume", "export_merged", "save_lora", "load_lora",
        "inspect", "Adapter", "Progress", "ResAlignError", "ConfigError", "CheckpointError",
        "DataError", "DivergenceError", "ExportError", "RankError", "RunError", "join_ranks",
        "probe", "run_probe", "read_probe", "FileSubject", "LoadedSubject", "ProbePlan",
        "ProbeResult", "ProbeCheckpoint", "FineTuneAttack", "LoraAttack", "LoraFile", "MergeAttack",
        "PromptSet", "GenerationConfig", "UtilityConfig", "preset_probe", "summarise", "Picture",
        "DenoisingScorer", "Scorer", "ModelScorer", "ScorerConfig", "Scores", "build_scorer",
        "scorer_names", "build_report", "write_report", "compare_reports",
        "load_report", "curve_png", "plan_memory", "MemoryPlan", "DenseAdapter", "EraseConfig",
        "DistilConfig", "VariedConfig", "CountingConfig", "Sweep", "UndecidedError",
    }  # fmt: skip
    assert promised | {"__version__", "WEB_DIRECTORY"} == set(ra.__all__)
    assert set(ra.__all__) <= set(dir(ra))
    with pytest.raises(AttributeError, match="has no attribute 'hardne'"):
        _ = ra.hardne


def test_type_checkers_are_told_the_same_names_as_the_program(package_folder):
    tree = ast.parse((package_folder / "__init__.py").read_text())
    told = {
        alias.asname: "." + node.module
        for block in tree.body
        if isinstance(block, ast.If)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == {name: f"..{module}"[1:] for name, module in ra._MODULE_OF.items()}


def test_every_error_is_public():
    errors = importlib.import_module("resalign.backend.errors")
    names = {n for n, v in vars(errors).items() if isinstance(v, type)}
    assert names <= set(ra.__all__)


def test_importing_takes_milliseconds_and_loads_nothing_heavy(package_folder, tmp_path):
    code = f"""{LOAD}
    start = time.process_time()
    package = load("resalign", {str(package_folder)!r})
    taken = time.process_time() - start
    heavy = {{"torch", "numpy", "diffusers", "transformers", "safetensors"}} & set(sys.modules)
    print(taken < 0.1, sorted(heavy), package.__version__)
    """
    assert run_python(code, cwd=tmp_path) == f"True [] {ra.__version__}"


def test_plans_can_be_built_without_torch(package_folder, tmp_path):
    """A1111's tab and the command line's help do this in the host's process."""
    code = f"""{LOAD}
    load("resalign", {str(package_folder)!r})
    import resalign as ra
    from resalign.backend.plan import file as plan_file
    plan = ra.HardeningPlan(concept=ra.Concept("x", ("y",)))
    plan_file.plan_hash(plan)
    print("torch" in sys.modules)
    """
    assert run_python(code, cwd=tmp_path) == "False"


def test_plans_fit_a_files_family_without_torch(package_folder, tmp_path):
    """The tab's forms ask this before a worker begins; its environment may have no torch."""
    code = f"""{LOAD}
    load("resalign", {str(package_folder)!r})
    from pathlib import Path
    from resalign.backend.jobs.family_defaults import family_at
    demo = Path({str(package_folder)!r}) / "backend" / "demo" / "assets" / "demo_sd.safetensors"
    print(family_at(demo).name, "torch" in sys.modules)
    """
    assert run_python(code, cwd=tmp_path) == "sd1 False"


def test_loads_as_comfyui_does_beside_its_own_module_nodes(package_folder, tmp_path):
    """ComfyUI names the module after the folder's path and has a top-level module `nodes`."""
    (tmp_path / "nodes.py").write_text("OWNER = 'ComfyUI'\n")
    code = f"""{LOAD}
    sys.path.insert(0, {str(tmp_path)!r})
    import importlib, nodes
    root = {str(package_folder)!r}
    name = root.replace(".", "_x_")
    package = load(name, root)
    importlib.import_module(name + ".nodes")
    importlib.import_module(name + ".backend.run.folder")
    print(nodes.OWNER, sys.modules["nodes"].OWNER, package.HardeningPlan.__module__ != "",
          package.WEB_DIRECTORY)
    """
    assert run_python(code, cwd=tmp_path) == "ComfyUI ComfyUI True ./web"


def test_loads_as_a1111_and_forge_do_beside_forge_s_own_backend(package_folder, tmp_path):
    """Forge's `backend` is a namespace package; ours, ahead of it on the path, must not merge."""
    host = tmp_path / "host"
    (host / "backend").mkdir(parents=True)
    (host / "backend" / "loader.py").write_text("OWNER = 'Forge'\n")
    (host / "backend" / "errors.py").write_text("OWNER = 'Forge'\n")
    extension = host / "extensions" / "any-name"
    extension.parent.mkdir()
    extension.symlink_to(package_folder, target_is_directory=True)
    code = f"""{LOAD}
    sys.path.insert(0, {str(host)!r})
    import importlib, backend.loader
    root = {str(extension)!r}
    sys.path.insert(0, root)  # Forge leaves every extension there for good
    load("resalign_ext", root)
    plans = importlib.import_module("resalign_ext.backend.plan.presets")
    importlib.import_module("resalign_ext.nodes")
    import backend.errors
    print(backend.loader.OWNER, backend.errors.OWNER, "durable" in plans.PLAN_PRESETS)
    """
    assert run_python(code, cwd=tmp_path) == "Forge Forge True"


def test_pytest_can_execute_the_root_file_as_a_plain_module(package_folder):
    code = (package_folder / "__init__.py").read_text()
    exec(compile(code, "__init__.py", "exec"), {"__name__": "anything"})  # noqa: S102


def test_every_folder_with_modules_is_listed_as_a_package(root):
    """A package forgotten in pyproject.toml works from a checkout, but the wheel lacks it."""
    pyproject = read_file(root / "pyproject.toml")
    tops = ("backend", "nodes", "scripts/resalign_webui")
    folders = {path.parent for top in tops for path in (root / top).rglob("*.py")}
    names = {".".join(("resalign", *folder.relative_to(root).parts)) for folder in folders}
    assert names | {"resalign"} == set(pyproject["tool"]["setuptools"]["packages"])
    assert pyproject["project"]["version"] == ra.__version__
    for folder in folders:
        assert (folder / "__init__.py").is_file(), folder


# The wheel. With RESALIGN_TEST_WHEEL=1 the whole suite runs against an installed one as well.


@pytest.fixture(scope="module")
def wheel(root, tmp_path_factory) -> Path:
    """The wheel of a copy of the tracked files: a build leaves traces, and others do not count."""
    given = os.environ.get("RESALIGN_WHEEL")
    if given:
        return Path(given)
    folder = tmp_path_factory.mktemp("wheel")
    for name in _tracked(root):
        target = folder / "source" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, target)
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, "source"],
        cwd=folder, check=True, capture_output=True, timeout=240,
    )  # fmt: skip
    (found,) = folder.glob("*.whl")
    return found


def _tracked(root: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=True
    )
    return [name for name in listed.stdout.split("\0") if name and (root / name).is_file()]


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_data_file(root, wheel):
    shipped = ("backend/", "nodes/", "scripts/resalign_webui/", "javascript/", "web/")
    expected = {
        "resalign/" + name
        for name in _tracked(root)
        if name in ("__init__.py", "__main__.py", "py.typed") or name.startswith(shipped)
    }
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
    extra = held - expected - {"resalign/install.py"}
    assert (sorted(expected - held), sorted(extra)) == ([], [])


@pytest.mark.slow
def test_the_wheel_imports_away_from_the_checkout(wheel, tmp_path):
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index",
         "--target", tmp_path / "site", wheel],
        check=True, timeout=240,
    )  # fmt: skip
    code = """
    import importlib, pkgutil, resalign
    for module in pkgutil.walk_packages(resalign.__path__, "resalign."):
        inside_comfyui = module.name.startswith("resalign.nodes.")  # imports its API at its top
        if not module.name.endswith("__main__") and not inside_comfyui:
            importlib.import_module(module.name)
    for name in resalign.__all__:
        getattr(resalign, name)
    print(resalign.__file__)
    """
    found = run_python(code, cwd=tmp_path, PYTHONPATH=str(tmp_path / "site"))
    assert Path(found) == tmp_path / "site" / "resalign" / "__init__.py"
    command = tmp_path / "site" / "bin" / "resalign"
    if os.name == "posix":
        result = subprocess.run(
            [sys.executable, command, "--version"], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(tmp_path / "site")}, timeout=60,
        )  # fmt: skip
        assert result.stdout.strip() == f"resalign {ra.__version__}"
