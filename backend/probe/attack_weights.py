"""The weights that an attack trains: a fresh PEFT adapter, or a whole network; restored afterwards.

Adapters are initialised by PEFT, as in the usual trainers, from a generator of their own. A network
is copied only if all of its weights are trained: one copy on the CPU to restore from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoHaConfig, LoKrConfig, LoraConfig, PeftConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..adapter.targets import target_modules
from ..errors import ConfigError
from ..model.model import Model
from ..numerics.seeds import generator
from ..plan.attack import FineTuneAttack
from .networks import networks_of
from .weight_change import adapter_squares, ratio, squares

_ADAPTER = "attack"
_TEXT_TARGETS = re.compile(r"\.(q|k|v|out)_proj$")


@dataclass(slots=True)
class _Origin:
    """A network as it was before the attack.

    norm: Σ W² of all its weights. start: its weights, on the CPU, in the order of its parameters;
    None where an adapter leaves them as they are.
    """

    component: str
    network: nn.Module
    norm: float
    start: list[Tensor] | None

    def change(self) -> float:
        """Return ‖W' − W‖ / ‖W‖ with the weights as they are now."""
        if self.start is None:
            return ratio(adapter_squares(self.network, _ADAPTER), self.norm)
        pairs = zip(self.network.parameters(), self.start, strict=True)
        return ratio(
            squares(new.detach().float() - old.to(new.device).float() for new, old in pairs),
            self.norm,
        )


@dataclass(slots=True)
class TrainedWeights:
    """Parameters that an attack trains, in float32 or wider.

    denoiser, text: of the denoiser and of the text encoders; text is empty without them.
    types: the type of each in evaluation: the one that its network was loaded in.
    """

    attack: FineTuneAttack
    networks: tuple[Any, ...]  # the denoiser first
    origins: tuple[_Origin, ...]  # of the same networks
    denoiser: list[nn.Parameter]
    text: list[nn.Parameter]
    types: list[torch.dtype]

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [*self.denoiser, *self.text]

    def train(self) -> None:
        """Set training mode where it has an effect: checkpointing, and dropout of the adapter."""
        self.networks[0].train(self.attack.gradient_checkpointing)
        for network in self.networks:
            for module in network.modules():
                if isinstance(module, BaseTunerLayer):
                    module.train(self.attack.dropout > 0)  # type: ignore[attr-defined]

    def publish(self, values: Sequence[Tensor] | None = None) -> list[Tensor]:
        """Use `values` (default: the trained ones) in the networks' own types, in evaluation mode.

        Returns the trained values, for `resume`.
        """
        for network in self.networks:
            network.eval()
        trained = [parameter.data for parameter in self.parameters]
        for parameter, value, kind in zip(
            self.parameters, values or trained, self.types, strict=True
        ):
            parameter.data = value.to(kind)
        return trained

    def changes(self) -> dict[str, float]:
        """Return by component how far the weights have moved; call it after `publish`."""
        return {origin.component: origin.change() for origin in self.origins}

    def resume(self, trained: Sequence[Tensor]) -> None:
        """Continue training with the values that `publish` returned."""
        for parameter, value in zip(self.parameters, trained, strict=True):
            parameter.data = value
        self.train()


@contextmanager
def trained_weights(
    model: Model, attack: FineTuneAttack, *, seed: int = 0
) -> Iterator[TrainedWeights]:
    """Make the weights of `attack` trainable; on leaving, restore all networks.

    Weights are restored bit for bit, and so are modes, modules and attributes; no parameter
    requires gradients.
    """
    encoders = tuple(model.text_encoders) if attack.text_encoder else ()
    if attack.text_encoder and not encoders:
        raise ConfigError(f"attack {attack.name}: text_encoder, but the model has none")
    networks: tuple[Any, ...] = (model.denoiser, *encoders)
    names = {id(network): name for name, network in networks_of(model).items()}
    groups: list[list[nn.Parameter]] = []
    origins: list[_Origin] = []
    types: list[torch.dtype] = []
    with ExitStack() as stack:
        for network in networks:
            stack.enter_context(_modes_kept(network))
        for encoder in encoders:
            stack.enter_context(_on_device(encoder, model.device))
        for index, network in enumerate(networks):
            kind, start = next(network.parameters()).dtype, None
            norm = squares(network.parameters())
            if attack.method == "full":
                parameters, start = stack.enter_context(_all_weights(network))
                own = [part.dtype for part in start]
            else:
                groups_of = model.family.targets
                targets = (
                    target_modules(network, groups_of, attack.targets)
                    if index == 0
                    else _text(network)
                )
                config = _config(attack, targets)
                random = generator(seed, "attack", "adapter", index)
                parameters = stack.enter_context(_adapter(network, targets, config, random))
                own = [kind] * len(parameters)
            groups.append(parameters)
            origins.append(_Origin(names[id(network)], network, norm, start))
            types += own
        if attack.gradient_checkpointing:
            model.denoiser.enable_gradient_checkpointing()
        weights = TrainedWeights(
            attack, networks, tuple(origins), groups[0],
            [part for group in groups[1:] for part in group], types,
        )  # fmt: skip
        weights.train()
        yield weights


