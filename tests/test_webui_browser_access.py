"""Who may use the tab: logins, pages of other sites, folders outside; in a headless Chromium.

Slow: needs Chromium and playwright, in each of the hosts' versions of gradio.
"""

import shutil

import pytest
from PIL import Image
from webui_browser import REBOUND, Tab
from webui_foreign import ATTACK, another_site, call, event_of
from webui_served import answer, browser_fixtures, served

from resalign.backend.demo.plans import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
chromium, python = browser_fixtures()


def test_nothing_is_done_and_nothing_is_told_without_the_host_s_log_in(chromium, python, tmp_path):
    _, interpreter = python
    probe = tmp_path / "outputs" / "resalign" / "probes" / "one"
    probe.mkdir(parents=True)
    (probe / "probe.json").write_text("{}")
    (probe / "report.html").write_text("secret")
    with served(interpreter, tmp_path, "--auth", "me:word", "--fake", "8", "0.2") as (url, _):
        for path in ("resalign/state", "resalign/report/one/report.html"):
            assert answer(url + path) == 401
        for path in ("run/predict", "api/predict", "queue/join", "gradio_api/queue/join"):
            for index in range(40):
                body = {"fn_index": index, "data": [], "session_hash": "x"}
                assert answer(url + path, body) in (401, 404, 405), (path, index)
        assert not list((tmp_path / "outputs" / "resalign").glob("runs/*"))

        context = chromium.new_context()
        tab = Tab(context, url, login=("me", "word"))
        tab.tick("concepts", "weapons")
        tab.press("harden")
        tab.status("done", "harden")
        assert tab.page.evaluate("fetch('resalign/state').then(a => a.status)") == 200
        inside = "fetch('resalign/report/one/report.html').then(a => a.text())"
        assert tab.page.evaluate(inside) == "secret"
        for wrong in ("../../../log", "%2e%2e/%2e%2e/%2e%2e/log", "probe.txt"):
            found = tab.page.evaluate(f"fetch('resalign/report/one/{wrong}').then(a => a.status)")
            assert found == 404
        shown = tab.page.evaluate("fetch('resalign/state').then(a => a.text())")
        assert str(tmp_path) not in shown
        context.close()


def test_a_page_of_another_site_can_press_no_button(chromium, python, tmp_path):
    """Without a login a browser delivers what any page sends to this machine."""
    _, interpreter = python
    with served(interpreter, tmp_path, "--fake", "400", "0.1") as (url, _), another_site() as site:

        def runs():
            return len(list(tmp_path.glob("outputs/resalign/runs/*")))

        asked = {"checkpoint": "ResAlign demo", "concepts": ["weapons"], "preset": "fast"}
        harden, cancel = event_of(url, "harden", **asked), event_of(url, "cancel")
        call(url, *harden)  # a program, which is not the danger: so the event is the right one
        context = chromium.new_context()
        tab, foreign = Tab(context, url), context.new_page()
        tab.status("running", "harden")
        assert runs() == 1
        foreign.goto(site)
        tried = foreign.evaluate(ATTACK, [url, *cancel])
        assert len(tried) == 7 and any(path.endswith("predict") for path in tried)
        assert "Hardening the ResAlign demo ..." in tab.status("running"), "it was not cancelled"
        tab.press("cancel")
        tab.status("stopped")
        foreign.evaluate(ATTACK, [url, *harden])
        foreign.wait_for_timeout(2000)
        assert runs() == 1 and "stopped" in tab.status("stopped").lower()
        told = foreign.evaluate("(url) => fetch(url).then(a => a.status, () => 'blocked')",
                                url + "resalign/state")  # fmt: skip
        assert told in (403, "blocked")

        rebound = url.replace("127.0.0.1", REBOUND)
        foreign.goto(rebound, wait_until="domcontentloaded")
        assert foreign.evaluate("fetch('resalign/state').then(a => a.status)") == 403
        foreign.evaluate(ATTACK, [rebound, *harden])
        foreign.wait_for_timeout(2000)
        assert runs() == 1
        tab.press("resume")
        tab.status("running", "resume")
        assert tab.errors == []
        context.close()


def test_over_a_network_a_folder_outside_is_refused_on_the_page(chromium, python, tmp_path):
    _, interpreter = python
    (tmp_path / "models").mkdir()
    shutil.copyfile(CHECKPOINT, tmp_path / "models" / "small.safetensors")
    with served(interpreter, tmp_path, "--listen", "--fake", "4", "0.1") as (url, _):
        context = chromium.new_context()
        tab = Tab(context, url)
        assert tab.value("checkpoint") == "small.safetensors"
        tab.tick("concepts", "weapons")
        tab.open_more("Pictures")
        tab.fill("concept_folder", "/etc")
        tab.press("harden")
        assert "RESALIGN_FOLDERS" in tab.message("harden")
        pictures = tmp_path / "outputs" / "pictures"
        pictures.mkdir(parents=True)
        Image.new("RGB", (64, 64)).save(pictures / "a gun.png")
        tab.fill("concept_folder", str(pictures))
        tab.press("harden")
        tab.status("done", "harden")
        context.close()
