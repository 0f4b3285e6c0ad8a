"""Flagged pictures are blurred at rest, and prompts that would sexualise minors are refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fakes_probe import fake_plan, fake_result
from PIL import Image

from resalign.backend.cli.parser import build_parser
from resalign.backend.cli.probe_flags import probe_job_of
from resalign.backend.data.varied import varied_prompts
from resalign.backend.errors import ConfigError, DataError
from resalign.backend.jobs.previews import PreviewSettings
from resalign.backend.jobs.try_lora import Sampling
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet
from resalign.backend.plan.measurement import GenerationConfig, PromptSet, UtilityConfig
from resalign.backend.plan.probe import ProbePlan
from resalign.backend.plan.probe_settings import probe_plan
from resalign.backend.probe import evaluation as evaluation_module
from resalign.backend.probe.evaluation import Evaluator
from resalign.backend.probe.folder import ProbeFolder
from resalign.backend.probe.kept_picture import blur, is_blurred
from resalign.backend.probe.prompts import load_prompts, plan_requests
from resalign.backend.probe.results import Scores
from resalign.backend.report.page import report_html
from resalign.backend.report.pictures import Album
from resalign.backend.text.refused import sexualises_minors

REFUSED = "a nude child"  # the plainest case; no other wording is needed to test a word list


def test_a_blurred_picture_holds_a_few_means_and_no_detail():
    """A chessboard of single pixels becomes even grey: the means of its cells are all there is."""
    board = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 255
    image = board.to(torch.uint8).repeat(3, 1, 1)
    found = blur(image)
    assert found.shape == image.shape and found.dtype == torch.uint8
    assert int(found.max()) - int(found.min()) <= 1
    assert abs(float(found.float().mean()) - 127.5) < 1


class Half:
    """Flags every second picture; a scorer of quality flags the others."""

    def __init__(self, name: str, first: bool, kinds=("unsafe", "retain")) -> None:
        self.name, self.first, self.kinds = name, first, kinds

    def score(self, images, prompts):
        flags = tuple((place % 2 == 0) == self.first for place in range(len(images)))
        return Scores(scorer=self.name, values=(0.0,) * len(images), flagged=flags)


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("none", []), ("blurred", [True, False]), ("all", [False, False])],
)
def test_what_is_flagged_is_blurred_before_it_is_written(tmp_path, monkeypatch, keep, kept):
    plan = ProbePlan(
        concepts=(Concept("bad", ("a bad thing",)),), keep_pictures=keep, pictures=2,
        prompts=(PromptSet(kind="retain", prompts=("a tree", "a cat")),),
        generation=GenerationConfig(steps=1), utility=UtilityConfig(drift_samples=0),
    )  # fmt: skip
    drawn = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    monkeypatch.setattr(evaluation_module, "draw_requests", lambda *_, **__: drawn)
    scorers = [Half("quality", False, kinds=("retain",)), Half("judge", True)]
    with ProbeFolder.begin(tmp_path, plan, [], {}) as folder:
        evaluator = Evaluator(
            plan, plan_requests(plan), scorers, [], resolution=32, folder=folder
        )  # fmt: skip
        found, _, shown = evaluator.evaluate(
            None, ("m", "before", 0, 0), concept=None, retain=None, reference=None
        )  # fmt: skip
    files = found.sets[0].pictures
    assert [is_blurred(file) for file in files] == kept
    assert len(list((tmp_path / "pictures").iterdir())) == len(files) == len(shown)
    pixels = ((drawn + 1) * 127.5).round().byte()
    for file, hidden, image in zip(files, kept, pixels, strict=False):
        written = np.asarray(Image.open(tmp_path / file)).transpose(2, 0, 1)
        assert (written == (blur(image) if hidden else image).numpy()).all()


def test_a_picture_that_was_kept_blurred_cannot_be_opened_in_the_report(tmp_path):
    """Its pixels are not those of its digest; it is shown all the same, as a veil."""
    result = fake_result(tmp_path, plan=fake_plan(pictures=2))
    evaluations = []
    for one in result.evaluations:
        unsafe = one.sets[0]
        for name in unsafe.pictures:
            (tmp_path / name).rename(tmp_path / name.replace(".png", "-blurred.png"))
        names = tuple(name.replace(".png", "-blurred.png") for name in unsafe.pictures)
        flagged = replace(unsafe.scores[0], flagged=(True,) * unsafe.images)
        hidden = replace(unsafe, pictures=names, scores=(flagged,), digests=("0",) * unsafe.images)
        evaluations.append(replace(one, sets=(hidden, *one.sets[1:])))
    page = report_html(replace(result, evaluations=tuple(evaluations)), tmp_path)

    shot = Album(tmp_path).shot(evaluations[0].sets[0].pictures[0], "0")
    assert shot.kept_blurred and shot.picture == shot.veil
    assert page.count("flagged, kept blurred") == page.count('class="shot flagged kept"') > 5
    assert "not in the probe's folder" not in page.replace("&#x27;", "'")


def test_the_command_line_and_the_node_choose_how_pictures_are_kept():
    arguments = ["probe", "a.safetensors", "--concept", "weapons"]
    parser = build_parser()
    assert probe_job_of(parser.parse_args(arguments)).plan.keep_pictures == "blurred"
    parsed = parser.parse_args([*arguments, "--keep-pictures", "none"])
    assert probe_job_of(parsed).plan.keep_pictures == "none"
    concepts = (Concept("weapons", ("a gun",)),)
    assert probe_plan("quick", concepts).keep_pictures == "blurred"
    assert probe_plan("quick", concepts, show_pictures=True).keep_pictures == "all"


@pytest.mark.parametrize(
    "text", [REFUSED, "A NUDE, CHILD", "nude_child", "a nudé child", "naked, 12 years old"]
)
def test_the_plain_case_is_recognised_however_it_is_written(text):
    assert sexualises_minors(text)


@pytest.mark.parametrize(
    "text",
    ["a nude person", "a child with a kite", "a naked tree", "a couple, 35 years old, nude",
     "kidney beans on a naked table", "a children's book illustration of a mouse", "minority"],
)  # fmt: skip
def test_other_prompts_pass(text):
    assert not sexualises_minors(text)


def test_such_prompts_are_refused_wherever_a_prompt_may_stand(tmp_path):
    """Also as a concept to remove, since its pictures would be drawn; no message repeats it."""
    lines, lists = tmp_path / "prompts.txt", tmp_path / "varied.toml"
    lines.write_text(f"a tree\n{REFUSED}\n")
    lists.write_text(f'templates = ["{{thing}}"]\nthing = ["{REFUSED}"]\n')
    concepts = (Concept("bad", ("a bad thing",)),)
    attempts = [
        lambda: Concept("bad", (REFUSED,)),
        lambda: Concept("nude", ("a child",)),
        lambda: Concept("bad", ("a bad thing",), anchor=REFUSED),
        lambda: ImageSet(prompts=(REFUSED,)),
        lambda: PromptSet(kind="unsafe", prompts=(REFUSED,)),
        lambda: load_prompts(PromptSet(kind="retain", file=str(lines)), concepts),
        lambda: varied_prompts(1, lists=lists, seed=0),
        lambda: Sampling(prompt=REFUSED),
        lambda: PreviewSettings(show=print, every=1, prompt=REFUSED),
    ]
    for attempt in attempts:
        with pytest.raises((ConfigError, DataError), match="names a minor") as found:
            attempt()
        assert REFUSED not in str(found.value)


def test_the_error_of_a_file_names_the_prompt(tmp_path):
    path = tmp_path / "prompts.csv"
    path.write_text(f"prompt\na tree\n{REFUSED}\n")
    with pytest.raises(DataError, match=r"prompts\.csv, prompt 2"):
        load_prompts(PromptSet(kind="unsafe", file=str(path)), ())


def test_all_that_is_shipped_passes(package_folder):
    found = [
        (path.name, line)
        for folder in ("backend/probe/prompts", "backend/data", "backend/demo/assets")
        for path in sorted((package_folder / folder).rglob("*.t*"))
        if path.suffix in (".txt", ".toml")
        for line in path.read_text(encoding="utf-8").splitlines()
        if sexualises_minors(line)
    ]
    assert found == []
