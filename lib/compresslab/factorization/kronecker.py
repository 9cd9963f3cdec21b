"""Kronecker products: a matrix as the sum of a few, each of two small factors.

Source: Van Loan and Pitsianis (1993), doi:10.1007/978-94-015-8196-7_17, Approximation with
Kronecker Products:

    W ≈ Σ_t A_t ⊗ B_t        ‖W - Σ_t A_t ⊗ B_t‖ = ‖R(W) - Σ_t vec(A_t) vec(B_t)ᵀ‖

R only puts the entries of W in another order, so the nearest sum of Kronecker products is the
nearest matrix of low rank to R(W), which the SVD gives:  error² = Σ_{i > terms} σ_i(R(W))².

    code     here   paper
    weight   W      A       (m1 · m2, n1 · n2), as nn.Linear has it: y = W x
    a        A_t    B       (terms, m1, n1)
    b        B_t    C       (terms, m2, n2), the shape of a block
    shape                   (m1, n1), the number of blocks down and across
    terms                   number of products

In place of m1 · m2 · n1 · n2 numbers there are terms · (m1 · n1 + m2 · n2). √σ goes to both sides.

Differs from the paper: vec reads a matrix row by row, not column by column, as torch stores it.
Not included: factors with structure of their own (symmetric, banded), sizes that do not divide the
matrix, choosing the shape.
"""

import torch
from torch import Tensor

from ..layers import wide


def rearrange(weight: Tensor, shape: tuple[int, int]) -> Tensor:
    """R(W): one row for each block of the matrix, the block read row by row.

    Args:
        weight: (m1 · m2, n1 · n2).
        shape: (m1, n1), the number of blocks down and across.

    Returns:
        Tensor (m1 · n1, m2 · n2) in the dtype of `weight`, the same numbers in another order.

    Raises:
        ValueError: `weight` is not a matrix, or `shape` does not divide it.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix, not of shape {tuple(weight.shape)}")
    (rows, columns), (m1, n1) = weight.shape, shape
    if m1 < 1 or n1 < 1 or rows % m1 or columns % n1:
        raise ValueError(
            f"shape must divide {tuple(weight.shape)}, the shape of weight, not {tuple(shape)}"
        )
    blocks = weight.reshape(m1, rows // m1, n1, columns // n1).transpose(1, 2)
    return blocks.reshape(m1 * n1, -1)


def nearest_kronecker(
    weight: Tensor, *, shape: tuple[int, int], terms: int = 1
) -> tuple[Tensor, Tensor]:
    """The sum of Kronecker products nearest to `weight` by the sum of squares.

    Args:
        weight: (m1 · m2, n1 · n2).
        shape: (m1, n1), the shape of the first factor.
        terms: how many products; min(m1 · n1, m2 · n2) of them are exact.

    Returns:
        Tensors a (terms, m1, n1) and b (terms, m2, n2) in the dtype of `weight`, the largest
        product first. Computed in float32, or float64 for a weight in float64, at the cost of one
        SVD of a matrix (m1 · n1, m2 · n2).

    Raises:
        ValueError: `shape` does not divide the matrix, or there are not so many terms.
    """
    rearranged = wide(rearrange(weight.detach(), shape))
    (m1, n1), (rows, columns) = shape, weight.shape
    most = min(rearranged.shape)
    if not 1 <= terms <= most:
        raise ValueError(
            f"terms must be 1 to {most} for a weight of shape {tuple(weight.shape)} in "
            f"{tuple(shape)} blocks, not {terms}"
        )
    u, s, vh = torch.linalg.svd(rearranged, full_matrices=False)
    root = s[:terms, None].sqrt()
    a = (root * u.T[:terms]).reshape(terms, m1, n1)
    b = (root * vh[:terms]).reshape(terms, rows // m1, columns // n1)
    return a.to(weight.dtype), b.to(weight.dtype)


def kronecker_sum(a: Tensor, b: Tensor) -> Tensor:
    """The dense matrix Σ_t a[t] ⊗ b[t].

    Args:
        a: (terms, m1, n1).
        b: (terms, m2, n2).

    Returns:
        Tensor (m1 · m2, n1 · n2), added up in float32 or float64, in the dtype of `a`.

    Raises:
        ValueError: the factors have no terms dimension, or not the same number of terms.
    """
    _check_factors(a, b)
    (_, m1, n1), (_, m2, n2) = a.shape, b.shape
    return torch.einsum("tij,tkl->ikjl", wide(a), wide(b)).reshape(m1 * m2, n1 * n2).to(a.dtype)


def apply_kronecker(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """W x for W = Σ_t a[t] ⊗ b[t], which is never formed: Σ_t A_t X B_tᵀ, with X = x in n1 rows.

    Costs terms · n1 · m2 · (n2 + m1) multiplications for each x; differentiable in all three.

    Args:
        x: (..., n1 · n2), in the dtype of the factors, which is that of the computation.
        a: (terms, m1, n1).
        b: (terms, m2, n2).

    Returns:
        Tensor (..., m1 · m2).

    Raises:
        ValueError: `x` has another last dimension, or the factors do not fit each other.
    """
    _check_factors(a, b)
    n1, n2 = a.shape[2], b.shape[2]
    if x.shape[-1:] != (n1 * n2,):
        raise ValueError(f"x must have {n1 * n2} as its last dimension, not {tuple(x.shape)}")
    x = x.unflatten(-1, (n1, n2)) @ b.flatten(0, 1).T  # (..., n1, terms · m2)
    # n1 and terms are one dimension of the second product, which so adds up the terms.
    x = x.unflatten(-1, (len(b), -1)).flatten(-3, -2)
    return (a.permute(1, 2, 0).flatten(1) @ x).flatten(-2)


def _check_factors(a: Tensor, b: Tensor) -> None:
    if a.dim() != 3 or b.dim() != 3 or len(a) != len(b):
        raise ValueError(
            "a and b must be (terms, m1, n1) and (terms, m2, n2), "
            f"not {tuple(a.shape)} and {tuple(b.shape)}"
        )
