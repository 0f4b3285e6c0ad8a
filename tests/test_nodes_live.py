"""Progress of a node: interrupt, events, state; and what the routes give away."""

import importlib
import json

import pytest
from fakes_comfy import Interrupted, install, load_nodes
from PIL import Image, ImageStat

from resalign.backend.progress import Progress


@pytest.fixture
def host(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path)


@pytest.fixture
def live(monkeypatch, host):
    return load_nodes(monkeypatch, "live")


def harden(step, **values):
    return Progress(stage="harden", step=step, total=1000, values=values)


def test_every_call_asks_for_an_interrupt(host, live):
    told = live.Live("7", "harden", 10)
    told(harden(1))
    host.interrupt = True
    with pytest.raises(Interrupted):
        told(harden(1))


def test_events_are_few_but_an_end_is_always_told(host, live):
    told = live.Live("7", "harden", 10)
    before = len(host.events)
    for micro in range(200):
        told(Progress(stage="harden", step=1, total=9, micro_step=micro, micro_total=200))
    assert len(host.events) - before < 20
    told.finish("done in 9 steps")
    name, data = host.events[-1]
    assert (name, data["node"], data["state"]["status"]) == ("resalign.progress", "7", "done")


def test_curves_stay_short_and_keep_their_ends(live):
    told = live.Live("7", "harden", 1000)
    for step in range(1, 1001):
        told(harden(step, harm=float(step)))
    curve = told.state["curves"]["harm"]
    assert len(curve) <= 200
    assert curve[0] == [1, 1.0] and curve[-1] == [1000, 1000.0]


def test_what_is_not_finite_leaves_the_state_valid_json(live):
    told = live.Live("7", "harden", 10)
    told(harden(1, harm=float("nan"), retain=float("inf")))
    told(harden(2, harm=1.0))
    assert told.state["curves"] == {"harm": [[2, 1.0]]}
    json.dumps(told.state, allow_nan=False)


def test_only_the_last_nodes_are_remembered(live):
    for node in range(50):
        live.Live(str(node), "harden")
    assert len(live.STATES) == 32 and "49" in live.STATES and "0" not in live.STATES


def test_a_flagged_picture_leaves_blurred_unless_all_are_shown(live):
    checks = Image.new("L", (64, 64))
    checks.putdata([255 * ((x // 4 + y // 4) % 2) for y in range(64) for x in range(64)])
    hidden, shown = live.Live("1", "probe"), live.Live("2", "probe", show_pictures=True)
    for told in (hidden, shown):
        told.picture(checks, "a pistol", flagged=True)
    assert [told.state["pictures"][0]["flagged"] for told in (hidden, shown)] == [True, False]
    assert ImageStat.Stat(live.blurred(checks)).stddev[0] < 10  # nothing of the pattern is left


def test_reports_are_confined_to_their_folder(host, monkeypatch, tmp_path):
    routes = load_nodes(monkeypatch, "routes")
    key = "0123456789abcdef0123"
    folder = tmp_path / "output" / "resalign" / "probes" / key
    folder.mkdir(parents=True)
    (folder / "report.html").write_text("x")
    (folder / "state.safetensors").write_text("x")
    (tmp_path / "secret.html").write_text("x")
    (folder / "link.html").symlink_to(tmp_path / "secret.html")

    assert routes.report_file(key, "report.html") == folder / "report.html"
    for bad in ("../../../../secret.html", str(tmp_path / "secret.html"), "link.html",
                "state.safetensors", "none.html", ""):  # fmt: skip
        assert routes.report_file(key, bad) is None, bad
    for bad in ("..", "0123", key.upper() + "0", "../" + key):
        assert routes.report_file(bad, "report.html") is None, bad


def test_the_routes_are_registered_once_and_only_read(host, monkeypatch):
    routes = load_nodes(monkeypatch, "routes")
    routes.register()
    routes.register()
    assert sorted(host.routes) == ["/resalign/live/{node}", "/resalign/report/{key}/{name:.+}"]
    assert routes.state_of("nobody") is None
    live = importlib.import_module("resalign.nodes.live")
    live.Live("9", "harden")
    assert routes.state_of("9")["status"] == "running"
