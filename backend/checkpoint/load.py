"""Loads a checkpoint into memory, strictly: every tensor is accounted for before any is read.

The networks are built without storage (meta device) and filled tensor by tensor from the file, so
there is never more than one copy of the weights plus one tensor. Configs and tokenizers are those
that ship with the package, or those of the diffusers folder; nothing is fetched.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CheckpointError
from ..families import Family
from ..families.base.process import NoiseProcess
from ..families.base.sources import Source, part_shape
from ..model.model import Model
from .detect import detect
from .export.copies import moving_averages
from .header import TensorEntry
from .info import CheckpointInfo
from .tensors import FLOATS, TensorFile

_SHOWN = 4  # names of missing or unexpected tensors in a message
_HALVES = {"F16": torch.float16, "BF16": torch.bfloat16}


def load_checkpoint(
    path: str | Path | CheckpointInfo,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    denoiser_dtype: torch.dtype | None = None,
    linear_device: torch.device | str | None = None,
    spare_encoders: bool = False,
    prediction: str = "",
    parts: Mapping[str, str] | None = None,
) -> Model:
    """Load a checkpoint for inference and hardening: eval mode, no weight requires a gradient.

    Args:
        path: a single `.safetensors` file or a diffusers folder; or one that `detect` has
            recognised.
        device: where the weights go, one by one.
        dtype: of the weights. None means float32 on the CPU; elsewhere each network keeps its
            storage type if that is float16 or bfloat16 (fp8 becomes float16), else float32. A
            network that overflows in float16, as SDXL's VAE does, is kept in float32 instead.
        denoiser_dtype: of the denoiser only; None means `dtype`.
        linear_device: where the denoiser's linear layers go instead, for `harden` to quantise
            them onto the device one by one; until then the denoiser cannot be used.
        spare_encoders: hardening may drop text encoders and VAE when it has encoded its data.
        prediction: `epsilon`, `v` or `v-zsnr` decides what a single file predicts; empty follows
            the file.
        parts: files of components that a single file does not hold, by component, as of `detect`.
    """
    info, schedule, networks = _prepared(path, prediction, parts)
    family, device = info.family, torch.device(device)
    tokenizers = family.networks.tokenizers(info.places)  # before weights, which take minutes
    for name, network in networks.items():
        denoiser = name == family.denoiser
        asked = denoiser_dtype or dtype if denoiser else dtype
        apart = linear_device if denoiser else None
        _fill(info, name, network, device, _dtype_of(info, name, device, asked), apart)
    return Model(
        family=family,
        denoiser=networks[family.denoiser],
        text_encoders=tuple(networks[name] for name in family.text_encoders),
        tokenizers=tokenizers,
        vae=networks[family.vae],  # type: ignore[arg-type]
        process=schedule.to(device),
        resolution=info.resolution,
        source=info.path,
        spare_encoders=spare_encoders,
        latent_space=family.latents.space(info.configs[family.vae]),
        decided=info.decided,
    )


def check_loadable(path: str | Path | CheckpointInfo) -> CheckpointInfo:
    """Recognise a checkpoint and raise what loading it would, without reading a weight."""
    info = _prepared(path)[0]
    info.family.networks.tokenizers(info.places)
    return info


def _prepared(
    path: str | Path | CheckpointInfo,
    prediction: str = "",
    parts: Mapping[str, str] | None = None,
) -> tuple[CheckpointInfo, NoiseProcess, dict[str, nn.Module]]:
    """Recognise a checkpoint, and build its networks without storage: each tensor has its place."""
    info = detect(path, prediction=prediction, parts=parts)
    schedule = load_schedule(info)
    networks = {name: build_network(info, name) for name in info.components}
    check_tensors(info, networks)
    return info, schedule, networks


def load_schedule(info: CheckpointInfo) -> NoiseProcess:
    """Build the noise process, without loading any network."""
    return info.family.process(info.path.name, info.configs["scheduler"])


def build_network(info: CheckpointInfo, component: str) -> nn.Module:
    """Build one network of the checkpoint without storage: all tensors on the meta device."""
    return network_from(info.path.name, info.family, component, info.configs[component])


def network_from(who: str, family: Family, component: str, config: Mapping[str, Any]) -> nn.Module:
    """Build the network of a config without storage; `who` names it in errors."""
    try:
        with torch.device("meta"):
            return family.networks.build(component, config)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{who}: its {component} cannot be built from its config ({error}); fetch "
            "it again, or correct its config"
        ) from error


def check_tensors(info: CheckpointInfo, networks: dict[str, nn.Module]) -> None:
    """Raise unless the file holds exactly the tensors of the networks, harmless extras apart."""
    stored = {
        (file, name): entry
        for file, header in info.headers.items()
        for name, entry in header.tensors.items()
    }
    if info.layout != "diffusers":
        moving_averages(info)  # a second denoiser that an export could not harden is refused here
    layout, problems = info.family.tensors, _Problems(info)
    used: dict[tuple[Path, str], int] = {}  # rows of each tensor that the networks take
    for component, network in networks.items():
        sources, home = info.sources(component), info.files[component][0]
        for name, tensor in network.state_dict().items():
            if not layout.stored(name):
                continue
            source = sources.get(layout.canonical(component, name))
            places = [(file, source.name) for file in info.files[component]] if source else []
            place = next((place for place in places if place in stored), None)
            if source is None or place is None:
                problems.add(home, "missing", source.name if source else f"{component}: {name}")
                continue
            entry = stored[place]
            used[place] = used.get(place, 0) + _rows(source, entry)
            found = part_shape(entry.shape, source)
            if found != tuple(tensor.shape):
                wrong = f"{source.name} is {list(found)}, not {list(tensor.shape)}"
                problems.add(place[0], "unfit", wrong)
            elif entry.dtype not in FLOATS:
                wrong = f"{source.name} is stored as {entry.dtype}, not as floating point"
                problems.add(place[0], "unfit", wrong)
    for place, rows in used.items():
        if stored[place].shape and rows < stored[place].shape[0]:
            wrong = f"{place[1]} has {stored[place].shape[0]} rows, not {rows}"
            problems.add(place[0], "unfit", wrong)
    for file, name in stored:
        if (file, name) not in used and not layout.harmless(info, name):
            problems.add(file, "unexpected", name)
    problems.require_none()


class _Problems:
    """Tensors that are missing, unexpected or unfit, by the file that they lie in or belong in."""

    def __init__(self, info: CheckpointInfo) -> None:
        self._info = info
        self._found: dict[str, dict[str, dict[str, None]]] = {}

    def add(self, file: Path, what: str, text: str) -> None:
        """Note one, once: several modules may lie in one tensor."""
        self._found.setdefault(self._who(file), {}).setdefault(what, {})[text] = None

    def require_none(self) -> None:
        if self._found:
            sentences = [f"{who}: {_listed(found)}" for who, found in self._found.items()]
            raise CheckpointError(
                ". ".join(sentences) + ". It is incomplete or of another kind; use the original"
            )

    def _who(self, file: Path) -> str:
        """Begin the sentence on a file; one that holds a component alone may be a wrong choice."""
        info = self._info
        components = [name for name, files in info.files.items() if files[0] == file]
        if info.layout == "ldm" and file != info.path:
            return (
                f"{file.name} was taken for the {' and '.join(components)} of {info.path.name}, "
                "but its tensors are not exactly those"
            )
        return f"{info.path.name} looks like {info.title}, but its tensors are not exactly those"


def _listed(found: Mapping[str, Mapping[str, None]]) -> str:
    return "; ".join(
        f"{len(names)} {what} ({', '.join(list(names)[:_SHOWN])}{', ...' * (len(names) > _SHOWN)})"
        for what in ("missing", "unexpected", "unfit")
        if (names := found.get(what))
    )


def _fill(
    info: CheckpointInfo,
    component: str,
    network: nn.Module,
    device: torch.device,
    dtype: torch.dtype,
    linear_device: torch.device | str | None = None,
) -> None:
    """Give every tensor of a network its value from the file."""
    linear = {name for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    sources, layout = info.sources(component), info.family.tensors
    wanted: dict[str, Source] = {
        name: sources[layout.canonical(component, name)]
        for name in network.state_dict()
        if layout.stored(name)
    }
    state: dict[str, torch.Tensor] = {}
    for path in info.files[component]:
        with TensorFile(path, info.headers[path]) as file:
            for name, source in wanted.items():
                if source.name in file.header.tensors:
                    apart = linear_device is not None and name.rpartition(".")[0] in linear
                    home = linear_device if apart else device
                    state[name] = file.read(source).to(device=home, dtype=dtype)
    network.load_state_dict(state, strict=False, assign=True)
    info.family.networks.fill_buffers(network, device)
    empty = [name for name, tensor in _tensors(network) if tensor.is_meta]
    assert not empty, f"left without storage: {empty}"
    network.eval().requires_grad_(False)


def _tensors(network: nn.Module) -> list[tuple[str, Any]]:
    return [*network.named_parameters(), *network.named_buffers()]


def _dtype_of(
    info: CheckpointInfo, component: str, device: torch.device, asked: torch.dtype | None
) -> torch.dtype:
    if asked is None and device.type == "cpu":
        return torch.float32
    stored = info.dtypes[component][0]
    if stored.startswith("F8"):
        stored = "F16"
    wanted = asked or _HALVES.get(stored, torch.float32)
    return info.family.networks.dtype(component, wanted)


def _rows(source: Source, entry: TensorEntry) -> int:
    if source.rows is not None:
        return source.rows[1] - source.rows[0]
    return entry.shape[0] if entry.shape else 0
