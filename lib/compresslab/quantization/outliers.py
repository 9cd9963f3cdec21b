"""Outliers: a few input features are far larger than all others, and take the steps of the grid.

Source: Dettmers et al. (2022), LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale,
arXiv:2208.07339, section 4.1. There a feature (a column of the hidden states) is an outlier if

    |x| ≥ 6 for a token, in at least 25 % of the layers, and in at least 6 % of all tokens

    code       paper
    threshold  α = 6.0
    x          X_l    (tokens, in_features), what linear layers read
    shares     fraction of the tokens for which |x| ≥ α, a number a feature

The paper looks at the inputs of the attention projections and of the first feed-forward layer. The
share of tokens is taken here over all pairs of token and layer. What SmoothQuant and AWQ ask of the
same inputs is collected here, too. All collectors read batches without padding: a padding token
would count like any other.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import collect_inputs


def collect_absmax(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The largest |x| of each input feature of every linear layer.

    Args:
        batches: token numbers (windows, time).

    Returns:
        name of a layer -> (in_features,) float32.
    """
    return collect_inputs(model, batches, lambda x: x.abs().amax(0), torch.maximum)


def collect_means(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """The mean |x| of each input feature over all tokens; arguments as in `collect_absmax`."""
    return _means(model, batches, lambda x: x)


def collect_shares(
    model: nn.Module, batches: Iterable[Tensor], *, threshold: float = 6.0
) -> dict[str, Tensor]:
    """The fraction of all tokens for which |x| of a feature reaches the threshold."""
    return _means(model, batches, lambda x: x >= threshold)


def _means(model: nn.Module, batches: Iterable[Tensor], measure: Callable) -> dict[str, Tensor]:
    """Means over tokens of `measure(|x|)`, summed in float64: there may be many tokens."""

    def total(x: Tensor) -> Tensor:
        rows = x.new_full((1,), len(x), dtype=torch.float64)
        return torch.cat([measure(x.abs()).sum(0, dtype=torch.float64), rows])

    sums = collect_inputs(model, batches, total)
    return {name: (s[:-1] / s[-1]).float() for name, s in sums.items()}


@dataclass(frozen=True)
class Outlier:
    """A feature, and the fraction of layers and of tokens (in all layers) that it affects."""

    feature: int
    layers: float
    tokens: float


def find_outliers(
    shares: dict[str, Tensor], *, layers: float = 0.25, tokens: float = 0.06
) -> list[Outlier]:
    """The outlier features, the one in most tokens first.

    Args:
        shares: as `collect_shares` gives them, for layers that read the same features: one input
            of each block, or both.
        layers, tokens: smallest fraction of them that an outlier affects; 0 lists every feature
            that reaches the threshold once.

    Raises:
        ValueError: the layers have not the same number of features.
    """
    widths = {s.numel() for s in shares.values()}
    if len(widths) != 1:
        raise ValueError(f"shares must be of layers of one width, not {sorted(widths)}")
    table = torch.stack(list(shares.values()))
    in_layers, in_tokens = (table > 0).float().mean(0), table.mean(0)
    found = (in_layers > 0) & (in_layers >= layers) & (in_tokens >= tokens)
    return [
        Outlier(i, in_layers[i].item(), in_tokens[i].item())
        for i in in_tokens.argsort(descending=True, stable=True).tolist()
        if found[i]
    ]
