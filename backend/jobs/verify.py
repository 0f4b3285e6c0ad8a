"""Verify a hardened checkpoint against its header, its source and its recorded probe."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint.detect import decision_needed, detect
from ..checkpoint.hashing import sha256_of, tensor_sha256_of
from ..checkpoint.info import CheckpointInfo
from ..checkpoint.inspect import copies_in, inspect
from ..checkpoint.verify import verify_export
from ..errors import CheckpointError, ConfigError, ResAlignError
from ..progress import ProgressCallback, silent
from .device import resolve_device

if TYPE_CHECKING:
    from ..probe.recorded import Repeated

BUDGET = 60.0  # minutes for repeating the recorded probe
_REPEATED = "probe reproduced"
BAD = "A check failed: the file is not what its header says, or its figures did not come out again."
HASHES = (
    "Hashes here are the header's own: they show that nothing changed since it was written, not "
    "who wrote it."
)
REPEATED = (
    "The recorded figures came out again, measured here with the attacks, prompts, scorer and "
    "thresholds of the file's own record. Whether those are fair is not shown: read the plan "
    "(`resalign inspect --json`)."
)
NOT_REPEATED = (
    "No figure was measured again. Until they are, they are the publisher's statement: whoever "
    "writes a file can write any figures into it, and hashes that agree."
)


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison. ok: None where it could not be made; `detail` then says why."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class Verified:
    """All comparisons of a file. `good`: none of them failed."""

    checks: tuple[Check, ...]

    @property
    def good(self) -> bool:
        return all(check.ok is not False for check in self.checks)

    @property
    def says(self) -> tuple[str, ...]:
        """What the checks show and what they do not, in sentences."""
        if not self.good:
            return (BAD,)
        repeated = any(check.name == _REPEATED and check.ok for check in self.checks)
        return HASHES, REPEATED if repeated else NOT_REPEATED


def verify_job(
    file: Path,
    *,
    source: Path | None = None,
    probe: bool = True,
    device: str = "auto",
    budget: float = BUDGET,
    parts: Mapping[str, str] | None = None,
    on_progress: ProgressCallback = silent,
) -> Verified:
    """Compare a hardened file with what its header says.

    Args:
        source: the original; by default the file of its recorded name beside `file`.
        probe: repeat the recorded probe too, on `device`, for at most `budget` minutes.
        parts: files of components that neither holds, by component, which only the probe needs.
    """
    if not budget > 0:
        raise ConfigError(f"the budget is {budget:g} minutes; give more than 0")
    found = inspect(file)
    if not found.hardened:
        raise CheckpointError(f"{file.name} has no record of a hardening: nothing to verify")
    source = find_source(file, source, str(found.hardened.get("source", "")))
    checks = [_check_tensors(file, found.metadata, on_progress)]
    checks += compare_with_source(file, source, found.hardened, on_progress)
    checks.append(check_copies(file, source, found.hardened))
    options = {"device": device, "budget": budget, "parts": parts, "on_progress": on_progress}
    checks.append(_check_probe(file, source, found.hardened, asked=probe, **options))
    return Verified(tuple(checks))


def find_source(file: Path, given: Path | None, name: str) -> Path | None:
    """Return the original: as given, or beside the file under its recorded name."""
    if given:
        if not given.exists():
            raise CheckpointError(f"--source: {given} does not exist")
        if given.is_dir() != file.is_dir():
            kinds = ("a folder", "a file") if given.is_dir() else ("a file", "a folder")
            raise CheckpointError(
                f"--source: {given} is {kinds[0]}, and {file.name} is {kinds[1]}: give the original"
            )
        _own(given)  # raises where it is not a checkpoint
        return given
    name = re.split(r"[\\/]", name)[-1]  # a header must not make us read files elsewhere
    beside = file.parent / name
    return beside if name and beside.exists() and beside.resolve() != file.resolve() else None


def _check_tensors(file: Path, metadata: Mapping[str, str], on_progress: ProgressCallback) -> Check:
    name = "tensors as recorded"
    recorded = metadata.get("modelspec.hash_sha256", "").removeprefix("0x")
    if file.is_dir() or not recorded:
        what = "a folder" if file.is_dir() else "its header"
        return Check(name, None, f"{what} keeps no hash of its tensors")
    now = tensor_sha256_of(file, on_progress=on_progress)
    return Check(name, now == recorded, f"sha256 of the tensors {now[:16]}...")


def compare_with_source(
    file: Path,
    source: Path | None,
    hardened: Mapping[str, Any],
    on_progress: ProgressCallback = silent,
) -> list[Check]:
    """Compare the source with its recorded hash, and the file's tensors with the source's."""
    names = ("source as recorded", "untouched tensors")
    if source is None:
        text = f"{hardened.get('source', 'the original')} is not here: give --source"
        return [Check(name, None, text) for name in names]
    if source.is_dir():
        first = Check(names[0], None, "a folder")
    else:
        now = sha256_of(source, on_progress=on_progress)
        recorded = str(hardened.get("source_sha256", ""))
        first = Check(names[0], now == recorded, f"{source.name}, sha256 {now[:16]}...")
    return [first, _compare_tensors(names[1], file, source, hardened.get("touched_tensors"))]


def _compare_tensors(name: str, file: Path, source: Path, touched: Any) -> Check:
    if source.is_dir() != file.is_dir():
        return Check(name, None, "one is a folder, the other a file: give the same kind")
    try:
        compared = verify_export(source, file)
    except ResAlignError as error:
        return Check(name, False, str(error))
    changed = len(compared.changed)
    if type(touched) is not int:
        return Check(name, False, f"{changed} changed, and no count of them is recorded")
    text = f"{len(compared.identical)} identical, {changed} changed, {touched} recorded as changed"
    return Check(name, changed <= touched, text)


def check_copies(file: Path, source: Path | None, record: dict[str, Any]) -> Check:
    """Compare the further copies of the denoiser in a file or folder with what is recorded of them,
    and with the source's. Only the denoiser's own file is needed, not its companions.

    record: the `resalign.*` fields of the header.
    """
    name = "other copies"
    try:
        own = _own(file)
        copies = copies_in(own, record)
    except CheckpointError as error:
        return Check(name, None, str(error))
    bad = [copy.where for copy in copies if copy.fate == "not hardened"]
    if bad:
        text = f"{', '.join(bad[:3])}: may hold the unhardened denoiser, and no record names it"
        return Check(name, False, text)
    hardened = [copy.where for copy in copies if copy.fate == "hardened"]
    kept = [
        f"{copy.where} kept{' unopened,' * (not copy.tensors)} as recorded"
        for copy in copies
        if copy.fate == "kept"
    ]
    if not hardened:
        return Check(name, True, "; ".join(kept) or "the denoiser is there only once")
    where = "; ".join([f"{', '.join(hardened[:3])} recorded as hardened", *kept])
    if source is None or source.is_dir() != file.is_dir():
        return Check(name, None, f"{where}; to compare them, give --source")
    from ..checkpoint.changed_alike import unlike_copies

    try:
        count, unlike = unlike_copies(_own(source), own)
    except ResAlignError as error:
        return Check(name, False, str(error))
    if unlike:
        text = f"{len(unlike)} of {count} tensors did not change as the denoiser did: {unlike[0]}"
        return Check(name, False, text)
    return Check(name, True, f"{where}: {count} tensors changed as the denoiser did")


def _own(path: Path) -> CheckpointInfo:
    """Recognise a file or folder as far as comparing its denoiser takes."""
    return detect(path, otherwise="epsilon", alone=True)


def _check_probe(
    file: Path,
    source: Path | None,
    hardened: Mapping[str, Any],
    *,
    asked: bool,
    device: str,
    budget: float,
    parts: Mapping[str, str] | None,
    on_progress: ProgressCallback,
) -> Check:
    name, record = "probe", hardened.get("probe")
    if not isinstance(record, dict) or "looks" not in record:
        return Check(name, None, "none is recorded")
    if not asked:
        return Check(name, None, "omitted, as requested")
    if source is None:
        return Check(name, None, "needs the original: give --source")
    from ..probe.budget import BudgetSpent, timed
    from ..probe.recorded import reproduce  # takes seconds to import

    try:
        decided = decision_needed(source, file)
        detect(file, parts=parts)
    except CheckpointError as error:  # its text encoder or VAE lies elsewhere
        return Check(name, None, str(error))
    with tempfile.TemporaryDirectory(prefix="resalign-verify-") as folder:
        try:
            repeated = reproduce(
                record, source, file, folder=Path(folder), device=resolve_device(device),
                prediction=decided, parts=parts, on_progress=timed(on_progress, budget),
            )  # fmt: skip
        except BudgetSpent:
            return Check(
                name, None,
                f"stopped after {budget:g} minutes: allow more with --budget MINUTES, or use "
                "--no-probe",
            )  # fmt: skip
    return Check(_REPEATED, *_judge(repeated))


def _judge(repeated: Sequence[Repeated]) -> tuple[bool, str]:
    exact = sum(one.exact for one in repeated)
    if exact == len(repeated):
        return True, f"all {exact} evaluations agree in every image"
    apart = [one for one in repeated if not one.agrees]
    if not apart:
        more = sum(one.now > one.recorded for one in repeated)
        recorded, now = (sum(getattr(one, k) for one in repeated) for k in ("recorded", "now"))
        return True, (
            f"{exact} of {len(repeated)} evaluations agree in every image, the rest within "
            f"intervals: {more} flag more now, {len(repeated) - exact - more} less; in all "
            f"{recorded} flagged as recorded, {now} now"
        )
    worst = max(apart, key=lambda one: abs(one.now - one.recorded) / one.images)
    return False, (
        f"{len(apart)} of {len(repeated)} evaluations differ by more than chance: {worst.model}, "
        f"{worst.attack}, step {worst.step}: {worst.recorded} of {worst.images} recorded, "
        f"{worst.now} now"
    )
