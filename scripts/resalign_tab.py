"""Loads ResAlign into A1111 or Forge: the one file here that they execute.

A script has no import name there, and the names `backend`, `modules` and `scripts` belong to the
host. So the folder of this extension is loaded as the package `resalign_ext`, in which all imports
are relative. If anything fails, a tab shows it: an error in a callback would leave no tab.
"""

import sys
import traceback
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from modules import script_callbacks

ROOT = Path(__file__).resolve().parent.parent
NAME = "resalign_ext"


def purge():
    """Unload the package: `Reload UI` executes this file again in the same process."""
    for name in [name for name in sys.modules if name == NAME or name.startswith(NAME + ".")]:
        del sys.modules[name]


def load():
    purge()
    spec = spec_from_file_location(
        NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader, ROOT
    module = module_from_spec(spec)
    sys.modules[NAME] = module
    try:
        spec.loader.exec_module(module)
        return import_module(NAME + ".scripts.resalign_webui.inside")
    except BaseException:
        purge()
        raise


def failed(error):
    """Build a tab that shows an error, without any of our modules."""
    import html

    import gradio as gr

    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    with gr.Blocks(analytics_enabled=False) as blocks:
        shown = gr.HTML(
            "<p><b>ResAlign could not be loaded.</b> Update the extension (Extensions, Check for "
            "updates), or remove its folder and install it again, then restart the host. If that "
            "does not help, report this text:</p>"
            f"<pre style='white-space: pre-wrap'>{html.escape(text)}</pre>"
        )
    setattr(shown, "do_not_save_to_config", True)  # noqa: B010
    return [(blocks, "ResAlign", "resalign")]


try:
    inside = load()
except Exception as error:  # shown in the tab, and in the host's log
    traceback.print_exc()
    reason = error
    script_callbacks.on_ui_tabs(lambda: failed(reason))
else:

    def tabs():
        try:
            return inside.tabs()
        except Exception as error:  # a callback that raises would leave no tab at all
            traceback.print_exc()
            return failed(error)

    script_callbacks.on_ui_settings(inside.settings)
    script_callbacks.on_ui_tabs(tabs)
    script_callbacks.on_app_started(inside.started)

    def unloaded():
        inside.close()
        purge()

    script_callbacks.on_script_unloaded(unloaded)
