"""Users' LoRA files on a model: every kind against who defined it, every misfit by name."""

import copy
import json
import re
from functools import cache
from pathlib import Path

import pytest
import torch
from fakes_checkpoint import build_networks
from fakes_lora import (
    TARGETS,
    Q,
    assert_same,
    bits_equal,
    kohya_file,
    random,
    state,
    with_files,
    write,
)
from marks import slow
from safetensors.torch import load_file
from torch import Tensor, nn

from resalign.backend.families.unet.names import unet_names

# Every shape of layer: wider below, narrower above, strided. All names are in kind `lora` alone.
SOME_BLOCKS = rf"(down_blocks\.[02]|up_blocks\.2)\..*({'|'.join(map(re.escape, TARGETS))})"


def peft_configs():
    from peft import LoHaConfig, LoKrConfig, LoraConfig

    pattern = {"attn1.to_q": 3, "conv1": 5}
    lora = {"r": 4, "lora_alpha": 2, "target_modules": SOME_BLOCKS}
    return {
        "lora": LoraConfig(**lora | {"target_modules": TARGETS}),
        "patterns": LoraConfig(**lora, rank_pattern=pattern, alpha_pattern={"conv1": 7}),
        "rslora": LoraConfig(**lora, use_rslora=True),
        "dora": LoraConfig(**lora, use_dora=True),
        "loha": LoHaConfig(r=4, alpha=2, target_modules=SOME_BLOCKS),
        "loha-tucker": LoHaConfig(
            r=4, alpha=2, target_modules=SOME_BLOCKS, use_effective_conv2d=True
        ),
        "lokr": LoKrConfig(r=2, alpha=1, target_modules=SOME_BLOCKS),
        "lokr-both": LoKrConfig(
            r=1, alpha=3, target_modules=SOME_BLOCKS, decompose_both=True, decompose_factor=8
        ),
        "lokr-tucker": LoKrConfig(
            r=2, alpha=1, target_modules=SOME_BLOCKS, use_effective_conv2d=True, decompose_factor=4
        ),
    }  # fmt: skip


def peft_adapter(network: nn.Module, config, folder: Path) -> tuple[Path, dict[str, Tensor]]:
    """An adapter as PEFT writes it, and all weights after PEFT's own merge."""
    from peft import get_peft_model, get_peft_model_state_dict

    wrapped = get_peft_model(copy.deepcopy(network), config)
    for i, (name, tensor) in enumerate(wrapped.named_parameters()):
        if "magnitude" in name:
            tensor.data *= 1 + random(*tensor.shape, seed=i)
        elif any(mark in name for mark in ("lora_", "hada_", "lokr_")):
            tensor.data = random(*tensor.shape, seed=i)
    folder.mkdir(exist_ok=True)
    path = write(folder / "adapter_model.safetensors", get_peft_model_state_dict(wrapped))
    wrapped.peft_config["default"].save_pretrained(folder)
    return path, dict(wrapped.merge_and_unload().state_dict())


@pytest.fixture(scope="module")
def adapted(tiny_models, tmp_path_factory):
    """Adapters of denoisers and the merged weights, by family and kind; made once."""

    @cache
    def find(family: str, kind: str) -> tuple[Path, dict[str, Tensor]]:
        folder = tmp_path_factory.mktemp(kind)
        return peft_adapter(tiny_models(family).denoiser, peft_configs()[kind], folder)

    return find


def in_unet(weights: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, Tensor]:
    return before | {f"unet.{name}": tensor for name, tensor in weights.items()}


@pytest.mark.parametrize(
    "kind",
    [
        "lora",
        "patterns",
        "rslora",
        "dora",
        "loha",
        "loha-tucker",
        "lokr",
        "lokr-both",
        "lokr-tucker",
    ],
)
def test_merges_what_peft_merges(tiny_models, adapted, kind):
    """PEFT's own file (alpha in its config): the same weights as PEFT's merge, all modules."""
    model = tiny_models("sd1")
    path, merged = adapted("sd1", kind)

    before = state(model)
    assert_same(with_files(model, path), in_unet(merged, before), before)


# PEFT asks transformers for a property that transformers 5 calls by another name
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_merges_what_peft_merges_into_a_text_encoder(tiny_models, tmp_path):
    """PEFT's names do not say which network they are for; their modules do."""
    from peft import LoraConfig

    model = tiny_models("sd1")
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj", "fc2"])
    path, merged = peft_adapter(model.text_encoders[0], config, tmp_path / "peft")

    before = state(model)
    expected = before | {f"text_encoder_0.{name}": tensor for name, tensor in merged.items()}
    assert_same(with_files(model, path), expected, before)


