"""The forms: what can be set, in the order in which one thinks of it. No event is bound here."""

from __future__ import annotations

from typing import Any

import gradio as gr

from ...backend.data.concept import preset_names
from ...backend.plan.concept import shown_name
from ...backend.plan.presets import DEFAULT_PRESET
from ...backend.plan.probe_settings import DETECTABLE, PROBE_INPUTS, SCORERS
from ...backend.plan.settings import CUSTOM_USERS, input_field, user_field
from . import forms, graphics, measure_forms, thoroughness
from .checking import limits_of
from .host import ALONE, DEMO, Host
from .measure_forms import EXPORTED, EXPORTED_TEST
from .parts import Parts, button, html
from .report_page import report_page
from .views import help_text

HARDEN = (
    "checkpoint", "concepts", "own_concepts", "strengths", "concept_folder", "concept_images",
    "retain_folder", "retain_images", "preset", "users", "users_folder", "methods", "optimisers",
    "learning_rates", "user_steps", "user_ranks", "user_batch", "concept_share", "users_per_step",
    "seed", "outer_steps", "rank", "resolution", "precision", "resilience_weight", "retain_weight",
    "gamma", "learning_rate", "simulate", "solver", "products", "gradient_checkpointing", "device",
    "varied_images", "erase_ratio", "distil_batch", "teacher", "teacher_waits",
    "optimiser_waits",
    "micro_batch", "memory_budget", "prediction", "preview_every", "preview_prompt",
    "show_pictures", "run_name", *forms.PARTS,
)  # fmt: skip
RESUME = ("unfinished", "preview_every", "preview_prompt", "show_pictures")
PROBE = (
    "original", "hardened", "probe_run", "attacks", "probe_concepts", "probe_own_concepts",
    "attack_folder", "scorer", "attack_steps", "probe_images", "probe_resolution",
    "sampling_steps", "probe_seed", "probe_show_pictures", "device", *forms.PARTS, "second_scorer",
    "style_folder", "sibling", "plain", "oracle", "audit_pictures",
)  # fmt: skip
LORA = (
    "try_run", "try_original", "try_hardened", "lora", "lora_strength", "prompt", "negative",
    "lora_seed", "lora_steps", "guidance", "width", "height", "count", "lora_show_pictures",
    "device", *forms.PARTS,
)  # fmt: skip
EXPORT = (
    "export_run", "export_name", "export_folder", "export_probe", "overwrite", "lora_name",
    "lora_format",
)  # fmt: skip


def harden_page(parts: Parts, host: Host, lists: dict[str, list[Any]]) -> None:
    files = lists["checkpoint"]
    chosen, unknown = files[min(1, len(files) - 1)], graphics.lacking("", host)
    with gr.Row():
        parts("checkpoint", gr.Dropdown, "Checkpoint", choices=files, scale=4, min_width=200,
              value=chosen)  # fmt: skip
        button("refresh", "Refresh lists", scale=1, min_width=110)
    html(name="about_checkpoint")
    _parts_of_a_model(parts, host, lists)
    parts("concepts", gr.CheckboxGroup, "What to remove", choices=named(), value=[])
    parts("own_concepts", gr.Textbox, "In your own words", lines=1, value="",
          placeholder="a prompt that asks for it", max_lines=8,
          info="One prompt a line (Shift+Enter begins one); a line with # and a name starts a "
          "concept.")  # fmt: skip
    parts("preset", gr.Radio, "How thorough",
          choices=thoroughness.preset_choices(chosen, every=False, unknown=unknown),
          value=DEFAULT_PRESET)  # fmt: skip
    parts("every_preset", gr.Checkbox, "Show all eight choices", value=False)
    line = thoroughness.preset_line(DEFAULT_PRESET, chosen, unknown=unknown)
    html(help_text(line), "about_preset")
    # Before the accordions: the button and its answer are in sight without scrolling.
    html(waiting_line(host.name), "harden_message")
    button("harden", "Harden", variant="primary", min_width=140)
    with gr.Accordion("Pictures", open=False):
        html(help_text(
            "Left empty, the checkpoint draws the pictures that it learns from, by prompts; they "
            "are never saved as pictures. A folder holds images, each with a .txt caption."
        ))  # fmt: skip
        parts("concept_folder", gr.Textbox, "Folder with pictures of the concept", value="")
        parts("concept_images", gr.Number, "or so many drawn (0 or empty: as usual)",
              value=None, precision=0)  # fmt: skip
        parts("retain_folder", gr.Textbox, "Folder with pictures of what must stay", value="")
        parts("retain_images", gr.Number, "or so many drawn, of what must stay (0: as usual)",
              value=None, precision=0)  # fmt: skip
        parts("strengths", gr.Textbox, "How much each counts, if several are removed", value="",
              placeholder="weapons: 2, nudity: 0.5", info="1 where none is given.")  # fmt: skip
    with gr.Accordion("Memory of the graphics card: does it fit?", open=False):
        _memory(parts)
    with gr.Accordion("Advanced settings", open=False):
        _settings(parts, host)
    with gr.Accordion("Advanced: simulated users", open=False):
        _users(parts)


