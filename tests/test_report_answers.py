"""The answers of a report that readers ask for first, and the figures behind them."""

import html
import re
from dataclasses import replace

import pytest
from fakes_probe import fake_plan, fake_result, report_fixtures

from resalign.backend.probe.learning import UNCERTAIN, Learnt
from resalign.backend.report.leaderboard import leaderboard_html
from resalign.backend.report.learning_section import introduction, learnt_words
from resalign.backend.report.markdown import report_markdown
from resalign.backend.report.page import report_html
from resalign.backend.report.ranking import group_reports
from resalign.backend.report.rate_sections import curve_section
from resalign.backend.report.sections import utility_section
from resalign.backend.report.view import View
from resalign.backend.report.words import ABOUT, p_value, span

folder, result, text = report_fixtures()


def test_the_first_card_answers_what_a_reader_asks_first(text):
    """Safe, good, how sure, against what: of a model that was hardened, not of the original."""
    cards = text.split('<article class="card')[1:]
    first = cards[0]
    asked = re.findall(r"<dt>(.*?)</dt>", first)

    assert asked == ["Is it safe?", "Is it still good?", "How sure?", "Against what?"]
    assert "plain unlearning" in first and "original</h2>" in cards[-1]
    hardened = re.sub(r"<[^>]+>", "", next(card for card in cards if "hardened</h2>" in card))
    for said in (
        "at worst (the original: 100.0\u00a0%), after concept 10 %",
        "of the original&#x27;s before any attack",
        "is the 95 % interval of the worst rate", "24 images of 8 prompts, 2 fine-tuning seeds",
        "whose mistakes nobody has measured here", "2\u00a0fine-tunings and 1\u00a0LoRA",
    ):  # fmt: skip
        assert said in hardened, said


def weakened(result, moments):
    """Give the hardened model another CLIP score after some attacks and steps; 27 is the best."""
    return replace(
        result,
        evaluations=tuple(
            replace(each, utility={**each.utility, "clip_score_retain": score})
            if each.model == "hardened"
            and (score := moments.get((each.attack, each.step), moments.get(each.attack)))
            else each
            for each in result.evaluations
        ),
    )


def said_by(text):
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text)).replace("\u00a0", " "))


def first_row(text, model="hardened"):
    rows = text[text.index('class="first"') :].split("<tr>")
    return said_by(next(row for row in rows if f" {model}<" in row))


@pytest.fixture(scope="module")
def weakened_text(result):
    """Broken by the attack with the highest rate, and weak at one step of another."""
    return report_html(weakened(result, {"concept 10 %": 5.0, ("benign LoRA", 100): 24.3}))


def test_the_first_screen_says_what_a_broken_state_showed(result, weakened_text):
    """Its rate is the highest of all; without it the worst rate alone looks better than it is."""
    rows = View(result).rows("hardened", "concept 10 %")
    worst = max(rows, key=lambda row: row.unsafe.value)
    row = first_row(weakened_text)
    assert (
        f"left out, because the model was broken: concept 10 %, step {worst.step} "
        f"({100 * worst.unsafe.value:.1f} %)"
    ) in row
    assert "2 of 3 attacks count; 1 left the model broken" in row
    assert "left out" not in first_row(weakened_text, "plain unlearning")
    assert "3 of 3 attacks count " in first_row(weakened_text, "plain unlearning")


def test_the_lowest_quality_that_counts_is_the_one_that_is_shown(result, weakened_text, tmp_path):
    """Not that of the step with the worst unsafe rate, and not that of a broken state (5)."""
    said = r"90.0 % of the original's quality at its lowest \(n = \d+\): benign LoRA, step 100"
    assert re.search(said, first_row(weakened_text))
    cards = said_by(weakened_text[weakened_text.index('class="cards"') :])
    assert "90.0 % of the original's at its lowest, after benign LoRA, step 100" in cards
    (group,) = group_reports(
        [("r", weakened(result, {"concept 10 %": 5.0, ("benign LoRA", 100): 24.3}))]
    )
    row = next(row for row in group.rows if row.model == "hardened")
    assert (row.lowest, row.lowest_attack) == (pytest.approx(0.9), "benign LoRA")
    assert "90.0" in leaderboard_html([group])


def test_the_sentences_give_the_lowest_quality_too(result):
    """A model may draw other things worst at a step that is not its most unsafe one."""
    made = weakened(result, {"concept 10 %": 5.0, ("benign LoRA", 100): 24.3})
    plain, weak = (said for said in View(made).sentences() if not said.startswith("original"))
    assert "Its lowest over all steps that count: 24.3, 90 % of the original's" in weak
    assert (
        "after 'benign LoRA' at step 100." in weak
        and "Other things are still drawn right there" in weak
    )
    worst = View(result).worst("hardened")
    alike = View(weakened(result, {(worst.attack, worst.step): 24.3})).sentences()[-1]
    assert "No step that counts has a lower one." in alike and "Its lowest" not in alike
    assert "Its lowest over all steps" in plain or "No step that counts" in plain


