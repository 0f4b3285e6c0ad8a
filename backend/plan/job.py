"""A hardening job: a plan, the checkpoint it is applied to, and where the results go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..errors import ConfigError
from .document import document
from .field import PATH, Help
from .hardening import HardeningPlan

Prediction = Annotated[
    Literal["", "epsilon", "v", "v-zsnr"],
    Help(
        "What a single file predicts, where its own statements contradict each other or are wrong: "
        "epsilon, v, or v-zsnr (v with a schedule that ends in pure noise); empty follows the file."
    ),
]
TextEncoder = Annotated[
    str,
    PATH,
    Help(
        "File of the text encoder, where the checkpoint's single file does not hold it; empty: the "
        "only fitting one beside it, or in the folders that hosts keep such files in."
    ),
]
Vae = Annotated[
    str,
    PATH,
    Help("File of the VAE, where the checkpoint's single file does not hold it; empty: likewise."),
]
Device = Annotated[str, Help("Device that computes: auto, cpu, cuda, cuda:1 or mps.")]


@document
@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One run of `resalign harden`: a plan, the checkpoint that it hardens, and its outputs."""

    checkpoint: Annotated[
        str, PATH, Help("Checkpoint to harden: a .safetensors file, or a diffusers folder.")
    ]
    output: Annotated[
        str,
        PATH,
        Help("Hardened checkpoint: a new file, or a new folder where the source is a folder."),
    ]
    plan: Annotated[HardeningPlan, Help("What is done to the checkpoint.")]
    lora: Annotated[
        str, PATH, Help("File for the adapter as a LoRA; empty: beside the output.")
    ] = ""
    run_folder: Annotated[
        str,
        PATH,
        Help(
            "Folder for the plan, the records and the resumable state; empty: the output's name "
            "with .run added."
        ),
    ] = ""
    device: Device = "auto"
    prediction: Prediction = ""
    text_encoder: TextEncoder = ""
    vae: Vae = ""

    @property
    def parts(self) -> dict[str, str]:
        """Files of components apart from the checkpoint, by component; empty: not named."""
        return {"text_encoder": self.text_encoder, "vae": self.vae}

    def __post_init__(self) -> None:
        for name, what in (("checkpoint", "to harden"), ("output", "to write the result to")):
            if not getattr(self, name).strip():
                raise ConfigError(f"{name}: name the file or diffusers folder {what}")
