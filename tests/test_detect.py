"""A checkpoint says what it is through names, shapes and metadata, without its weights."""

import json
import os
import subprocess
import sys
import time

import pytest
import torch
from fakes_checkpoint import (
    FAMILIES,
    build_networks,
    ldm_tensors,
    write_sparse,
    write_tiny_checkpoint,
    write_tiny_folder,
)
from test_keys import published

from resalign.backend.checkpoint.detect import detect
from resalign.backend.errors import CheckpointError
from resalign.backend.families import find_family
from resalign.backend.families.unet.process import noise_schedule, zero_terminal_snr

TELLING_BIAS = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
STATED = "resalign.config"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    return {family: write_tiny_checkpoint(folder / f"{family}.safetensors", family)
            for family in FAMILIES}  # fmt: skip


def sparse(path, family, *, dtype="F16", metadata=None, extra=()):
    """A header-only stand-in of the published size."""
    networks = {name: published(family, name) for name in find_family(family).components}
    tensors = ldm_tensors(networks, family) | {name: torch.empty(0) for name in extra}
    return write_sparse(path, tensors, dtype, metadata)


@pytest.mark.parametrize("family", FAMILIES)
def test_family_layout_and_configs_of_a_file_of_published_size(tmp_path, family):
    path = sparse(tmp_path / "model.safetensors", family)
    start = time.perf_counter()
    info = detect(path)
    seconds = time.perf_counter() - start

    assert (info.family.name, info.layout, info.prediction_type) == (family, "ldm", "epsilon")
    assert info.resolution == {"sd1": 512, "sd2": 512, "sdxl": 1024}[family]
    for component in info.components:
        shipped = find_family(family).config(component)
        if component == "text_encoder" and family == "sd2":
            shipped["projection_dim"] = info.configs[component]["projection_dim"]  # unused
        if component == "vae":
            shipped |= {"use_quant_conv": True, "use_post_quant_conv": True}
        assert info.configs[component] == shipped
        assert info.dtypes[component] == ("F16",)
    assert info.bytes == path.stat().st_size
    assert seconds < 2, "reads more than the header"


@pytest.mark.parametrize("family", FAMILIES)
def test_reduced_widths_are_read_off_the_shapes(tiny, family):
    info = detect(tiny[family])

    unet = build_networks(family)["unet"].config
    for key in ("block_out_channels", "attention_head_dim", "down_block_types", "up_block_types",
                "cross_attention_dim", "layers_per_block", "use_linear_projection",
                "transformer_layers_per_block"):  # fmt: skip
        stated, found = unet[key], info.configs["unet"][key]
        assert found == (list(stated) if isinstance(stated, tuple) else stated), key
    assert info.family.name == family
    assert info.resolution == 64
    assert info.configs["text_encoder"]["num_hidden_layers"] == 3
    assert info.tensor_count == len(next(iter(info.headers.values())).tensors)


def test_storage_types_are_told_per_component(tmp_path):
    base = ldm_tensors(build_networks("sd1"), "sd1")
    mixed = {n: t.half() for n, t in base.items() if n.startswith("first_stage_model.")}
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", dtype=torch.bfloat16, extra=mixed)

    assert detect(path).dtypes == {"unet": ("BF16",), "text_encoder": ("BF16",), "vae": ("F16",)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_is_detected_from_its_configs(tmp_path, family):
    path = write_tiny_folder(tmp_path / "folder", family, prediction_type="v_prediction")

    info = detect(path)

    assert (info.family.name, info.layout, info.prediction_type) == (
        family,
        "diffusers",
        "v_prediction",
    )
    assert info.resolution == 64
    assert info.components == find_family(family).components
    assert len(info.headers) == len(find_family(family).components)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_v_marker_key_makes_a_v_model(tmp_path, family):
    path = write_tiny_checkpoint(tmp_path / "v.safetensors", family, prediction_type="v_prediction")

    assert detect(path).prediction_type == "v_prediction"


def test_an_unknown_prediction_type_is_refused(tmp_path):
    path = write_tiny_checkpoint(
        tmp_path / "m.safetensors", metadata={"modelspec.prediction_type": "flow"}
    )

    with pytest.raises(CheckpointError, match=r"'flow'.*only epsilon and v"):
        detect(path)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
@pytest.mark.parametrize(("spread", "expected"), [(0.3, "v_prediction"), (0.03, "epsilon")])
def test_sd2_v_models_are_told_by_the_spread_of_one_bias(tmp_path, dtype, spread, expected):
    bias = spread * torch.randn(32, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "m.safetensors"

    write_tiny_checkpoint(
        path, "sd2", extra={TELLING_BIAS: bias.to(dtype)}, metadata={STATED: "{}"}
    )

    info = detect(path)
    assert info.prediction_type == expected
    assert info.resolution == (768 if expected == "v_prediction" else 512)


def test_the_spread_of_that_bias_means_nothing_in_sd1(tmp_path):
    path = tmp_path / "m.safetensors"
    write_tiny_checkpoint(path, "sd1", extra={TELLING_BIAS: torch.randn(32)})

    assert detect(path).prediction_type == "epsilon"


def test_the_zero_snr_marker_rescales_the_schedule_of_a_v_model(tmp_path):
    path = write_tiny_checkpoint(
        tmp_path / "m.safetensors", prediction_type="v_prediction", extra={"ztsnr": torch.ones(0)}
    )

    info = detect(path)

    assert info.zero_terminal_snr
    alphas = noise_schedule("m", info.configs["scheduler"]).alphas_cumprod
    assert alphas[-1] < 1e-6
    assert alphas[-1] > 0


def test_the_zero_snr_schedule_equals_that_of_diffusers():
    from diffusers import DDIMScheduler

    options = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    plain = DDIMScheduler(**options).alphas_cumprod
    theirs = DDIMScheduler(**options, rescale_betas_zero_snr=True).alphas_cumprod

    torch.testing.assert_close(zero_terminal_snr(plain)[:-1], theirs[:-1], rtol=1e-4, atol=1e-6)


def test_zero_snr_without_v_prediction_is_refused(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", extra={"ztsnr": torch.ones(0)})

    with pytest.raises(CheckpointError, match=r"pure noise.*marker keys"):
        detect(path)


def test_metadata_may_state_what_shapes_cannot_tell(tmp_path):
    stated = {
        "unet": {"attention_head_dim": 4, "norm_num_groups": 8},
        "vae": {"norm_num_groups": 16, "scaling_factor": 1.5},
        "text_encoder": {"num_attention_heads": 2},
    }
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", metadata={STATED: json.dumps(stated)})

    configs = detect(path).configs

    for component, fields in stated.items():
        assert {key: configs[component][key] for key in fields} == fields


@pytest.mark.parametrize(
    ("stated", "says"),
    [
        ("{", "must be JSON"),
        ("[1]", "must be JSON"),
        ('{"unet": 1}', "must be JSON"),
        ('{"unet": {"block_out_channels": [8]}}', r"sets unet\.block_out_channels; it may set"),
        ('{"safety_checker": {"x": 1}}', r"sets safety_checker\.x"),
        ('{"unet": {"norm_num_groups": 0}}', "to 0, which is not a value"),
        ('{"unet": {"norm_num_groups": "8"}}', "to '8', which is not a value"),
        ('{"unet": {"attention_head_dim": [4, -1]}}', "is not a value"),
        ('{"text_encoder": {"hidden_act": "os.system"}}', "is not a value"),
        ('{"unet": {"norm_num_groups": 64}}', "64 groups do not divide"),
    ],
)
def test_metadata_that_state_nonsense_are_refused(tmp_path, stated, says):
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", metadata={STATED: stated})

    with pytest.raises(CheckpointError, match=says):
        detect(path)


@pytest.mark.parametrize(
    "prefix", ["cond_stage_model.transformer.", "conditioner.embedders.0.model."]
)
def test_other_prefixes_of_text_encoders_are_known(tmp_path, prefix):
    """Early SD 1.x fine-tunes lack `text_model.`; SD-Turbo names SD 2.x's as SDXL would."""
    family = "sd1" if "transformer" in prefix else "sd2"
    usual = {"sd1": "cond_stage_model.transformer.text_model.", "sd2": "cond_stage_model.model."}
    tensors = ldm_tensors(build_networks(family), family)
    renamed = {name.replace(usual[family], prefix): tensor for name, tensor in tensors.items()}
    path = write_sparse(tmp_path / "m.safetensors", renamed)

    info = detect(path)

    assert (info.family.name, info.prefixes["text_encoder"]) == (family, prefix)


def test_detecting_and_inspecting_never_import_torch(tmp_path, tiny, package_folder):
    (tmp_path / "resalign").symlink_to(package_folder)
    code = (
        "import sys\n"
        "from resalign.backend.checkpoint.detect import detect\n"
        "from resalign.backend.checkpoint.inspect import inspect\n"
        f"detect({str(tiny['sd2'])!r}); inspect({str(tiny['sd2'])!r})\n"
        "assert not {'torch', 'numpy', 'diffusers'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
