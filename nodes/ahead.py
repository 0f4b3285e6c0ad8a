"""Refuses before a run what the nodes that it feeds would refuse after hours of work.

Their inputs stand in the graph, in the API format: a link is a pair of node and output, everything
else a value. What values alone show is refused already when the workflow is queued.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..backend.plan.attack import ORIGINAL
from ..backend.plan.probe_settings import MOST_AUDITED, SCORERS
from . import bridge
from .further import NONE, missing_labels
from .provenance import EXPORT, FROM_RUN, LOADED_MODEL, SOURCE_FILE, difference_from

PROBE = "ResAlign_ResilienceProbe"
PARTS = ("model", "clip", "vae")  # inputs of an Export that writes what is loaded
ABSENT = object()  # default of an input of `validate_inputs`: ComfyUI gives None for a link
Inputs = Mapping[str, Any]


def connected(given: Inputs) -> dict[str, Any]:
    """Return the inputs that `validate_inputs` was given."""
    return {name: value for name, value in given.items() if value is not ABSENT}


def check_ahead(model: Any, source: Path | None, hidden: Any) -> None:
    """Raise a ConfigError if an Export or a Probe of this graph would refuse the run.

    source: the file that the MODEL was loaded from. hidden: of Harden Model, with the graph.
    """
    check_exports(model, source, hidden)
    check_probes(model, source, hidden)


def check_exports(model: Any, source: Path | None, hidden: Any) -> None:
    from ..backend.errors import ConfigError

    for inputs in _fed(hidden, EXPORT):
        if _node_of(inputs.get("run")) != _own(hidden):
            continue
        if why := unconnected(inputs):
            raise ConfigError(f"Export Hardened Checkpoint, which this run feeds: {why}")
        if inputs.get("write_from") != SOURCE_FILE:
            continue
        chosen = str(inputs.get("source"))
        if chosen != FROM_RUN and (why := _not_held(model, chosen)):
            raise ConfigError(
                f"Export Hardened Checkpoint, which this run feeds: its source is {chosen}, which "
                f"does not hold the MODEL ({why}): choose the MODEL's own file, or '{FROM_RUN}'"
            )
        if why := _not_rewritten(model, source, chosen):
            raise ConfigError(
                "Export Hardened Checkpoint, which this run feeds, could not rewrite the source "
                f"file ({why}): set its write_from to '{LOADED_MODEL}' and connect model, clip and "
                "vae there"
            )


def unconnected(inputs: Inputs) -> str:
    """Return which inputs an Export of the loaded model lacks; empty if none."""
    if inputs.get("write_from") != LOADED_MODEL:
        return ""
    missing = [part for part in PARTS if part not in inputs]
    if not missing:
        return ""
    return (
        f"to write from the loaded model, connect {' and '.join(missing)} too: the hardened MODEL "
        "of Harden Model, and the CLIP and VAE of Load Checkpoint"
    )


def _not_held(model: Any, chosen: str) -> str:
    from .sources import model_file

    try:
        return difference_from(model, model_file(chosen))
    except OSError as error:
        return str(error)


def _not_rewritten(model: Any, source: Path | None, chosen: str) -> str:
    """Return why a file cannot be rewritten with the change of the MODEL; empty if it can."""
    from ..backend.checkpoint.detect import detect_as
    from ..backend.errors import ResAlignError
    from .sources import model_file

    if bridge.is_patched(model):
        return "the MODEL has LoRAs or merges on it, which its file lacks"
    path = source if chosen == FROM_RUN else model_file(chosen)
    if path is None:
        return "the file that the MODEL was loaded from is not known"
    try:
        detect_as(path, bridge.decision_of(model), alone=True)
    except ResAlignError as error:
        return str(error)
    return ""


def check_probes(model: Any, source: Path | None, hidden: Any) -> None:
    from ..backend.errors import ConfigError

    own = _own(hidden)
    mine = _node_of(_graph(hidden).get(own, {}).get("inputs", {}).get("model"))
    for inputs in _fed(hidden, PROBE):
        of_run = _node_of(inputs.get("run")) == own
        why, sibling = probe_problem(inputs), inputs.get("sibling")
        if why or not isinstance(sibling, str) or sibling == NONE:
            pass
        elif sibling == ORIGINAL:
            known = source if of_run else bridge.source_of(model)
            lost = known is None or bridge.is_patched(model)
            if lost and (of_run or _node_of(inputs.get("before")) == mine):
                why = "sibling: the original's file is not known; choose it in the list"
        else:
            why = _no_sibling(model, sibling)
        if why:
            raise ConfigError(f"Resilience Probe, which this run feeds: {why}")


def _no_sibling(model: Any, chosen: str) -> str:
    """Return why no LoRA for the MODEL can be trained on a file; empty if one can."""
    from ..backend.checkpoint.detect import detect_denoiser
    from ..backend.errors import ResAlignError
    from .sources import model_file

    try:
        family = detect_denoiser(model_file(chosen)).family
    except (ResAlignError, OSError) as error:
        return f"sibling: {chosen} cannot be used: {error}"
    own = bridge.family_of(model)
    return "" if family.name == own.name else f"sibling: {chosen} is {family}, the MODEL {own}"


def probe_problem(inputs: Inputs) -> str:
    """Return what is wrong with a probe's inputs; empty if nothing is, as far as they are known.

    inputs: those that are set or connected; a connected one's value may be a link, or None.
    """
    from ..backend.scorers.registry import not_installed

    if "after" in inputs and "run" in inputs:
        return "connect `after` or `run`, not both"
    if "concepts" not in inputs and "run" not in inputs:
        return "connect concepts, or the run of Harden Model"
    for name in ("scorer", "second_scorer"):
        scorer = inputs.get(name)
        if not isinstance(scorer, str) or (name == "second_scorer" and scorer == NONE):
            continue
        if scorer not in SCORERS:
            return f"{name} is {scorer!r}; choose from {', '.join(SCORERS)}"
        if install := not_installed(scorer):
            return f"{name}: the package of {scorer} is not installed; install it with: {install}"
    count = inputs.get("audit_pictures")
    if isinstance(count, int) and not 0 <= count <= MOST_AUDITED:
        return f"audit_pictures is {count}; it goes from 0 to {MOST_AUDITED}"
    if isinstance(count, int) and count and inputs.get("scorer") == SCORERS[0]:
        return (
            f"audit_pictures: {SCORERS[0]} sees no pictures, so nobody can check it: choose a "
            "detector"
        )
    labels = inputs.get("audit_labels")
    return missing_labels(labels) if isinstance(labels, str) else ""


def _graph(hidden: Any) -> dict[str, Any]:
    prompt = getattr(hidden, "prompt", None)
    whole = prompt if isinstance(prompt, dict) else {}
    return {str(key): node for key, node in whole.items() if isinstance(node, dict)}


def _own(hidden: Any) -> str:
    return str(getattr(hidden, "unique_id", None))


def _node_of(link: Any) -> str:
    """Return the node that a link begins at; empty for a value."""
    return str(link[0]) if isinstance(link, (list, tuple)) and link else ""


def _fed(hidden: Any, kind: str) -> Iterator[Inputs]:
    """Return the inputs of each node of a kind that what this node makes reaches."""
    graph, own = _graph(hidden), _own(hidden)
    for key, node in graph.items():
        if node.get("class_type") == kind and own in _before(graph, key):
            yield node.get("inputs", {})


def _before(graph: dict[str, Any], key: str) -> set[str]:
    """Return the nodes that a node depends on, however far."""
    seen: set[str] = set()
    waiting = [key]
    while waiting:
        inputs = graph.get(waiting.pop(), {}).get("inputs", {})
        found = {_node_of(link) for link in inputs.values()} - seen - {""}
        seen |= found
        waiting += found
    return seen
