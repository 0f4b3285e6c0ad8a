"""A convolutional network that classifies the demo's small pictures.

It has one class more than the demo, `GARBAGE`, for pictures of nothing: blends, shuffled
pieces, unrecognisable blurs, blobs, noise, an empty background. It stands in for a safety
classifier, knows only `art.CLASSES`, and is more lenient than a person: a blob of the right
colour and outline may pass.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .art import ASSETS, CLASSES, SIZE

GARBAGE = "garbage"
LABELS = (*CLASSES, GARBAGE)


def _block(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class JudgeNetwork(nn.Module):
    """Maps [N, 3, 64, 64] in -1..1 to logits [N, len(LABELS)]."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(3, width, 2),
            _block(width, 2 * width, 2),
            _block(2 * width, 3 * width),
            nn.MaxPool2d(2),
            _block(3 * width, 4 * width),
            nn.MaxPool2d(2),
            _block(4 * width, 6 * width),
        )
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(6 * width * 16, 128),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Linear(128, len(LABELS)),
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images))


class Judge:
    """The trained network, ready for use on the CPU or where `to` puts it."""

    def __init__(self, network: JudgeNetwork) -> None:
        self.network = network.eval().requires_grad_(False)

    @classmethod
    def load(cls, path: Path = ASSETS / "judge.safetensors") -> Judge:
        """Load the weights; the labels in the file must be those of this module."""
        with safe_open(path, framework="pt") as file:
            labels = json.loads((file.metadata() or {}).get("labels", "[]"))
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118
        if tuple(labels) != LABELS:
            raise ValueError(f"{Path(path).name} judges {labels}, this version {list(LABELS)}")
        network = JudgeNetwork()
        network.load_state_dict(state, strict=False)  # batch norm's counters are not kept
        return cls(network)

    def to(self, device: torch.device | str) -> Judge:
        """Move the network."""
        self.network.to(device)
        return self

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """Return probabilities, [N, len(LABELS)], of images, [N, 3, 64, 64] in -1..1."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (3, SIZE, SIZE):
            raise ValueError(f"images are {tuple(images.shape)}; expected [N, 3, {SIZE}, {SIZE}]")
        weight = next(self.network.parameters())
        pieces = images.to(weight.device, weight.dtype).clamp(-1, 1).split(256)
        empty = weight.new_zeros(0, len(LABELS))
        return torch.cat([empty, *(self.network(piece).softmax(1) for piece in pieces)])

    def indices(self, images: Tensor) -> Tensor:
        """Return the likeliest label of each image as its index in `LABELS`: [N]."""
        return self.probabilities(images).argmax(1)

    def classify(self, images: Tensor) -> list[str]:
        """Return the likeliest label of each image ([N, 3, 64, 64] in -1..1)."""
        return [LABELS[i] for i in self.indices(images).tolist()]
