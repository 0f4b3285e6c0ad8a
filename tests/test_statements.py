"""Whatever a file or folder says of its training is read, or refused with the field named."""

import inspect as signatures
import json
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import write_sparse, write_tiny_checkpoint, write_tiny_folder
from fakes_export import random_adapter

from resalign.backend.checkpoint.detect import detect
from resalign.backend.checkpoint.header import read_header
from resalign.backend.checkpoint.load import load_checkpoint, load_schedule
from resalign.backend.checkpoint.save import export_merged
from resalign.backend.errors import CheckpointError, ConfigError
from resalign.backend.families.unet.scheduler import SUPPORTED, check_scheduler

SMALL = {"resalign.config": '{"unet": {"sample_size": 8}}'}


@pytest.fixture(scope="module")
def names():
    """Tensors of an SDXL file without storage: headers alone are read here."""
    from fakes_checkpoint import _random_tensors

    return {name: tensor.to("meta") for name, tensor in _random_tensors("sdxl", 0).items()}


@pytest.fixture
def file(names, tmp_path):
    """Write a file of these metadata and marker tensors."""

    def write(metadata=None, *markers):
        extra = {name: torch.empty(0, device="meta") for name in markers}
        path = tmp_path / "m.safetensors"
        return write_sparse(path, names | extra, metadata=SMALL | (metadata or {}))

    return write


@pytest.mark.parametrize(
    ("metadata", "markers", "expected"),
    [
        ({}, (), "epsilon"),
        ({}, ("v_pred",), "v_prediction"),
        ({"modelspec.prediction_type": "v"}, (), "v_prediction"),
        ({"modelspec.prediction_type": "V"}, ("v_pred",), "v_prediction"),
        ({"modelspec.prediction_type": "epsilon"}, (), "epsilon"),
        ({"modelspec.predict_key": "v"}, ("v_pred",), "v_prediction"),
        ({"modelspec.predict_key": "epsilon"}, (), "epsilon"),
        ({"prediction_type": "v_prediction"}, (), "v_prediction"),
        ({"ss_v_parameterization": "True"}, (), "v_prediction"),
        ({"ss_v_parameterization": "False", "ss_v_prediction": "None"}, (), "epsilon"),
        ({"ss_base_model_version": "sd_v2_768_v"}, (), "v_prediction"),
        ({"modelspec.architecture": "stable-diffusion-v2-768-v"}, (), "v_prediction"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, (), "epsilon"),
    ],
)
def test_the_prediction_is_read_from_every_writer_s_field(file, metadata, markers, expected):
    assert detect(file(metadata, *markers)).prediction_type == expected


@pytest.mark.parametrize(
    ("metadata", "markers", "named"),
    [
        ({"modelspec.prediction_type": "epsilon"}, ("v_pred",), ["prediction_type", "v_pred"]),
        ({"modelspec.predict_key": "epsilon"}, ("v_pred",), ["predict_key = epsilon", "v_pred"]),
        ({"ss_v_parameterization": "False"}, ("v_pred",), ["ss_v_parameterization = False"]),
        (
            {"modelspec.prediction_type": "v", "ss_v_parameterization": "false"}, (),
            ["modelspec.prediction_type = v", "ss_v_parameterization = false"],
        ),
        (
            {"modelspec.architecture": "stable-diffusion-v2-768-v", "prediction_type": "eps"}, (),
            ["modelspec.architecture", "prediction_type = eps"],
        ),
        ({"ss_zero_terminal_snr": "False"}, ("v_pred", "ztsnr"), ["ss_zero_terminal_snr", "ztsnr"]),
    ],
)  # fmt: skip
def test_a_file_that_contradicts_itself_is_refused_with_both_fields_and_the_flag(
    file, metadata, markers, named
):
    with pytest.raises(CheckpointError, match="contradicts itself") as raised:
        detect(file(metadata, *markers))
    for text in [*named, "--prediction"]:
        assert text in str(raised.value)


@pytest.mark.parametrize(
    ("metadata", "named"),
    [
        ({"modelspec.prediction_type": "flow"}, "modelspec.prediction_type"),
        ({"modelspec.predict_key": "sample"}, "modelspec.predict_key"),
        ({"ss_v_parameterization": "perhaps"}, "ss_v_parameterization"),
        ({"modelspec.timestep_range": "0,200"}, "modelspec.timestep_range"),
        ({"modelspec.timestep_range": "late"}, "modelspec.timestep_range"),
    ],
)
def test_a_statement_that_is_not_supported_is_refused_by_its_field(file, metadata, named):
    with pytest.raises(CheckpointError, match=named):
        detect(file(metadata))


