"""The tab's script, tested in Node."""

import shutil
import subprocess

import pytest


def test_the_script_presses_the_button_when_a_page_is_behind(root):
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed: the script's own tests were not run")
    found = subprocess.run(
        [node, "--test", "tests/webui_test.mjs"], cwd=root, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout + found.stderr
