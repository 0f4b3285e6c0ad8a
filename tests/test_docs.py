"""The documentation points at things that exist; commands that it tells people are understood."""

from __future__ import annotations

import ast
import contextlib
import io
import re
import shlex
from pathlib import Path

import pytest

import resalign as ra
from resalign.backend.cli.parser import build_parser

PAGES = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "benchmarks/README.md",
    "docs/*.md", "docs/decisions/*.md", "web/docs/*.md",
)  # fmt: skip
LINK = re.compile(r"\[[^\]\n]*\]\(([^)\s]+)\)")
CODE = re.compile(r"`([^`\n]+)`")
PATH = re.compile(
    r"(?:backend|nodes|scripts|web|javascript|tools|benchmarks|tests|docs|\.ci)/[\w./*-]*"
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
# Written by the restructuring's other branches: empty this once all are merged.
COMING: set[str] = set()
ABSENT = {"scripts/__init__.py"}  # named because it must not exist


def pages(root: Path) -> list[Path]:
    return sorted(page for pattern in PAGES for page in root.glob(pattern))


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def blocks(page: Path, *languages: str) -> list[str]:
    return [
        body for language, body in FENCE.findall(page.read_text("utf-8")) if language in languages
    ]


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.fixture(scope="module")
def root() -> Path:
    return Path(__file__).resolve().parents[1]


def test_all_pages_are_found(root):
    found = {page.name for page in pages(root)}
    assert {"README.md", "method.md", "compatibility.md", "ResAlign_HardenModel.md"} <= found


def test_every_relative_link_resolves(root):
    broken = []
    for page in pages(root):
        for target in LINK.findall(prose(page)):
            if "://" in target:
                continue
            name, _, anchor = target.partition("#")
            file = (page.parent / name).resolve() if name else page
            if not file.exists():
                if file.relative_to(root).as_posix() not in COMING:
                    broken.append((page.name, target))
            elif anchor and anchor not in anchors(file):
                broken.append((page.name, target))
    assert broken == []


def test_every_code_path_in_the_prose_exists(root):
    missing = []
    for page in pages(root):
        for code in CODE.findall(prose(page)):
            for path in PATH.findall(code):
                there = (root / path).exists() or any(root.glob(path))
                if there == (path in ABSENT) and path not in COMING:
                    missing.append((page.name, path))
    assert missing == []


def test_every_page_of_docs_is_linked_from_the_readme(root):
    linked = set(LINK.findall((root / "README.md").read_text(encoding="utf-8")))
    for page in (root / "docs").glob("*.md"):
        assert f"docs/{page.name}" in linked


def test_python_examples_compile_and_use_public_names_only(root):
    for page in pages(root):
        for body in blocks(page, "python"):
            for node in ast.walk(ast.parse(body)):
                if (
                    isinstance(node, ast.Attribute)
                    and isinstance(node.value, ast.Name)
                    and node.value.id == "ra"
                ):
                    assert node.attr in ra.__all__, (page.name, node.attr)


def test_the_readmes_plan_is_valid(root):
    """The plan and the attacks of the README's program are built as they stand there."""
    text = "\n".join(blocks(root / "README.md", "python"))
    values = {
        statement.targets[0].id: ast.unparse(statement.value)
        for statement in ast.parse(text).body
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }
    plan = eval(values["plan"], {"ra": ra})  # noqa: S307
    held_out = eval(values["held_out"], {"ra": ra})  # noqa: S307
    assert isinstance(plan, ra.HardeningPlan) and len(plan.fine_tunes) == 4
    assert not {one.name for one in held_out} & {one.name for one in plan.fine_tunes}


def test_every_documented_command_line_is_understood(root):
    """A command in running text may leave out its arguments; one in a block may not."""
    seen = 0
    for page in pages(root):
        indented = re.findall(r"^    (resalign .+)$", prose(page), re.MULTILINE)
        shown = "\n".join([*blocks(page, "sh"), *indented]).replace("\\\n", " ").splitlines()
        mentioned = [code for code in CODE.findall(prose(page)) if "[" not in code]
        for line in [*shown, *mentioned]:
            words = arguments(line)
            if not words:
                continue
            seen += 1
            error = refusal(words)
            if line in mentioned and re.search("are required|expected one argument", error):
                continue
            assert not error, (page.name, line)
    assert seen > 20


def arguments(line: str) -> list[str]:
    """Arguments that a line hands to `resalign`, also through a launcher; empty for other lines."""
    if not re.match(r"(resalign|accelerate|torchrun)\b", line) or "..." in line:
        return []
    words = shlex.split(line, comments=True)
    return words[words.index("resalign") + 1 :] if "resalign" in words else []


def refusal(words: list[str]) -> str:
    """The command line's error about these arguments; empty if it understands them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            build_parser().parse_args(words)
    except SystemExit as end:
        return said.getvalue() if end.code else ""
    return ""


def test_a_wrong_command_line_is_refused():
    assert refusal(["hardne"]) and refusal(["export", "a.run", "--no-such"])
    assert not refusal(["harden", "plan.toml"])
