"""Networks of a loaded model by component, and their modules with weights."""

from __future__ import annotations

from torch import nn

from ..model.model import Model


def networks_of(model: Model) -> dict[str, nn.Module]:
    """Return the denoiser and the text encoders by component."""
    texts = zip(model.family.text_encoders, model.text_encoders, strict=False)
    return {model.family.denoiser: model.denoiser, **dict(texts)}


def modules_of(model: Model) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return modules with weights: the denoiser's by their names in files, each text encoder's."""
    networks = networks_of(model)
    stored = {
        name.rpartition(".")[0]: source.name.rpartition(".")[0]
        for name, source in model.family.tensors.denoiser_sources(model.denoiser.config).items()
    }
    own = _with_weights(networks.pop(model.family.denoiser))
    denoiser = {module: stored.get(module, module) for module in own}
    return denoiser, {component: _with_weights(network) for component, network in networks.items()}


def _with_weights(network: nn.Module) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(getattr(module, "weight", None), nn.Parameter)
    ]
