"""FLUX.2 klein in separate files, through every command that loads a model: where the text encoder
and the VAE lie is said once, and a probe trains and draws with real steps."""

import json
import shutil
from pathlib import Path

import fakes_klein as fakes
import pytest
import torch
from PIL import Image

import resalign as ra
from resalign.backend.cli import main
from resalign.backend.cli.parser import build_parser
from resalign.backend.cli.probe_flags import probe_job_of
from resalign.backend.data.drawn_sets import forget_images, shipped_retain_set
from resalign.backend.families import find_family
from resalign.backend.jobs.family_defaults import drawn_as, guidance_doubts
from resalign.backend.jobs.live_state import LiveState
from resalign.backend.jobs.try_lora import Sampling, try_lora_job
from resalign.backend.plan.attack import LoraFile
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import load_probe_job
from resalign.backend.plan.presets import preset_plan
from resalign.backend.plan.probe_presets import preset_probe
from resalign.backend.worker import trying
from resalign.backend.worker.requests import check_files, parse_request

KLEIN = find_family("flux2_klein")
DRAWN = 'images = 2\nsampling_steps = 2\nguidance = 4.0\nprompts = ["{}"]\n'
SETS = f"""
[plan.forget_set]
{DRAWN.format("a gun")}
[plan.retain_set]
{DRAWN.format("a cat")}
[[plan.concepts]]
name = "weapons"
prompts = ["a gun"]
"""
HARDEN = f"""
checkpoint = "{{checkpoint}}"
output = "{{output}}"
[plan]
outer_steps = 1
warm_up_steps = 1
learning_rate = 0.02
forget_batch = 1
retain_batch = 1
[plan.adapter]
rank = 2
{SETS}
"""
PROBE = f"""
output = "{{output}}"
[[checkpoints]]
name = "original"
path = "{{original}}"
[[checkpoints]]
name = "hardened"
path = "{{hardened}}"
[plan]
pictures = 1
{SETS}
[plan.generation]
steps = 2
guidance = 4.0
[[plan.prompts]]
kind = "retain"
prompts = ["a cat"]
[[plan.merges]]
name = "half"
[[plan.fine_tunes]]
name = "LoRA"
concept_share = 0.5
steps = 2
batch = 1
rank = 2
learning_rate = 0.05
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The denoiser alone in one folder, hardened there; its companions in another, far from it."""
    base = tmp_path_factory.mktemp("klein")
    source = fakes.write_split(base / "models", dtype=torch.bfloat16)
    here, far = base / "here", base / "far" / "away"
    for folder in (here, far):
        folder.mkdir(parents=True)
    shutil.move(source, here / "klein-base.safetensors")
    for name in (fakes.TEXT_FILE, fakes.VAE_FILE):
        shutil.move(base / "models" / name, far / Path(name).name)
    shutil.move(base / "models/text_encoders/tokenizer", far / "tokenizer")
    shutil.rmtree(base / "models")
    files = here / "klein-base.safetensors", here / "hard.safetensors"
    (here / "harden.toml").write_text(HARDEN.format(checkpoint=files[0], output=files[1]))
    assert main(["harden", str(here / "harden.toml"), *parts(far)]) == 0
    return here, far


def parts(far):
    files = far / Path(fakes.TEXT_FILE).name, far / Path(fakes.VAE_FILE).name
    return ["--text-encoder", str(files[0]), "--vae", str(files[1])]