def in_fields_names(path: Path, config, naming: str, unet) -> dict[str, Tensor]:
    """PEFT's tensors as trainers write them: flat or dotted names, with alpha or with settings."""
    ldm = {
        own.removesuffix(".weight"): old.removesuffix(".weight")
        for old, own in unet_names(unet.config)
    }
    spelt = {
        "kohya": lambda module: "lora_unet_" + module.replace(".", "_"),
        "sgm": lambda module: "lora_unet_" + ldm[module].replace(".", "_"),
        "diffusers": lambda module: "unet." + module,
        "comfy": lambda module: "diffusion_model." + ldm[module],
    }[naming]
    leaves = {".lora_magnitude_vector": ".lora_magnitude_vector.weight"}
    if naming != "diffusers":
        leaves = {
            ".lora_A.weight": ".lora_down.weight", ".lora_B.weight": ".lora_up.weight",
            ".lora_magnitude_vector": ".dora_scale",
        }  # fmt: skip
    found, alphas = {}, {}
    for name, tensor in load_file(path).items():
        name = name.removeprefix("base_model.model.")
        module, dot, leaf = name.partition(".lora_")
        if not dot:
            module, _, leaf = name.rpartition(".")
            dot = "."
        leaf = leaves.get(dot + leaf, dot + leaf)
        if leaf == ".dora_scale":  # LyCORIS keeps the outputs' magnitudes as a column
            tensor = tensor.reshape(-1, *[1] * (3 if "conv" in module else 1))
        found[spelt(module) + leaf] = tensor
        alphas[spelt(module) + ".alpha"] = torch.tensor(float(getattr(config, "alpha", 2)))
    return found if naming == "diffusers" else found | alphas


@pytest.mark.parametrize(
    ("family", "kind", "naming"),
    [
        *(("sd1", "lora", naming) for naming in ("kohya", "sgm", "diffusers", "comfy")),
        *slow(*(("sdxl", "lora", naming) for naming in ("kohya", "sgm", "diffusers"))),
        *slow(("sd2", "lora", "kohya")),
        *(("sd1", "dora", naming) for naming in ("kohya", "diffusers")),
        ("sd1", "loha-tucker", "kohya"),
        *slow(("sdxl", "lokr-both", "sgm")),
    ],
)
def test_every_spelling_of_the_names_changes_the_same_weights(
    tiny_models, adapted, tmp_path, family, kind, naming
):
    """One adapter gives the same weights under all names that are about, SDXL's both."""
    model, config = tiny_models(family), peft_configs()[kind]
    path, merged = adapted(family, kind)
    metadata = {}
    if naming == "diffusers":
        settings = {"unet.lora_alpha": 2, "unet.r": 4}
        metadata["lora_adapter_metadata"] = json.dumps(settings)
    named = in_fields_names(path, config, naming, model.denoiser)

    before = state(model)
    found = with_files(model, write(tmp_path / "own.safetensors", named, **metadata))

    assert_same(found, in_unet(merged, before), before)


# --- against diffusers -------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["sd1", *slow("sdxl")])
def test_fuses_what_diffusers_fuses(tiny_models, tmp_path, family):
    """A kohya file on all networks: diffusers' own fused denoiser; s · up·down on the encoders.

    (Of text encoders diffusers 0.42 drops everything without `text_model.` in its module names.)
    """
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    model, unet = tiny_models(family), build_networks(family)["unet"]
    path = kohya_file(model, tmp_path / "kohya.safetensors")
    kind = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    options = {"unet_config": unet.config} if family == "sdxl" else {}
    read, alphas = kind.lora_state_dict(str(path), **options)[:2]
    kind.load_lora_into_unet(
        {name: tensor for name, tensor in read.items() if name.startswith("unet.")},
        network_alphas={name: a for name, a in alphas.items() if name.startswith("unet.")},
        unet=unet,
    )
    unet.fuse_lora(0.7)

    before, tensors = state(model), load_file(path)
    expected = dict(before)
    for name, tensor in unet.state_dict().items():
        if "lora_" not in name:
            expected[f"unet.{name.replace('.base_layer', '')}"] = tensor
    for i, prefix in enumerate(("te1", "te2") if family == "sdxl" else ("te",)):
        for layer in range(3):
            for module in ("self_attn.q_proj", "mlp.fc1"):
                stem = f"lora_{prefix}_text_model_encoder_layers_{layer}_{module.replace('.', '_')}"
                up, down = (tensors.pop(f"{stem}.lora_{side}.weight") for side in ("up", "down"))
                name = f"text_encoder_{i}.encoder.layers.{layer}.{module}.weight"
                name = name if name in before else name.replace(".encoder.", ".text_model.encoder.")
                expected[name] = before[name] + 0.7 * 1.5 / 3 * up @ down
    assert not any(name.startswith("lora_te") and "weight" in name for name in tensors)

    assert_same(with_files(model, path, strength=0.7), expected, before)


