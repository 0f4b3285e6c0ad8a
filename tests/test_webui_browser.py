"""The tab in its hosts' versions of gradio, clicked through by a headless Chromium.

Slow: needs Chromium, playwright, and an environment for each version, which is made on demand.
Jobs are played (`fakes_webui.FakeJobs`), apart from one test that runs real ones on the demo.
`RESALIGN_SCREENSHOTS` names a folder for pictures to look at.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
import webui_browser
import webui_clicks
from webui_browser import REBOUND, Tab
from webui_environments import REQUIREMENTS, NoEnvironment, python_of
from webui_foreign import ATTACK, another_site, call, event_of

from resalign.backend.demo.plans import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HOST = Path(__file__).parent / "webui_host.py"
ALONE = Path(__file__).parent / "webui_alone.py"


@pytest.fixture(scope="module")
def chromium():
    reason = webui_browser.missing()
    if reason:
        pytest.skip(f"no browser test: {reason}")
    with webui_browser.browser() as made:
        yield made


@pytest.fixture(scope="module", params=list(REQUIREMENTS))
def python(request):
    try:
        return request.param, python_of(request.param)
    except NoEnvironment as error:
        pytest.skip(str(error))


@contextmanager
def served(python, folder, *arguments, script=HOST):
    """A host that serves the tab: its address, and what it says when it goes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ, "RESALIGN_PYTHON": sys.executable, "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1", "GRADIO_TEMP_DIR": str(folder / "gradio"),
    }  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(python), str(script), str(port), str(folder), *arguments], env=environment,
            text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log,
        )  # fmt: skip
    ended = {}
    try:
        for line in process.stdout:
            if line.startswith("{"):
                break
        else:
            pytest.fail((folder / "log").read_text()[-3000:])
        yield json.loads(line)["url"], ended
        if script == ALONE:
            process.send_signal(signal.SIGINT)
        said, _ = process.communicate("stop\n", timeout=60)
        if script == HOST:
            ended |= json.loads(said.splitlines()[-1])
    finally:
        process.kill()
        process.communicate()


def shot(tab, name):
    folder = os.environ.get("RESALIGN_SCREENSHOTS")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
        tab.shot(Path(folder) / f"{name}.png")


