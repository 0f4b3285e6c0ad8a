"""Checks a pack that somebody else wrote, and says what that shows and what it does not.

Everything that follows from the scores in `report.json` is computed again: pages, figures, card. A
pack in which only some of it was changed is found out. A *consistent forgery* is not: whoever
changes the scores and packs again gets a pack that passes. Only measuring again shows that.
"""

from __future__ import annotations

import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..checkpoint.hashing import sha256_of
from ..checkpoint.metadata import versions
from ..errors import RunError
from ..probe.kept_picture import is_blurred, kept_places
from ..probe.results import ProbeResult
from ..text import json_text
from .markdown import report_markdown
from .markdown_text import escape, table
from .pack_card import model_sentence
from .pack_check import check_report
from .pack_evidence import evidence
from .pack_files import SUMS
from .pack_header import compare_with_header
from .pack_metadata import metric_lines
from .pack_pictures import PackedPictures, open_kept
from .pack_results import pack_results
from .pack_sign import SIGNATURE
from .page import report_html
from .pictures import pixel_digest
from .plan_words import job_json
from .schema import load_report, to_report_json
from .view import View

MOST_FILES, MOST_BYTES = 100_000, 4 * 2**30  # in a .zip, unpacked
SHOWS = (
    "What this shows: the pack agrees with itself. Its files match its own SHA256SUMS, which "
    "whoever changes a file can write anew, and pages, card and figures follow from the scores in "
    "report.json."
)
SHOWS_NOT = (
    "What it does not show: that anything was measured. Whoever changes scores and flags alike and "
    "packs again passes every check above; so does a report with easier attacks, or of another "
    "file. To find out, measure again: `resalign probe probe.json` repeats all of it, and "
    "`resalign verify FILE --source ORIGINAL` what the file's header records. A replay repeats the "
    "attacks, prompts and thresholds that the publisher chose: read the plan too."
)
BAD = "A check failed: do not rely on the figures in this pack."


@dataclass(frozen=True, slots=True)
class Finding:
    """One check. ok: None where it was not made; `detail` then says why."""

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, slots=True)
class CheckedPack:
    """All checks of a pack. `good`: none of them failed."""

    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        return all(finding.ok is not False for finding in self.findings)


def check_pack(pack: Path, checkpoint: Path | None = None) -> CheckedPack:
    """Check a pack, a folder or a .zip, which may come from anybody.

    Args:
        checkpoint: the published file, if it is here.

    Raises:
        RunError: it is not a pack, or a .zip that is too large or names files outside itself.
    """
    with _opened(pack) as folder:
        found = [_listed(folder)]
        try:
            result = load_report(folder)
            check_report(result)
            record = _record(folder)
            view = View(result)
            if record["model"] not in [info.name for info in result.models]:
                raise RunError("results.json names a model that report.json does not have")
        except RunError as error:
            found.append(Finding("report agrees with itself", False, str(error)))
            return CheckedPack((*found, *_unproved(folder, None)))
        found.append(Finding("report agrees with itself", True, "flags follow from the scores"))
        found.append(_follows(folder, result, view, record))
        found.append(_pictures(folder, result))
        found += _published(result, record, checkpoint)
        return CheckedPack((*found, *_unproved(folder, checkpoint)))


