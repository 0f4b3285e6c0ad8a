"""A family of models as one value: everything that the backend has to ask about its kind.

Nothing outside of `families/` knows a family by name. A new family is a folder that builds one
`Family` and one line in `families/__init__.py` that registers it.

The parts are protocols: whatever has these methods will do, a module of functions included.
Recognising must not import torch, as a header is read in milliseconds; parts that need it import
it in their functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from .host import HostNames
from .latent_space import LatentSpace
from .shapes import Shapes
from .sources import Source
from .stored import Checkpoint, Description, StoredFile, StoredFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from .conditioning import Conditioning
    from .process import NoiseProcess

Config = Mapping[str, Any]
Size = tuple[int, int]  # (height, width) or (top, left) in pixels


@dataclass(frozen=True, eq=False, kw_only=True)
class Family:
    """One family. Compared by identity; `name` is what files, plans and records keep.

    title: for readers. licence: a line for model cards about the published weights.
    denoiser, text_encoders, vae: names of the components, as diffusers names their folders.
    targets: groups of the denoiser's modules that an adapter may change; each a regular expression
        searched in "." + module name.
    text_input: a regular expression for the modules that take the text embeddings as input.
    entrances: a regular expression for the modules that read latents, times or sizes, searched as
        those of `targets`. Every image needs all of their input, so nothing is erased from them.
    config: the published config of a component or of `scheduler`, in diffusers' form.
    denoise: (denoiser, latents, times, conditioning) to the prediction.
    process: (file named in errors, scheduler config) to the noise process.
    native_side: what the denoiser predicts to the side in pixels that published models have.
    no_cross_attention: why methods that edit a cross-attention to the text have nothing to edit;
        empty where there is one.
    guidance: the strengths of classifier-free guidance, from and to, that its models are meant for;
        None where a plan's default is right.
    """

    name: str
    title: str
    licence: str
    denoiser: str
    text_encoders: tuple[str, ...]
    vae: str
    targets: Mapping[str, str]
    text_input: str
    entrances: str = r"$^"
    config: Callable[[str], dict[str, Any]]
    denoise: Callable[[Any, Tensor, Tensor, Conditioning], Tensor]
    process: Callable[[str, Config], NoiseProcess]
    native_side: Callable[[str], int]
    recognition: Recognition
    networks: Networks
    tensors: TensorLayout
    texts: Texts
    latents: Latents
    lora: LoraNames
    host: HostNames
    metadata: MetadataNames
    no_cross_attention: str = ""
    guidance: tuple[float, float] | None = None

    def __str__(self) -> str:
        return self.name

    @property
    def components(self) -> tuple[str, ...]:
        """Names of all networks: the denoiser, the text encoders, the VAE."""
        return (self.denoiser, *self.text_encoders, self.vae)

    def published(self) -> dict[str, dict[str, Any]]:
        """Return the published config of every component."""
        return {name: self.config(name) for name in self.components}


class Recognition(Protocol):
    """Tells the family's models from others, by names and shapes alone."""

    def claims_file(self, file: StoredFile) -> bool:
        """True if a single file is of this family, or so near that `describe_file` can say what is
        wrong with it.
        """
        ...

    def describe_file(self, file: StoredFile) -> Description:
        """Describe a claimed file; a CheckpointError says why it cannot be used."""
        ...

    def claims_folder(self, folder: StoredFolder) -> bool:
        """Like `claims_file`, for a diffusers folder."""
        ...

    def describe_folder(self, folder: StoredFolder) -> Description:
        """Describe a claimed folder."""
        ...

    def cautions(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        """Sentences on statements in a header that are not followed."""
        ...

    def claims_denoiser(self, shapes: Shapes) -> bool:
        """True if a denoiser in memory, in the names of single files without prefix, is of it."""
        ...

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        """Return the config of a claimed denoiser in memory."""
        ...

    def claims_lora(self, file: LoraTensors) -> int:
        """Rate how surely a LoRA was made for this family.

        0: not at all; 1: possible; 2: its metadata say so; 3: its widths do; 4: only this family
        has such modules.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoraTensors:
    """A LoRA by the names of its tensors, their shapes and its metadata."""

    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]


class Networks(Protocol):
    """Builds the networks."""

    def build(self, component: str, config: Config) -> nn.Module:
        """Build a network on torch's current default device (meta, when it is to be filled)."""
        ...

    def fill_buffers(self, network: nn.Module, device: torch.device) -> None:
        """Give buffers that no file holds their values."""
        ...

    def dtype(self, component: str, wanted: torch.dtype) -> torch.dtype:
        """Return the type that a component can work in, if not the wanted one."""
        ...

    def tokenizers(self, places: Sequence[Path] = ()) -> tuple[Any, ...]:
        """Return the tokenizers, from files that ship with the package or lie in `places`.

        places: the folder that the model lies in, or those of its files.
        """
        ...

    def text_encoder(
        self, who: str, component: str, tensors: Mapping[str, Tensor], *, skip_last: int,
        device: torch.device | str,
    ) -> nn.Module:  # fmt: skip
        """Build and fill a text encoder from a host's tensors; `who` names them in errors."""
        ...


class TensorLayout(Protocol):
    """The places of tensors in files."""

    def sources(self, component: str, checkpoint: Checkpoint) -> dict[str, Source]:
        """The network's tensor names (as `canonical` gives them) to their places in the file."""
        ...

    def canonical(self, component: str, name: str) -> str:
        """Return the name used here of a tensor, whatever a library's version calls it."""
        ...

    def stored(self, name: str) -> bool:
        """True if files need to hold a network's tensor: not so for buffers of constants."""
        ...

    def harmless(self, checkpoint: Checkpoint, name: str) -> bool:
        """True if a tensor that no network has may be in a file; an export keeps it as it is."""
        ...

    def moving_averages(self, checkpoint: Checkpoint) -> dict[str, str]:
        """Names that moving averages of the denoiser have in a single file, each to the name of
        the denoiser's tensor there that it averages. The file need not hold any."""
        ...

    def denoiser_sources(self, config: Config) -> dict[str, Source]:
        """The denoiser's tensor names to their places in a host's denoiser, without prefix."""
        ...


class Loaded(Protocol):
    """The part of a `Model` that texts are encoded with."""

    @property
    def text_encoders(self) -> tuple[Any, ...]: ...
    @property
    def tokenizers(self) -> tuple[Any, ...]: ...
    @property
    def device(self) -> torch.device: ...


class Texts(Protocol):
    """Reads prompts.

    tokens: how many the text encoders read at most. embedding: name of the part of the conditioning
    that holds a vector per token, [batch, tokens, width].
    """

    @property
    def tokens(self) -> int: ...
    @property
    def embedding(self) -> str: ...

    def tokenise(self, model: Loaded, prompts: Sequence[str]) -> tuple[Tensor, ...]:
        """Return everything `encode` needs of the prompts; each tensor has them first."""
        ...

    def encode(self, model: Loaded, tokens: Sequence[Tensor]) -> Conditioning:
        """Encode tokenised prompts; differentiable where gradients are on."""
        ...

    def of_samples(
        self, samples: Sequence[tuple[Size, Size, Size]], device: torch.device | str = "cpu"
    ) -> Conditioning:
        """Return the conditioning of each image besides its text; often empty.

        samples: (original size, crop's corner, size trained at) of each.
        """
        ...

    def blank(self, config: Config) -> Conditioning:
        """Return zeros in the shapes of one text's conditioning, for a denoiser's config."""
        ...


class Latents(Protocol):
    """Encodes images to the denoiser's latents and back."""

    def space(self, config: Config) -> LatentSpace:
        """Read the latent space off the VAE's config; published values fill what it lacks."""
        ...

    def encode(
        self, vae: Any, images: Tensor, space: LatentSpace, noise: torch.Generator | None
    ) -> Tensor:
        """Images [batch, 3, height, width] from -1 to 1 to latents; with `noise`, a sample of the
        posterior instead of its mean."""
        ...

    def decode(self, vae: Any, latents: Tensor, space: LatentSpace) -> Tensor:
        """Latents to images from -1 to 1 (not clamped)."""
        ...


class LoraNames(Protocol):
    """The names of the denoiser's modules in LoRA files.

    form: of the files that are written unless another is asked for, `kohya` or `diffusers`. A
    family whose own form is `diffusers` has no other: hosts would drop modules of it silently.
    base_version: kohya's `ss_base_model_version`. version_2: `ss_v2`. architecture: ModelSpec's,
    without `/lora`. key_prefix: what keys begin with in kohya's form.
    """

    @property
    def form(self) -> str: ...
    @property
    def base_version(self) -> str: ...
    @property
    def version_2(self) -> bool: ...
    @property
    def architecture(self) -> str: ...
    @property
    def key_prefix(self) -> str: ...

    def key(self, module: str) -> str:
        """Return the key of a module in kohya's form, without prefix."""
        ...

    def module(self, key: str) -> str | None:
        """Return the module of a key without prefix, None where there is none of that name."""
        ...

    def dotted(self, module: str) -> str:
        """Return the key of a module in the form `diffusers`, with its prefix."""
        ...

    def of_dotted(self, key: str) -> str | None:
        """Return the module of a key as `dotted` writes it, None where it is not such a key."""
        ...

    def stems(
        self, denoiser: Mapping[str, str], texts: Mapping[str, Iterable[str]]
    ) -> dict[str, tuple[str, str]]:
        """Every name by which a LoRA file may call a module, to (component, module).

        denoiser: module to its name in single files. texts: modules by component.
        """
        ...


@dataclass(frozen=True, slots=True)
class MetadataNames:
    """Entries in the headers of whole checkpoints.

    architecture: prediction to ModelSpec's name. implementation: of single files, as ModelSpec
    names it; empty: Stable Diffusion's. tag: of model cards. civitai: the family's entry in
    Civitai's list of base models; empty: not known. notices: entries that a result has unless its
    source has others, such as the licence of the published weights. terms: what that licence asks
    of whoever publishes a changed version, where it asks more than naming it; `check` and model
    cards say it.
    """

    architecture: Callable[[str], str]
    implementation: str = ""
    tag: str = "stable-diffusion"
    civitai: str = ""
    notices: Mapping[str, str] = field(default_factory=dict)
    terms: str = ""
