"""The import rule of the project, checked on the source without importing it."""

import ast
from functools import cache
from pathlib import Path

import pytest

HOSTS = {
    "comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server", "modules",
    "modules_forge", "gradio", "launch", "ldm", "sgm",
}  # fmt: skip
# Downwards only: a part may import from itself and from parts further down this list.
LAYERS = [
    {"cli"},
    {"worker"},
    {"demo", "jobs"},
    {"memory", "report"},
    {"hardening", "probe"},
    {"bilevel", "scorers"},
    {"checkpoint", "data", "run"},
    {"adapter"},
    {"model"},
    {"families", "parallel", "plan"},
    {"errors", "numerics", "progress", "statistics", "text"},
]
LEVEL = {part: len(LAYERS) - i for i, layer in enumerate(LAYERS) for part in layer}
ROOT_FILES = {"__init__.py", "__main__.py", "errors.py", "progress.py"}  # of `backend/`
# The command that starts the tab needs it; nothing else of the backend knows a front end.
STARTS_THE_TAB = ("backend/cli/serving.py", "scripts.resalign_webui")
VERSION = "__version__"  # all that the backend may take from the root
MOST_LINES = 400


def sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def part_of(path: Path, root: Path) -> str:
    """`backend/errors.py` and `backend/model/model.py` as `errors` and `model`."""
    part = path.relative_to(root / "backend").parts[0].removesuffix(".py")
    return "cli" if part == "__main__" else part


def imports(path: Path, root: Path) -> list[tuple[int, str, int, bool]]:
    """(line, module, level, is it for the type checker only) of each import in a file."""
    return imports_of(path.read_text(encoding="utf-8"))


@cache
def imports_of(text: str) -> list[tuple[int, str, int, bool]]:
    """Kept by a file's text, as the rules read the same files over and over."""
    nodes = list(ast.walk(ast.parse(text)))
    for_types: set[ast.AST] = set()
    for node in nodes:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            for_types |= {inner for statement in node.body for inner in ast.walk(statement)}
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name, 0, node in for_types) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module] if node.module else [alias.name for alias in node.names]
            found += [(node.lineno, name, node.level, node in for_types) for name in modules]
    return found


def absolute(path: Path, root: Path, module: str, level: int) -> str:
    """A relative import as a path from the package's root: `backend.families.base.process`."""
    folder = path.relative_to(root).parent.parts
    return ".".join((*folder[: len(folder) - level + 1], module))


def module_of(path: Path, root: Path) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module of the backend to those that it imports, at its top or inside functions."""
    files = {module_of(path, root): path for path in sources(root / "backend")}
    graph: dict[str, set[str]] = {name: set() for name in files}
    for name, path in files.items():
        typing_only = {line for line, _, _, for_types in imports(path, root) if for_types}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.level and node.lineno not in typing_only:
                base = absolute(path, root, node.module or "", node.level).rstrip(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}"
                    graph[name] |= {inner if inner in files else base} & files.keys()
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach one another, by removing what imports nothing that is left."""
    left = {name: set(others) for name, others in graph.items()}
    while True:
        leaves = {name for name, others in left.items() if not others & left.keys()}
        if not leaves:
            break
        left = {name: others for name, others in left.items() if name not in leaves}
    importers = {n for n in left if not any(n in others for others in left.values())}
    return [sorted(left.keys() - importers)] if left else []


def starts_the_tab(path: Path, root: Path, target: str) -> bool:
    return (path.relative_to(root).as_posix(), target) == STARTS_THE_TAB


@pytest.fixture(params=["backend", "nodes", "scripts"])
def shipped(request, package_folder):
    folder = package_folder / request.param
    return package_folder, request.param, sources(folder) if folder.is_dir() else []


def test_imports_inside_the_package_are_relative(shipped):
    """An absolute import breaks in every host, as each loads the package by another name."""
    root, _, files = shipped
    ours = {"resalign", "backend", "nodes", "scripts", "resalign_ext"}
    wrong = [
        f"{path.relative_to(root)}:{line} imports {module}"
        for path in files
        for line, module, level, _ in imports(path, root)
        if level == 0 and module.split(".")[0] in ours
    ]
    assert wrong == []


def test_the_backend_knows_no_host_and_no_front_end(package_folder):
    wrong = []
    for path in sources(package_folder / "backend"):
        for line, module, level, _ in imports(path, package_folder):
            top = module.split(".")[0]
            if level:
                target = absolute(path, package_folder, module, level)
                known = target.startswith("backend.") or target == VERSION
                bad = not known and not starts_the_tab(path, package_folder, target)
            else:
                bad = top in HOSTS
            if bad:
                wrong.append(f"{path.relative_to(package_folder)}:{line} imports {module}")
    assert wrong == []


def test_the_front_ends_do_not_know_each_other(shipped):
    root, name, files = shipped
    others = {"nodes": "scripts", "scripts": "nodes", "backend": "scripts"}
    wrong = [
        f"{path.relative_to(root)}:{line}"
        for path in files
        for line, module, level, _ in imports(path, root)
        if level
        and absolute(path, root, module, level).split(".")[0] == others[name]
        and not starts_the_tab(path, root, absolute(path, root, module, level))
    ]
    assert wrong == []


