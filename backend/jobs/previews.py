"""Small pictures that the model generates while it is hardened.

They are generated between two outer steps, with noise of their own: a run ends in the same bytes
with and without them. No scorer evaluates them, so a picture of a concept counts as flagged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..plan.checks import check_prompts
from ..progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from ..families import Family
    from ..families.base.conditioning import Conditioning
    from ..model.model import Model
    from ..plan.hardening import HardeningPlan

STAGE = "preview"  # of what is reported while one is drawn
DRAWN = 2  # pictures of a preview: of the concept, and of something else
STEPS = 12  # of the sampler
PARTS = STEPS + 1  # of a preview: the last one decodes and shows the pictures
GUIDANCE = 7.5
_LARGEST = 512
_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PreviewSettings:
    """Settings of previews: what to generate, how often, and who shows it.

    show: takes a PIL image, its caption, `flagged` and `step`. every: outer steps between two
    previews, 0 for none. prompt: empty for the first concept's first. check: called at each of
    the sampler's steps; raise from it to stop. on_progress: receives those steps, of which the
    first may take long: a page would show nothing for minutes.
    """

    show: Callable[..., Any]
    every: int
    prompt: str = ""
    check: Callable[[], None] = lambda: None
    on_progress: ProgressCallback = silent

    def __post_init__(self) -> None:
        check_prompts("preview", [self.prompt])


class Previews:
    """A progress callback that generates previews of one model. Call `begin` first."""

    def __init__(self, settings: PreviewSettings, model: Model, plan: HardeningPlan) -> None:
        self._settings, self._model, self._plan = settings, model, plan
        self._side = min(_LARGEST, plan.resolution or model.resolution)
        self._prompts: tuple[str, ...] = ()
        self._encoded: Conditioning | None = None
        self._empty: Conditioning | None = None

    def begin(self, step: int = 0) -> None:
        """Encode the prompts; where the run has no step yet, show the model as it is."""
        from ..data.concept import retain_prompts
        from ..model.encode import encode_prompts, encoders_on_device

        plan = self._plan
        own = self._settings.prompt.strip()
        own = own or next((prompt for c in plan.concepts for prompt in c.prompts), "")
        kept = plan.retain_set.prompts if plan.retain_set else ()
        self._prompts = (own or plan.concepts[0].name, (kept or retain_prompts(1))[0])
        size = (self._side, self._side)
        with encoders_on_device(self._model):
            self._encoded = encode_prompts(self._model, self._prompts, size=size)
            self._empty = encode_prompts(self._model, [""], size=size)
        if not step:
            self._generate(0)

    def __call__(self, progress: Progress, /) -> None:
        if progress.stage != "harden" or not progress.values:
            return
        if progress.step % self._settings.every == 0 or progress.step == progress.total:
            self._generate(progress.step)

    def _generate(self, step: int) -> None:
        from ..model.generate import generate_images

        assert self._encoded is not None
        images = generate_images(
            self._model, self._encoded, seeds=[_SEED] * len(self._prompts), steps=STEPS,
            guidance=_guidance(self._model.family), height=self._side, width=self._side,
            negative=self._empty, on_progress=self._tell,
        )  # fmt: skip
        for number, (image, text) in enumerate(zip(images, self._prompts, strict=True)):
            caption = f"{self._moment(step)}: {text}"
            self._settings.show(to_pil(image), caption, flagged=number == 0, step=step)
        self._report(PARTS)

    def _moment(self, step: int) -> str:
        """Return which model is drawn after a step: `original`, `hardened`, or `step 20`."""
        if step == self._plan.outer_steps:
            return "hardened"
        return f"step {step}" if step else "original"

    def _tell(self, progress: Progress, /) -> None:
        self._settings.check()
        if progress.micro_total:
            self._report(progress.micro_step)

    def _report(self, part: int) -> None:
        self._settings.on_progress(
            Progress(stage=STAGE, step=0, total=0, micro_step=part, micro_total=PARTS)
        )


def _guidance(family: Family) -> float:
    return family.guidance[0] if family.guidance else GUIDANCE


def to_pil(image: Any) -> Any:
    """Return [3, height, width] from -1 to 1 as a PIL image; values not finite are black."""
    from PIL import Image

    pixels = ((image.float().nan_to_num(-1.0) + 1) * 127.5).clamp(0, 255).round()
    return Image.fromarray(pixels.byte().movedim(0, -1).cpu().numpy())
