"""One run on several processes: the same result, and one way of ending for all of them."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest
import torch
from fakes_ranks import finish, until
from test_harden import FAST, SLOW, plan, run

from resalign.backend.errors import ConfigError
from resalign.backend.parallel.launch import join_ranks, place_in_environment
from resalign.backend.parallel.process_group import ProcessGroup
from resalign.backend.parallel.ranks import ALONE, assign
from resalign.backend.parallel.wire import pack, unpack
from resalign.backend.plan.durable import DistilConfig, EraseConfig
from resalign.backend.plan.regulator import RegulatorConfig
from resalign.backend.plan.stages import Stage
from resalign.backend.run.folder import RunFolder

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked here")

HARDEN = """
with join_ranks(20) as ranks:
    result = harden(
        tiny_model(), plan(**{changes}), run_folder=here / "run", data=encoded_data(),
        on_progress={progress}, ranks=ranks,
    )
records = [{{**r.to_json(), "seconds": 0}} for r in result.records]
torch.save([result.adapter.tensors, records], here / f"{{ranks.count}}.{{ranks.rank}}.pt")
"""


def harden_lines(changes="{}", progress="lambda progress: None") -> str:
    return HARDEN.format(changes=changes, progress=progress)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def same(one, other) -> bool:
    """To the bit."""
    return one.keys() == other.keys() and all(torch.equal(t, other[n]) for n, t in one.items())


def records_of(result):
    return [{**record.to_json(), "seconds": 0} for record in result.records]


def loaded(folder, count):
    return [torch.load(folder / f"{count}.{rank}.pt") for rank in range(count)]


STAGES = (Stage(method="closed_form"), Stage(method="project", steps=1))
CASES = {
    "two users on two": (2, {"configurations_per_step": 2}),
    "two users on four": (4, {"configurations_per_step": 2}),
    "three users on two, judged at θ* by what is kept too": (
        2, {"configurations_per_step": 3, "retain_after_weight": 0.5, "simulate": "adapter"},
    ),
    "after other methods": (2, {"configurations_per_step": 2, "before": STAGES}),
}  # fmt: skip


_STAGE = "from resalign.backend.plan.stages import Stage\n"


@pytest.mark.parametrize("case", [slow(case) for case in CASES])
def test_several_processes_find_the_adapter_of_one_to_the_bit(launcher, tmp_path, case):
    """On every rank, with the same records; a split that is uneven, and ranks without a user."""
    count, changes = CASES[case]
    third = '"fine_tunes": (FAST, SLOW, replace(FAST, name="third", learning_rate=2e-2))'
    text = repr(changes)[:-1] + (", " if changes else "") + third + "}"
    lines = "from dataclasses import replace\n" + _STAGE + harden_lines(text)
    launcher.run(lines, count, tmp_path)
    fine_tunes = (FAST, SLOW, replace(FAST, name="third", learning_rate=2e-2))
    alone = run(plan(fine_tunes=fine_tunes, **changes))
    for adapter, records in loaded(tmp_path, count):
        assert same(adapter, alone.adapter.tensors)
        assert records == records_of(alone)
    users = len(records_of(alone)[-1]["simulations"])
    assert users == changes["configurations_per_step"]


ALL_WEIGHTS = {
    "method": "distil", "before": (Stage(method="erase"),), "micro_batch": 3, "outer_steps": 2,
    "distil": DistilConfig(batch=8, learning_rate=1e-3), "warm_up_steps": 0,
    "erase": EraseConfig(samples=8, batch=8, ratio=1.5, targets=("attention",)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("count", "waits"), [(2, False), (4, False), (2, True)])
def test_all_weights_are_trained_alike_by_several_processes(launcher, tmp_path, count, waits):
    """Erased on each, distilled with three micro-batches shared: one process's bytes."""
    distil = replace(ALL_WEIGHTS["distil"], optimiser_waits=waits)
    own = ALL_WEIGHTS | {"distil": distil}
    head = _STAGE + "from resalign.backend.plan.durable import DistilConfig, EraseConfig\n"
    launcher.run(head + harden_lines(repr(own)), count, tmp_path)
    alone = run(plan(**own))
    for adapter, records in loaded(tmp_path, count):
        assert same(adapter, alone.adapter.tensors)
        assert records == records_of(alone)


