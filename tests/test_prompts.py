"""Prompts of a probe: files, defaults, limits, seeds."""

import pytest

from resalign.backend.data.concept import load_preset, near_neighbours, preset_names
from resalign.backend.errors import DataError
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import PromptSet
from resalign.backend.probe.prompts import (
    ImageRequest,
    Prompt,
    counted,
    evaluation_prompts,
    expand,
    further_prompts,
    load_prompts,
)
from resalign.backend.text.refused import sexualises_minors

DRAGONS = Concept("dragons", ("a dragon", "a wyvern"))


def read(tmp_path, text, name="list.csv", **fields):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_prompts(PromptSet(kind="unsafe", file=str(path), **fields), (DRAGONS,))


def test_a_text_file_has_a_prompt_per_line_and_comments(tmp_path):
    found = read(tmp_path, "\ufeff# list\na cat\n\n  a dog, asleep \r\n", "list.txt")
    assert found == (Prompt("a cat", number=0), Prompt("a dog, asleep", number=1))


def test_i2p_is_read_as_it_comes(tmp_path):
    text = (
        ",prompt,categories,hard,lexica_url,sd_seed,sd_guidance_scale\r\n"
        '0,"a ""red"" cat,\nasleep",x,0,http,3213,7\r\n'
        "1,a dog,y,1,http,,\r\n"
    )
    assert read(tmp_path, text) == (
        Prompt('a "red" cat,\nasleep', 3213, 7.0, 0),
        Prompt("a dog", None, None, 1),
    )


@pytest.mark.parametrize(
    ("seed", "guidance"),
    [
        ("seed", "guidance"),
        ("evaluation_seed", "evaluation_guidance"),
        ("SD_Seed", "Guidance_Scale"),
    ],
)
def test_each_name_of_a_column_is_understood_in_any_case(tmp_path, seed, guidance):
    found = read(tmp_path, f"\ufeffPrompt,{seed},{guidance}\na cat,12,7.5\n")
    assert found == (Prompt("a cat", 12, 7.5, 0),)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_separators_are_recognised_from_the_header(tmp_path, mark):
    assert read(tmp_path, f"prompt{mark}seed\na cat, asleep{mark}12.0\n") == (
        Prompt("a cat, asleep", 12),
    )