def test_every_part_of_the_backend_has_its_layer(package_folder):
    parts = {part_of(p, package_folder) for p in sources(package_folder / "backend")}
    assert parts - {"__init__"} <= set(LEVEL), "place it in LAYERS"
    assert {"hardening", "cli", "errors"} <= parts, "the rule is checked on the real files"


def test_imports_go_downwards_only(package_folder):
    wrong = []
    for path in sources(package_folder / "backend"):
        here = part_of(path, package_folder)
        for line, module, level, for_types in imports(path, package_folder):
            if not level or for_types or here == "__init__":
                continue
            name = absolute(path, package_folder, module, level)
            if name == VERSION or starts_the_tab(path, package_folder, name):
                continue
            target = name.split(".")[1]
            if target != here and LEVEL[target] >= LEVEL[here]:
                wrong.append(f"{path.relative_to(package_folder)}:{line}: {here} imports {target}")
    assert wrong == []


def test_no_two_files_import_each_other(package_folder):
    """Not even through others, or in functions; imports for the type checker alone do not count."""
    graph = import_graph(package_folder)
    assert len(graph) > 200, "the rule is checked on the real files"
    assert circles(graph) == []


def test_the_root_of_the_backend_stays_empty(package_folder):
    found = {path.name for path in (package_folder / "backend").glob("*.py")}
    assert found == ROOT_FILES


def test_only_the_command_line_prints(package_folder):
    wrong = [
        f"{path.relative_to(package_folder)}:{node.lineno}"
        for path in sources(package_folder / "backend")
        if part_of(path, package_folder) != "cli"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ]
    assert wrong == []


def test_files_stay_readable_in_one_sitting(shipped):
    root, _, files = shipped
    long = {
        path.relative_to(root).as_posix(): lines
        for path in files
        if (lines := len(path.read_text(encoding="utf-8").splitlines())) > MOST_LINES
    }
    assert not long, long


def test_folders_that_hosts_share_are_packages_or_are_not(root):
    """Forge's `backend` and ComfyUI's `nodes` must not merge with ours; `scripts` must."""
    assert (root / "backend" / "__init__.py").is_file()
    assert (root / "nodes" / "__init__.py").is_file()
    assert not (root / "scripts" / "__init__.py").exists()
    assert not (root / "tests" / "__init__.py").exists()


def at_import(path: Path, root: Path) -> set[str]:
    """Absolute names of modules that a file imports at its top, ours as `scripts.x.y`."""
    found: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            base = absolute(path, root, base, node.level).rstrip(".") if node.level else base
            found |= {base} | {f"{base}.{alias.name}" for alias in node.names}
    return {name.removeprefix("resalign.") for name in found}


def reached(start: set[str], files: dict[str, Path], root: Path) -> set[str]:
    seen: set[str] = set()
    waiting = set(start)
    while waiting:
        name = waiting.pop()
        seen.add(name)
        if name in files:
            waiting |= at_import(files[name], root) - seen
    return seen


def test_tests_start_without_gradio(root):
    # `make test` installs none: a test that imports it at its top would end the whole run
    files = {module_of(path, root): path for path in sources(root / "scripts")}
    assert "gradio" in reached({"scripts.resalign_webui.layout"}, files, root)
    tests = sources(root / "tests")
    assert len(tests) > 200
    assert [p.name for p in tests if "gradio" in reached(at_import(p, root), files, root)] == []


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("from ..plan.hardening import x", "ok"),
        ("from ..hardening import x", "model imports hardening"),
        ("if TYPE_CHECKING:\n    from ..hardening import x", "ok"),
        ("def f():\n    from ..bilevel import x", "model imports bilevel"),
    ],
)
def test_the_rule_itself_finds_what_breaks_it(tmp_path, source, message):
    path = tmp_path / "backend" / "model" / "new.py"
    path.parent.mkdir(parents=True)
    path.write_text(source)
    if message == "ok":
        test_imports_go_downwards_only(tmp_path)
    else:
        with pytest.raises(AssertionError, match=message):
            test_imports_go_downwards_only(tmp_path)


@pytest.mark.parametrize(
    ("second", "found"),
    [
        ("from .first import x", ["backend.model.first", "backend.model.second"]),
        ("def f():\n    from . import first", ["backend.model.first", "backend.model.second"]),
        ("if TYPE_CHECKING:\n    from .first import x", []),
    ],
)
def test_a_circle_is_found_wherever_the_import_stands(tmp_path, second, found):
    folder = tmp_path / "backend" / "model"
    folder.mkdir(parents=True)
    (folder / "first.py").write_text("from .second import y")
    (folder / "second.py").write_text(second)
    (folder / "user.py").write_text("from .first import x")
    assert circles(import_graph(tmp_path)) == ([found] if found else [])