@pytest.mark.parametrize(("before", "after"), [slow(2, 1), slow(1, 4)])
def test_a_run_goes_on_with_another_number_of_ranks(launcher, tmp_path, before, after):
    """Stopped after three steps, ended by others: what an unbroken run of one process ends in,
    with the regulator's lengths, which had grown."""
    changes = "{'regulator': RegulatorConfig(low=0.0, high=0.01, factor=1.5, min_steps=1)}"
    stop = """
def stop(progress):
    if progress.step == 3 and progress.micro_step == 1:
        raise KeyboardInterrupt
from resalign.backend.plan.regulator import RegulatorConfig
"""
    first = launcher.start(stop + harden_lines(changes, "stop"), before, tmp_path)
    assert 0 not in finish(first)
    with RunFolder.open(tmp_path / "run", read_only=True) as folder:
        assert folder.steps_saved == 3
    launcher.run(stop + harden_lines(changes), after, tmp_path)
    whole = run(plan(regulator=RegulatorConfig(low=0.0, high=0.01, factor=1.5, min_steps=1)))
    assert whole.records[-1].simulations[0].steps > whole.records[2].simulations[0].steps
    for adapter, records in loaded(tmp_path, after):
        assert same(adapter, whole.adapter.tensors)
        assert records == records_of(whole)


# How a run ends that does not end well. The plan is long enough never to be done by itself.

LONG = "{'outer_steps': 500, 'save_every': 400, 'configurations_per_step': 2}"
TELL = """
def tell(progress):
    (here / "step").write_text(str(progress.step))
"""


def under_way(launcher, folder, count, lines, **environment):
    """A run that has taken some steps."""
    lines = lines.replace("join_ranks(20)", "join_ranks(2)")
    ranks = launcher.start(lines, count, folder, **environment)
    until(lambda: (folder / "step").exists() and int((folder / "step").read_text() or 0) > 3)
    return ranks


def saved(folder) -> int:
    """Steps in the state; each is more than those of the last regular save."""
    with RunFolder.open(folder / "run", read_only=True) as opened:
        tensors = opened.load_state()[1]
        assert all(bool(t.isfinite().all()) for t in tensors.values())
        return opened.steps_saved


@pytest.mark.parametrize("victim", [slow(1), slow(2)])
def test_a_rank_that_is_killed_ends_the_run_with_its_state_saved(launcher, tmp_path, victim):
    """kill -9: the others say which one died, within seconds, and rank 0 keeps the last step."""
    ranks = under_way(launcher, tmp_path, 3, TELL + harden_lines(LONG, "tell"))
    ranks[victim].kill()
    began = time.monotonic()
    codes = finish(ranks)
    assert time.monotonic() - began < 30
    assert codes[victim] == -signal.SIGKILL and codes[0] == 1
    assert f"rank {victim} of 3 died" in ranks[0].text()
    assert "RankError" in ranks[3 - victim].text()
    assert saved(tmp_path) >= 3


@pytest.mark.slow
def test_when_the_first_rank_is_killed_the_others_end_and_say_so(launcher, tmp_path):
    ranks = under_way(launcher, tmp_path, 2, TELL + harden_lines(
        "{'outer_steps': 500, 'save_every': 2}", "tell"))  # fmt: skip
    ranks[0].kill()
    assert finish(ranks) == [-signal.SIGKILL, 1]
    assert "rank 0" in ranks[1].text() and "first_is_gone" not in ranks[1].text()
    assert saved(tmp_path) >= 2


BREAK = """
import resalign.backend.hardening.users as module
true = module.simulate_user
def simulate_user(*args, **options):
    if os.environ["RANK"] == "1" and (here / "step").exists():
        raise {error}
    return true(*args, **options)
module.simulate_user = simulate_user
from resalign.backend.errors import DivergenceError
"""


