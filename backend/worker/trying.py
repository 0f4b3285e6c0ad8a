"""try_lora: the same LoRA, prompt and noise on the original and on the hardened checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..jobs.family_defaults import family_at, guidance_doubt
from ..jobs.live_state import LiveState, data_url
from ..jobs.try_lora import Sampling, columns_of, contact_sheet, try_lora_job
from ..plan.attack import LoraFile
from ..progress import with_check
from .requests import TryLoraRequest, checkpoint_path

Check = Callable[[], None]
Done = tuple[dict[str, Any], str]
_SIDE = 512  # pixels of a picture on a sheet, at most


def try_lora(request: TryLoraRequest, live: LiveState, check: Check, *, device: str) -> Done:
    original = checkpoint_path(request.original)
    hardened = Path(checkpoint_path(request.hardened)) if request.hardened else None
    columns, doubt = columns_of(original, hardened)

    def show_first(picture: Any, column: str) -> None:
        live.picture(picture, column, flagged=True, step=columns.index(column) + 1)

    parts = {"text_encoder": request.text_encoder, "vae": request.vae}
    pairs = try_lora_job(
        original,
        LoraFile(path=request.lora, strength=request.strength),
        Sampling(
            prompt=request.prompt, negative=request.negative, seed=request.seed,
            steps=request.steps, guidance=request.guidance, width=request.width,
            height=request.height, count=request.count,
        ),
        hardened=hardened, columns=columns,
        run_folder=request.run_folder, prediction=request.prediction,
        parts=parts, device=device,
        on_load=lambda column: live.note(f"loading: {column}"), on_picture=show_first,
        on_progress=with_check(live, check),
    )  # fmt: skip
    pictures = []
    for number, pair in enumerate(pairs):
        name = f"seed {request.seed + number}: {request.prompt}"
        sheet = contact_sheet(
            [(name, pair)], show=request.show_pictures, side=_SIDE, columns=columns
        )
        pictures.append(
            {
                "url": data_url(sheet), "caption": name, "flagged": not request.show_pictures,
                "step": number + 1,
            }
        )  # fmt: skip
    count = len(pictures)
    said = f"{count} picture{'s' * (count > 1)} of each generated"
    family = family_at(checkpoint_path(request.hardened or request.run_folder), parts=parts)
    doubts = [doubt and f"Warning: {doubt}", guidance_doubt(family, request.guidance)]
    return {"pictures": pictures}, "\n".join(filter(None, [said, *doubts]))
