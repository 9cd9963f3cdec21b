"""Tensor train: a tensor as a chain of small ones, and a matrix as a chain of small matrices.

Source: Oseledets (2011), Tensor-Train Decomposition, doi:10.1137/090752286, algorithm 1 (TT-SVD);
Novikov et al. (2015), Tensorizing Neural Networks, arXiv:1509.06569, for the TT-matrix:

    A(i₁, ..., i_d) = G₁(i₁) G₂(i₂) ... G_d(i_d)
    W((i₁, ..., i_d), (j₁, ..., j_d)) = G₁(i₁, j₁) ... G_d(i_d, j_d)

    code       papers
    tensor     A      (n₁, ..., n_d)
    ranks      r_k    d - 1 of them; r₀ = r_d = 1
    cores      G_k    (r_{k-1}, n_k, r_k), or (r_{k-1}, m_k, n_k, r_k) for a matrix
    tolerance  ε      ‖A - Â‖ ≤ ε ‖A‖
    weight     W      (M, N) = (m₁ ... m_d, n₁ ... n_d), as nn.Linear has it: y = W x
    out_modes  m_k    factors of the number of rows; the row is (i₁, ..., i_d), the last fastest
    in_modes   n_k    factors of the number of columns

Each SVD splits off one mode and leaves the rest to the next: error² is at most the sum, over
k = 1, ..., d - 1, of the σ² beyond r_k of A as a matrix (n₁ ... n_k, n_{k+1} ... n_d), and at most
d - 1 times the smallest possible.

Differs from the papers: ranks and tolerance may both be given, and the stricter counts; row and
column numbers are read as torch stores them, the last mode fastest, where Oseledets has the first.
Not included: rounding a train to smaller ranks, sums and products of trains, training the cores.
"""

from collections.abc import Sequence
from math import prod, sqrt

import torch
from torch import Tensor

from ..layers import wide

Ranks = int | Sequence[int] | None


def tensor_train(tensor: Tensor, ranks: Ranks = None, *, tolerance: float = 0.0) -> list[Tensor]:
    """The cores of a tensor by TT-SVD.

    Args:
        tensor: (n₁, ..., n_d).
        ranks: at most these, d - 1 of them; or one number for all; None for no limit.
        tolerance: the error that dropping singular values may cause, as a fraction of the norm of
            the tensor, where `ranks` does not force more. 0 drops none but zeros.

    Returns:
        Cores (r_{k-1}, n_k, r_k) in the dtype of `tensor`, computed in float32, or in float64 for a
        tensor in float64. All but the last have orthonormal columns as matrices (r_{k-1} n_k, r_k).

    Raises:
        ValueError: an empty tensor, a rank below 1, not d - 1 ranks, or a tolerance below 0.
    """
    if tensor.dim() == 0 or tensor.numel() == 0:
        raise ValueError(f"tensor must have modes and numbers, not shape {tuple(tensor.shape)}")
    if not tolerance >= 0:
        raise ValueError(f"tolerance must be 0 or more, not {tolerance}")
    limits = _limits(tensor, ranks)
    rest, cores, rank = wide(tensor.detach()), [], 1
    allowed = tolerance * rest.norm() / sqrt(max(len(limits), 1))  # for each SVD
    for size, limit in zip(tensor.shape, limits, strict=False):
        u, s, vh = torch.linalg.svd(rest.reshape(rank * size, -1), full_matrices=False)
        kept = min(limit, _smallest_rank(s, allowed))
        cores.append(u[:, :kept].reshape(rank, size, kept))
        rest, rank = s[:kept, None] * vh[:kept], kept
    cores.append(rest.reshape(rank, tensor.shape[-1], 1))
    return [core.to(tensor.dtype) for core in cores]


def tt_to_tensor(cores: Sequence[Tensor]) -> Tensor:
    """The tensor (n₁, ..., n_d) of cores (r_{k-1}, n_k, r_k).

    Computed in float32 or float64, given back in the dtype of the cores.

    Raises:
        ValueError: cores that do not form a chain.
    """
    _check_cores(cores, dim=3)
    x = wide(cores[0])
    for core in cores[1:]:
        x = torch.tensordot(x, wide(core), dims=1)
    return x.squeeze(-1).squeeze(0).to(cores[0].dtype)