def test_reads_what_diffusers_writes(tiny_models, tmp_path):
    """`save_lora_weights` with alpha in its metadata, and with PEFT's own prefix for both parts."""
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model

    model, nets = tiny_models("sd1"), build_networks("sd1")
    config = LoraConfig(r=4, lora_alpha=1, target_modules=["to_q", "conv1", "q_proj"])
    for name in ("unet", "text_encoder"):
        # Not transformers' `add_adapter`, which may ask for a newer PEFT than there is
        inject_adapter_in_model(config, nets[name])
        for i, (key, tensor) in enumerate(nets[name].named_parameters()):
            if "lora_" in key:
                tensor.data = random(*tensor.shape, seed=i)
    settings = config.to_dict()
    StableDiffusionPipeline.save_lora_weights(
        tmp_path,
        unet_lora_layers=get_peft_model_state_dict(nets["unet"]),
        text_encoder_lora_layers=get_peft_model_state_dict(nets["text_encoder"]),
        unet_lora_adapter_metadata={"r": settings["r"], "lora_alpha": settings["lora_alpha"]},
        text_encoder_lora_adapter_metadata={"r": settings["r"], "lora_alpha": 2},
    )
    before = state(model)
    found = with_files(model, tmp_path / "pytorch_lora_weights.safetensors", text_strength=0.5)

    scales = {
        "unet": (model.denoiser, 1 / 4),
        "text_encoder": (model.text_encoders[0], 0.5 * 2 / 4),
    }
    expected = dict(before)
    for component, (_, scale) in scales.items():
        for name, module in nets[component].named_modules():
            if hasattr(module, "lora_A"):
                a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
                key = component.replace("text_encoder", "text_encoder_0")
                delta = (b.flatten(1) @ a.flatten(1)).view_as(module.weight) * scale
                expected[f"{key}.{name}.weight"] = before[f"{key}.{name}.weight"] + delta.detach()
    assert_same(found, expected, before)


def test_reads_what_diffusers_writes_of_one_network(tiny_models, tmp_path):
    """`save_lora_adapter` leaves prefixes away, in names and in settings: alpha still counts."""
    from peft import LoraConfig

    model, unet = tiny_models("sd1"), build_networks("sd1")["unet"]
    unet.add_adapter(LoraConfig(r=4, lora_alpha=1, target_modules=["to_q", "conv1"]), "mine")
    for i, (key, tensor) in enumerate(unet.named_parameters()):
        if "lora_" in key:
            tensor.data = random(*tensor.shape, seed=i)
    unet.save_lora_adapter(tmp_path, adapter_name="mine")
    unet.fuse_lora()
    fused = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in unet.state_dict().items()
        if "lora_" not in name
    }

    before = state(model)
    found = with_files(model, tmp_path / "pytorch_lora_weights.safetensors")
    assert_same(found, in_unet(fused, before), before)


def test_reads_the_names_of_old_diffusers(tiny_models, tmp_path):
    """LoRAs beside the attention (`processor.to_out_lora`) are those of the layers themselves."""
    model, attention = tiny_models("sd1"), Q.removesuffix(".to_q")
    old, new = {}, {}
    for short, long in (("to_q", "to_q"), ("to_out", "to_out.0")):
        for side in ("down", "up"):
            tensor = random(4, 32) if side == "down" else random(32, 4, seed=1)
            old[f"unet.{attention}.processor.{short}_lora.{side}.weight"] = tensor
            new[f"unet.{attention}.{long}.lora.{side}.weight"] = tensor
    text = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora"
    down, up = random(4, 32), random(32, 4)
    old |= {
        f"{text}_linear_layer.down.weight": down, f"{text}_linear_layer.up.weight": up
    }  # fmt: skip
    new |= {f"{text}_A.weight": down, f"{text}_B.weight": up}

    found = [
        with_files(model, write(tmp_path / f"{i}.safetensors", t)) for i, t in enumerate((old, new))
    ]

    assert bits_equal(*found)
    assert sum(not torch.equal(found[0][n], t) for n, t in state(model).items()) == 3
