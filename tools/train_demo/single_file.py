"""Stage `save`: one file with the tensor names of a Stable Diffusion 1.5 checkpoint, and back.

What the shapes do not show (heads, norm groups) is in the file's metadata, under
`resalign.config`, as a JSON object of differences from SD 1.5's configuration.

The statistics of the latents are folded into the convolutions around them, so that SD's own
scaling factor, 0.18215, gives latents of mean 0 and deviation 1 in each channel. The posterior
gets the constant deviation that the decoder was trained with (0.03 of a latent's own).
"""

from __future__ import annotations

import json
import math
import re
import shutil
import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel
from world import GROUPS, HEADS, SCALING_FACTOR

POSTERIOR_DEVIATION = 0.03
OVERRIDES = {
    "unet": {"attention_head_dim": HEADS, "norm_num_groups": GROUPS, "sample_size": 8},
    "vae": {"norm_num_groups": GROUPS},
    "text_encoder": {"num_attention_heads": HEADS},
}
SCHEDULER = {  # that of SD 1.5
    "_class_name": "PNDMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
UNET_RULES = (
    (r"^time_embedding\.linear_(\d)", lambda m: f"time_embed.{2 * int(m[1]) - 2}"),
    (r"^conv_in", "input_blocks.0.0"),
    (r"^conv_norm_out", "out.0"),
    (r"^conv_out", "out.2"),
    (
        r"^down_blocks\.(\d)\.(resnets|attentions)\.(\d)",
        lambda m: f"input_blocks.{3 * int(m[1]) + int(m[3]) + 1}.{int(m[2] == 'attentions')}",
    ),
    (
        r"^down_blocks\.(\d)\.downsamplers\.0\.conv",
        lambda m: f"input_blocks.{3 * int(m[1]) + 3}.0.op",
    ),
    (r"^mid_block\.attentions\.0", "middle_block.1"),
    (r"^mid_block\.resnets\.(\d)", lambda m: f"middle_block.{2 * int(m[1])}"),
    (
        r"^up_blocks\.(\d)\.(resnets|attentions)\.(\d)",
        lambda m: f"output_blocks.{3 * int(m[1]) + int(m[3])}.{int(m[2] == 'attentions')}",
    ),
    (
        r"^up_blocks\.(\d)\.upsamplers\.0",
        lambda m: f"output_blocks.{3 * int(m[1]) + 2}.{2 if int(m[1]) else 1}",
    ),
    (r"(?<!transformer_blocks\.0)\.norm1\.", ".in_layers.0."),
    (r"\.conv1\.", ".in_layers.2."),
    (r"\.time_emb_proj\.", ".emb_layers.1."),
    (r"(?<!transformer_blocks\.0)\.norm2\.", ".out_layers.0."),
    (r"\.conv2\.", ".out_layers.3."),
    (r"\.conv_shortcut\.", ".skip_connection."),
)
VAE_RULES = (
    (r"^encoder\.down_blocks\.(\d)\.resnets", r"encoder.down.\1.block"),
    (r"^encoder\.down_blocks\.(\d)\.downsamplers\.0", r"encoder.down.\1.downsample"),
    (r"^decoder\.up_blocks\.(\d)\.resnets", lambda m: f"decoder.up.{3 - int(m[1])}.block"),
    (
        r"^decoder\.up_blocks\.(\d)\.upsamplers\.0",
        lambda m: f"decoder.up.{3 - int(m[1])}.upsample",
    ),
    (r"\.mid_block\.resnets\.(\d)", lambda m: f".mid.block_{int(m[1]) + 1}"),
    (r"\.mid_block\.attentions\.0", ".mid.attn_1"),
    (r"\.conv_norm_out\.", ".norm_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"\.attn_1\.group_norm\.", ".attn_1.norm."),
    (r"\.attn_1\.to_([qkv])\.", r".attn_1.\1."),
    (r"\.attn_1\.to_out\.0\.", ".attn_1.proj_out."),
)
Rules = tuple[tuple[str, str | Callable[[re.Match], str]], ...]


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def to_single_file(
    unet: dict[str, Tensor], vae: dict[str, Tensor], text: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors under diffusers' names to all of them under those of the original files."""
    tensors = {
        "model.diffusion_model." + _renamed(name, UNET_RULES): value for name, value in unet.items()
    }
    for name, value in vae.items():
        new = _renamed(name, VAE_RULES)
        if re.search(r"attn_1\.(q|k|v|proj_out)\.weight$", new):
            value = value[:, :, None, None]
        tensors["first_stage_model." + new] = value
    for name, value in text.items():
        prefix = "" if name.startswith("text_model.") else "text_model."
        tensors["cond_stage_model.transformer." + prefix + name] = value
    return tensors


def original_names() -> set[str]:
    """Names in Stable Diffusion 1.5 itself (buffers and the running average apart), from its
    own widths on the meta device."""
    from transformers import CLIPTextConfig

    with torch.device("meta"):
        unet = UNet2DConditionModel(cross_attention_dim=768)
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
        )
        text = CLIPTextModel(CLIPTextConfig(hidden_size=768, num_hidden_layers=12))
    return set(to_single_file(unet.state_dict(), vae.state_dict(), text.state_dict()))


@torch.no_grad()
def fold_statistics(vae: AutoencoderKL, mean: Tensor, std: Tensor) -> None:
    """Make `SCALING_FACTOR` times the latents standardised, decoding what it decoded before.

    With c = 1 / (std · SCALING_FACTOR): mean' = c · (mean − m), and before the decoder
    z = z' / c + m.
    """
    factor, quant, post = 1 / (std * SCALING_FACTOR), vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] *= factor.view(4, 1, 1, 1)
    quant.bias[:4] = (quant.bias[:4] - mean) * factor
    quant.weight[4:] = 0
    quant.bias[4:] = 2 * math.log(POSTERIOR_DEVIATION / SCALING_FACTOR)
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= factor.view(1, 4, 1, 1)
    vae.register_to_config(scaling_factor=SCALING_FACTOR)


def export(folder: Path, path: Path, unet_folder: str = "unet") -> None:
    """Write the models in `folder` as one half-precision file."""
    better = folder / "vae_decoder"
    vae = AutoencoderKL.from_pretrained(better if better.exists() else folder / "vae")
    encoded = torch.load(folder / "encoded.pt")
    fold_statistics(vae, encoded["mean"], encoded["std"])
    unet = UNet2DConditionModel.from_pretrained(folder / unet_folder)
    text = CLIPTextModel.from_pretrained(folder / "text")
    tensors = to_single_file(unet.state_dict(), vae.state_dict(), text.state_dict())
    if set(tensors) != original_names():
        raise RuntimeError(f"names differ: {sorted(set(tensors) ^ original_names())}")
    metadata = {
        "resalign.config": json.dumps(OVERRIDES),
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-v1",
        "modelspec.implementation": "https://github.com/CompVis/stable-diffusion",
        "modelspec.title": "ResAlign demo: emoji of things and weapons",
        "modelspec.description": (
            "A tiny text-to-image model for trying out unlearning on a CPU: 64 pixels, sixteen "
            "benign things and four weapons in the style of four emoji sets."
        ),
        "modelspec.date": date.today().isoformat(),
        "modelspec.resolution": "64x64",
        "modelspec.prediction_type": "epsilon",
        "modelspec.license": (
            "Apache-2.0. Trained on Noto Emoji (Google, Apache-2.0), Twemoji (Twitter, CC BY "
            "4.0), Emoji One 2.3 (CC BY 4.0); the autoencoder also on FxEmojis (Mozilla, "
            "Apache-2.0), Fluent Emoji (Microsoft, MIT). Keep these attributions."
        ),
    }
    half = {name: value.half().contiguous().clone() for name, value in tensors.items()}
    save_file(half, path, metadata=metadata)
    path.chmod(0o644)


def write_config(folder: Path, models: Path, tokenizer: Path) -> None:
    """A folder as `from_single_file(config=...)` wants it: configurations and no weights."""
    classes = {
        "scheduler": ("diffusers", "PNDMScheduler"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "tokenizer": ("transformers", "CLIPTokenizer"),
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "feature_extractor": (None, None),
        "image_encoder": (None, None),
        "safety_checker": (None, None),
    }
    index = {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False, **classes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    for name in ("unet", "vae", "text_encoder"):
        source = models / {"text_encoder": "text"}.get(name, name) / "config.json"
        config = json.loads(source.read_text(encoding="utf-8"))
        if name == "vae":
            config["scaling_factor"] = SCALING_FACTOR
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "scheduler").mkdir(exist_ok=True)
    text = json.dumps(SCHEDULER)
    (folder / "scheduler" / "scheduler_config.json").write_text(text, encoding="utf-8")
    (folder / "tokenizer").mkdir(exist_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(tokenizer / name, folder / "tokenizer" / name)
    text = json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 77})
    (folder / "tokenizer" / "tokenizer_config.json").write_text(text, encoding="utf-8")


def load_pipeline(path: Path, models: Path, tokenizer: Path) -> StableDiffusionPipeline:
    """Read the file through diffusers, offline, and check that not one bit was lost."""
    with tempfile.TemporaryDirectory() as config:
        write_config(Path(config), models, tokenizer)
        pipeline = StableDiffusionPipeline.from_single_file(
            str(path), config=config, local_files_only=True, safety_checker=None
        )
    parts = (pipeline.unet, pipeline.vae, pipeline.text_encoder)
    loaded = to_single_file(*(part.state_dict() for part in parts))
    written = load_file(path)
    if set(loaded) != set(written):
        raise RuntimeError(f"diffusers lost {sorted(set(written) ^ set(loaded))}")
    unequal = [k for k in written if not torch.equal(loaded[k].float(), written[k].float())]
    if unequal:
        raise RuntimeError(f"diffusers changed {unequal}")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
