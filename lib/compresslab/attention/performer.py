"""Performer: random features whose product is, on average, the exponential in the softmax.

Source: Choromanski et al. (2020), Rethinking Attention with Performers, arXiv:2009.14794, section 2
(FAVOR+), lemma 1:

    φ(x) = e^(-‖x‖²/2) / √m · (e^(w_1 · x), …, e^(w_m · x)),     w_i ~ N(0, I)
    E φ(q)ᵀφ(k) = e^(q · k),     q and k already divided by d^(1/4)

    code          paper
    features      m
    projection    w   (features, dim), or (heads, features, dim)
    log_features  log φ

All features are positive, so that no sum below the line is near zero by chance, as with sines and
cosines. The directions w are orthogonal within groups of dim, each still normal on its own: the
estimate stays unbiased, and varies less. Attention is a quotient of two such estimates, which is
not unbiased, but gets close as features are added; sharp attention needs many.

The exponent is shifted so that none overflows: for a query by the largest of its own features, for
keys by the largest of all tokens, since a shift that differs from key to key would change their
weights. Both cancel in the quotient. The rest is linear attention with these features: time grows
with time · features · (dim + dim_value), memory with time · features.

Differs from the paper: the projection is an argument, drawn when the caller draws it (the paper
draws anew now and then while training). The shift includes ‖x‖²/2, and no ε is added to features,
which would bias them and, where causal, let the shift tell of later keys. Not included: other
kernels (ReLU), sines and cosines.
"""

import math

import torch
from torch import Tensor

from ..layers import wide
from .common import check_heads
from .linear import linear_attention


def draw_projection(
    features: int,
    dim: int,
    *,
    orthogonal: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Directions (features, dim) float32, each of them standard normal.

    Args:
        orthogonal: within groups of dim, the last of which may be smaller.

    Raises:
        ValueError: features or dim below 1.
    """
    if features < 1 or dim < 1:
        raise ValueError(f"features and dim must be at least 1, not {features} and {dim}")
    normal = torch.randn(features, dim, generator=generator)
    if not orthogonal:
        return normal
    groups = -(-features // dim)
    q, r = torch.linalg.qr(torch.randn(groups, dim, dim, generator=generator))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]  # else not all rotations are alike
    lengths = normal.norm(dim=-1, keepdim=True)
    return q.flatten(0, 1)[:features] * lengths


def log_features(x: Tensor, projection: Tensor) -> Tensor:
    """log φ(x): (batch, heads, time, dim) -> (batch, heads, time, features), in at least float32.

    Args:
        projection: (features, dim), or (heads, features, dim).

    Raises:
        ValueError: projection has another shape.
    """
    shape, heads, dim = projection.shape, x.shape[1], x.shape[-1]
    if len(shape) < 2 or shape[-1] != dim or shape[:-2] not in ((), (heads,)):
        raise ValueError(
            f"projection must be (features, {dim}) or ({heads} heads, features, {dim}), "
            f"not {tuple(shape)}"
        )
    x = wide(x)
    half_square = x.square().sum(dim=-1, keepdim=True) / 2
    return x @ projection.to(x.dtype).mT - half_square - math.log(shape[-2]) / 2


def shifted_exponentials(
    log_q: Tensor, log_k: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Features from their logarithms, (batch, heads, time, features) each, so that none overflows:
    shifted for a query by its largest, for keys by the largest of all. Padding's keys are zero.
    """
    if mask is not None:
        log_k = log_k.masked_fill(~mask.bool()[:, None, :, None], torch.finfo(log_k.dtype).min)
    log_q = log_q - log_q.detach().amax(dim=-1, keepdim=True)
    log_k = log_k - log_k.detach().amax(dim=(-2, -1), keepdim=True)
    return log_q.exp(), log_k.exp()


def performer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    projection: Tensor,
    chunk_size: int = 64,
) -> Tensor:
    """Approximate softmax attention, (batch, heads, time, dim_value) in the caller's dtype.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        mask: (batch, time), not zero where a token is real.
        projection: (features, dim), or (heads, features, dim).
        chunk_size: of the causal form; does not change the result.

    Raises:
        ValueError: shapes do not fit together, or chunk_size below 1.
    """
    check_heads(query, key, value, mask)
    scale = query.shape[-1] ** -0.25
    q, k = (log_features(wide(x) * scale, projection) for x in (query, key))
    q, k = shifted_exponentials(q, k, mask)
    out = linear_attention(
        q, k, wide(value), causal=causal, mask=mask, feature_map=_as_is, chunk_size=chunk_size
    )
    return out.to(query.dtype)


def _as_is(features: Tensor) -> Tensor:
    return features
