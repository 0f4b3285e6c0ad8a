"""verify: does a hardened file hold what its header says, and does its probe come out again?"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError, ResAlignError
from .console import Console

if TYPE_CHECKING:
    from ..probe.recorded import Repeated

MISMATCH = 1  # exit code: the file is not what it says it is


def verify(args: argparse.Namespace, console: Console) -> int:
    from ..checkpoint.inspect import inspect

    file = Path(args.file)
    found = inspect(file)
    if not found.hardened:
        raise CheckpointError(f"{file.name} says nothing of having been hardened: nothing to check")
    source = _source(file, args.source, str(found.hardened.get("source", "")))
    rows = _of_the_file(file, found.metadata, console)
    rows += _against_the_source(file, source, found.hardened, console)
    rows += _probe(file, source, found.hardened.get("probe"), args, console)
    good = all(state is not False for _, state, _ in rows)
    marks = {True: "ok", False: "WRONG", None: "not checked"}
    width = max(len(name) for name, _, _ in rows)
    lines = [f"{name:{width}}  {marks[state]:11}  {text}".rstrip() for name, state, text in rows]
    checks = [{"check": name, "ok": state, "detail": text} for name, state, text in rows]
    console.result("\n".join(lines), "done", verified=good, checks=checks)
    return 0 if good else MISMATCH


Row = tuple[str, "bool | None", str]


def _source(file: Path, given: str | None, name: str) -> Path | None:
    """The original: as given, or beside the file under its recorded name."""
    if given:
        if not Path(given).exists():
            raise CheckpointError(f"--source: {given} does not exist")
        return Path(given)
    name = re.split(r"[\\/]", name)[-1]  # a header must not make us read what lies elsewhere
    beside = file.parent / name
    return beside if name and beside.exists() and beside.resolve() != file.resolve() else None


def _of_the_file(file: Path, metadata: dict[str, str], console: Console) -> list[Row]:
    from ..checkpoint.hashing import tensor_sha256_of

    recorded = metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
    if file.is_dir() or not recorded:
        return [("tensors as recorded", None, "a folder's header keeps no hash of its tensors")]
    now = tensor_sha256_of(file, on_progress=console.progress)
    return [("tensors as recorded", now == recorded, f"sha256 of the tensors {now[:16]}...")]


def _against_the_source(
    file: Path, source: Path | None, hardened: dict[str, Any], console: Console
) -> list[Row]:
    from ..checkpoint.hashing import sha256_of
    from ..checkpoint.verify import verify_export

    names = ("source as recorded", "untouched tensors")
    if source is None:
        text = f"{hardened.get('source', 'the original')} is not here: give --source"
        return [(name, None, text) for name in names]
    recorded = str(hardened.get("source_sha256", ""))
    rows: list[Row] = []
    if source.is_dir():
        rows.append((names[0], None, "a folder"))
    else:
        now = sha256_of(source, on_progress=console.progress)
        rows.append((names[0], now == recorded, f"{source.name}, sha256 {now[:16]}..."))
    if source.is_dir() != file.is_dir():
        return [*rows, (names[1], None, "one is a folder, the other a file: give the same kind")]
    try:
        compared = verify_export(source, file)
    except ResAlignError as error:
        return [*rows, (names[1], False, str(error))]
    changed, touched = len(compared.changed), hardened.get("touched_tensors")
    if type(touched) is not int:
        return [*rows, (names[1], False, f"{changed} changed, and no count of them is recorded")]
    text = f"{len(compared.identical)} identical, {changed} changed, {touched} recorded as changed"
    return [*rows, (names[1], changed <= touched, text)]


def _probe(
    file: Path, source: Path | None, record: Any, args: argparse.Namespace, console: Console
) -> list[Row]:
    name = "probe"
    if not isinstance(record, dict) or "looks" not in record:
        return [(name, None, "none is recorded")]
    if args.no_probe:
        return [(name, None, "left out, as asked")]
    if source is None:
        return [(name, None, "needs the original: give --source")]
    from ..jobs.check import resolve_device
    from ..probe.recorded import reproduce

    with tempfile.TemporaryDirectory(prefix="resalign-verify-") as folder:
        repeated = reproduce(
            record, source, file, folder=Path(folder), device=resolve_device(args.device or "auto"),
            on_progress=console.progress,
        )  # fmt: skip
    return [("probe reproduced", *_verdict(repeated))]


def _verdict(repeated: Sequence[Repeated]) -> tuple[bool, str]:
    exact = sum(evaluation.exact for evaluation in repeated)
    if exact == len(repeated):
        return True, f"all {exact} evaluations exactly as recorded"
    apart = [evaluation for evaluation in repeated if not evaluation.agrees]
    if not apart:
        how_many = f"{exact} of {len(repeated)} evaluations"
        return True, f"{how_many} exactly as recorded, the rest within intervals"
    worst = max(apart, key=lambda each: abs(each.now - each.recorded) / each.images)
    return False, (
        f"{len(apart)} of {len(repeated)} evaluations differ by more than chance: {worst.model}, "
        f"{worst.attack}, step {worst.step}: {worst.recorded} of {worst.images} recorded, "
        f"{worst.now} now"
    )
