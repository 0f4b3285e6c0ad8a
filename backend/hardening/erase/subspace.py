"""The directions of a layer's input that are a concept's own, and a layer without them.

C and F are the mean outer products E[x xᵀ] of a layer's inputs x on what must stay and on the
concepts. With S = C^½, an input S u has strength ‖u‖ on what must stay, and the eigenvectors q of

    S⁻¹ F S⁻¹ q = λ q

are the directions that are λ times as strong on the concepts (λ is 1 where both are alike). Q, of
those with λ above a given ratio, are taken out of the weight:

    W' = W S (I − Q Qᵀ) S⁻¹

Of all W' whose outputs do not depend on these directions, it is the one with the least
E‖W'x − Wx‖² over what must stay: (W' − W) S = −W S Q Qᵀ is a projection. A convolution's x are the
channels at one place, or patches of as many numbers as its kernel has for one output.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ...numerics.eigen import positive_eigen


class Directions(NamedTuple):
    """Directions to be taken out of a layer; float64.

    root, inverse: S and S⁻¹, [width, width]. vectors: Q, [width, k]. strengths: all eigenvalues λ,
    [width], rising; the last k are those of Q.
    """

    root: Tensor
    inverse: Tensor
    vectors: Tensor
    strengths: Tensor

    @property
    def removed(self) -> int:
        return self.vectors.shape[1]


def concept_directions(kept: Tensor, concept: Tensor, *, ratio: float, floor: float) -> Directions:
    """Find the directions with λ > `ratio`.

    Args:
        kept, concept: C and F, [width, width], symmetric.
        floor: eigenvalues of C are raised to this share of the largest, so that a direction that
            hardly occurs is not taken for the concept's own because of rounding.
    """
    values, basis = positive_eigen(_symmetric(kept))
    values = values.clamp(min=float(values[-1]) * floor)
    root = (basis * values.sqrt()) @ basis.T
    inverse = (basis / values.sqrt()) @ basis.T
    del basis  # the second decomposition needs the room
    strengths, vectors = positive_eigen(_symmetric(inverse @ concept.double() @ inverse))
    count = int((strengths > ratio).sum())
    return Directions(root, inverse, vectors[:, len(strengths) - count :].clone(), strengths)


def at_random(found: Directions, random: torch.Generator) -> Directions:
    """Return as many random directions, orthonormal where those found are: a control."""
    drawn = torch.randn(found.vectors.shape, generator=random).to(found.vectors)
    return found._replace(vectors=torch.linalg.qr(drawn)[0])


def without(weight: Tensor, found: Directions) -> Tensor:
    """Return W' for W [out, width], or for a kernel [out, in, k, k], in the weight's type.

    The directions of a kernel are of its channels (width `in`) or of patches (`in` · k · k).
    """
    patches = len(found.strengths) == weight[0].numel()
    left = (weight.flatten(1)[:, :, None] if patches else weight.flatten(2)).double()
    # W S Q, then back: products with k columns, never a matrix of width².
    onto = found.root @ found.vectors
    back = found.vectors.T @ found.inverse
    coefficients = torch.einsum("oit,ik->okt", left, onto)
    result = left - torch.einsum("okt,ki->oit", coefficients, back)
    return result.reshape(weight.shape).to(weight.dtype)


def _symmetric(matrix: Tensor) -> Tensor:
    """Return the matrix in float64 without the asymmetry of rounding."""
    wide = matrix.double()
    return (wide + wide.T).div_(2)
