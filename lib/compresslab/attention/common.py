"""What the forms of attention share: one layout, one meaning of a mask, one softmax.

    method(query, key, value, *, causal=False, mask=None, …) -> (batch, heads, time, dim_value)

    query, key   (batch, heads, time, dim)
    value        (batch, heads, time, dim_value)
    causal       a token attends to itself and to what came before it
    mask         (batch, time), not zero where a token is real; padding is attended to by none

A padded token's own row is computed like any other and means nothing. A row with nothing to attend
to, such as that of a text which is all padding, is zero, and so is its gradient. Sums are at least
float32, the result has the caller's dtype. Grouped-query attention is the caller's: repeat the keys
and values. Dropout is not included.
"""

import torch
from torch import Tensor

from ..layers import wide


def check_heads(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> None:
    """Refuse queries, keys, values and a mask that do not belong together.

    Raises:
        ValueError: a shape other than those above, or no token.
    """
    fits = query.ndim == 4 and query.shape == key.shape and query.shape[:-1] == value.shape[:-1]
    if not fits or not query.shape[2]:
        raise ValueError(
            "query and key must be (batch, heads, time, dim) and value (batch, heads, time, "
            "dim_value), time at least 1, not "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(value.shape)}"
        )
    expected = (query.shape[0], query.shape[2])
    if mask is not None and mask.shape != expected:
        raise ValueError(f"mask must have shape {expected}, (batch, time), not {tuple(mask.shape)}")


def refuse_causal(causal: bool, method: str) -> None:
    """For methods that mix the tokens of the whole text before they attend.

    Raises:
        ValueError: causal.
    """
    if causal:
        raise ValueError(f"causal must be False: {method} mixes each token with later ones")


def allowed_pairs(query: Tensor, *, causal: bool, mask: Tensor | None) -> Tensor | None:
    """Which token may attend to which, bool, of a shape that can be expanded to (batch, heads,
    time, time), queries before keys; None if all may. time² bits where causal.
    """
    allowed = None if mask is None else mask.bool()[:, None, None, :]
    if causal:
        time = query.shape[-2]
        past = torch.ones(time, time, dtype=torch.bool, device=query.device).tril()
        allowed = past if allowed is None else past & allowed
    return allowed


def masked_softmax(scores: Tensor, allowed: Tensor | None) -> Tensor:
    """Softmax over the last axis among what is allowed, zero elsewhere.

    Args:
        scores: any shape.
        allowed: bool, that can be expanded to that shape; None for everything.
    """
    if allowed is None:
        return scores.softmax(dim=-1)
    # The smallest number, not -∞: the softmax of nothing else would be no number.
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).masked_fill(~allowed, 0)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    allowed: Tensor | None = None,
    *,
    scale: float | None = None,
) -> Tensor:
    """softmax(Q Kᵀ · scale) V, as many queries and as many keys as there are.

    Args:
        query, key, value: (…, queries, dim), (…, keys, dim) and (…, keys, dim_value).
        allowed: bool, that can be expanded to (…, queries, keys); None for everything.
        scale: 1 / √dim if left out.

    Returns:
        (…, queries, dim_value) in the dtype of query.
    """
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = (wide(query) * scale) @ wide(key).transpose(-1, -2)
    return (masked_softmax(scores, allowed) @ wide(value)).to(query.dtype)
