"""The ComfyUI nodes (V3). ComfyUI calls `load` at its start, so nothing heavy is imported."""

from __future__ import annotations

from typing import Any


def load() -> Any:
    """Return the extension with all node classes, and register our routes."""
    from comfy_api.latest import ComfyExtension

    from . import routes
    from .concepts import ConceptList
    from .draw_concept import DrawConcept
    from .export import ExportHardenedCheckpoint, SaveHardeningLora
    from .harden import HardenModel
    from .images import ImageSet
    from .info import LoadHardenedInfo
    from .memory import MemoryPlan
    from .pack import PackRelease
    from .probe import ResilienceProbe
    from .report import ShowReport
    from .settings import FineTuningSettings, HardeningSettings
    from .try_lora import TryMyLora

    routes.register()

    class ResAlignExtension(ComfyExtension):
        async def get_node_list(self) -> list[type]:
            return [
                ConceptList, ImageSet, FineTuningSettings, HardeningSettings, MemoryPlan,
                HardenModel, ResilienceProbe, DrawConcept, TryMyLora, ShowReport,
                ExportHardenedCheckpoint, SaveHardeningLora, LoadHardenedInfo, PackRelease,
            ]  # fmt: skip

    return ResAlignExtension()
