"""A field's default, range, choices and help stand in one place, and everything else follows."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import typing
from dataclasses import MISSING, dataclass, fields, is_dataclass
from typing import Annotated, Literal

import fakes_comfy
import pytest

import resalign as ra
from resalign.backend.cli.parser import build_parser
from resalign.backend.errors import ConfigError
from resalign.backend.plan.checks import check_fields, freeze_lists
from resalign.backend.plan.document import comment_lines, explain
from resalign.backend.plan.field import (
    INFINITY,
    NOT_EMPTY,
    Choices,
    Help,
    Range,
    classes_of,
    field_of,
    fields_of,
    number_text,
)
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.job import Job
from resalign.backend.plan.probe import ProbeJob
from resalign.backend.plan.probe_settings import PROBE_INPUTS
from resalign.backend.plan.settings import (
    CUSTOM_INPUTS,
    CUSTOM_USERS,
    INPUTS,
    OWN,
    input_field,
    user_field,
)
from resalign.scripts.resalign_webui import forms, measure_forms
from resalign.scripts.resalign_webui.checking import field_value

CLASSES = classes_of(Job, ProbeJob)
FIELDS = [field for cls in CLASSES for field in fields_of(cls).values()]
NUMBERS = (int, float)


def name_of(value):
    return f"{value.owner.__name__}.{value.name}" if hasattr(value, "owner") else value.__name__


def test_the_walk_finds_every_part_of_a_plan():
    names = {cls.__name__ for cls in CLASSES}
    assert {"HardeningPlan", "Ramp", "Stage", "FineTuneAttack", "LoraFile", "PromptSet"} <= names
    assert len(CLASSES) == 30 and all(is_dataclass(cls) for cls in CLASSES)


@pytest.mark.parametrize("field", FIELDS, ids=name_of)
def test_every_field_says_what_it_means(field):
    """In a sentence, without what follows from its range and its choices."""
    assert field.help[0].isupper() or field.help[0] in "λμνρεγJ"
    assert field.help.endswith(".")
    if any(field.choices.values()):
        assert all(field.choices.values()), "either each choice is explained or none"


@pytest.mark.parametrize("field", FIELDS, ids=name_of)
def test_the_meanings_of_choices_are_those_of_the_type(field):
    """A choice that was added to a Literal and not to its meanings, or the other way round."""
    hint = typing.get_type_hints(holder(field), vars(inspect.getmodule(field.owner)),
                                 include_extras=True)[field.name]  # fmt: skip
    kind, *marks = flat(hint)
    if typing.get_origin(kind) is tuple:
        kind, *more = flat(typing.get_args(kind)[0])
        marks += more
    told = [mark for mark in marks if isinstance(mark, Choices)]
    if told:
        assert set(told[0].meanings) == set(typing.get_args(kind)) == set(field.choices)


def holder(field):
    (item,) = [item for item in fields(field.owner) if item.name == field.name]
    return type("Holder", (), {"__annotations__": {field.name: item.type}})


def flat(hint):
    return typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)


@pytest.mark.parametrize("field", FIELDS, ids=name_of)
def test_every_number_has_a_range_and_its_default_lies_in_it(field):
    free = {"text_strength", "threshold", "looks", "seeds"}  # None, or checked as a list
    if field.kind in NUMBERS:
        assert field.range is not None and field.name not in free
    if field.kind in NUMBERS and field.default is not MISSING:
        low, high = ends(field)
        assert low <= field.default <= high


def ends(field):
    """The range in numbers; where an end is another field, the widest that one allows."""
    low, high = field.range.low, field.range.high
    if isinstance(low, str):
        low = ends(fields_of(field.owner)[low])[0]
    if isinstance(high, str):
        high = ends(fields_of(field.owner)[high])[1]
    return low, high


@pytest.mark.parametrize("cls", CLASSES, ids=name_of)
def test_help_in_python_shows_every_field(cls):
    text = inspect.getdoc(cls)
    for field in fields_of(cls).values():
        assert f"\n    {field.name} (" in text
        assert comment_lines(field)[0][:40] in text


# The checks


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    name: Annotated[str, NOT_EMPTY, Help("A.")] = "n"
    count: Annotated[int, Range(1, 9, usual="3 to 5"), Help("B.")] = 3
    share: Annotated[float, Range(0, above=True), Help("C.")] = 0.5
    most: Annotated[int, Range("count", 20), Help("D.")] = 9
    side: Annotated[int, Range(0, 64, step=8), Help("E.")] = 8
    kind: Annotated[Literal["a", "b"], Choices(a="one", b="two"), Help("F.")] = "a"
    kinds: Annotated[tuple[Literal["a", "b"], ...], NOT_EMPTY, Help("G.")] = ("a",)

    def __post_init__(self):
        freeze_lists(self)
        check_fields(self, "sample")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": " "}, "^sample: name is empty$"),
        (
            {"count": 0},
            "count is 0; it must be at least 1 and at most 9; usual values are 3 to 5$",
        ),
        ({"count": 10}, "count is 10; .* at most 9"),
        ({"count": "3"}, "count is '3'; it must be a number"),
        ({"count": float("nan")}, "count is nan"),
        ({"share": 0}, "share is 0; it must be more than 0$"),
        ({"most": 2}, r"most is 2; it must be at least count \(3\) and at most 20"),
        ({"side": 12}, "side is 12; it must be a multiple of 8"),
        ({"kind": "c"}, "kind is 'c'; choose from a, b"),
        ({"kinds": ["a", "c"]}, "kinds is 'c'; choose from a, b"),
        ({"kinds": []}, "kinds is empty; choose from a, b"),
    ],
)
def test_a_value_is_checked_by_the_descriptions_of_its_fields(values, message):
    with pytest.raises(ConfigError, match=message):
        Sample(**values)


def test_values_at_the_ends_of_a_range_are_accepted():
    assert Sample(count=1).count == 1 and Sample(count=9).count == 9
    assert Sample(count=9, most=9).most == 9 and Sample(side=0).side == 0
    assert Sample(kinds=["a", "b"]).kinds == ("a", "b")


@pytest.mark.parametrize("field", [f for f in FIELDS if f.kind in NUMBERS], ids=name_of)
def test_a_number_outside_its_range_is_refused_by_name(field):
    """The class itself does it: nobody forgets to call the check."""
    low, high = ends(field)
    named = {"name": "n"} if "name" in fields_of(field.owner) else {}
    needed = {
        "ImageSet": {"folder": "f"}, "Concept": {"name": "n", "prompts": ("p",)},
        "HardeningPlan": {"concept": ra.Concept("n", ("p",))}, "Stage": {"method": "redirect"},
        "Ramp": {"start": 1.0, "end": 1.0}, "LoraFile": {"path": "p"},
        "PromptSet": {"kind": "retain"}, "ProbePlan": {"concepts": (ra.Concept("n", ("p",)),)},
        "Sweep": {"name": "s", "learning_rates": (0.1,)},
    }.get(field.owner.__name__, named)  # fmt: skip
    wrong = [low - 1] if high == INFINITY else [low - 1, high + 1]
    for value in [*wrong, *([low] if field.range.above else [])]:
        with pytest.raises(ConfigError, match=f"{field.name} is "):
            field.owner(**{**needed, field.name: value})


def test_numbers_and_ranges_are_written_as_people_do():
    assert [number_text(n) for n in (1_000_000, 1e-4, 2**63 - 1, 2**31, 0.5, 7.0, "low")] == [
        "1000000", "0.0001", "2^63 - 1", "2^31", "0.5", "7", "low",
    ]  # fmt: skip
    assert str(Range(0, 1, above=True)) == "more than 0, at most 1"
    assert str(Range(1)) == "at least 1" and str(Range("low", 1)) == "low to 1"
    assert str(Range(0, 64, step=8, usual="32")) == "0 to 64, a multiple of 8; usually 32"


# What follows


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    fakes_comfy.install(monkeypatch, tmp_path)
    return lambda name: fakes_comfy.load_nodes(monkeypatch, name)


def inputs_of(node):
    """Inputs by name, those of a dynamic choice too."""
    found = {}
    for item in node.define_schema().inputs:
        found[item.id] = item
        for option in item.options.get("options", ()) if item.kind == "DynamicCombo" else ():
            found |= {inner.id: inner for inner in option.inputs}
    return found


def node_fields(nodes):
    """Each input of a node that stands for a field, and the field."""
    hardening = inputs_of(nodes("settings").HardeningSettings)
    for name in {**INPUTS, **CUSTOM_INPUTS}:
        shown = "random_seed" if name == "seed" else name
        if shown in hardening:
            yield hardening[shown], input_field(name)
    users = inputs_of(nodes("settings").FineTuningSettings)
    for name in ("batch", "concept_share", "configurations_per_step"):
        yield users[name], user_field(name)
    probe = inputs_of(nodes("probe").ResilienceProbe)
    yield from ((probe[name], field) for name, field in PROBE_INPUTS.items())
    yield inputs_of(nodes("concepts").ConceptList)["strength"], field_of(ra.Concept, "weight")
    images = inputs_of(nodes("images").ImageSet)
    yield images["count"], field_of(ra.ImageSet, "images")
    yield images["caption"], field_of(ra.ImageSet, "caption")


def test_inputs_of_nodes_offer_what_the_fields_accept(nodes):
    found = list(node_fields(nodes))
    assert len(found) == len(INPUTS) - 1 + len(CUSTOM_INPUTS) + 3 + 4 + 3  # no micro_batch there
    for item, field in found:
        if item.kind == "Combo":
            assert [one for one in item.options["options"] if one != OWN] == list(field.choices)
        if item.kind in ("Int", "Float"):
            low, high = ends(field)
            keeps = item.options["default"] == 0 and item.options["min"] == 0
            assert low <= item.options["min"] or keeps, field.name
            assert item.options["max"] <= high, field.name
            if field.range.above and not keeps:
                assert item.options["min"] > low
        if item.id != "images":  # its 0 has another meaning
            assert item.tooltip.startswith(explain(field)[:30]), field.name


def test_defaults_of_nodes_are_the_fields_or_keep_the_presets(nodes):
    for item, field in node_fields(nodes):
        default = item.options["default"]
        assert default in (0, OWN, field.default) or default == CUSTOM_USERS.get(item.id)


def test_switches_for_methods_and_optimisers_are_the_choices_of_their_fields(nodes):
    users = inputs_of(nodes("settings").FineTuningSettings)
    for field in (user_field("method"), user_field("optimiser")):
        assert set(field.choices) <= set(users)
        assert set(field.choices) <= set(CUSTOM_USERS)


@pytest.mark.parametrize("name", [*INPUTS])
def test_the_tab_accepts_what_the_field_accepts(name):
    """And 0 or `preset`, which keep the preset's value."""
    field = input_field(name)
    if field.choices:
        assert [forms.setting({name: value}, name) for value in (OWN, *field.choices)] == [
            OWN, *field.choices,
        ]  # fmt: skip
    elif field.range is not None:
        high = ends(field)[1]
        assert forms.setting({name: high}, name) == high and forms.setting({}, name) == 0
        assert forms.setting({name: 0}, name) == 0
        for wrong in (-1, high * 2):
            with pytest.raises(ConfigError, match="from 0 to"):
                forms.setting({name: wrong}, name)
    with pytest.raises(ConfigError):
        forms.setting({name: "neither"}, name)


