"""The state of a job as HTML: one line, a bar, curves, pictures. `tag` escapes every text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from ...backend.jobs.live_words import time_text
from ...backend.memory.words import PARTS, rows
from ...backend.report.markup import Child, Markup, join, tag
from .charts import charts_html, relapse_text

_FLAG = re.compile(r"name (it|one|another file) in `(text_encoder|vae)` \(--[a-z-]+\)")

State = Mapping[str, Any]
_PICTURE = re.compile(r"data:image/(jpeg|png|webp);base64,[A-Za-z0-9+/=]+")
_STAGE = re.compile(r"\[(\d+)/(\d+)\]")  # at the beginning of a line of `side_venv`
_LABEL = re.compile(r"^(\w+) {2,}")  # of a line of remarks, which are aligned for a terminal
_EXPECTED = re.compile(r"(device|precision|expected) {2,}")  # of no use at the end
_OLD_TIME = re.compile(r"; about [^;]* left\b.*")  # behind a prediction of memory
_EXPECTED_TIME = re.compile(r"expected {2,}about")
_LAST = 12  # lines of an environment being made
_VERBS = {
    "check": "Checking", "harden": "Hardening", "resume": "Hardening", "probe": "Probing",
    "export": "Exporting", "lora": "Saving the LoRA", "try_lora": "Drawing",
    "audit": "Auditing", "pack": "Packing",
}  # fmt: skip
_ENDS = {"done": "Done", "stopped": "Stopped", "failed": "Failed"}


def loading_html() -> str:
    """Show a page that has just been opened: its lists are those of the server's start."""
    return tag("div", tag("p", "Reading the lists of files and runs ..."), cls="ra ra-loading")


def brief(state: State | None) -> str:
    """Show a job's title, line and bar alone; nothing where there was none."""
    if not state or not state.get("status"):
        return ""
    running = state["status"] == "running"
    return tag(
        "div", tag("p", tag("b", _title(state)), " ", _line(state) if running else ""),
        _bar(_share(state), "progress of the job, in short") if running else "", cls="ra ra-brief",
    )  # fmt: skip


def job_html(state: State | None, *, local: bool = False, listed: bool = False) -> str:
    """Show everything about a job, for the panel beside the forms.

    local: only this machine is served, so paths may be shown. listed: this page's lists, which
    renew themselves, are the only ones.
    """
    if not state or not state.get("status"):
        return tag(
            "div",
            tag("p", tag("b", "Nothing is running."), " Choose a checkpoint and what to remove, "
                     "then press Harden; the ResAlign demo needs no file and takes minutes."),
            tag("p", "Hardening removes concepts so that they return less when others train the "
                     "model further (fine-tune it). The path has four steps, and each one offers "
                     "the next when it is done:"),
            tag("p", "1 Harden: nothing is written to the checkpoint itself.", tag("br"),
                     "2 Probe: measures how much returns.", tag("br"),
                     "3 Export: saves the hardened checkpoint as a new file.", tag("br"),
                     "4 Reports: shows what was measured, and packs it for a release."),
            tag("p", "A job's progress is shown here, in every window. A job keeps running when "
                     "the page is closed.", cls="ra-muted"),
            cls="ra ra-idle",
        )  # fmt: skip
    status = str(state["status"])
    parts: list[Child] = [tag("p", tag("b", _title(state)))]
    if status == "running" or status == "done":
        parts.append(_bar(1.0 if status == "done" else _share(state)))
    if status == "done":
        parts.append(note(_done(state, local, listed), _kind(state), lead=bool(_figures(state))))
        parts.append(_folded(_figures(state)))
    parts.append(tag("p", _line(state)))
    parts.append(_remarks(state))
    error = state.get("error") or {}
    if error:
        parts.append(note(str(error.get("message") or "it failed"), "error"))
    parts += charts_html(
        state.get("curves") or {},
        state.get("scale"),
        " ".join(filter(None, [relapse_text(state.get("figures")), str(state.get("hint") or "")])),
        state.get("together") or (),
        state.get("average"),
    )
    result = state.get("result") or {}
    if result.get("prediction") or result.get("problems"):
        parts += check_html(result)
    if result.get("pictures"):
        parts.append(_pictures(result["pictures"], "ra-pictures ra-sheets"))
    else:
        parts.append(_pictures(state.get("pictures") or ()))
    warnings = [str(warning) for warning in result.get("warnings") or ()]
    parts.append(note("\n".join(warnings)))
    if status == "failed" and error.get("kind") != "user":
        words = [*(state.get("log") or ()), *str(error.get("traceback") or "").splitlines()]
        log = "\n".join(map(str, words))[-6000:]
        parts.append(tag("details", tag("summary", "Last output of the worker"), tag("pre", log)))
    marks = {f"data_{name}": str(state.get(name, "")) for name in ("job", "status", "revision")}
    kind = f" ra-{state['verdict']}" if state.get("verdict") in ("good", "doubtful") else ""
    return tag("div", parts, cls=f"ra ra-job ra-{status}{kind}", **marks)


