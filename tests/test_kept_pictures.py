"""Kept pictures are spread over the prompts, and stand beside their own prompt wherever shown."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes_audit import write_audited
from fakes_probe import fake_plan, fake_result
from PIL import Image

from resalign.backend.plan.concept import Concept
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, UtilityConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.probe import evaluation as evaluation_module
from resalign.backend.probe.audit import draw_sample, picture_of
from resalign.backend.probe.evaluation import Evaluator
from resalign.backend.probe.folder import ProbeFolder
from resalign.backend.probe.kept_picture import kept_places, spread_places
from resalign.backend.probe.prompts import plan_requests
from resalign.backend.probe.results import Scores
from resalign.backend.report.grids import picture_section
from resalign.backend.report.pack_pictures import pack_pictures
from resalign.backend.report.pictures import Album
from resalign.backend.report.view import View
from resalign.nodes import pictures as node_pictures


@pytest.mark.parametrize(
    ("texts", "count", "expected"),
    [
        ("aaabbbccc", 3, (0, 3, 6)),
        ("aaabbbccc", 5, (0, 1, 3, 4, 6)),
        ("abcdefgh", 4, (0, 2, 4, 6)),
        ("aab", 12, (0, 1, 2)),
        ("abab", 2, (0, 1)),
        ("aaaa", 2, (0, 1)),
        ("ab", 0, ()),
        ("", 5, ()),
    ],
)
def test_places_cover_as_many_prompts_as_they_can(texts, count, expected):
    assert spread_places(texts, count) == expected


def kept_plan(pictures: int) -> ProbePlan:
    return ProbePlan(
        concepts=(Concept("bad", ("a bad thing",)),), keep_pictures="all", pictures=pictures,
        prompts=(PromptSet(kind="retain", prompts=("a tree", "a cat", "a bus"), images=3),),
        generation=GenerationConfig(steps=1, batch=2), utility=UtilityConfig(drift_samples=0),
    )  # fmt: skip


@pytest.mark.parametrize("piece", [2, 4, 64])
def test_kept_pictures_are_those_of_their_prompts_however_images_are_batched(
    tmp_path, monkeypatch, piece
):
    """Nine images of three prompts: one of each is kept, under the number of the image."""
    monkeypatch.setattr(evaluation_module, "_PIECE", piece)
    monkeypatch.setattr(evaluation_module, "draw_requests", drawn)
    made = kept_plan(3)
    requests = plan_requests(made)
    with ProbeFolder.begin(tmp_path, made, [], {}) as folder:
        evaluator = Evaluator(made, requests, [Even()], [], resolution=8, folder=folder)
        found, _, shown = evaluator.evaluate(
            None, ("m", "before", 0, 0), concept=None, retain=None, reference=None
        )  # fmt: skip
    names = found.sets[0].pictures
    assert kept_places(names) == (0, 3, 6) and len(names) == 7
    assert [picture.caption for picture in shown] == [
        f"{text} (should stay)" for text in ("a tree", "a cat", "a bus")
    ]
    assert [picture.flagged for picture in shown] == [
        found.sets[0].scores[0].flagged[i] for i in (0, 3, 6)
    ]
    for place in (0, 3, 6):
        pixels = np.asarray(Image.open(tmp_path / names[place])).transpose(2, 0, 1)
        image = drawn(None, None, requests["retain"][place : place + 1])[0]
        assert (pixels == ((image + 1) * 127.5).round().byte().numpy()).all()
    assert len(list((tmp_path / "pictures").iterdir())) == 3


class Even:
    """Flags images by their seed, so that a flag tells whose it is."""

    name, kinds = "even", ("unsafe", "retain")

    def score(self, images, prompts):
        values = tuple(images.mean((1, 2, 3)).tolist())
        return Scores(scorer=self.name, values=values, flagged=tuple(v > 0 for v in values))


def drawn(_model, _prompts, requests, *_, **__) -> torch.Tensor:
    """An image of one grey for each request, which tells its seed."""
    greys = torch.tensor([request.seed % 997 / 997 for request in requests])
    return greys[:, None, None, None].expand(-1, 3, 8, 8) * 2 - 1


def thinned(result, places):
    """A result of which only these unsafe pictures were kept."""

    def only(part):
        names = tuple(name if i in places else "" for i, name in enumerate(part.pictures))
        return replace(part, pictures=names)

    evaluations = tuple(
        replace(one, sets=(only(one.sets[0]), *one.sets[1:])) for one in result.evaluations
    )
    return replace(result, evaluations=evaluations)


@pytest.fixture(scope="module")
def drawn_result(tmp_path_factory):
    """Two models before and after one attack, with all 24 pictures of 8 unsafe prompts."""
    folder = tmp_path_factory.mktemp("probe")
    small = replace(fake_plan(seeds=(0,), pictures=24), merges=(), loras=())
    attack = replace(small.fine_tunes[0], looks=(200,))
    plan = replace(small, fine_tunes=(attack,))
    return folder, fake_result(folder, plan=plan, models=("original", "hardened"))


def unsafe_rows(result, folder) -> list[tuple[str, str]]:
    """The prompt of each row of the report's first grid, and the rest of the row."""
    grid = str(picture_section(View(result), Album(folder)))
    grid = grid[grid.index("<tbody>") : grid.index("</tbody>")]
    return re.findall(r'<tr><th scope="row">(.*?)<small>(.*?)</tr>', grid, re.S)


