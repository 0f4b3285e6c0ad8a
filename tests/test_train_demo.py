"""Training the demo's test-beds does not replace what the package ships, unless it is asked to."""

import importlib
import sys

import pytest

MODULES = ("train", "dit_train", "dit_shared", "shipped", "world")


@pytest.fixture
def tool(package_folder, monkeypatch):
    """Import one of the scripts, which import each other by bare names."""
    monkeypatch.syspath_prepend(str(package_folder / "tools" / "train_demo"))
    yield importlib.import_module
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("script", "file", "stages"),
    [
        ("dit_train", "demo_dit_base.safetensors", ["save"]),
        ("train", "demo_sd.safetensors", ["save"]),
        ("train", "judge.safetensors", ["text", "final-judge"]),
        ("train", "demo_sd.safetensors and judge.safetensors", []),  # all stages
    ],
)
def test_a_shipped_file_is_not_replaced_without_the_flag(
    tool, monkeypatch, tmp_path, capsys, script, file, stages
):
    """It says so at once, not after the hours of training."""
    module = tool(script)
    chosen = ["--stages", *stages] if stages else []
    monkeypatch.setattr(sys, "argv", [script, "--out", str(tmp_path / "work"), *chosen])
    with pytest.raises(SystemExit) as stopped:
        module.main()
    assert stopped.value.code == 2 and not (tmp_path / "work").exists()
    assert f"{file} of the package would be replaced" in capsys.readouterr().err


def test_other_stages_and_new_files_need_no_flag(tool, tmp_path):
    import argparse

    shipped, parser = tool("shipped"), argparse.ArgumentParser()
    shipped.add_flag(parser)
    shipped.refuse_to_replace(parser, parser.parse_args([]))
    shipped.refuse_to_replace(parser, parser.parse_args([]), tmp_path / "new.safetensors")
    (tmp_path / "old.safetensors").touch()
    flagged = parser.parse_args(["--replace-shipped"])
    shipped.refuse_to_replace(parser, flagged, tmp_path / "old.safetensors")
