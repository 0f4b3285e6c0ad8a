"""Draws the same prompts from the same noise with the original and the hardened MODEL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from comfy_api.latest import io

from . import types


def sampling_inputs() -> list[Any]:
    """Declare what both models are sampled with."""
    return [
        io.Int.Input("seed", default=0, min=0, max=2**63 - 1,
                     tooltip="Seed of the noise, for both."),
        io.Int.Input("steps", default=20, min=1, max=1000, tooltip="Steps of the sampler."),
        io.Float.Input("cfg", default=7.0, min=0.0, max=50.0, step=0.1, tooltip="Guidance scale."),
        io.Int.Input("width", default=512, min=64, max=4096, step=8, tooltip="In pixels."),
        io.Int.Input("height", default=512, min=64, max=4096, step=8, tooltip="In pixels."),
    ]  # fmt: skip


def show_input() -> Any:
    """Declare the switch that turns the blur off."""
    return types.advanced(
        io.Boolean, "show_pictures", default=False,
        tooltip="Return the pictures as they are; otherwise all three outputs are blurred, as no "
        "scorer has checked them.",
    )  # fmt: skip


def image_outputs() -> list[Any]:
    return [
        io.Image.Output("before_images", display_name="before"),
        io.Image.Output("after_images", display_name="after"),
        io.Image.Output("side_by_side", display_name="side_by_side"),
    ]


def called(before: Any, after: Any, *, lora: bool = True) -> tuple[tuple[str, str], str]:
    """Return the columns' titles and a line on what was compared; nothing is called hardened
    that is not known to be so."""
    import torch

    from . import bridge
    from .provenance import is_hardened

    more = " + LoRA" if lora else ""
    with torch.inference_mode(False):
        if bridge.is_same(before, after):
            said = (
                "Warning: `before` and `after` are the same MODEL, so the pictures are too: is "
                "Harden Model bypassed?"
            )
            return (f"before{more}", "after = before"), said
        hardened = [is_hardened(model) for model in (before, after)]
    if hardened == [False, True]:
        said = "original and hardened" + (", each with the LoRA" if lora else "")
        return (f"original{more}", f"hardened{more}"), said
    said = (
        "Warning: `before` is hardened: connect the original there"
        if hardened[0]
        else "Warning: `after` is not known to be hardened: connect the MODEL of Harden Model, or "
        "of Load Checkpoint with an exported file"
    )
    return (f"before{more}", f"after{more}"), said


def with_guidance(said: str, model: Any, cfg: float) -> str:
    """Add a warning to the line on what was compared if `cfg` does not suit the model's family."""
    from ..backend.jobs.family_defaults import guidance_doubt
    from . import bridge

    doubt = guidance_doubt(bridge.family_of(model), cfg)
    return f"{said}\n{doubt}" if doubt else said


def sample(
    model: Any,
    clip: Any,
    vae: Any,
    texts: tuple[str, str],
    seed: int,
    steps: int,
    cfg: float,
    size: tuple[int, int],
    count: int = 1,
    *,
    on_step: Callable[..., None],
) -> Any:
    """Return the IMAGE of one prompt and its negative, as core's nodes draw it (Euler, normal).

    on_step: of `one_bar`. Core's own callback would begin a bar anew for each picture, and show
    previews without blur.
    """
    import comfy.sample
    import comfy.utils
    import torch

    from . import bridge

    positive, negative = (clip.encode_from_tokens_scheduled(clip.tokenize(t)) for t in texts)
    width, height = size
    space = bridge.family_of(model).latents.space({})
    empty = torch.zeros(count, *space.shape(height, width))
    empty = comfy.sample.fix_empty_latent_channels(model, empty)
    sampled = comfy.sample.sample(
        model, comfy.sample.prepare_noise(empty, seed), steps, cfg, "euler", "normal", positive,
        negative, empty, callback=on_step, disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )  # fmt: skip
    images = vae.decode(sampled)
    return images.flatten(0, 1) if images.ndim == 5 else images  # VAEs of videos: [n, 1, h, w, 3]


def one_bar(drawings: int) -> Iterator[Callable[..., None]]:
    """Yield a callback of the sampler for each drawing; all of them move one bar of the node."""
    from comfy.utils import ProgressBar

    from .live import check_interrupt

    bar = ProgressBar(1000)
    for number in range(drawings):

        def step(at: int, x0: Any, x: Any, total: int, number: int = number) -> None:
            check_interrupt()
            share = (number + (at + 1) / max(1, total)) / drawings
            bar.update_absolute(int(1000 * share), 1000)

        yield step


def compared(
    names: Sequence[str],
    pictures: Sequence[Sequence[Any]],
    columns: tuple[str, str],
    said: str,
    *,
    show: bool,
) -> io.NodeOutput:
    """Return the three outputs. pictures: PIL images of `before` and of `after`, one a name."""
    import torch

    from ..backend.jobs.live_state import blurred
    from ..backend.jobs.try_lora import contact_sheet
    from .pictures import to_image

    rows = list(zip(names, zip(*pictures, strict=True), strict=True))
    sheet = contact_sheet(rows, show=show, columns=columns)
    outputs = [
        torch.cat([to_image(p if show else blurred(p)) for p in column]) for column in pictures
    ]
    return io.NodeOutput(*outputs, to_image(sheet), ui={"text": [said]})
