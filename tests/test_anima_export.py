"""Anima goes the whole way: hardened, exported into its own layout, written as a LoRA."""

import math
from dataclasses import replace

import fakes_anima as fakes
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.adapter.formats import load_lora
from resalign.backend.adapter.lora import Adapter
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ExportError
from resalign.backend.families import find_family
from resalign.backend.families.registry import bases_of_lora
from resalign.backend.jobs.check import check_job
from resalign.backend.jobs.verify import verify_job
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.presets import preset_plan
from resalign.backend.report.card import write_card
from resalign.backend.report.licence_terms import licence_terms

ANIMA = find_family("anima")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anima") / "models"
    fakes.write_split(folder, dtype=torch.bfloat16)
    return folder


@pytest.fixture(scope="module")
def source(models):
    return models / fakes.DENOISER_FILE


@pytest.fixture(scope="module")
def model(source):
    return ra.load_checkpoint(source)


@pytest.fixture(scope="module")
def plan():
    return ra.HardeningPlan(
        concept=ra.Concept("weapons", prompts=("a gun",)),
        forget_set=ra.ImageSet(prompts=("a gun",), images=2, sampling_steps=1, guidance=4),
        retain_set=ra.ImageSet(prompts=("a cat",), images=2, sampling_steps=1, guidance=4),
        fine_tunes=ra.fine_tune_grid(learning_rate=(1e-3,), steps=(1,), concept_share=0.5),
        harm=ra.HarmConfig(cap=20.0), adapter=ra.AdapterConfig(rank=2), outer_steps=2,
        warm_up_steps=1, learning_rate=2e-2, forget_batch=1, retain_batch=1,
    )  # fmt: skip


@pytest.fixture(scope="module")
def result(model, plan):
    return ra.harden(model, plan)


def adapter_of(model, *modules, size=1.0):
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name in modules:
        rows, columns = model.denoiser.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(2, columns, generator=random)
        tensors[f"{name}.lora_B.weight"] = size * torch.randn(rows, 2, generator=random)
    return Adapter(tensors, 2, 1.0)


def block_modules(model):
    """What people train: attention and feed-forward, not the modulation."""
    return [name for name, module in model.denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name
            and ".norm" not in name]  # fmt: skip


# --- hardening ---------------------------------------------------------------------------------


def test_it_hardens_with_users_that_fine_tune_it(result):
    assert [record.step for record in result.records] == [1, 2]
    assert all(math.isfinite(record.harm) for record in result.records)
    assert result.records[-1].simulations
    assert all(result.adapter.delta(module).any() for module in result.adapter.modules)
    ends = {name.partition(".attn")[2] for name in result.adapter.modules}
    assert ends == {f"{i}.{part}" for i in (1, 2) for part in ("to_q", "to_k", "to_v", "to_out.0")}


def test_it_is_probed(model, result, plan):
    held_out = ra.fine_tune_grid(learning_rate=(5e-3,), steps=(1,), concept_share=0.5)
    found = ra.probe(model, result.adapter, plan=plan, fine_tunes=held_out,
                     scorer=ra.DenoisingScorer(images=1, timesteps=1))  # fmt: skip
    assert found.complete


@pytest.mark.parametrize("method", ["closed_form", "redirect", "project"])
def test_the_fast_methods_work(model, plan, method):
    """Its text comes in by a cross-attention of its own, so the closed form has what to edit."""
    own = replace(plan, method=method, fine_tunes=(), outer_steps=1, warm_up_steps=0)
    found = ra.harden(model, own).adapter
    assert any(found.delta(module).any() for module in found.modules)
    if method == "closed_form":
        assert {name.rpartition(".attn2.")[2] for name in found.modules} == {"to_k", "to_v"}


def test_nothing_is_erased_where_latents_and_times_come_in(model, plan):
    own = replace(plan, method="erase", fine_tunes=(), outer_steps=1, warm_up_steps=0)
    (record,) = ra.harden(model, own).records
    names = {layer.name for layer in record.erased}
    assert names == {"proj_out", *block_modules(model)}
    assert any(layer.removed for layer in record.erased)


