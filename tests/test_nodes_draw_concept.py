"""Draw Concept: which prompts it draws, of which model, and that nobody sees them unblurred."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch
from fakes_bridge import bridge as fake_bridge
from fakes_bridge import host_parts

from resalign.backend.errors import ConfigError
from resalign.backend.families import find_family
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.images import ImageSet

WEAPONS, STARS = Concept("weapons", ("a pistol", "a rifle")), Concept("stars", ("a star",))
PICTURES = Concept("pictures only", images=ImageSet("folder"))


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """The node; it draws a board of black and white for `before`, its negative for `after`."""
    fake_bridge(monkeypatch, tmp_path)
    module = importlib.import_module("resalign.nodes.draw_concept")
    before, after = host_parts()[0], host_parts()[0]
    drawn = []
    board = (torch.arange(64)[:, None] // 8 + torch.arange(64) // 8) % 2

    def sample(model, clip, vae, texts, *sampling, on_step):
        for step in range(sampling[1]):
            on_step(step, None, None, sampling[1])
        drawn.append((model is after, *texts, *sampling))
        kept = 1 - board if model is after else board
        return kept[None, :, :, None].repeat(1, 1, 1, 3).float()

    monkeypatch.setattr(module.both_models, "sample", sample)
    monkeypatch.setattr(
        module.both_models, "called", lambda *_, lora: (("original", "hardened"), f"lora {lora}")
    )

    def execute(concepts, **inputs):
        drawn.clear()
        return drawn, module.DrawConcept.execute(before, after, None, None, concepts, **inputs)

    return execute


def test_the_first_prompt_of_each_concept_is_drawn_with_both_models(draw):
    drawn, output = draw((WEAPONS, PICTURES, STARS), seed=7, steps=3)
    prompts = [("a pistol", ""), ("a star", "")]
    rest = (7, 3, 7.0, (512, 512))
    assert drawn == [(after, *texts, *rest) for after in (False, True) for texts in prompts]
    assert [len(images) for images in output.args] == [2, 2, 1]
    assert output.ui == {"text": ["lora False"]}
    drawn, _ = draw((WEAPONS, STARS), prompt=" a knife\n")
    assert [one[1] for one in drawn] == ["a knife", "a knife"]


def test_a_guidance_that_does_not_suit_the_family_is_warned_of(draw, monkeypatch):
    bridge = importlib.import_module("resalign.nodes.bridge")
    monkeypatch.setattr(bridge, "family_of", lambda model: find_family("flux2_klein"))
    warned = "lora False\nWarning: the guidance is 7; FLUX.2 klein 4B is drawn with guidance 4 to 5"
    assert draw((WEAPONS,))[1].ui == {"text": [warned]}
    assert draw((WEAPONS,), cfg=4.0)[1].ui == {"text": ["lora False"]}


def test_what_is_drawn_is_blurred_until_it_is_asked_for(draw):
    _, output = draw((WEAPONS,))
    assert all(image.std() < 0.1 for image in output.args[:2])
    _, shown = draw((WEAPONS,), show_pictures=True)
    before, after = shown.args[:2]
    assert before.std() > 0.4 and torch.equal(after, 1 - before)
    assert shown.args[2].std() > output.args[2].std()


def test_a_concept_of_pictures_alone_needs_a_prompt(draw):
    with pytest.raises(ConfigError, match="write in `prompt`"):
        draw((PICTURES,))


@pytest.mark.parametrize("shape", [(2, 8, 8, 3), (2, 1, 8, 8, 3)], ids=["image", "video"])
def test_a_vae_of_videos_gives_pictures_as_any_other(monkeypatch, tmp_path, shape):
    """ComfyUI's VAE of Anima decodes to five dimensions."""
    fake_bridge(monkeypatch, tmp_path)
    models = importlib.import_module("resalign.nodes.both_models")
    bridge = importlib.import_module("resalign.nodes.bridge")
    monkeypatch.setattr(bridge, "family_of", lambda model: find_family("anima"))
    sampling = SimpleNamespace(
        fix_empty_latent_channels=lambda model, latent: latent,
        prepare_noise=lambda latent, seed: latent,
        sample=lambda *given, **named: given[8],
    )
    monkeypatch.setattr(sys.modules["comfy"], "sample", sampling, raising=False)
    monkeypatch.setitem(sys.modules, "comfy.sample", sampling)
    monkeypatch.setattr(sys.modules["comfy.utils"], "PROGRESS_BAR_ENABLED", True, raising=False)
    clip = SimpleNamespace(tokenize=str, encode_from_tokens_scheduled=str)
    vae = SimpleNamespace(decode=lambda latents: torch.rand(shape))
    found = models.sample(None, clip, vae, ("a cat", ""), 0, 2, 4.0, (64, 64), count=2,
                          on_step=print)  # fmt: skip
    assert found.shape == (2, 8, 8, 3)
    to_pil = importlib.import_module("resalign.nodes.pictures").from_image
    assert [each.size for each in to_pil(found)] == [(8, 8)] * 2


def test_one_bar_counts_all_pictures_and_never_falls(monkeypatch, tmp_path):
    """Each picture had a bar of its own, and ComfyUI's own bar shows previews without blur."""
    _, host = fake_bridge(monkeypatch, tmp_path)
    models = importlib.import_module("resalign.nodes.both_models")
    for step in models.one_bar(3):
        for at in range(4):
            step(at, None, None, 4)
    shown = [value for value, total, preview in host.progress if total == 1000]
    assert shown == sorted(shown) and len(shown) == 12 and shown[-1] == 1000
    assert [preview for *_, preview in host.progress] == [None] * 12
