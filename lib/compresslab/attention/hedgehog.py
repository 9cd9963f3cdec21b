"""Hedgehog: linear attention whose feature map is learned, from the weights that softmax gives.

Source: Zhang et al. (2024), The Hedgehog & the Porcupine: Expressive Linear Attentions with Softmax
Mimicry, arXiv:2402.04347, section 4:

    φ(x) = [e^(W x + b), e^(-W x - b)],     own W and b for queries and for keys of each head

    code                    paper
    weight, bias            W (transposed), b    (2, heads, dim, dim), (2, heads, 1, dim); 2 is
                                                 queries and keys
    LearnedMap.weights      what a loss compares with softmax(Q Kᵀ / √dim): their cross-entropy

W begins as the identity, b as 0. The rest is linear attention with 2 · dim features.

Differs from the paper: exponents are shifted so that none overflows, for a query by the largest of
its own, for keys by the largest of all tokens, as in Performer; both cancel in the quotient. Not
included: the loss, and the tuning that follows; see the recipe attention_converted.
"""

import torch
from torch import Tensor, nn

from .common import check_heads
from .linear import linear_attention
from .performer import shifted_exponentials


class LearnedMap(nn.Module):
    """A feature map for each head, and linear attention with it."""

    def __init__(self, heads: int, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(dim).repeat(2, heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(2, heads, 1, dim))

    def features(
        self, query: Tensor, key: Tensor, mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Of queries and keys (batch, heads, time, dim) -> (batch, heads, time, 2 · dim) each.

        Args:
            mask: (batch, time), not zero where a token is real; the others' keys are zero.
        """
        scale = query.shape[-1] ** -0.25
        q, k = (
            x * scale @ weight + bias
            for x, weight, bias in zip((query, key), self.weight, self.bias, strict=True)
        )
        q, k = (torch.cat([x, -x], dim=-1) for x in (q, k))
        return shifted_exponentials(q, k, mask)

    def weights(self, query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
        """Of each token on each other, (batch, heads, time, time): rows add up to 1."""
        q, k = self.features(query, key, mask)
        products = q @ k.mT
        return products / products.sum(dim=-1, keepdim=True)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        causal: bool = False,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Linear attention, (batch, heads, time, dim_value).

        Args:
            query, key: (batch, heads, time, dim).
            value: (batch, heads, time, dim_value).
            mask: (batch, time), not zero where a token is real.

        Raises:
            ValueError: shapes do not fit together.
        """
        check_heads(query, key, value, mask)
        q, k = self.features(query, key, mask)
        return linear_attention(q, k, value, causal=causal, mask=mask, feature_map=nn.Identity())
