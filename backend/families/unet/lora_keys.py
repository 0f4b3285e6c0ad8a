"""Module names of the U-Net as LoRA keys spell them, and back.

A LoRA key has `_` where a module path has `.`, so going back needs the vocabulary. The SGM
names hold for two residual blocks per level, as every published SDXL has.
"""

from __future__ import annotations

import re

_WORDS = (
    "down_blocks", "up_blocks", "mid_block", "transformer_blocks", "to_q", "to_k", "to_v", "to_out",
    "proj_in", "proj_out", "conv_shortcut", "conv_in", "conv_out", "time_emb_proj",
)  # fmt: skip
_RESNET = {
    "conv1": "in_layers_2", "conv2": "out_layers_3",
    "conv_shortcut": "skip_connection", "time_emb_proj": "emb_layers_1",
}  # fmt: skip
_RESNET_BACK = {sgm: own for own, sgm in _RESNET.items()}
_PER_LEVEL = 3  # two residual blocks and a down-sampler; three residual blocks going up


def flat_name(module: str, *, sgm: bool = False) -> str:
    """Spell `down_blocks.1.attentions.0.proj_in` as a key, in the names of diffusers or of SGM."""
    return (_to_sgm(module) if sgm else module).replace(".", "_")


def module_name(flat: str) -> str | None:
    """Return the diffusers module of a key in either spelling; None where it is of neither."""
    if flat.startswith(("input_blocks_", "middle_block_", "output_blocks_")):
        return _from_sgm(flat)
    if not flat.startswith(("down_blocks_", "mid_block_", "up_blocks_", "conv_in", "conv_out")):
        return None
    return _dotted(flat)


def _dotted(flat: str) -> str:
    name = flat.replace("_", ".")
    for word in _WORDS:
        name = name.replace(word.replace("_", "."), word)
    return name


def _to_sgm(module: str) -> str:
    parts = module.split(".")
    rest = ".".join(parts[4:])
    if parts[0] == "mid_block":
        kind, index, rest = parts[1], int(parts[2]), ".".join(parts[3:])
        slot = 1 if kind == "attentions" else 2 * index
        return f"middle_block.{slot}.{_RESNET.get(rest, rest)}"
    if parts[0] not in ("down_blocks", "up_blocks"):
        return {"conv_in": "input_blocks.0.0", "conv_out": "out.2"}[module]
    level, kind, index = int(parts[1]), parts[2], int(parts[3])
    start = _PER_LEVEL * level
    if kind == "downsamplers":
        return f"input_blocks.{start + 3}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{start + 2}.2.conv"
    block = f"input_blocks.{start + 1 + index}" if parts[0] == "down_blocks" else (
        f"output_blocks.{start + index}"
    )  # fmt: skip
    return f"{block}.{1 if kind == 'attentions' else 0}.{_RESNET.get(rest, rest)}"


def _from_sgm(flat: str) -> str | None:
    if middle := re.fullmatch(r"middle_block_(\d)_(.+)", flat):
        slot, rest = int(middle[1]), middle[2]
        inside = "attentions.0" if slot == 1 else f"resnets.{slot // 2}"
        return f"mid_block.{inside}.{_inner(rest)}"
    if flat == "input_blocks_0_0":
        return "conv_in"
    found = re.fullmatch(r"(input|output)_blocks_(\d+)_(\d)_(.+)", flat)
    if not found:
        return None
    side, slot, rest = found[1], int(found[3]), found[4]
    level, index = divmod(int(found[2]) - (side == "input"), _PER_LEVEL)
    block = f"{'down' if side == 'input' else 'up'}_blocks.{level}"
    if rest == "op":
        return f"{block}.downsamplers.0.conv"
    if rest == "conv":
        return f"{block}.upsamplers.0.conv"
    return f"{block}.{'attentions' if slot == 1 else 'resnets'}.{index}.{_inner(rest)}"


def _inner(rest: str) -> str:
    return _RESNET_BACK.get(rest) or _dotted(rest)
