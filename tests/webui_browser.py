"""A headless Chromium on the tab, and the small differences between the versions of gradio."""

from __future__ import annotations

import os
import re
import shutil
from contextlib import contextmanager
from pathlib import Path

REBOUND = "rebound.example"  # a name that its owner points to this machine
ARGUMENTS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    f"--host-resolver-rules=MAP {REBOUND} 127.0.0.1",
)  # fmt: skip
# Milliseconds: a busy machine may be slow to draw a page. A host that loads a checkpoint on a tenth
# of a core takes longer.
PATIENCE = 1000 * int(os.environ.get("RESALIGN_PATIENCE", "90"))


def missing() -> str:
    """Why there can be no browser here; empty where there is one."""
    if not chromium():
        return "Chromium is not installed (apt-get install chromium, or set CHROMIUM)"
    try:
        import playwright.sync_api  # noqa: F401
    except ImportError:
        return "playwright is not installed (pip install playwright)"
    return ""


def chromium() -> str:
    names = ("chromium", "chromium-browser", "google-chrome")
    found = (shutil.which(name) for name in names)
    return os.environ.get("CHROMIUM") or next(filter(None, found), "")


@contextmanager
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as player:
        made = player.chromium.launch(executable_path=chromium(), args=list(ARGUMENTS))
        try:
            yield made
        finally:
            made.close()


