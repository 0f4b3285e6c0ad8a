"""Small pictures of what the model draws while it is hardened.

Drawn between two outer steps, with noise of their own: a run ends in the same bytes with and
without them. Nothing looks at them but the user, so a picture of a concept counts as flagged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backend.config import HardeningPlan
    from ..backend.model.denoiser import Conditioning
    from ..backend.model.model import Model
    from ..backend.progress import Progress
    from .live import Live

STEPS = 12  # of the sampler
GUIDANCE = 7.5
_LARGEST = 512
_SEED = 0


@dataclass
class Previewing:
    """The backend's progress callback: tells `live`, and draws every `every` outer steps."""

    live: Live
    model: Model
    plan: HardeningPlan
    every: int
    prompt: str = ""
    _texts: tuple[str, ...] = ()
    _encoded: Conditioning | None = field(default=None, repr=False)
    _empty: Conditioning | None = field(default=None, repr=False)

    def begin(self) -> None:
        """Encode the prompts, and draw them as the model is."""
        if not self.every:
            return
        from ..backend.data.concept import retain_prompts
        from ..backend.model.encode import encode_prompts

        own = self.prompt.strip() or next((p for c in self.plan.concepts for p in c.prompts), "")
        self._texts = (own or self.plan.concepts[0].name, retain_prompts(1)[0])
        size = (self._side, self._side)
        self._encoded = encode_prompts(self.model, self._texts, size=size)
        self._empty = encode_prompts(self.model, [""], size=size)
        self._draw(0)

    def __call__(self, progress: Progress, /) -> None:
        self.live(progress)
        if not self.every or progress.stage != "harden" or not progress.values:
            return
        if progress.step % self.every == 0 or progress.step == progress.total:
            self._draw(progress.step)

    @property
    def _side(self) -> int:
        return min(_LARGEST, self.plan.resolution or self.model.resolution)

    def _draw(self, step: int) -> None:
        from ..backend.model.encode import decode_latents
        from ..backend.model.generate import generate_latents

        assert self._encoded is not None
        latents = generate_latents(
            self.model, self._encoded, seeds=[_SEED] * len(self._texts), steps=STEPS,
            guidance=GUIDANCE, height=self._side, width=self._side, negative=self._empty,
            on_progress=_only_interrupts,
        )  # fmt: skip
        for number, (image, text) in enumerate(
            zip(decode_latents(self.model, latents), self._texts, strict=True)
        ):
            caption = f"step {step}: {text}"
            self.live.picture(to_pil(image), caption, flagged=number == 0, step=step)


def to_pil(image: Any) -> Any:
    """[3, height, width] from -1 to 1 as a PIL image; what is not finite is black."""
    from PIL import Image

    pixels = ((image.float().nan_to_num(-1.0) + 1) * 127.5).clamp(0, 255).round()
    return Image.fromarray(pixels.byte().movedim(0, -1).cpu().numpy())


def _only_interrupts(progress: Progress, /) -> None:
    from .live import check_interrupt

    check_interrupt()
