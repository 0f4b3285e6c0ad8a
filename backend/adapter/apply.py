"""The denoiser with the adapter θ on it: switched on or off, or trained by a user.

The LoRA layers are PEFT's. θ lives in their parameters and is changed in place. With the adapter
off the same network *is* the frozen model, so no second copy is needed. A simulated user trains
θ itself, a fresh LoRA beside it, or all base weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from ..errors import ConfigError
from ..families.base.conditioning import Conditioning
from ..model.model import Model
from ..model.quantised import is_quantised
from ..numerics.seeds import generator
from ..numerics.torch_compat import autocasts
from ..plan.adapter import AdapterConfig
from ..plan.kernels import Precision
from .dense import AnyAdapter, DenseAdapter, summed
from .lora import A, Adapter, B
from .merge_in_place import merged
from .passes import loss_scale, mixed, recompute_activations, wide
from .side_by_side import SideBySide
from .targets import target_modules

_SAFETY, _EARLIER = "safety", "earlier"


def _cast_input(x: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Cast the input of a LoRA layer to its weights' type, except under autocast.

    There a cast to float32 is undone at once, and costs as many launches as the adapter itself.
    Pictures are drawn without autocast while the adapter is on. Predictions of memory, on `meta`,
    which has no autocast, follow training.
    """
    if x is None or x.device.type == "meta" or autocasts(x.device.type):
        return x
    return x.to(dtype)


