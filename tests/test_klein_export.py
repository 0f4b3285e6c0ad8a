"""FLUX.2 klein goes the whole way: hardened, exported into its own layout, written as a LoRA."""

import math
from dataclasses import replace

import fakes_klein as fakes
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import resalign as ra
from resalign.backend.adapter.dense import DenseAdapter
from resalign.backend.adapter.formats import load_lora
from resalign.backend.adapter.lora import Adapter
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ConfigError, ExportError
from resalign.backend.families import find_family
from resalign.backend.families.registry import bases_of_lora
from resalign.backend.jobs.check import check_job
from resalign.backend.jobs.verify import verify_job
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.presets import preset_plan
from resalign.backend.report.card import write_card

KLEIN = find_family("flux2_klein")
QKV = "double_blocks.0.img_attn.qkv.weight"
SWAPPED = "final_layer.adaLN_modulation.1.weight"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("klein") / "models"
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


# --- hardening ---------------------------------------------------------------------------------


def test_it_hardens_with_users_that_fine_tune_it(result):
    assert [record.step for record in result.records] == [1, 2]
    assert all(math.isfinite(record.harm) for record in result.records)
    assert result.records[-1].simulations
    assert all(result.adapter.delta(module).any() for module in result.adapter.modules)
    ends = {name.rpartition(".attn.")[2] for name in result.adapter.modules}
    assert {"to_q", "to_out.0", "add_k_proj", "to_add_out", "to_qkv_mlp_proj", "to_out"} <= ends


def test_it_is_probed(model, result, plan):
    held_out = ra.fine_tune_grid(learning_rate=(5e-3,), steps=(1,), concept_share=0.5)
    found = ra.probe(model, result.adapter, plan=plan, fine_tunes=held_out,
                     scorer=ra.DenoisingScorer(images=1, timesteps=1))  # fmt: skip
    assert found.complete


def test_the_closed_form_is_refused_with_the_reason(model, source, plan, tmp_path):
    own = replace(plan, method="closed_form", fine_tunes=(), outer_steps=1, warm_up_steps=0)
    job = ra.Job(checkpoint=str(source), output=str(tmp_path / "o.safetensors"), plan=own)
    (problem,) = check_job(replace(job, device="cpu")).problems
    assert "closed_form does not fit FLUX.2 klein 4B" in problem and "jointly" in problem
    with pytest.raises(ConfigError, match="closed_form does not fit"):
        ra.harden(model, own)


def test_a_job_is_checked_with_its_memory_and_its_guidance(source, plan, tmp_path):
    loud = replace(plan, retain_set=replace(plan.retain_set, guidance=7.5))
    job = ra.Job(
        checkpoint=str(source), output=str(tmp_path / "o.safetensors"), plan=loud, device="cpu"
    )
    report = check_job(job, memory=True)
    assert not report.problems and report.memory_bytes
    assert any("retain_set has guidance 7.5" in text and "4 to 5" in text
               for text in report.warnings)  # fmt: skip


@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_its_memory_is_predicted_beside_a_quantised_base(model, plan, kind):
    """A transformer's first layer is quantised too: the network's type is what it was before."""
    own = replace(plan, quantization=kind, precision="bf16")
    configs = {"transformer": dict(model.denoiser.config), "vae": dict(model.vae.config),
               "text_encoder": model.text_encoders[0].config.to_dict()}  # fmt: skip
    found = plan_memory(own, KLEIN, configs=configs, resolution=fakes.SIDE)
    whole = plan_memory(replace(own, quantization="none"), KLEIN, configs=configs,
                        resolution=fakes.SIDE)  # fmt: skip
    assert 0 < found.weights < whole.weights


@pytest.mark.slow
@pytest.mark.parametrize(("budget", "quantised"), [(24, "none"), (16, "int8")])
def test_the_published_size_fits_the_usual_gpus_by_the_planner(budget, quantised):
    concept = ra.Concept("weapons", prompts=("a gun",))
    found = plan_memory(preset_plan("balanced", (concept,)), KLEIN, budget=budget)
    assert found.fits and found.plan.quantization == quantised and found.plan.precision == "bf16"


# --- export ------------------------------------------------------------------------------------


def test_the_hardened_file_is_the_hardened_model(model, source, result):
    target = source.with_name("tiny-klein-base-hardened.safetensors")
    report = ra.export_merged(model, result.adapter, target)
    changed = set(verify_export(source, target, result.adapter).changed)
    assert QKV in changed and "single_blocks.1.linear1.weight" in changed
    assert not any("mod" in name or "norm" in name or "mlp" in name for name in changed)
    exported = ra.load_checkpoint(report.target)
    name = "single_transformer_blocks.1.attn.to_out"
    found = exported.denoiser.get_submodule(name).weight
    expected = model.denoiser.get_submodule(name).weight + result.adapter.delta(name)
    assert torch.equal(found, expected.bfloat16().float())


