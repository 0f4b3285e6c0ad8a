"""A MODEL under test, as the backend's probe expects it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..backend.adapter.dense import AnyAdapter
    from ..backend.model.model import Model
    from ..backend.plan.hardening import HardeningPlan


class HostSubject:
    """Implements the backend's Subject: the Model is built when it is opened, then dropped."""

    def __init__(
        self,
        name: str,
        model: Any,
        clip: Any,
        vae: Any,
        *,
        adapter: AnyAdapter | None = None,
        plan: HardeningPlan | None = None,
        source: Path | None = None,
        role: str = "",
    ) -> None:
        """plan: of the run that made the adapter. role: `oracle` or `plain` for a MODEL that stands
        beside the others as a reference."""
        from ..backend.plan.methods import is_test_run, of_test_run
        from ..backend.probe.results import WEIGHTS, ModelInfo
        from ..backend.probe.subjects import adapter_digest
        from . import bridge

        self._parts, self._adapter, self._source = (model, clip, vae), adapter, source
        weights = bridge.fingerprint(model, clip, vae)
        self.identity = weights + (adapter_digest(adapter) if adapter else "")
        method = f"{WEIGHTS}{weights[:12]}"
        if adapter is not None:
            test = of_test_run(plan.outer_steps) if plan and is_test_run(plan) else ""
            method = f"adapter in memory{test}, {adapter_digest(adapter)}"
        self.info = ModelInfo(
            name=name,
            source=source.name if source else "",
            family=bridge.family_of(model).name,
            method=method,
            role=role,
        )

    @contextmanager
    def opened(self) -> Iterator[Model]:
        from ..backend.adapter.merge_in_place import merged
        from . import bridge

        with ExitStack() as stack:
            model = stack.enter_context(bridge.to_backend(*self._parts, source=self._source))
            if self._adapter is not None:
                model = stack.enter_context(merged(model, self._adapter))
            yield model