def _text(encoder: nn.Module) -> tuple[str, ...]:
    """Names of the attention projections, matched by their ends: the path before them depends on
    the version of transformers."""
    return tuple(
        name
        for name, module in encoder.named_modules()
        if isinstance(module, nn.Linear) and _TEXT_TARGETS.search("." + name)
    )


def _config(attack: FineTuneAttack, modules: Sequence[str]) -> PeftConfig:
    rank, alpha, names = attack.rank, attack.alpha or float(attack.rank), list(modules)
    if attack.method == "loha":
        return LoHaConfig(r=rank, alpha=alpha, target_modules=names, rank_dropout=attack.dropout)  # type: ignore[arg-type]
    if attack.method == "lokr":
        return LoKrConfig(r=rank, alpha=alpha, target_modules=names, rank_dropout=attack.dropout)  # type: ignore[arg-type]
    return LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=names, lora_dropout=attack.dropout,  # type: ignore[arg-type]
        use_dora=attack.method == "dora",
    )  # fmt: skip


@contextmanager
def _adapter(
    network: nn.Module, names: Sequence[str], config: PeftConfig, random: torch.Generator
) -> Iterator[list[nn.Parameter]]:
    """Insert a fresh adapter on these modules and yield its parameters; remove it on leaving."""
    attributes = set(vars(network))
    originals = {name: network.get_submodule(name) for name in names}
    network.requires_grad_(False)
    try:
        with torch.random.fork_rng(devices=[]):  # PEFT draws on the CPU, then moves
            torch.default_generator.manual_seed(random.initial_seed())
            inject_adapter_in_model(config, network, adapter_name=_ADAPTER)
        parameters = [part for part in network.parameters() if part.requires_grad]
        for parameter in parameters:
            parameter.data = _wide(parameter.data)
        yield parameters
    finally:
        for name, module in originals.items():
            parent, _, child = name.rpartition(".")
            setattr(network.get_submodule(parent), child, module)
        network.requires_grad_(False)
        for name in set(vars(network)) - attributes:
            delattr(network, name)


@contextmanager
def _all_weights(
    network: nn.Module,
) -> Iterator[tuple[list[nn.Parameter], list[Tensor]]]:
    """Make all parameters trainable in float32; yield them and what they were, kept on the CPU.

    The old values are restored on leaving.
    """
    parameters = list(network.parameters())
    start = [part.detach().to("cpu", copy=True) for part in parameters]
    try:
        for parameter in parameters:
            parameter.data = _wide(parameter.data)
            parameter.requires_grad_(True)
        yield parameters, start
    finally:
        for parameter, value in zip(parameters, start, strict=True):
            parameter.grad = None
            parameter.requires_grad_(False)
            parameter.data = value.to(parameter.device)


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def _modes_kept(network: nn.Module) -> Iterator[None]:
    """Restore training mode and checkpointing of every module on leaving."""
    modules = list(network.modules())
    modes = [(part.training, getattr(part, "gradient_checkpointing", None)) for part in modules]
    try:
        yield
    finally:
        for module, (training, checkpointing) in zip(modules, modes, strict=True):
            module.training = training
            if checkpointing is not None:
                module.gradient_checkpointing = checkpointing  # type: ignore[assignment]


@contextmanager
def _on_device(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Move a text encoder to the denoiser's device, and back on leaving."""
    home = next(network.parameters()).device
    try:
        network.to(device)
        yield
    finally:
        network.to(home)