@pytest.mark.parametrize(
    ("error", "name", "text"),
    [
        slow(
            "ZeroDivisionError('by nothing')", "RankError", "rank 1 of 2 failed: ZeroDivisionError"
        ),
        ("DivergenceError('too steep')", "DivergenceError", "rank 1 of 2: too steep"),
        slow("KeyboardInterrupt", "KeyboardInterrupt", "interrupted on rank 1 of 2"),
        slow("SystemExit(3)", "KeyboardInterrupt", "interrupted on rank 1 of 2"),
    ],
)
def test_what_ends_one_rank_ends_all(launcher, tmp_path, error, name, text):
    """A bug, a divergence, Ctrl-C on one rank: rank 0 raises its like, with the state saved."""
    lines = BREAK.format(error=error) + TELL + harden_lines(LONG, "tell")
    ranks = launcher.start(lines, 2, tmp_path)
    codes = finish(ranks)
    assert codes == [1, 3 if "Exit" in error else 1], [rank.text() for rank in ranks]
    last = ranks[0].text().strip().splitlines()[-1]
    assert name in last and text in last
    assert saved(tmp_path) >= 2


def test_a_loss_that_is_not_finite_is_the_same_error_on_every_rank(launcher, tmp_path):
    lines = harden_lines().replace("encoded_data()", "encoded_data(poison_after=4)")
    ranks = launcher.start(lines, 2, tmp_path)
    assert finish(ranks) == [1, 1]
    last = [rank.text().strip().splitlines()[-1] for rank in ranks]
    assert last[0] == last[1] and "DivergenceError" in last[0] and "is not finite" in last[0]


@pytest.mark.slow
def test_a_rank_that_lives_but_never_comes_is_given_up(launcher, tmp_path):
    """After --rank-timeout, which the message names."""
    hang = BREAK.format(error="RuntimeError").replace("raise RuntimeError", "time.sleep(60)")
    lines = hang + TELL + harden_lines(LONG, "tell").replace("join_ranks(20)", "join_ranks(2)")
    ranks = launcher.start(lines, 2, tmp_path)
    until(lambda: ranks[0].code() is not None, 30)
    assert "rank 1 of 2 lives but has not come for 2 s: --rank-timeout" in ranks[0].text()
    ranks[1].kill()
    finish(ranks)
    assert saved(tmp_path) >= 2


def test_another_checkpoint_on_one_rank_is_refused(launcher, tmp_path):
    lines = harden_lines().replace("tiny_model()", "tiny_model(seed=int(os.environ['RANK']) % 2)")
    ranks = launcher.start(lines, 3, tmp_path)
    assert finish(ranks) == [1, 1, 1]
    assert "the checkpoint differs on rank 1 from that on rank 0" in ranks[0].text()


# The parts.


def test_the_dearest_tasks_go_first_each_to_the_rank_with_least_to_do():
    assert assign([1, 1, 9, 9, 9], 3) == [0, 1, 0, 1, 2]
    assert assign([1, 1], 4) == [0, 1]
    assert assign([1, 1, 16, 16, 16], 4) == [3, 3, 0, 1, 2]
    assert assign([], 2) == []


@dataclass(frozen=True)
class Part:
    name: str
    values: torch.Tensor


@dataclass(frozen=True)
class Whole:
    parts: tuple[Part, ...]
    by_name: dict[str, Part]
    rate: float | None


def test_what_is_sent_arrives_to_the_bit_and_one_object_stays_one():
    part = Part("ä", torch.tensor([[1.5, float("nan")], [-0.0, 1e-30]], dtype=torch.bfloat16))
    other = Part("none", torch.zeros(0, 3, dtype=torch.int64))
    scalar = Part("one", torch.tensor(True))
    whole = Whole((part, other, scalar), {"again": part}, float("inf"))
    found = unpack(pack([whole, (1, None)]), (Part, Whole))
    assert found[1] == (1, None) and found[0].rate == float("inf")
    assert found[0].by_name["again"] is found[0].parts[0]
    for old, new in zip(whole.parts, found[0].parts, strict=True):
        assert (new.name, new.values.dtype, new.values.shape) == (
            old.name, old.values.dtype, old.values.shape,
        )  # fmt: skip
        assert pack(old.values).tolist() == pack(new.values).tolist()


