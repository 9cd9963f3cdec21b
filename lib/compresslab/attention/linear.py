"""Linear attention: a kernel in place of the softmax, so that the text can be summed up.

Source: Katharopoulos et al. (2020), Transformers are RNNs: Fast Autoregressive Transformers with
Linear Attention, arXiv:2006.16236, equations 4 to 7 and 16 to 20:

    V'_i = Σ_j φ(Q_i)ᵀφ(K_j) V_j / Σ_j φ(Q_i)ᵀφ(K_j)
         = φ(Q_i)ᵀ (Σ_j φ(K_j) V_jᵀ) / φ(Q_i)ᵀ (Σ_j φ(K_j)),     j ≤ i if causal

    code           paper
    feature_map    φ      elu(x) + 1, or any that gives numbers above zero
    state          S, Z   (batch, heads, features, dim_value + 1): Z is its last column, since the
                          sum below the line is the one above it for a value that is always 1

The same numbers in three forms:

    form        how                                  operations                         memory
    parallel    all scores at once                   time² · (features + dim_value)     time²
    recurrent   the state, token by token            time · features · dim_value        a state
    chunked     parallel inside a chunk, the state   time · (features + chunk_size)     a state for
                from chunk to chunk                  · (features + dim_value)           each chunk

Differs from the paper: no ε below the line; a token that sees nothing gets zero. Not included: the
backward pass written by hand, which keeps no states.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import wide
from .common import check_heads


def elu_plus_one(x: Tensor) -> Tensor:
    """elu(x) + 1, above zero everywhere: any shape -> the same."""
    return F.elu(x) + 1


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    feature_map: Callable[[Tensor], Tensor] = elu_plus_one,
    form: str = "chunked",
    chunk_size: int = 64,
) -> Tensor:
    """Attention with the kernel φ(q)ᵀφ(k), (batch, heads, time, dim_value) in the caller's dtype.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        mask: (batch, time), not zero where a token is real.
        feature_map: (…, dim) -> (…, features), not negative.
        form: "parallel", "recurrent" or "chunked"; the result is the same.
        chunk_size: of the chunked form where causal; need not divide time.

    Raises:
        ValueError: shapes do not fit together, an unknown form, or chunk_size below 1.
    """
    check_heads(query, key, value, mask)
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, not {form!r}")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    q, k = feature_map(wide(query)), feature_map(wide(key))
    if mask is not None:
        k = k.masked_fill(~mask.bool()[:, None, :, None], 0)
    return _divide(FORMS[form](q, k, _with_one(wide(value)), causal, chunk_size)).to(query.dtype)


def linear_attention_step(
    state: Tensor | None,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    feature_map: Callable[[Tensor], Tensor] = elu_plus_one,
) -> tuple[Tensor, Tensor]:
    """One token more, at a cost that does not depend on how many came before.

    Args:
        state: (batch, heads, features, dim_value + 1), or None before the first token.
        query, key: (batch, heads, dim).
        value: (batch, heads, dim_value).

    Returns:
        The state after it, in at least float32, and its output (batch, heads, dim_value) in the
        caller's dtype.
    """
    q, k = feature_map(wide(query)), feature_map(wide(key))
    state, out = _step(state, q, k, _with_one(wide(value)))
    return state, _divide(out).to(query.dtype)


def _step(state: Tensor | None, query: Tensor, key: Tensor, value: Tensor):
    write = key[..., :, None] * value[..., None, :]
    state = write if state is None else state + write
    return state, (query[..., None, :] @ state).squeeze(-2)


def _parallel(query, key, value, causal: bool, chunk_size: int) -> Tensor:
    weights = query @ key.transpose(-1, -2)
    return (weights.tril() if causal else weights) @ value


def _recurrent(query, key, value, causal: bool, chunk_size: int) -> Tensor:
    state, outputs = None, []
    for tokens in zip(*(x.unbind(dim=2) for x in (query, key, value)), strict=True):
        state, out = _step(state, *tokens)
        outputs.append(out)
    return torch.stack(outputs, dim=2) if causal else query @ state


def _chunked(query, key, value, causal: bool, chunk_size: int) -> Tensor:
    if not causal:
        return query @ (key.transpose(-1, -2) @ value)
    time = query.shape[2]
    size = min(chunk_size, time)
    q, k, v = (
        F.pad(x, (0, 0, 0, -time % size)).unflatten(2, (-1, size)) for x in (query, key, value)
    )
    writes = k.transpose(-1, -2) @ v  # (batch, heads, chunks, features, dim_value + 1)
    before = F.pad(writes.cumsum(dim=2)[:, :, :-1], (0, 0, 0, 0, 1, 0))  # state as a chunk begins
    out = q @ before + (q @ k.transpose(-1, -2)).tril() @ v
    return out.flatten(2, 3)[:, :, :time]


def _with_one(value: Tensor) -> Tensor:
    return F.pad(value, (0, 1), value=1)


def _divide(sums: Tensor) -> Tensor:
    above, below = sums[..., :-1], sums[..., -1:]
    return above / below.masked_fill(below == 0, 1)


FORMS = {"parallel": _parallel, "recurrent": _recurrent, "chunked": _chunked}
