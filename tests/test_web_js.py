"""The page's scripts: what they show is tested in Node, what they import by reading them."""

import re
import shutil
import subprocess

import pytest


def test_the_scripts_show_what_they_are_given(root):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed: the scripts' own tests were not run")
    found = subprocess.run(
        [node, "--test", *(f"tests/web_{name}test.mjs" for name in ("", "open_", "page_"))],
        cwd=root, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr


def test_the_scripts_import_the_front_end_s_two_modules_and_nothing_else(root):
    imports = {
        path.name: re.findall(r'^import .* from "(.*)";', path.read_text(encoding="utf-8"), re.M)
        for path in (root / "web").glob("*.js")
    }
    assert imports == {
        "resalign.js": [
            "/scripts/app.js", "/scripts/api.js", "./resalign_open.js", "./resalign_view.js",
        ],
        "resalign_open.js": [],
        "resalign_view.js": [],
    }  # fmt: skip


def test_nothing_a_server_says_becomes_markup(root):
    for path in (root / "web").glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", text)


def test_captions_of_pictures_are_wrapped_and_never_cut_off(root):
    text = (root / "web" / "resalign.js").read_text(encoding="utf-8")
    (rule,) = re.findall(r"\.resalign figcaption \{([^}]*)\}", text)
    assert "overflow-wrap: anywhere" in rule
    assert not re.search(r"nowrap|ellipsis|overflow: hidden|-height", rule)