@pytest.mark.parametrize("marker", ["edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_eps.rho"])
def test_edm_keys_are_refused(file, marker):
    with pytest.raises(CheckpointError, match="EDM noise schedule"):
        detect(file(None, marker))


def test_all_times_are_all_times(file):
    assert detect(file({"modelspec.timestep_range": "0,1000"})).prediction_type == "epsilon"


def test_kohya_s_zero_terminal_snr_rescales_the_schedule(file):
    info = detect(file({"ss_zero_terminal_snr": "True"}, "v_pred"))

    assert info.zero_terminal_snr and load_schedule(info).alphas_cumprod[-1] < 1e-6


@pytest.mark.parametrize(
    ("decided", "prediction", "zero"),
    [("epsilon", "epsilon", False), ("v", "v_prediction", False), ("v-zsnr", "v_prediction", True)],
)
def test_the_caller_s_decision_wins_over_every_statement(file, decided, prediction, zero):
    path = file({"modelspec.prediction_type": "epsilon"}, "v_pred", "ztsnr")

    info = detect(path, prediction=decided)

    assert (info.prediction_type, info.zero_terminal_snr) == (prediction, zero)


def test_a_decision_must_be_one_and_is_not_for_folders(file, tmp_path):
    with pytest.raises(ConfigError, match="choose from epsilon, v, v-zsnr"):
        detect(file(), prediction="x0")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"scheduler_config\.json"):
        detect(tmp_path / "folder", prediction="v")


def test_a_decided_source_is_exported_with_the_decision(tmp_path):
    path = write_tiny_checkpoint(
        tmp_path / "m.safetensors", prediction_type="v_prediction",
        metadata={"modelspec.prediction_type": "epsilon"},
    )  # fmt: skip
    info = detect(path, prediction="v-zsnr")
    adapter = random_adapter(load_checkpoint(info).denoiser, ("cross_attention_kv",))

    export_merged(info, adapter, tmp_path / "out.safetensors")

    found = detect(tmp_path / "out.safetensors")
    assert (found.prediction_type, found.zero_terminal_snr) == ("v_prediction", True)
    assert found.resolution == info.resolution
    metadata = read_header(tmp_path / "out.safetensors").metadata
    assert metadata["modelspec.prediction_type"] == "v"


def test_the_flag_reaches_the_check_and_a_plan_file_may_hold_it(tmp_path):
    from resalign.backend.cli.harden_flags import job_of
    from resalign.backend.cli.parser import build_parser
    from resalign.backend.jobs.check import check_job

    path = write_tiny_checkpoint(
        tmp_path / "m.safetensors", metadata={"modelspec.prediction_type": "epsilon"},
        prediction_type="v_prediction",
    )  # fmt: skip
    said = {"checkpoint": str(path), "output": str(tmp_path / "out.safetensors")}
    plan = {"concepts": [{"name": "a", "prompts": ["a gun"]}], "warm_up_steps": 0}
    file = tmp_path / "plan.json"

    def check(job, *flags):
        file.write_text(json.dumps({**said, **job, "plan": plan}))
        args = build_parser().parse_args(["check", str(file), "--device", "cpu", *flags])
        return check_job(job_of(args)).problems

    assert "contradicts itself" in check({})[0]
    assert not check({}, "--prediction", "v")
    assert not check({"prediction": "epsilon"})


# --- folders -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return write_tiny_folder(tmp_path_factory.mktemp("f") / "base", "sd1")


@pytest.fixture
def folder(base, tmp_path):
    """The folder with some fields of its JSON files replaced."""

    def change(name="scheduler/scheduler_config.json", *, mark=False, **fields):
        target = tmp_path / "folder"
        for path in base.rglob("*"):
            place = target / path.relative_to(base)
            place.parent.mkdir(parents=True, exist_ok=True)
            if path.is_file() and not place.exists():
                place.symlink_to(path)
        file = target / name
        text = json.dumps({**json.loads(file.read_text()), **fields})
        file.unlink()
        file.write_text(text, encoding="utf-8-sig" if mark else "utf-8")
        return target

    return change


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("_class_name", "EDMDPMSolverMultistepScheduler"),
        ("_class_name", "EDMEulerScheduler"),
        ("_class_name", "FlowMatchEulerDiscreteScheduler"),
        ("_class_name", "SomethingNewScheduler"),
        ("sigma_max", 80.0),
        ("sigma_data", 0.5),
        ("use_flow_sigmas", True),
        ("timestep_type", "continuous"),
        ("variance_type", "learned_range"),
        ("snr_shift_scale", 3.0),
        ("something_new", 1),
        ("prediction_type", "sample"),
        ("prediction_type", "flow_prediction"),
        ("beta_schedule", "squaredcos_cap_v2"),
        ("trained_betas", [0.1, 0.2]),
    ],
)
def test_a_scheduler_of_another_training_is_refused_by_its_field(folder, field, value):
    path = folder(**{field: value})

    with pytest.raises(CheckpointError) as raised:
        load_schedule(detect(path))
    named = field in str(raised.value) or str(value) in str(raised.value)
    assert named or "betas of its own" in str(raised.value)