def test_every_page_works_and_every_window_shows_the_job(chromium, python, tmp_path):
    name, interpreter = python
    with served(interpreter, tmp_path, "--fake", "90", "0.25") as (url, ended):
        first, second = chromium.new_context(), chromium.new_context()
        tab = Tab(first, url)
        other = Tab(second, url, theme="light")

        assert tab.bottom("harden") < 900, "in sight at 1280 x 900"
        assert not tab.enabled("cancel") and not tab.visible("next"), "nothing is running"
        tab.wait_text("While it runs, pictures of")
        tab.tick("concepts", "hate symbols")
        tab.tick("concepts", "hate symbols")
        tab.tick("concepts", "nudity")
        tab.press("harden")
        assert "tick weapons alone" in tab.message("harden"), "a mistake is told on the page"
        assert max(map(tab.bottom, ("harden_message", "harden"))) < 900, "and in sight"
        tab.tick("concepts", "nudity")
        tab.tick("concepts", "weapons")
        tab.tick("preset", "Test run: .*")
        tab.press("harden")
        tab.status("running", "harden")
        other.status("running", "harden")  # started elsewhere, shown by itself
        tab.press("harden")
        tab.wait_text("is running")  # one at a time
        tab.reload()
        assert "harm loss" in tab.status("running", "harden"), "it went on meanwhile"
        assert tab.enabled("cancel")
        tab.go("txt2img")
        tab.page.locator("#resalign_waiting", has_text="pictures wait until").click()
        tab.page.locator("#resalign_harden:visible").wait_for()  # it leads back to our tab
        shot(tab, f"{name}-running")
        shot(other, f"{name}-running-light")

        other.press("cancel")
        assert "Resume continues" in tab.status("stopped")
        other.status("stopped")
        assert "of 20" in tab.value("unfinished")
        assert tab.bottom("resume") < 250 and tab.bottom("unfinished") < 350, "near the top"
        tab.press("resume")
        assert "all is well" not in tab.status("running", "resume")
        tab.status("done", "resume")
        tab.wait_text("Next: measure it")
        assert not tab.enabled("cancel")
        tab.press("next")
        tab.page.locator("#resalign_probe_run:visible").first.wait_for(state="visible")

        tab.wait_value("probe_run", "test run, not safe to publish")
        tab.wait_text("is a test run")
        tab.go("Export")
        tab.wait_value("export_run", "test run, not safe to publish")
        tab.fill("export_name", "sub/../../up")
        tab.press("export")
        assert "not a file name" in tab.message("export")
        tab.fill("export_name", "sub/new")
        first_choice = tab.value("export_run")
        tab.press("export")
        assert "new.safetensors is in the folder sub" in tab.status("done", "export")
        assert (tmp_path / "models" / "sub" / "new.safetensors").exists()
        shot(tab, f"{name}-export")
        assert tab.value("export_run") == first_choice, "a choice in sight stays"
        tab.wait_text("Next: measure it")  # what was exported has no report yet

        tab.go("Probe")
        tab.wait_value("probe_run", "weapon")
        tab.choose("hardened", "sub/new")
        tab.choose("original", "ResAlign demo")
        tab.press("probe")
        tab.status("done", "probe")
        shot(tab, f"{name}-probe")
        tab.wait_text("Next: pack it for a release")
        tab.press("next")
        tab.wait_value("pack_checkpoint", "sub/new")
        tab.press("show_report")
        report = tab.page.frame_locator("iframe").locator("text=resilience 0.8")
        report.first.wait_for(state="visible")
        shot(tab, f"{name}-report")

        tab.go("About a checkpoint")
        tab.press("show_about")
        tab.wait_text("Stable Diffusion 1.x")
        tab.go("Try my LoRA")
        tab.wait_value("try_run", "weapon")
        tab.press("try_lora")
        assert "write what to draw" in tab.message("lora")
        shot(tab, f"{name}-lora")
        for window in (tab, other):
            assert window.errors == [] and window.overflow() == []
        tab.page.set_viewport_size({"width": 400, "height": 844})
        assert tab.overflow() == [], "on a narrow window too"
        tab.go("Harden")
        tab.press("harden")
        tab.status("running", "harden")
        tab.page.evaluate("scrollTo(0, document.body.scrollHeight)")
        for part in ("cancel", "now"):
            assert 0 <= tab.top_in_window(part) < 200, "in sight wherever the form is read"
        tab.press("cancel")
        tab.status("stopped")
        assert tab.visible("resume"), "beside Cancel, where the words that name it are"
        first.close()
        second.close()
    assert ended == {"left": []}, "nothing of ours is left for Reload UI to find"


def test_a_check_of_the_memory_is_shown_and_what_fits_is_put_into_the_form(
    chromium, python, tmp_path
):
    name, interpreter = python
    (tmp_path / "models").mkdir()
    shutil.copyfile(CHECKPOINT, tmp_path / "models" / "small.safetensors")
    with served(interpreter, tmp_path, "--fake", "4", "0.1") as (url, _):
        context = chromium.new_context()
        tab = Tab(context, url)
        tab.tick("concepts", "weapons")
        tab.tick("preset", "Standard: .*")
        tab.open_more("Memory")
        tab.press("fit")
        assert "Press Check memory first" in tab.message("harden")
        tab.fill("memory_budget", "-3")
        tab.press("check")
        tab.wait_text("must be from 0 to 10000")
        tab.fill("memory_budget", "8")
        tab.press("check")
        shown = tab.status("done", "check")
        assert "adapter and its state" in shown and "with the changes" in shown
        shot(tab, f"{name}-memory")
        tab.press("fit")
        tab.wait_text("Set in the form")
        assert tab.value("micro_batch") == "2"
        tab.open_more("Advanced settings")
        assert tab.value("precision") == "bf16"
        assert tab.value("products") == "finite_difference"
        assert tab.page.locator("#resalign_gradient_checkpointing input").first.is_checked()
        tab.press("harden")
        tab.status("done", "harden")
        plans = tmp_path.glob("outputs/resalign/runs/*/plan.json")
        (plan,) = (json.loads(path.read_text()) for path in plans)
        assert (plan["micro_batch"], plan["precision"]) == (2, "bf16")
        assert plan["gradient_checkpointing"] is True
        assert plan["solver"]["products"] == "finite_difference"
        assert tab.errors == [] and tab.overflow() == []
        context.close()


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


