"""Tells the models of one U-Net family from others."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ..base.family import LoraTensors
from ..base.refuse import is_transformer_lora, refused_channels, stated_base, text_width
from ..base.shapes import Shapes
from ..base.stored import Description, StoredFile, StoredFolder
from .config import heads_of_width_64, unet_config
from .file import describe_file, variant_of_file
from .folder import describe_folder, variant_of_folder
from .spec import UNetSpec, Variant

# Width of the text embeddings that the published denoisers read.
CONTEXT_WIDTHS: dict[int, Variant] = {768: "plain", 1024: "linear", 2048: "sized"}
_TEXT_KEYS = ".attn2.to_k.weight"
_ONLY_SIZED = r"^lora_te[12]_|^text_encoder_2\.|transformer_blocks[._][1-9]|clip_g"
_NOT_SIZED = r"^lora_te_|down_blocks[._]0[._]attentions|input_blocks[._][12][._]1"


@dataclass(frozen=True, slots=True)
class UNetRecognition:
    """The `Recognition` of a U-Net family."""

    spec: UNetSpec

    def claims_file(self, file: StoredFile) -> bool:
        return variant_of_file(file) == self.spec.variant

    def describe_file(self, file: StoredFile) -> Description:
        return describe_file(self.spec, file)

    def claims_folder(self, folder: StoredFolder) -> bool:
        return variant_of_folder(folder) == self.spec.variant

    def describe_folder(self, folder: StoredFolder) -> Description:
        return describe_folder(self.spec, folder)

    def cautions(self, metadata: Mapping[str, str]) -> tuple[str, ...]:
        """CLIP skip: SD 1.x is encoded with the last layer, the others with the last but one."""
        found = []
        for name in ("modelspec.encoder_layer", "ss_clip_skip"):
            stated = metadata.get(name, "").strip()
            if self.spec.variant == "plain" and stated.isdecimal() and int(stated) > 1:
                found.append(
                    f"the file says that it was trained with CLIP skip {stated} ({name}); "
                    "hardening and probes encode prompts with the last layer (CLIP skip 1)"
                )
        return tuple(found)

    def claims_denoiser(self, shapes: Shapes) -> bool:
        widths = [s[-1] for name, s in shapes.items() if name.endswith(_TEXT_KEYS) and s]
        variant = CONTEXT_WIDTHS.get(widths[0]) if widths else None
        sized = "label_emb.0.0.weight" in shapes
        return variant == self.spec.variant and sized == self.spec.sized

    def describe_denoiser(self, shapes: Shapes) -> dict[str, Any]:
        config = self.spec.config("unet") | unet_config(shapes)
        if self.spec.variant != "plain":
            config["attention_head_dim"] = heads_of_width_64(config["block_out_channels"])
        other = refused_channels(config["in_channels"])
        if other:
            raise CheckpointError(other.sentence(shapes.file))
        return config

    def claims_lora(self, file: LoraTensors) -> int:
        if is_transformer_lora(file.shapes):
            return 0
        names = "\n".join(file.shapes)
        if re.search(_ONLY_SIZED, names, re.MULTILINE):
            return 4 if self.spec.sized else 0
        width = text_width(file.shapes)
        if width:
            return 3 if CONTEXT_WIDTHS.get(width) == self.spec.variant else 0
        stated = stated_base(file.metadata)
        ruled_out = self.spec.not_stated and self.spec.not_stated in stated
        if self.spec.stated in stated and not ruled_out:
            return 2
        if not self.spec.sized and re.search(_NOT_SIZED, names, re.MULTILINE):
            return 1
        return 0
