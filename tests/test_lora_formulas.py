"""The formulas of LoRA files: middle tensors, DoRA, differences, strengths, sums."""

import copy

import pytest
import torch
from fakes_lora import (
    CONV,
    FLAT_CONV,
    FLAT_Q,
    Q,
    assert_same,
    bits_equal,
    plain,
    random,
    state,
    with_files,
    write,
)
from torch import nn

from resalign.backend.adapter.lora_file import sort_names
from resalign.backend.adapter.lora_kinds import kinds_of, weight_change
from resalign.backend.plan.attack import LoraFile
from resalign.backend.probe.loras import with_loras


def test_a_middle_tensor_is_a_convolution_between_two_others():
    """LoCon's up(mid(down(x))) as one convolution with ΔW."""
    parts = {
        "down": random(3, 8, 1, 1), "mid": random(3, 3, 3, 3, seed=1), "up": random(6, 3, 1, 1),
    }  # fmt: skip
    x, conv = random(2, 8, 5, 5, seed=9), nn.functional.conv2d

    change = weight_change("LoRA", parts, torch.zeros(6, 8, 3, 3), lambda rank: 2 / rank)

    through = conv(conv(conv(x, parts["down"]), parts["mid"], padding=1), parts["up"])
    torch.testing.assert_close(conv(x, change, padding=1), through * 2 / 3)


def test_dora_may_keep_the_magnitude_of_each_input():
    """LyCORIS' other axis: every column of W' has exactly the norm that the file gives."""
    magnitudes = random(1, 8, 1, 1).abs() + 1
    parts = {"down": random(2, 8, 3, 3), "up": random(6, 2, 1, 1), "dora_scale": magnitudes}
    weight = random(6, 8, 3, 3, seed=4)

    after = weight + weight_change("LoRA", parts, weight, lambda rank: 1.0)

    torch.testing.assert_close(after.transpose(0, 1).flatten(1).norm(dim=1), magnitudes.flatten())


def test_a_square_dora_of_peft_is_by_output(tiny_models):
    """PEFT writes a convolution's magnitudes as [1, out, 1, 1], which says nothing of the axis."""
    weight = random(8, 8, 3, 3)
    parts = {
        "down": random(2, 8, 3, 3), "up": random(8, 2, 1, 1),
        "magnitude": torch.arange(1.0, 9).view(1, 8, 1, 1),
    }  # fmt: skip

    after = weight + weight_change("LoRA", parts, weight, lambda rank: 1.0)

    torch.testing.assert_close(after.flatten(1).norm(dim=1), torch.arange(1.0, 9))


def test_differences_are_added_to_weights_biases_and_norms(tiny_models, tmp_path):
    """`diff`, `diff_b`, `w_norm`, `b_norm`: exactly that, times the strength."""
    model, norm = tiny_models("sd1"), "down_blocks.0.resnets.0.norm1"
    flat = "lora_unet_" + norm.replace(".", "_")
    diffs = {
        f"unet.{CONV}.weight": (f"{FLAT_CONV}.diff", random(32, 32, 3, 3)),
        f"unet.{CONV}.bias": (f"{FLAT_CONV}.diff_b", random(32)),
        f"unet.{norm}.weight": (f"{flat}.w_norm", random(32, seed=1)),
        f"unet.{norm}.bias": (f"{flat}.b_norm", random(32, seed=2)),
    }
    path = write(tmp_path / "diff.safetensors", dict(diffs.values()))

    before = state(model)
    found = with_files(model, path, strength=-0.5)

    for name, weight in found.items():
        change = diffs[name][1] * -0.5 if name in diffs else 0.0
        assert torch.equal(weight, before[name] + change), name


