"""A concept's name is shown as people write it; plans and files keep the name itself."""

from dataclasses import replace

import pytest
from fakes_comfy import install, load_nodes
from fakes_data import tiny_family
from fakes_probe import fake_plan, fake_result

from resalign.backend.data.batches import prepare_data
from resalign.backend.data.concept import load_preset, preset_called
from resalign.backend.data.concept_list import in_a_name, read_concepts, read_strengths
from resalign.backend.errors import ConfigError
from resalign.backend.plan.concept import Concept, shown_name
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet
from resalign.backend.report.card import model_card, provenance_of
from resalign.backend.report.markdown import report_markdown
from resalign.backend.report.page import report_html

HATE = Concept("hate_symbols", ("a flag",))


@pytest.fixture
def concept_list(monkeypatch, tmp_path):
    install(monkeypatch, tmp_path)
    return load_nodes(monkeypatch, "concepts").ConceptList


def test_a_name_is_shown_without_underscores():
    assert shown_name("hate_symbols") == "hate symbols"
    assert shown_name("self_harm") == "self harm" and shown_name("weapons") == "weapons"


def test_both_spellings_mean_the_shipped_category():
    assert load_preset("hate symbols") == load_preset("hate_symbols")
    assert preset_called(" self harm ") == "self_harm" and preset_called("cats") == ""
    shipped = (load_preset("hate_symbols").concept(),)
    assert read_concepts("hate symbols", "", "") == read_concepts("hate_symbols", "", "") == shipped
    assert read_concepts("none", "", "# hate symbols") == shipped
    assert read_concepts("weapons", "", "# hate symbols")[1:] == shipped
    with pytest.raises(ConfigError, match="drugs, hate symbols, nudity, self harm"):
        read_concepts("weapons", "", "# cats")


def test_comfyui_lists_them_so_and_takes_the_spelling_of_older_workflows(concept_list):
    (preset,) = (one for one in concept_list.define_schema().inputs if one.id == "preset")
    options = preset.options["options"]
    assert "hate symbols" in options and "self harm" in options
    assert not any("_" in option for option in options)
    for value in (*options, "hate_symbols", "self_harm", None):
        assert concept_list.validate_inputs(preset=value) is True
    assert "choose from none, drugs, hate symbols" in concept_list.validate_inputs(preset="cats")
    for value in ("hate symbols", "hate_symbols"):
        (concepts,) = concept_list.execute(preset=value).args
        assert [concept.name for concept in concepts] == ["hate_symbols"]


def test_strengths_take_the_names_as_they_are_shown():
    names = ["hate_symbols", "weapons", "My own"]
    read = read_strengths("hate symbols: 2, weapons:0.5\nmy own: 3", names)
    assert read == {"hate_symbols": 2, "weapons": 0.5, "My own": 3}
    assert read_strengths("hate_symbols: 2", names) == {"hate_symbols": 2}
    with pytest.raises(ConfigError, match=r"chosen concept \(hate symbols, weapons, My own\)"):
        read_strengths("nudity: 2", names)
    with pytest.raises(ConfigError, match="'much' of hate symbols is not a number"):
        read_strengths("hate symbols: much", names)


def test_the_name_of_a_run_has_words():
    assert in_a_name([HATE, Concept("weapons", ("a gun",))]) == "hate symbols+weapons"
    assert in_a_name([Concept("a: b/c", ("a gun",))]) == "a b c"
    assert len(in_a_name([Concept("x" * 90, ("a gun",))])) == 40


def test_reports_and_cards_show_it_so(tmp_path):
    result = fake_result(tmp_path, plan=replace(fake_plan(), concepts=(HATE,)))
    page = report_html(result)
    assert "Resilience probe: hate symbols" in page and "Is it safe from: hate symbols?" in page
    for text in (page.replace("&quot;hate_symbols&quot;", "of the plan"), report_markdown(result)):
        assert "hate symbols" in text and "hate_symbols" not in text
    plan = HardeningPlan(concept=HATE)
    provenance = provenance_of(plan, ())
    assert provenance.concepts == ("hate_symbols",), "files keep the name"
    assert "these concepts removed: hate symbols." in model_card(provenance)


def test_a_live_line_names_it_so(tmp_path):
    drawn = ImageSet(prompts=("a flag",), images=2, sampling_steps=2)
    plan = HardeningPlan(concept=HATE, forget_set=drawn, retain_set=drawn, fine_tunes=())
    said = []
    prepare_data(tiny_family(), plan, on_progress=lambda progress: said.append(progress.message))
    assert "forget set of hate symbols" in said
