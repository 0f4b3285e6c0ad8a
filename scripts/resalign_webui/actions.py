"""The actions of the buttons: values in, HTML and lists of choices out. Independent of gradio."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from ...backend.errors import ResAlignError
from ...backend.plan.methods import TEST_RUN
from . import (
    forms,
    guide,
    measure_forms,
    refusals,
    report_forms,
    views,
)
from . import host as hosts
from .checking import Values
from .headers import Headers
from .host import ALONE, DEMO, Host
from .jobs import BESIDE_THE_HOST
from .runs import (
    AUDIT,
    REPORT,
    Probe,
    Run,
    named,
    preferred,
    read_probes,
    read_runs,
    report_of,
    with_adapter,
)
from .times import Times
from .visitors import for_visitor, without_paths

NONE = "none"
Choices = list[Any]  # of a list: its entries, or (label, value) of each
_PAUSE = 0.5  # seconds between two updates of a page
_RENEWED_WITHIN = 20.0  # seconds for the host to look through its folders, network drives too
_WAIT = 2.0  # seconds until a page gets a new time when nothing happened


class Jobs(Protocol):
    """Runs one job at a time in a process of its own, which outlives the page that started it."""

    def start(self, request: dict[str, Any]) -> Any: ...
    def cancel(self) -> Any: ...
    def state(self) -> dict[str, Any] | None: ...
    def wait(self, after: int, timeout: float, /) -> dict[str, Any] | None: ...
    def close(self) -> Any: ...


class Actions(Times, Headers):
    def __init__(self, host: Host, jobs: Jobs, url: Callable[[str, str], str]) -> None:
        """url: returns the address of a report's file from the names of probe and file."""
        self.host, self.jobs, self.url = host, jobs, url
        self.closing = False  # the host's server is about to stop: see leaving.py
        self.followers = 0
        self.followed = False  # whether any page ever followed a job
        self._renewing = threading.Thread()  # updates the host's list after an export

    def harden(self, values: Values) -> str:
        started = "Hardening started."
        if values.get("checkpoint") == DEMO and not values.get("concepts"):
            started = "Hardening started: nothing is ticked, so the demo's own concept, weapon."
        return self._start(lambda: forms.harden_request(values, self.host), started)

    def check(self, values: Values) -> str:
        return self._start(
            lambda: forms.check_request(values, self.host),
            "Checking; the result appears in the job panel.",
        )

    def fitting(self) -> tuple[str, dict[str, Any]]:
        """Return a message and the form fields that the last check found to fit."""
        state = self.jobs.state() or {}
        found = (state.get("result") or {}).get("prediction")
        if state.get("job") != "check" or not found:
            return views.note("Press Check memory first.", "error"), {}
        if (state.get("request") or {}).get("checkpoint") == "demo":
            return views.note("The demo has fixed settings: nothing to change."), {}
        if found["fits"] is False:
            return views.note("Nothing fits: the panel says what would help.", "error"), {}
        rounded = found["changes"].get("quantization")
        if rounded:
            return views.note(
                f"This fits only with quantization = {rounded} in addition, which "
                "this form does not have: write it into a plan file for resalign harden.", "error"
            ), {}  # fmt: skip
        try:
            fields = forms.fitting(found["changes"])
        except ResAlignError as error:
            return views.note(str(error), "error"), {}
        if not fields:
            return views.note("It fits as it is: nothing to change.", "good"), {}
        said = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in fields.items())
        return views.note(f"Set in the form: {said}.", "good"), fields

    def resume(self, values: Values) -> str:
        return self._start(
            lambda: forms.resume_request(values, self._unfinished()), "Continuing where it stopped."
        )

    def probe(self, values: Values) -> str:
        said = self._start(
            lambda: measure_forms.probe_request(values, self.host, self._runs()), "Probe started."
        )
        return said + _doubt(said, measure_forms.doubt_of(values, self.host, self._runs()))

    def try_lora(self, values: Values) -> str:
        runs = with_adapter(self._runs())
        said = self._start(
            lambda: measure_forms.lora_request(values, self.host, runs),
            "Generating with both; the pictures appear in the job panel.",
        )
        return said + _doubt(said, measure_forms.lora_doubt(values, self.host, runs))

    def export(self, values: Values) -> str:
        def make() -> dict[str, Any]:
            runs, probes = self._saved(), self._probes()
            return measure_forms.export_request(values, self.host, runs, probes)

        return self._start(make, "Export started.", after=self._exported)

    def save_lora(self, values: Values) -> str:
        return self._start(
            lambda: measure_forms.save_lora_request(values, self.host, self._saved()),
            "Saving the LoRA.",
        )

    def audit(self, values: Values) -> str:
        return self._start(
            lambda: report_forms.audit_request(values, self._probes()), "Drawing the sheet."
        )

    def labels(self, values: Values) -> str:
        return self._start(
            lambda: report_forms.labels_request(values, self._probes()),
            "Putting the labels into the report.",
        )

    def pack(self, values: Values) -> str:
        return self._start(
            lambda: report_forms.pack_request(values, self.host, self._probes()), "Packing."
        )

    def missing(self) -> str:
        """Return why jobs cannot run, as HTML; empty if they can."""
        return views.note(without_paths(self.host.missing(), self.host), "error")

    def build_worker(self) -> Iterator[str]:
        """Build the worker's environment; yield the last lines of its output."""
        said: list[str] = []
        for line in self.host.build_worker():
            said += [without_paths(line, self.host)] if line else []
            yield views.building(said)
        yield self.missing() or views.note("Ready: jobs can run now.", "good")

    def cancel(self) -> None:
        self.jobs.cancel()

    def follow(self) -> Iterator[tuple[str, bool]]:
        """Yield (HTML of the job, whether it is over) on every change, until it is over.

        Ends earlier, without another update, if the server is about to stop.
        """
        self.followers += 1
        self.followed = True
        try:
            while not self.closing:
                state = self.jobs.state()
                over = not state or state.get("status") != "running"
                if over and self._renewing.is_alive():  # the host's list is empty meanwhile
                    self._renewing.join(_RENEWED_WITHIN)
                local, alone = not self.host.remote(), self.host.name == ALONE
                yield views.job_html(for_visitor(state, self.host), local=local, listed=alone), over
                if over or not state:
                    return
                time.sleep(_PAUSE)
                self.jobs.wait(state["revision"], _WAIT)
        finally:
            self.followers -= 1

    def after_end(self, notes: Sequence[Any]) -> list[str]:
        """Return the messages below the buttons without those that say that a job has started.

        While a job runs, all stay.
        """
        running = (self.jobs.state() or {}).get("status") == "running"
        shown = [str(text or "") for text in notes]
        return shown if running else ["" if views.is_plain(text) else text for text in shown]

    def now(self) -> str:
        """Return the job in one line with its bar, for windows too narrow for panel and form."""
        return views.brief(for_visitor(self.jobs.state(), self.host))

    def next_step(self) -> guide.Step | None:
        """Return the page that follows the most recent job, and what to choose on it."""
        labels = {str(path.absolute()): label for label, path in self.host.checkpoints()}
        return guide.next_step(
            self.jobs.state(), self._runs(), self._probes(), lambda path: labels.get(path, "")
        )

    def attacks_for(self, label: Any, attacks: Any) -> str:
        """Return how hard to try on a run that was just chosen: on a test run, by another one.

        More than a first look is kept, as the visitor has chosen it.
        """
        run = named(label, self._runs())
        if attacks not in ("fast", "quick") or run is None:
            return str(attacks)
        return "fast" if run.is_test else "quick"

    def about_scorer(self, label: Any, concepts: Any, own: Any) -> str:
        """Say which detectors know what the run removed, or what is to be looked for instead."""
        asked = {"probe_concepts": concepts, "probe_own_concepts": own}
        said = measure_forms.detectors_line(asked, named(label, self._runs()))
        return views.help_text(said) if said else ""

    def about_run(self, label: Any) -> str:
        """Warn of a run that is a test, removed nothing, or is not finished; else empty."""
        run = named(label, self._runs())
        if run is None or (run.finished and not run.doubt):
            return ""
        if not run.finished:
            said = f"{run.name} is not finished: press Resume first."
        elif run.is_test:
            said = f"{run.name} is {TEST_RUN}."
        else:
            said = f"{run.name} removed nothing: its checkpoint is the original in effect."
        return views.note(said, "doubtful")

    def about_saved(self, label: Any) -> str:
        """Warn of the run to be exported, or say that there is none."""
        runs = self._runs()
        if label or any(run.finished for run in with_adapter(runs)):
            return self.about_run(label)
        return views.note(
            guide.none_finished(
                "run", "Harden", [r for r in runs if not r.finished], self.jobs.state() or {}
            )
        )

    def report_for(self, label: Any) -> str:
        """Return the newest report of a run, or that there is none: what an export proposes."""
        probe = report_of(named(label, self._runs()), self._probes())
        return probe.name if probe else NONE

    def about_reports(self) -> str:
        """Say that no probe is finished yet, which ones could be continued, and how."""
        probes = self._probes()
        if any(probe.report for probe in probes):
            return ""
        return views.note(guide.none_finished("probe", "Probe", probes, self.jobs.state() or {}))

    def report(self, label: Any) -> str:
        # Pressed before the page's event has chosen: what it is about to choose
        probe = named(label or self.defaults()["report"], self._probes())
        if probe is None or not probe.report:
            return self.about_reports() or views.note(
                "Choose a finished probe; the list has a refresh button.", "error"
            )
        sheet = self.url(probe.name, AUDIT) if (probe.folder / AUDIT).is_file() else ""
        return views.report_frame(self.url(probe.name, REPORT), "the report", sheet)

    def refresh(self) -> dict[str, Choices]:
        self.host.refresh_checkpoints()
        return self.choices()

    def defaults(self) -> dict[str, str | None]:
        """Return the value of each list of runs and reports on a page that is opened.

        A run that is finished and no test, if there is one; never one that is not finished.
        """
        runs, probes = self._runs(), self._probes()
        run, saved = preferred(runs), preferred(with_adapter(runs))
        reports = [probe.name for probe in probes if probe.report]
        return {
            "probe_run": run.name if run else NONE,
            "export_run": saved.name if saved else None,
            "try_run": saved.name if saved else NONE,
            "report": first(reports),
        }

    def unfinished(self) -> str | None:
        """Return which run or probe to resume: that of the last job, or the newest."""
        entries, state = self._unfinished(), self.jobs.state() or {}
        request = state.get("request") or {}
        last = {str(request.get(name)) for name in ("run_folder", "folder")}
        found = [entry.name for entry in entries if str(entry.folder) in last]
        return first([*found, *(entry.name for entry in entries)])

    def choices(self) -> dict[str, Choices]:
        """Return the choices of each list, by its name.

        Those of runs and probes are (label, value): the label tells the state, the value stays.
        """
        files = [label for label, _ in self.host.checkpoints()]
        parts = [label for label, _ in self.host.model_parts()]
        runs, probes = self._runs(), self._probes()
        kept: Choices = [NONE, *_labelled(with_adapter(runs))]
        every = [DEMO, *files]
        return {
            "checkpoint": every, "about": every,
            "original": [measure_forms.THE_RUN, *every],
            "hardened": [measure_forms.THE_RUN, *files],
            "try_original": every, "try_hardened": files,
            "lora": [label for label, _ in self.host.loras()],
            "unfinished": _labelled(self._unfinished()),
            "probe_run": [NONE, *_labelled(runs)],
            "export_run": _labelled(self._saved()),
            "try_run": kept,
            "export_probe": [NONE, *_labelled(probe for probe in probes if probe.report)],
            "report": _labelled(probe for probe in probes if probe.report),
            "sibling": [NONE, measure_forms.THE_ORIGINAL, *files],
            **{name: [NONE, *files] for name in ("plain", "oracle", "pack_checkpoint")},
            **{name: [forms.BY_ITSELF, *parts] for name in forms.PARTS},
        }  # fmt: skip

    def _start(
        self,
        make: Callable[[], dict[str, Any]],
        started: str,
        after: Callable[[dict[str, Any]], None] | None = None,
    ) -> str:
        try:
            request = make()
            if not self._is_running():  # else the job that runs is the reason, as after two clicks
                refusals.refuse(request, self.host)
            self.jobs.start(request)
        except ResAlignError as error:
            return self._refused(error)
        if after is not None:
            self._renewing = threading.Thread(target=after, args=(request,), daemon=True)
            self._renewing.start()
        if self.host.name != ALONE and request["job"] not in BESIDE_THE_HOST:
            started += f" Pictures that you ask {self.host.name} for wait until it is done."
        return views.note(started)

    def _is_running(self) -> bool:
        return (self.jobs.state() or {}).get("status") == "running"

    def _exported(self, request: dict[str, Any]) -> None:
        """Renew the host's list when the export is over, whether or not a page still follows it."""
        run = next((run for run in self._runs() if str(run.folder) == request["run_folder"]), None)
        while (state := self.jobs.state()) and state.get("status") == "running":
            self.jobs.wait(state["revision"], _WAIT)
        if state and state.get("status") == "done" and run is not None:
            self.host.exported(Path(run.checkpoint), Path(request["output"]))

    def _probes(self) -> list[Any]:
        return read_probes(hosts.probes_folder(self.host))

    def _runs(self) -> list[Any]:
        return read_runs(hosts.runs_folder(self.host))

    def _saved(self) -> list[Any]:
        """Return the runs that can be exported."""
        return [run for run in with_adapter(self._runs()) if run.finished]

    def _unfinished(self) -> list[Any]:
        runs = [run for run in self._runs() if not run.finished]
        return [*runs, *(probe for probe in self._probes() if not probe.report)]


def _doubt(said: str, doubt: str) -> str:
    """Return a warning below the message of a start; nothing below a refusal."""
    return views.note(doubt, "doubtful") if doubt and views.is_plain(said) else ""


def _labelled(entries: Iterable[Run | Probe]) -> Choices:
    return [(entry.label, entry.name) for entry in entries]


def first(entries: Sequence[str]) -> str | None:
    return entries[0] if entries else None
