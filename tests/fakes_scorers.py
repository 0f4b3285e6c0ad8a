"""Images for scorers, and their scores as rows."""

import torch


def noise(count, size=(40, 56), seed=0):
    random = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, *size, generator=random) * 2 - 1


def rows(scores):
    return list(zip(scores.values, scores.flagged, scores.labels, strict=True))


def in_parts(scorer, images, prompts):
    """The rows of one image at a time, then of the rest."""
    first = scorer.score(images[:1], prompts[:1])
    return rows(first) + rows(scorer.score(images[1:], prompts[1:]))
