"""Shared by the tests of users' LoRA files: the tensors of one, and comparing models."""

from pathlib import Path

import torch
from fakes_checkpoint import write_tiny_checkpoint
from safetensors.torch import save_file
from torch import Tensor, nn

from resalign.backend.checkpoint.load import load_checkpoint
from resalign.backend.plan.attack import LoraFile
from resalign.backend.probe.loras import with_loras

CONVOLUTIONS = ("conv1", "conv_shortcut", "downsamplers.0.conv")
TARGETS = ["to_q", "to_k", "to_out.0", "proj_in", "ff.net.0.proj", "time_emb_proj", *CONVOLUTIONS]
Q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FLAT_Q = "lora_unet_" + Q.replace(".", "_")
CONV = "down_blocks.0.resnets.0.conv1"
FLAT_CONV = "lora_unet_" + CONV.replace(".", "_")


def build_models(folder: Path):
    """Loaded tiny checkpoints by family; no test leaves one changed."""
    found = {}

    def model(family: str):
        if family not in found:
            path = folder / f"{family}.safetensors"
            found[family] = load_checkpoint(write_tiny_checkpoint(path, family, torch.float32))
        return found[family]

    return model


def random(*shape: int, seed: int = 0, size: float = 0.3) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * size


def state(model) -> dict[str, Tensor]:
    """All weights of denoiser and text encoders, copied."""
    networks = {"unet": model.denoiser}
    networks |= {f"text_encoder_{i}": net for i, net in enumerate(model.text_encoders)}
    return {
        f"{component}.{name}": tensor.detach().clone()
        for component, net in networks.items()
        for name, tensor in net.named_parameters()
    }


def bits_equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(
        torch.equal(one[name].view(torch.uint8), two[name].view(torch.uint8)) for name in one
    )


def with_files(model, *files, **strengths) -> dict[str, Tensor]:
    """Weights inside the context, after checking that outside they are as before."""
    before = state(model)
    loras = [f if isinstance(f, LoraFile) else LoraFile(path=str(f), **strengths) for f in files]
    with with_loras(model, loras) as changed:
        inside = state(changed)
    assert bits_equal(before, state(model))
    return inside


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], before: dict[str, Tensor]):
    """All weights agree to float32's rounding, and some did change, far above it."""
    changed = 0
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-5, atol=2e-6, msg=name)
        changed += bool((expected[name] - before[name]).abs().max() > 1e-3)
    assert changed > 0


def write(path: Path, tensors: dict[str, Tensor], **metadata: str) -> Path:
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata=metadata or None)
    return path


def plain(seed: int = 0, rank: int = 4, size: float = 0.3) -> dict[str, Tensor]:
    """A LoRA on one attention layer of the tiny SD 1.x."""
    return {
        f"{FLAT_Q}.lora_down.weight": random(rank, 32, seed=seed, size=size),
        f"{FLAT_Q}.lora_up.weight": random(32, rank, seed=seed + 1, size=size),
    }


# --- against PEFT ------------------------------------------------------------------------------


def kohya_file(model, path: Path) -> Path:
    """A LoRA on denoiser and text encoders, linear and convolution, in kohya's names."""
    tensors: dict[str, Tensor] = {}
    texts = ("lora_te_text_model_",) if len(model.text_encoders) == 1 else (
        "lora_te1_text_model_", "lora_te2_text_model_"
    )  # fmt: skip
    networks = [("lora_unet_", model.denoiser), *zip(texts, model.text_encoders, strict=True)]
    kinds = ("attn2.to_k", "attn1.to_out.0", "ff.net.2", "proj_out", *CONVOLUTIONS, "q_proj", "fc1")
    for prefix, network in networks:
        for i, (name, module) in enumerate(network.named_modules()):
            if not name.endswith(kinds) or not isinstance(module, (nn.Linear, nn.Conv2d)):
                continue
            shape, key = (
                module.weight.shape,
                prefix + name.removeprefix("text_model.").replace(".", "_"),
            )
            one = [1] * (len(shape) - 2)
            tensors[f"{key}.lora_down.weight"] = random(3, *shape[1:], seed=i)
            tensors[f"{key}.lora_up.weight"] = random(shape[0], 3, *one, seed=i + 1000)
            tensors[f"{key}.alpha"] = torch.tensor(1.5)
    return write(path, tensors)
