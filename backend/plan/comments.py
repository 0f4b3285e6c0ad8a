"""What a plan file says of each field: meaning, unit, range."""

from __future__ import annotations

from .hardening import (
    AdapterConfig,
    Concept,
    FineTuneConfig,
    HardeningPlan,
    HarmConfig,
    ImageSet,
    Job,
    RegulatorConfig,
    SolverConfig,
)
from .kernels import KernelConfig
from .stages import EditConfig, ProjectionConfig, Stage

HEAD = """\
# A plan of ResAlign ({preset}: {summary}).
#
#   resalign check FILE      look at everything it names before any weight is loaded
#   resalign harden FILE     run it
#
# Lines that begin with # and no space are settings that are off: remove the # to use them.
# Paths are relative to this file. Rates and shares run from 0 to 1. Symbols: docs/method.md."""

COMMENTS: dict[type, dict[str, str]] = {
    Job: {
        "checkpoint": "The checkpoint to harden: a .safetensors file, or a diffusers folder.",
        "output": "The hardened checkpoint: a new file, or a new folder where the source is one.",
        "plan": "The plan.",
        "lora": "The adapter by itself, as a LoRA; empty: beside the output.",
        "run_folder": "Plan, records and resumable state; empty: <output>.run",
        "device": "auto, cpu, cuda, cuda:1, mps.",
    },
    HardeningPlan: {
        "method": (
            "resalign, or a fast method that simulates nobody and promises less: redirect (trains\n"
            "towards the anchors), project (unlearns outside of what retain samples use),\n"
            "closed_form (edits the cross-attention: one step, no training)."
        ),
        "before": "Stages that run first; the method goes on from what they left.",
        "concepts": "What to remove.",
        "forget_set": "Images of the concepts, where they bring none of their own.",
        "retain_set": "What must stay; left out: synthesised from the shipped retain prompts.",
        "fine_tunes": "The pool of simulated users; empty: plain unlearning.",
        "configurations_per_step": (
            "J: simulated users per outer step, drawn from the pool without replacement."
        ),
        "simulate": (
            "What a simulated user trains: shared (the safety adapter itself, as published),\n"
            "adapter (a fresh LoRA on the hardened weights), full (all weights of the denoiser)."
        ),
        "proximal": (
            "Hold the simulated user to its start by ‖φ − φ0‖² / 2γ; false: plain fine-tuning, as\n"
            "published."
        ),
        "adapter": "The shape of the safety adapter θ.",
        "harm": "The loss of the concept.",
        "solver": "The linear solve behind the implicit gradient.",
        "regulator": "How hard the simulated users try.",
        "edit": "method = closed_form.",
        "projection": "method = project.",
        "kernels": "What computes; changes speed and last bits, nothing else.",
        "outer_steps": "Updates of the adapter in all; at least 1.",
        "warm_up_steps": "The first of them that only unlearn (λ = 0); 0 to outer_steps.",
        "learning_rate": "Of AdamW on the adapter; 1e-5 to 1e-3 is usual.",
        "final_learning_rate": "It falls linearly to this after the warm-up; 0: it stays.",
        "weight_decay": "Of AdamW on the adapter; 0 to 1.",
        "gradient_norm": "Clips the outer gradient to this L2 norm; 0: no clipping.",
        "forget_batch": "Samples of the concepts per outer step; at least 1.",
        "retain_batch": "Samples of the retain set per outer step; at least 1.",
        "resilience_weight": (
            "λ: weight of the relapse after simulated fine-tuning. A number, or a ramp over the\n"
            'steps after the warm-up: { start = 0.2, end = 0.8, shape = "linear" or "sigmoid",\n'
            "begin = 0.0, until = 1.0 }, the last two being shares of these steps."
        ),
        "retain_weight": (
            "μ: weight of keeping everything else. A number, or a ramp over all steps. Raise it\n"
            "when pictures of other things suffer."
        ),
        "retain_after_weight": (
            "ν: weight of keeping everything else after simulated fine-tuning too; 0: off, as\n"
            "published."
        ),
        "caption_dropout": "Share of retain samples shown without their caption; 0 to 1.",
        "resolution": "Side in pixels, a multiple of 8; 0: the checkpoint's own.",
        "precision": "Of the forward passes: fp32, bf16, fp16. The adapter itself stays fp32.",
        "quantization": (
            "Of the denoiser's frozen linear layers while the adapter is trained: none, int8, nf4\n"
            "(4 bits). Less memory, slower; needs bitsandbytes. The export is made from the true\n"
            "weights; the adapter was found beside rounded ones."
        ),
        "gradient_checkpointing": "Less memory for about a third more time.",
        "users_at_once": (
            "How many of a step's simulated users share passes: quicker, for the memory of so\n"
            "many batches; needs simulate = shared and micro_batch = 0. 1: one after the other."
        ),
        "micro_batch": (
            "Samples that are on the way at a time, gradients added up: less memory, and the same\n"
            "result to rounding. 0: whole batches."
        ),
        "skip_broken_images": "true: leave unreadable images out; false: stop and list them.",
        "save_every": "Outer steps between two saved states; at least 1.",
        "seed": "The same seed gives the same adapter, to the byte on a CPU; 0 to 2^63 - 1.",
    },
    Concept: {
        "name": "For reports and messages.",
        "prompts": (
            "Ways to ask for it; its images are synthesised from these unless it brings its own."
        ),
        "anchor": "What it should become (harm.loss = redirect); empty: the empty prompt.",
        "images": "Its own images.",
        "weight": "Its share among several concepts, relative to the others; more than 0.",
    },
    ImageSet: {
        "folder": "Images with captions: .txt beside them, or metadata.jsonl / metadata.csv.",
        "prompts": "Or: prompts to synthesise from with the checkpoint itself. One of the two.",
        "images": "How many to synthesise; they cycle through the prompts.",
        "sampling_steps": "Of each synthesised image; 1 to 1000.",
        "guidance": "Of each synthesised image (classifier-free guidance scale); 0 to 50.",
        "caption": "For images that have none; empty: such an image is an error.",
    },
    FineTuneConfig: {
        "name": "For reports and messages; each differs.",
        "data": (
            "The simulated users. In a grid, five fields take lists, for all combinations:\n"
            "data, method, optimiser, learning_rate, steps.\n"
            "Folder of images with captions, or retain: the retain set."
        ),
        "learning_rate": "More than 0; fine-tuning of Stable Diffusion uses 1e-6 to 1e-3.",
        "steps": "Of one simulated run; where regulated, its length at the start. At least 1.",
        "method": "lora, full, dreambooth (with prior preservation).",
        "optimiser": "sgd, adamw.",
        "schedule": "Of the learning rate: constant, linear, cosine (both falling to 0).",
        "weight_decay": "0 to 1.",
        "batch": "Samples per step; at least 1.",
        "rank": "Of a fresh LoRA (simulate = adapter); at least 1.",
        "concept_share": "Share of each batch drawn from the forget set instead; 0 to 1.",
        "caption_dropout": "Share of samples without caption; 0 to 1.",
        "prior_data": "DreamBooth's prior set: a folder, or retain.",
        "prior_weight": "DreamBooth's weight of the prior loss; at least 0.",
    },
    AdapterConfig: {
        "rank": "4 to 16 is usual; 1 to 1024.",
        "alpha": "Strength is alpha / rank; 0: alpha = rank.",
        "targets": (
            "Any of attention (q, k, v, out of self- and cross-attention), cross_attention_kv,\n"
            "feed_forward, convolution."
        ),
    },
    HarmConfig: {
        "loss": (
            "ascent: raise the denoising error on the concept, up to a cap; redirect: predict for\n"
            "the concept what the frozen model predicts for its anchor (ESD)."
        ),
        "cap": "ascent: where it levels off; 5 to 10 times the model's usual error. More than 0.",
        "guidance": "redirect: how far beyond the anchor, away from the concept; 0 to 100.",
    },
    Stage: {
        "method": "As in the plan.",
        "steps": "Updates of this stage; a closed form is one.",
        "rank": "Of what it adds to the adapter; 0: adapter.rank.",
    },
    EditConfig: {
        "retain_weight": "ρ: how much the tokens of what must stay count; at least 0.",
        "ridge": "ε: more changes less; more than 0.",
        "strength": "Of the whole edit; 1 as solved, more than 0.",
    },
    ProjectionConfig: {
        "energy": "Share of what retain samples use that is left alone; 0 to 1.",
        "samples": "Retain samples that are looked at; at least 1.",
    },
    SolverConfig: {
        "method": "first_order (no Hessian), richardson (as published), cg, minres.",
        "iterations": "Hessian-vector products at most; 1 to 1000.",
        "gamma": "γ: the proximal radius; more than 0. Lower it when solves diverge.",
        "products": (
            "finite_difference: two gradients each, with any attention kernel; exact: double\n"
            "backward, which needs more memory."
        ),
        "epsilon": "Length of the weight move of a finite difference; 1e-3 to 1e-2 is usual.",
        "tolerance": "Relative residual at which a solve is done; 0 to 1.",
        "batch": "Samples in the batch whose Hessian is used; 0: the simulated user's batch.",
        "on_divergence": "skip: count it, show it, and use first order instead; stop: end the run.",
    },
    KernelConfig: {
        "attention": (
            "auto (on a GPU: the quicker, measured at the start; on a CPU: sdpa), sdpa, xformers."
        ),
        "memory_format": (
            "Of the convolutions: auto (on a GPU: the quicker, measured; on a CPU: contiguous),\n"
            "contiguous, channels_last."
        ),
    },
    RegulatorConfig: {
        "enabled": (
            "Adapt the length of the simulated runs so that q = L_harm(θ*) / L_harm(θ), what they\n"
            "leave of the harm loss, stays between low and high."
        ),
        "low": "Below it the runs are too strong to learn from, and shrink; 0 to 1.",
        "high": "Above it they bring nothing back, and grow; low to 1.",
        "factor": "By which a run grows or shrinks; more than 1.",
        "min_steps": "Shortest run; at least 1.",
        "max_steps": "Longest run; at least min_steps.",
        "patience": "Runs in a row without relapse at full length before a warning.",
    },
}
