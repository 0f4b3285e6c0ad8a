"""Loading is exact, strict, offline, and never holds the weights twice."""

import json
import re
import socket
from functools import lru_cache

import pytest
import torch
from fakes_checkpoint import (
    FAMILIES,
    build_networks,
    config_folder,
    write_tiny_checkpoint,
    write_tiny_folder,
)
from marks import slow
from safetensors.torch import load_file, save_file

from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.load import _dtype_of, load_checkpoint
from resalign.backend.errors import CheckpointError
from resalign.backend.memory.weights import weight_types
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan

SOME = "model.diffusion_model.input_blocks.1.1.proj_in.weight"
LAST = "model.diffusion_model.out.2.bias"


def networks_of(model):
    texts = dict(zip(model.family.text_encoders, model.text_encoders, strict=True))
    return {"unet": model.denoiser, "vae": model.vae, **texts}


def assert_same_networks(model, networks, dtype=torch.float32):
    found = networks_of(model)
    assert set(found) == set(networks)
    for component, network in networks.items():
        ours, theirs = found[component].state_dict(), network.state_dict()
        assert set(ours) == set(theirs), component
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], tensor.to(dtype).float()), (component, name)


original = lru_cache(build_networks)  # never changed here


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """A float32 file of each family, loaded; never changed here."""
    folder = tmp_path_factory.mktemp("loaded")
    paths = {family: folder / f"{family}.safetensors" for family in FAMILIES}
    return {
        family: load_checkpoint(write_tiny_checkpoint(path, family, torch.float32))
        for family, path in paths.items()
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_of_a_file_arrives_bit_for_bit(loaded, family):
    model = loaded[family]

    assert_same_networks(model, original(family))
    assert (model.family.name, model.source.suffix, model.resolution) == (
        family,
        ".safetensors",
        64,
    )


@pytest.mark.parametrize("family", ["sd1", *slow("sd2", "sdxl")])
def test_every_weight_of_a_folder_arrives_bit_for_bit(tmp_path, family):
    path = write_tiny_folder(tmp_path / "folder", family, torch.float32)

    model = load_checkpoint(path)

    assert_same_networks(model, original(family))
    assert (model.family.name, model.source, model.resolution) == (family, path, 64)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_other_storage_becomes_float32_on_the_cpu_without_further_loss(tmp_path, dtype):
    path = write_tiny_checkpoint(tmp_path / "model.safetensors", dtype=dtype)

    assert_same_networks(load_checkpoint(path), original(), dtype)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loaded_denoiser_computes_what_the_original_does(loaded, family):
    unet = original(family)["unet"]
    noise = torch.Generator().manual_seed(0)
    latents = torch.randn(1, 4, 8, 8, generator=noise)
    context = torch.randn(1, 77, unet.config.cross_attention_dim, generator=noise)
    added = {"text_embeds": torch.ones(1, 64), "time_ids": torch.ones(1, 6)}

    with torch.no_grad():
        expected, found = (
            each(latents, torch.tensor([5]), context, added_cond_kwargs=added).sample
            for each in (unet, loaded[family].denoiser)
        )
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_loaded_model_is_in_eval_mode_and_frozen(loaded, family):
    for network in networks_of(loaded[family]).values():
        assert not network.training
        assert not any(tensor.requires_grad for tensor in network.parameters())
        assert {t.device.type for t in (*network.parameters(), *network.buffers())} == {"cpu"}


@pytest.mark.slow
def test_a_dtype_asked_for_holds_for_all_but_the_vae_of_sdxl(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "model.safetensors", "sdxl")

    model = load_checkpoint(path, dtype=torch.float16)

    assert model.dtype == torch.float16
    assert model.text_encoders[1].dtype == torch.float16
    assert model.vae.dtype == torch.float32


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (torch.float16, torch.float16),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float32),
        (torch.float8_e4m3fn, torch.float16),
    ],
)
def test_on_an_accelerator_weights_keep_their_storage_type(tmp_path, stored, expected):
    info = detect(write_tiny_checkpoint(tmp_path / "model.safetensors", dtype=stored))

    assert _dtype_of(info, "unet", torch.device("cuda"), None) == expected
    assert _dtype_of(info, "vae", torch.device("cuda"), None) == expected


