"""The tab in its hosts' versions of gradio, clicked through by a headless Chromium.

Slow: needs Chromium and playwright. Jobs are played (`fakes_webui.FakeJobs`), apart from one test
that runs real ones on the demo.
"""

import json
import shutil

import pytest
import webui_clicks
from webui_browser import Tab
from webui_environments import NoEnvironment, python_of
from webui_served import browser_fixtures, served, shot

from resalign.backend.demo.plans import CHECKPOINT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
chromium, python = browser_fixtures()


def test_every_page_works_and_every_window_shows_the_job(chromium, python, tmp_path):
    name, interpreter = python
    with served(interpreter, tmp_path, "--fake", "200", "0.25") as (url, ended):
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
        assert "tick weapons alone" in tab.message("harden"), "the page shows the mistake"
        assert max(map(tab.bottom, ("harden_message", "harden"))) < 900, "and in sight"
        tab.tick("concepts", "nudity")
        tab.tick("concepts", "weapons")
        tab.tick("preset", "Test run: .*")
        tab.press("harden")
        tab.status("running", "harden")
        other.status("running", "harden")  # started elsewhere, shown by itself
        for part in ("harden", "cancel"):
            assert tab.enabled(part) == (part == "cancel"), "one at a time"
        tab.reload()
        assert "harm loss" in tab.status("running", "harden"), "it went on meanwhile"
        assert tab.enabled("cancel")
        tab.page.set_viewport_size({"width": 1280, "height": 500})
        panel = tab.stack("side")
        assert panel["below"] > 0, "the panel is higher than the window"
        assert len(panel["lefts"]) == 1 and not panel["beside"], "in one column, scrolled downwards"
        tab.page.set_viewport_size({"width": 1280, "height": 1300})
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
        tab.wait_text("Next: measure weapon Test run")
        assert not tab.enabled("cancel") and tab.enabled("harden")
        tab.press("next")
        tab.page.locator("#resalign_probe_run:visible").first.wait_for(state="visible")

        tab.wait_value("probe_run", "test run, not safe to publish")
        tab.wait_text("is a test run")
        tab.go("Export")
        tab.wait_value("export_run", "test run, not safe to publish")
        tab.fill("export_name", "sub/../../up")
        tab.press("export")
        assert "not a file name" in tab.message("export")
        assert 0 < tab.bottom("export_message") - tab.bottom("export") < 120, "below its button"
        tab.fill("export_name", "sub/new")
        first_choice = tab.value("export_run")
        tab.press("export")
        saved = tmp_path / "models" / "sub" / "new.safetensors"
        assert f"Saved as {saved}" in tab.status("done", "export"), "to the same machine"
        assert (tmp_path / "models" / "sub" / "new.safetensors").exists()
        started = tab.page.locator("#resalign_export_message .ra-note").locator("visible=true")
        started.first.wait_for(state="hidden")  # `Export started.` goes with its job
        shot(tab, f"{name}-export")
        assert tab.value("export_run") == first_choice, "a choice in sight stays"
        tab.wait_text("Next: measure weapon")  # what was exported has no report yet

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
        tab.page.wait_for_function(
            "() => [...document.querySelectorAll('#resalign_report_view')]"
            ".some(e => e.offsetParent && Math.abs(e.getBoundingClientRect().top) < 250)"
        )
        shot(tab, f"{name}-report")
        proposes_the_report_of_the_run(tab, tmp_path)

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
        assert "Press Check memory first" in tab.message("check")
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


def proposes_the_report_of_the_run(tab, folder):
    """Export has the newest report of its run; what a visitor chose stays."""
    tab.go("Export")
    assert tab.value("export_probe") == "none", "the file was measured, not the run"
    tab.go("Probe")
    for name in ("original", "hardened"):
        tab.choose(name, "the run's")
    tab.press("probe")
    tab.status("running", "probe")  # no longer what the one before it said
    tab.go("Export")  # and stay there to its end
    tab.status("done", "probe")
    reports = sorted(folder.rglob("report.html"), key=lambda file: file.stat().st_mtime)
    tab.wait_value("export_probe", reports[-1].parent.name)
    tab.choose("export_probe", "none")
    tab.go("Reports")
    tab.go("Export")
    tab.page.wait_for_timeout(1000)
    assert tab.value("export_probe") == "none"


def test_real_jobs_on_the_demo_from_hardening_to_the_report(chromium, tmp_path):
    """In Forge's gradio, with workers in this interpreter's environment."""
    try:
        interpreter = python_of("forge")
    except NoEnvironment as error:
        pytest.skip(str(error))
    with served(interpreter, tmp_path) as (url, ended):
        context = chromium.new_context()
        tab = Tab(context, url)
        webui_clicks.set_up(tab, 40, preview_every=20)
        webui_clicks.start(tab)
        shot(tab, "real-running")
        webui_clicks.cancel(tab, 40)
        webui_clicks.resume(tab, 40)
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
