"""Stage `save` of the transformer test-bed: one half-precision file as ComfyUI saves klein.

The tensors' names and places are those that the package reads, taken from its own table in reverse
and checked by loading the file. What shapes do not tell is in the metadata, `resalign.config`.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from datetime import date
from pathlib import Path

import torch
from diffusers import AutoencoderKLFlux2
from dit_shared import DIT, FILE, GROUPS, TOKENS
from safetensors.torch import load_file, save_file
from torch import Tensor
from world import art

from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.families.base.sources import Source, swap_halves
from resalign.backend.families.flux2_klein.config import DENOISER, TEXT, VAE
from resalign.backend.families.flux2_klein.names import denoiser_sources
from resalign.backend.families.unet.vae_names import vae_sources

PREFIXES = {
    DENOISER: "model.diffusion_model.",
    TEXT: "text_encoders.qwen3_4b.transformer.model.",
    VAE: "vae.",
}
OVERRIDES = {
    VAE: {"norm_num_groups": GROUPS, "sample_size": art.SIZE},
    TEXT: {"max_position_embeddings": TOKENS},
}


def to_file_names(state: dict[str, Tensor], sources: dict[str, Source]) -> dict[str, Tensor]:
    """Tensors under diffusers' names to those of the file: fused rows, swapped halves."""
    rows: dict[str, dict[int, Tensor]] = defaultdict(dict)
    for name, source in sources.items():
        tensor = state[name]
        if source.part == "swapped":
            tensor = swap_halves(tensor)
        if source.part == "matrix":
            tensor = tensor[..., None, None]
        rows[source.name][source.rows[0] if source.rows else 0] = tensor
    return {name: torch.cat([parts[i] for i in sorted(parts)]) for name, parts in rows.items()}


def export(work: Path, denoiser: Path, path: Path) -> int:
    """Write the single file `path` and its tokenizer beside it; return the bytes of both."""
    from diffusers import Flux2Transformer2DModel
    from dit_denoiser import build
    from transformers import Qwen3Model

    vae = AutoencoderKLFlux2.from_pretrained(work / "vae")
    text = Qwen3Model.from_pretrained(work / "text").state_dict()
    network: Flux2Transformer2DModel = build()
    network.load_state_dict(load_file(denoiser))
    tensors = to_file_names(
        network.state_dict(), denoiser_sources(dict(network.config), PREFIXES[DENOISER])
    )
    tensors |= to_file_names(vae.state_dict(), vae_sources(dict(vae.config), PREFIXES[VAE]))
    for name in ("bn.running_mean", "bn.running_var"):
        tensors[PREFIXES[VAE] + name] = vae.state_dict()[name]
    tensors |= {PREFIXES[TEXT] + name: tensor for name, tensor in text.items()}
    half = {name: tensor.half().contiguous().clone() for name, tensor in tensors.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(half, path, metadata=_metadata())
    path.chmod(0o644)
    tokenizer = path.parent / "tokenizer"
    shutil.rmtree(tokenizer, ignore_errors=True)
    shutil.copytree(work / "tokenizer", tokenizer)
    _check(path, network.state_dict(), vae.state_dict(), text)
    return path.stat().st_size + sum(file.stat().st_size for file in tokenizer.iterdir())


def ship(work: Path, assets: Path) -> int:
    """Export the finished denoiser to the demo's assets."""
    return export(work, work / "denoiser.safetensors", assets / DIT / FILE)


def _metadata() -> dict[str, str]:
    return {
        "format": "pt",
        "resalign.config": json.dumps(OVERRIDES),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "flux-2-klein-4b",
        "modelspec.implementation": "https://github.com/black-forest-labs/flux2",
        "modelspec.title": "ResAlign demo: emoji, transformer (base)",
        "modelspec.author": "ResAlign hardening contributors",
        "modelspec.description": (
            "A tiny flow-matching transformer for trying out unlearning on a CPU: 64 pixels, "
            "sixteen benign things and four weapons in the style of four emoji sets."
        ),
        "modelspec.date": date.today().isoformat(),
        "modelspec.resolution": "64x64",
        "modelspec.license": (
            "Apache-2.0. Trained on Noto Emoji (Google, Apache-2.0), Twemoji (Twitter, CC BY "
            "4.0), Emoji One 2.3 (CC BY 4.0); the autoencoder also on FxEmojis (Mozilla, "
            "Apache-2.0), Fluent Emoji (Microsoft, MIT). Keep these attributions."
        ),
    }


def _check(path: Path, *written: dict[str, Tensor]) -> None:
    """Load the file through the package; not one bit may be lost beyond the half precision."""
    model = load_checkpoint(path, dtype=torch.float32)
    loaded = (model.denoiser, model.vae, model.text_encoders[0])
    for network, state in zip(loaded, written, strict=True):
        found = network.state_dict()
        unequal = [
            name
            for name, tensor in state.items()
            if not name.endswith("num_batches_tracked")
            and not torch.equal(found[name].float(), tensor.half().float())
        ]
        if unequal:
            raise RuntimeError(f"the package reads {unequal} otherwise")
