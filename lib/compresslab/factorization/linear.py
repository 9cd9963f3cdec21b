"""A linear layer as two thin ones: y = left · (right · x) + bias.

    factorize_linears_(encoder, lambda name, weight: truncated_svd(weight, 96))

The product of the factors is never formed: `right` first brings x down to `rank` numbers. Work and
bytes are rank · (out + in) instead of out · in; two small products in place of a large one.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..layers import new_linear, own_linears, replace_
from .svd import Factors


class LowRankLinear(nn.Module):
    """Two linear layers, the second with the bias.

    Args:
        factors: (out_features, rank) and (rank, in_features).
        bias: (out_features,) or None.
    """

    def __init__(self, factors: Factors, bias: Tensor | None = None):
        super().__init__()
        self.right = new_linear(factors.right, None)
        self.left = new_linear(factors.left, bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        return self.left(self.right(x))

    def merged(self) -> nn.Linear:
        """A plain linear layer that computes the same function."""
        return new_linear(self.left.weight @ self.right.weight, self.left.bias)


def factorize_linears_(
    model: nn.Module,
    factorize: Callable[[str, Tensor], Factors | None],
    names: Iterable[str] | None = None,
) -> None:
    """Replace linear layers by low-rank ones, in place.

    Args:
        factorize: from the name and the weight of a layer to its factors; None leaves it alone.
        names: of the layers; all linear layers if left out.

    Raises:
        ValueError: `names` has what is no linear layer, or one whose weight others share.
    """
    with torch.no_grad():
        for name, linear in own_linears(model, names).items():
            factors = factorize(name, linear.weight)
            if factors is not None:
                new = LowRankLinear(factors, linear.bias)
                replace_(model, name, new.train(linear.training))
