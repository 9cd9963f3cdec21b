"""Nyströmformer: attention through a few landmarks.

Source: Xiong et al. (2021), Nyströmformer: A Nyström-Based Algorithm for Approximating
Self-Attention, arXiv:2102.03902, section 3 and algorithm 1:

    F̃ = softmax(Q K̃ᵀ / √d)     Ã = softmax(Q̃ K̃ᵀ / √d)     B̃ = softmax(Q̃ Kᵀ / √d)
    softmax(Q Kᵀ / √d) ≈ F̃ Ã⁺ B̃
    Ã⁺:   Z_0 = Aᵀ / (‖A‖₁ ‖A‖∞),     Z ← ¼ Z (13 I - A Z (15 I - A Z (7 I - A Z)))

    code          paper
    landmarks     m         Q̃ and K̃ are the means of as many segments of the text
    iterations    6         of the pseudo-inverse Z; once it is near, each one cubes the error

Time grows with time · landmarks · dim, memory with time · landmarks, and landmarks³ for the
pseudo-inverse. Every segment holds tokens that come later, so that there is no causal form.

More iterations than it takes to converge do harm: where Ã has not full rank, rounding errors of
Z grow 3¼-fold each time.

Each matrix is divided by its own norms: the authors' code divides all of a batch by the largest
one, unless told otherwise, so that one text changes another's result.

Differs from the paper: segments may differ in length by one, so that landmarks need not divide
time. Padding is in no mean, and a segment of padding alone is no landmark. Not included: the
convolution of the values that the authors add to the result.
"""

import torch
from torch import Tensor

from ..layers import wide
from .common import check_heads, masked_softmax, refuse_causal


def nystrom_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    landmarks: int = 64,
    iterations: int = 6,
) -> Tensor:
    """Approximate attention, (batch, heads, time, dim_value) in the caller's dtype.

    With as many landmarks as tokens it is full attention, as far as the pseudo-inverse converges.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        causal: must be False.
        mask: (batch, time), not zero where a token is real.
        landmarks: at most time are used.

    Raises:
        ValueError: causal, shapes do not fit together, or landmarks below 1.
    """
    check_heads(query, key, value, mask)
    refuse_causal(causal, "Nyströmformer")
    if landmarks < 1:
        raise ValueError(f"landmarks must be at least 1, not {landmarks}")
    batch, _, time, dim = query.shape
    real = query.new_ones(batch, time, dtype=torch.bool) if mask is None else mask.bool()
    means = _means(real, min(landmarks, time)).to(wide(query).dtype)[:, None]
    q, k, v = wide(query) * dim**-0.5, wide(key), wide(value)
    q_mark, k_mark = means @ q, means @ k  # (batch, heads, landmarks, dim)

    columns, rows = real[:, None, None, :], means.any(dim=-1)
    marks = rows[..., None, :]
    to_marks = masked_softmax(q @ k_mark.mT, marks)
    between = masked_softmax(q_mark @ k_mark.mT, marks & rows[..., None])
    from_marks = masked_softmax(q_mark @ k.mT, columns & rows[..., None])
    out = to_marks @ (pseudo_inverse(between, iterations=iterations) @ (from_marks @ v))
    return out.to(query.dtype)


def pseudo_inverse(matrix: Tensor, *, iterations: int = 6) -> Tensor:
    """Moore-Penrose inverse of each square matrix by matrix products alone: (…, n, n) -> the same.

    Raises:
        ValueError: not square.
    """
    n = matrix.shape[-1]
    if matrix.ndim < 2 or matrix.shape[-2] != n:
        raise ValueError(f"matrix must be square, (…, n, n), not {tuple(matrix.shape)}")
    one = torch.eye(n, dtype=matrix.dtype, device=matrix.device)
    size = matrix.abs()
    norms = size.sum(dim=-2).amax(dim=-1) * size.sum(dim=-1).amax(dim=-1)
    z = matrix.mT / norms.masked_fill(norms == 0, 1)[..., None, None]
    for _ in range(iterations):
        az = matrix @ z
        z = 0.25 * z @ (13 * one - az @ (15 * one - az @ (7 * one - az)))
    return z


def _means(real: Tensor, landmarks: int) -> Tensor:
    # (batch, time) bool -> (batch, landmarks, time): the weights of each mean; zero of no token
    time = real.shape[1]
    segment = torch.arange(time, device=real.device) * landmarks // time
    member = segment == torch.arange(landmarks, device=real.device)[:, None]
    member = member & real[:, None]
    return member / member.sum(dim=-1, keepdim=True).clamp(min=1)