def test_an_adapter_that_changes_nothing_gives_the_same_bytes(model, source, tmp_path):
    """Halves exchanged, rows cut and types cast, all the way there and back."""
    names = [n for n, m in model.denoiser.named_modules() if isinstance(m, torch.nn.Linear)]
    assert len(names) == 25
    target = tmp_path / "same.safetensors"
    ra.export_merged(source, adapter_of(model, *names, size=0.0), target)
    assert not verify_export(source, target).changed


@pytest.mark.parametrize("part", range(3))
def test_one_module_changes_its_own_rows_only(model, source, tmp_path, part):
    module = "transformer_blocks.0.attn." + ("to_q", "to_k", "to_v")[part]
    adapter, target = adapter_of(model, module), tmp_path / "one.safetensors"
    ra.export_merged(source, adapter, target)
    assert verify_export(source, target).changed == (QKV,)
    before, after = load_file(source)[QKV], load_file(target)[QKV]
    rows = slice(part * fakes.WIDTH, (part + 1) * fakes.WIDTH)
    assert torch.equal(after[rows], (before[rows].float() + adapter.delta(module)).bfloat16())
    after[rows] = before[rows]
    assert torch.equal(after.view(torch.int16), before.view(torch.int16))


def test_a_dense_change_of_the_last_modulation_has_its_halves_exchanged(model, source, tmp_path):
    name = "norm_out.linear.weight"
    change = torch.randn(2 * fakes.WIDTH, fakes.WIDTH, generator=torch.Generator().manual_seed(0))
    target = tmp_path / "dense.safetensors"
    adapter = DenseAdapter({name: change})
    ra.export_merged(source, adapter, target)
    assert verify_export(source, target, adapter).changed == (SWAPPED,)
    before, after = load_file(source)[SWAPPED].float(), load_file(target)[SWAPPED].float()
    scale, shift = change.chunk(2)
    torch.testing.assert_close(after - before, torch.cat([shift, scale]), atol=0.02, rtol=0.01)
    for file in (fakes.TEXT_FILE, fakes.VAE_FILE):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).symlink_to(source.parents[1] / file)
    (tmp_path / "tokenizer").symlink_to(source.parents[1] / "text_encoders/tokenizer")
    exported = ra.load_checkpoint(target).denoiser.norm_out.linear.weight
    wanted = model.denoiser.norm_out.linear.weight + change
    assert torch.equal(exported, wanted.bfloat16().float())


@pytest.mark.slow
def test_a_file_of_the_true_width_is_changed_in_its_rows_only(tmp_path):
    """3072 wide, one block of each kind, bfloat16; text encoder and VAE are stood in for."""
    source = fakes.write_wide(tmp_path)
    info = check_loadable(source)
    with torch.device("meta"):
        network = KLEIN.networks.build("transformer", info.configs["transformer"])
    names = [name for name, module in network.named_modules()
             if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name]  # fmt: skip
    random, tensors = torch.Generator().manual_seed(0), {}
    for name in names:
        rows, columns = network.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, columns, generator=random)
        tensors[f"{name}.lora_B.weight"] = torch.randn(rows, 4, generator=random)
    adapter, target = Adapter(tensors, 4, 4.0), tmp_path / "wide-hardened.safetensors"
    report = ra.export_merged(source, adapter, target)
    changed = verify_export(source, target, adapter).changed
    assert len(changed) == report.touched == 10 and len(names) == 14
    assert report.largest_change > 0 and report.rounding_error < 0.02


def test_the_model_card_is_tagged_by_its_family(model, source, tmp_path):
    adapter = adapter_of(model, "transformer_blocks.0.attn.to_q")
    card = write_card(ra.export_merged(source, adapter, tmp_path / "one.safetensors"))
    tags = card.read_text(encoding="utf-8").partition("tags:")[2]
    assert "- flux\n" in tags and "stable-diffusion" not in tags


def test_headers_carry_licence_and_origin(model, source, tmp_path):
    target = tmp_path / "one.safetensors"
    ra.export_merged(source, adapter_of(model, "transformer_blocks.0.attn.to_q"), target)
    with safe_open(target, "pt") as file:
        found = file.metadata()
    assert found["modelspec.license"] == "Apache-2.0"
    assert found["modelspec.architecture"] == "flux-2-klein-4b"
    assert found["modelspec.implementation"].endswith("black-forest-labs/flux2")
    assert found["format"] == "pt" and found["resalign.source"] == source.name


