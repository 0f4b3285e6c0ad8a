"""Convolutions erased by the patches under their kernels: moments, directions, weights, memory."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from test_erase import moments, plan, run
from torch import nn

from fakes import tiny_model
from resalign.backend.hardening.erase.moments import in_groups, measure, patches_of, takes_patches
from resalign.backend.hardening.erase.step import by_patches
from resalign.backend.hardening.erase.subspace import concept_directions, without
from resalign.backend.numerics.byte_sizes import GIB
from resalign.backend.plan.durable import EraseConfig

PATCHES = EraseConfig(
    samples=4, batch=4, ratio=1.5, targets=("convolution",), convolutions="patches"
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(3, 4, 3, padding=1),
        nn.Conv2d(3, 4, 3, stride=2, padding=1, bias=False),
        nn.Conv2d(3, 4, (3, 2), dilation=2),
    ],
)
def test_a_convolution_is_a_linear_map_of_its_patches(layer):
    """Rows times the flat weight are its outputs, so that a layer of rows is the same layer."""
    image = normal(2, 3, 9, 8)
    bias = 0 if layer.bias is None else layer.bias
    rows = torch.cat([patches_of(layer, sample) for sample in image.split(1)])
    expected = layer(image).movedim(1, -1).reshape(len(rows), -1)
    torch.testing.assert_close(rows @ layer.weight.flatten(1).T + bias, expected)
    (sample, *_) = image.split(1)
    some = patches_of(layer, sample, every=2) @ layer.weight.flatten(1).T + bias
    places = layer(sample)[..., ::2, ::2].movedim(1, -1).reshape(len(some), -1)
    torch.testing.assert_close(some, places)  # of every second place in each direction


def test_moments_are_those_of_patches_only_where_asked_for():
    """A second layer with the same input shares them if it sees the same patches."""
    convs = {
        "one": nn.Conv2d(3, 4, 3, padding=1), "same": nn.Conv2d(3, 2, 3, padding=1),
        "half": nn.Conv2d(3, 2, 3, stride=2, padding=1), "channels": nn.Conv2d(3, 2, 3, padding=1),
    }  # fmt: skip
    image = normal(2, 3, 6, 6)
    found = measure(
        convs, [(1.0, lambda: [conv(image) for conv in convs.values()])], {"one", "same", "half"}
    )
    assert [found.owner(name) for name in convs] == ["one", "one", "half", "channels"]
    for name in ("one", "half"):
        rows = torch.cat([patches_of(convs[name], sample, every=2) for sample in image.split(1)])
        torch.testing.assert_close(found.of(name), moments(rows), rtol=1e-5, atol=1e-6)
    places = image.movedim(1, -1).reshape(-1, 3)
    torch.testing.assert_close(found.of("channels"), moments(places), rtol=1e-5, atol=1e-6)


def test_a_shape_that_channels_cannot_tell_is_taken_out_and_nothing_else():
    """In closed form. One channel; the concept is one pattern u of 3 × 3, the rest all others,
    as strong at each place on the whole. By channels λ is 1. By patches exactly u goes: the layer
    is 0 on u and, C being white beside it, unchanged on all that is orthogonal to it."""
    basis = torch.linalg.qr(normal(9, 9, seed=1))[0].double()
    u, others = basis[:, :1], basis[:, 1:]
    kept = others @ others.T / 8 + 1e-4 * (u @ u.T)
    concept = others @ others.T / 8 + 0.9 * (u @ u.T)
    weight = normal(5, 1, 3, 3, seed=2)
    found = concept_directions(kept, concept, ratio=4.0, floor=1e-6)
    assert found.removed == 1
    new, old = (w.flatten(1).double() for w in (without(weight, found), weight))
    assert (new @ u).abs().max() < 1e-6 and (old @ u).abs().max() > 0.1
    torch.testing.assert_close(new @ others, old @ others, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(new, old - old @ u @ u.T, atol=1e-6, rtol=1e-5)


def test_it_equals_a_linear_layer_on_the_same_rows():
    rest, concept = normal(600, 18, seed=1), normal(600, 18, seed=2)
    concept[:, 4] *= 8
    found = concept_directions(moments(rest), moments(concept), ratio=4.0, floor=1e-6)
    kernel = normal(5, 2, 3, 3, seed=3)
    assert found.removed > 0
    assert torch.equal(without(kernel, found).flatten(1), without(kernel.flatten(1), found))


def test_patches_that_do_not_fit_the_memory_are_left_to_channels():
    """2 · 8 · (9 · channels)²: 2 GiB for 1,280 channels, 8 GiB for 2,560."""
    with torch.device("meta"):
        layers = {
            "wide": nn.Conv2d(2560, 8, 3), "usual": nn.Conv2d(1280, 8, 3),
            "point": nn.Conv2d(2560, 8, 1), "grouped": nn.Conv2d(8, 8, 3, groups=8),
            "named": nn.Conv2d(8, 8, 3, padding="same"), "linear": nn.Linear(4, 4),
        }  # fmt: skip
    assert [name for name, layer in layers.items() if takes_patches(layer)] == ["wide", "usual"]
    wide = replace(PATCHES, patch_width=30_000)
    assert by_patches(wide, layers) == {"usual"}
    assert by_patches(replace(wide, memory=8.0), layers) == {"usual", "wide"}
    assert by_patches(replace(wide, convolutions="channels"), layers) == set()
    for width, chosen in ((9 * 1280, {"usual"}), (9 * 1280 - 1, set())):
        assert by_patches(replace(PATCHES, patch_width=width), layers) == chosen
    groups = in_groups(layers, 2, 4 * GIB, by_patches(wide, layers))
    assert [list(group) for group in groups] == [
        ["wide", "usual", "point", "grouped", "named", "linear"]
    ]
    tight = list(in_groups(layers, 2, 2 * GIB, by_patches(wide, layers)))
    assert [list(group) for group in tight][:2] == [["wide"], ["usual"]]


def test_a_run_takes_patches_and_says_what_it_takes_by_channels():
    """With room for the patches of 32 channels and not for those of 64."""
    room = 2 * 8 * (9 * 32) ** 2 / GIB
    result = run(plan(erase=replace(PATCHES, memory=room)))
    layers = dict(tiny_model().denoiser.named_modules())
    for layer in result.records[0].erased:
        channels, size = layers[layer.name].in_channels, layers[layer.name].kernel_size[0]
        assert layer.width == (channels * size**2 if channels <= 32 else channels)
    assert {layer.width for layer in result.records[0].erased} >= {288, 64}
    assert any(layer.removed for layer in result.records[0].erased if layer.width == 288)
    assert "are erased by channels" in result.warnings[0]
