"""The form's fields and texts, built against a gradio of our own that notes what it is given."""

import importlib
import sys
from types import ModuleType

import pytest

from resalign.backend.plan.settings import input_field

OURS = "resalign.scripts.resalign_webui"


class Component:
    def __init__(self, value=None, **options):
        self.value, self.options = value, options


class OldNumber(Component):
    """As in gradio 3.41 and 4.40, which show an empty number as 0."""

    def __init__(self, value=None, *, label=None, info=None, precision=None, min_width=0,
                 elem_id=None):  # fmt: skip
        super().__init__(value, label=label)
        self.info = info


class NewNumber(Component):
    def __init__(self, value=None, *, placeholder=None, **options):
        super().__init__(value, placeholder=placeholder, **options)


@pytest.fixture
def load(monkeypatch):
    """Import a module of the tab anew with a kind of gr.Number."""

    def load(name, number):
        gradio = ModuleType("gradio")
        for kind in ("Dropdown", "Checkbox", "Request", "Error", "HTML", "Button"):
            setattr(gradio, kind, type(kind, (Component,), {}))
        gradio.Number = number
        monkeypatch.setitem(sys.modules, "gradio", gradio)
        for one in ("parts", "pages"):
            monkeypatch.delitem(sys.modules, f"{OURS}.{one}", raising=False)
        return importlib.import_module(f"{OURS}.{name}")

    yield load
    for one in ("parts", "pages"):  # with our gradio they are of no use to others
        sys.modules.pop(f"{OURS}.{one}", None)


def test_an_empty_number_says_that_its_value_is_chosen_automatically(load):
    old = load("parts", OldNumber).Parts().field("rank", input_field("rank"), keeps_preset=True)
    assert old.options["label"] == "Rank (0: auto)"
    new = load("parts", NewNumber).Parts().field("rank", input_field("rank"), keeps_preset=True)
    assert new.value is None and new.options["placeholder"] == "auto"
    assert new.options["label"] == "Rank"


def test_a_field_in_which_0_is_automatic_does_not_say_what_else_0_does(load):
    field = input_field("micro_batch")
    assert "0: whole batches" in field.help
    made = load("parts", OldNumber).Parts()
    for keeps_preset in (True, False):
        said = made.field("micro_batch", field, keeps_preset=keeps_preset).info
        assert ("0: whole batches" in said) is not keeps_preset
        assert "the same result up to rounding" in said and "auto: as many as" in said


def test_a_list_without_pairs_shows_labels_as_values(load, monkeypatch):
    """A1111's gradio makes a text of a pair: its list then had no value at all."""
    parts = load("parts", OldNumber)
    choices = ["none", ("one | finished", "one")]
    assert parts.listed(choices) == choices and parts.entry(choices, "one") == "one"
    monkeypatch.setattr(parts, "_PAIRS", False)
    assert parts.listed(choices) == ["none", "one | finished"]
    assert [parts.entry(choices, value) for value in ("one", "none", None)] == [
        "one | finished", "none", None,
    ]  # fmt: skip


def test_a_seed_of_0_is_a_seed(load):
    pages, made = load("pages", OldNumber), load("parts", OldNumber).Parts()
    pages._fields(made, "seed", "resolution")
    assert made["seed"].options["label"] == "Seed" and made["seed"].value == 0
    assert made["resolution"].options["label"].endswith("(0: auto)")


@pytest.mark.parametrize(("refuses", "kind", "processed"), [
    (True, "Dropdown", False), (True, "File", True), (False, "Dropdown", True),
])  # fmt: skip
def test_a_choice_that_a_restarted_server_never_offered_reaches_us(
    load, monkeypatch, refuses, kind, processed
):
    """gradio refuses it before our function is called; a file needs gradio's look at it."""
    parts = load("parts", NewNumber)
    monkeypatch.setattr(parts, "_REFUSES_CHOICES", refuses)
    bound = {}

    def event(function, inputs, outputs, preprocess=True):
        bound.update(preprocess=preprocess)

    given = type(kind, (Component,), {})()
    parts.on(event, lambda *values: None, [given], host=None)
    assert bound == {"preprocess": processed}
