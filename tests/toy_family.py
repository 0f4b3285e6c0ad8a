"""A family that only the tests know: a tiny flow-matching transformer, registered by one line.

It proves that nothing outside `backend/families/` depends on which families exist. Its single file
keeps q, k and v of each block as one matrix; its latents have 16 channels, a shift, and a side a
fourth of the image's; its text comes with a mask.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from toy_network import ToyTextEncoder, ToyTokenizer, ToyTransformer, toy_vae

from resalign.backend.families import Family, register, registry
from resalign.backend.families.base.autoencoder import AutoencoderLatents
from resalign.backend.families.base.conditioning import Conditioning
from resalign.backend.families.base.family import LoraTensors, MetadataNames
from resalign.backend.families.base.host import HostNames
from resalign.backend.families.base.process import FlowProcess
from resalign.backend.families.base.shapes import Shapes
from resalign.backend.families.base.sources import Source
from resalign.backend.families.base.stored import Checkpoint, Description, StoredFile, StoredFolder

PREFIXES = {"transformer": "denoiser.", "text_encoder": "text.", "vae": "vae."}
FUSED = "denoiser.blocks.0.attention.qkv.weight"
WIDTH, SIDE = 32, 32
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": {"in_channels": 16, "width": WIDTH, "heads": 2, "depth": 2, "text_width": 24,
                    "sample_size": 8},
    "text_encoder": {"vocabulary": 128, "width": 24},
    "vae": {"latent_channels": 16, "block_out_channels": [8, 8, 8], "scaling_factor": 0.4,
            "shift_factor": 0.1},
    "scheduler": {"shift": 3.0},
}  # fmt: skip
_PROJECTION = re.compile(r"(?<=\.attention)\.to_([qkv])\.(weight|bias)$")


class Recognition:
    def claims_file(self, file: StoredFile) -> bool:
        return FUSED in file.tensors

    def describe_file(self, file: StoredFile) -> Description:
        configs = {name: dict(config) for name, config in CONFIGS.items()}
        return Description(configs=configs, prefixes=PREFIXES, prediction="flow", resolution=SIDE)

    def claims_folder(self, folder: StoredFolder) -> bool:
        return False

    def describe_folder(self, folder: StoredFolder) -> Description:
        raise NotImplementedError

    def cautions(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        return ()

    def claims_denoiser(self, shapes: Shapes) -> bool:
        return FUSED.removeprefix("denoiser.") in shapes

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        return dict(CONFIGS["transformer"])

    def claims_lora(self, file: LoraTensors) -> int:
        return 4 if any("blocks_0_attention_to_" in name for name in file.shapes) else 0


class Networks:
    def build(self, component: str, config: Mapping[str, Any]) -> Any:
        if component == "transformer":
            return ToyTransformer(**config)
        if component == "text_encoder":
            return ToyTextEncoder(**config)
        return toy_vae()

    def fill_buffers(self, network: Any, device: torch.device) -> None:
        pass

    def dtype(self, component: str, wanted: torch.dtype) -> torch.dtype:
        return wanted

    def tokenizers(self, places: Sequence[Path] = ()) -> tuple[Any, ...]:
        return (ToyTokenizer(),)

    def text_encoder(self, who: str, component: str, tensors: Any, **how: Any) -> Any:
        raise NotImplementedError


class Layout:
    """Every tensor under its component's prefix; q, k and v one below the other."""

    def sources(self, component: str, checkpoint: Checkpoint) -> dict[str, Source]:
        with torch.device("meta"):
            network = Networks().build(component, CONFIGS[component])
        prefix = PREFIXES[component]
        return {name: _source(prefix + name) for name in network.state_dict()}

    def canonical(self, component: str, name: str) -> str:
        return name

    def stored(self, name: str) -> bool:
        return True

    def harmless(self, checkpoint: Checkpoint, name: str) -> bool:
        return False

    def moving_averages(self, checkpoint: Checkpoint) -> dict[str, str]:
        return {}

    def denoiser_sources(self, config: Mapping[str, Any]) -> dict[str, Source]:
        with torch.device("meta"):
            return {name: _source(name) for name in ToyTransformer(**config).state_dict()}


