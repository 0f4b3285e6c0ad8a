"""Names of the VAE's tensors in files, where it is called as in Wan's VAE, of the same structure.

Wan counts all layers of the way down, and of the way up, in one row. Diffusers does so on the way
down; on the way up it has blocks, each with its residual layers and one layer that enlarges.
"""

from __future__ import annotations

import re

FIRST = "encoder.downsamples.0.residual.2.weight"
OUR_FIRST = "encoder.down_blocks.0.conv1.weight"

_RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2",
             "residual.6": "conv2", "shortcut": "conv_shortcut"}  # fmt: skip
_OUTSIDE = {
    r"^conv1": "quant_conv",
    r"^conv2": "post_quant_conv",
    r"^(encoder|decoder)\.conv1": r"\1.conv_in",
    r"^(encoder|decoder)\.head\.0": r"\1.norm_out",
    r"^(encoder|decoder)\.head\.2": r"\1.conv_out",
    r"^(encoder|decoder)\.middle\.1": r"\1.mid_block.attentions.0",
    r"^(encoder|decoder)\.middle\.0": r"\1.mid_block.resnets.0",
    r"^(encoder|decoder)\.middle\.2": r"\1.mid_block.resnets.1",
    r"^encoder\.downsamples": "encoder.down_blocks",
}


def own_name(name: str, residuals: int) -> str:
    """Return diffusers' name of a tensor of a file.

    residuals: layers of a level on the way down; there is one more of them on the way up.
    """
    up = re.match(r"decoder\.upsamples\.(\d+)\.(.+)", name)
    if up:
        block, layer = divmod(int(up[1]), residuals + 2)
        kind = "upsamplers.0" if layer > residuals else f"resnets.{layer}"
        name = f"decoder.up_blocks.{block}.{kind}.{up[2]}"
    for pattern, new in _OUTSIDE.items():
        name, changed = re.subn(pattern, new, name)
        if changed:
            break
    inside = re.search(r"\.(residual\.\d|shortcut)\.", name)
    if inside and inside[1] in _RESIDUAL:
        name = name.replace(inside[0], f".{_RESIDUAL[inside[1]]}.")
    return name