@pytest.mark.parametrize(
    ("precision", "denoiser", "others"),
    [
        ("fp32", torch.float32, torch.float32),
        ("bf16", torch.bfloat16, torch.float16),
        ("fp16", torch.float16, torch.float16),
    ],
)
def test_a_plan_of_half_precision_leaves_the_encoders_their_storage_type(
    tmp_path, precision, denoiser, others
):
    """The denoiser has the plan's type; in fp32 plans everything is computed in float32."""
    info = detect(write_tiny_checkpoint(tmp_path / "model.safetensors", dtype=torch.float16))
    types = weight_types(HardeningPlan(concept=Concept("x", ("x",)), precision=precision))

    assert load_checkpoint(info.path, **types).dtype == denoiser
    for component in ("text_encoder", "vae"):
        assert _dtype_of(info, component, torch.device("cuda"), types["dtype"]) == others


def test_prediction_type_and_schedule_arrive(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", prediction_type="v_prediction")

    schedule = load_checkpoint(path).process

    assert schedule.prediction_type == "v_prediction"
    assert schedule.steps == 1000
    assert schedule.alphas_cumprod[0] == pytest.approx(1 - 0.00085)
    assert schedule.alphas_cumprod[-1] == pytest.approx(0.00466, rel=1e-2)


@pytest.mark.parametrize(
    ("family", "padding"), [("sd1", [49407]), ("sd2", [0]), ("sdxl", [49407, 0])]
)
def test_tokenizers_are_those_of_the_family(loaded, family, padding):
    tokenizers = loaded[family].tokenizers

    assert [tokenizer.pad_token_id for tokenizer in tokenizers] == padding
    for tokenizer in tokenizers:
        assert tokenizer.model_max_length == 77
        assert tokenizer("A photo of a CAT").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]


