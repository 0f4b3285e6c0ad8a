"""The tab's server in a headless Chromium: reload, a broken script, and the tab without a host.

Slow: needs Chromium and playwright, in each of the hosts' versions of gradio.
"""

import shutil
from urllib.parse import urlsplit

import pytest
from webui_browser import Tab
from webui_served import ALONE, answer, browser_fixtures, served, shot

from resalign.backend.demo.plans import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
chromium, python = browser_fixtures()


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


def test_a_page_that_stays_open_over_a_restart_starts_what_it_shows(chromium, python, tmp_path):
    """Its lists are not those of the new server, which refused a choice in words of gradio's."""
    _, interpreter = python
    context = chromium.new_context()
    with served(interpreter, tmp_path) as (url, _):
        tab = Tab(context, url)
        tab.tick("concepts", "weapons")
        tab.tick("every_preset", "Show all eight choices")
        tab.pick("preset", "Quick edit: .*")
    with served(interpreter, tmp_path, "--fake", "8", "0.1", port=urlsplit(url).port):
        tab.press("harden")
        tab.status("done", "harden", seconds=240)
        shot(tab, "after-restart")
    context.close()


def test_a_page_says_that_its_host_is_gone_until_it_is_back(chromium, python, tmp_path):
    """And a refusal goes when the form changes."""
    _, interpreter = python
    context = chromium.new_context()
    with served(interpreter, tmp_path, "--fake", "4000", "0.25") as (url, _):
        tab = Tab(context, url)
        tab.tick("concepts", "nudity")
        tab.press("harden")
        assert "tick weapons alone" in tab.message("harden")
        tab.tick("concepts", "nudity")
        refusal = tab.page.locator("#resalign_harden_message .ra-error").first
        refusal.wait_for(state="hidden")
        tab.press("harden")
        tab.status("running", "harden")
    away = tab.page.locator("#resalign_away")
    away.wait_for(state="visible")
    assert "does not answer. When it runs again, press Resume to go on" in away.inner_text()
    shot(tab, "host-gone")
    with served(interpreter, tmp_path, "--fake", "8", "0.1", port=urlsplit(url).port):
        away.wait_for(state="hidden")
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
