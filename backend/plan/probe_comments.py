"""What a probe's plan file says of each field: meaning, unit, range."""

from __future__ import annotations

from .probe import (
    FineTuneAttack,
    GenerationConfig,
    LoraAttack,
    LoraFile,
    MergeAttack,
    ProbeCheckpoint,
    ProbeJob,
    ProbePlan,
    PromptSet,
    ScorerConfig,
    UtilityConfig,
)

PROBE_HEAD = """\
# A probe of ResAlign ({preset}: {summary}).
#
#   resalign probe FILE      run it, or go on where it stopped; ends in a report
#
# Every checkpoint is attacked in the same ways, draws the same prompts with the same seeds, and is
# scored by the same scorers. Lines that begin with # and no space are settings that are off.
# Paths are relative to this file. Rates and shares run from 0 to 1."""

PROBE_COMMENTS: dict[type, dict[str, str]] = {
    ProbeJob: {
        "checkpoints": "The checkpoints; the first is the original.",
        "output": "The folder of the probe: looks, pictures, report.",
        "plan": "What is done to each of them.",
        "device": "auto, cpu, cuda, cuda:1, mps.",
    },
    ProbeCheckpoint: {
        "name": "What the report calls it.",
        "path": "A .safetensors file, or a diffusers folder.",
    },
    ProbePlan: {
        "concepts": "Whose return is measured.",
        "fine_tunes": "Fine-tuning for real.",
        "loras": "Your own LoRAs put on the checkpoints; no training.",
        "merges": "Weights mixed with another checkpoint's.",
        "seeds": "Each fine-tuning is done once per seed.",
        "forget_set": "Images of the concepts; left out: drawn by the original.",
        "retain_set": "Harmless images; left out: drawn by the original.",
        "prompts": "What is drawn.",
        "scorers": "Who looks at it; the first gives the headline. `resalign presets` lists them.",
        "generation": "How it is drawn.",
        "utility": "What is measured besides safety.",
        "resolution": "Side of the training images in pixels; 0: the checkpoint's own.",
        "skip_broken_images": "Leave out images that cannot be read instead of stopping.",
        "pictures": "Images per prompt set and look that are kept as files.",
    },
    FineTuneAttack: {
        "name": "What the report calls it.",
        "data": 'A folder of images with captions, or "retain" for the retain set.',
        "concept_share": "Share of each batch that shows the concept: 0 benign, 1 nothing else.",
        "method": "lora, dora, loha, lokr (a fresh adapter), full (all weights of the denoiser).",
        "targets": "Of the adapter: attention, cross_attention_kv, feed_forward, convolution.",
        "rank": "Of the adapter; 1 to 1024.",
        "alpha": "Strength is alpha / rank; 0: alpha = rank.",
        "dropout": "Of the adapter's input; 0 to 1.",
        "optimiser": "adamw, sgd, prodigy (prodigyopt), adamw8bit (bitsandbytes).",
        "learning_rate": "1e-6 to 1e-3 is usual; 1 for prodigy.",
        "schedule": "constant, linear, cosine.",
        "warm_up_steps": "Updates over which the rate rises from 0.",
        "weight_decay": "0 to 1.",
        "gradient_norm": "Clips the gradient to this L2 norm; 0: no clipping.",
        "steps": "Updates.",
        "looks": "Updates after which the model is scored; empty: at the end only.",
        "batch": "Images per batch.",
        "accumulate": "Batches per update.",
        "caption_dropout": "Chance that an image is trained without its caption.",
        "flip": "Mirror half of the images.",
        "ema": "Decay of a moving average of the weights, which is then what is scored; 0: none.",
        "text_encoder": "Train the text encoder too.",
        "text_encoder_learning_rate": "Its own rate.",
        "prior_data": 'DreamBooth\'s prior preservation: "retain" or a folder; empty: none.',
        "prior_weight": "Weight of the prior's loss.",
        "precision": "fp32, bf16, fp16 (autocast; what is trained stays in fp32).",
        "gradient_checkpointing": "Less memory, slower.",
    },
    LoraAttack: {"name": "What the report calls it.", "loras": "Put on together."},
    LoraFile: {
        "path": "kohya, diffusers, PEFT, LoHa, LoKr or DoRA, as .safetensors.",
        "strength": "On the denoiser.",
        "text_strength": "On the text encoder; left out: the same.",
    },
    MergeAttack: {
        "name": "What the report calls it.",
        "other": 'A checkpoint file, or "original".',
        "weight": (
            "(1 - weight) times the model + weight times the other; 2 with the original subtracts\n"
            "what hardening added once more than it takes to undo it."
        ),
        "part": "denoiser, or all for the text encoders too.",
    },
    PromptSet: {
        "kind": "unsafe (the result), neighbour (harmless but similar), retain (anything else).",
        "file": "Yours: .txt with one per line, or .csv with a column `prompt`.",
        "prompts": "Or here. Neither: the lists that come along.",
        "limit": "At most so many, evenly spread; 0: all.",
        "images": "Per prompt, each with its own seed.",
    },
    ScorerConfig: {
        "name": "See `resalign presets`.",
        "weights": "A local file or folder, for those that bring none.",
        "threshold": "Value from which an image is flagged; left out: the scorer's own.",
        "labels": "Labels that count; empty: the scorer's own.",
        "command": "Of the scorer `command`: its arguments; the folder of images comes last.",
    },
    GenerationConfig: {
        "steps": "Of the sampler (DPM-Solver++).",
        "guidance": "Of classifier-free guidance.",
        "resolution": "Side in pixels; 0: the checkpoint's own.",
        "batch": "Images at a time.",
        "seed": "Of the first image of each prompt.",
    },
    UtilityConfig: {
        "drift_samples": "Retain images on which predictions are compared; 0: none.",
        "clip": "A local folder of CLIP weights, for the CLIP score.",
        "features": "A local folder of CLIP weights, for distances of distributions.",
        "reference": "A folder of real images to compare with.",
    },
}
