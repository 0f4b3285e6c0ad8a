import pytest
from PIL import Image

from resalign.backend.report.plots import plot_records
from resalign.backend.run.records import SimulationRecord, StepRecord


def record(step: int, *, users: int, harm: float = -0.3) -> StepRecord:
    user = SimulationRecord(
        name="u", steps=8 + step, harm_after=-0.2, q=1.2, move=1.0, first_loss=0.1, last_loss=0.1
    )
    return StepRecord(
        step=step, harm=harm, retain=0.01, resilience_weight=0.8, retain_weight=8.0,
        learning_rate=1e-4, gradient_norm=1.0, seconds=0.1, simulations=(user,) * users,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("records", "warm_up"),
    [
        ([record(n, users=int(n > 3)) for n in range(1, 9)], 3),
        ([record(n, users=0) for n in range(1, 4)], 0),
        ([record(1, users=2)], 0),
    ],
    ids=["warm-up, then users", "plain unlearning", "one step"],
)
def test_any_run_has_a_picture_and_the_same_run_the_same(tmp_path, records, warm_up):
    first = plot_records(records, tmp_path / "a.png", warm_up=warm_up)
    second = plot_records(records, tmp_path / "b.png", warm_up=warm_up)
    with Image.open(first) as picture:
        assert picture.size == (960, 1080)
    assert first.read_bytes() == second.read_bytes()