@pytest.mark.slow
def test_it_is_erased_and_distilled_and_the_result_exported(model, source, plan, tmp_path):
    """All weights of the denoiser change, and nothing else of its file."""
    preset = preset_plan("durable", plan.concepts)
    own = replace(
        preset, forget_set=plan.forget_set, retain_set=plan.retain_set, outer_steps=1,
        varied=replace(preset.varied, images=2, sampling_steps=1, guidance=4),
        distil=replace(preset.distil, batch=2),
    )  # fmt: skip
    found = ra.harden(model, own)
    target = tmp_path / "distilled.safetensors"
    ra.export_merged(source, found.adapter, target)
    changed = set(verify_export(source, target, found.adapter).changed)
    denoiser = fakes.native_denoiser(fakes.build_networks()["transformer"].state_dict())
    assert changed and changed <= {f"net.{name}" for name in denoiser}


def test_a_job_is_checked_with_memory_guidance_and_licence(source, plan, tmp_path):
    loud = replace(plan, retain_set=replace(plan.retain_set, guidance=7.5))
    job = ra.Job(
        checkpoint=str(source), output=str(tmp_path / "o.safetensors"), plan=loud, device="cpu"
    )
    report = check_job(job, memory=True)
    assert not report.problems and report.memory_bytes
    assert any("retain_set has guidance 7.5" in text and "4 to 5" in text
               for text in report.warnings)  # fmt: skip
    (licence,) = (text for text in report.warnings if text.startswith("licence: "))
    assert "non-commercial" in licence and "NVIDIA Open Model License" in licence


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_its_memory_is_predicted_beside_a_quantised_base(source, plan, kind):
    info = check_loadable(source)
    configs = {name: info.configs[name] for name in info.components}
    own = replace(plan, quantization=kind, precision="bf16")
    weights = [
        plan_memory(each, ANIMA, configs=configs, resolution=fakes.SIDE).weights
        for each in (own, replace(own, quantization="none"))
    ]
    assert 0 < weights[0] < weights[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_published_size_fits_a_usual_gpu_by_the_planner():
    """True width and depth, on the meta device: 12 GB, without a quantised base."""
    concept = ra.Concept("weapons", prompts=("a gun",))
    found = plan_memory(preset_plan("balanced", (concept,)), ANIMA, budget=12)
    assert found.fits and found.plan.quantization == "none"
    assert found.plan.gradient_checkpointing and 10 * 2**30 < found.total <= 12 * 2**30


# --- export ------------------------------------------------------------------------------------


def test_the_hardened_file_is_the_hardened_model(model, source, result):
    target = source.with_name("tiny-anima-hardened.safetensors")
    report = ra.export_merged(model, result.adapter, target)
    changed = set(verify_export(source, target, result.adapter).changed)
    assert changed == {
        f"net.blocks.{block}.{kind}_attn.{part}_proj.weight"
        for block in (0, 1) for kind in ("self", "cross") for part in ("q", "k", "v", "output")
    }  # fmt: skip
    exported = ra.load_checkpoint(report.target)
    name = "transformer_blocks.1.attn2.to_v"
    found = exported.denoiser.get_submodule(name).weight
    expected = model.denoiser.get_submodule(name).weight + result.adapter.delta(name)
    assert torch.equal(found, expected.bfloat16().float())
    assert 0 < report.rounding_error < 1 and report.largest_change > 0


def test_an_adapter_that_changes_nothing_gives_the_same_bytes(model, source, tmp_path):
    names = [n for n, m in model.denoiser.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(names) == 2 * 16 + 6
    target = tmp_path / "same.safetensors"
    ra.export_merged(source, adapter_of(model, *names, size=0.0), target)
    assert not verify_export(source, target).changed
    assert data_of(target) == data_of(source)


def data_of(path):
    """The bytes after the header, and the order of the tensors in it."""
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def test_one_module_changes_its_own_tensor_only(model, source, tmp_path):
    """Conditioner, counters and states of layers, empty ones too, pass through bit for bit."""
    module, target = "transformer_blocks.1.ff.net.2", tmp_path / "one.safetensors"
    adapter = adapter_of(model, module)
    ra.export_merged(source, adapter, target)
    name = "net.blocks.1.mlp.layer2.weight"
    assert verify_export(source, target).changed == (name,)
    before, after = load_file(source), load_file(target)
    assert torch.equal(after[name], (before[name].float() + adapter.delta(module)).bfloat16())
    assert before.keys() == after.keys() >= {f"net.{each}" for each in fakes.counters()}
    assert all(torch.equal(after[n], before[n]) and after[n].dtype == before[n].dtype
               for n in before if n != name)  # fmt: skip


def test_averages_are_hardened_with_it_and_the_conditioners_stay(model, source, tmp_path):
    tensors = load_file(source)
    averages = {n.replace("net.", "net_ema.", 1): t.clone() for n, t in tensors.items()}
    both, target = tmp_path / "both.safetensors", tmp_path / "out.safetensors"
    save_file(tensors | averages, both)
    for file in ("text_encoders", "vae"):
        (tmp_path / file).symlink_to(source.parents[1] / file)
    ra.export_merged(both, adapter_of(model, "transformer_blocks.0.attn1.to_q"), target)
    assert set(verify_export(both, target).changed) == {
        f"{prefix}.blocks.0.self_attn.q_proj.weight" for prefix in ("net", "net_ema")
    }


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bfloat16])
def test_the_effect_of_rounding_is_reported(model, models, tmp_path, dtype):
    """A small change moves few weights in bf16, and hardly any in fp8."""
    path = tmp_path / "small.safetensors"
    save_file({n: t.to(dtype) if t.is_floating_point() and t.dim() == 2 else t
               for n, t in load_file(models / fakes.DENOISER_FILE).items()}, path)  # fmt: skip
    for file in ("text_encoders", "vae"):
        (tmp_path / file).symlink_to(models / file)
    adapter = adapter_of(model, "transformer_blocks.0.attn1.to_q", size=1e-4)
    report = ra.export_merged(path, adapter, tmp_path / "out.safetensors")
    assert report.rounding_error > (0.9 if dtype == torch.float8_e4m3fn else 0.1)
    assert report.warnings