class AdaptedDenoiser:
    """A model's denoiser carrying θ. Close it (or use `with`) to get the bare network back.

    theta: the adapter's parameters, `<module>.lora_A.weight` and `.lora_B.weight`, float32 on
    the model's device. A starts normal with variance 1 / fan-in, B at 0: θ is the identity.
    earlier: the adapter of the stages before this one. A low-rank one stays frozen beside θ, and is
        switched off with it. A dense one is merged into the weights until this is closed: what it
        changed is then part of the frozen model that θ is compared with.
    """

    def __init__(
        self,
        model: Model,
        config: AdapterConfig,
        *,
        seed: int = 0,
        precision: Precision = "fp32",
        earlier: AnyAdapter | None = None,
    ) -> None:
        self.model = model
        self.config = config
        self.loss_scale = loss_scale(precision)
        self._precision: Precision = precision
        self._modules = target_modules(model.denoiser, model.family.targets, config.targets)
        model.denoiser.requires_grad_(False)
        self._users: set[str] = set()
        self._merged, self._dense, self._earlier = ExitStack(), None, None
        if isinstance(earlier, DenseAdapter):
            self._dense = earlier
            self._merged.enter_context(merged(model, earlier))
        elif earlier is not None:
            self._earlier = earlier
            self._put(earlier)
        self.theta = self._add(_SAFETY, config.rank, config.effective_alpha, seed)
        if self._earlier is not None:
            self._activate([_SAFETY])

    def __enter__(self) -> AdaptedDenoiser:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __call__(self, latents: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Predict ε or v in float32; shapes as in `Model.denoise`."""
        device, dtype = latents.device, self.model.dtype
        with mixed(self._precision, device):
            predicted = self.model.denoise(
                latents.to(dtype), timesteps, conditioning.to(device, dtype)
            )
        return wide(predicted)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Switch every adapter off and record no graph: the original model."""
        layers = self._layers()
        for layer in layers:
            layer.enable_adapters(False)
        try:
            with torch.no_grad():
                yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)

    @contextmanager
    def fresh_lora(self, rank: int, seed: int) -> Iterator[dict[str, Tensor]]:
        """Put a user's new LoRA on top of the hardened weights; yield its parameters φ by name."""
        name = f"user{rank}"
        phi = self._add(name, rank, float(rank), seed, reuse=name in self._users)
        self._users.add(name)
        self._activate([_SAFETY, name])
        try:
            yield phi
        finally:
            self._activate([_SAFETY])

    @contextmanager
    def base_weights(self) -> Iterator[dict[str, Tensor]]:
        """Make all weights of the denoiser trainable; restore them bit for bit afterwards."""
        phi = {n: p for n, p in self.model.denoiser.named_parameters() if ".lora_" not in n}
        if is_quantised(self.model.denoiser):
            raise ConfigError(
                "simulating full fine-tuning trains the denoiser's weights, which are quantised: "
                "set the plan's quantization to 'none', or simulate to 'shared'"
            )
        if any(p.dtype != torch.float32 for p in phi.values()):
            raise ConfigError(
                "simulating full fine-tuning needs the denoiser in fp32 (its updates are smaller "
                "than half precision resolves): load the checkpoint with dtype=torch.float32"
            )
        start = {name: tensor.detach().clone() for name, tensor in phi.items()}
        for tensor in phi.values():
            tensor.requires_grad_(True)
        try:
            yield dict(phi)
        finally:
            with torch.no_grad():
                for name, tensor in phi.items():
                    tensor.copy_(start[name]).requires_grad_(False)

    @contextmanager
    def side_by_side(self, count: int) -> Iterator[SideBySide]:
        """Put `count` users' copies in θ's place, each for its own samples of a pass."""
        copies = SideBySide(
            self.modules, self.theta, count, self.config.effective_alpha / self.config.rank
        )
        self._activate([])
        try:
            with copies:
                yield copies
        finally:
            self._activate([_SAFETY])

    def training(self, checkpointing: bool) -> None:
        """Set whether activations are recomputed in the backward pass: less memory, more time."""
        recompute_activations(self.model.denoiser, checkpointing)

    def adapter(self) -> AnyAdapter:
        """Copy θ as it stands, with the adapter of earlier stages, to a value on the CPU."""
        tensors = {name: t.detach().float().cpu().clone() for name, t in self.theta.items()}
        theta = Adapter(tensors, self.config.rank, self.config.effective_alpha)
        before = self._dense or self._earlier
        return summed(before, theta) if before else theta

    def load(self, adapter: Adapter) -> None:
        """Set θ; the adapter must have been made for the same modules and rank."""
        with torch.no_grad():
            for name, tensor in self.theta.items():
                tensor.copy_(adapter.tensors[name])

    def close(self) -> None:
        """Remove every LoRA layer, which leaves the original network."""
        for name in self._adapted:
            module: Any = self.model.denoiser.get_submodule(name)
            if isinstance(module, BaseTunerLayer):
                parent, _, child = name.rpartition(".")
                setattr(self.model.denoiser.get_submodule(parent), child, module.get_base_layer())
        self._merged.close()
        self.training(False)
        if hasattr(self.model.denoiser, "peft_config"):
            del self.model.denoiser.peft_config

    @property
    def modules(self) -> dict[str, Any]:
        """Return the layers that carry θ, by name."""
        return {name: self.model.denoiser.get_submodule(name) for name in self._modules}

    @property
    def _adapted(self) -> tuple[str, ...]:
        """Return the names of the layers that carry any adapter."""
        earlier = self._earlier.modules if self._earlier else ()
        return tuple(dict.fromkeys((*earlier, *self._modules)))

    def _layers(self) -> list[Any]:
        return [self.model.denoiser.get_submodule(name) for name in self._adapted]

    def _activate(self, names: list[str]) -> None:
        if self._earlier is None:
            for layer in self._layers():
                layer.set_adapter(names)
            return
        for layer in self._layers():
            layer.set_adapter([_EARLIER, *names])
            for side in (layer.lora_A, layer.lora_B):
                if _EARLIER in side:
                    side[_EARLIER].requires_grad_(False)

    def _put(self, earlier: Adapter) -> None:
        """Put the adapter of earlier stages on its layers, at its strength."""
        config = LoraConfig(
            r=earlier.rank, lora_alpha=earlier.alpha,  # type: ignore[arg-type]
            target_modules=list(earlier.modules),
        )  # fmt: skip
        inject_adapter_in_model(config, self.model.denoiser, adapter_name=_EARLIER)
        for name in earlier.modules:
            layer: Any = self.model.denoiser.get_submodule(name)
            wide = torch.promote_types(layer.get_base_layer().weight.dtype, torch.float32)
            for side, tensor in ((layer.lora_A, A), (layer.lora_B, B)):
                weight = side[_EARLIER].weight
                weight.data = earlier.tensors[name + tensor].to(weight.device, wide)

    def _add(
        self, name: str, rank: int, alpha: float, seed: int, *, reuse: bool = False
    ) -> dict[str, Tensor]:
        if not reuse:
            config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(self._modules))  # type: ignore[arg-type]
            # PEFT follows the base layer's device, except for that of tensors without memory.
            with torch.device(self.model.device), warnings.catch_warnings():
                # a second adapter is what we mean
                warnings.filterwarnings("ignore", "Already found a `peft_config`")
                inject_adapter_in_model(config, self.model.denoiser, adapter_name=name)
        parameters: dict[str, Tensor] = {}
        random = generator(seed, "lora", name)
        for module, layer in self.modules.items():
            if self._precision != "fp32":
                layer._cast_input_dtype = _cast_input
            a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
            fan_in = a[0].numel()
            wide = torch.promote_types(layer.get_base_layer().weight.dtype, torch.float32)
            a.data = a.data.to(wide)
            b.data = nn.init.zeros_(b.data.to(wide))
            a.data.copy_(torch.randn(a.shape, generator=random) / fan_in**0.5)
            parameters[f"{module}.lora_A.weight"] = a
            parameters[f"{module}.lora_B.weight"] = b
        return parameters
