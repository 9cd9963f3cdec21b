"""Linformer: keys and values of the whole text are mixed into a few.

Source: Wang et al. (2020), Linformer: Self-Attention with Linear Complexity, arXiv:2006.04768,
section 4, equation 7:

    head = softmax(Q (E K)ᵀ / √d) (F V)

    code                          paper
    key_mix, value_mix            E, F   (rank, time), learned
    rank                          k      rows that are left of all keys
    time                          n      tokens, at most

The matrix of attention has little rank, so that a few mixtures of tokens should do in place of all.
Time grows with time · rank · dim, memory with time · rank. E and F belong to positions: a text must
not be longer than they are, and every mixture holds tokens that come later, so that there is no
causal form.

Differs from the paper: E and F are random to begin with so that mixed keys are as large as keys,
with variance 1 / time; its proof has 1 / rank. One E and one F for all heads. Not included: sharing
among layers, a rank for each layer, mixing by mean or convolution.
"""

import torch
from torch import Tensor, nn

from ..layers import wide
from .common import attend, check_heads, refuse_causal


def linformer_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    key_mix: Tensor,
    value_mix: Tensor,
) -> Tensor:
    """Attention to mixtures, (batch, heads, time, dim_value) in the caller's dtype.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        causal: must be False.
        mask: (batch, time), not zero where a token is real; padding is in no mixture.
        key_mix, value_mix: (rank, at least time); a shorter text has the first columns.

    Raises:
        ValueError: causal, shapes do not fit together, or the text is too long.
    """
    check_heads(query, key, value, mask)
    refuse_causal(causal, "Linformer")
    time = query.shape[2]
    if key_mix.ndim != 2 or key_mix.shape != value_mix.shape or key_mix.shape[1] < time:
        raise ValueError(
            f"key_mix and value_mix must be (rank, time), time at least {time}, "
            f"not {tuple(key_mix.shape)} and {tuple(value_mix.shape)}"
        )
    key, value = wide(key), wide(value)
    if mask is not None:
        padded = ~mask.bool()[:, None, :, None]
        key, value = key.masked_fill(padded, 0), value.masked_fill(padded, 0)
    key = key_mix[:, :time].to(key.dtype) @ key  # (batch, heads, rank, dim)
    value = value_mix[:, :time].to(value.dtype) @ value
    return attend(query, key, value)


class Linformer(nn.Module):
    """The same with E and F as parameters, for texts of up to `time` tokens.

    Args:
        shared: values are mixed as keys are, by one matrix (the paper's key-value sharing).

    Raises:
        ValueError: rank is not 1 to time.
    """

    def __init__(
        self,
        time: int,
        rank: int,
        *,
        shared: bool = False,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if not 1 <= rank <= time:
            raise ValueError(f"rank must be 1 to {time}, the number of tokens, not {rank}")
        self.key_mix = _random_mix(rank, time, generator)
        self.value_mix = self.key_mix if shared else _random_mix(rank, time, generator)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """See `linformer_attention`."""
        mixes = {"key_mix": self.key_mix, "value_mix": self.value_mix}
        return linformer_attention(query, key, value, causal=causal, mask=mask, **mixes)


def _random_mix(rank: int, time: int, generator: torch.Generator | None) -> nn.Parameter:
    return nn.Parameter(torch.randn(rank, time, generator=generator) / time**0.5)