def said(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def probe_plan(here, output, hardened="hard.safetensors"):
    path = output.with_suffix(".toml")
    files = {"original": here / "klein-base.safetensors", "hardened": here / hardened}
    path.write_text(PROBE.format(output=output, **files))
    return path


@pytest.fixture(scope="module")
def probed(place, tmp_path_factory):
    """A finished probe of the run, not of its export."""
    here, far = place
    output = tmp_path_factory.mktemp("probes") / "probe"
    plan = probe_plan(here, output, "hard.safetensors.run")
    assert main(["probe", str(plan), *parts(far)]) == 0
    return output


@pytest.mark.slow
def test_a_probe_trains_and_draws_both_models(probed):
    found = ra.read_probe(probed)
    assert found.complete and [model.name for model in found.models] == ["original", "hardened"]
    assert {one.attack for one in found.evaluations} == {"before", "LoRA", "half"}
    after = found.evaluations_of("original", "LoRA")[-1]
    retain = after.set_of("retain")
    assert retain is not None
    (picture,) = retain.pictures
    assert (probed / picture).exists()
    job = json.loads((probed / "job.json").read_text())
    named = [bool(one["text_encoder"]) for one in job["checkpoints"]]
    assert named == [True, False]  # the run's own job names them


def test_the_probe_is_not_begun_without_them(place, tmp_path, capsys):
    here, _ = place
    assert main(["probe", str(probe_plan(here, tmp_path / "probe")), "--json"]) == 2
    assert "has no text encoder" in capsys.readouterr().out
    assert not (tmp_path / "probe").exists()


def test_check_takes_them_for_a_probes_plan(place, tmp_path, capsys):
    here, far = place
    plan = probe_plan(here, tmp_path / "probe")
    assert main(["check", str(plan), "--json"]) == 2
    assert "--text-encoder" in said(capsys)[0]["problems"][0]
    assert main(["check", str(plan), *parts(far), "--json"]) == 0
    assert said(capsys)[0]["checkpoints"] == ["original: flux2_klein", "hardened: flux2_klein"]


def test_inspect_takes_them(place, capsys):
    here, far = place
    file = str(here / "hard.safetensors")
    assert main(["inspect", file, "--json"]) == 0
    assert "has no text encoder" in said(capsys)[0]["problem"]
    assert main(["inspect", file, *parts(far), "--json"]) == 0
    found = said(capsys)[0]
    assert found["supported"] and found["family"] == "flux2_klein"
    assert found["hardened"]["concepts"] == ["weapons"]


@pytest.mark.slow
def test_verify_repeats_the_recorded_probe_with_them(place, probed, tmp_path, capsys):
    """The export itself needs neither: it rewrites the denoiser's file alone."""
    here, far = place
    run, file = str(here / "hard.safetensors.run"), str(tmp_path / "again.safetensors")
    assert main(["export", run, "--output", file, "--probe", str(probed)]) == 0
    capsys.readouterr()
    command = ["verify", file, "--source", str(here / "klein-base.safetensors"), "--json"]
    assert main(command) == 0
    last = said(capsys)[-1]["checks"][-1]
    assert last["ok"] is None and "has no text encoder" in last["detail"]
    assert main([*command, *parts(far)]) == 0
    last = said(capsys)[-1]["checks"][-1]
    assert last["ok"] and last["check"] == "probe reproduced"


def test_an_export_finds_its_companions_gone_and_goes_on(place, tmp_path, capsys):
    here, far = place
    away = far.rename(far.with_name("moved"))
    try:
        output = tmp_path / "again.safetensors"
        run = str(here / "hard.safetensors.run")
        assert main(["export", run, "--output", str(output)]) == 0
    finally:
        away.rename(far)
    first, again = here / "hard.safetensors", output
    assert [t.tobytes() for t in arrays(first)] == [t.tobytes() for t in arrays(again)]


def arrays(path):
    from safetensors.torch import load_file

    found = load_file(path)
    return [found[name].view(torch.int16).numpy() for name in sorted(found)]


@pytest.mark.slow
def test_a_lora_is_tried_on_both_with_them(place, tmp_path):
    here, far = place
    text, vae = parts(far)[1::2]
    lora = LoraFile(path=str(here / "hard-lora.safetensors"))
    sampling = Sampling(prompt="a cat", steps=1, guidance=4.0)
    named = {"text_encoder": text, "vae": vae}
    pairs = try_lora_job(
        here / "klein-base.safetensors", lora, sampling, hardened=here / "hard.safetensors",
        parts=named,
    )  # fmt: skip
    assert [picture.size for picture in pairs[0]] == [(fakes.SIDE, fakes.SIDE)] * 2
    run = try_lora_job(
        here / "klein-base.safetensors", lora, sampling,
        run_folder=str(here / "hard.safetensors.run"),
    )  # fmt: skip
    assert run[0][0].tobytes() == pairs[0][0].tobytes()


def test_a_worker_is_told_where_they_lie(place, tmp_path):
    here, far = place
    text, vae = parts(far)[1::2]
    request = {"job": "try_lora", "original": str(here / "klein-base.safetensors"), "prompt": "x",
               "hardened": str(here / "hard.safetensors"), "text_encoder": text, "vae": vae,
               "lora": str(here / "hard-lora.safetensors")}  # fmt: skip
    check_files(parse_request(request))
    with pytest.raises(ra.ConfigError, match=r"try_lora.vae is 'x'; give an absolute path"):
        parse_request({**request, "vae": "x"})
    with pytest.raises(ra.ConfigError, match=r"try_lora.vae: .*gone.* does not exist"):
        check_files(parse_request({**request, "vae": str(tmp_path / "gone.safetensors")}))


def test_python_loads_them_by_name(place):
    here, far = place
    text, vae = parts(far)[1::2]
    model = ra.load_checkpoint(
        here / "klein-base.safetensors", parts={"text_encoder": text, "vae": vae}
    )
    assert model.resolution == fakes.SIDE


# --- guidance -----------------------------------------------------------------------------------


def test_a_preset_draws_as_the_family_is_meant_to_be_drawn(place, tmp_path):
    """7.5 is Stable Diffusion's."""
    here, far = place
    args = ["probe", str(here / "klein-base.safetensors"), str(here / "hard.safetensors"),
            "--concept", "weapons", *parts(far)]  # fmt: skip
    job = probe_job_of(build_parser().parse_args(args))
    assert job.plan.generation.guidance == 4.0
    assert [one.parts["vae"] for one in job.checkpoints] == [parts(far)[3]] * 2
    own = load_probe_job(probe_plan(here, tmp_path / "probe")).plan
    assert guidance_doubts(own, KLEIN) == []


def test_guidance_that_does_not_fit_is_named_in_a_probes_plan():
    (doubt,) = guidance_doubts(preset_probe("quick", [Concept("a", ("a",))]), KLEIN)
    assert "generation has guidance 7.5" in doubt and "4 to 5" in doubt


@pytest.mark.parametrize(("guidance", "lines"), [(7.0, 2), (4.0, 1)])
def test_a_worker_warns_of_a_guidance_that_does_not_fit(monkeypatch, tmp_path, guidance, lines):
    picture = Image.new("RGB", (8, 8))
    monkeypatch.setattr(trying, "try_lora_job", lambda *args, **fields: [(picture, picture)])
    monkeypatch.setattr(trying, "family_at", lambda path, parts: KLEIN)
    request = parse_request({
        "job": "try_lora", "original": str(tmp_path / "a"), "hardened": str(tmp_path / "b"),
        "lora": str(tmp_path / "c"), "prompt": "x", "guidance": guidance,
    })  # fmt: skip
    _, said = trying.try_lora(request, LiveState("try_lora"), lambda: None, device="cpu")
    first, *warned = [line for line in said.splitlines() if "was hardened" not in line]
    assert first == "1 picture of each generated" and len(warned) == lines - 1
    assert all("is drawn with guidance 4 to 5" in line for line in warned)


@pytest.mark.parametrize("make", [preset_plan, preset_probe])
def test_stable_diffusions_presets_stay_as_they_are(make):
    preset = "balanced" if make is preset_plan else "standard"
    plan = make(preset, (Concept("a", ("a",)),))
    assert drawn_as(find_family("sd1"), plan) is plan and drawn_as(None, plan) is plan


def test_a_set_that_no_plan_describes_is_drawn_so_too():
    concept = Concept("weapons", ("a gun",))
    sets = [forget_images(concept, None, KLEIN), shipped_retain_set([concept], KLEIN)]
    assert [one.guidance for one in sets] == [4.0, 4.0]
    own = [forget_images(concept, None, find_family("sd1")), shipped_retain_set([concept])]
    assert [one.guidance for one in own] == [7.5, 7.5]
