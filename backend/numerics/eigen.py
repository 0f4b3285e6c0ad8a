"""Eigenvalues of symmetric matrices, also where LAPACK's fast way fails."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

log = logging.getLogger(__name__)


def positive_eigen(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Return the eigenvalues, rising, and eigenvectors as columns of a symmetric matrix none of
    whose eigenvalues is negative but for rounding.

    `torch.linalg.eigh` gives up on some such matrices with many equal eigenvalues, among them mean
    outer products whose rows depend on each other. Their singular values are the same numbers.
    """
    try:
        return torch.linalg.eigh(matrix)
    except torch.linalg.LinAlgError as error:
        log.info("eigenvalues of a matrix [%d, %d] by singular values: %s", *matrix.shape, error)
    vectors, values, _ = torch.linalg.svd(matrix)
    return values.flip(0), vectors.flip(1)
