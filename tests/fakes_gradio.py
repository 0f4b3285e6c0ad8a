"""A gradio that notes what it is given, for the tab's files that import the real one."""

import importlib
import sys
from types import ModuleType

OURS = "resalign.scripts.resalign_webui"
_FILES = ("parts", "pages", "report_page", "choosing", "layout")  # those that import gradio


MADE = []  # all parts of a page, in order


class Component:
    """Any part of a page."""

    def __init__(self, value=None, **options):
        self.value, self.options = value, options
        self.elem_id = options.get("elem_id")
        MADE.append(self)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None


class Gradio(ModuleType):
    __version__ = "6.0"

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        kind = type(name, (Exception,) if name == "Error" else (Component,), {})
        setattr(self, name, kind)
        return kind


def load(monkeypatch, name):
    """Import a module of the tab anew, with this gradio. Call `forget` when done."""
    MADE.clear()
    monkeypatch.setitem(sys.modules, "gradio", Gradio("gradio"))
    forget()
    return importlib.import_module(f"{OURS}.{name}")


def forget():
    """With our gradio they are of no use to others."""
    for one in _FILES:
        sys.modules.pop(f"{OURS}.{one}", None)
