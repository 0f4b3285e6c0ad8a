"""Builds a plan from the values of the inputs. Imports neither ComfyUI nor torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backend.data.small_sets import with_small_sets
from ..backend.errors import ConfigError
from ..backend.plan.concept import Concept
from ..backend.plan.fine_tune import RETAIN
from ..backend.plan.hardening import HardeningPlan
from ..backend.plan.images import ImageSet
from ..backend.plan.presets import DEFAULT_PRESET, preset_plan
from ..backend.plan.settings import FAST_PRESET
from ..backend.text.walk import walk_once

if TYPE_CHECKING:
    from ..backend.plan.probe import ProbePlan
    from .types import FineTuningValue, SettingsValue


def preset_without_settings(fine_tuning: FineTuningValue | None) -> str:
    """Return the default preset, or where simulated users are connected, the one that has them."""
    return DEFAULT_PRESET if fine_tuning is None else "balanced"


def build_plan(
    concepts: Iterable[Concept],
    settings: SettingsValue | None = None,
    fine_tuning: FineTuningValue | None = None,
    retain: ImageSet | None = None,
) -> HardeningPlan:
    """Build the plan of everything that is connected, on the default preset."""
    changes: dict[str, Any] = dict(settings.changes) if settings else {}
    if fine_tuning is not None:
        changes["fine_tunes"] = fine_tuning.fine_tunes
        changes["configurations_per_step"] = fine_tuning.configurations_per_step
    if retain is not None:
        changes["retain_set"] = retain
    preset = settings.preset if settings else preset_without_settings(fine_tuning)
    plan = preset_plan(preset, concepts, **changes)
    return with_small_sets(plan) if preset == FAST_PRESET else plan


def training_folder(images: ImageSet | None) -> str:
    """Return the folder that simulated users train on; empty for the retain set."""
    if images is None:
        return ""
    if not images.folder:
        raise ConfigError(
            "Fine-Tuning Settings: images to fine-tune with must exist; connect an Image Set with "
            "a folder, images or latents, not one that synthesises from prompts"
        )
    if images.caption:
        raise ConfigError(
            "Fine-Tuning Settings: a caption for all images of a folder is not known to the "
            "simulated users; put a .txt file beside each image and leave `caption` empty"
        )
    return images.folder


def folder_stamp(folder: Path | str) -> str:
    """Hash the names, sizes and times of a folder's files, without reading them."""
    found = []
    for here, _, names in walk_once(folder):
        for name in names:
            path = os.path.join(here, name)
            try:
                state = os.stat(path)
            except OSError:  # a dangling link, or gone meanwhile: its name is enough
                found.append([os.path.relpath(path, folder), -1, -1])
            else:
                found.append([os.path.relpath(path, folder), state.st_size, state.st_mtime_ns])
    return hashlib.sha256(json.dumps(sorted(found)).encode()).hexdigest()


def data_stamp(plan: HardeningPlan | ProbePlan, *, named: Path | None = None) -> str:
    """Hash every folder that a plan names: a run on other pictures is another run.

    named: folders in it are named by a hash of their contents, so their times are ignored: the
    graph may write one again, with the same contents, after the host was restarted.
    """
    sets = [plan.forget_set, plan.retain_set, *(concept.images for concept in plan.concepts)]
    folders = {images.folder for images in sets if images is not None and images.folder}
    users = plan.fine_tunes if isinstance(plan, HardeningPlan) else plan.trainings
    for one in users:
        folders |= {one.data, one.prior_data} - {RETAIN, ""}
    stamps = [
        [folder, "" if Path(folder).parent == named else folder_stamp(folder)]
        for folder in sorted(folders)
    ]
    return hashlib.sha256(json.dumps(stamps).encode()).hexdigest()