def resume_fields(parts: Parts, lists: dict[str, list[Any]]) -> None:
    """The list of what can be continued and the answer to Resume, whose button is beside Cancel."""
    parts("unfinished", gr.Dropdown, "Stopped before the end: Resume continues", value=None,
          choices=lists["unfinished"], visible=bool(lists["unfinished"]))  # fmt: skip
    html(name="resume_message")


def _parts_of_a_model(parts: Parts, host: Host, lists: dict[str, list[Any]]) -> None:
    """Fields for the files of a text encoder and a VAE; no model of A1111 and Forge needs them."""
    shown = host.every_family
    with gr.Accordion("Text encoder and VAE in files of their own", open=False, visible=shown):
        html(help_text(
            "For a checkpoint that lacks them. They are found by themselves beside it, "
            "or in folders called text_encoders and vae (in Forge Neo text_encoder and VAE). The "
            "pages Probe and Try my LoRA use what is chosen here."
        ))  # fmt: skip
        with gr.Row():
            for name in forms.PARTS:
                label = {"text_encoder": "Text encoder", "vae": "VAE"}[name]
                parts(name, gr.Dropdown, label, choices=lists[name], value=forms.BY_ITSELF,
                      visible=shown, min_width=200)  # fmt: skip


def waiting_line(host: str) -> str:
    """Say before a start what it means for the host's own pictures."""
    return "" if host == ALONE else help_text(f"While it runs, pictures of {host} wait.")


def _users(parts: Parts) -> None:
    html(help_text(
        "Against whom the model is hardened: people who train it further in these ways. The "
        "fields below the folder count with the choice custom alone."
    ))  # fmt: skip
    parts("users", gr.Radio, "Users", choices=list(forms.USERS), value="preset",
          info="preset goes with the choice above; with none, all may return.")  # fmt: skip
    parts("users_folder", gr.Textbox, "Folder with pictures that they train on", value="",
          info="Empty: what must stay.")  # fmt: skip
    with gr.Row():
        for name, choices, field in (
            ("methods", forms.METHODS, "method"), ("optimisers", forms.OPTIMISERS, "optimiser"),
        ):  # fmt: skip
            meanings = user_field(field).choices
            parts(name, gr.CheckboxGroup, name.capitalize(), choices=list(choices),
                  value=[one for one in choices if CUSTOM_USERS[one]],
                  info="; ".join(f"{one}: {meanings[one]}" for one in choices))  # fmt: skip
    with gr.Row():
        for name, label in (("learning_rates", "Learning rates"), ("steps", "Steps"),
                            ("ranks", "Ranks")):  # fmt: skip
            parts(forms.USER_PARTS[name], gr.Textbox, label, value=CUSTOM_USERS[name],
                  info=user_field(name).help, min_width=180)  # fmt: skip
    with gr.Row():
        for name in ("batch", "configurations_per_step"):
            parts.field(forms.USER_PARTS[name], user_field(name), value=CUSTOM_USERS[name])
        share = user_field("concept_share")
        low, high = limits_of(share)
        parts("concept_share", gr.Slider, share.label, minimum=low, maximum=high, step=0.05,
              value=CUSTOM_USERS["concept_share"], info=share.help, min_width=180)  # fmt: skip


