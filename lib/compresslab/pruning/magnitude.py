"""Magnitude pruning: a weight matters as much as it is large.

Source: Han et al. (2015), Learning both Weights and Connections, arXiv:1506.02626, section 3. There
a layer's threshold is a quality parameter times the standard deviation of its weights; here the
fraction removed is given and the count is exact.
"""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from ..layers import find_linears
from .masks import apply_masks_, keep_largest, keep_largest_globally


def magnitude_masks(
    model: nn.Module, sparsity: float, *, globally: bool = False
) -> dict[str, Tensor]:
    """Masks that keep the largest weights of every linear layer of `model`.

    Args:
        sparsity: fraction removed, 0 to 1.
        globally: one ranking of all layers together, so that some lose more than others; by
            default each layer loses the same fraction.

    Raises:
        ValueError: sparsity outside [0, 1], or no linear layer.
    """
    scores = {name: layer.weight.detach().abs() for name, layer in find_linears(model).items()}
    if not scores:
        raise ValueError(f"{type(model).__name__} has no linear layer")
    if globally:
        return keep_largest_globally(scores, sparsity)
    return {name: keep_largest(s, sparsity) for name, s in scores.items()}


def sensitivity(
    model: nn.Module,
    sparsities: Sequence[float],
    quality: Callable[[nn.Module], float],
) -> dict[str, list[float]]:
    """How much the quality suffers when one layer alone is pruned by magnitude.

    Args:
        quality: of a model, larger is better; called layers · sparsities times.

    Returns:
        name of a layer -> the quality at each sparsity. `model` is as it was.
    """
    results = {}
    for name, layer in find_linears(model).items():
        kept = layer.weight.detach().clone()
        results[name] = []
        for sparsity in sparsities:
            apply_masks_(model, {name: keep_largest(kept.abs(), sparsity)})
            results[name].append(quality(model))
            layer.weight.data.copy_(kept)
    return results