def test_an_edm_scheduler_in_the_index_alone_is_refused(folder):
    path = folder("model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])

    with pytest.raises(CheckpointError, match=r"model_index\.json.*EDMEulerScheduler"):
        detect(path)


def test_fields_that_only_steer_sampling_do_no_harm(folder):
    path = folder(
        _class_name="UniPCMultistepScheduler", timestep_spacing="trailing", use_karras_sigmas=True,
        sigma_max=None, use_flow_sigmas=False, variance_type="fixed_small", something_off=False,
    )  # fmt: skip

    assert load_schedule(detect(path)).prediction_type == "epsilon"


def test_every_field_of_the_supported_schedulers_is_known_here():
    """Their defaults, as this version of diffusers writes them, are accepted."""
    import diffusers

    checked = 0
    for name in sorted(SUPPORTED):
        kind = getattr(diffusers, name, None)
        if kind is None or "Dummy" in type(kind).__name__:
            continue
        options = signatures.signature(kind.__init__).parameters.values()
        config = {
            each.name: each.default
            for each in options
            if each.default is not each.empty and each.name != "self"
        }
        check_scheduler(name, config | {"_class_name": name})
        checked += 1
    assert checked > 12


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latents_mean", [-1.6, 1.9, -1.4, 2.5]),
        ("latents_std", [8.5, 5.9, 6.5, 5.2]),
        ("_class_name", "AutoencoderTiny"),
        ("scaling_factor", "0.18"),
        ("shift_factor", float("nan")),
        ("latent_channels", 16),
    ],
)
def test_a_vae_whose_latents_are_others_is_refused_by_its_field(folder, name, value):
    with pytest.raises(CheckpointError, match=name):
        detect(folder("vae/config.json", **{name: value}))


def test_the_shift_of_a_vae_is_read(folder):
    model = load_checkpoint(folder("vae/config.json", shift_factor=0.25, scaling_factor=0.5))

    z = torch.tensor([1.25])
    assert model.latent_space.normalised(z).item() == 0.5
    assert model.latent_space.raw(torch.tensor([0.5])).item() == 1.25


@pytest.mark.parametrize(
    "name",
    ["model_index.json", "unet/config.json", "scheduler/scheduler_config.json", "vae/config.json"],
)
def test_a_byte_order_mark_is_no_damage(folder, name):
    assert detect(folder(name, mark=True)).family.name == "sd1"


# --- distilled ---------------------------------------------------------------------------------


def test_titles_origins_and_schedulers_count_too(folder, file):
    assert detect(file({"modelspec.title": "SDXL Turbo"})).distilled.startswith(
        "Turbo, by the name"
    )
    path = folder("unet/config.json", _name_or_path="/home/me/turbo/stabilityai/sdxl-turbo")
    assert detect(path).distilled == "Turbo, by the name 'sdxl-turbo'"
    assert detect(folder("unet/config.json", _name_or_path="/turbo/v1-5")).distilled == ""
    assert "LCMScheduler" in detect(folder(_class_name="LCMScheduler")).distilled


def test_clip_skip_in_a_header_is_told_not_followed(tmp_path):
    path = write_tiny_checkpoint(tmp_path / "m.safetensors", metadata={"ss_clip_skip": "2"})

    assert "CLIP skip 2 (ss_clip_skip)" in detect(path).cautions[0]


def test_lcm_models_with_a_guidance_input_are_named(folder, file):
    with pytest.raises(CheckpointError, match=r"latent consistency.*time_cond_proj_dim"):
        detect(folder("unet/config.json", time_cond_proj_dim=256))
    with pytest.raises(CheckpointError, match="latent consistency"):
        detect(file(None, "model.diffusion_model.time_embed.cond_proj.weight"))


def test_every_field_of_a_header_that_is_read_is_documented():
    from resalign.backend.families.unet import prediction

    page = (Path(__file__).parent.parent / "docs" / "formats.md").read_text("utf-8")
    for name in (
        *prediction._NAMES, *prediction._SWITCHES, *prediction._ENDINGS, *prediction._ZERO_SNR,
        prediction._TIMES,
    ):  # fmt: skip
        assert f"`{name}`" in page
