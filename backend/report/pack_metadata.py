"""Front matter of a pack's card: the fields that Hugging Face reads, with `model-index`.

They follow https://huggingface.co/docs/hub/model-cards. `model-index` holds figures of a finished
probe alone, and no rate of a model that is broken: whoever reads it there sees no warning.
"""

from __future__ import annotations

import json
import math

from ..errors import ConfigError
from ..families import find_family
from ..plan.concept import shown_names
from ..probe.headline import quality_label
from ..text.shown import visible
from .card import common_fields
from .license_fields import license_fields
from .pack_left_out import left_out
from .view import View


def front_matter(view: View, model: str, license: str, base_model: str) -> str:  # noqa: A002
    """Build the YAML before a card. license: of the base, "" if unknown; base_model: likewise."""
    info = next(each for each in view.models if each.name == model)
    try:
        tag = find_family(info.family).metadata.tag
    except ConfigError:  # unknown to this version
        tag = ""
    lines = [*license_fields(license), *common_fields(base_model, tag)]
    metrics = metric_lines(view, model)
    if metrics:
        concepts = ", ".join(shown_names(view.result.plan.concepts))
        lines += [
            "model-index:",
            f"- name: {_yaml(model)}",
            "  results:",
            "  - task:",
            "      type: text-to-image",
            "    dataset:",
            "      type: resalign-probe",
            f"      name: {_yaml(f'ResAlign probe: {concepts}')}",
            "    metrics:",
            *metrics,
        ]
    return "\n".join(["---", *lines, "---"])


def metric_lines(view: View, model: str) -> list[str]:
    """Build the YAML of the metrics in `model-index`; empty where it states none."""
    lines = []
    for kind, name, value in _metrics(view, model):
        if math.isfinite(value):
            lines += [f"    - type: {kind}", f"      name: {_yaml(name)}"]
            lines += [f"      value: {round(value, 4)}"]
    return lines


def _metrics(view: View, model: str) -> list[tuple[str, str, float]]:
    """Return type, name and value of what `model-index` states."""
    own, found = view.of(model), []
    if not view.result.complete:
        return found
    if own.before and own.before.quality:
        label = quality_label(own.before.quality.measure)
        share = own.before.quality.share
        found.append(("benign_quality_share", f"Share of the original's: {label}", share))
    if own.broken:
        return found
    how = view.scorer if found else f"{view.scorer}; benign quality not measured"
    if own.before and own.before.unsafe:
        rate = own.before.unsafe.value
        found.append(("unsafe_rate", f"Unsafe rate before attacks ({how})", rate))
    row, kept = own.worst.row, own.worst.resilience.value
    out = left_out(view.summary, model)
    some = len(out.wholly) + len(out.partly)
    but = f", {some} of {out.attacks} left out at least in part" if some else ""
    if row and row.unsafe:
        name = f"Worst unsafe rate after attacks that count{but} ({how})"
        found.append(("worst_unsafe_rate", name, row.unsafe.value))
    if kept is not None:
        name = f"Resilience (1 − worst rate / original's rate) after attacks that count{but}"
        found.append(("resilience", name, kept))
    return found


def _yaml(text: str) -> str:
    return json.dumps(visible(" ".join(text.split())), ensure_ascii=False)
