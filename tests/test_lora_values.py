"""Kinds of LoRA files that few trainers write, checked by value.

The LoKr forms were compared with the forward pass of LyCORIS 4.1.3 (its `get_merged_weight`
multiplies the strength twice), all to float32's rounding; what is stored here is the formula.
"""

import json

import pytest
import torch
from fakes_lora import (
    CONV,
    FLAT_CONV,
    FLAT_Q,
    Q,
    assert_same,
    random,
    state,
    with_files,
    write,
)
from marks import slow
from torch import nn

from resalign.backend.errors import CheckpointError

LCM_TARGETS = [  # those of diffusers' LCM-LoRA training, which the published ones follow
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv",
    "time_emb_proj",
]  # fmt: skip


def kronecker(w1, w2):
    """ΔW[o1·O2 + o2, i1·I2 + i2] = w1[o1, i1] · w2[o2, i2], by index."""
    outputs, inputs = w2.shape[:2]
    found = torch.zeros(len(w1) * outputs, w1.shape[1] * inputs, *w2.shape[2:])
    for o1 in range(len(w1)):
        for i1 in range(w1.shape[1]):
            rows = slice(o1 * outputs, (o1 + 1) * outputs)
            found[rows, i1 * inputs : (i1 + 1) * inputs] = w1[o1, i1] * w2
    return found