def _settings(parts: Parts, host: Host) -> None:
    html(help_text("Empty fields, 0 and preset keep what the choice How thorough says."))
    with gr.Row():
        _fields(parts, "outer_steps", "rank", "seed", "resolution")
    with gr.Row():
        _fields(parts, "resilience_weight", "retain_weight", "gamma", "learning_rate")
    with gr.Row():
        _fields(parts, "simulate", "solver", "products", "precision")
    html(help_text("For Lasting and Longest lasting alone:"))
    with gr.Row():
        _fields(parts, "varied_images", "erase_ratio", "distil_batch")
    with gr.Row():
        _fields(parts, "teacher", "teacher_waits", "optimiser_waits")
    html(help_text("For every choice:"))
    with gr.Row():
        parts("device", gr.Textbox, "Device", value=str(host.setting("device")), min_width=120)
        parts("run_name", gr.Textbox, "Name of the run", value="", placeholder="by itself",
              min_width=160)  # fmt: skip
        _fields(parts, "gradient_checkpointing")
    parts(
        "prediction",
        gr.Dropdown,
        "What the file predicts",
        choices=list(forms.PREDICTIONS),
        value=forms.AS_IT_SAYS,
        info="Decides for a file that contradicts itself or is wrong.",
    )
    with gr.Row():
        parts("preview_every", gr.Number, "Steps between previews (0: none)", precision=0,
              value=int(host.setting("preview_every")), min_width=120)  # fmt: skip
        parts("preview_prompt", gr.Textbox, "Prompt of the preview", value="", min_width=200,
              placeholder="the first of the concept")  # fmt: skip
        parts("show_pictures", gr.Checkbox, "Show the concept without blur",
              value=bool(host.setting("show_pictures")), min_width=160)  # fmt: skip


def _memory(parts: Parts) -> None:
    html(help_text(
        "Predicts how much of the graphics card's memory these settings need, without using the "
        "card, and finds the smallest change that makes them fit. Takes seconds to minutes."
    ))  # fmt: skip
    with gr.Row():
        parts("memory_budget", gr.Number, "GiB that it may use (0 or empty: all the card has)",
              value=None, min_width=160)  # fmt: skip
        _fields(parts, "micro_batch")
    with gr.Row():
        button("check", "Check memory", min_width=140)
        button("fit", "Use the settings that fit", min_width=140)
    html(name="check_message")


def probe_page(parts: Parts, host: Host, lists: dict[str, list[Any]]) -> None:
    html(help_text(
        "Did it work? Trains copies of both checkpoints further, as people do who want it back, "
        "in ways that hardening never saw, and measures how much returns."
    ))  # fmt: skip
    parts("probe_run", gr.Dropdown, "Run to measure", choices=lists["probe_run"], value="none",
          info="A run of Harden. With none, choose two files and what to look for.")  # fmt: skip
    html(name="about_probe_run")
    with gr.Row():
        parts("original", gr.Dropdown, "Original", choices=lists["original"],
              value=lists["original"][0], min_width=200)  # fmt: skip
        parts("hardened", gr.Dropdown, "Hardened", choices=lists["hardened"],
              value=lists["hardened"][0], min_width=200)  # fmt: skip
    with gr.Accordion("What to look for", open=False):
        html(help_text("Empty: what the run has removed."))
        parts("probe_concepts", gr.CheckboxGroup, "Concepts", choices=named(), value=[])
        parts("probe_own_concepts", gr.Textbox, "In your own words", lines=2, value="",
              placeholder="# my concept\na prompt that asks for it")  # fmt: skip
    parts("attacks", gr.Radio, "How hard people try", choices=measure_forms.ATTACK_CHOICES,
          value="quick", info="Publish no figure of a test run or of the quick look.")  # fmt: skip
    html(name="about_attacks")
    parts("scorer", gr.Dropdown, "What is counted", choices=list(measure_forms.SCORER_CHOICES),
          value=measure_forms.SCORER_CHOICES[0],
          info=DETECTABLE)  # fmt: skip
    html(name="about_scorer")
    with gr.Accordion("Advanced settings", open=False):
        parts("attack_folder", gr.Textbox, "Folder with pictures to fine-tune on", value="",
              info="Empty: what must stay.")  # fmt: skip
        with gr.Row():
            for name, label in (
                ("steps", "Steps of each attack (0 or empty: preset)"),
                ("images", "Prompts of each kind (0 or empty: preset)"),
                ("sampling_steps", "Sampling steps (0 or empty: preset)"),
                ("resolution", "Resolution (0 or empty: its own)"),
            ):
                said = measure_forms.steps_info() if name == "steps" else None
                parts.field(measure_forms.PROBE_PARTS[name], PROBE_INPUTS[name], label=label,
                            keeps_preset=True, info=said)  # fmt: skip
        with gr.Row():
            _numbers(parts, ("probe_seed", "Seed"))
            parts("probe_show_pictures", gr.Checkbox, "Show flagged pictures without blur",
                  value=False, min_width=160)  # fmt: skip
    with gr.Accordion("Advanced: further questions", open=False):
        _further_measurements(parts, lists)
    button("probe", "Probe", variant="primary")
    html(waiting_line(host.name), "probe_message")