def check_html(result: Mapping[str, Any]) -> list[Markup]:
    """Show what a check has found: problems, memory by part, and the changes that make it fit."""
    parts = [note("\n".join(map(str, result.get("problems") or ())), "error")]
    found = result.get("prediction") or {}
    asked, fitting = (_bytes(found.get(name)) for name in ("asked", "parts"))
    if not asked or not fitting:
        return parts
    lines = rows(asked, fitting)
    if asked != fitting:
        lines.insert(0, ("at the peak", "as it is set", "with the changes"))
    changes = list(found.get("words") or ())[2:]  # the table says the first, the message the second
    return [
        *parts,
        tag("table", [
            tag("tr", tag("th", label), [tag("td", cell) for cell in cells])
            for label, *cells in lines
        ]),
        note("\n".join(map(str, changes))),
        help_text("Predicted, not measured on a GPU; the margin is a guess."),
    ]  # fmt: skip


def _kind(state: State) -> str:
    """Return how a finished job is shown: green only if it did what it was for."""
    if _falls_short(state):
        return "error"
    verdict = state.get("verdict")
    if verdict == "doubtful":
        return "doubtful"
    unjudged = ("harden", "resume", "probe", "export")  # nothing is claimed without a verdict
    job = state.get("job") or state.get("kind")
    return "good" if verdict == "good" or job not in unjudged else ""


def _falls_short(state: State) -> bool:
    """Return True if a check is done and found that the job cannot run as it is."""
    result = state.get("result") or {}
    return bool(result.get("problems")) or (result.get("prediction") or {}).get("fits") is False


def _bytes(parts: Any) -> dict[str, int]:
    """Bytes of each part; empty if one is missing."""
    found = {n: v for n, v in (parts or {}).items() if n in PARTS and isinstance(v, int)}
    return found if len(found) == len(PARTS) else {}


def note(text: str, kind: str = "", *, lead: bool = False) -> Markup:
    """Show a message above a form; no text: nothing.

    kind: `error`, `good`, `doubtful`, or none. lead: the first line stands out.
    """
    if not text:
        return Markup("")
    mark = f" ra-{kind}" if kind in ("error", "good", "doubtful") else ""
    first, _, rest = _FLAG.sub(_field, text).partition("\n")
    shown: list[Child] = [tag("p", first, cls="ra-lead"), _lines(rest)]
    return tag("div", shown if lead else _lines(_FLAG.sub(_field, text)), cls=f"ra ra-note{mark}")


def is_plain(shown: str) -> bool:
    """Return whether this is a note of no kind, as of a job that has started."""
    return shown.startswith(str(note("x")).partition("x")[0])


def _figures(state: State) -> str:
    """Return the sentences with figures of a probe that is done; its verdict stands before them."""
    result = state.get("result") or {}
    return str(result.get("headline") or "") if state.get("status") == "done" else ""


def _folded(figures: str) -> Markup:
    if not figures:
        return Markup("")
    return tag("details", tag("summary", "The same in figures"), tag("p", _lines(figures)))


