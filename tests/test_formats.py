"""LoRA files: written for every host, read back, and read by diffusers itself."""

import json

import pytest
import torch
from fakes_checkpoint import build_networks
from fakes_export import prediction, random_adapter, with_adapter
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from resalign.backend.adapter.formats import guess_family, load_lora, save_lora
from resalign.backend.adapter.lora import Adapter
from resalign.backend.errors import CheckpointError, ExportError
from resalign.backend.families.unet.lora_keys import flat_name, module_name
from resalign.backend.families.unet.names import unet_ldm_names
from resalign.backend.plan.adapter import AdapterConfig
from resalign.backend.plan.field import field_of

TARGETS = tuple(field_of(AdapterConfig, "targets").choices)


@pytest.fixture(scope="module")
def unets():
    return {family: build_networks(family)["unet"] for family in ("sd1", "sd2", "sdxl")}


def deltas(adapter: Adapter) -> dict[str, torch.Tensor]:
    return {module: adapter.delta(module) for module in adapter.modules}


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("form", ["kohya", "diffusers"])
def test_what_is_read_back_changes_the_same_weights_by_the_same_amount(
    unets, family, form, tmp_path
):
    """Every module, convolutions included, and alpha ≠ rank."""
    adapter = random_adapter(unets[family])

    save_lora(adapter, tmp_path / "a.safetensors", format=form, family=family)
    found = load_lora(tmp_path / "a.safetensors")

    assert set(found.modules) == set(adapter.modules)
    for module, delta in deltas(adapter).items():
        torch.testing.assert_close(found.delta(module), delta, rtol=1e-6, atol=1e-8)


def test_kohya_keeps_every_bit_of_the_adapter(unets, tmp_path):
    """Tensors, rank and alpha come back equal, not close."""
    adapter = random_adapter(unets["sd1"])

    save_lora(adapter, tmp_path / "a.safetensors")
    found = load_lora(tmp_path / "a.safetensors")

    assert (found.rank, found.alpha) == (adapter.rank, adapter.alpha)
    assert found.tensors.keys() == adapter.tensors.keys()
    assert all(torch.equal(found.tensors[name], t) for name, t in adapter.tensors.items())


@pytest.mark.parametrize(
    ("family", "form", "targets"),
    [
        ("sd1", "kohya", TARGETS),
        ("sd1", "diffusers", TARGETS),
        ("sdxl", "kohya", ("cross_attention_kv", "convolution")),
    ],
)
def test_diffusers_loads_every_module_and_predicts_the_same(
    unets, family, form, targets, tmp_path, caplog
):
    """`load_lora_weights` on the U-Net alone: same prediction as ΔW added by hand (≤ 1e-5)."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    adapter = random_adapter(unets[family], targets)
    save_lora(adapter, tmp_path / "a.safetensors", format=form, family=family)
    unet = build_networks(family)["unet"]
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    options = {"unet_config": unet.config} if family == "sdxl" else {}

    state, *more = kind.lora_state_dict(str(tmp_path / "a.safetensors"), **options)
    kind.load_lora_into_unet(state, network_alphas=more[0] if more else None, unet=unet)

    adapted = [name for name, _ in unet.named_modules() if name.endswith(".lora_A")]
    assert {name.removesuffix(".lora_A") for name in adapted} == set(adapter.modules)
    assert not [
        record for record in caplog.records if record.name.startswith(("diffusers", "peft"))
    ]
    expected = prediction(with_adapter(build_networks(family)["unet"], adapter))
    assert (prediction(unet) - expected).abs().max() <= 1e-5
    assert (prediction(unets[family]) - expected).abs().max() > 1e-2  # the adapter does something


def test_sgm_names_are_those_of_the_checkpoint(unets):
    """SDXL's keys are its checkpoint's module names: what kohya writes and A1111 looks up."""
    config = {**unets["sdxl"].config}
    ldm = unet_ldm_names(config)
    for module in random_adapter(unets["sdxl"]).modules:
        name = (
            ldm[module + ".weight"].removeprefix("model.diffusion_model.").removesuffix(".weight")
        )
        assert flat_name(module, sgm=True) == name.replace(".", "_")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
def test_names_survive_both_ways_in_both_spellings(unets, family):
    """No two modules share a key, and each key leads back to its module."""
    modules = [
        name
        for name, module in unets[family].named_modules()
        if hasattr(module, "weight") and "." in name and module.weight.dim() > 1
    ]
    inside = [m for m in modules if m.split(".")[0] in ("down_blocks", "mid_block", "up_blocks")]
    assert len(inside) > 100
    for sgm in [False, *([True] if family == "sdxl" else [])]:
        keys = [flat_name(module, sgm=sgm) for module in inside]
        assert len(set(keys)) == len(keys)
        assert [module_name(key) for key in keys] == inside


def test_the_file_says_which_family_it_is_for(unets, tmp_path):
    """A1111 hides a LoRA whose base version is not the loaded model's."""
    for family, stated in (("sd1", "sd_v1"), ("sd2", "sd_v2"), ("sdxl", "sdxl_base_v1-0")):
        save_lora(random_adapter(unets[family]), tmp_path / f"{family}.safetensors", family=family)
        with safe_open(tmp_path / f"{family}.safetensors", framework="pt") as file:
            assert file.metadata()["ss_base_model_version"] == stated
    assert guess_family(random_adapter(unets["sdxl"])).name == "sdxl"