def test_strengths_scale_the_change_and_add_up(tiny_models, tmp_path):
    """Two files on one layer, one of them negative: W + s1 · ΔW1 + s2 · ΔW2 in any order."""
    model = tiny_models("sd1")
    one, two = plain(), plain(seed=7)
    files = [write(tmp_path / f"{i}.safetensors", t) for i, t in enumerate((one, two))]
    loras = [LoraFile(path=str(files[0]), strength=0.8), LoraFile(path=str(files[1]), strength=-2)]

    before = state(model)
    found = with_files(model, *loras)

    deltas = [t[f"{FLAT_Q}.lora_up.weight"] @ t[f"{FLAT_Q}.lora_down.weight"] for t in (one, two)]
    expected = before | {
        f"unet.{Q}.weight": before[f"unet.{Q}.weight"] + 0.8 * deltas[0] - 2 * deltas[1]
    }
    assert_same(found, expected, before)
    assert_same(with_files(model, *loras[::-1]), expected, before)


def test_strength_0_leaves_every_bit(tiny_models, tmp_path):
    """Also signed zeros, and also of a DoRA; the other part may still be on."""
    model = tiny_models("sd1")
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    tensors = plain() | {
        f"{FLAT_Q}.dora_scale": torch.ones(32, 1),
        f"{text}.lora_down.weight": random(2, 32), f"{text}.lora_up.weight": random(64, 2),
    }  # fmt: skip
    path = write(tmp_path / "a.safetensors", tensors)
    with torch.no_grad():
        weight = model.denoiser.get_submodule(Q).weight
        weight[0] = -0.0

    assert bits_equal(with_files(model, path, strength=0.0), state(model))
    found = with_files(model, path, strength=0.0, text_strength=1.0)
    (changed,) = [n for n, t in state(model).items() if not torch.equal(found[n], t)]
    assert changed.startswith("text_encoder_0.") and changed.endswith(".layers.0.mlp.fc1.weight")


def test_sums_are_made_in_float32_and_rounded_once(tiny_models, tmp_path):
    """In a half-precision model two changes below its resolution still add up to one above."""
    model = copy.copy(tiny_models("sd1"))
    model.denoiser = copy.deepcopy(model.denoiser).half()
    weight = model.denoiser.get_submodule(Q).weight
    weight.fill_(1.0)
    tensors = {f"{FLAT_Q}.diff": torch.full((32, 32), 4e-4)}
    files = [write(tmp_path / f"{i}.safetensors", tensors) for i in range(2)]

    one = with_files(model, files[0])[f"unet.{Q}.weight"]
    both = with_files(model, *files)[f"unet.{Q}.weight"]

    assert one.dtype == torch.float16 and (one == 1).all()
    assert (both == torch.tensor(1.0008).half()).all() and (both > 1).all()


def test_an_exception_inside_puts_every_bit_back(tiny_models, tmp_path):
    """Whatever is raised passes through, also what is no `Exception`."""
    model = tiny_models("sd1")
    path, before = write(tmp_path / "a.safetensors", plain()), state(model)

    def interrupted() -> None:
        with with_loras(model, [LoraFile(path=str(path))]):
            assert not bits_equal(before, state(model))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert bits_equal(before, state(model))


def test_every_name_is_sorted_once():
    """Groups and rest together are the file's names, whatever they are."""
    names = [
        "a.lora_down.weight", "a.lora_A.weight", "a.alpha", "a.processor.to_out_lora.up.weight",
        "a.to_out.0.lora.up.weight", "b.lora_A.default.weight", "b.lora_B.weight", "c", "", "lora_",
        "b.lora_magnitude_vector.default.weight", "a.weight", "d.hada_w3_a", "d.lokr_w1_a",
    ]  # fmt: skip
    groups, rest = sort_names(names)

    assert sorted([name for parts in groups.values() for name in parts.values()] + rest) == sorted(
        names
    )
    assert groups["b"].keys() == {"down", "up", "magnitude"}
    assert groups["d"].keys() == {"lokr_w1_a"} and len(groups["a.to_out.0"]) == 1
    assert {"c", "", "lora_", "a.weight", "d.hada_w3_a"} <= set(rest)
    assert kinds_of({"down", "up", "dora_scale", "magnitude"}) is None
