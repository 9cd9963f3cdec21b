"""The delta rule: what a key has stored is corrected, not added to; with a gate, all of it fades.

Sources: Schlag et al. (2021), Linear Transformers Are Secretly Fast Weight Programmers,
arXiv:2102.11174, section 4.2; Yang et al. (2024), Parallelizing Linear Transformers with the Delta
Rule over Sequence Length, arXiv:2406.06484, section 3 (the form in chunks); Yang et al. (2024),
Gated Delta Networks: Improving Mamba2 with Delta Rule, arXiv:2412.06464, section 3 (the gate):

    S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,     o_t = S_tᵀ q_t

that is, the value read for k_t moves to v_t by the fraction β_t, and nothing else changes but for
the gate: one step of gradient descent on ½ ‖Sᵀ k_t - v_t‖². All writes of a chunk are found
together. With a_ij the product of α from j + 1 to i, and S_0 the state before the chunk,

    u_i = β_i (v_i - a_i0 S_0ᵀ k_i - Σ_{j<i} a_ij (k_iᵀ k_j) u_j)     a triangular system for u
    S_t = a_t0 S_0 + Σ_{j≤t} a_tj k_j u_jᵀ

    code                 papers
    query, key, value    q, k, v    (batch, heads, time, dim); value may have another dim
    beta                 β          (batch, heads, time), 0 to 1; up to 2 the state stays bounded
    log_decay            log α      (batch, heads, time), 0 or below; None is α = 1, without gate
    state                S          (batch, heads, dim, dim_value), the transpose of theirs
    writes               u          (batch, heads, chunk, dim_value)
    between, since       a_ij, a_i0

Keys are always divided by their length: a longer one would overshoot, and with ‖k‖² above 2/β the
state would grow without bound. A key of zeros stays one and writes nothing.

Differs from the papers: Schlag et al. make features of keys and queries that add up to 1; Yang et
al. divide both by their length. Here queries are taken as they come. Theirs solves the systems of
all chunks first, for values and keys, and then subtracts what the state holds; here it is part of
the right side, one chunk after the other. The sum of log α from j + 1 to i is added up, not taken
as a difference of two sums, so that α = 0 does no harm. Not included: the short convolutions,
projections and output norm of a DeltaNet layer.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import wide
from .common import check_heads
from .recurrence import (
    all_wide,
    check_rate,
    check_shape,
    initial,
    over_chunks,
    over_tokens,
)


def chunked_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    *,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """All tokens, chunk by chunk: time · (chunk_size + dim) products of dim numbers, and memory for
    chunk_size² scores. With chunk_size = time it is the parallel form.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        beta: (batch, heads, time), how far each token's value replaces the one that was stored.
        log_decay: (batch, heads, time), 0 or below, -inf forgets all; None for no gate.
        state: after the tokens before these.

    Returns:
        state (batch, heads, dim, dim_value) in at least float32, and outputs like `value`.

    Raises:
        ValueError: shapes do not fit, no token, a log_decay above 0, or chunk_size below 1.
    """
    log_decay, state = _check(query, key, value, beta, log_decay, state)
    tensors = (query, key, value, beta, log_decay)
    return over_chunks(_all_at_once, state, *tensors, dim=2, chunk_size=chunk_size)


def recurrent_delta(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    *,
    log_decay: Tensor | None = None,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same token by token. Arguments, results and errors as of `chunked_delta`."""
    log_decay, state = _check(query, key, value, beta, log_decay, state)
    return over_tokens(delta_step, state, query, key, value, beta, log_decay, dim=2)


def delta_step(
    state: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    beta: Tensor,
    log_decay: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """One token, at a cost that does not depend on how many came before.

    Args:
        state: (batch, heads, dim, dim_value), or None before the first token.
        query, key: (batch, heads, dim).
        value: (batch, heads, dim_value).
        beta, log_decay: (batch, heads).

    Returns:
        The state after it, and its output like `value`.

    Raises:
        ValueError: state has another shape.
    """
    v, q, k, beta = all_wide(value, query, key, beta)
    k = F.normalize(k, dim=-1)
    state = initial(state, (*k.shape, v.shape[-1]), like=v)
    if log_decay is not None:
        state = log_decay.to(v.dtype).exp()[..., None, None] * state
    write = beta[..., None] * (v - _read(state, k))
    state = state + k[..., :, None] * write[..., None, :]
    return state, _read(state, q).to(value.dtype)


def _read(state: Tensor, key: Tensor) -> Tensor:
    """(…, dim, dim_value), (…, dim) -> (…, dim_value)"""
    return (key[..., None, :] @ state).squeeze(-2)


def _all_at_once(state, query, key, value, beta, log_decay) -> tuple[Tensor, Tensor]:
    v, q, k, beta, log_decay = all_wide(value, query, key, beta, log_decay)
    k, beta = F.normalize(k, dim=-1), beta[..., None]
    between = _decays(log_decay)
    since = log_decay.cumsum(-1).exp()[..., None]
    system = beta * between * (k @ k.transpose(-1, -2))  # below the diagonal; there it counts as 1
    right = beta * (v - since * (k @ state))
    writes = torch.linalg.solve_triangular(system, right, upper=False, unitriangular=True)
    output = since * (q @ state) + (between * (q @ k.transpose(-1, -2))) @ writes
    faded = k * between[..., -1, :, None]  # what is left of each write at the end
    state = since[..., -1:, :] * state + faded.transpose(-1, -2) @ writes
    return state, output.to(value.dtype)


def _decays(log_decay: Tensor) -> Tensor:
    """(…, time) -> (…, time, time): from the second token to the first, 0 where it comes later."""
    time = log_decay.shape[-1]
    steps = log_decay[..., :, None].expand(*log_decay.shape, time).tril(-1)
    return steps.cumsum(-2).exp().tril()


def _check(query, key, value, beta, log_decay, state) -> tuple[Tensor, Tensor]:
    check_heads(query, key, value)
    check_shape("beta", beta, key.shape[:3])
    log_decay = torch.zeros_like(beta) if log_decay is None else log_decay
    check_shape("log_decay", log_decay, key.shape[:3])
    check_rate("log_decay", log_decay)
    shape = (*key.shape[:2], key.shape[3], value.shape[3])
    return log_decay, initial(state, shape, like=wide(value))