A1, B1 = random(8, 3, seed=1), random(3, 4, seed=2)
A2, B2 = random(4, 3, seed=3), random(3, 8, seed=4)
W1, W2, KERNELS = random(8, 4, seed=5), random(4, 8, seed=6), random(4, 8, 3, 3, seed=7)
LOKR = {
    "both whole": ({"lokr_w1": W1, "lokr_w2": W2}, kronecker(W1, W2), 1.0),
    "second a product": (
        {"lokr_w1": W1, "lokr_w2_a": A2, "lokr_w2_b": B2}, kronecker(W1, A2 @ B2), 2 / 3,
    ),
    "first a product": (
        {"lokr_w1_a": A1, "lokr_w1_b": B1, "lokr_w2": W2}, kronecker(A1 @ B1, W2), 2 / 3,
    ),
    "both products": (
        {"lokr_w1_a": A1, "lokr_w1_b": B1, "lokr_w2_a": A2, "lokr_w2_b": B2},
        kronecker(A1 @ B1, A2 @ B2), 2 / 3,
    ),
    "kernels, first a product": (
        {"lokr_w1_a": A1, "lokr_w1_b": B1, "lokr_w2": KERNELS}, kronecker(A1 @ B1, KERNELS), 2 / 3,
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", LOKR)
def test_every_form_of_lokr_is_the_kronecker_product_at_its_strength(tiny_models, tmp_path, form):
    """s = alpha / rank, with the rank of the factor that is a product; 1 where neither is."""
    parts, product, scale = LOKR[form]
    stem, module = (FLAT_CONV, CONV) if "kernels" in form else (FLAT_Q, Q)
    tensors = {f"{stem}.{part}": tensor for part, tensor in parts.items()}
    path = write(tmp_path / "lokr.safetensors", {**tensors, f"{stem}.alpha": torch.tensor(2.0)})

    before, name = state(tiny_models("sd1")), f"unet.{module}.weight"
    found = with_files(tiny_models("sd1"), path, strength=0.5)

    assert_same(found, before | {name: before[name] + 0.5 * scale * product}, before)


def test_rank_stabilised_lokr_of_whole_matrices_is_refused_by_name(tiny_models, tmp_path):
    """LyCORIS scales it by alpha / √rank in training, but its file says neither."""
    tensors = {f"{FLAT_Q}.lokr_w1": W1, f"{FLAT_Q}.lokr_w2": W2}
    said = {"ss_network_args": json.dumps({"algo": "lokr", "rs_lora": "True"})}
    path = write(tmp_path / "rs.safetensors", tensors, **said)

    with pytest.raises(CheckpointError, match=r"rs_lora.*ss_network_args"):
        with_files(tiny_models("sd1"), path)
    product = {f"{FLAT_Q}.lokr_w1": W1, f"{FLAT_Q}.lokr_w2_a": A2, f"{FLAT_Q}.lokr_w2_b": B2}
    with_files(tiny_models("sd1"), write(tmp_path / "ok.safetensors", product, **said))


def test_a_bias_of_its_own_may_come_beside_a_lora(tiny_models, tmp_path):
    """`diff_b` with low-rank factors, or alone, and `diff` of a linear layer: W + ΔW, b + Δb."""
    down, up = random(2, 32, 3, 3), random(32, 2, 1, 1, seed=1)
    bias, diff = random(32, seed=2), random(32, 32, seed=3)
    tensors = {
        f"{FLAT_CONV}.lora_down.weight": down, f"{FLAT_CONV}.lora_up.weight": up,
        f"{FLAT_CONV}.alpha": torch.tensor(1.0), f"{FLAT_CONV}.diff_b": bias,
        f"{FLAT_Q}.diff": diff,
    }  # fmt: skip
    path = write(tmp_path / "b.safetensors", tensors)

    before = state(tiny_models("sd1"))
    found = with_files(tiny_models("sd1"), path, strength=2.0)

    change = torch.einsum("or,rikl->oikl", up[:, :, 0, 0], down) / 2
    expected = before | {
        f"unet.{CONV}.weight": before[f"unet.{CONV}.weight"] + 2 * change,
        f"unet.{CONV}.bias": before[f"unet.{CONV}.bias"] + 2 * bias,
        f"unet.{Q}.weight": before[f"unet.{Q}.weight"] + 2 * diff,
    }
    assert_same(found, expected, before)


def merged_by_peft(network, config, seed):
    """LoRA tensors of random values by module, and all weights after PEFT's own merge."""
    import copy

    from peft import inject_adapter_in_model

    network = copy.deepcopy(network)
    inject_adapter_in_model(config, network)
    factors, weights = {}, {}
    for i, (name, module) in enumerate(network.named_modules()):
        if hasattr(module, "lora_A") and hasattr(module, "merge"):
            a, b = module.lora_A["default"].weight, module.lora_B["default"].weight
            a.data, b.data = (random(*t.shape, seed=seed + 2 * i + n) for n, t in enumerate((a, b)))
            factors[name] = a.data, b.data
            module.merge()
            weights[name] = module.get_base_layer().weight.detach().clone()
    return factors, weights


@pytest.mark.parametrize("naming", ["kohya", "diffusers"])
def test_text_encoder_loras_of_sdxl_merge_what_peft_merges(tiny_models, tmp_path, naming):
    """Both encoders, with the second's projection, each from its own tensors."""
    from peft import LoraConfig

    model = tiny_models("sdxl")
    targets = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    tensors, merged = {}, {}
    for i, encoder in enumerate(model.text_encoders):
        own = [*targets, "text_projection"] if i else targets
        config = LoraConfig(r=2, lora_alpha=3, target_modules=own)
        factors, weights = merged_by_peft(encoder, config, seed=100 * i)
        assert len(factors) == 6 * 3 + i
        for module, (a, b) in factors.items():
            short = module.removeprefix("text_model.")
            full = short if short == "text_projection" else f"text_model.{short}"
            if naming == "kohya":
                stem = f"lora_te{i + 1}_{full.replace('.', '_')}"
                tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = a, b
                tensors[f"{stem}.alpha"] = torch.tensor(3.0)
            else:
                stem = f"text_encoder{'_2' * i}.{full}"
                tensors[f"{stem}.lora_A.weight"] = a
                tensors[f"{stem}.lora_B.weight"] = b * 1.5
            merged[f"text_encoder_{i}.{module}.weight"] = weights[module]

    before = state(model)
    found = with_files(model, write(tmp_path / "te.safetensors", tensors))

    assert_same(found, before | merged, before)


@pytest.mark.parametrize("family", ["sd1", *slow("sdxl")])
def test_lcm_loras_merge_what_peft_merges(tiny_models, tmp_path, family):
    """All layers that diffusers' LCM-LoRA training changes, in the published files' names."""
    from peft import LoraConfig

    model = tiny_models(family)
    config = LoraConfig(r=4, lora_alpha=1, target_modules=LCM_TARGETS)
    factors, weights = merged_by_peft(model.denoiser, config, seed=7)
    tensors = {}
    for module, (a, b) in factors.items():
        stem = "lora_unet_" + module.replace(".", "_")
        tensors[f"{stem}.lora_down.weight"], tensors[f"{stem}.lora_up.weight"] = a, b
        tensors[f"{stem}.alpha"] = torch.tensor(1.0)
    kinds = (nn.Linear, nn.Conv2d)
    layers = {n for n, m in model.denoiser.named_modules() if isinstance(m, kinds)}
    assert {name.split(".")[0] for name in layers - set(factors)} <= {
        "time_embedding", "add_embedding", "conv_in", "conv_out",
    }  # fmt: skip

    before = state(model)
    found = with_files(model, write(tmp_path / "lcm.safetensors", tensors))

    assert_same(found, before | {f"unet.{n}.weight": w for n, w in weights.items()}, before)