def _source(name: str) -> Source:
    found = _PROJECTION.search(name)
    if not found:
        return Source(name)
    part = "qkv".index(found[1])
    fused = name[: found.start()] + ".qkv." + found[2]
    return Source(fused, "whole", (part * WIDTH, (part + 1) * WIDTH))


@dataclass(frozen=True)
class Texts:
    tokens: int = ToyTokenizer.longest
    embedding: str = "context"

    def tokenise(self, model: Any, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        return model.tokenizers[0](list(prompts))

    def encode(self, model: Any, tokens: Sequence[Tensor]) -> Conditioning:
        ids, mask = (part.to(model.device) for part in tokens)
        context = model.text_encoders[0](ids, mask)
        return Conditioning({"context": context, "mask": mask.to(context)})

    def of_samples(self, samples: Any, device: Any = "cpu") -> Conditioning:
        return Conditioning()

    def blank(self, config: Mapping[str, Any]) -> Conditioning:
        context = torch.zeros(1, self.tokens, config["text_width"])
        return Conditioning({"context": context, "mask": torch.ones(1, self.tokens)})


@dataclass(frozen=True)
class LoraNames:
    form: str = "kohya"
    base_version: str = "toy"
    version_2: bool = False
    architecture: str = "toy"
    key_prefix: str = "lora_unet_"

    def key(self, module: str) -> str:
        return module.replace(".", "_")

    def module(self, key: str) -> str | None:
        with torch.device("meta"):
            modules = dict(ToyTransformer(**CONFIGS["transformer"]).named_modules())
        return next((name for name in modules if self.key(name) == key), None)

    def dotted(self, module: str) -> str:
        return f"transformer.{module}"

    def of_dotted(self, key: str) -> str | None:
        return key.removeprefix("transformer.") if key.startswith("transformer.") else None

    def stems(
        self, denoiser: Mapping[str, str], texts: Mapping[str, Iterable[str]]
    ) -> dict[str, tuple[str, str]]:
        return {self.key_prefix + self.key(name): ("transformer", name) for name in denoiser}


def _denoise(denoiser: Any, latents: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
    return denoiser(latents, times, conditioning["context"], conditioning["mask"])


TOY = Family(
    name="toy",
    title="Toy transformer",
    licence="made up by the tests",
    denoiser="transformer",
    text_encoders=("text_encoder",),
    vae="vae",
    targets={
        "attention": r"\.attention\.to_(q|k|v|out)$",
        "cross_attention_kv": r"\.attention\.to_(k|v)$",
        "feed_forward": r"\.feed_forward\.[02]$",
        "convolution": r"$^",
    },
    text_input=r"\.embed_text$",
    config=lambda component: dict(CONFIGS[component]),
    denoise=_denoise,
    process=lambda file, config: FlowProcess(shift=config["shift"]),
    native_side=lambda prediction: SIDE,
    recognition=Recognition(),
    networks=Networks(),
    tensors=Layout(),
    texts=Texts(),
    latents=AutoencoderLatents(CONFIGS["vae"]),
    lora=LoraNames(),
    host=HostNames(("toy",), -1),
    metadata=MetadataNames(lambda prediction: "toy"),
)


@pytest.fixture(scope="module", autouse=True)
def toy_is_registered():
    """Import this into a test module that uses the family; other modules do not see it."""
    register(TOY)
    yield
    registry._KNOWN.pop(TOY.name)


def write_toy_checkpoint(path: Path, seed: int = 0, *, marker: bool = False) -> Path:
    """Write a random checkpoint in one file, its projections fused.

    marker: adds a line of metadata, so that the header is another one.
    """
    torch.manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for component, prefix in PREFIXES.items():
        network = Networks().build(component, CONFIGS[component])
        state = {prefix + name: tensor for name, tensor in network.state_dict().items()}
        parts: dict[str, list[Tensor]] = {}
        for name, tensor in state.items():
            parts.setdefault(_source(name).name, []).append(tensor)
        tensors |= {name: torch.cat(found).contiguous() for name, found in parts.items()}
    save_file(tensors, path, {"note": "marked"} if marker else None)
    return path
