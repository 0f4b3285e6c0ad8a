"""The first pictures of a run: kept blurred, and shown again by a resume beside the latest."""

import json

import pytest
from PIL import Image

from resalign.backend.jobs import first_pictures
from resalign.backend.jobs.live_state import LiveState, blurred, data_url

STRIPES = Image.linear_gradient("L").resize((64, 64)).rotate(90).convert("RGB")


def begun(folder, *, resumed=False, show=False):
    live = LiveState("harden", 20, show_pictures=show)
    live.keep_first_pictures(folder, resumed=resumed)
    return live


def drawn(live, step=0):
    live.picture(STRIPES, f"step {step}: a gun", flagged=True, step=step)
    live.picture(STRIPES, f"step {step}: a cat", flagged=False, step=step)
    return live


@pytest.mark.parametrize("show", [False, True])
def test_a_resume_shows_the_first_pictures_beside_the_latest(tmp_path, show):
    drawn(begun(tmp_path, show=show))
    live = begun(tmp_path, resumed=True, show=show)
    first = live.state["pictures"].copy()
    assert [(one["caption"], one["flagged"]) for one in first] == [
        ("step 0: a gun", True), ("step 0: a cat", False)
    ]  # fmt: skip
    assert first[0]["url"] == data_url(blurred(STRIPES)) != data_url(STRIPES)
    assert first[1]["url"] == data_url(STRIPES)
    assert not any(one["bare"] for one in first), "also where the visitor asked for no blur"
    for step in (2, 4, 6, 8):
        drawn(live, step)
    assert live.state["pictures"][:2] == first
    assert live.state["pictures"][-1]["caption"] == "step 8: a cat"


def test_later_pictures_and_those_of_a_run_that_begins_anew_are_not_taken(tmp_path):
    drawn(begun(tmp_path))
    kept = (tmp_path / first_pictures.FILE).read_bytes()
    drawn(begun(tmp_path, resumed=True), 4)
    assert (tmp_path / first_pictures.FILE).read_bytes() == kept
    assert begun(tmp_path).state["pictures"] == []
    assert begun(tmp_path / "older", resumed=True).state["pictures"] == [], "of an older version"


ENTRY = {"url": data_url(STRIPES), "caption": "a cat", "flagged": False}


@pytest.mark.parametrize(
    "found",
    [
        "not json", "7", "[7]", "[{}]",
        json.dumps([ENTRY | {"url": "https://example.com/a.jpg"}]),
        json.dumps([ENTRY | {"url": 'data:image/jpeg;base64,A" onerror="x'}]),
        json.dumps([ENTRY | {"caption": ["a"]}]), json.dumps([ENTRY | {"caption": "a" * 9999}]),
    ],
)  # fmt: skip
def test_a_stranger_s_file_shows_nothing_and_stops_nothing(tmp_path, found):
    (tmp_path / first_pictures.FILE).write_text(found)
    assert begun(tmp_path, resumed=True).state["pictures"] == []


def test_a_stranger_s_file_shows_no_more_than_a_first_look(tmp_path):
    extra = ENTRY | {"bare": True, "step": 7, "more": "x"}
    (tmp_path / first_pictures.FILE).write_text(json.dumps([extra] * 9))
    found = begun(tmp_path, resumed=True).state["pictures"]
    assert found == [ENTRY | {"bare": False, "step": 0}] * 4


def test_a_folder_that_cannot_be_written_costs_only_the_pictures(tmp_path, caplog):
    live = drawn(begun(tmp_path / "gone"))
    assert len(live.state["pictures"]) == 2 and "first pictures are not kept" in caplog.text