def test_text_width_tells_sd1_from_sd2():
    """Text encodings are 768 or 1024 wide; no other sign is given."""
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    for width, family in ((768, "sd1"), (1024, "sd2"), (2048, "sdxl")):
        tensors = {
            f"{module}.lora_A.weight": torch.zeros(4, width),
            f"{module}.lora_B.weight": torch.zeros(320, 4),
        }
        assert guess_family(Adapter(tensors, 4, 4.0)).name == family


def test_the_same_adapter_gives_the_same_bytes(unets, tmp_path):
    """No clock and no random order in the file."""
    adapter = random_adapter(unets["sd1"])
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_lora(adapter, tmp_path / name / "x.safetensors", metadata={"z": "1", "b": "2"})
    files = [(tmp_path / name / "x.safetensors").read_bytes() for name in ("a", "b")]
    assert files[0] == files[1]


def test_refuses_to_write_over_a_file_or_into_nothing(unets, tmp_path):
    """An existing file stays unless overwriting is allowed; a pickle's ending is refused."""
    adapter = random_adapter(unets["sd1"], ("cross_attention_kv",))
    path = save_lora(adapter, tmp_path / "a.safetensors")
    before = path.read_bytes()
    with pytest.raises(ExportError, match="exists"):
        save_lora(adapter, path)
    with pytest.raises(ExportError, match="safetensors"):
        save_lora(adapter, tmp_path / "a.pt")
    with pytest.raises(ExportError, match="create it first"):
        save_lora(adapter, tmp_path / "no" / "a.safetensors")
    assert path.read_bytes() == before
    save_lora(adapter, path, overwrite=True, dtype=torch.float16)
    assert path.stat().st_size < 0.75 * len(before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.safetensors"]


def test_what_fp16_cannot_hold_is_an_error(unets, tmp_path):
    """An infinity is never written; the message names the tensor."""
    adapter = random_adapter(unets["sd1"], ("cross_attention_kv",), size=1e3)
    adapter.tensors[adapter.modules[0] + ".lora_B.weight"][0] = 1e5
    with pytest.raises(ExportError, match=r"lora_up.*float16.*float32"):
        save_lora(adapter, tmp_path / "a.safetensors", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


def test_modules_of_different_rank_and_alpha_keep_their_strengths(tmp_path):
    """Alpha missing means alpha = rank; strengths are moved into B where they differ."""
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_"
    tensors = {
        f"{stem}q.lora_down.weight": torch.ones(2, 8), f"{stem}q.lora_up.weight": torch.ones(8, 2),
        f"{stem}q.alpha": torch.tensor(1.0),
        f"{stem}k.lora_down.weight": torch.ones(4, 8), f"{stem}k.lora_up.weight": torch.ones(8, 4),
    }  # fmt: skip
    save_file(tensors, tmp_path / "a.safetensors")

    found = load_lora(tmp_path / "a.safetensors")

    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_"
    assert found.delta(module + "q")[0, 0] == 2 * 1 / 2
    assert found.delta(module + "k")[0, 0] == 4


def test_reads_alpha_from_the_metadata_of_peft_files(tmp_path):
    """diffusers' save writes lora_alpha as JSON there; without it alpha is the rank."""
    module = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    tensors = {
        f"unet.{module}.lora_A.weight": torch.ones(2, 8),
        f"unet.{module}.lora_B.weight": torch.ones(8, 2),
    }
    about = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 1, "unet.r": 2})}
    save_file(tensors, tmp_path / "a.safetensors", metadata=about)
    save_file(tensors, tmp_path / "b.safetensors")

    assert load_lora(tmp_path / "a.safetensors").delta(module)[0, 0] == 1
    assert load_lora(tmp_path / "b.safetensors").delta(module)[0, 0] == 2