class Tab:
    """Our tab in one window."""

    def __init__(self, context, url: str, *, theme: str = "dark", login=None,
                 alone: bool = False) -> None:  # fmt: skip
        self.alone = alone
        self.page, self.errors = context.new_page(), []
        self.page.set_default_timeout(PATIENCE)
        self.page.set_viewport_size({"width": 1280, "height": 1300})
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.url = f"{url}?__theme={theme}"
        self.page.goto(self.url, wait_until="domcontentloaded")
        if login:
            self._log_in(*login)
        self.open()

    def open(self) -> None:
        if not self.alone:
            self._press_tab("ResAlign")
        self.page.locator("#resalign_harden").first.wait_for(state="visible")
        # Until then its lists are those of the server's start, and an open list would change.
        loading = self.page.locator("#resalign_job .ra-loading").locator("visible=true")
        loading.first.wait_for(state="hidden")
        self.page.wait_for_timeout(800)  # the page's other events on loading

    def reload(self) -> None:
        self.page.goto(self.url, wait_until="domcontentloaded")
        self.open()

    def go(self, name: str) -> None:
        """To one of our pages."""
        self._press_tab(name)

    def press(self, name: str) -> None:
        self.page.locator(f"#resalign_{name}").locator("visible=true").first.click()

    def bottom(self, name: str) -> float:
        """The lower edge of a button, in pixels from the top of the page, once nothing moves."""
        part = self.page.locator(f"#resalign_{name}").locator("visible=true").first
        places: list[float] = []
        while len(places) < 2 or places[-1] != places[-2]:  # gradio makes room while it waits
            assert len(places) < 100, f"{name} does not come to rest"
            self.page.wait_for_timeout(300)
            box = part.bounding_box()
            places.append(box["y"] + box["height"])
        return places[-1]

    def top_in_window(self, name: str) -> float:
        """Return the top of a part, in pixels from the top of the window as it is scrolled."""
        part = self.page.locator(f"#resalign_{name}").locator("visible=true").first
        return part.evaluate("(part) => part.getBoundingClientRect().top")

    def stack(self, name: str) -> dict:
        """Left edges of a column's children, and pixels that it hides beside and below."""
        part = self.page.locator(f"#resalign_{name}").first
        return part.evaluate(
            """(part) => ({
                lefts: [...new Set([...part.children].filter(e => e.getClientRects().length)
                    .map(e => Math.round(e.getBoundingClientRect().left)))],
                beside: part.scrollWidth - part.clientWidth,
                below: part.scrollHeight - part.clientHeight,
            })"""
        )

    def enabled(self, name: str) -> bool:
        return self.page.locator(f"#resalign_{name}:visible").first.is_enabled()

    def visible(self, name: str) -> bool:
        return self.page.locator(f"#resalign_{name}").first.is_visible()

    def tick(self, name: str, value: str) -> None:
        """A box of a group, or one of several choices."""
        label = self.page.locator(f"#resalign_{name} label:visible")
        label.filter(has_text=re.compile(f"^ *{value} *$")).first.click()

    def pick(self, name: str, value: str) -> None:
        """Tick one of several choices, and see that it is this one that was ticked."""
        self.tick(name, value)
        ticked = self.page.locator(
            f"#resalign_{name} label:visible", has=self.page.locator(":checked")
        )
        ticked.filter(has_text=re.compile(f"^ *{value} *$")).first.wait_for(state="visible")

    def fill(self, name: str, text: str) -> None:
        field = self.page.locator(f"#resalign_{name} textarea, #resalign_{name} input")
        field.locator("visible=true").first.fill(text)
        field.locator("visible=true").first.blur()

    def choose(self, name: str, text: str) -> None:
        """An entry of a list."""
        self.page.locator(f"#resalign_{name} input:visible").first.click()
        options = self.page.locator("ul[role=listbox] li:visible, ul.options li:visible")
        options.filter(has_text=text).first.click()
        for _ in range(50):
            if text in self.value(name):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{name} is {self.value(name)!r} after choosing {text!r}")

    def wait_value(self, name: str, text: str) -> None:
        """Wait until a field has this in it: a page chooses in its lists when it is opened."""
        for _ in range(100):
            if text in self.value(name):
                return
            self.page.wait_for_timeout(100)
        raise AssertionError(f"{name} is {self.value(name)!r}, and not {text!r}")

    def value(self, name: str) -> str:
        field = self.page.locator(f"#resalign_{name} textarea, #resalign_{name} input")
        return field.locator("visible=true").first.input_value()

    def open_more(self, label: str) -> None:
        heads = self.page.locator("button:visible, .label-wrap:visible", has_text=label)
        heads.first.click()

    def status(self, wanted: str, job: str = "", seconds: float = 60) -> str:
        """Wait until the panel shows a job in this state; its text."""
        kind = f"[data-job={job}]" if job else ""
        shown = self.page.locator(f".ra-job[data-status={wanted}]{kind}").locator("visible=true")
        shown.first.wait_for(state="visible", timeout=seconds * 1000)
        return shown.first.inner_text()

    def message(self, name: str) -> str:
        """The page's answer to a button."""
        note = self.page.locator(f"#resalign_{name}_message .ra-note").locator("visible=true")
        note.first.wait_for(state="visible")
        return note.first.inner_text()

    def wait_text(self, text: str) -> None:
        self.page.locator(f"text={text}").locator("visible=true").first.wait_for(state="visible")

    def overflow(self) -> list[str]:
        """Elements of ours that are wider than the window; gradio folds its tabs by itself."""
        return self.page.evaluate(
            """() => [...document.querySelectorAll('#tab_resalign *')]
                .filter(e => e.getBoundingClientRect().right > innerWidth + 1 && e.offsetParent)
                .filter(e => !e.closest('.tab-container'))
                .map(e => e.tagName + '.' + e.className).slice(0, 5)"""
        )

    def shot(self, path: Path | str) -> None:
        """Photograph the whole page. A report that lies below the window is drawn only in sight."""
        size = self.page.viewport_size
        height = self.page.evaluate("document.documentElement.scrollHeight")
        self.page.set_viewport_size({**size, "height": max(height, size["height"])})
        self.page.wait_for_timeout(500)
        self.page.screenshot(path=str(path), full_page=True)
        self.page.set_viewport_size(size)

    def _press_tab(self, name: str) -> None:
        """Buttons in 3.41; later ones have a role, and copies that measure their width."""
        text = re.compile(f"^ *([0-9] )?{name} *$")
        tabs = self.page.locator("button[role=tab]:visible, .tab-nav button:visible")
        tabs.filter(has_text=text).first.wait_for(state="visible")
        shown = self.page.locator("[role=tablist]:not(.visually-hidden) button, .tab-nav button")
        shown.filter(has_text=text).locator("visible=true").first.click()

    def _log_in(self, name: str, password: str) -> None:
        fields = self.page.locator("input:visible, textarea:visible")
        fields.first.wait_for(state="visible")
        fields.nth(0).fill(name)
        fields.nth(1).fill(password)
        self.page.locator("button:visible", has_text=re.compile("log ?in", re.I)).first.click()