def test_a_folder_and_a_whole_file_are_exported_alike(model, tmp_path):
    module = "single_transformer_blocks.0.attn.to_qkv_mlp_proj"
    adapter = adapter_of(model, module)
    folder = fakes.write_folder(tmp_path / "klein-base")
    whole = fakes.write_whole(tmp_path / "klein-base-whole.safetensors")
    ra.export_merged(folder, adapter, tmp_path / "out-base")
    ra.export_merged(whole, adapter, tmp_path / "out-base.safetensors")
    found = [ra.load_checkpoint(tmp_path / name).denoiser.get_submodule(module).weight
             for name in ("out-base", "out-base.safetensors")]  # fmt: skip
    expected = fakes.build_networks()["transformer"].get_submodule(module).weight
    assert torch.equal(found[0], expected + adapter.delta(module)) and torch.equal(*found)
    (changed,) = verify_export(whole, tmp_path / "out-base.safetensors").changed
    assert changed == "model.diffusion_model.single_blocks.0.linear1.weight"


def test_verify_needs_no_text_encoder_near(model, source, tmp_path):
    """The denoiser's own file is enough to look for copies, and to compare it with the source."""
    adapter = adapter_of(model, "single_transformer_blocks.0.attn.to_qkv_mlp_proj")
    target, alone = tmp_path / "out.safetensors", tmp_path / "alone" / "source.safetensors"
    ra.export_merged(source, adapter, target)
    alone.parent.mkdir()
    alone.symlink_to(source)
    with pytest.raises(ra.CheckpointError, match="has no text encoder"):
        check_loadable(target)
    found = verify_job(target, source=alone, probe=False)
    assert [check.ok for check in found.checks[:4]] == [True] * 4
    assert found.checks[3].detail == "the denoiser is there only once"
    tensors = load_file(target)
    tensors["ema.txt_in.weight"] = tensors["txt_in.weight"].clone()
    with safe_open(target, framework="pt") as file:
        save_file(tensors, tmp_path / "two.safetensors", metadata=file.metadata())
    assert "second" in verify_job(tmp_path / "two.safetensors", probe=False).checks[3].detail


# --- LoRA --------------------------------------------------------------------------------------


def test_a_lora_is_written_in_the_form_that_hosts_read(result, tmp_path):
    """`transformer.<module>`, A and B, alpha multiplied into B: never a key of its own."""
    path = ra.save_lora(result.adapter, tmp_path / "lora.safetensors")
    tensors = load_file(path)
    assert {name.rpartition(".lora_")[2] for name in tensors} == {"A.weight", "B.weight"}
    assert all(name.startswith("transformer.") for name in tensors)
    assert len(tensors) == 2 * len(result.adapter.modules)
    read = load_lora(path)
    for module in result.adapter.modules:
        torch.testing.assert_close(read.delta(module), result.adapter.delta(module))
    with safe_open(path, "pt") as file:
        assert file.metadata()["modelspec.architecture"] == "flux-2-klein-4b/lora"


def test_kohyas_form_which_no_host_reads_completely_is_refused(result, tmp_path):
    with pytest.raises(ExportError, match=r"not read completely.*`diffusers`"):
        ra.save_lora(result.adapter, tmp_path / "lora.safetensors", format="kohya")


def test_diffusers_reads_the_lora_completely(model, tmp_path):
    """The regression of the table of key forms: every module, with its true strength."""
    from diffusers import Flux2Transformer2DModel
    from diffusers.loaders import Flux2LoraLoaderMixin

    names = [name for name, module in model.denoiser.named_modules()
             if isinstance(module, torch.nn.Linear) and "transformer_blocks" in name]  # fmt: skip
    adapter = adapter_of(model, *names)
    path = ra.save_lora(adapter, tmp_path / "lora.safetensors")
    state = Flux2LoraLoaderMixin.lora_state_dict(str(path.parent), weight_name=path.name,
                                                 local_files_only=True)  # fmt: skip
    network = Flux2Transformer2DModel(**fakes.denoiser_class_config())
    network.load_lora_adapter(state, prefix="transformer")
    for name in names:
        layer = network.get_submodule(name)
        delta = layer.get_delta_weight("default_0")
        torch.testing.assert_close(delta, adapter.delta(name))


@pytest.mark.parametrize(
    ("name", "width", "claimed"),
    [
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 3072, True),
        ("transformer.transformer_blocks.0.ff.linear_in", 3072, True),
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 4096, False),
        ("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", 6144, False),
        ("transformer.single_transformer_blocks.0.proj_mlp", 3072, False),
    ],
)
def test_a_lora_is_told_from_those_of_relatives(name, width, claimed):
    shapes = {f"{name}.lora_A.weight": (4, width), f"{name}.lora_B.weight": (9, 4)}
    assert (KLEIN in bases_of_lora(shapes, {})[0]) is claimed
