"""An adapter as a LoRA file: written so that every module loads elsewhere, and read back.

`kohya` is `lora_unet_<module with _>.lora_down.weight`, `.lora_up.weight`, `.alpha`: the form that
ComfyUI, A1111, Forge and diffusers all read completely, convolutions and strength included.
Which module names it uses depends on the family, as it does in the field:

    SD 1.x, 2.x   diffusers' (`down_blocks_0_...`): what kohya's trainer writes; diffusers' SD
                  pipeline reads no other.
    SDXL          SGM's (`input_blocks_4_1_...`): what kohya's trainer writes. With diffusers'
                  names A1111 drops `up_blocks.0.upsamplers.0.conv`, since its name conversion
                  assumes that the first up block has no attention, as in SD 1.x
                  (`convert_diffusers_name_to_compvis` in its extensions-builtin/Lora/networks.py).

`diffusers` is PEFT's `<denoiser>.<module>.lora_A.weight`, `.lora_B.weight`; the denoiser's name is
`unet` in Stable Diffusion. A family may name modules as its single files do, where hosts read
nothing else (`LoraNames.dotted`). The form has no place for alpha that all versions
read (diffusers 0.31 takes alpha = rank, later ones read a JSON in the metadata),
so alpha / rank is multiplied into B. ComfyUI drops most attention tensors of this form with only
a line in its log for Stable Diffusion: give its users the kohya file. Of transformers it reads this
form completely, and not kohya's: a family says which form is written (`LoraNames.form`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import CheckpointError, ExportError
from ..families import Family, all_families, find_family
from ..families.registry import bases_of_lora
from .dense import AnyAdapter, DenseAdapter
from .lora import A, Adapter, B
from .lora_file import sort_names, strengths

LoraFormat = Literal["kohya", "diffusers"]
_DOWN, _UP, _ALPHA = ".lora_down.weight", ".lora_up.weight", ".alpha"


def save_lora(
    adapter: AnyAdapter,
    path: str | Path,
    *,
    format: LoraFormat | Literal[""] = "",  # noqa: A002
    dtype: torch.dtype = torch.float32,
    family: Family | str = "",
    metadata: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write the adapter as a LoRA; the same adapter gives the same bytes. Returns the path.

    format: empty means the one that hosts of the family read completely (`LoraNames.form`).
    family: of the model, or its name; empty means guessed from the modules and their widths.
    metadata: added to the file's own (strings).
    """
    path = Path(path)
    if isinstance(adapter, DenseAdapter):
        raise ExportError(
            "this run changed all weights, which a LoRA cannot hold exactly: export the "
            "checkpoint; `resalign lora RUN --rank 16` writes an approximation and prints its error"
        )
    if path.suffix != ".safetensors":
        raise ExportError(f"{path.name}: a LoRA is written as .safetensors; change the ending")
    if path.exists() and not overwrite:
        raise ExportError(f"{path} exists: choose another name, or allow overwriting")
    if not path.parent.is_dir():
        raise ExportError(f"{path.parent} is not a folder: create it first")
    if not isinstance(family, Family):
        family = find_family(family) if family else guess_family(adapter)
    format = lora_format(family, format)  # noqa: A001
    tensors = _kohya(adapter, family) if format == "kohya" else _peft(adapter, family)
    tensors = {name: _cast(name, tensor, dtype) for name, tensor in tensors.items()}
    about = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": f"{family.lora.architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": path.stem,
        # A1111 hides a LoRA from models of another family, which it reads off these
        "ss_base_model_version": family.lora.base_version,
        "ss_v2": str(family.lora.version_2),
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(adapter.rank),
        "ss_network_alpha": f"{adapter.alpha if format == 'kohya' else adapter.rank:g}",
    }
    _write(path, with_metadata(to_bytes(tensors), {**about, **(metadata or {})}))
    return path


def lora_format(family: Family, asked: str) -> LoraFormat:
    """Return the form that a LoRA is written in; raise where hosts would not read it completely."""
    if asked == "kohya" and family.lora.form != "kohya":
        raise ExportError(
            f"a LoRA for {family.title} in kohya's form is not read completely by ComfyUI and "
            "diffusers: write it in the form `diffusers`"
        )
    return "diffusers" if "diffusers" in (asked, family.lora.form) else "kohya"


def load_lora(path: str | Path) -> Adapter:
    """Read a LoRA on the U-Net from either form; any other tensor is an error that names it.

    Where modules differ in rank or alpha, each strength is multiplied into its B and alpha is
    the largest rank.
    """
    path = Path(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = set(file.keys())
            _refuse(path, names)
            return _uniform(path, _pairs(path, file, names, metadata))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: check the path") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path.name} is not a readable .safetensors LoRA: {error}") from None


def guess_family(adapter: Adapter) -> Family:
    """Return the family that an adapter's modules and widths belong to; without any evidence the
    first one that is known."""
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter.tensors.items()}
    found, _ = bases_of_lora(shapes, {})
    return (found or all_families())[0]


def with_metadata(file: bytes, metadata: Mapping[str, str]) -> bytes:
    """Serialise a safetensors file with sorted metadata (the library's own order is random)."""
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header.pop("__metadata__", None)
    text = json.dumps({"__metadata__": dict(sorted(metadata.items())), **header}).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + file[8 + length :]


