"""The wrappers of progress callbacks: what each adds, and that a raise passes through."""

from __future__ import annotations

import pytest

from resalign.backend.progress import (
    Cancelled,
    Combined,
    Progress,
    Whole,
    as_part,
    chain,
    rename_stage,
    with_check,
    with_message,
)

STEP = Progress(stage="harden", step=2, total=5, micro_step=1, micro_total=3, values={"q": 0.5})


class StopError(Exception): ...


def test_a_check_is_made_before_each_report_and_its_error_stops_the_work():
    order = []
    with_check(lambda p: order.append("report"), lambda: order.append("check"))(STEP)
    assert order == ["check", "report"]

    def stop():
        raise StopError

    with pytest.raises(StopError):
        with_check(lambda p: order.append("late"), stop)(STEP)
    assert "late" not in order


def test_a_message_is_added_only_where_there_is_none():
    seen = []
    report = with_message(seen.append, "retain set")
    report(STEP)
    report(Progress(stage="encoding", step=1, total=1, message="own"))
    assert [p.message for p in seen] == ["retain set", "own"]
    assert seen[0].values == {"q": 0.5} and seen[0].step == 2


def test_one_stage_is_renamed_and_the_others_are_not():
    seen = []
    report = rename_stage(seen.append, "harden", "stage 1-edit")
    report(STEP)
    report(Progress(stage="encoding", step=1, total=1))
    assert [p.stage for p in seen] == ["stage 1-edit", "encoding"]


def test_a_part_reports_its_micro_steps_within_the_whole_and_no_complete_units():
    seen = []
    report = as_part(seen.append, "generating", 4, 10, message="original")
    report(Progress(stage="sampling", step=1, total=2, micro_step=3, micro_total=20))
    report(Progress(stage="sampling", step=2, total=2))
    (found,) = seen
    assert (found.stage, found.step, found.total) == ("generating", 5, 10)
    assert (found.micro_step, found.micro_total, found.message) == (3, 20, "original")


def test_a_chain_reports_in_order_and_ends_at_the_first_error():
    seen = []

    def fail(progress):
        raise StopError

    chain(seen.append, seen.append)(STEP)
    assert seen == [STEP, STEP]
    with pytest.raises(StopError):
        chain(fail, seen.append)(STEP)
    assert len(seen) == 2


def test_pieces_add_up_to_one_stage_and_end_after_a_cancel():
    seen = []
    both = Combined(seen.append, "both", 5)
    first, second = both.piece("first"), both.piece("second")
    for callback, step in ((first, 1), (second, 2), (first, 3), (first, 2)):
        callback(Progress(stage="harden", step=step, total=3))
    assert [(p.stage, p.step, p.total, p.message) for p in seen] == [
        ("both", 1, 5, "first"), ("both", 3, 5, "second"), ("both", 5, 5, "first"),
        ("both", 5, 5, "first"),
    ]  # fmt: skip
    both.cancel()
    with pytest.raises(Cancelled):
        second(Progress(stage="harden", step=3, total=3))
    assert len(seen) == 4


def test_several_passes_are_one_bar_that_never_falls():
    seen = []
    whole = Whole(seen.append, 10)
    for stage, step in (("export", 2), ("export", 4), ("export", 1), ("export", 3), ("hash", 3)):
        whole(Progress(stage=stage, step=step, total=4))
    assert [found.share for found in seen] == [0.2, 0.4, 0.5, 0.7, 1.0]
    whole(Progress(stage="hash", step=9, total=4))
    assert seen[-1].share == 1.0