def test_the_tab_names_each_input_of_the_backend():
    assert set(forms.USER_PARTS) == set(CUSTOM_USERS) - set(forms.METHODS) - set(forms.OPTIMISERS)
    assert set(measure_forms.PROBE_PARTS) == set(PROBE_INPUTS)
    assert field_value({}, "x", user_field("batch"), default=2) == 2


def test_options_of_the_command_line_are_the_fields():
    parser = build_parser()
    parser.parse_args(["harden"])  # a command adds them when it is used
    (commands,) = [
        action for action in parser._actions if isinstance(action, argparse._SubParsersAction)
    ]
    options = {action.dest: action for action in commands.choices["harden"]._actions}
    for name in ("seed", "resolution", "precision", "gradient_checkpointing"):
        field, option = field_of(HardeningPlan, name), options[name]
        assert field.help.rstrip(".")[1:30] in option.help
        assert tuple(option.choices or ()) == tuple(field.choices)
        assert option.default is None, "what is not given stays as the plan says"


def test_the_page_of_all_fields_is_up_to_date(root):
    spec = importlib.util.spec_from_file_location("reference", root / "tools/plan_reference.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (root / "docs" / "plan.md").read_text(encoding="utf-8")
    assert written == module.page(), "run python tools/plan_reference.py"
    for field in FIELDS:
        assert f"| `{field.name}` |" in written
