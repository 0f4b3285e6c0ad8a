"""The tab in a real A1111, Forge, reForge and Forge Neo, from the first start to a killed host.

Slow, some ten minutes for each; skipped unless both of A1111_DIR, A1111_PYTHON (FORGE_DIR,
FORGE_PYTHON; REFORGE_...; FORGE_NEO_...) are set, see host_webui.py. RESALIGN_SCREENSHOTS names a
folder for pictures, RESALIGN_PATIENCE the seconds that a page may take (90). `-k "[forge]"` selects
Forge without its forks.
The tests of one host go together, in this order.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import webui_browser
import webui_clicks
from host_webui import KINDS, MINE, WHOLE, WebUI, host_paths
from webui_browser import Tab
from webui_served import answer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
HARDENED = "sub/hardened demo"
STEPS = 60  # enough that a slow machine can open a second window and reload meanwhile
ITS_OWN = "setupAllResizeHandles"  # what Forge's page may complain of, with or without us


@pytest.fixture(scope="module")
def chromium():
    if reason := webui_browser.missing():
        pytest.skip(f"no browser test: {reason}")
    with webui_browser.browser() as made:
        yield made


@pytest.fixture(scope="module", params=KINDS)
def webui(request, root, tmp_path_factory):
    host_paths(request.param)
    made = WebUI(request.param, tmp_path_factory.mktemp(request.param), root)
    made.add_whole_checkpoint()
    made.frozen = made.freeze()
    yield made
    made.stop(signal.SIGKILL)
    print(made.log.read_text(errors="replace")[-4000:])


@pytest.fixture
def running(webui):
    if webui.process is None:
        webui.start()
    return webui


@pytest.fixture
def window(running, chromium):
    context = chromium.new_context()
    tab = Tab(context, running.url)
    yield tab
    shot(running, tab, "last")
    context.close()
    assert [error for error in tab.errors if not error.startswith(ITS_OWN)] == []


def shot(webui, tab, name):
    folder = os.environ.get("RESALIGN_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tab.shot(Path(folder) / f"{webui.kind}-{name}.png")


def job(webui):
    return webui.get("/resalign/state")


def wait_until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.2)


def test_its_own_start_makes_the_worker_s_environment_and_the_next_does_nothing(webui):
    webui.run_installer()
    start = time.monotonic()
    assert webui.run_installer().strip() == ""
    assert time.monotonic() - start < 10


def test_from_the_demo_to_an_exported_checkpoint_in_the_host_s_list(running, window, chromium):
    webui_clicks.set_up(window, STEPS)
    webui_clicks.start(window)
    shot(running, window, "running")
    other = Tab(chromium.new_context(), running.url, theme="light")
    assert webui_clicks.AT_WORK in other.status("running", "harden"), "a second window shows it"
    window.reload()
    assert webui_clicks.AT_WORK in window.status("running", "harden"), "it went on meanwhile"
    (worker,) = running.workers()
    command = Path(f"/proc/{worker}/cmdline").read_bytes().split(b"\0")
    made = Path(running.environment["RESALIGN_WEBUI_ENV"]).glob("*.json")
    known = {json.loads(path.read_text())["python"] for path in made}  # Forge Neo's own suffices
    assert command[1] == b"-I" and command[0].decode() in known
    webui_clicks.cancel(window, STEPS)
    other.status("stopped", seconds=60)
    other.page.context.close()
    webui_clicks.resume(window, STEPS)
    shot(running, window, "hardened")
    webui_clicks.export(window, HARDENED)
    wait_until(lambda: "hardened demo.safetensors" in running.checkpoints(), 30)
    webui_clicks.read_header(window, "hardened demo")
    shot(running, window, "about")
    assert running.workers() == []


def test_probe_report_and_a_lora_of_one_s_own(running, window):
    webui_clicks.probe(window, "hardened demo")
    shot(running, window, "report")
    webui_clicks.save_and_try_lora(window, "hardening_lora")
    assert (running.loras / "hardening_lora.safetensors").is_file()
    shot(running, window, "lora")


def test_the_host_s_pictures_wait_for_the_job_and_come_afterwards(running, window):
    webui_clicks.set_up(window, 200)
    webui_clicks.start(window)
    drawn: list[str] = []
    drawing = threading.Thread(target=lambda: drawn.append(running.draw()))
    drawing.start()
    time.sleep(15)
    assert drawn == [] and job(running)["status"] == "running"
    webui_clicks.cancel(window, 200)
    drawing.join(300)
    assert len(drawn) == 1 and len(drawn[0]) > 1000


def test_a_killed_worker_is_told_and_neither_the_host_nor_the_run_is_lost(running, window):
    webui_clicks.set_up(window, 200)
    webui_clicks.start(window)
    (worker,) = running.workers()
    os.kill(worker, signal.SIGKILL)
    said = window.status("failed", seconds=60)
    assert "was killed (SIGKILL)" in said
    shot(running, window, "killed")
    window.press("resume")
    window.status("running", "resume")
    window.press("cancel")
    window.status("stopped", seconds=webui_clicks.SLOW)
    assert len(running.draw()) > 1000


def test_a_checkpoint_that_is_deleted_in_mid_run_stops_nothing_but_its_export(running, window):
    """The weights are in the worker; what is written needs the source again."""
    window.press("refresh")
    webui_clicks.set_up(window, 2)
    window.tick("concepts", "weapons")
    window.choose("checkpoint", MINE)
    window.fill("own_concepts", "# weapon\na gun\na knife")
    window.open_more("Pictures")
    for name in ("concept_images", "retain_images"):
        window.fill(name, "4")
    webui_clicks.start(window)
    (running.models / MINE).unlink()
    window.status("done", "harden", seconds=webui_clicks.SLOW)
    window.go("Export")
    window.choose("export_run", "test run, not safe")  # the one of two steps
    window.fill("export_name", "never")
    window.press("export")
    assert MINE in window.status("failed", "export", seconds=60)
    assert not list(running.models.glob("never*"))


def test_reload_ui_stops_the_job_and_the_run_goes_on_after_it(running, window):
    webui_clicks.set_up(window, 200)
    webui_clicks.start(window)
    pid = running.process.pid
    window.go("Settings")  # Forge's link below the page needs it to have been opened
    window.page.locator("#settings_restart_gradio").click()
    wait_until(lambda: running.workers() == [], 120)
    time.sleep(5)
    wait_until(lambda: up(running), 120)
    assert running.process.poll() is None and running.process.pid == pid
    window.reload()
    window.status("stopped", seconds=60)
    assert "of 200" in window.value("unfinished")
    window.press("resume")
    window.status("running", "resume")
    window.press("cancel")
    window.status("stopped", seconds=webui_clicks.SLOW)


def up(webui) -> bool:
    try:
        job(webui)
    except (OSError, ValueError):
        return False
    return True


def test_a_killed_host_takes_its_worker_along_and_the_run_goes_on_at_the_next_start(
    running, chromium
):
    context = chromium.new_context()
    tab = Tab(context, running.url)
    webui_clicks.set_up(tab, 200)
    webui_clicks.start(tab)
    assert len(running.workers()) == 1
    running.stop(signal.SIGKILL)
    wait_until(lambda: running.workers() == [], 60)
    tab.page.goto("about:blank")
    running.start()
    tab.reload()
    assert "the host ended" in tab.status("stopped", seconds=60)
    tab.press("resume")
    tab.status("running", "resume")
    tab.press("cancel")
    tab.status("stopped", seconds=webui_clicks.SLOW)
    context.close()


def test_where_no_installer_ran_the_tab_says_so_and_its_button_makes_the_environment(
    webui, chromium, tmp_path
):
    """As with --skip-install, or after a first start without a network."""
    webui.stop()
    kept = webui.environment["RESALIGN_WEBUI_ENV"]
    webui.environment["RESALIGN_WEBUI_ENV"] = str(tmp_path / "new")
    try:
        webui.start()
        context = chromium.new_context()
        tab = Tab(context, webui.url)
        tab.wait_text("No job can run yet")
        tab.choose("checkpoint", "ResAlign demo")
        tab.press("harden")
        assert "not been made" in tab.message("harden")
        shot(webui, tab, "missing")
        tab.press("mend")
        ready = tab.page.locator("text=Ready: jobs can run now").locator("visible=true").first
        ready.wait_for(state="visible", timeout=webui_clicks.SLOW * 1000)
        webui_clicks.set_up(tab, 200)
        webui_clicks.start(tab)
        tab.press("cancel")
        tab.status("stopped", seconds=webui_clicks.SLOW)
        context.close()
    finally:
        webui.environment["RESALIGN_WEBUI_ENV"] = kept
        webui.stop()


def test_without_the_host_s_log_in_nothing_is_told_or_done(webui, chromium):
    webui.stop()
    webui.start("--gradio-auth", "me:word")
    runs = webui.output / "runs"
    before = sorted(runs.iterdir())
    assert before, "the runs of the tests above"
    state = f"{webui.url}/resalign/state"
    wait_until(lambda: answer(state) != 404)  # extensions' routes come after the first page
    for path in ("resalign/state", "resalign/report/x/report.html", "config"):
        assert answer(f"{webui.url}/{path}") == 401
    for path in ("run/predict", "api/predict", "queue/join"):
        for index in range(0, 900, 20):
            body = {"fn_index": index, "data": [], "session_hash": "x"}
            assert answer(f"{webui.url}/{path}", body) in (401, 404, 405), (path, index)
    assert sorted(runs.iterdir()) == before
    context = chromium.new_context()
    tab = Tab(context, webui.url, login=("me", "word"))
    assert tab.page.evaluate("fetch('resalign/state').then(a => a.status)") == 200
    shown = tab.page.evaluate("fetch('resalign/state').then(a => a.text())")
    assert str(webui.data) not in shown
    webui_clicks.set_up(tab, 200)
    webui_clicks.start(tab)
    tab.press("cancel")
    tab.status("stopped", seconds=webui_clicks.SLOW)
    context.close()


def test_the_host_s_packages_and_checkpoints_are_as_they_were(webui):
    assert webui.freeze() == webui.frozen
    assert {path.name for path in webui.models.iterdir() if path.is_file()} - {MINE} == {WHOLE}
    assert not list(webui.data.rglob("*.corrupted"))
