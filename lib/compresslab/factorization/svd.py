"""Singular value decomposition: the best matrix of a given rank, and which error it leaves.

Source: Eckart and Young (1936), The approximation of one matrix by another of lower rank,
doi:10.1007/BF02288367; the randomized form: Halko, Martinsson and Tropp (2009), Finding structure
with randomness, arXiv:0909.4061, algorithms 4.3, 4.4 and 5.1.

    W = U Σ Vᵀ,     Ŵ = U_r Σ_r V_rᵀ,     ‖W - Ŵ‖² = Σ_{i>r} σ_i²

    code      papers
    weight    W, A   (out_features, in_features), as nn.Linear has it: y = W x
    rank      r, k
    left      U_r √Σ_r    (out_features, rank)
    right     √Σ_r V_rᵀ   (rank, in_features)
    sketch    Y = A Ω     (out_features, rank + oversampling)

Two factors have rank · (out + in) numbers in place of out · in: fewer only below the break-even
rank. √Σ goes to both sides: Adam moves all numbers by about the same step, and would move factors
of unlike size by unlike parts of it.

Differs from Halko et al.: subspace iteration always orthogonalizes (algorithm 4.4), which costs a
few milliseconds and keeps small singular values. Not included: their tests of the error while the
sketch grows.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import wide


class Factors(NamedTuple):
    """A matrix (out_features, in_features) as the product of two thin ones."""

    left: Tensor  # (out_features, rank)
    right: Tensor  # (rank, in_features)

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def product(self) -> Tensor:
        """The matrix that they stand for, (out_features, in_features)."""
        return self.left @ self.right


def break_even_rank(out_features: int, in_features: int) -> int:
    """The largest rank at which two factors have fewer numbers than the matrix; 0 if none has."""
    return (out_features * in_features - 1) // (out_features + in_features)


def singular_values(weight: Tensor) -> Tensor:
    """All of them, largest first: (min(out_features, in_features),) float32 or float64."""
    return torch.linalg.svdvals(wide(weight.detach()))


def truncated_svd(weight: Tensor, rank: int) -> Factors:
    """The two factors whose product is nearest to `weight` by the sum of squares.

    Args:
        weight: (out_features, in_features).

    Returns:
        Factors in the dtype of `weight`.

    Raises:
        ValueError: rank outside [1, min(out_features, in_features)].
    """
    check_rank(weight, rank)
    u, s, vh = torch.linalg.svd(wide(weight.detach()), full_matrices=False)
    return balanced(u[:, :rank], s[:rank], vh[:rank], like=weight)


def randomized_svd(
    weight: Tensor,
    rank: int,
    *,
    oversampling: int = 10,
    iterations: int = 2,
    generator: torch.Generator | None = None,
) -> Factors:
    """Almost `truncated_svd`, in O(out · in · rank) operations, not O(out · in · min(out, in)).

    Args:
        weight: (out_features, in_features).
        oversampling: directions beside `rank` that the sketch has.
        iterations: products with W Wᵀ. Each makes a spectrum that falls slowly fall faster, as it
            does for trained weights, where 0 is far from the best.

    Raises:
        ValueError: rank outside [1, min(out_features, in_features)].
    """
    check_rank(weight, rank)
    w = wide(weight.detach())
    width = min(rank + oversampling, *w.shape)
    omega = torch.randn(w.shape[1], width, generator=generator, dtype=w.dtype).to(w.device)
    basis = torch.linalg.qr(w @ omega).Q
    for _ in range(iterations):
        basis = torch.linalg.qr(w @ torch.linalg.qr(w.T @ basis).Q).Q
    u, s, vh = torch.linalg.svd(basis.T @ w, full_matrices=False)
    return balanced((basis @ u)[:, :rank], s[:rank], vh[:rank], like=weight)


def balanced(u: Tensor, s: Tensor, vh: Tensor, *, like: Tensor) -> Factors:
    """U Σ Vᵀ as two factors in the dtype of `like`, each direction of one length in both.

    Args:
        u: (out_features, rank), columns of length 1.
        vh: (rank, in_features), rows of any length: 1, or another if units have been undone.
    """
    length = vh.norm(dim=1)
    left, right = u * (s * length).sqrt(), (s / length).sqrt()[:, None] * vh
    return Factors(left.to(like.dtype), right.to(like.dtype))


def check_rank(weight: Tensor, rank: int) -> None:
    """Raises ValueError if no approximation of `weight` has this rank."""
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix, not of shape {tuple(weight.shape)}")
    if not 1 <= rank <= min(weight.shape):
        raise ValueError(
            f"rank must be between 1 and {min(weight.shape)} for a weight of shape "
            f"{tuple(weight.shape)}, not {rank}"
        )
