"""Predictions made before training: those of a live copy, kept with checksums, and counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from fakes_checkpoint import write_tiny_checkpoint
from test_distil import SMALL, equal, plan, run

import resalign as ra
from fakes import encoded_data, tiny_model
from resalign.backend.adapter.dense_denoiser import DenseDenoiser
from resalign.backend.families.base.process import (
    discrete_process,
    scaled_linear_alphas_cumprod,
)
from resalign.backend.hardening.stored import batch_number, numbers_left, stored_key
from resalign.backend.jobs.check import check_job

LIVE = plan(distil=replace(SMALL, batch=2, concept_share=0.5), outer_steps=3, seed=3)
OWN = replace(LIVE, distil=replace(LIVE.distil, stored_draws=6))


def entries(folder):
    return sorted((folder / "cache").glob("prediction-*.safetensors"))


@pytest.fixture(scope="module")
def live():
    found = run(LIVE).adapter
    assert found.parameters
    return found


def test_with_as_many_draws_as_steps_the_bytes_are_those_of_a_live_copy(live, tmp_path):
    """From the folder and from main memory; one entry for each batch, and its progress."""
    told = []
    stored = run(OWN, tmp_path, on_progress=lambda p: told.append((p.stage, p.step, p.total)))
    assert equal(stored.adapter, live) and equal(run(OWN).adapter, live)
    assert len(entries(tmp_path)) == 3
    assert [(step, of) for stage, step, of in told if stage == "predicting"] == [
        (0, 3), (1, 3), (2, 3), (3, 3)
    ]  # fmt: skip


def test_the_copy_predicts_each_batch_once_and_leaves_before_training(monkeypatch):
    """Steps that meet a batch again ask nobody."""
    copies, predict = [], DenseDenoiser.__call__

    def counted(self, *args):
        copies.append("original" if self._frozen else self._teacher is not None)
        return predict(self, *args)

    monkeypatch.setattr(DenseDenoiser, "__call__", counted)
    run(replace(OWN, outer_steps=5, distil=replace(OWN.distil, stored_draws=3)))
    assert copies == ["original"] * 2 + [False] * 5


def test_batches_come_again_in_a_drawn_order():
    own = replace(OWN, outer_steps=9)
    numbers = [batch_number(own, step) for step in range(1, 10)]
    assert numbers[:3] == [1, 2, 3] and set(Counter(numbers).values()) == {3}
    assert [sorted(numbers[i : i + 3]) for i in (3, 6)] == [[1, 2, 3]] * 2
    orders = {tuple(batch_number(own, 3 * turn + i) for i in (1, 2, 3)) for turn in range(1, 9)}
    assert len(orders) > 1
    assert numbers_left(own, 9) == [numbers[8]] and numbers_left(OWN, 2) == [2, 3]
    assert [batch_number(LIVE, step) for step in (1, 7)] == [1, 7]


def test_a_run_stopped_while_predicting_or_training_ends_in_the_same_bytes(live, tmp_path):
    """And one whose entry was damaged, or taken away, meanwhile."""

    told = []

    def stop_at(*at):
        def stop(progress):
            if progress.stage == "predicting":
                told.append(progress.step)
            if (progress.stage, progress.step) == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(OWN, tmp_path, on_progress=stop)

    stop_at("predicting", 1)
    (first,) = entries(tmp_path)
    begun = first.stat().st_mtime_ns
    told.clear()
    stop_at("harden", 1)
    assert told == [1, 2, 3], "what was made before is reported once"
    assert first.stat().st_mtime_ns == begun and len(entries(tmp_path)) == 3
    _, second, third = entries(tmp_path)
    second.write_bytes(second.read_bytes()[:-1] + b"\0")
    third.unlink()
    assert equal(run(OWN, tmp_path).adapter, live)


def test_a_damaged_entry_is_predicted_again_when_its_step_comes(live, tmp_path, caplog):
    def damage(progress):
        if (progress.stage, progress.step) == ("predicting", 3):
            for entry in entries(tmp_path):
                data = bytearray(entry.read_bytes())
                data[-1] ^= 1
                entry.write_bytes(data)

    assert equal(run(OWN, tmp_path, on_progress=damage).adapter, live)
    assert caplog.text.count("wrong checksum") == 3


def test_the_key_changes_with_weights_data_and_settings():
    model, data, alphas = tiny_model(), encoded_data(), scaled_linear_alphas_cumprod()
    process = discrete_process(alphas)
    weights = dict(model.denoiser.named_parameters())
    key = stored_key(OWN, weights, data, process)
    assert key == stored_key(OWN, dict(tiny_model().denoiser.named_parameters()), data, process)
    bucket = data.retain.buckets[0]
    other = replace(data.retain, buckets=(replace(bucket, latents=bucket.latents + 1),))
    name = next(iter(weights))
    changed = {
        stored_key(replace(OWN, seed=1), weights, data, process),
        stored_key(OWN, {**weights, name: weights[name] + 1}, data, process),
        stored_key(OWN, weights, replace(data, retain=other), process),
        stored_key(OWN, weights, replace(data, anchors={"bad": data.empty}), process),
        stored_key(OWN, weights, data, discrete_process(alphas, "v_prediction")),
        stored_key(
            replace(OWN, distil=replace(OWN.distil, teacher="bf16")), weights, data, process
        ),
    }
    assert len(changed | {key}) == 7


def test_captions_that_the_original_reads_are_those_of_a_live_copy():
    """Blended ones, and those of anchors, are drawn with the batch."""
    changed = {"towards": "anchor", "mixed_share": 0.5}
    concepts = (replace(LIVE.concepts[0], anchor="a flower"),)
    one, other = (
        run(replace(own, concepts=concepts, distil=replace(own.distil, **changed))).adapter
        for own in (LIVE, OWN)
    )
    assert equal(one, other) and one.parameters


def test_a_varied_set_of_another_size_has_a_prediction_of_its_own():
    data = encoded_data()
    bucket = replace(data.retain.buckets[0], latents=torch.randn(16, 4, 16, 16))
    data = replace(data, varied=replace(data.retain, buckets=(bucket,)))
    one, other = (ra.harden(tiny_model(), own, data=data).adapter for own in (LIVE, OWN))
    assert equal(one, other)


def test_the_check_states_draws_and_disk(tmp_path):
    source = str(write_tiny_checkpoint(tmp_path / "a.safetensors"))
    job = ra.Job(checkpoint=source, output=str(tmp_path / "b.safetensors"), plan=OWN, device="cpu")
    with_, without = check_job(job), check_job(replace(job, plan=LIVE))
    assert with_.stored_draws == 6 and without.stored_draws == 0
    assert with_.info is not None and with_.disk_bytes is not None
    side = with_.info.resolution // 8
    assert with_.stored_bytes == 6 * 4 * side * side * 4
    assert with_.disk_bytes - (without.disk_bytes or 0) == with_.stored_bytes
    assert "for predictions on 6 draws" in str(with_) and "draws" not in str(without)
