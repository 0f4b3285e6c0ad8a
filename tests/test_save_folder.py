"""Exports of diffusers folders: a copy of the folder with its U-Net rewritten."""

import hashlib
import json
import os
import shutil

import pytest
from fakes_checkpoint import write_tiny_folder
from fakes_export import save_fixtures
from safetensors.torch import load_file, save_file

from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.metadata import Provenance
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ExportError

unet, adapter, _ = save_fixtures()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = write_tiny_folder(tmp_path_factory.mktemp("folder") / "base")
    (path / "tokenizer").mkdir()
    (path / "tokenizer" / "merges.txt").write_text("a b")
    return path


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_folder_is_copied_with_its_unet_rewritten(unet, adapter, folder, tmp_path):
    """Text-encoder names as old transformers read them; every other file byte for byte."""
    target = tmp_path / "out"
    report = export_merged(folder, adapter, target, hash_file=True)

    found = verify_export(folder, target, adapter)
    assert len(found.changed) == report.touched == len(adapter.modules)
    assert "text_encoder/model.safetensors" in found.files
    assert "tokenizer/merges.txt" in found.files
    names = load_file(target / "text_encoder" / "model.safetensors")
    assert all(name.startswith("text_model.") for name in names)
    sidecar = json.loads((target / "resalign.json").read_text())
    assert Provenance.from_json(sidecar["provenance"]) == report.provenance
    written = (target / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    assert sidecar["files"]["unet/diffusion_pytorch_model.safetensors"]["sha256"] == sha256(written)
    assert os.listdir(tmp_path) == ["out"]
    assert detect(target).family.name == "sd1"


def test_no_variant_of_the_unet_in_a_folder_stays_unhardened(adapter, folder, tmp_path):
    """fp16 files and shards are rewritten too; pickles and whole checkpoints stay behind."""
    source = shutil.copytree(folder, tmp_path / "base")
    weights = source / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    half = len(tensors) // 2
    for number, part in ((1, list(tensors)[:half]), (2, list(tensors)[half:])):
        save_file(
            {name: tensors[name] for name in part},
            source / "unet" / f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors",
        )
    (source / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (source / "v1-5-pruned.safetensors").write_bytes(b"whole")

    report = export_merged(source, adapter, tmp_path / "out")

    found = verify_export(source, tmp_path / "out", adapter)
    assert len(found.changed) == 2 * len(adapter.modules) == report.touched
    assert not (tmp_path / "out" / "unet" / "diffusion_pytorch_model.bin").exists()
    assert not (tmp_path / "out" / "v1-5-pruned.safetensors").exists()
    assert "v1-5-pruned.safetensors" in report.warnings[-1]


def test_a_folder_that_fails_or_is_stopped_leaves_nothing(adapter, folder, tmp_path):
    """Nor is an old target lost; with overwrite it is replaced whole."""
    target = tmp_path / "out"

    def stop(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_merged(folder, adapter, target, on_progress=stop)
    assert not os.listdir(tmp_path)
    target.mkdir()
    (target / "old.txt").write_text("old")
    with pytest.raises(ExportError, match="exists"):
        export_merged(folder, adapter, target)
    with pytest.raises(KeyboardInterrupt):
        export_merged(folder, adapter, target, overwrite=True, on_progress=stop)
    assert (target / "old.txt").read_text() == "old"
    export_merged(folder, adapter, target, overwrite=True)
    assert not (target / "old.txt").exists() and os.listdir(tmp_path) == ["out"]


def test_a_folder_is_never_written_into_itself(adapter, folder, tmp_path):
    """Nor around itself, nor over itself through a link."""
    (tmp_path / "link").symlink_to(folder)
    for target in (folder / "out", folder, folder.parent, tmp_path / "link"):
        with pytest.raises(ExportError, match=r"itself|within"):
            export_merged(folder, adapter, target, overwrite=True)
    assert sorted(os.listdir(folder.parent)) == ["base"]


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot lock a folder")
def test_two_exports_to_one_folder_do_not_mix(adapter, folder, tmp_path):
    """The second is refused while the first writes, which ends as if alone."""
    target, refused = tmp_path / "out", []

    def second(progress):
        if not refused:
            with pytest.raises(ExportError, match="another export is writing") as found:
                export_merged(folder, adapter, target)
            refused.append(found.value)

    export_merged(folder, adapter, target, on_progress=second)
    assert refused and [path.name for path in tmp_path.iterdir()] == ["out"]
    verify_export(folder, target, adapter)


def test_the_rest_of_a_killed_export_is_cleared(adapter, folder, tmp_path):
    partial = tmp_path / "out.resalign-partial"
    (partial / "unet").mkdir(parents=True)
    (partial / "unet" / "left.bin").write_text("rest")
    (partial / "link").symlink_to(folder)
    export_merged(folder, adapter, tmp_path / "out")
    assert not partial.exists() and not (tmp_path / "out" / "unet" / "left.bin").exists()
    assert (folder / "model_index.json").exists()