def _record(folder: Path) -> dict[str, Any]:
    """Read the parts of `results.json` that the checks need."""
    try:
        record = json_text.read(folder / "results.json")
        model = record["model"]["name"]
        packed_with = str(record["versions"]["packed_with"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"results.json cannot be read: {error}") from None
    return {"whole": record, "model": model, "packed_with": packed_with}


@contextmanager
def _opened(pack: Path) -> Iterator[Path]:
    """Give the pack's folder; a .zip is unpacked into one that goes away."""
    if pack.is_dir():
        yield pack.resolve()
        return
    if not pack.is_file() or not zipfile.is_zipfile(pack):
        raise RunError(f"{pack} is not a pack: give its folder or its .zip")
    with tempfile.TemporaryDirectory(prefix="resalign-pack-") as folder:
        with zipfile.ZipFile(pack) as file:
            entries = file.infolist()
            if len(entries) > MOST_FILES or sum(each.file_size for each in entries) > MOST_BYTES:
                raise RunError(f"{pack.name} is larger than a pack can be; it was not unpacked")
            for each in entries:
                parts = PurePosixPath(each.filename)
                if parts.is_absolute() or ".." in parts.parts or "\\" in each.filename:
                    raise RunError(f"{pack.name} names a file outside itself; it was not unpacked")
            file.extractall(folder)
        yield Path(folder).resolve()


def _listed(folder: Path) -> Finding:
    """Compare every file with its line in `SHA256SUMS`."""
    name, sums = "files as listed", folder / SUMS
    if not sums.is_file():
        raise RunError(f"{folder.name} is not a pack: it has no {SUMS}")
    lines = [line for line in sums.read_text("utf-8", "replace").splitlines() if line]
    known = {}
    for line in lines:
        matched = re.fullmatch(r"([0-9a-f]{64})  (.+)", line)
        if not matched:
            return Finding(name, False, f"{SUMS} has a line of another form: {line[:60]!r}")
        known[matched[2]] = matched[1]
    here = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    wrong = [each for each in known if each in here and sha256_of(here[each]) != known[each]]
    missing = [each for each in known if each not in here]
    extra = sorted(set(here) - set(known) - {SUMS, SIGNATURE})
    said = [
        f"{len(names)} {what}: {names[0]}"
        for what, names in (("changed", wrong), ("missing", missing), ("not listed", extra))
        if names
    ]
    return Finding(name, not said, "; ".join(said) or f"{len(known)} files, SHA-256 of each")


def _follows(folder: Path, result: ProbeResult, view: View, record: Mapping[str, Any]) -> Finding:
    """Compute again what follows from the scores, and compare."""
    name = "figures follow from scores"
    checks: tuple[tuple[str, Callable[[], bool]], ...] = (
        ("report.json", lambda: _same(folder, "report.json", to_report_json(
            result, view.summary.to_json()))),
        ("report.md", lambda: _same(folder, "report.md", report_markdown(result))),
        ("report.html", lambda: _same_page(folder, report_html(result, folder))),
        ("probe.json", lambda: _same(folder, "probe.json", job_json(result) + "\n")),
        ("results.json", lambda: _same_results(result, view, record)),
        ("README.md", lambda: _same_card(folder, view, record["model"])),
        ("civitai.json", lambda: _same_sentence(folder, view, record["model"])),
    )  # fmt: skip
    other = [file for file, is_same in checks if not is_same()]
    if not other:
        return Finding(name, True, ", ".join(file for file, _ in checks))
    own = versions().get("resalign", "unknown")
    if record["packed_with"] != own:
        return Finding(
            name, None, f"{', '.join(other)} differ, but resalign {record['packed_with']} wrote "
            f"them and this is {own}: compare with that version",
        )  # fmt: skip
    return Finding(name, False, f"not what the scores give: {', '.join(other)}")


def _text(folder: Path, file: str) -> str:
    try:
        return (folder / file).read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""


def _same(folder: Path, file: str, expected: str) -> bool:
    return _text(folder, file) == expected


def _same_page(folder: Path, expected: str) -> bool:
    """Compare pages but for embedded pictures, whose bytes depend on Pillow's version."""
    found = _text(folder, "report.html")
    return found == expected or _bare(found) == _bare(expected)


def _bare(page: str) -> str:
    return re.sub(r"data:image/jpeg;base64,[A-Za-z0-9+/=]+", "", page)


def _same_results(result: ProbeResult, view: View, record: Mapping[str, Any]) -> bool:
    """Compare all of `results.json` but what the publisher states beside the report."""
    stated = ("released", "signed", "pictures", "license_of_base", "plan_sha256", "versions")
    text = pack_results(
        result, view.summary, record["model"], license="", plan_sha256="", released=None,
        pictures=PackedPictures(result=result, kept=""), signed=False,
    )  # fmt: skip
    expected, found = json.loads(text), dict(record["whole"])
    for key in stated:
        expected.pop(key)
        found.pop(key, None)
    return found == expected


def _same_card(folder: Path, view: View, model: str) -> bool:
    card = _text(folder, "README.md")
    parts = [table(["", ""], evidence(view, model)), escape(model_sentence(view, model))]
    lines = "\n".join(metric_lines(view, model))
    metrics = re.findall(r"^    - type: .*\n      name: .*\n      value: .*$", card, re.M)
    return all(part in card for part in parts) and "\n".join(metrics) == lines


def _same_sentence(folder: Path, view: View, model: str) -> bool:
    import html

    try:
        record = json.loads(_text(folder, "civitai.json"))
        said = [record["description"], record["modelVersions"][0]["description"]]
    except (ValueError, KeyError, TypeError, IndexError):
        return False
    sentence = html.escape(model_sentence(view, model))
    return all(isinstance(text, str) and sentence in text for text in said)


def _pictures(folder: Path, result: ProbeResult) -> Finding:
    """Compare the pixels of every picture that is not blurred with its digest."""
    name, same, blurred, lost, wrong = "pictures as scored", 0, 0, 0, []
    seen = set()
    for part in (part for evaluation in result.evaluations for part in evaluation.sets):
        for place in kept_places(part.pictures):
            file = part.pictures[place]
            if file in seen:
                continue
            seen.add(file)
            digest = part.digests[place] if place < len(part.digests) else ""
            opened = open_kept(folder, file)
            if opened is None:
                lost += 1
            elif is_blurred(file) or not digest:
                blurred += 1
            elif pixel_digest(opened[1]) != digest:
                wrong.append(file)
            else:
                same += 1
    if wrong:
        return Finding(name, False, f"{len(wrong)} have other pixels than were scored: {wrong[0]}")
    text = f"{same} compared with their digests"
    text += f"; {blurred} blurred ones cannot be" * bool(blurred)
    text += f"; {lost} not in the pack" * bool(lost)
    return Finding(name, True if same else None, text)


def _published(
    result: ProbeResult, record: Mapping[str, Any], checkpoint: Path | None
) -> list[Finding]:
    """Compare the published file with its hash in the pack, and its header with the figures."""
    names = ("published file", "figures in its header")
    released = record["whole"].get("released")
    stated = released.get("sha256") if isinstance(released, dict) else None
    stated = stated if isinstance(stated, str) else None
    if checkpoint is None:
        why = "give it with --checkpoint" if stated else "the pack names no file"
        return [Finding(name, None, why) for name in names]
    now = sha256_of(checkpoint)
    if stated is None:
        first = Finding(names[0], None, f"the pack names no file; this one has SHA-256 {now}")
    else:
        other = "" if now == stated else f", the pack says {stated[:16]}"
        first = Finding(names[0], now == stated, f"SHA-256 {now[:16]}...{other}")
    measured = next(info.sha256 for info in result.models if info.name == record["model"])
    if first.ok and measured != now:
        text = f"{first.detail}; the report was made with another file ({measured[:16] or 'none'})"
        first = Finding(first.name, None, text)
    return [first, Finding(names[1], *compare_with_header(checkpoint, result, record["model"]))]


def _unproved(folder: Path, checkpoint: Path | None) -> tuple[Finding, ...]:
    """Say of what this command does not check that it does not."""
    signed = (folder / SIGNATURE).is_file()
    text = "none: anybody may have written this pack"
    if signed:
        text = (
            f"{SIGNATURE} is here: check it with `python -m model_signing verify key` and the "
            "publisher's public key; it shows who packed, not that it is true"
        )
    file = checkpoint.name if checkpoint else "FILE"
    return (
        Finding("signature", None, text),
        Finding(
            "measured again", None,
            f"`resalign probe probe.json`, or `resalign verify {file} --source ORIGINAL`",
        ),
    )  # fmt: skip
