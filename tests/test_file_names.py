"""Names of new files: what a file system cannot store is refused before hours of work."""

import pytest

from resalign.backend.errors import ConfigError
from resalign.backend.jobs.check import check_job
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.file_names import MOST_BYTES, file_name_parts, too_long
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.job import Job

COMPANIONS = ("-lora.safetensors.resalign-partial", "_00002.safetensors.resalign-partial",
              "-curves.png.tmp", ".safetensors.run", ".safetensors.resalign-partial")  # fmt: skip


@pytest.mark.parametrize("letter", ["é", "漢", "😀"])
def test_a_name_is_measured_in_bytes(letter):
    most = MOST_BYTES // len(letter.encode())
    for name in (letter * most, f"sub/{letter * most}", letter * most + ".safetensors"):
        if len(name) <= 120:
            assert file_name_parts(name, "name")
    with pytest.raises(ConfigError, match=r"name takes 2\d\d bytes: use 200 at most"):
        file_name_parts("sub/" + letter * (most + 1), "name")


def test_the_longest_name_leaves_room_for_what_is_added(tmp_path):
    for ending in COMPANIONS:
        (tmp_path / ("x" * MOST_BYTES + ending)).touch()
    assert not too_long(tmp_path / ("x" * MOST_BYTES + ".safetensors"))


@pytest.mark.parametrize("field", ["output", "lora", "run_folder"])
def test_the_command_line_refuses_such_a_name_before_the_run(tmp_path, field):
    plan = HardeningPlan(concept=Concept("weapons", ("a pistol",)))
    names = {"output": str(tmp_path / "out.safetensors"), field: str(tmp_path / ("漢" * 100))}
    problems = check_job(Job(checkpoint=str(tmp_path / "m"), plan=plan, **names)).problems
    said = f"{field.replace('_', ' ')}: the name takes 300 bytes: use 200 at most"
    assert any(said in problem for problem in problems), problems