def test_a_rate_before_any_attack_has_its_interval_where_no_attack_counts(result):
    """The row gave the rate with a dash for how sure it is."""
    before = result.evaluation("hardened")
    assert before is not None
    bare = replace(
        result,
        plan=replace(result.plan, fine_tunes=(), merges=(), loras=()),
        evaluations=tuple(each for each in result.evaluations if each.attack == "before"),
    )
    text, summary = report_html(bare), View(bare).of("hardened")
    rate = summary.before.unsafe
    assert summary.worst.row is None and rate is not None
    interval = said_by(span(rate.low, rate.high))
    row = first_row(text)
    assert f"{100 * rate.value:.1f} % unsafe show it before any attack" in row
    assert f"{interval} 95 % interval of that rate" in row
    card = said_by(text[text.index('class="cards"') :])
    assert f"{interval} is the 95 % interval of the rate before any attack" in card


@pytest.mark.parametrize("kind", ["neighbour", "retain"])
def test_pictures_of_harmless_prompts_say_that_they_should_stay(kind):
    """A kitchen knife among pictures without weapons looked like a fault."""
    assert "should stay" in ABOUT[kind] and "should not show it" in ABOUT["unsafe"]


@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_every_section_says_how_many_fine_tunings_its_figures_are_of(seeds):
    result = fake_result(plan=fake_plan(seeds=seeds), models=("original", "hardened"))
    view = View(result)
    said = {
        name: said_by(str(section(view)))
        for name, section in (("curves", curve_section), ("utility", utility_section))
    } | {"learning": introduction(view)}
    for name, text in said.items():
        one = "one fine-tuning run" in text
        several = "over 3 fine-tuning seeds" in text
        assert (one, several) == (len(seeds) == 1, len(seeds) == 3), name
        assert "all seeds" not in text and "mean over seeds" not in text


def test_the_first_screen_names_concept_size_scorer_and_what_it_is_no_test_for(text):
    start = said_by(text[text.index('class="first"') : text.index("In sentences")])
    for said in (
        "Is it safe from: weapons?", "The pictures are 256 × 256 px.", "the share that judge flags",
        "This is not a test for abuse material",
    ):  # fmt: skip
        assert said in start, said


def test_attacks_that_are_alike_at_worst_are_all_named():
    """Else the matrix, which marks none of them, seems to contradict the first screen."""
    result = fake_result(plan=fake_plan(seeds=(0,)))
    worst = View(result).of("plain unlearning").worst
    assert worst.row.attack == "benign LoRA" and worst.tied == ("concept 10 %",)
    text = report_html(result)
    assert "as high after concept 10 %" in first_row(text, "plain unlearning")
    assert "as high after" not in first_row(text, "hardened")
    cards = said_by(text[text.index('class="cards"') :])
    assert "after benign LoRA, step 200, and as high after concept 10 %" in cards


def test_one_fine_tuning_run_is_called_one(text):
    one = said_by(report_html(fake_result(plan=fake_plan(seeds=(0,)))))
    assert "one fine-tuning run per attack: no interval covers how much runs differ" in first_row(
        report_html(fake_result(plan=fake_plan(seeds=(0,))))
    )
    assert "resamples prompts and fine-tunings" not in one
    assert "one fine-tuning run" not in said_by(text) and "2 fine-tuning seeds" in first_row(text)


def test_an_undecided_trainability_shows_its_estimate():
    one = Learnt(
        model="m", attack="style", step=9, images=64, before=0.2, after=0.1, share=0.7,
        reached=0.763, reached_low=0.687, reached_high=0.823, verdict=UNCERTAIN,
    )  # fmt: skip
    assert learnt_words(one).replace("\u00a0", " ") == (
        "76.3 % as far as the original (68.7 to 82.3 %): cannot tell"
    )


def differences(text):
    part = text[text.index('id="paired"') :]
    return said_by(part[: part.index("</section>")])


def test_differences_leave_out_what_does_not_count(text, weakened_text):
    """Hardened is broken at every step of one attack: its p-value there would say nothing."""
    row = "hardened − plain unlearning concept 10 %"
    assert row in differences(text)
    assert row not in differences(weakened_text)
    assert "hardened − plain unlearning benign LoRA" in differences(weakened_text)


def test_the_markdown_has_the_differences_at_each_models_worst_rate(result):
    view, lines = View(result), report_markdown(result).replace("\u00a0", " ").splitlines()
    worst = view.worst("hardened")
    test = next(one.test for one in worst.against if one.other == "plain unlearning")
    start = f"| hardened − plain unlearning | {worst.attack}, step {worst.step} | "
    (line,) = [line for line in lines if line.startswith(start)]
    assert f"{100 * test.difference:+.1f}".replace("-", "−") + " pp" in line
    assert f"| {p_value(test.p_value)} |" in line
    assert not any(line.startswith("| hardened − plain unlearning | before") for line in lines)


def test_a_model_has_the_colour_of_its_report_where_reports_are_compared(result):
    """Rows are sorted by resilience; colours go by the place of a model in its report."""
    (group,) = group_reports([("one", result), ("two", result)])
    legend = re.findall(r"<li>(.*?)</li>", leaderboard_html([group]), re.S)
    keys = {said_by(entry).strip(): re.search(r"series-(\d)", entry)[1] for entry in legend}
    first = {"plain unlearning": "1", "hardened": "2"}
    for name, place in first.items():
        assert place in (keys[f"{name} (one)"], keys[f"{name} (two)"]), keys
    assert sorted(keys.values()) == ["1", "2", "3", "4"]


def test_paper_has_the_plan_and_a_phone_a_hint_that_pictures_scroll(text):
    assert re.search(r'<details data-print="yes"><summary>The plan as a file', text)
    grids = len(re.findall(r'class="[^"]*\bpictures\b', text))
    assert grids > 1 and text.count('class="swipe"') == grids
