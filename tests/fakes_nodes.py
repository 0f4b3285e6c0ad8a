"""Harden Model without ComfyUI: the fake host, and a bridge that hands out a tiny model."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from typing import Any

from fakes_comfy import install, load_nodes
from fakes_data import tiny_family

from resalign.backend.families.base.sources import Source
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.fine_tune import FineTuneConfig
from resalign.backend.plan.images import ImageSet

CONCEPTS = (Concept("weapons", ("a pistol",)),)


class Bench:
    """The loaded node, the host, and how often a network was built."""

    def __init__(self, monkeypatch: Any, base: Any) -> None:
        self.host = install(monkeypatch, base)
        self.base = base
        self.harden = load_nodes(monkeypatch, "harden")
        self.live = importlib.import_module("resalign.nodes.live")
        self.types = importlib.import_module("resalign.nodes.types")
        bridge = importlib.import_module("resalign.nodes.bridge")
        self.built = 0
        self.put_on: list[Any] = []
        names = {name: f"ldm.{name}" for name, _ in tiny_family().denoiser.named_modules()}
        places = {f"{n}.{leaf}": Source(f"{own}.{leaf}") for n, own in names.items()
                  for leaf in ("weight", "bias")}  # fmt: skip

        @contextmanager
        def to_backend(*parts: Any, source: Any = None, denoiser_dtype: Any = None):
            import torch

            self.built += 1
            self.denoiser_dtype = denoiser_dtype
            with torch.inference_mode(False), torch.enable_grad():
                yield tiny_family()

        def with_adapter(model: Any, lora: Any) -> str:
            self.put_on.append(lora)
            return f"{model} hardened"

        for name, value in {
            "to_backend": to_backend, "fingerprint": lambda *parts: "weights",
            "key_map": lambda model: names, "places_of": lambda model: places,
            "family_of": lambda model: tiny_family().family,
            "with_adapter": with_adapter,
            "source_of": lambda model: None, "is_patched": lambda model: False,
            "weights_of": lambda model, clip: {"model": "weights", "clip": "texts"},
            "mark": lambda model, lora, weights: None, "check_model": lambda model: None,
            "check_parts": lambda clip, vae: None,
        }.items():  # fmt: skip
            monkeypatch.setattr(bridge, name, value)

    def run(
        self, *, steps: int = 4, preview_every: int = 0, precision: str = "fp32",
        simulate: str = "shared", **options: Any,
    ) -> Any:  # fmt: skip
        """Outputs of the node, executed as ComfyUI does: under inference mode."""
        import torch

        settings = self.types.SettingsValue(
            "quick",
            {"outer_steps": steps, "warm_up_steps": 1, "forget_batch": 2, "retain_batch": 2,
             "precision": precision, "simulate": simulate,
             "forget_set": ImageSet(prompts=("a pistol",), images=2, sampling_steps=2),
             "retain_set": ImageSet(prompts=("a cat",), images=2, sampling_steps=2)},
        )  # fmt: skip
        users = self.types.FineTuningValue((FineTuneConfig(name="user", steps=3),))
        with torch.inference_mode():
            return self.harden.HardenModel.execute(
                "MODEL", "CLIP", "VAE", CONCEPTS, settings, users, preview_every=preview_every,
                **options,
            )  # fmt: skip

    @property
    def state(self) -> dict[str, Any]:
        return self.live.STATES["", "1"]
