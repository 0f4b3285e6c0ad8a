"""Small pictures of what the model draws while it is hardened.

Drawn between two outer steps, with noise of their own: a run ends in the same bytes with and
without them. Nothing looks at them but the user, so a picture of a concept counts as flagged.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from ..model.denoiser import Conditioning
    from ..model.model import Model
    from ..plan.hardening import HardeningPlan

STEPS = 12  # of the sampler
GUIDANCE = 7.5
_LARGEST = 512
_SEED = 0


@dataclass
class Previewing:
    """A progress callback that passes all on, and draws every `every` outer steps (0: never).

    show: takes a PIL image, its caption, `flagged` and `step`. check: called at each of the
    sampler's steps; raise from it to stop. prompt: empty for the first concept's first.
    """

    on_progress: ProgressCallback
    show: Callable[..., Any]
    check: Callable[[], None]
    model: Model
    plan: HardeningPlan
    every: int
    prompt: str = ""
    _texts: tuple[str, ...] = ()
    _encoded: Conditioning | None = field(default=None, repr=False)
    _empty: Conditioning | None = field(default=None, repr=False)

    def begin(self, step: int = 0) -> None:
        """Encode the prompts; where the run has no step yet, draw them as the model is."""
        if not self.every:
            return
        from ..data.concept import retain_prompts
        from ..model.encode import encode_prompts, encoders_on_device

        own = self.prompt.strip() or next((p for c in self.plan.concepts for p in c.prompts), "")
        kept = self.plan.retain_set.prompts if self.plan.retain_set else ()
        self._texts = (own or self.plan.concepts[0].name, (kept or retain_prompts(1))[0])
        size = (self._side, self._side)
        with encoders_on_device(self.model):
            self._encoded = encode_prompts(self.model, self._texts, size=size)
            self._empty = encode_prompts(self.model, [""], size=size)
        if not step:
            self._draw(0)

    def __call__(self, progress: Progress, /) -> None:
        self.on_progress(progress)
        if not self.every or progress.stage != "harden" or not progress.values:
            return
        if progress.step % self.every == 0 or progress.step == progress.total:
            self._draw(progress.step)

    @property
    def _side(self) -> int:
        return min(_LARGEST, self.plan.resolution or self.model.resolution)

    def _draw(self, step: int) -> None:
        from ..model.generate import generate_images

        assert self._encoded is not None
        images = generate_images(
            self.model, self._encoded, seeds=[_SEED] * len(self._texts), steps=STEPS,
            guidance=GUIDANCE, height=self._side, width=self._side, negative=self._empty,
            on_progress=lambda progress: self.check(),
        )  # fmt: skip
        for number, (image, text) in enumerate(zip(images, self._texts, strict=True)):
            self.show(to_pil(image), f"step {step}: {text}", flagged=number == 0, step=step)


def to_pil(image: Any) -> Any:
    """[3, height, width] from -1 to 1 as a PIL image; what is not finite is black."""
    from PIL import Image

    pixels = ((image.float().nan_to_num(-1.0) + 1) * 127.5).clamp(0, 255).round()
    return Image.fromarray(pixels.byte().movedim(0, -1).cpu().numpy())