def _field(found: re.Match[str]) -> str:
    """Name a field of the form in place of a flag of the command line."""
    label = {"text_encoder": "Text encoder", "vae": "VAE"}[found[2]]
    return f"choose {found[1]} as {label} below the checkpoint"


def building(lines: Sequence[str]) -> Markup:
    """Show the last lines of an environment that is being made, with a bar by its stages."""
    stages = [found for line in lines if (found := _STAGE.match(line))]
    share = (int(stages[-1][1]) - 0.5) / int(stages[-1][2]) if stages else 0.0
    bar = _bar(share, "progress of making the environment")
    return tag("div", bar, note("\n".join(lines[-_LAST:])), cls="ra")


def help_text(text: str) -> Markup:
    return tag("div", tag("p", text, cls="ra-muted"), cls="ra")


def facts(text: str, problem: str = "") -> Markup:
    """Show lines of `label   value` as a table; a line without label belongs to the one above."""
    lines = [(line[:16].strip(), _FLAG.sub(_field, line[16:])) for line in text.splitlines()]
    table = tag("table", [tag("tr", tag("th", label), tag("td", value)) for label, value in lines])
    return tag("div", note(problem, "error"), table, cls="ra")


def report_frame(url: str, name: str, sheet: str = "") -> Markup:
    """Show a report inside the page, in a sandbox, with links to it and to its audit sheet."""
    links: list[Child] = [_link(f"Open {name} in a tab of its own", url)]
    if sheet:
        links += [" · ", _link("Open the audit sheet", sheet)]
    frame = tag("iframe", src=url, title="report", sandbox="allow-scripts allow-popups")
    return tag("div", tag("p", links), frame, cls="ra")


def _link(text: str, url: str) -> Markup:
    return tag("a", text, href=url, target="_blank", rel="noopener")


def _title(state: State) -> str:
    names = (str(state.get("kind")), str(state.get("job")))
    verb = next((_VERBS[name] for name in names if name in _VERBS), "Working")
    verb += _subject(str(state.get("job")), state.get("request") or {})
    status = str(state["status"])
    if status == "done" and state.get("verdict") == "doubtful":
        return f"{verb}: done, but see below"
    return f"{verb} ..." if status == "running" else f"{verb}: {_ENDS.get(status, status).lower()}"


def _subject(job: str, request: Mapping[str, Any]) -> str:
    """Name the checkpoint or the run at work, without its folder: a wrong choice shows at once."""
    if job == "harden":
        return _named(request.get("checkpoint"))
    if job == "probe":
        given = [one for one in request.get("checkpoints") or () if isinstance(one, Mapping)]
        own = [one for one in given if not one.get("role")]  # the others are for reference
        return _named((own or given or [{}])[-1].get("path"))
    place = request.get("run_folder") or request.get("report")
    return _named(place) if job in ("resume", "export", "lora", "audit", "pack") else ""


def _named(path: Any) -> str:
    name = re.split(r"[\\/]", str(path or "").rstrip("\\/"))[-1]
    return " the ResAlign demo" if name == "demo" else f" {name}" if name else ""


def _line(state: State) -> str:
    """Return one line on the progress of a job, or on its end."""
    took = time_text(state.get("seconds"))
    if state["status"] != "running":
        said = state["status"] == "done" or state.get("error")  # in the box above
        message = "" if said else str(state.get("message") or "")
        return " · ".join(filter(None, [message, took and f"ran for {took}"]))
    if state.get("line"):
        left = time_text(state.get("left"))
        more = [str(state["line"]), took, left and f"about {left} left"]
        return " · ".join(filter(None, more))
    stage = str(state.get("stage") or "")
    parts = [stage]
    if stage and state.get("total"):
        parts.append(f"{state.get('step', 0)} of {state['total']}")
    if stage and state.get("micro_total"):
        parts.append(f"({state.get('micro_step', 0)}/{state['micro_total']})")
    line = " ".join(parts)
    left = time_text(state.get("left"))
    more = [str(state.get("message") or ""), took, left and f"about {left} left"]
    return " · ".join(filter(None, [line, *more]))