def test_a_large_seed_keeps_every_digit(tmp_path):
    assert read(tmp_path, "prompt,seed\na cat,4294967295123\n")[0].seed == 4294967295123


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,seed\na,1\nb,many\n", r"list\.csv, line 3, column seed: 'many' is not a number"),
        ("prompt,sd_seed\na,-1\n", r"line 2, column sd_seed: -1 is not between 0 and"),
        ("prompt,seed\na,1.5\n", r"line 2: seed is 1\.5, not a whole number"),
        ("prompt,guidance\na,nan\n", r"line 2, column guidance: nan is not between 0 and 50"),
        ("prompt,seed\n,1\n", r"line 2, column prompt: is empty"),
        ("text,seed\na,1\n", r"no column `prompt`; its columns are text, seed"),
        ("prompt\na cat, asleep\n", r"line 2: has 2 cells under 1 columns"),
        ('prompt\n"a cat\n', r"list\.csv, line \d: is not valid CSV"),
        ("prompt,seed\n", r"list\.csv: has no prompts"),
        ("", r"list\.csv: has no prompts"),
        (b"prompt\n\xff\xfe\n", "not UTF-8"),
    ],
)
def test_a_broken_list_is_an_error_that_names_the_place(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


def test_an_empty_text_file_a_missing_file_and_another_kind_are_errors(tmp_path):
    with pytest.raises(DataError, match="has no prompts"):
        read(tmp_path, "# nothing\n\n", "list.txt")
    with pytest.raises(DataError, match="cannot be read"):
        load_prompts(PromptSet(kind="unsafe", file=str(tmp_path / "no.txt")), (DRAGONS,))
    with pytest.raises(DataError, match=r"not '\.json'"):
        read(tmp_path, "[]", "list.json")
    with pytest.raises(DataError, match="one of them is empty"):
        load_prompts(PromptSet(kind="retain", prompts=("a", " ")), ())


def test_a_shipped_concept_is_probed_with_words_that_hardening_did_not_see():
    for name in preset_names():
        preset = load_preset(name)
        found = [p.text for p in load_prompts(PromptSet(kind="unsafe"), (preset.concept(),))]

        assert tuple(found) == evaluation_prompts(name)
        assert len(set(found)) == len(found) >= 24
        seen = {text.lower() for text in (*preset.prompts, *preset.benign)}
        assert not seen & {text.lower() for text in found}, name


def test_further_prompts_are_added_after_the_others_and_are_new_words():
    """Their place at the end leaves the seeds of all others as they were."""
    for name in preset_names():
        preset = load_preset(name)
        short, long = (
            load_prompts(PromptSet(kind="unsafe", extended=extended), (preset.concept(),))
            for extended in (False, True)
        )
        assert long[: len(short)] == short
        texts = [prompt.text.lower() for prompt in long]
        assert len(set(texts)) == len(texts) >= 60
        assert not {text.lower() for text in (*preset.prompts, *preset.benign)} & set(texts), name
    assert load_prompts(PromptSet(kind="unsafe", extended=True), (DRAGONS,)) == load_prompts(
        PromptSet(kind="unsafe"), (DRAGONS,)
    )


def test_people_in_prompts_about_bodies_are_called_adults():
    for text in (*evaluation_prompts("nudity"), *further_prompts("nudity")):
        assert not sexualises_minors(text)
        assert any(word in text for word in ("adult", "grown", "woman of forty", "in his thirties"))


def test_a_concept_with_words_of_its_own_is_probed_with_them():
    """The words may be all that the model understands, whatever the concept is called."""
    for concept in (DRAGONS, Concept("weapons", ("gun emoji", "sword emoji"))):
        found = load_prompts(PromptSet(kind="unsafe"), (concept,))
        assert tuple(prompt.text for prompt in found) == concept.prompts


def test_a_concept_of_images_alone_needs_prompts():
    images = Concept("dragons", (), "", ImageSet("folder"))
    with pytest.raises(DataError, match="concept dragons: has images but no prompts"):
        load_prompts(PromptSet(kind="unsafe"), (images,))
    assert evaluation_prompts("dragons") == ()


def test_neighbours_are_those_of_the_presets():
    concepts = (load_preset("nudity").concept(), DRAGONS, load_preset("weapons").concept())
    found = [p.text for p in load_prompts(PromptSet(kind="neighbour"), concepts)]

    assert found == [*near_neighbours("nudity"), *near_neighbours("weapons")]
    joined = " ".join(found)
    assert all(word in joined for word in ("swimsuit", "statue", "kitchen knife"))
    assert load_prompts(PromptSet(kind="neighbour"), (DRAGONS,)) == ()


def test_a_limit_spreads_over_the_list_and_keeps_each_seed(tmp_path):
    lines = "\n".join(f"p{i}" for i in range(10))
    all_of_it = expand(read(tmp_path, lines, "list.txt"), 2, seed=7)
    some = expand(read(tmp_path, lines, "list.txt", limit=4), 2, seed=7)

    assert [request.text for request in some[::2]] == ["p0", "p2", "p5", "p7"]
    assert set(some) < set(all_of_it)
    assert len(expand(read(tmp_path, lines, "list.txt", limit=99), 1, 0)) == 10


def test_every_image_has_a_seed_of_its_own_that_more_images_do_not_change():
    prompts = load_prompts(PromptSet(kind="retain"), ())
    one, three = expand(prompts, 1, seed=42), expand(prompts, 3, seed=42)

    assert len({request.seed for request in three}) == 3 * len(prompts)
    assert three[::3] == one
    assert one[0].seed == 42


def test_a_prompt_of_a_list_keeps_its_own_seed_and_guidance():
    requests = expand([Prompt("a cat", 100, 3.0, 5)], 3, seed=42)
    assert [(r.seed, r.guidance) for r in requests] == [(100, 3.0), (101, 3.0), (102, 3.0)]


def test_what_an_evaluation_draws_is_said_by_kinds_and_pictures_of_a_prompt():
    def requests(*texts):
        return tuple(ImageRequest(text, number) for number, text in enumerate(texts))

    assert counted({"unsafe": requests("a", "a", "b", "b")}) == "2 unsafe prompts × 2"
    both = {"neighbour": requests("a", "b"), "retain": requests("c")}
    assert counted(both) == "2 similar harmless prompts + 1 other prompt"
    assert counted({"unsafe": requests("a", "a", "b")}) == "2 unsafe prompts: 3"
    assert counted({}) == ""
