"""Retention (RetNet): linear attention whose state fades at a rate fixed for each head.

Source: Sun et al. (2023), Retentive Network: A Successor to Transformer for Large Language Models,
arXiv:2307.08621, section 2, equations 5 (parallel), 6 (recurrent) and 7 (chunkwise):

    S_n = γ S_{n-1} + k_nᵀ v_n,     o_n = q_n S_n                  recurrent
    O = (Q Kᵀ ⊙ D) V,     D_nm = γⁿ⁻ᵐ for n ≥ m, 0 above           parallel

    code                 paper
    query, key, value    Q, K, V    (batch, heads, time, dim); value may have another dim
    decay                γ          (heads,), 0 to 1; `retention_decay`: 1 - 2^(-5 - head)
    state                S, R       (batch, heads, dim, dim_value)
    chunk_size           B

A head with γ = 1 - 2⁻⁵ halves in 22 tokens, one with 1 - 2⁻¹² in 2,839: heads look at several
scales at once.

Differs from the paper: no normalisation in the core. The paper divides Q Kᵀ by √dim, D by the root
of its row sums, and the scores of a token by the absolute value of their sum, or by 1 if that is
less: each time a token's output in a head is divided by a positive number. Then it normalises every
head (`head_norm`), which undoes them all, so that they only keep numbers small. Not included: the
rotation of queries and keys (xPos), which is the caller's; the projections and the swish gate.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import wide
from .common import check_heads
from .recurrence import all_wide, check_shape, initial, over_chunks, over_tokens


def retention_decay(heads: int) -> Tensor:
    """γ of every head, (heads,) float32: 31/32, 63/64, 127/128, …

    Raises:
        ValueError: heads is not 1 to 20; float32 cannot tell a later one's γ from 1.
    """
    if not 1 <= heads <= 20:
        raise ValueError(f"heads must be 1 to 20, not {heads}")
    return 1 - 2.0 ** (-5 - torch.arange(heads))


def parallel_retention(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All tokens at once, in time · time scores: time and memory grow with the square.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        decay: (heads,), 0 to 1.
        state: after the tokens before these.

    Returns:
        state (batch, heads, dim, dim_value) in at least float32, and outputs like `value`.

    Raises:
        ValueError: shapes do not fit together, no token, or a decay outside 0 to 1.
    """
    return _all_at_once(_check(query, key, value, decay, state), query, key, value, decay)


def chunked_retention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    *,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The same chunk by chunk: time grows with time · (chunk_size + dim), memory with chunk_size².

    Arguments, results and errors as of `parallel_retention`; and chunk_size is at least 1.
    """
    state = _check(query, key, value, decay, state)
    form = partial(_all_at_once, decay=decay)
    return over_chunks(form, state, query, key, value, dim=2, chunk_size=chunk_size)


def recurrent_retention(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same token by token. Arguments, results and errors as of `parallel_retention`."""
    state = _check(query, key, value, decay, state)
    return over_tokens(partial(retention_step, decay=decay), state, query, key, value, dim=2)


def retention_step(
    state: Tensor | None, query: Tensor, key: Tensor, value: Tensor, decay: Tensor
) -> tuple[Tensor, Tensor]:
    """One token, at a cost that does not depend on how many came before.

    Args:
        state: (batch, heads, dim, dim_value), or None before the first token.
        query, key: (batch, heads, dim).
        value: (batch, heads, dim_value).
        decay: (heads,), 0 to 1.

    Returns:
        The state after it, and its output like `value`.

    Raises:
        ValueError: state has another shape.
    """
    v, q, k, decay = all_wide(value, query, key, decay)
    state = initial(state, (*k.shape, v.shape[-1]), like=v)
    state = decay[:, None, None] * state + k[..., :, None] * v[..., None, :]
    return state, (q[..., None, :] @ state).squeeze(-2).to(value.dtype)


def head_norm(x: Tensor, *, eps: float = 1e-6) -> Tensor:
    """What the paper does with the outputs of each head: mean 0 and variance 1 over the last axis.

    (…, dim) -> (…, dim), in the caller's dtype; eps is added to the variance.
    """
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def _all_at_once(state: Tensor, query: Tensor, key: Tensor, value: Tensor, decay: Tensor):
    v, q, k, decay = all_wide(value, query, key, decay)
    time = torch.arange(q.shape[2], device=q.device)
    powers = decay[:, None] ** torch.arange(len(time) + 1, device=q.device)  # 0⁰ is 1
    between = powers[:, (time[:, None] - time).clamp(min=0)].tril()  # D: (heads, time, time)
    since = powers[:, 1:, None]  # from the state to each token: (heads, time, 1)
    output = (q @ k.transpose(-1, -2) * between) @ v + since * (q @ state)
    faded = k * between[:, -1, :, None]  # what is left of each token at the end
    state = since[:, -1:] * state + faded.transpose(-1, -2) @ v
    return state, output.to(value.dtype)


def _check(query, key, value, decay, state) -> Tensor:
    check_heads(query, key, value)
    check_shape("decay", decay, key.shape[1:2])
    if (decay < 0).any() or (decay > 1).any():
        raise ValueError(f"decay must be 0 to 1, not {decay.tolist()}")
    shape = (*key.shape[:2], key.shape[3], value.shape[3])
    return initial(state, shape, like=wide(value))
