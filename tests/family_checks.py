"""Fixtures and helpers that the tests of all families of transformers share.

A test file states its `case` (one family, or all of them as parameters) and takes the fixtures:

    case = case_of(ANIMA)  # or every_case()
    models, copied, folder = loading_fixtures()
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from family_cases import CASES, Case

import resalign as ra
from resalign.backend.adapter.lora import Adapter


def case_of(one: Case) -> Any:
    """A fixture: the family whose tests a file has."""

    @pytest.fixture(scope="module")
    def case():
        return one

    return case


def every_case() -> Any:
    """A fixture: each family in turn."""

    @pytest.fixture(scope="module", params=CASES, ids=str)
    def case(request):
        return request.param

    return case


def loading_fixtures() -> tuple[Any, Any, Any]:
    """`models`, a host's folder of separate files; `copied`, one to damage; diffusers' `folder`."""

    @pytest.fixture(scope="module")
    def models(case, tmp_path_factory):
        """A `models` folder as ComfyUI's users have it."""
        folder = tmp_path_factory.mktemp("host") / "models"
        case.fakes.write_split(folder)
        return folder

    @pytest.fixture
    def copied(models, tmp_path):
        """A copy of that folder, to damage."""
        return Path(shutil.copytree(models, tmp_path / "models"))

    @pytest.fixture(scope="module")
    def folder(case, tmp_path_factory):
        return case.fakes.write_folder(tmp_path_factory.mktemp("folders") / case.stem)

    return models, copied, folder


def export_fixtures() -> tuple[Any, Any]:
    """`source`, the denoiser of separate files in bfloat16; `model`, loaded from it."""

    @pytest.fixture(scope="module")
    def source(case, tmp_path_factory):
        models = tmp_path_factory.mktemp(case.name) / "models"
        return case.fakes.write_split(models, dtype=torch.bfloat16)

    @pytest.fixture(scope="module")
    def model(source):
        return ra.load_checkpoint(source)

    return source, model


def tiny_plan() -> ra.HardeningPlan:
    """Two outer steps, with users that take one step each."""
    return ra.HardeningPlan(
        concept=ra.Concept("weapons", prompts=("a gun",)),
        forget_set=ra.ImageSet(prompts=("a gun",), images=2, sampling_steps=1, guidance=4),
        # captions of two lengths, which a batch of two holds side by side
        retain_set=ra.ImageSet(prompts=("a cat in a hat",), images=2, sampling_steps=1, guidance=4),
        fine_tunes=ra.fine_tune_grid(learning_rate=(1e-3,), steps=(1,), concept_share=0.5),
        harm=ra.HarmConfig(cap=20.0), adapter=ra.AdapterConfig(rank=2), outer_steps=2,
        warm_up_steps=1, learning_rate=2e-2, forget_batch=1, retain_batch=2,
    )  # fmt: skip


def assert_is_the_original(case: Case, model: Any) -> None:
    """Every network of a loaded model has the weights that were written."""
    networks = case.fakes.build_networks()
    parts = zip(networks.values(), (model.denoiser, *model.text_encoders, model.vae), strict=True)
    for network, loaded in parts:
        expected, found = network.state_dict(), loaded.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())


def adapter_of(
    model: Any, *modules: str, size: float = 1.0, rank: int = 2, alpha: float = 1.0
) -> Adapter:
    """A random adapter of modules of a model, or of a denoiser on the meta device."""
    denoiser = getattr(model, "denoiser", model)
    random = torch.Generator().manual_seed(3)
    tensors = {}
    for name in modules:
        rows, columns = denoiser.get_submodule(name).weight.shape
        tensors[f"{name}.lora_A.weight"] = torch.randn(rank, columns, generator=random)
        tensors[f"{name}.lora_B.weight"] = size * torch.randn(rows, rank, generator=random)
    return Adapter(tensors, rank, alpha)


def linear_layers(network: torch.nn.Module, part: str = "", without: str = "|") -> list[str]:
    """Names of linear layers that contain `part` and not `without`."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, torch.nn.Linear) and part in name and without not in name
    ]


def link_companions(case: Case, source: Path, models: Path) -> None:
    """Put the text encoder, the tokenizers and the VAE of `source` beside another denoiser."""
    for file in ("text_encoders", "vae"):
        (models / file).symlink_to(source.parents[1] / file)


def data_of(path: Path) -> bytes:
    """The bytes after the header, in the order of the tensors in it."""
    raw = path.read_bytes()
    return raw[8 + int.from_bytes(raw[:8], "little") :]


def read_by_diffusers(expected: Any, path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """Deltas of the modules as diffusers' own loader reads them, without those that it drops.

    expected: the family's `Exported`, which names the loader.
    """
    import diffusers
    import diffusers.loaders

    state = getattr(diffusers.loaders, expected.loras.reader).lora_state_dict(
        str(path.parent), weight_name=path.name, local_files_only=True
    )
    network = getattr(diffusers, expected.loras.network)(**expected.fakes.denoiser_class_config())
    network.load_lora_adapter(state, prefix="transformer")
    layers = {name: network.get_submodule(name) for name in names}
    return {
        name: layer.get_delta_weight("default_0")
        for name, layer in layers.items()
        if hasattr(layer, "lora_A")
    }
