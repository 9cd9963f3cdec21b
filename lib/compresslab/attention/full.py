"""Full attention: every token looks at every token. The reference for all other forms.

Source: Vaswani et al. (2017), Attention Is All You Need, arXiv:1706.03762, section 3.2.1,
equation 1:

    Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V

    code                 paper
    query, key, value    Q, K, V
    scale                1 / √d_k
    pattern              the mask; which pairs of tokens are computed at all

The naive form, which holds all scores at once: time grows with time² · dim, memory with time².
A sparse method is this one with a pattern, and saves only where the pairs left out are not
computed: see the modules named after the methods. Not included: the projections, dropout.
"""

from torch import Tensor

from .common import allowed_pairs, attend, check_heads


def full_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    pattern: Tensor | None = None,
) -> Tensor:
    """Softmax attention, (batch, heads, time, dim_value) in the caller's dtype.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        mask: (batch, time), not zero where a token is real.
        scale: of the scores; 1 / √dim if left out.
        pattern: bool, (time, time) or (heads, time, time), True where a row's token may attend to a
            column's; what causal and mask forbid stays forbidden.

    Raises:
        ValueError: shapes do not fit together.
    """
    check_heads(query, key, value, mask)
    allowed = allowed_pairs(query, causal=causal, mask=mask)
    if pattern is not None:
        heads, time = query.shape[1:3]
        if pattern.shape not in ((time, time), (heads, time, time)):
            raise ValueError(
                f"pattern must have shape {(time, time)} or {(heads, time, time)}, "
                f"not {tuple(pattern.shape)}"
            )
        allowed = pattern if allowed is None else pattern & allowed
    return attend(query, key, value, allowed, scale=scale)
