"""Progress of a node: interrupt, events, state; and what the routes give away."""

import importlib
import json
import sys
import types

import pytest
from fakes_comfy import Interrupted, install, load_nodes
from PIL import Image, ImageStat

from resalign.backend.progress import Progress
from resalign.backend.run.records import StepRecord


@pytest.fixture
def host(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path)


@pytest.fixture
def live(monkeypatch, host):
    return load_nodes(monkeypatch, "live")


def hidden(node, workflow=""):
    info = {"workflow": {"id": workflow}} if workflow else None
    return types.SimpleNamespace(unique_id=node, extra_pnginfo=info)


def record(step):
    return StepRecord(
        step=step, harm=-0.1 * step, retain=0.0, resilience_weight=0.0, retain_weight=0.0,
        learning_rate=1e-4, gradient_norm=1.0, seconds=0.1,
    )  # fmt: skip


def harden(step, **values):
    return Progress(stage="harden", step=step, total=1000, values=values)


def test_every_call_asks_for_an_interrupt(host, live):
    told = live.Live(hidden("7"), "harden", 10)
    told(harden(1))
    host.interrupt = True
    with pytest.raises(Interrupted):
        told(harden(1))


def test_events_are_few_but_an_end_is_always_told(host, live):
    told = live.Live(hidden("7"), "harden", 10)
    before = len(host.events)
    for micro in range(200):
        told(Progress(stage="harden", step=1, total=9, micro_step=micro, micro_total=200))
    assert len(host.events) - before < 20
    told.finish("done in 9 steps")
    name, data = host.events[-1]
    assert (name, data["node"], data["state"]["status"]) == ("resalign.progress", "7", "done")


def test_curves_stay_short_and_keep_their_ends(live):
    told = live.Live(hidden("7"), "harden", 1000)
    for step in range(1, 1001):
        told(harden(step, harm=float(step)))
    curve = told.state["curves"]["harm"]
    assert len(curve) <= 200
    assert curve[0] == [10, 5.5] and curve[-1] == [1000, 995.5], "averages of ten steps"


def test_the_bar_counts_the_whole_job_and_neither_runs_ahead_nor_back(host, live):
    """A stage that ends, such as reading pictures, is not the end of the node's work."""
    told = live.Live(hidden("7"), "probe")
    seen = []
    told._bar.update_absolute = lambda value, total: seen.append(value / total)
    told(Progress(stage="encoding", step=8, total=8))
    told(Progress(stage="probing", step=1, total=4, share=0.4))
    told(Progress(stage="synthesising", step=16, total=16))
    told(Progress(stage="probing", step=1, total=4, share=0.3))
    told(Progress(stage="probing", step=3, total=4, share=0.7))
    assert seen == [0, 0.4, 0.4, 0.4, 0.7]
    assert host.events[-1][1]["state"]["share"] == 0.7


def test_what_is_not_finite_leaves_the_state_valid_json(live):
    told = live.Live(hidden("7"), "harden", 2)
    told(harden(1, harm=float("nan"), retain=float("inf")))
    told(harden(2, harm=1.0))
    assert told.state["curves"] == {"harm": [[2, 1.0]]}
    json.dumps(told.state, allow_nan=False)


def test_only_the_last_nodes_are_remembered(live):
    for node in range(50):
        live.Live(hidden(str(node)), "harden")
    assert len(live.STATES) == 32 and ("", "49") in live.STATES and ("", "0") not in live.STATES


def test_pictures_are_sent_once_and_kept_for_a_page_that_comes_later(host, live):
    told = live.Live(hidden("7"), "harden", 10)
    told.picture(Image.new("RGB", (8, 8)), "a cat", flagged=False)
    told(harden(1, harm=1.0))
    sent = [data["state"] for _, data in host.events]
    assert ["pictures" in state for state in sent] == [True, True, False]
    assert len(told.state["pictures"]) == 1


def test_the_first_pictures_stay_beside_the_latest(live):
    """At the end of a run they show what it changed."""
    told = live.Live(hidden("7"), "harden", 10)
    for step in range(6):
        for name in ("a gun", "a cat"):
            told.picture(Image.new("RGB", (8, 8)), name, flagged=False, step=step)
        assert len(told.state["pictures"]) == min(4, 2 * (step + 1))
    kept = [(each["step"], each["caption"]) for each in told.state["pictures"]]
    assert kept == [(0, "a gun"), (0, "a cat"), (5, "a gun"), (5, "a cat")]


