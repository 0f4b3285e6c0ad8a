"""Does the demo's judge err less once its last layer is trained on pictures that a person labelled?

    python benchmarks/judge_retrained.py

The labelled pictures of `judge_labels.py` are split into ten parts by their prompt. A logistic
regression on the judge's last hidden layer and its probabilities, with mirrored pictures beside the
others, is fitted on nine parts and judges the tenth. Printed for each model: misses and false
alarms of the judge and of the new layer, and the rate of each, weighed as in `judge_labels.py`.
The judge itself stays as it is, so that old and new figures of all benchmarks remain comparable.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import torch
from judge_labels import LABELS, MARKS, RESULTS, by_eye
from PIL import Image
from scipy.optimize import minimize

from resalign.backend.demo.judge import Judge

FOLDS, RIDGE, EDGE, ACROSS = 10, 1e-2, 64, 16


def pictures(count: int) -> torch.Tensor:
    """Return the labelled pictures, [count, 3, 64, 64] in -1..1, from their sheet."""
    sheet = np.asarray(Image.open(RESULTS / "judge_labels.webp").convert("RGB"))
    rows = len(sheet) // EDGE
    cells = sheet.reshape(rows, EDGE, ACROSS, EDGE, 3).swapaxes(1, 2).reshape(-1, EDGE, EDGE, 3)
    return torch.from_numpy(cells[:count].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def features(judge: Judge, images: torch.Tensor) -> np.ndarray:
    """Return what the new layer reads, [n, 149]: the last hidden layer and the probabilities."""
    network = judge.network
    hidden = network.head[:3](network.features(images))
    return torch.cat([hidden, judge.probabilities(images)], 1).double().numpy()


def fit(inputs: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """Fit a logistic regression with a ridge; return its weights and, last, its bias."""
    signs = 2.0 * shown - 1

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        margins = signs * (inputs @ weights[:-1] + weights[-1])
        slopes = -signs / (1 + np.exp(margins)) / len(signs)
        gradient = np.append(inputs.T @ slopes + 2 * RIDGE * weights[:-1], slopes.sum())
        value = np.logaddexp(0, -margins).mean() + RIDGE * (weights[:-1] ** 2).sum()
        return float(value), gradient

    return minimize(loss, np.zeros(inputs.shape[1] + 1), jac=True, method="L-BFGS-B").x


def cross_validated(
    plain: np.ndarray, mirrored: np.ndarray, shown: np.ndarray, prompts: list[str]
) -> np.ndarray:
    """Return what a layer fitted on the other parts says of each picture: [n] of bool."""
    texts = sorted(set(prompts))
    part_of = dict(zip(np.random.default_rng(0).permutation(texts), range(len(texts)), strict=True))
    parts = np.array([part_of[text] % FOLDS for text in prompts])
    said = np.zeros(len(shown), bool)
    for part in range(FOLDS):
        train = parts != part
        inputs = np.concatenate([plain[train], mirrored[train]])
        mean, scale = inputs.mean(0), inputs.std(0) + 1e-3
        weights = fit((inputs - mean) / scale, np.tile(shown[train], 2))
        said[~train] = (plain[~train] - mean) / scale @ weights[:-1] + weights[-1] > 0
    return said


def errors(said: np.ndarray, shown: np.ndarray) -> str:
    missed, alarms = int((~said & shown).sum()), int((said & ~shown).sum())
    return f"{missed}/{int(shown.sum())} | {alarms}/{int((~shown).sum())}"


def main() -> None:
    torch.set_num_threads(1)
    record: dict[str, Any] = json.loads(LABELS.read_text(encoding="utf-8"))
    entries, judge = record["pictures"], Judge.load()
    images = pictures(len(entries))
    plain, mirrored = features(judge, images), features(judge, images.flip(3))
    flagged = np.array([entry["flagged"] for entry in entries])
    methods = np.array([entry["method"] for entry in entries])
    prompts = [entry["prompt"] for entry in entries]
    print("| model; what counts | by eye | judge: rate | misses | false alarms "
          "| trained again: rate | misses | false alarms |\n" + "|---" * 8 + "|")  # fmt: skip
    for counted, words in (("w", "plainly"), ("wh", "or half-formed")):
        shown = np.array([label in counted for label in record["labels"]])
        said = cross_validated(plain, mirrored, shown, prompts)
        letters = "".join("w" if one else "n" for one in said)
        for name in MARKS:
            mine = methods == name
            eye = by_eye(name, record, counted)[1][0]
            again = by_eye(name, {**record, "labels": letters}, "w")[1][0]
            sizes = [record["strata"].get(f"{name}|{flag}", 0) for flag in (True, False)]
            print(f"| {name}; {words} | {eye:.2f} | {sizes[0] / sum(sizes):.2f} "
                  f"| {errors(flagged[mine], shown[mine])} | {again:.2f} "
                  f"| {errors(said[mine], shown[mine])} |")  # fmt: skip
        print(f"| all {len(shown)}; {words} | | | {errors(flagged, shown)} | "
              f"| {errors(said, shown)} |")  # fmt: skip


if __name__ == "__main__":
    main()
