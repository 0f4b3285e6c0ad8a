"""Wrong and damaged files of transformers' parts are refused before work starts, each by its name.

Refusals of relatives and of quantised forms are in the files of the families.
"""

import json
import shutil

import pytest
import torch
from family_cases import CASES
from family_checks import every_case, loading_fixtures, tiny_plan
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.errors import CheckpointError
from resalign.backend.jobs.check import check_job

case = every_case()
models, copied, folder = loading_fixtures()
FUSED = {  # a tensor of which several modules take rows, or one of a module's own
    "anima": "net.blocks.0.self_attn.q_proj.weight",
    "flux2_klein": "double_blocks.0.img_attn.qkv.weight",
    "z_image": "layers.0.attention.qkv.weight",
}


def refuse(path, words):
    with pytest.raises(CheckpointError, match=words):
        check_loadable(path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def change(path, metadata=None, **tensors):
    """Put tensors into a file; None takes one out of it."""
    found = load_file(path) | tensors
    save_file({name: t for name, t in found.items() if t is not None}, path, metadata)


# --- companions --------------------------------------------------------------------------------


@pytest.mark.parametrize("part", ["TEXT_FILE", "VAE_FILE"])
def test_a_truncated_companion_is_not_called_missing(case, copied, part):
    """It lies where it is looked for, under its usual name."""
    path = copied / getattr(case.fakes, part)
    cut(path)
    refuse(copied / case.fakes.DENOISER_FILE, rf"of its own, and {path.name} is truncated")


@pytest.mark.parametrize(
    ("case", "other"),
    [(one, other) for one in CASES for other in CASES if one is not other],
    ids=str,
    indirect=["case"],
    scope="module",
)
def test_another_familys_vae_under_the_usual_name_is_told(case, copied, other, tmp_path):
    theirs = other.fakes.write_split(tmp_path / "theirs").parents[1] / other.fakes.VAE_FILE
    own = copied / case.fakes.VAE_FILE
    shutil.copyfile(theirs, own)
    words = rf"of its own, and {own.name} has that name and holds another model.*--vae"
    refuse(copied / case.fakes.DENOISER_FILE, words)
    with pytest.raises(CheckpointError, match=rf"{theirs.name} does not hold the VAE of"):
        detect(copied / case.fakes.DENOISER_FILE, parts={"vae": str(theirs)})


def test_a_text_encoder_of_another_size_is_told(case, copied):
    """Qwen3 8B goes with none of them."""
    text = copied / case.fakes.TEXT_FILE
    change(text, **{"model.embed_tokens.weight": torch.zeros(8, 4096)})
    refuse(copied / case.fakes.DENOISER_FILE, rf"{text.name} has that name and holds another")


@pytest.mark.parametrize(
    ("name", "tensor", "words"),
    [
        ("layers.0.mlp.up_proj.weight", None, "1 missing .model.layers.0.mlp.up_proj.weight"),
        ("layers.0.self_attn.q_proj.bias", torch.zeros(32), "1 unexpected .*q_proj.bias"),
        ("layers.0.mlp.up_proj.weight", torch.zeros(7, 5), r"1 unfit .*is \[7, 5\], not"),
        ("norm.weight", torch.zeros(32, dtype=torch.int64), "1 unfit .*stored as I64"),
    ],
)
def test_an_incomplete_companion_is_named(case, copied, name, tensor, words):
    text = copied / case.fakes.TEXT_FILE
    change(text, **{f"model.{name}": tensor})
    refuse(copied / case.fakes.DENOISER_FILE, rf"{text.name} was taken for the text_enc.*{words}")


# --- the denoiser's file -----------------------------------------------------------------------


def test_a_fault_of_a_fused_tensor_is_told_once(case, copied):
    path = copied / case.fakes.DENOISER_FILE
    whole = load_file(path)[FUSED[case.name]].to(torch.int64)
    change(path, **{FUSED[case.name]: whole})
    refuse(path, r"looks like .*: 1 unfit \([\w.]+ is stored as I64, not as floating point\)\.")


@pytest.mark.parametrize("part", ["TEXT_FILE", "VAE_FILE"])
def test_a_part_alone_is_no_checkpoint(case, models, part):
    kind = "text encoder" if part == "TEXT_FILE" else "VAE"
    refuse(models / getattr(case.fakes, part), rf"is a {kind} alone.*or the denoiser's file")


def test_a_denoiser_without_the_tensors_that_tell_it_is_incomplete(tmp_path):
    """It was refused because only Z-Image can be hardened."""
    shapes = {"cap_embedder.1.weight": (96, 32), "noise_refiner.0.attention.k_norm.weight": (32,),
              "layers.0.attention.out.weight": (96, 96)}  # fmt: skip
    path = tmp_path / "part.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    refuse(path, r"is Z-Image without some of its tensors: it is incomplete")
    save_file({"llm_adapter.a": torch.zeros(1), "blocks.0.b": torch.zeros(1)}, path)
    refuse(path, r"is Anima without some of its tensors: it is incomplete")


@pytest.mark.parametrize("names", [("diff", "diff_b"), ("lora_A.weight", "lora_B.weight")])
def test_a_patch_of_its_layers_is_no_checkpoint(case, tmp_path, names):
    layer = FUSED[case.name].removesuffix("weight").removeprefix("net.")
    tensors = {f"diffusion_model.{layer}{name}": torch.zeros(4, 4) for name in names}
    save_file(tensors, tmp_path / "patch.safetensors")
    refuse(tmp_path / "patch.safetensors", "is a LoRA, not a checkpoint: merge it into its base")


# --- configs of folders ------------------------------------------------------------------------

HEADS = {"anima": "num_attention_heads", "flux2_klein": "attention_head_dim", "z_image": "n_heads"}


@pytest.mark.parametrize("value", [None, -1, "x", 10**9])
def test_a_folder_with_a_config_of_nonsense_is_a_problem_not_a_traceback(
    case, folder, tmp_path, value
):
    other = shutil.copytree(folder, tmp_path / "other")
    config = other / "transformer/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {HEADS[case.name]: value}))
    output = str(tmp_path / "out")
    job = ra.Job(checkpoint=str(other), output=output, plan=tiny_plan(), device="cpu")
    found = check_job(job, memory=True)
    assert any("config" in problem for problem in found.problems) and found.disk_bytes is None


# --- tokenizers --------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [False, True])
def test_a_tokenizer_that_cannot_be_loaded_is_found_by_the_check(case, copied, tmp_path, broken):
    """Before any weight is read, which takes minutes for files of this size."""
    place = copied / "text_encoders/tokenizer"
    if broken:
        (place / "tokenizer.json").write_text("{}")
    else:
        shutil.rmtree(place)
    path, output = copied / case.fakes.DENOISER_FILE, str(tmp_path / "o.safetensors")
    job = ra.Job(checkpoint=str(path), output=output, plan=tiny_plan(), device="cpu")
    (problem,) = check_job(job).problems
    assert ("is not a readable tokenizer" if broken else "needs the tokenizer of Qwen3") in problem


def test_tokenizers_are_loaded_before_weights(case, copied, monkeypatch):
    from resalign.backend.checkpoint import load

    shutil.rmtree(copied / "text_encoders/tokenizer")
    monkeypatch.setattr(load, "_fill", lambda *_: pytest.fail("a weight was read"))
    with pytest.raises(CheckpointError, match="needs the tokenizer"):
        ra.load_checkpoint(copied / case.fakes.DENOISER_FILE)


# --- hosts -------------------------------------------------------------------------------------


def test_a_hosts_text_encoder_is_not_rebuilt(case):
    with pytest.raises(CheckpointError, match=r"not rebuilt from the CLIP: the host's own encodes"):
        case.family.networks.text_encoder("the CLIP", "text_encoder", {})
