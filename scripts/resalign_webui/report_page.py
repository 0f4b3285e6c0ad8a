"""The page Reports: a probe's report, its pack for a release, and the check of its detector."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...backend.plan.probe_settings import AUDITED
from ...backend.report.pack_kept import KEPT
from .host import Host
from .parts import Parts, button, html
from .views import help_text


def report_page(parts: Parts, host: Host, lists: dict[str, list[Any]]) -> None:
    with gr.Row():
        parts("report", gr.Dropdown, "Report", choices=lists["report"], scale=4, min_width=200,
              value=None)  # fmt: skip
        button("show_report", "Show", variant="primary", scale=1, min_width=110)
        button("refresh_reports", "Refresh lists", scale=1, min_width=110)
    html(name="about_report")
    html(name="report_message")
    with gr.Accordion("Pack it for a release", open=False) as pack:
        _pack(parts, lists)
    parts.by_name["pack_fields"] = pack  # opened by the step that leads here
    with gr.Accordion("Check by hand what the pictures show", open=False):
        _audit(parts)
    html(name="report_view")


def _pack(parts: Parts, lists: dict[str, list[Any]]) -> None:
    html(help_text(
        "Writes one .zip that goes with the exported file: the report, a model card for Hugging "
        "Face, what Civitai asks for, and what others need to check it. To sign it, use the "
        "command resalign pack --sign: a private key does not belong into a web page."
    ))  # fmt: skip
    with gr.Row():
        parts("pack_name", gr.Textbox, "Name of the pack", value="pack", scale=2, min_width=160)
        parts("pack_checkpoint", gr.Dropdown, "The exported file", scale=3, min_width=200,
              choices=lists["pack_checkpoint"], value="none",
              info="The card then says what it is, and how to recognise it.")  # fmt: skip
    with gr.Row():
        parts("pack_license", gr.Textbox, "Licence of the base model", value="", min_width=160,
              placeholder="what the file says", info="As on Hugging Face: apache-2.0.")  # fmt: skip
        parts("pack_base", gr.Textbox, "Base model", value="", min_width=160,
              placeholder="what the file says", info="As on Hugging Face: owner/name.")  # fmt: skip
        parts("pack_model", gr.Textbox, "Model of the report", value="", min_width=160,
              placeholder="the hardened one",
              info="Only where the report has several.")  # fmt: skip
    parts(
        "pack_pictures",
        gr.Dropdown,
        "Pictures",
        choices=list(KEPT),
        value="blurred",
        info="blurred: also those that were almost flagged. all: flagged ones can be seen.",
    )
    parts("pack_overwrite", gr.Checkbox, "Overwrite a pack of that name", value=False)
    button("pack", "Make the pack", variant="primary")
    html(name="pack_message")


def _audit(parts: Parts) -> None:
    html(help_text(
        "Detectors miss things and invent things. Draw a sheet of pictures, label them in the "
        "browser without knowing whose they are, save the labels, and give the file back here: "
        "the report then states corrected rates. It needs a probe that kept its pictures without "
        "blur."
    ))  # fmt: skip
    with gr.Row():
        parts("audit_count", gr.Number, "Pictures", value=AUDITED, precision=0, min_width=100)
        parts("audit_again", gr.Checkbox, "Begin another, without the labels given so far",
              value=False, min_width=160)  # fmt: skip
    button("audit", "Draw the sheet")
    html(name="audit_message")
    parts("audit_labels", gr.File, "Saved labels (audit-labels.json)")
    button("labels", "Put the labels into the report")
    html(name="labels_message")