@pytest.mark.slow
def test_a_file_of_the_true_width_is_changed_in_its_tensors_only(tmp_path):
    """2048 wide, one block, bfloat16, with the whole conditioner's header; encoders are tiny."""
    source = write_wide(tmp_path)
    info = check_loadable(source)
    assert info.configs["transformer"] == ANIMA.config("transformer") | {"num_layers": 1}
    with torch.device("meta"):
        network = ANIMA.networks.build("transformer", info.configs["transformer"])
    names = [name for name, module in network.named_modules()
             if isinstance(module, torch.nn.Linear) and ".norm" not in name
             and "transformer_blocks" in name]  # fmt: skip
    random, tensors = torch.Generator().manual_seed(0), {}
    for name in names:
        rows, columns = network.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=random)
    adapter, target = Adapter(tensors, 4, 4.0), tmp_path / "wide-hardened.safetensors"
    report = ra.export_merged(source, adapter, target)
    changed = verify_export(source, target, adapter).changed
    assert len(changed) == report.touched == len(names) == 10
    assert report.rounding_error < 0.02


def write_wide(folder):
    """A denoiser of the true width with one block, beside a tiny conditioner of the true output."""
    from diffusers import AnimaTextConditioner

    source = fakes.write_split(folder)
    config = ANIMA.config("transformer") | {"num_layers": 1}
    with torch.device("meta"):
        network = ANIMA.networks.build("transformer", config)
    random = torch.Generator().manual_seed(0)
    state = {
        name: torch.empty(tensor.shape, dtype=torch.bfloat16).normal_(generator=random)
        for name, tensor in network.state_dict().items()
    }
    adapter = AnimaTextConditioner(
        source_dim=fakes.TEXT_WIDTH, target_dim=1024, model_dim=32, num_layers=1,
        num_attention_heads=2, target_vocab_size=fakes.VOCABULARY,
    )  # fmt: skip
    whole = fakes.native_denoiser(state) | fakes.counters()
    whole |= {f"llm_adapter.{name}": tensor for name, tensor in adapter.state_dict().items()}
    save_file({f"net.{name}": tensor for name, tensor in whole.items()}, source)
    return source