def _kohya(adapter: Adapter, family: Family) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in adapter.modules:
        name = family.lora.key_prefix + family.lora.key(module)
        tensors[name + _DOWN] = adapter.tensors[module + A]
        tensors[name + _UP] = adapter.tensors[module + B]
        tensors[name + _ALPHA] = torch.tensor(float(adapter.alpha))
    return tensors


def _peft(adapter: Adapter, family: Family) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for module in adapter.modules:
        name = family.lora.dotted(module)
        tensors[name + A] = adapter.tensors[module + A]
        tensors[name + B] = adapter.tensors[module + B] * adapter.scale
    return tensors


def _cast(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    cast = tensor.detach().to("cpu", dtype).contiguous()
    if not torch.isfinite(cast.float()).all():
        raise ExportError(
            f"{name} is not finite in {str(dtype).removeprefix('torch.')}: "
            + ("write float32" if torch.isfinite(tensor).all() else "the adapter has diverged")
        )
    return cast


def _write(path: Path, content: bytes) -> None:
    partial = path.with_name(path.name + ".resalign-partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ExportError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        partial.unlink(missing_ok=True)


# --- reading -----------------------------------------------------------------------------------

Pair = tuple[Tensor, Tensor, float]  # A, B, alpha


def _refuse(path: Path, names: set[str]) -> None:
    kinds = {
        "LoHa": ("hada_",), "LoKr": ("lokr_",), "DoRA": ("dora_scale", "lora_magnitude_vector"),
        "LoCon with a middle tensor": ("lora_mid",), "OFT": ("oft_",), "GLoRA": (".a1.weight",),
        "text-encoder LoRA": ("lora_te", "text_encoder"),
    }  # fmt: skip
    for kind, marks in kinds.items():
        found = next((name for name in sorted(names) if any(m in name for m in marks)), None)
        if found:
            raise CheckpointError(
                f"{path.name} holds {found!r}, of a {kind}; only a plain LoRA on the U-Net is "
                "read: give the LoRA that ResAlign wrote"
            )


def _pairs(path: Path, file, names: set[str], metadata: dict[str, str]) -> dict[str, Pair]:
    """Return each module's pair; the file is sorted by the rules of `lora_file`."""
    groups, rest = sort_names(names)
    _refuse_rest(path, rest)
    settings = strengths(path.name, metadata, None)
    pairs: dict[str, Pair] = {}
    for stem, parts in groups.items():
        module = _module(stem)
        if module is None:
            name = next(iter(parts.values()))
            raise CheckpointError(f"{path.name}: {name!r} is not a module of a known U-Net")
        if not {"down", "up"} <= parts.keys():
            raise CheckpointError(
                f"{path.name}: {', '.join(map(repr, parts.values()))} lacks the rest of its LoRA "
                "beside it: the file is damaged; fetch it again"
            )
        _refuse_rest(path, [n for part, n in parts.items() if part not in ("down", "up", "alpha")])
        if module in pairs:
            raise CheckpointError(f"{path.name} changes {module} twice, under two names")
        a, b = (file.get_tensor(parts[side]).float() for side in ("down", "up"))
        rank = a.shape[0] if a.dim() else 0
        alpha = settings.scale(stem, rank, None) * rank
        if "alpha" in parts:
            stored = file.get_tensor(parts["alpha"])
            alpha = float(stored) if stored.numel() == 1 else float("nan")
        pairs[module] = (a, b, alpha)
    return pairs


def _module(stem: str) -> str | None:
    """Return the denoiser's module that a stem names, in any family's spelling."""
    for family in all_families():
        if stem.startswith(family.lora.key_prefix):
            module = family.lora.module(stem.removeprefix(family.lora.key_prefix))
            if module is not None:
                return module
        if (module := family.lora.of_dotted(stem)) is not None:
            return module
    return None


def _refuse_rest(path: Path, left: list[str]) -> None:
    if left:
        raise CheckpointError(
            f"{path.name} holds {min(left)!r} and {len(left) - 1} more tensors that are not a LoRA "
            "on the U-Net: give the LoRA that ResAlign wrote"
        )


def _uniform(path: Path, pairs: dict[str, Pair]) -> Adapter:
    if not pairs:
        raise CheckpointError(f"{path.name} holds no LoRA tensors")
    for module, (a, b, alpha) in pairs.items():
        good = a.dim() in (2, 4) and b.dim() == a.dim() and a.shape[0] == b.shape[1] > 0
        if not good or (b.dim() == 4 and b.shape[2:] != (1, 1)):
            raise CheckpointError(f"{path.name}: shapes of {module} do not fit together")
        if not (torch.isfinite(a).all() and torch.isfinite(b).all() and alpha == alpha):
            raise CheckpointError(f"{path.name}: {module} is not finite")
    shapes = {(len(a), alpha) for a, _, alpha in pairs.values()}
    (rank, alpha), uniform = max(shapes), len(shapes) == 1
    tensors: dict[str, Tensor] = {}
    for module, (a, b, own_alpha) in pairs.items():
        tensors[module + A] = a
        tensors[module + B] = b if uniform else b * (own_alpha / len(a))
    return Adapter(tensors, rank, alpha if uniform else float(rank))
