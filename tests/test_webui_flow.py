"""Flow-matching families in the tab: A1111 and Forge say that they do not know them; Forge Neo and
the tab alone take them, with text encoder and VAE where they are not found."""

import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import fakes_anima
import fakes_klein
import fakes_worker
import fakes_z_image
import pytest
from fakes_webui import FakeHost

from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file import from_json, to_json
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.run.folder import RunFolder
from resalign.backend.worker.requests import check_files, parse_request
from resalign.scripts.resalign_webui import forms, measure_forms
from resalign.scripts.resalign_webui import host as hosts
from resalign.scripts.resalign_webui.actions import Actions
from resalign.scripts.resalign_webui.jobs import JobManager
from resalign.scripts.resalign_webui.runs import Run

NOW = datetime(2026, 1, 31, 14, 5, 9)
CHOSEN = {"text_encoder": "far/away/text.safetensors", "vae": "far/away/vae.safetensors"}
FORM = {"checkpoint": "model-base.safetensors", "concepts": ["weapons"]}


FAMILIES = {
    "FLUX.2 klein 4B": fakes_klein, "Anima": fakes_anima, "Z-Image": fakes_z_image,
}  # fmt: skip


@pytest.fixture(scope="module", params=FAMILIES)
def title(request):
    return request.param


@pytest.fixture(scope="module")
def folder(title, tmp_path_factory):
    """Checkpoints: the denoiser, and its companions where they are not looked for."""
    base, fakes = tmp_path_factory.mktemp("host"), FAMILIES[title]
    fakes.write_split(base / "source")
    far = base / "models" / "far" / "away"
    far.mkdir(parents=True)
    for name, target in (
        (fakes.DENOISER_FILE, base / "models/model-base.safetensors"),
        (fakes.TEXT_FILE, far / "text.safetensors"),
        (fakes.VAE_FILE, far / "vae.safetensors"),
    ):
        shutil.move(base / "source" / name, target)
    for tokenizer in (base / "source/text_encoders").iterdir():
        shutil.move(tokenizer, far)
    return base


@pytest.fixture
def alone(folder):
    made = FakeHost(folder)
    made.name = hosts.ALONE
    made.checkpoints = lambda: [
        (path.relative_to(folder / "models").as_posix(), path)
        for path in sorted((folder / "models").rglob("*.safetensors"))
    ]
    return made


@pytest.fixture
def paths(folder):
    return {name: str(folder / "models" / label) for name, label in CHOSEN.items()}


@pytest.mark.parametrize("name", ["A1111", "Forge"])
def test_hosts_that_do_not_know_the_family_say_so(title, folder, name):
    host = FakeHost(folder)
    host.name = name
    words = rf"{title}, a family that {name} does not know.*resalign ui"
    with pytest.raises(ConfigError, match=words):
        forms.harden_request(FORM, host, NOW)
    said = Actions(host, None, lambda *names: "").describe("model-base.safetensors")  # type: ignore[arg-type]
    assert f"{name} does not know" in said


def test_the_tab_alone_sends_the_chosen_files_and_the_familys_guidance(alone, paths):
    found = forms.harden_request(FORM | CHOSEN, alone, NOW)
    assert {name: found[name] for name in CHOSEN} == paths
    drawn = forms.harden_request(FORM | CHOSEN | {"retain_images": 4}, alone, NOW)["plan"]
    plan = from_json(HardeningPlan, drawn)
    assert plan.retain_set is not None and plan.retain_set.guidance == 4.0
    check_files(parse_request(found))
    assert {name: forms.check_request(FORM | CHOSEN, alone, NOW)[name] for name in CHOSEN} == paths


class ForgeNeo(FakeHost):
    """Lists text encoders and VAEs apart from checkpoints."""

    name, every_family = "Forge Neo", True

    def model_parts(self):
        return [(label, self.folder / "models" / label) for label in CHOSEN.values()]


def test_forge_neo_knows_the_families_and_lists_their_files_apart(folder, paths):
    host = ForgeNeo(folder)
    found = forms.harden_request(FORM | CHOSEN, host, NOW)
    assert {name: found[name] for name in CHOSEN} == paths
    assert "choose it as Text encoder" in described(host, "model-base.safetensors")
    lists = Actions(host, JobManager(host, hosts.work_folder(host)), lambda *names: "").choices()
    assert lists["text_encoder"] == [forms.BY_ITSELF, *CHOSEN.values()]
    assert not set(CHOSEN.values()) & set(lists["checkpoint"])


def described(host, label):
    return Actions(host, None, lambda *names: "").describe(label)  # type: ignore[arg-type]


def test_a_checkpoint_is_described_with_the_files_that_were_found(title, alone, folder):
    """Their names alone, and what its name and its licence tell."""
    fakes, place = FAMILIES[title], folder / "models" / "sorted"
    if not place.exists():
        fakes.write_split(place)
    label = f"sorted/{fakes.DENOISER_FILE}"
    said = described(alone, label)
    for file in (fakes.TEXT_FILE, fakes.VAE_FILE):
        assert file.rpartition("/")[2] in said
    assert str(folder) not in said
    assert str(folder) not in Actions(alone, None, lambda *names: "").provenance(label)  # type: ignore[arg-type]
    assert ("non-commercial use" in said) == (title == "Anima")
    assert "distilled" not in said
    few = (place / fakes.DENOISER_FILE).with_name("turbo-4b.safetensors")
    shutil.copyfile(place / fakes.DENOISER_FILE, few)
    assert "looks like a distilled checkpoint" in described(
        alone, f"sorted/diffusion_models/{few.name}"
    )


