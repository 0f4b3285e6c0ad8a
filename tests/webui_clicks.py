"""Clicks of a person in the tab, with real jobs on the demo checkpoint, step by step."""

from __future__ import annotations

import time

from webui_browser import Tab

AT_WORK = "everything else"  # what the panel says of a running job (test_webui_views.py)
SLOW = 900  # seconds that a job of a few steps may take where ten other programs compute


def set_up(tab: Tab, steps: int, *, preview_every: int = 2) -> None:
    """The demo checkpoint, its own concept, so many steps."""
    tab.go("Harden")
    tab.choose("checkpoint", "ResAlign demo")
    tab.tick("concepts", "weapons")
    tab.pick("preset", "Test run: .*")
    tab.open_more("Advanced settings")
    set_steps(tab, steps, preview_every=preview_every)


def set_steps(tab: Tab, steps: int, *, preview_every: int = 2) -> None:
    tab.fill("outer_steps", str(steps))
    tab.fill("preview_every", str(preview_every))


def start(tab: Tab) -> None:
    """Harden, until its first curve is drawn; print the seconds that a user waited for what."""
    pressed, seen = time.monotonic(), {}

    def see(what: str) -> None:
        seen[what] = round(time.monotonic() - pressed, 1)

    tab.press("harden")
    tab.status("running", "harden")
    see("word")
    curve = tab.page.locator(".ra-job polyline").first  # of two steps or more
    curve.wait_for(state="attached", timeout=SLOW * 1000)  # a level one has no height to be seen by
    see("loss")
    print("seconds:", seen)


def cancel(tab: Tab, steps: int) -> None:
    """Stop it; it is then offered again."""
    tab.press("cancel")
    assert "Resume continues" in tab.status("stopped", seconds=SLOW)
    assert f"of {steps}" in tab.value("unfinished")


def resume(tab: Tab, steps: int) -> None:
    tab.press("resume")
    assert f"in {steps} steps" in tab.status("done", "resume", seconds=SLOW)


def export(tab: Tab, name: str) -> None:
    tab.go("Export")
    tab.fill("export_name", name)
    tab.press("export")
    assert "left as they were" in tab.status("done", "export", seconds=SLOW)


def read_header(tab: Tab, name: str) -> None:
    """The new file is in the lists, and says what it is."""
    tab.go("About a checkpoint")
    tab.choose("about", name)
    tab.press("show_about")
    tab.wait_text("concepts:")


def probe(tab: Tab, hardened: str) -> None:
    """A short probe of the demo and the hardened file, and its report: two steps change nothing,
    so that no attack counts, and the file is hardly unlearned."""
    tab.go("Probe")
    tab.choose("hardened", hardened)
    tab.open_more("Advanced settings")
    for name in ("attack_steps", "probe_images", "sampling_steps"):
        tab.fill(name, "2")
    tab.press("probe")
    said = tab.status("done", "probe", seconds=SLOW)
    assert "No verdict" in said or "Not safe to publish" in said, said
    tab.go("Reports")
    tab.press("show_report")
    report = tab.page.frame_locator("iframe[title=report]").locator(
        "text=every attack was too weak"
    )
    report.first.wait_for(state="visible")


def save_and_try_lora(tab: Tab, name: str) -> None:
    """The hardening as a LoRA in the host's folder, then drawn with, as if it were a user's."""
    tab.go("Export")
    tab.fill("lora_name", name)
    tab.press("save_lora")
    tab.status("done", "lora", seconds=SLOW)
    tab.go("Try my LoRA")
    tab.choose("try_run", "weapon")
    tab.choose("lora", name)
    tab.fill("prompt", "a noto key on a white background")
    tab.fill("lora_steps", "4")
    tab.press("try_lora")
    tab.status("done", "try_lora", seconds=SLOW)
    tab.page.locator(".ra-sheets img").first.wait_for(state="visible")