Q = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
PEFT_Q = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
PLAIN = {f"{Q}.lora_down.weight": (2, 8), f"{Q}.lora_up.weight": (8, 2)}


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({f"{Q}.hada_w1_a": (2, 2)}, "LoHa"),
        ({f"{Q}.lokr_w1": (2, 2)}, "LoKr"),
        ({f"{Q}.dora_scale": (2, 2), f"{Q}.lora_down.weight": (2, 2)}, "DoRA"),
        ({f"{Q}.lora_mid.weight": (2, 2), f"{Q}.lora_down.weight": (2, 2)}, "middle tensor"),
        ({"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (2, 2)}, "text-encoder"),
        ({"text_encoder.text_model.x.lora_A.weight": (2, 2)}, "text-encoder"),
        ({f"{Q}.lora_down.weight": (2, 8)}, "beside it"),
        ({**PLAIN, f"{Q}.diff_b": (8,)}, "diff_b.*not a LoRA"),
        ({**PLAIN, f"{Q}.diff": (8, 8)}, "diff.*not a LoRA"),
        ({**PLAIN, f"{Q}.alpha": (2,)}, "not finite"),
        ({**PLAIN, f"{PEFT_Q}.lora_A.weight": (2, 8), f"{PEFT_Q}.lora_B.weight": (8, 2)}, "twice"),
        ({**PLAIN, f"{Q}.lora_down.weight": ()}, "fit together"),
        ({f"{Q}.lora_down.weight": (2, 8), f"{Q}.lora_up.weight": (8, 3)}, "fit together"),
        ({"lora_unet_double_blocks_0.lora_down.weight": (2, 8)}, "not a module"),
        ({"model.diffusion_model.out.2.weight": (2, 2)}, "not a LoRA"),
        ({}, "no LoRA"),
    ],
)
def test_what_is_no_plain_lora_on_the_unet_is_refused_by_name(tensors, message, tmp_path):
    """Nothing is read in part: a dropped tensor would be another model without a word."""
    path = tmp_path / "odd.safetensors"
    save_file({name: torch.ones(shape) for name, shape in tensors.items()}, path)
    with pytest.raises(CheckpointError, match=message) as error:
        load_lora(path)
    assert "odd.safetensors" in str(error.value)


def test_a_file_that_is_no_safetensors_is_named(tmp_path):
    """A pickle, a truncated file and a missing one are user mistakes, not tracebacks."""
    (tmp_path / "a.safetensors").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match=r"a\.safetensors"):
        load_lora(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_lora(tmp_path / "b.safetensors")


def test_a_lora_in_fp16_reads_as_float32(unets, tmp_path):
    """The adapter's tensors are float32, whatever the file holds."""
    path = save_lora(random_adapter(unets["sd1"]), tmp_path / "a.safetensors", dtype=torch.float16)
    assert {t.dtype for t in load_file(path).values()} == {torch.float16}
    assert {t.dtype for t in load_lora(path).tensors.values()} == {torch.float32}