def test_a_folder_and_a_whole_file_are_exported_alike(model, tmp_path):
    module = "transformer_blocks.0.ff.net.0.proj"
    adapter = adapter_of(model, module)
    folder = fakes.write_folder(tmp_path / "anima")
    whole = fakes.write_whole(tmp_path / "anima-whole.safetensors")
    report = ra.export_merged(folder, adapter, tmp_path / "out")
    assert report.copies == ()
    ra.export_merged(whole, adapter, tmp_path / "out.safetensors")
    found = [ra.load_checkpoint(tmp_path / name).denoiser.get_submodule(module).weight
             for name in ("out", "out.safetensors")]  # fmt: skip
    expected = fakes.build_networks()["transformer"].get_submodule(module).weight
    assert torch.equal(found[0], expected + adapter.delta(module)) and torch.equal(*found)
    (changed,) = verify_export(whole, tmp_path / "out.safetensors").changed
    assert changed == "model.diffusion_model.blocks.0.mlp.layer1.weight"
    name = "text_conditioner/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (folder / name).read_bytes()
    assert (tmp_path / "out/modular_model_index.json").is_file()


def test_verify_needs_no_text_encoder_near(model, source, tmp_path):
    target = tmp_path / "out.safetensors"
    ra.export_merged(source, adapter_of(model, "transformer_blocks.0.attn1.to_q"), target)
    found = verify_job(target, probe=False)
    assert found.checks[3].detail == "the denoiser is there only once"


# --- licence -----------------------------------------------------------------------------------


def test_headers_and_card_carry_both_licences(model, source, tmp_path):
    target = tmp_path / "one.safetensors"
    report = ra.export_merged(source, adapter_of(model, "transformer_blocks.0.attn1.to_q"), target)
    with safe_open(target, "pt") as file:
        found = file.metadata()
    assert "CircleStone Labs Non-Commercial License v1.2" in found["modelspec.license"]
    assert "NVIDIA Open Model License" in found["modelspec.license"]
    assert "modified" in found["modelspec.attribution"]
    assert found["modelspec.architecture"] == "anima"
    assert found["format"] == "pt" and found["resalign.source"] == source.name
    front, _, body = write_card(report).read_text(encoding="utf-8").partition("\n---\n")
    assert "\nlicense: other\nlicense_name: " in front  # the hub knows identifiers alone
    assert "circlestone-labs-non-commercial" in front and "- anima" in front
    assert "## Licence" in body and "CircleStone Labs LLC" in body and "NVIDIA" in body


def test_a_pack_of_its_figures_says_what_the_licence_asks():
    (term,) = licence_terms(ANIMA.metadata.notices["modelspec.license"])
    assert term.forbids and "non-commercial" in term.text and "NVIDIA" in term.text
    assert term.commercial, "Civitai's form leaves commercial use open"


def test_the_licence_that_a_source_names_is_kept(model, source, tmp_path):
    own = tmp_path / "own.safetensors"
    save_file(load_file(source), own, {"modelspec.license": "mine", "other": "kept"})
    for file in ("text_encoders", "vae"):
        (tmp_path / file).symlink_to(source.parents[1] / file)
    target = tmp_path / "one.safetensors"
    ra.export_merged(own, adapter_of(model, "transformer_blocks.0.attn1.to_q"), target)
    with safe_open(target, "pt") as file:
        found = file.metadata()
    assert found["modelspec.license"] == "mine" and found["other"] == "kept"


# --- LoRA --------------------------------------------------------------------------------------


def test_a_lora_is_written_in_the_form_that_hosts_read(result, tmp_path):
    """`diffusion_model.<file's module>`, A and B, alpha multiplied into B: no key of its own."""
    path = ra.save_lora(result.adapter, tmp_path / "lora.safetensors")
    tensors = load_file(path)
    assert {name.rpartition(".lora_")[2] for name in tensors} == {"A.weight", "B.weight"}
    assert "diffusion_model.blocks.1.cross_attn.output_proj.lora_A.weight" in tensors
    assert len(tensors) == 2 * len(result.adapter.modules)
    read = load_lora(path)
    for module in result.adapter.modules:
        torch.testing.assert_close(read.delta(module), result.adapter.delta(module))
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "anima/lora"


def test_kohyas_form_which_diffusers_does_not_read_is_refused(result, tmp_path):
    with pytest.raises(ExportError, match=r"not read completely.*`diffusers`"):
        ra.save_lora(result.adapter, tmp_path / "lora.safetensors", format="kohya")


def read_by_diffusers(path, names):
    """Deltas of the modules as diffusers' own loader reads them; those that it drops are zero."""
    from diffusers import CosmosTransformer3DModel
    from diffusers.loaders import AnimaLoraLoaderMixin

    state = AnimaLoraLoaderMixin.lora_state_dict(str(path.parent), weight_name=path.name,
                                                 local_files_only=True)  # fmt: skip
    network = CosmosTransformer3DModel(**fakes.denoiser_class_config())
    network.load_lora_adapter(state, prefix="transformer")
    layers = {name: network.get_submodule(name) for name in names}
    return {name: layer.get_delta_weight("default_0") for name, layer in layers.items()
            if hasattr(layer, "lora_A")}  # fmt: skip


def test_diffusers_reads_the_lora_completely(model, tmp_path):
    """The regression of the table of key forms, with those modules that people train."""
    names = block_modules(model)
    adapter = adapter_of(model, *names)
    path = ra.save_lora(adapter, tmp_path / "lora.safetensors", family="anima")
    found = read_by_diffusers(path, names)
    assert len(found) == len(names) == 20
    for name in names:
        torch.testing.assert_close(found[name], adapter.delta(name))


def test_an_alpha_beside_them_would_be_ignored(model, tmp_path):
    """Why alpha is multiplied into B: diffusers takes another strength, silently."""
    names = block_modules(model)
    adapter = adapter_of(model, *names)
    path = ra.save_lora(adapter, tmp_path / "lora.safetensors", family="anima")
    tensors = load_file(path)
    stems = {name.partition(".lora_")[0] for name in tensors}
    save_file(tensors | {f"{stem}.alpha": torch.tensor(1.0) for stem in stems}, path)
    found = read_by_diffusers(path, names)
    torch.testing.assert_close(found[names[0]], adapter.delta(names[0]))  # not half of it


@pytest.mark.parametrize(
    ("name", "width", "claimed"),
    [
        ("diffusion_model.blocks.0.self_attn.q_proj", 2048, True),
        ("lora_unet_blocks_27_cross_attn_output_proj", 2048, True),
        ("lora_unet_blocks_0_mlp_layer1", 2048, True),
        ("transformer.transformer_blocks.0.attn2.to_k", 1024, True),
        ("transformer_blocks.1.attn1.to_q", 64, True),  # an adapter in memory
        ("transformer.transformer_blocks.1.attn2.to_k", 4096, False),  # PixArt
        ("diffusion_model.blocks.0.self_attn.q", 2048, False),  # Wan
        ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 1024, False),  # SD 2
        ("transformer.single_transformer_blocks.0.attn.to_q", 3072, False),  # FLUX
    ],
)
def test_a_lora_is_told_from_those_of_relatives(name, width, claimed):
    shapes = {f"{name}.lora_down.weight": (4, width), f"{name}.lora_up.weight": (9, 4)}
    assert (ANIMA in bases_of_lora(shapes, {})[0]) is claimed


def test_users_loras_are_read_in_every_spelling(model):
    """Denoiser and conditioner; the adapter's own modules are ComfyUI's `llm_adapter`."""
    module = "transformer_blocks.0.attn2.to_out.0"
    found = ANIMA.lora.stems(
        {module: "blocks.0.cross_attn.output_proj"}, {"text_conditioner": ["blocks.0.mlp.0"]}
    )
    denoiser, conditioner = ("transformer", module), ("text_conditioner", "blocks.0.mlp.0")
    assert found["diffusion_model.blocks.0.cross_attn.output_proj"] == denoiser
    assert found["lora_unet_blocks_0_cross_attn_output_proj"] == denoiser
    assert found["transformer." + module] == denoiser
    assert found["diffusion_model.llm_adapter.blocks.0.mlp.0"] == conditioner
    assert found["lora_unet_llm_adapter_blocks_0_mlp_0"] == conditioner