def test_only_what_is_known_is_made_of_what_arrives():
    with pytest.raises(KeyError, match="Part"):
        unpack(pack(Part("x", torch.zeros(1))), (Whole,))
    with pytest.raises(TypeError, match="a set cannot be sent"):
        pack({1, 2})


@pytest.mark.parametrize(
    ("environment", "place"),
    [
        ({}, (0, 1)),
        ({"WORLD_SIZE": "4", "RANK": "3"}, (3, 4)),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, (1, 2)),
        ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1)),
        ({"WORLD_SIZE": "4"}, (0, 1)),
    ],
)
def test_a_process_reads_its_place_from_its_launcher(monkeypatch, environment, place):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert place_in_environment() == place
    if place == (0, 1):
        assert join_ranks() is ALONE


def test_each_process_takes_the_gpu_that_accelerate_gives_it(monkeypatch):
    """With CUDA replaced: this machine has none."""
    rank = SimpleNamespace(rank=3, count=4, _local=1)
    assert ProcessGroup.place(rank, "cpu") == "cpu"
    with pytest.raises(ConfigError, match="has 0 GPUs: start one process per GPU"):
        ProcessGroup.place(rank, "cuda")
    with pytest.raises(ConfigError, match=r"'cuda:1'.*a GPU of its own"):
        ProcessGroup.place(rank, "cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = SimpleNamespace(device=torch.device("cuda:1"))
    monkeypatch.setattr("accelerate.PartialState", lambda: found)
    assert ProcessGroup.place(rank, "cuda") == ProcessGroup.place(rank, "auto") == "cuda:1"
    rank._local = 2
    with pytest.raises(ConfigError, match="process 3 of its machine, which has 2 GPUs"):
        ProcessGroup.place(rank, "cuda")


def test_values_and_letters_reach_the_first_rank_and_all(launcher, tmp_path):
    """share, claims, send: each item is one rank's, each letter arrives once, large ones too."""
    launcher.run(
        """
        import json
        with join_ranks(20) as ranks:
            shared = ranks.share({"from": ranks.rank, "x": torch.arange(3)})
            mine = []
            for item in ranks.claims("abcdefgh"):
                time.sleep(0.02)
                mine.append(item)
            found = []
            if not ranks.first:
                ranks.send([ranks.rank, torch.full((5 * 2**20,), ranks.rank, dtype=torch.uint8)])
            ranks.meet()
            for rank, tensor in ranks.received():
                assert len(tensor) == 5 * 2**20 and bool((tensor == rank).all())
                found.append(rank)
            assert ranks.received() == []
            ranks.meet()
        told = [shared["from"], shared["x"].tolist(), mine, found]
        (here / str(ranks.rank)).write_text(json.dumps(told))
        """,
        3, tmp_path,
    )  # fmt: skip
    told = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(3)]
    assert all(line[:2] == [0, [0, 1, 2]] for line in told)
    assert sorted(item for line in told for item in line[2]) == list("abcdefgh")
    assert [line[3] for line in told] == [[1, 2], [], []]


def test_a_process_alone_imports_nothing_for_it(package_folder):
    """Neither torch.distributed's rendezvous nor accelerate, by joining alone."""
    import subprocess

    code = (
        f"import sys; sys.path.insert(0, {str(package_folder.parent)!r});"
        "from importlib.util import *;"
        f"s = spec_from_file_location('resalign', {str(package_folder / '__init__.py')!r},"
        f" submodule_search_locations=[{str(package_folder)!r}]);"
        "m = module_from_spec(s); sys.modules['resalign'] = m; s.loader.exec_module(m);"
        "from resalign.backend.parallel.launch import join_ranks; join_ranks();"
        "print(sorted({'torch', 'accelerate', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr
