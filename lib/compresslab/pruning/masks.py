"""What every pruning method shares: scores -> mask -> zeros.

    scores  a number for each weight, larger is more important: one module a method
    mask    True where a weight is kept: keep_largest and its variants
    apply   set the others to zero, and keep them there: apply_masks_, hold_masks

Counts are exact: of n weights at sparsity s, round(s · n) are removed, halves to even. Of two equal
scores, the one that comes first is kept. A threshold would remove all that tie with it.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


def keep_largest(scores: Tensor, sparsity: float) -> Tensor:
    """Mask of the largest scores of a tensor.

    Args:
        scores: any shape, finite or infinite, no NaN.
        sparsity: fraction removed, 0 to 1.

    Returns:
        bool, the shape of `scores`; exactly round(sparsity · n) entries are False.

    Raises:
        ValueError: sparsity outside [0, 1], or a score is not a number.
    """
    _check(scores, sparsity)
    flat = scores.flatten()
    remove = round(sparsity * flat.numel())
    if remove == 0:
        return torch.ones_like(scores, dtype=torch.bool)
    # In linear time, since movement pruning does this at every step: no sorting.
    last = flat.kthvalue(remove).values  # the largest that goes
    mask = flat > last
    tied = (flat == last).nonzero()[: flat.numel() - remove - int(mask.sum())]
    mask[tied] = True
    return mask.view(scores.shape)


def keep_largest_globally(scores: Mapping[str, Tensor], sparsity: float) -> dict[str, Tensor]:
    """Masks of the largest scores of several tensors taken together.

    Raises:
        ValueError: as `keep_largest`, or no tensors.
    """
    if not scores:
        raise ValueError("scores is empty")
    together = keep_largest(torch.cat([s.flatten() for s in scores.values()]), sparsity)
    parts = together.split([s.numel() for s in scores.values()])
    return {name: part.view(s.shape) for (name, s), part in zip(scores.items(), parts, strict=True)}


def keep_largest_in_rows(scores: Tensor, sparsity: float) -> Tensor:
    """Mask of the largest scores of each row (rows, columns); every row loses the same number,
    int(sparsity · columns), as in Wanda's reference code.

    Raises:
        ValueError: as `keep_largest`, or not a matrix.
    """
    _check(scores, sparsity)
    if scores.ndim != 2:
        raise ValueError(f"scores must be a matrix, not of shape {tuple(scores.shape)}")
    remove = int(sparsity * scores.shape[1])
    order = scores.argsort(dim=1, descending=True, stable=True)
    mask = torch.ones_like(scores, dtype=torch.bool)
    return mask.scatter_(1, order[:, scores.shape[1] - remove :], False)


def keep_n_of_m(scores: Tensor, n: int, m: int) -> Tensor:
    """Mask of the n largest scores in every group of m neighbours along the last dimension.

    Source: Mishra et al. (2021), arXiv:2104.08378, where n = 2 and m = 4: the pattern that
    sparse tensor cores run, groups along in_features of a weight (out_features, in_features).

    Raises:
        ValueError: not 0 <= n <= m, the last dimension is no multiple of m, or a score is NaN.
    """
    _check(scores, 0.0)
    if not 0 <= n <= m or m < 1:
        raise ValueError(f"n of m needs 0 <= n <= m, not {n} of {m}")
    if scores.shape[-1] % m:
        raise ValueError(f"the last dimension of {tuple(scores.shape)} is no multiple of {m}")
    groups = scores.reshape(-1, m)
    order = groups.argsort(dim=1, descending=True, stable=True)
    mask = torch.zeros_like(groups, dtype=torch.bool).scatter_(1, order[:, :n], True)
    return mask.view(scores.shape)


def apply_masks_(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the weights that `masks` does not keep to zero.

    Args:
        masks: dotted name of a layer -> bool mask of the shape of its `weight`.

    Raises:
        ValueError: a mask's shape is not that of the weight.
    """
    with torch.no_grad():
        for name, mask in masks.items():
            weight = model.get_submodule(name).weight
            if weight.shape != mask.shape:
                raise ValueError(
                    f"the mask of {name} has shape {tuple(mask.shape)}, "
                    f"its weight {tuple(weight.shape)}"
                )
            weight.masked_fill_(~mask, 0)


def hold_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> Callable[[int, int], None]:
    """An `after_step` for `training.train` that keeps pruned weights at zero while tuning."""

    def after_step(step: int, total: int) -> None:
        apply_masks_(model, masks)

    return after_step


def sparsity_of(masks: Mapping[str, Tensor]) -> float:
    """The fraction that the masks remove together."""
    total = sum(mask.numel() for mask in masks.values())
    return 1 - sum(int(mask.sum()) for mask in masks.values()) / total


def _check(scores: Tensor, sparsity: float) -> None:
    if not 0 <= sparsity <= 1:
        raise ValueError(f"sparsity must be between 0 and 1, not {sparsity}")
    if scores.isnan().any():
        raise ValueError(f"scores of shape {tuple(scores.shape)} have a NaN")