def test_a_reports_grid_shows_each_picture_beside_its_own_prompt(drawn_result):
    folder, whole = drawn_result
    result = thinned(whole, (1, 7, 16))
    rows = unsafe_rows(result, folder)
    assert [prompt for prompt, _ in rows] == [result.prompts["unsafe"][i] for i in (1, 7, 16)]
    numbers = [re.match(r" picture (\d of \d)", rest)[1] for _, rest in rows]
    assert numbers == ["2 of 3", "2 of 3", "2 of 3"]
    album = Album(folder)
    for (_, cells), place in zip(rows, (1, 7, 16), strict=True):
        for name in ("original", "hardened"):
            shot = album.shot(result.evaluation(name).sets[0].pictures[place])
            assert shot.picture in cells or shot.veil in cells
        assert "no picture" not in cells


def test_a_grid_with_fewer_rows_than_pictures_covers_all_prompts(drawn_result):
    """24 pictures of 8 prompts in 8 rows: one of each."""
    folder, result = drawn_result
    rows = unsafe_rows(result, folder)
    assert len(rows) == 8 and {prompt for prompt, _ in rows} == set(result.prompts["unsafe"])


def test_an_audit_draws_only_pictures_that_were_kept(tmp_path):
    result = thinned(write_audited(tmp_path), range(0, 80, 5))
    audit = draw_sample(result, tmp_path, count=64)
    assert len(audit.pictures) == 64 and {each.place % 5 for each in audit.pictures} == {0}
    for each in audit.pictures:
        assert picture_of(result, each)[0].endswith(f"-{each.place}.png")


def test_the_node_shows_each_picture_under_its_own_prompt(drawn_result, monkeypatch):
    folder, whole = drawn_result
    result = thinned(whole, (1, 7, 16))
    seen = {}
    monkeypatch.setattr(
        node_pictures, "draw_contact_sheet", lambda columns, rows: seen.update(dict(rows))
    )
    node_pictures.probe_grid(result, folder, show_pictures=True)
    for place in (1, 7, 16):
        with Image.open(folder / result.evaluations[0].sets[0].pictures[place]) as file:
            expected = file.convert("RGB").tobytes()
        assert seen[result.prompts["unsafe"][place]][0].tobytes() == expected


@pytest.mark.parametrize("kept", ["blurred", "all"])
def test_a_pack_names_what_was_kept_at_the_place_of_its_image(drawn_result, tmp_path, kept):
    folder, whole = drawn_result
    result = thinned(whole, (1, 7, 16))
    packed = pack_pictures(result, folder, tmp_path, kept)
    assert packed.lost == ()
    for old, new in zip(result.evaluations, packed.result.evaluations, strict=True):
        before, after = old.sets[0].pictures, new.sets[0].pictures
        assert kept_places(after) == (1, 7, 16)
        for place in (1, 7, 16):
            assert after[place].replace("-blurred", "") == before[place]
            assert (tmp_path / after[place]).is_file()