def test_reload_ui_does_not_wait_for_a_page_that_follows_a_job(chromium, python, tmp_path):
    """gradio 3.41 ends its server when nothing streams any more; a job may take hours."""
    _, interpreter = python
    context = chromium.new_context()
    with served(interpreter, tmp_path, "--fake", "4000", "0.25") as (url, ended):
        tab = Tab(context, url)
        tab.tick("concepts", "weapons")
        tab.press("harden")
        tab.status("running", "harden")
    assert ended == {"left": []}
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
        tab.fill("concept_folder", str(tmp_path / "outputs"))
        tab.press("harden")
        tab.status("done", "harden")
        context.close()


def test_a_script_that_fails_leaves_a_tab_that_says_so(chromium, python, tmp_path):
    name, interpreter = python
    if name == "current":
        pytest.skip("no host has it")
    with served(interpreter, tmp_path, "--break") as (url, _):
        context = chromium.new_context()
        page = context.new_page()
        page.goto(url, wait_until="domcontentloaded")
        page.locator("button:visible", has_text="ResAlign").first.click()
        page.locator("text=could not be loaded").first.wait_for(state="visible")
        assert "broken on purpose" in page.locator("pre").first.inner_text()
        context.close()


def test_the_tab_on_its_own_fetches_nothing_and_asks_for_its_log_in(chromium, python, tmp_path):
    name, interpreter = python
    if name == "a1111":
        pytest.skip("`resalign ui` needs gradio 4.40")
    shutil.copyfile(CHECKPOINT, tmp_path / "small.safetensors")
    with served(interpreter, tmp_path, "me:word", script=ALONE) as (url, _):
        assert answer(url + "resalign/state") == 401
        context, asked = chromium.new_context(), []
        context.on("request", lambda request: asked.append(request.url))
        tab = Tab(context, url, login=("me", "word"), alone=True)
        other = Tab(context, url, theme="light", alone=True)
        assert tab.value("checkpoint") == "small.safetensors"
        tab.choose("checkpoint", "ResAlign demo")
        tab.tick("concepts", "weapons")
        tab.press("harden")
        tab.status("running", "harden")
        other.status("running", "harden")
        other.press("cancel")
        tab.status("stopped", seconds=240)
        shot(other, f"{name}-alone")
        here = ["http://127.0.0.1", "data:", "blob:"]
        if name == "forge":  # what the template of gradio 4.40 has in it
            here += ["https://cdnjs.cloudflare.com/", "https://fonts."]
        assert [address for address in asked if not address.startswith(tuple(here))] == []
        assert tab.errors == []
        context.close()


def test_real_jobs_on_the_demo_from_hardening_to_the_report(chromium, tmp_path):
    """In Forge's gradio, with workers in this interpreter's environment."""
    try:
        interpreter = python_of("forge")
    except NoEnvironment as error:
        pytest.skip(str(error))
    with served(interpreter, tmp_path) as (url, ended):
        context = chromium.new_context()
        tab = Tab(context, url)
        webui_clicks.set_up(tab, 6)
        webui_clicks.start(tab)
        shot(tab, "real-running")
        webui_clicks.cancel(tab, 6)
        webui_clicks.resume(tab, 6)
        assert tab.page.locator(".ra-pictures img:visible").count() == 4
        shot(tab, "real-hardened")
        webui_clicks.export(tab, "hardened demo")
        webui_clicks.save_and_try_lora(tab, "hardening of the demo")
        shot(tab, "real-lora")
        webui_clicks.read_header(tab, "hardened demo")
        shot(tab, "real-about")
        webui_clicks.probe(tab, "hardened demo")
        shot(tab, "real-report")
        assert tab.errors == [] and tab.overflow() == []
        context.close()
    assert ended == {"left": []}


def answer(url, body=None):
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        return urllib.request.urlopen(request, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