def test_a_missing_file_is_asked_for_in_the_words_of_the_form(alone):
    said = described(alone, "model-base.safetensors")
    assert "choose it as Text encoder below the checkpoint" in said and "--text" not in said


def test_without_them_it_says_which_is_missing(alone):
    by_itself = dict.fromkeys(CHOSEN, forms.BY_ITSELF)
    with pytest.raises(ConfigError, match="has no text encoder"):
        forms.harden_request(FORM | by_itself, alone, NOW)


def test_a_probe_and_a_lora_take_them_too(alone, paths, folder):
    shutil.copyfile(folder / "models/model-base.safetensors", folder / "models/hard.safetensors")
    (folder / "loras/style.safetensors").touch()
    values = {
        "original": "model-base.safetensors", "hardened": "hard.safetensors", **CHOSEN,
        "probe_concepts": ["weapons"], "try_original": "model-base.safetensors",
        "try_hardened": "hard.safetensors", "lora": "style.safetensors", "prompt": "a cat",
    }  # fmt: skip
    found = measure_forms.probe_request(values, alone, [], NOW)
    for checkpoint in found["checkpoints"]:
        assert {name: checkpoint[name] for name in CHOSEN} == paths
    assert found["plan"]["generation"]["guidance"] == 4.0
    tried = measure_forms.lora_request(values, alone, [])
    assert {name: tried[name] for name in CHOSEN} == paths


def test_a_runs_own_files_are_taken_for_its_original(alone, paths, folder):
    source = str(folder / "models/model-base.safetensors")
    plan = forms.harden_request(FORM | CHOSEN, alone, NOW)["plan"]
    run = Run(name="a", folder=folder / "run", steps=2, total=2, checkpoint=source,
              concepts=("weapons",), plan=plan, parts=paths)  # fmt: skip
    found = measure_forms.probe_request({"probe_run": run.label}, alone, [run], NOW)
    first, second = found["checkpoints"]
    assert {name: first[name] for name in CHOSEN} == paths and "vae" not in second


def test_an_export_is_put_beside_its_original_where_its_companions_are_found(alone, folder):
    """At the top of the folder of checkpoints neither ComfyUI nor the tab would find them."""
    source = folder / "models/diffusion_models/model.safetensors"
    run = Run(name="a", folder=folder / "run", steps=2, total=2, checkpoint=str(source),
              concepts=("weapons",), plan={})  # fmt: skip
    values = {"export_run": run.label, "export_name": "new"}
    found = measure_forms.export_request(values, alone, [run], [])
    assert found["output"] == str(source.with_name("new.safetensors"))
    values |= {"export_folder": measure_forms.CHECKPOINTS}
    found = measure_forms.export_request(values, alone, [run], [])
    assert found["output"] == str(folder / "models/new.safetensors")
    demo = replace(run, checkpoint=str(Path(__file__)))  # outside of the folder
    found = measure_forms.export_request(
        {**values, "export_folder": measure_forms.BESIDE}, alone, [demo], []
    )
    assert found["output"] == str(folder / "models/new.safetensors")
    host = FakeHost(folder)
    assert measure_forms.BESIDE not in measure_forms.export_folders(host)


def test_a_lora_has_the_form_that_its_family_is_read_in(alone, folder):
    """kohya's, which is usual for Stable Diffusion, would be refused."""
    run = Run(name="a", folder=folder / "run", steps=2, total=2, checkpoint="a.safetensors",
              concepts=("weapons",), plan={})  # fmt: skip
    values = {"export_run": run.label, "lora_name": "new"}
    request = measure_forms.save_lora_request(values, alone, [run])
    assert request["format"] == "" and parse_request(request).format == ""
    values["lora_format"] = "kohya"
    assert measure_forms.save_lora_request(values, alone, [run])["format"] == "kohya"


def drawn(prompt):
    return ImageSet(prompts=(prompt,), images=2, sampling_steps=2, guidance=4.0)


@pytest.mark.slow
def test_the_worker_hardens_what_the_tab_sends(alone, tmp_path):
    plan = HardeningPlan(
        concepts=(Concept("weapons", ("a pistol",), images=drawn("a pistol")),),
        retain_set=drawn("a cat"), outer_steps=2, warm_up_steps=2, forget_batch=1, retain_batch=1,
    )  # fmt: skip
    found = forms.harden_request(FORM | CHOSEN, alone, NOW)
    found |= {"plan": to_json(plan), "device": "cpu", "preview_every": 0}
    jobs = JobManager(fakes_worker.FakeHost(), tmp_path / "jobs")
    jobs.start(found)
    state = fakes_worker.wait_for(jobs, fakes_worker.ended, 300)
    jobs.close()
    assert state["status"] == "done", state
    run = RunFolder.open(found["run_folder"], read_only=True)
    assert run.finished and run.steps_saved == 2
