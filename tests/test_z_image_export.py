"""Z-Image goes the whole way: hardened, exported into its own layout, written as a LoRA."""

import math
from dataclasses import replace

import fakes_z_image as fakes
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import resalign as ra
from resalign.backend.adapter.formats import load_lora
from resalign.backend.adapter.lora import Adapter
from resalign.backend.checkpoint.load import check_loadable
from resalign.backend.checkpoint.verify import verify_export
from resalign.backend.errors import ExportError
from resalign.backend.families import find_family
from resalign.backend.families.registry import bases_of_lora
from resalign.backend.jobs.check import check_job
from resalign.backend.memory.plan import plan_memory
from resalign.backend.plan.presets import preset_plan

Z_IMAGE = find_family("z_image")
QKV = "layers.0.attention.qkv.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return fakes.write_split(tmp_path_factory.mktemp("z_image"), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def model(source):
    return ra.load_checkpoint(source)


@pytest.fixture(scope="module")
def plan():
    return ra.HardeningPlan(
        concept=ra.Concept("weapons", prompts=("a gun",)),
        forget_set=ra.ImageSet(prompts=("a gun",), images=2, sampling_steps=1, guidance=4),
        retain_set=ra.ImageSet(prompts=("a cat in a hat",), images=2, sampling_steps=1, guidance=4),
        fine_tunes=ra.fine_tune_grid(learning_rate=(1e-3,), steps=(1,), concept_share=0.5),
        harm=ra.HarmConfig(cap=20.0), adapter=ra.AdapterConfig(rank=2), outer_steps=2,
        warm_up_steps=1, learning_rate=2e-2, forget_batch=1, retain_batch=2,
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


def layer_modules(model):
    """What people train: attention and feed-forward of the layers."""
    return [name for name, module in model.denoiser.named_modules()
            if isinstance(module, torch.nn.Linear) and name.startswith("layers.")
            and "adaLN" not in name]  # fmt: skip


# --- hardening ---------------------------------------------------------------------------------


def test_it_hardens_with_users_that_fine_tune_it(result):
    assert [record.step for record in result.records] == [1, 2]
    assert all(math.isfinite(record.harm) for record in result.records)
    assert result.records[-1].simulations
    ends = {name.partition(".attention.")[2] for name in result.adapter.modules}
    assert ends == {"to_q", "to_k", "to_v", "to_out.0"}
    assert all(result.adapter.delta(module).any() for module in result.adapter.modules)


def test_it_is_probed(model, result, plan):
    held_out = ra.fine_tune_grid(learning_rate=(5e-3,), steps=(1,), concept_share=0.5)
    found = ra.probe(model, result.adapter, plan=plan, fine_tunes=held_out,
                     scorer=ra.DenoisingScorer(images=1, timesteps=1))  # fmt: skip
    assert found.complete


def test_nothing_is_erased_outside_of_its_layers(model, plan):
    own = replace(plan, method="erase", fine_tunes=(), outer_steps=1, warm_up_steps=0)
    (record,) = ra.harden(model, own).records
    assert {layer.name for layer in record.erased} == set(layer_modules(model))
    assert any(layer.removed for layer in record.erased)


def test_a_job_is_checked_with_its_memory_and_the_closed_form_refused(source, plan, tmp_path):
    job = ra.Job(
        checkpoint=str(source), output=str(tmp_path / "o.safetensors"), plan=plan, device="cpu"
    )
    report = check_job(job, memory=True)
    assert not report.problems and report.memory_bytes
    own = replace(plan, method="closed_form", fine_tunes=(), outer_steps=1, warm_up_steps=0)
    (problem,) = check_job(replace(job, plan=own)).problems
    assert "closed_form does not fit Z-Image" in problem and "in one stream" in problem


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "nf4"])
def test_its_memory_is_predicted_beside_a_quantised_base(source, plan, kind):
    info = check_loadable(source)
    configs = {name: info.configs[name] for name in info.components}
    own = replace(plan, quantization=kind, precision="bf16")
    weights = [
        plan_memory(each, Z_IMAGE, configs=configs, resolution=fakes.SIDE).weights
        for each in (own, replace(own, quantization="none"))
    ]
    assert 0 < weights[0] < weights[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_published_size_fits_a_usual_gpu_by_the_planner():
    """True width and depth, on the meta device."""
    concept = ra.Concept("weapons", prompts=("a gun",))
    found = plan_memory(preset_plan("balanced", (concept,)), Z_IMAGE, budget=24)
    assert found.fits and found.plan.precision == "bf16"


# --- export ------------------------------------------------------------------------------------


def test_the_hardened_file_is_the_hardened_model(model, source, result):
    target = source.with_name("tiny_z_image_hardened.safetensors")
    report = ra.export_merged(model, result.adapter, target)
    changed = set(verify_export(source, target, result.adapter).changed)
    assert changed == {f"layers.{i}.attention.{n}.weight" for i in (0, 1) for n in ("qkv", "out")}
    exported = ra.load_checkpoint(report.target)
    name = "layers.1.attention.to_v"
    found = exported.denoiser.get_submodule(name).weight
    expected = model.denoiser.get_submodule(name).weight + result.adapter.delta(name)
    assert torch.equal(found, expected.bfloat16().float())


@pytest.mark.parametrize("fused", [True, False])
def test_an_adapter_that_changes_nothing_gives_the_same_bytes(model, tmp_path, fused):
    source = fakes.write_split(tmp_path, fused=fused, dtype=torch.bfloat16)
    names = [n for n, m in model.denoiser.named_modules() if isinstance(m, torch.nn.Linear)]
    target = source.with_name("same.safetensors")
    ra.export_merged(source, adapter_of(model, *names, size=0.0), target)
    assert not verify_export(source, target).changed
    before, after = load_file(source), load_file(target)
    assert before.keys() == after.keys() and ("norm_final.weight" in before) is fused


@pytest.mark.parametrize("part", range(3))
def test_one_module_changes_its_own_rows_only(model, source, tmp_path, part):
    module = "layers.0.attention." + ("to_q", "to_k", "to_v")[part]
    adapter, target = adapter_of(model, module), tmp_path / "one.safetensors"
    ra.export_merged(source, adapter, target)
    assert verify_export(source, target).changed == (QKV,)
    before, after = load_file(source)[QKV], load_file(target)[QKV]
    rows = slice(part * fakes.WIDTH, (part + 1) * fakes.WIDTH)
    assert torch.equal(after[rows], (before[rows].float() + adapter.delta(module)).bfloat16())
    after[rows] = before[rows]
    assert torch.equal(after.view(torch.int16), before.view(torch.int16))


def test_all_layouts_are_exported_alike(model, tmp_path):
    module = "layers.0.attention.to_k"
    adapter = adapter_of(model, module)
    folder = fakes.write_folder(tmp_path / "z")
    whole = fakes.write_whole(tmp_path / "z.safetensors")
    split = fakes.write_split(tmp_path, fused=False)
    targets = [tmp_path / "out", tmp_path / "out.safetensors", split.with_name("out.safetensors")]
    for source, target in zip((folder, whole, split), targets, strict=True):
        ra.export_merged(source, adapter, target)
    expected = fakes.build_networks()["transformer"].get_submodule(module).weight
    for target in targets:
        found = ra.load_checkpoint(target).denoiser.get_submodule(module).weight
        assert torch.equal(found, expected + adapter.delta(module))
    assert verify_export(split, targets[2]).changed == (f"{module}.weight",)


def test_headers_carry_licence_and_origin(model, source, tmp_path):
    target = tmp_path / "one.safetensors"
    ra.export_merged(source, adapter_of(model, "layers.0.attention.to_q"), target)
    with safe_open(target, "pt") as file:
        found = file.metadata()
    assert found["modelspec.license"] == "Apache-2.0"
    assert found["modelspec.architecture"] == "z-image"
    assert found["format"] == "pt" and found["resalign.source"] == source.name


# --- LoRA --------------------------------------------------------------------------------------


def test_a_lora_is_written_in_the_form_that_hosts_read(result, tmp_path):
    """`transformer.<module>`, A and B, alpha multiplied into B: never a key of its own."""
    path = ra.save_lora(result.adapter, tmp_path / "lora.safetensors")
    tensors = load_file(path)
    assert {name.rpartition(".lora_")[2] for name in tensors} == {"A.weight", "B.weight"}
    assert all(name.startswith("transformer.layers.") for name in tensors)
    read = load_lora(path)
    for module in result.adapter.modules:
        torch.testing.assert_close(read.delta(module), result.adapter.delta(module))
    with pytest.raises(ExportError, match=r"not read completely.*`diffusers`"):
        ra.save_lora(result.adapter, tmp_path / "kohya.safetensors", format="kohya")


def test_diffusers_reads_the_lora_completely(model, tmp_path):
    """The regression of the table of key forms: every module, with its true strength."""
    from diffusers import ZImageTransformer2DModel
    from diffusers.loaders.lora_pipeline import ZImageLoraLoaderMixin

    names = layer_modules(model)
    assert len(names) == 14
    adapter = adapter_of(model, *names)
    path = ra.save_lora(adapter, tmp_path / "lora.safetensors")
    state = ZImageLoraLoaderMixin.lora_state_dict(str(path.parent), weight_name=path.name,
                                                  local_files_only=True)  # fmt: skip
    network = ZImageTransformer2DModel(**fakes.denoiser_class_config())
    network.load_lora_adapter(state, prefix="transformer")
    for name in names:
        delta = network.get_submodule(name).get_delta_weight("default_0")
        torch.testing.assert_close(delta, adapter.delta(name))


@pytest.mark.parametrize(
    ("name", "width", "claimed"),
    [
        ("transformer.layers.0.attention.to_q", 3840, True),
        ("diffusion_model.layers.0.attention.qkv", 3840, True),
        ("lora_unet_layers_29_feed_forward_w1", 3840, True),
        ("diffusion_model.layers.0.attention.qkv", 2304, False),  # Lumina Image 2
        ("text_encoder.layers.0.self_attn.q_proj", 2560, False),
    ],
)
def test_a_lora_is_told_from_those_of_relatives(name, width, claimed):
    shapes = {f"{name}.lora_A.weight": (4, width), f"{name}.lora_B.weight": (9, 4)}
    assert (Z_IMAGE in bases_of_lora(shapes, {})[0]) is claimed


def test_users_loras_are_read_but_for_fused_projections():
    sources = Z_IMAGE.tensors.denoiser_sources(Z_IMAGE.config("transformer"))
    names = {n.rpartition(".")[0]: s.name.rpartition(".")[0] for n, s in sources.items()}
    found = Z_IMAGE.lora.stems(names, {})
    query, out = "layers.0.attention.to_q", "layers.0.attention.to_out.0"
    assert found[f"diffusion_model.{query}"] == found[f"transformer.{query}"]
    assert found["lora_unet_layers_0_attention_to_q"] == ("transformer", query)
    assert found["diffusion_model.layers.0.attention.out"] == ("transformer", out)
    assert "diffusion_model.layers.0.attention.qkv" not in found
