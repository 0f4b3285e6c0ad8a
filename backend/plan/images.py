"""Images with captions: a folder, or prompts to synthesise them from."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Annotated

from ..errors import ConfigError
from .checks import check_fields, check_prompts, freeze_lists
from .document import document
from .field import PATH, Help, Range


@document
@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images with captions: a folder, or prompts to synthesise from with the checkpoint itself.

    Synthesised images are kept as latents; none of them is decoded to disk.
    """

    folder: Annotated[
        str,
        PATH,
        Help(
            "Folder of images with captions: a .txt file beside each image, or metadata.jsonl or "
            "metadata.csv for all of them."
        ),
    ] = ""
    _: KW_ONLY
    prompts: Annotated[
        tuple[str, ...],
        Help(
            "Instead of a folder: prompts from which the checkpoint draws the images itself. They "
            "are kept as latents and never written to disk as pictures."
        ),
    ] = ()
    images: Annotated[
        int, Range(1, 1_000_000), Help("Number of images to draw; they cycle through the prompts.")
    ] = 64
    sampling_steps: Annotated[
        int, Range(1, 1000), Help("Sampler steps for each image that is drawn.")
    ] = 25
    guidance: Annotated[
        float,
        Range(0, 50),
        Help("Classifier-free guidance scale for the images that are drawn."),
    ] = 7.5
    caption: Annotated[
        str,
        Help(
            "Caption for images that have none; if empty, an image without a caption is an error."
        ),
    ] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", str(self.folder))
        freeze_lists(self)
        if bool(self.folder) == bool(self.prompts):
            raise ConfigError(
                "image set: give a folder, or prompts to synthesise from, and not both"
            )
        check_fields(self, "image set")
        check_prompts("image set", [*self.prompts, self.caption])
