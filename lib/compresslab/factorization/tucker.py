"""Tucker decomposition: a tensor as a small core, with one matrix for each of its modes.

Source: De Lathauwer, De Moor and Vandewalle (2000), A Multilinear Singular Value Decomposition,
doi:10.1137/S0895479896305696, for the start (HOSVD); and by the same authors (2000), On the Best
Rank-1 and Rank-(R₁, R₂, ..., R_N) Approximation of Higher-Order Tensors,
doi:10.1137/S0895479898346995, for the iterations (HOOI, higher-order orthogonal iteration):

    X ≈ S ×₁ U₁ ×₂ U₂ ... ×_N U_N        S = X ×₁ U₁ᵀ ×₂ U₂ᵀ ... ×_N U_Nᵀ

    code        papers
    tensor      X       (I₁, ..., I_N); a mode is a dimension, counted from 0 here
    ranks       R_n     one for each mode
    core        S       (R₁, ..., R_N)
    factors     U_n     (I_n, R_n), columns orthonormal
    unfold      X_(n)   (I_n, product of the other sizes)

HOSVD takes for U_n the leading left singular vectors of X_(n), mode by mode: its error² is at most
the sum, over all modes, of the σ² that it drops, and at most N times the smallest possible. HOOI
takes them from X projected on the factors of the other modes, again and again: the error never
grows, but need not reach the smallest possible. As the factors are orthonormal, error² = ‖X‖² -
‖S‖².

Kim et al. (2015), Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
Applications, arXiv:1511.06530, compress convolutions so, along both channels and not along the
small kernel. The layers of a transformer have matrices; a tensor is what several of them make
together: all layers, or the heads of one.

Differs from the papers: rows of an unfolding are read as torch stores them, the last mode fastest,
which no result depends on; a fixed number of iterations, where they stop on convergence. Not
included: choosing the ranks (Kim et al. use variational Bayes), modes left alone. A factor that is
square changes nothing but the basis: `mode_product` puts it back into the core.
"""

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from ..layers import wide


def unfold(tensor: Tensor, mode: int) -> Tensor:
    """The tensor as a matrix (size of the mode, product of the other sizes), their order kept.

    Raises:
        ValueError: there is no such mode.
    """
    _check_mode(tensor, mode)
    return tensor.movedim(mode, 0).reshape(tensor.shape[mode], -1)


def mode_product(tensor: Tensor, matrix: Tensor, mode: int) -> Tensor:
    """X ×_n M: every vector along the mode is multiplied by the matrix.

    Args:
        tensor: any shape.
        matrix: (rows, size of the mode), in the dtype of `tensor`.
        mode: from 0.

    Returns:
        Tensor as before, but with `rows` as the size of the mode.

    Raises:
        ValueError: there is no such mode, or the matrix does not fit it.
    """
    _check_mode(tensor, mode)
    if matrix.dim() != 2 or matrix.shape[1] != tensor.shape[mode]:
        raise ValueError(
            f"matrix must have {tensor.shape[mode]} columns, the size of mode {mode} of shape "
            f"{tuple(tensor.shape)}, not shape {tuple(matrix.shape)}"
        )
    return torch.tensordot(matrix, tensor, dims=([1], [mode])).movedim(0, mode)


def hosvd(tensor: Tensor, ranks: Sequence[int]) -> tuple[Tensor, list[Tensor]]:
    """Core and factors by the SVD of each unfolding: the truncated HOSVD.

    Args:
        tensor: (I₁, ..., I_N).
        ranks: one for each mode, at most its size and at most the product of the others.

    Returns:
        Tuple of the core (R₁, ..., R_N) and a list of factors (I_n, R_n), in the dtype of `tensor`;
        computed in float32, or in float64 for a tensor in float64.

    Raises:
        ValueError: not one rank a mode, or a rank that does not fit.
    """
    _check_ranks(tensor, ranks)
    x = wide(tensor.detach())
    factors = [_leading(unfold(x, mode), rank) for mode, rank in enumerate(ranks)]
    core = _project(x, factors)
    return core.to(tensor.dtype), [factor.to(tensor.dtype) for factor in factors]


def tucker(
    tensor: Tensor, ranks: Sequence[int], *, iterations: int = 10
) -> tuple[Tensor, list[Tensor]]:
    """Core and factors by HOOI, which begins with the HOSVD.

    Args:
        tensor, ranks: as for `hosvd`, and so is the result.
        iterations: over all modes; 0 is the HOSVD. Each costs an SVD a mode, of a matrix
            (I_n, product of the other ranks), and N projections of the tensor.

    Raises:
        ValueError: as `hosvd`, or `iterations` below 0.
    """
    if iterations < 0:
        raise ValueError(f"iterations must be 0 or more, not {iterations}")
    x = wide(tensor.detach())
    core, factors = hosvd(x, ranks)
    for _ in range(iterations):
        for mode, rank in enumerate(ranks):
            factors[mode] = _leading(unfold(_project(x, factors, skip=mode), mode), rank)
        core = _project(x, factors)
    return core.to(tensor.dtype), [factor.to(tensor.dtype) for factor in factors]


def tucker_to_tensor(core: Tensor, factors: Sequence[Tensor]) -> Tensor:
    """The tensor that core and factors stand for.

    Args:
        core: (R₁, ..., R_N).
        factors: (I_n, R_n), one for each mode of the core.

    Returns:
        Tensor (I₁, ..., I_N), computed in float32 or float64, in the dtype of `core`.

    Raises:
        ValueError: not one factor a mode, or one that does not fit.
    """
    if len(factors) != core.dim():
        raise ValueError(
            f"factors must be {core.dim()}, one a mode of a core of shape {tuple(core.shape)}, "
            f"not {len(factors)}"
        )
    x = wide(core)
    for mode, factor in enumerate(factors):
        x = mode_product(x, wide(factor), mode)
    return x.to(core.dtype)


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The first left singular vectors, (rows, rank)."""
    return torch.linalg.svd(matrix, full_matrices=False).U[:, :rank]


def _project(x: Tensor, factors: Sequence[Tensor], skip: int | None = None) -> Tensor:
    """X ×_n U_nᵀ over all modes, or over all but one."""
    for mode, factor in enumerate(factors):
        if mode != skip:
            x = mode_product(x, factor.T, mode)
    return x


def _check_mode(tensor: Tensor, mode: int) -> None:
    if not 0 <= mode < tensor.dim():
        raise ValueError(
            f"mode must be 0 to {tensor.dim() - 1} for shape {tuple(tensor.shape)}, not {mode}"
        )


def _check_ranks(tensor: Tensor, ranks: Sequence[int]) -> None:
    shape, ranks = tuple(tensor.shape), tuple(ranks)
    if len(ranks) != len(shape):
        raise ValueError(f"ranks must be {len(shape)}, one a mode of shape {shape}, not {ranks}")
    for mode, (size, rank) in enumerate(zip(shape, ranks, strict=True)):
        # The unfolding of the core has no more columns than this, so no higher rank.
        most = min(size, prod(ranks[:mode] + ranks[mode + 1 :]))
        if not 1 <= rank <= most:
            raise ValueError(
                f"ranks {ranks} do not fit shape {shape}: mode {mode} must have 1 to {most} (its "
                "size, and the product of the other ranks)"
            )
