"""`resalign ui` with a transformer in three files: hardened, exported and found again by clicks.

Slow, with a real job: needs what `test_webui_browser.py` needs.
"""

import fakes_anima as fakes
import pytest
import webui_clicks
from webui_browser import Tab
from webui_environments import NoEnvironment, python_of
from webui_served import ALONE, browser_fixtures, served, shot

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
chromium, _ = browser_fixtures()


def test_a_model_in_three_files_is_hardened_exported_and_found(chromium, tmp_path):
    try:
        interpreter = python_of("current")
    except NoEnvironment as error:
        pytest.skip(str(error))
    fakes.write_split(tmp_path / "models")
    with served(interpreter, tmp_path, script=ALONE) as (url, _):
        context = chromium.new_context()
        tab = Tab(context, url, alone=True)
        tab.choose("checkpoint", "tiny-anima")
        tab.wait_text("Found with it: qwen_3_06b_base.safetensors, qwen_image_vae.safetensors")
        tab.wait_text("non-commercial use")
        shot(tab, "anima-chosen")
        tab.tick("concepts", "weapons")
        tab.tick("preset", "Test run: .*")
        tab.open_more("Advanced settings")
        webui_clicks.set_steps(tab, 2, preview_every=1)
        tab.press("harden")
        assert "in 2 steps" in tab.status("done", "harden", seconds=webui_clicks.SLOW)
        webui_clicks.export(tab, "hardened anima")
        assert (tmp_path / "models/diffusion_models/hardened anima.safetensors").exists()
        tab.fill("lora_name", "hardening")
        tab.press("save_lora")
        tab.status("done", "lora", seconds=webui_clicks.SLOW)
        webui_clicks.read_header(tab, "hardened anima")
        shot(tab, "anima-about")
        assert tab.page.locator("text=not supported").locator("visible=true").count() == 0
        assert tab.errors == [] and tab.overflow() == []
        context.close()