def test_the_last_figures_are_told_and_a_warm_up_has_no_relapse(live):
    told = live.Live(hidden("7"), "harden", 2)
    told(harden(1, harm=-0.5, harm_after=-0.4, q=0.8, retain=0.01, inner_steps=4.0))
    assert told.state["figures"] == {"harm": -0.5, "harm_after": -0.4, "retain": 0.01, "q": 0.8}
    told(harden(2, harm=-0.6, retain=float("nan")))
    assert told.state["figures"] == {"harm": -0.6}


def test_a_run_that_was_there_shows_its_curves_and_no_time(host, live):
    told = live.Live(hidden("7"), "harden", 2)
    told.recall([record(step) for step in (1, 2)], "2 steps, kept from an earlier run")
    assert (told.state["status"], told.state["step"], told.state["seconds"]) == ("done", 2, None)
    assert told.state["curves"]["harm"] == [[1, -0.1], [2, -0.2]]
    assert host.events[-1][1]["state"]["seconds"] is None


def test_a_flagged_picture_leaves_blurred_unless_all_are_shown(live):
    checks = Image.new("L", (64, 64))
    checks.putdata([255 * ((x // 4 + y // 4) % 2) for y in range(64) for x in range(64)])
    plain = live.Live(hidden("1"), "probe")
    shown = live.Live(hidden("2"), "probe", show_pictures=True)
    for told in (plain, shown):
        told.picture(checks, "a pistol", flagged=True)
    assert [told.state["pictures"][0]["flagged"] for told in (plain, shown)] == [True, False]
    assert ImageStat.Stat(live.blurred(checks)).stddev[0] < 10  # nothing of the pattern is left


def test_reports_are_confined_to_their_folder(host, monkeypatch, tmp_path):
    routes = load_nodes(monkeypatch, "routes")
    key = "0123456789abcdef0123"
    folder = tmp_path / "output" / "resalign" / "probes" / key
    folder.mkdir(parents=True)
    for name in ("report.html", "plan.json", "pictures/unsafe-1.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    (tmp_path / "report.html").write_text("secret")
    linked = folder.with_name("f" * 20)
    linked.mkdir()
    (linked / "report.html").symlink_to(tmp_path / "report.html")

    assert routes.report_file(key, "report.html") == folder / "report.html"
    assert routes.report_file(linked.name, "report.html") is None, "it leads outside"
    for bad in ("../../../../report.html", str(tmp_path / "report.html"), "plan.json",
                "pictures/unsafe-1.png", "none.html", ""):  # fmt: skip
        assert routes.report_file(key, bad) is None, bad
    for bad in ("..", "0123", key.upper() + "0", "../" + key):
        assert routes.report_file(bad, "report.html") is None, bad


def test_who_reaches_the_server_gets_no_unblurred_picture(host, live, monkeypatch):
    """The page that queued the prompt gets it by its own event."""
    routes = importlib.import_module("resalign.nodes.routes")
    told = live.Live(hidden("1"), "harden", show_pictures=True)
    told.picture(Image.new("RGB", (8, 8)), "a gun", flagged=True)
    told.picture(Image.new("RGB", (8, 8)), "a cat", flagged=False)

    def captions(state):
        return [picture["caption"] for picture in state["pictures"]]

    assert captions(host.events[-1][1]["state"]) == ["a gun", "a cat"]
    assert captions(routes.state_of("1")) == ["a cat"]
    server = sys.modules["server"].PromptServer.instance
    monkeypatch.setattr(server, "client_id", None)  # of a program: all pages get its events
    told.picture(Image.new("RGB", (8, 8)), "a dog", flagged=False)
    assert captions(host.events[-1][1]["state"]) == ["a cat", "a dog"]


def test_the_routes_are_registered_once_and_only_read(host, monkeypatch):
    routes = load_nodes(monkeypatch, "routes")
    routes.register()
    routes.register()
    assert sorted(host.routes) == ["/resalign/live/{node}", "/resalign/report/{key}/{name:.+}"]
    assert routes.state_of("nobody") is None
    live = importlib.import_module("resalign.nodes.live")
    live.Live(hidden("9"), "harden")
    assert routes.state_of("9")["status"] == "running"


def test_a_state_belongs_to_a_node_of_one_workflow(host, live, monkeypatch):
    """All templates number their nodes from 1."""
    routes = importlib.import_module("resalign.nodes.routes")
    live.Live(hidden("5", "first"), "harden").finish("hardened")
    assert routes.state_of("5", "first")["status"] == "done"
    assert routes.state_of("5", "second") is None
    assert host.events[-1][1]["workflow"] == "first"
    live.Live(hidden("5"), "harden")  # queued without a page: any page may show it
    assert routes.state_of("5", "second")["status"] == "running"
