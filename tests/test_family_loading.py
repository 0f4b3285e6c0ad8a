"""Families of transformers are loaded strictly from every layout; their relatives are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from family_cases import ANIMA, CASES, KLEIN
from family_checks import assert_is_the_original, every_case, loading_fixtures
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import CheckpointError

case = every_case()
models, copied, folder = loading_fixtures()


# --- loading -----------------------------------------------------------------------------------


def test_separate_files_are_found_beside_the_denoiser_and_loaded(case, models):
    model = ra.load_checkpoint(models / case.fakes.DENOISER_FILE)
    assert model.family is case.family and model.resolution == case.fakes.SIDE == 64
    assert_is_the_original(case, model)


def test_they_are_found_in_the_folders_of_forge_neo(case, copied):
    """`vae` beside `VAE`: a disk that ignores case finds one folder under both names."""
    place = copied / "Stable-diffusion" / "sub"
    place.mkdir(parents=True)
    denoiser = (copied / case.fakes.DENOISER_FILE).rename(place / "model.safetensors")
    (copied / "text_encoders").rename(copied / "text_encoder")
    (copied / "vae").rename(copied / "VAE")
    (copied / "vae").symlink_to(copied / "VAE")
    for path in list((copied / "VAE").glob("*.safetensors")):
        path.rename(path.with_name("of_any_name.safetensors"))
    assert_is_the_original(case, ra.load_checkpoint(denoiser))


def test_all_in_one_is_loaded(case, tmp_path):
    path = case.fakes.write_whole(tmp_path / f"{case.stem}.safetensors")
    assert_is_the_original(case, ra.load_checkpoint(path))


def test_a_diffusers_folder_is_loaded(case, folder):
    """Anima's has modular_model_index.json, and a text encoder that is diffusers' own."""
    model = ra.load_checkpoint(folder)
    assert model.family is case.family and model.resolution == 1024
    assert_is_the_original(case, model)


def test_a_vae_in_the_names_of_diffusers_is_loaded(case, copied):
    state = case.fakes.build_networks()["vae"].state_dict()
    tensors = {name: tensor.clone() for name, tensor in state.items()}
    save_file(tensors, copied / case.fakes.VAE_FILE, case.fakes.CONFIG_KEY)
    assert_is_the_original(case, ra.load_checkpoint(copied / case.fakes.DENOISER_FILE))


def test_bf16_and_plain_fp8_are_loaded_in_bf16_or_wider(case, tmp_path):
    """float16 is not offered: the denoisers and Qwen3 were trained in bfloat16."""
    path = case.fakes.write_split(tmp_path, dtype=torch.bfloat16)
    half = ra.load_checkpoint(path, dtype=torch.float16)
    assert half.dtype == torch.bfloat16 and half.vae.dtype == torch.float32
    assert {encoder.dtype for encoder in half.text_encoders} == {torch.bfloat16}
    tensors = load_file(path)
    stored = {name: tensors[name].to(torch.float8_e4m3fn) for name in case.eighth or tensors}
    save_file(tensors | stored, path)
    found, expected = case.from_eighth(ra.load_checkpoint(path).denoiser, stored)
    assert torch.equal(found, expected.float())


def test_a_missing_companion_is_asked_for_with_its_usual_name(case, copied):
    (copied / case.fakes.TEXT_FILE).unlink()
    with pytest.raises(CheckpointError, match=case.companion):
        detect(copied / case.fakes.DENOISER_FILE)


def test_every_tensor_is_accounted_for(case, copied):
    path = copied / case.fakes.DENOISER_FILE
    tensors = load_file(path)
    for name in case.lacking:
        del tensors[name]
    save_file(tensors | {case.extra: torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=case.unaccounted):
        ra.load_checkpoint(path)


# --- refusals and cautions ---------------------------------------------------------------------


@pytest.mark.parametrize("case", [ANIMA, KLEIN], ids=str, indirect=True, scope="module")
def test_a_denoiser_in_the_names_of_diffusers_is_sent_to_its_folder(folder):
    """Z-Image's is loaded in either spelling: tests/test_z_image.py."""
    with pytest.raises(CheckpointError, match="give the folder"):
        detect(folder / "transformer/diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize(
    ("case", "kind", "part", "value", "words"),
    [(case, *relative) for case in CASES for relative in case.relatives],
    ids=[f"{case}-{kind}-{part}" for case in CASES for kind, part, *_ in case.relatives],
    indirect=["case"],
    scope="module",
)
def test_folders_of_relatives_are_refused(folder, tmp_path, case, kind, part, value, words):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    config = other / kind / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {part: value}))
    with pytest.raises(CheckpointError, match=words):
        detect(other)


def test_nobody_decides_what_it_predicts(case, models):
    with pytest.raises(CheckpointError, match="leave `prediction` empty"):
        detect(models / case.fakes.DENOISER_FILE, prediction="v")


def test_a_name_that_tells_of_distillation_is_cautioned_about(case, copied):
    """A distilled model has the tensors of the base: its name tells."""
    path = copied / case.fakes.DENOISER_FILE
    assert detect(path).distilled == ""
    named = path.with_name(case.renamed)
    path.rename(named)
    info = detect(named)
    assert case.distilled in info.distilled and "distilled checkpoint" in info.cautions[0]


# --- tokenizers, which no weights file holds ----------------------------------------------------


@pytest.mark.parametrize(
    ("case", "name", "what"),
    [(case, name, what) for case in CASES for name, _, what in case.tokenizers],
    ids=[f"{case}-{what}" for case in CASES for *_, what in case.tokenizers],
    indirect=["case"],
    scope="module",
)
def test_a_missing_tokenizer_is_asked_for(case, copied, name, what):
    shutil.rmtree(copied / "text_encoders" / name)
    words = rf"{case.title} needs the tokenizer of {what}.*put the folder `{name}`"
    with pytest.raises(CheckpointError, match=words):
        ra.load_checkpoint(copied / case.fakes.DENOISER_FILE)


def test_the_hosts_own_tokenizers_are_found(case, copied):
    host = copied.parent / "comfy" / "text_encoders"
    for name, theirs, _ in case.tokenizers:
        shutil.move(copied / "text_encoders" / name, host / theirs)
    found = ra.load_checkpoint(copied / case.fakes.DENOISER_FILE).tokenizers
    assert len(found) == len(case.tokenizers) and None not in found