def _further_measurements(parts: Parts, lists: dict[str, list[Any]]) -> None:
    """Inputs that make a probe stand up to a sceptic; each costs time and none is needed."""
    html(help_text("Each of these answers a further question, and takes more time."))
    parts(
        "second_scorer",
        gr.Dropdown,
        "Second opinion",
        choices=["none", *SCORERS],
        value="none",
        info="Another detector on the same pictures; the report says how often the two agree.",
    )
    parts("style_folder", gr.Textbox, "Does it still learn? Folder with a style or subject",
          value="", info="Your own harmless pictures with captions. Every model learns them by a "
          "LoRA, and a quarter that it never saw says how well.")  # fmt: skip
    with gr.Row():
        for name, label, said in (
            ("sibling", "LoRA of a sibling", "A LoRA of the concept is trained on this "
             "checkpoint and then put on each model, as people do with LoRAs from the web."),
            ("oracle", "Never-learned checkpoint", "The same network, trained without the concept: "
             "how far is the hardened one on the way to it?"),
            ("plain", "Another method's checkpoint", "From where that way begins, such as plain "
             "unlearning; without one, at the original."),
        ):  # fmt: skip
            parts(name, gr.Dropdown, label, choices=lists[name], value=lists[name][0], info=said,
                  min_width=200)  # fmt: skip
    parts("audit_pictures", gr.Number, "Pictures to check by hand (0 or empty: none)", value=None,
          precision=0, info="Draws a sheet on which you say what the pictures show, 50 for "
          "instance; that corrects the detector's mistakes. Flagged pictures are then kept "
          "without blur.")  # fmt: skip


def lora_page(parts: Parts, host: Host, lists: dict[str, list[Any]]) -> None:
    html(help_text(
        "Puts a LoRA of your own on the original and on the hardened model, and draws the same "
        "prompt and seed with both."
    ))  # fmt: skip
    parts("try_run", gr.Dropdown, "Run to try it on", choices=lists["try_run"], value="none",
          info="Its original and its hardened model; with none, two files.")  # fmt: skip
    with gr.Row():
        parts("try_original", gr.Dropdown, "Original", choices=lists["try_original"], value=None,
              min_width=200)  # fmt: skip
        parts("try_hardened", gr.Dropdown, "Hardened", choices=lists["try_hardened"], value=None,
              min_width=200)  # fmt: skip
    with gr.Row():
        parts("lora", gr.Dropdown, "LoRA", choices=lists["lora"], value=None, scale=3,
              min_width=200)  # fmt: skip
        parts("lora_strength", gr.Number, "Strength", value=1.0, scale=1, min_width=100)
    parts("prompt", gr.Textbox, "Prompt", lines=2, value="")
    parts("negative", gr.Textbox, "Negative prompt", value="")
    with gr.Row():
        _numbers(parts, ("lora_seed", "Seed"), ("lora_steps", "Steps", 20),
                 ("count", "Pictures of each", 1))  # fmt: skip
        parts("guidance", gr.Number, "Guidance", value=7.0, min_width=100)
    with gr.Row():
        _numbers(
            parts,
            ("width", "Width (0 or empty: its own)", None),
            ("height", "Height (0 or empty: its own)", None),
        )
        parts("lora_show_pictures", gr.Checkbox, "Show the pictures without blur", value=False,
              min_width=160)  # fmt: skip
    button("try_lora", "Draw", variant="primary")
    html(waiting_line(host.name), "lora_message")


