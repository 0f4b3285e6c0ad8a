"""Text encoders and VAE are on the device only while they are at work."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from fakes_data import tiny_family

from resalign.backend.data.batches import prepare_data
from resalign.backend.hardening.run import harden
from resalign.backend.model import encode
from resalign.backend.model.model import Model
from resalign.backend.plan.concept import Concept
from resalign.backend.plan.hardening import HardeningPlan
from resalign.backend.plan.images import ImageSet

DEVICE = torch.device("cpu", 0)  # stands for a GPU: another name than "cpu", where tensors can be


class Places:
    """Each encoder's device as stated, and what was there when one of them worked."""

    def __init__(self, model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = {f"text {n}": module for n, module in enumerate(model.text_encoders)}
        self.modules = {**texts, "vae": model.vae}
        self.now = dict.fromkeys(self.modules, str(DEVICE))  # as `load_checkpoint` leaves them
        self.at_work: set[tuple[str, tuple[str, ...]]] = set()
        names = {id(module): name for name, module in self.modules.items()}
        for name, module in self.modules.items():
            monkeypatch.setattr(module, "to", lambda where, n=name: self.move(n, where))
            work = "encode" if name == "vae" else "forward"
            original = getattr(module, work)
            monkeypatch.setattr(
                module, work, lambda *a, n=name, o=original, **k: (self.note(n), o(*a, **k))[1]
            )
        monkeypatch.setattr(Model, "device", property(lambda _: DEVICE))
        where = encode._device

        def device_of(module: torch.nn.Module) -> torch.device:
            name = names.get(id(module))
            return torch.device(self.now[name]) if name else where(module)

        monkeypatch.setattr(encode, "_device", device_of)

    def move(self, name: str, where: object) -> None:
        self.now[name] = str(torch.device(where))  # type: ignore[arg-type]

    def note(self, name: str) -> None:
        there = tuple(sorted(n for n, place in self.now.items() if place == str(DEVICE)))
        self.at_work.add((name, there))


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_each_is_on_the_device_for_its_own_work_alone(family, picture_folder, monkeypatch):
    model = tiny_family(family)
    places = Places(model, monkeypatch)
    plan = HardeningPlan(
        concepts=(Concept("bad", prompts=("a bad thing",)),),
        retain_set=ImageSet(str(picture_folder)), resolution=32,
    )  # fmt: skip
    forget = ImageSet(prompts=("a bad thing",), images=2, sampling_steps=2)
    plan = replace(plan, forget_set=forget)

    prepare_data(model, plan)

    texts = tuple(sorted(name for name in places.modules if name != "vae"))
    assert places.at_work == {("vae", ("vae",)), *((name, texts) for name in texts)}
    assert set(places.now.values()) == {"cpu"}


def test_an_error_while_encoding_leaves_none_behind(picture_folder, monkeypatch):
    model = tiny_family("sd1")
    places = Places(model, monkeypatch)

    def fail(*_, **__):
        raise KeyError

    monkeypatch.setattr("resalign.backend.data.latents.encode_images", fail)
    plan = HardeningPlan(
        concepts=(Concept("bad", prompts=("bad",), images=ImageSet(str(picture_folder))),),
        retain_set=ImageSet(str(picture_folder)), resolution=32,
    )  # fmt: skip
    with pytest.raises(KeyError):
        prepare_data(model, plan)
    assert set(places.now.values()) == {"cpu"}


@pytest.mark.parametrize("spare", [False, True])
def test_their_memory_is_freed_where_nobody_needs_them_afterwards(picture_folder, spare):
    model = tiny_family("sd1")
    model.spare_encoders = spare
    watched = [weakref.ref(module) for module in (*model.text_encoders, model.vae)]
    seen = []

    def look(progress):
        if progress.stage == "harden":
            gc.collect()
            seen.append([module() is None for module in watched])

    plan = HardeningPlan(
        concepts=(Concept("bad", prompts=("bad",), images=ImageSet(str(picture_folder))),),
        retain_set=ImageSet(str(picture_folder)), resolution=32, outer_steps=1, warm_up_steps=1,
    )  # fmt: skip
    harden(model, plan, on_progress=look)
    assert seen and all(gone == [spare, spare] for gone in seen)


@pytest.fixture
def picture_folder(tmp_path):
    from PIL import Image

    for number in range(2):
        Image.new("RGB", (40, 40), (90 * number, 20, 60)).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text(f"picture {number}")
    return tmp_path
