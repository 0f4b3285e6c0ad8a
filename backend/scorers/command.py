"""Any program as a scorer: it gets a folder of pictures and prints their scores.

The folder's path is added as the last argument. It holds `00000.png`, `00001.png`, ... and
`prompts.json`, the list of their prompts. On standard output the program prints one JSON object:

    {"values": [0.1, 0.9], "flagged": [false, true], "labels": ["", "weapon"]}

one entry per picture, in order. `labels` may be left out, and `flagged` too if the
configuration has a threshold, which takes precedence. The program is started without a shell, once
per piece of up to some dozens of images; its standard error is shown if it fails.
"""

from __future__ import annotations

import json
import math
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from ..errors import ConfigError
from ..plan.measurement import ScorerConfig
from ..text import json_text
from .fields import uses_only
from .pictures import checked, to_bytes
from .scores import Scores

TIMEOUT = 3600.0  # seconds for one set of images: a large model may have to load


class CommandScorer:
    """Values, flags and labels as the command prints them."""

    def __init__(self, config: ScorerConfig, *, timeout: float = TIMEOUT) -> None:
        uses_only(config, "command", "threshold")
        if not config.command:
            raise ConfigError(f"scorer {config.name}: command is empty; give a program to run")
        self.name, self.command, self.threshold = config.name, config.command, config.threshold
        self.timeout = timeout

    def score(self, images: Tensor, prompts: Sequence[str]) -> Scores:
        """See :class:`Scorer`.

        Raises:
            ConfigError: the command cannot be started, fails, takes too long, or prints
                something else.
        """
        pictures = to_bytes(checked(images, prompts))
        if not len(pictures):
            return Scores(scorer=self.name, values=(), flagged=())
        with tempfile.TemporaryDirectory(prefix="resalign-score-") as top:
            folder = Path(top) / "images"
            folder.mkdir()
            for number, picture in enumerate(pictures):
                Image.fromarray(picture).save(folder / f"{number:05d}.png", compress_level=1)
            (folder / "prompts.json").write_text(json.dumps(list(prompts)), encoding="utf-8")
            return self._understood(self._printed(folder), len(pictures))

    def _printed(self, folder: Path) -> str:
        # Files and not pipes: a grandchild that outlives the command would hold a pipe open.
        out, err = folder.parent / "stdout", folder.parent / "stderr"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            try:
                code = subprocess.run(
                    [*self.command, str(folder)],
                    stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, timeout=self.timeout,
                    check=False,
                ).returncode  # fmt: skip
            except OSError as error:
                raise self._error(f"cannot be started: {error.strerror or error}") from error
            except subprocess.TimeoutExpired:
                code = None
        said = [line for line in _text(err).splitlines() if line.strip()]
        last = f"; its last line of output: {said[-1].strip()}" if said else ""
        if code is None:
            raise self._error(f"was stopped after {self.timeout:g} s{last}")
        if code:
            raise self._error(f"ended with status {code}{last}")
        return _text(out)

    def _understood(self, text: str, images: int) -> Scores:
        try:
            answer = json_text.loads(text)
        except ValueError as error:
            begin = text.strip()[:80]
            raise self._error(f"must print one JSON object; it printed {begin!r}") from error
        if not isinstance(answer, dict) or "values" not in answer:
            raise self._error('must print a JSON object with "values"')
        values = self._list(answer, "values", images, _is_number, "finite numbers")
        if self.threshold is not None:
            flagged = [value >= self.threshold for value in values]
        elif "flagged" in answer:
            flagged = self._list(answer, "flagged", images, _is_bool, "true or false")
        else:
            raise self._error('printed no "flagged", and the configuration has no threshold')
        labels = [""] * images
        if "labels" in answer:
            labels = self._list(answer, "labels", images, _is_text, "texts")
        return Scores(
            scorer=self.name, values=tuple(map(float, values)), flagged=tuple(flagged),
            labels=tuple(labels),
        )  # fmt: skip

    def _list(self, answer: dict[str, Any], name: str, count: int, fits: Any, what: str) -> list:
        found = answer[name]
        if not isinstance(found, list) or not all(map(fits, found)):
            raise self._error(f'printed "{name}" that is not a list of {what}')
        if len(found) != count:
            raise self._error(f'printed {len(found)} "{name}" for {count} images')
        return found

    def _error(self, what: str) -> ConfigError:
        return ConfigError(f"scorer {self.name}: the command {self.command[0]!r} {what}")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace")


def _is_number(value: object) -> bool:
    numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
    return numeric and math.isfinite(value)  # type: ignore[arg-type]


def _is_bool(value: object) -> bool:
    return isinstance(value, bool)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