def tt_matrix(
    weight: Tensor,
    *,
    out_modes: Sequence[int],
    in_modes: Sequence[int],
    rank: Ranks = None,
    tolerance: float = 0.0,
) -> list[Tensor]:
    """The cores of a matrix: TT-SVD of the tensor (m₁ n₁, ..., m_d n_d).

    Args:
        weight: (out_features, in_features).
        out_modes: d numbers whose product is out_features.
        in_modes: d numbers whose product is in_features.
        rank, tolerance: as `ranks` and `tolerance` of `tensor_train`.

    Returns:
        Cores (r_{k-1}, m_k, n_k, r_k) in the dtype of `weight`.

    Raises:
        ValueError: modes that do not fit the matrix or each other; and as `tensor_train`.
    """
    modes = tuple(out_modes), tuple(in_modes)
    if len(modes[0]) != len(modes[1]) or tuple(map(prod, modes)) != tuple(weight.shape):
        raise ValueError(
            "out_modes and in_modes must be as many, with the shape of weight "
            f"{tuple(weight.shape)} as their products, not {modes[0]} and {modes[1]}"
        )
    d = len(modes[0])
    pairs = [axis for k in range(d) for axis in (k, d + k)]
    tensor = weight.reshape(*modes[0], *modes[1]).permute(pairs)  # (m₁, n₁, m₂, n₂, ...)
    tensor = tensor.reshape([m * n for m, n in zip(*modes, strict=True)])
    cores = tensor_train(tensor, rank, tolerance=tolerance)
    return [core.unflatten(1, pair) for core, *pair in zip(cores, *modes, strict=True)]


def tt_matrix_to_dense(cores: Sequence[Tensor]) -> Tensor:
    """The matrix (out_features, in_features) of cores (r_{k-1}, m_k, n_k, r_k), in their dtype.

    Raises:
        ValueError: cores that do not form a chain.
    """
    _check_cores(cores, dim=4)
    d = len(cores)
    modes = [size for core in cores for size in core.shape[1:3]]
    tensor = tt_to_tensor([core.flatten(1, 2) for core in cores]).reshape(modes)
    tensor = tensor.permute([*range(0, 2 * d, 2), *range(1, 2 * d, 2)])
    return tensor.reshape(prod(modes[::2]), prod(modes[1::2]))


def apply_tt_matrix(x: Tensor, cores: Sequence[Tensor]) -> Tensor:
    """W x, core by core: W is never formed.

    Core k takes one mode of the input away and adds one of the output, in
    r_{k-1} r_k · m₁ ... m_k · n_k ... n_d multiplications for each x: the fewest where the modes
    that grow most (m_k / n_k) come last. Differentiable in both.

    Args:
        x: (..., in_features), in the dtype of the cores, which is that of the computation.
        cores: (r_{k-1}, m_k, n_k, r_k).

    Returns:
        Tensor (..., out_features).

    Raises:
        ValueError: `x` has another last dimension, or the cores do not form a chain.
    """
    _check_cores(cores, dim=4)
    in_features = prod(core.shape[2] for core in cores)
    if x.shape[-1:] != (in_features,):
        raise ValueError(f"x must have {in_features} as its last dimension, not {tuple(x.shape)}")
    x = x.unsqueeze(-2)  # (..., rank = 1, modes of the input still to come and of the output)
    for core in cores:
        x = x.unflatten(-1, (core.shape[2], -1))
        x = torch.einsum("...rnp,rmns->...spm", x, core).flatten(-2)
    return x.squeeze(-2)


def _limits(tensor: Tensor, ranks: Ranks) -> list[int]:
    count = tensor.dim() - 1
    if ranks is None:
        return [tensor.numel()] * count
    limits = [ranks] * count if isinstance(ranks, int) else list(ranks)
    if len(limits) != count:
        raise ValueError(
            f"ranks must be {count}, one between two modes of shape {tuple(tensor.shape)}, "
            f"not {ranks}"
        )
    if any(limit < 1 for limit in limits):
        raise ValueError(f"every rank must be 1 or more, not {ranks}")
    return limits


def _smallest_rank(s: Tensor, allowed: Tensor) -> int:
    """How many singular values to keep so that the norm of the others is `allowed`; at least 1."""
    # Norm of each and all after it; a square of tiny numbers would be 0 in float32.
    dropped = s.double().square().flip(0).cumsum(0).flip(0).sqrt()
    return max(1, int((dropped > allowed).sum()))


def _check_cores(cores: Sequence[Tensor], *, dim: int) -> None:
    shapes = [tuple(core.shape) for core in cores]
    chained = all(len(shape) == dim for shape in shapes) and (
        [1, *(shape[-1] for shape in shapes)] == [*(shape[0] for shape in shapes), 1]
    )
    if not shapes or not chained:
        modes = "n" if dim == 3 else "m, n"
        raise ValueError(
            f"cores must be (rank before, {modes}, rank after), ranks chained from 1 to 1, "
            f"not {shapes}"
        )