def _remarks(state: State) -> Markup:
    """Show what the job says about itself: card, arithmetic, memory, time; at its end, warnings."""
    said = [str(line) for line in state.get("remarks") or ()]
    if state.get("left"):  # which the line above tells, and newer
        said = [_OLD_TIME.sub("", line) for line in said if not _EXPECTED_TIME.match(line)]
    if state["status"] != "running":
        said = [line for line in said if not _EXPECTED.match(line)]
    lines = [_LABEL.sub(r"\1: ", line) for line in said]
    return tag("p", _lines("\n".join(lines)), cls="ra-muted") if lines else Markup("")


def _share(state: State) -> float:
    """Return how far the bar is: of the whole job where that is known, else of its stage."""
    if isinstance(share := state.get("share"), int | float):
        return min(1.0, max(0.0, float(share)))
    total = max(1, state.get("total") or 0)
    micro = state.get("micro_total") or 0
    parts = (state.get("micro_step") or 0) / micro if micro else 0.0
    return min(1.0, max(0.0, ((state.get("step") or 0) + parts) / total))


def _bar(share: float, label: str = "progress of the job") -> Markup:
    return tag(
        "div",
        tag("div", cls="ra-fill", style=f"width:{share * 100:.1f}%"),
        cls="ra-track", role="progressbar", aria_label=label,
        aria_valuenow=f"{share * 100:.0f}", aria_valuemin=0, aria_valuemax=100,
    )  # fmt: skip


def _pictures(pictures: Sequence[Mapping[str, Any]], style: str = "ra-pictures") -> Markup:
    """Show pictures that are data URLs; others are left out, so that nothing is fetched."""
    figures = []
    for picture in pictures:
        url, caption = str(picture.get("url", "")), str(picture.get("caption", ""))
        if not _PICTURE.fullmatch(url):
            continue
        blurred = " (blurred)" if picture.get("flagged") else ""
        figures.append(
            tag("figure", tag("img", src=url, alt=caption), tag("figcaption", caption + blurred))
        )
    return tag("div", figures, cls=style) if figures else Markup("")


def _done(state: State, local: bool, listed: bool) -> str:
    """Outcome of a finished job. A file's path is for visitors on this machine alone."""
    result = state.get("result") or {}
    message = str(state.get("message") or "done")
    if figures := _figures(state):  # they are folded below
        message = message.replace(figures, "").replace("\n\n", "\n").strip("\n") or "measured"
    lines = [message]
    output = str((state.get("request") or {}).get("output") or "")
    if state.get("job") in ("export", "lora", "pack") and output:
        *_, folder, name = ["", *re.split(r"[\\/]", output)]
        place = f"Saved as {output}." if local else f"{name} is in the folder {folder}."
        beside = [str(result[part]) for part in ("card", "curves") if result.get(part)]
        if beside:
            names = [re.split(r"[\\/]", path)[-1] for path in beside]
            place += f" Beside it: {names[0]} (its model card)" + "".join(
                f", {other} (losses of the run)" for other in names[1:]
            )
            place += "."
        if state["job"] != "pack" and not listed:
            kind = "LoRAs" if state["job"] == "lora" else "checkpoints"
            place += f" Refresh the host's list of {kind} to see it."
            if result.get("demo"):
                place += " The host cannot draw with it: the network of the demo is far too small."
        lines.insert(0, place)
    elif result.get("path"):
        lines.insert(0, re.split(r"[\\/]", str(result["path"]))[-1])
    if result.get("report"):
        lines.append("The whole report is on the page Reports.")
    if state.get("job") == "pack":
        unsafe = "not safe to publish" in lines[-1] or state.get("verdict") == "doubtful"
        lines.append(
            "That was the last step. Do not publish it yet: the report says why."
            if unsafe else "That was the last step. Publish it beside the checkpoint, if its "
            "report allows that."
        )  # fmt: skip
    if state.get("job") == "audit" and result.get("pictures"):
        lines.append("Press Show on the page Reports, and open the audit sheet there.")
    return "\n".join(lines)


def _lines(text: Any) -> Markup:
    lines = str(text).splitlines()
    return join([part for line in lines for part in (tag("br"), line)][1:])