def export_page(parts: Parts, host: Host, lists: dict[str, list[Any]]) -> None:
    html(help_text(
        "Saves the hardened checkpoint as a new file; the original stays as it is. A text that "
        "describes it, its model card, comes with it."
    ))  # fmt: skip
    parts("export_run", gr.Dropdown, "Run to save", choices=lists["export_run"],
          value=None)  # fmt: skip
    html(name="about_export_run")
    with gr.Row():
        parts("export_name", gr.Textbox, "Name of the new checkpoint", value="",
              scale=3, min_width=200, placeholder=EXPORTED,
              info=f"Empty: {EXPORTED}, or {EXPORTED_TEST} if the run is one. sub/name makes a "
              "folder.")  # fmt: skip
        folders = list(measure_forms.export_folders(host))
        parts("export_folder", gr.Dropdown, "Folder", choices=folders, value=folders[0], scale=2,
              min_width=140)  # fmt: skip
    parts("export_probe", gr.Dropdown, "Report of its probe", choices=lists["export_probe"],
          value="none", info="Its figures go into the file and its model card.")  # fmt: skip
    parts("overwrite", gr.Checkbox, "Overwrite a file of that name", value=False)
    button("export", "Export checkpoint", variant="primary")
    html(waiting_line(host.name), "export_message")
    html(help_text(
        "The same change as a LoRA, to try it. It makes nobody else's model safe: whoever leaves "
        "the LoRA out has the unsafe one. Lasting hardening changes all weights and has no LoRA."
    ))  # fmt: skip
    with gr.Row():
        parts("lora_name", gr.Textbox, "Name of the LoRA", value="hardening_lora", scale=3,
              min_width=200)  # fmt: skip
        parts("lora_format", gr.Dropdown, "Format", choices=list(measure_forms.FORMATS),
              value=measure_forms.USUAL, scale=2, min_width=140)  # fmt: skip
    button("save_lora", "Save LoRA")
    html(name="save_lora_message")


def about_page(parts: Parts, host: Host, lists: dict[str, list[Any]]) -> None:
    html(help_text(
        "What a checkpoint is and what was done to it, as the file itself says. Anybody can write "
        "that into a file: the command resalign verify compares it with the original."
    ))  # fmt: skip
    with gr.Row():
        parts("about", gr.Dropdown, "Checkpoint", choices=lists["about"], scale=4, min_width=200,
              value=DEMO)  # fmt: skip
        button("show_about", "Show", variant="primary", scale=1, min_width=110)
    html(name="about_view")


PAGES = (
    ("Harden", harden_page), ("Probe", probe_page), ("Export", export_page),
    ("Reports", report_page), ("Try my LoRA", lora_page), ("About a checkpoint", about_page),
)  # fmt: skip


def _fields(parts: Parts, *names: str) -> None:
    """Components for settings of the plan, which keep the preset's value until they are set."""
    for name in names:
        parts.field(name, input_field(name), keeps_preset=name != "seed")  # 0 is a seed


def _numbers(parts: Parts, *entries: tuple[Any, ...], precision: int | None = 0) -> None:
    for name, label, *value in entries:
        parts(name, gr.Number, label, value=value[0] if value else 0, precision=precision,
              min_width=100)  # fmt: skip


def named() -> list[tuple[str, str]]:
    """Return the shipped concepts as people write them, each with its name: hate symbols."""
    return [(shown_name(name), name) for name in preset_names()]