def test_nothing_is_fetched(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")

    load_checkpoint(write_tiny_checkpoint(tmp_path / "m.safetensors"))
    load_checkpoint(write_tiny_folder(tmp_path / "folder"))


def test_weights_outlive_their_file(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", dtype=torch.float32)
    model = load_checkpoint(path)

    path.write_bytes(bytes(path.stat().st_size))

    assert_same_networks(model, original())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_missing_tensor_is_named(tmp_path, family):
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", family, drop=(LAST,))

    with pytest.raises(CheckpointError, match=re.escape(f"1 missing ({LAST})")):
        load_checkpoint(path)


def test_unexpected_tensors_are_named_and_counted(tmp_path):
    extra = {f"model.diffusion_model.control.{i}": torch.zeros(1) for i in range(7)}
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", extra=extra)

    with pytest.raises(
        CheckpointError, match=r"7 unexpected \(.*control\.0, .*control\.3, \.\.\.\)"
    ):
        load_checkpoint(path)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(tmp_path):
    path = write_tiny_checkpoint(
        tmp_path / "m.safetensors", extra={SOME: torch.zeros(32, 16, 1, 1)}
    )

    with pytest.raises(CheckpointError, match=r"1 unfit .*\[32, 16, 1, 1\], not \[32, 32, 1, 1\]"):
        load_checkpoint(path)


def test_a_weight_of_whole_numbers_is_refused(tmp_path):
    bias = SOME.replace("weight", "bias")
    path = write_tiny_checkpoint(
        tmp_path / "m.safetensors", extra={bias: torch.zeros(32, dtype=torch.int32)}
    )

    with pytest.raises(CheckpointError, match="stored as I32, not as floating point"):
        load_checkpoint(path)


def test_nothing_is_read_before_everything_is_known_to_fit(tmp_path, monkeypatch):
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", drop=(SOME,))
    monkeypatch.setattr(
        "resalign.backend.checkpoint.load.TensorFile", lambda *_: pytest.fail("weights were read")
    )

    with pytest.raises(CheckpointError, match="1 missing"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    ("family", "names"),
    [
        (
            "sd1",
            [
                "betas", "alphas_cumprod", "sqrt_one_minus_alphas_cumprod", "posterior_variance",
                "model_ema.decay", "model_ema.diffusion_modelinput_blocks00weight",
                "cond_stage_model.transformer.text_model.embeddings.position_ids",
                "first_stage_model.loss.logvar", "cond_stage_model.logit_scale",
                "cond_stage_model.transformer.text_projection.weight",
            ],
        ),
        ("sd2", ["cond_stage_model.model.attn_mask", "cond_stage_model.model.logit_scale"]),
        (
            "sdxl",
            [
                "denoiser.sigmas", "conditioner.embedders.1.model.logit_scale",
                "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
            ],
        ),
    ],
)  # fmt: skip
def test_known_extras_do_no_harm(tmp_path, family, names):
    shapes = {"model_ema.diffusion_modelinput_blocks00weight": (32, 4, 3, 3)}
    extra = {name: torch.zeros(shapes.get(name, (1, 3))) for name in names}

    load_checkpoint(write_tiny_checkpoint(tmp_path / "m.safetensors", family, extra=extra))


@pytest.mark.parametrize("family", FAMILIES)
def test_diffusers_own_loader_reads_the_same_from_the_config_folder(tmp_path, loaded, family):
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    model = loaded[family]
    path = model.source
    folder = config_folder(detect(path), tmp_path / "config")
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline

    pipe = kind.from_single_file(str(path), config=str(folder), local_files_only=True)

    for component, network in networks_of(model).items():
        theirs = getattr(pipe, component).state_dict()
        for name, tensor in network.state_dict().items():
            assert torch.equal(theirs[name], tensor), (component, name)
    assert pipe.scheduler.config.prediction_type == "epsilon"
    assert pipe.tokenizer.pad_token_id == model.tokenizers[0].pad_token_id


def test_text_encoders_as_new_transformers_write_them_are_read(tmp_path):
    path = write_tiny_folder(tmp_path / "folder", dtype=torch.float32)
    rename(path / "text_encoder" / "model.safetensors", lambda n: n.removeprefix("text_model."))

    assert_same_networks(load_checkpoint(path), original())


def test_folders_of_old_diffusers_are_read(tmp_path):
    """They name the VAE's attention otherwise and keep its matrices as 1 × 1 convolutions."""
    path = write_tiny_folder(tmp_path / "folder", dtype=torch.float32)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def as_before(name):
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        return name

    rename(path / "vae" / "diffusion_pytorch_model.safetensors", as_before, as_convolution=True)

    assert_same_networks(load_checkpoint(path), original())


def test_a_sharded_folder_is_read(tmp_path):
    path = write_tiny_folder(tmp_path / "folder", dtype=torch.float32)
    whole = path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(whole)
    whole.unlink()
    weight_map = {}
    for i in (0, 1):
        shard = f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors"
        part = {name: tensors[name] for name in list(tensors)[i::2]}
        save_file(part, whole.with_name(shard))
        weight_map |= dict.fromkeys(part, shard)
    index = whole.with_name("diffusion_pytorch_model.safetensors.index.json")
    index.write_text(json.dumps({"weight_map": weight_map}))

    assert_same_networks(load_checkpoint(path), original())


def test_the_fp16_variant_of_a_folder_is_read_where_it_is_all_there_is(tmp_path):
    path = write_tiny_folder(tmp_path / "folder")
    for file in list(path.rglob("*.safetensors")):
        file.rename(file.with_name(file.name.replace(".safetensors", ".fp16.safetensors")))

    assert_same_networks(load_checkpoint(path), original(), torch.float16)


def rename(path, new_name, *, as_convolution=False):
    tensors = {}
    for name, tensor in load_file(path).items():
        matrix = as_convolution and ".attentions." in name and tensor.dim() == 2
        tensors[new_name(name)] = (tensor[..., None, None] if matrix else tensor).clone()
    assert list(tensors) != list(load_file(path))
    save_file(tensors, path)
