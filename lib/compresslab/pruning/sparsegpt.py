"""SparseGPT: remove weights one column after another, and let the others make up for each.

Source: Frantar and Alistarh (2023), SparseGPT: Massive Language Models Can be Accurately Pruned in
One-Shot, arXiv:2301.00774, algorithm 1. It rests on optimal brain surgeon (Hassibi and Stork,
1992): for the error ‖WX - ŴX‖² with H = XXᵀ, removing weight p costs w_p² / [H⁻¹]_pp, and the
best change of the others is -w_p / [H⁻¹]_pp · H⁻¹_{:,p}.

    code      paper
    weight    W         (out_features, in_features)
    hessian   H = XXᵀ   (in_features, in_features), summed over the tokens of the calibration text
    inverse   the upper Cholesky factor of H⁻¹: its row j has H⁻¹ of the columns from j on
    damping   λ, a fraction of the mean of H's diagonal
    block     B, columns whose mask is chosen together

Differs from the paper: nothing that changes the result. Not included: pruning block by block with
the inputs of the pruned blocks before (`collect_hessians` sees the dense model, once), quantizing
in the same pass.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..layers import observe_inputs
from .masks import keep_largest, keep_n_of_m


def collect_hessians(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """XXᵀ of the input of every linear layer while `model` reads the batches.

    Args:
        batches: token numbers (windows, time).

    Returns:
        name of a layer -> (in_features, in_features) float32. For wide models this is large, 9.4
        MB for a layer with 1,536 inputs.
    """
    hessians: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        x = x.float()
        if name in hessians:
            hessians[name].addmm_(x.T, x)
        else:
            hessians[name] = x.T @ x

    with observe_inputs(model, see):
        for batch in batches:
            model(input_ids=batch)
    return hessians


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    sparsity: float = 0.5,
    *,
    pattern: tuple[int, int] | None = None,
    block: int = 128,
    damping: float = 0.01,
) -> Tensor:
    """The pruned weight (out_features, in_features), in the dtype of `weight`.

    Args:
        sparsity: fraction removed in every block of columns, over all rows together.
        pattern: (n, m) keeps n of every m neighbours in a row, instead of `sparsity`.
        block: columns for which the mask is chosen at once.
        damping: added to the diagonal, as a fraction of its mean.

    Raises:
        ValueError: the Hessian does not fit the weight, or m does not divide the block.
    """
    rows, columns = weight.shape
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"hessian must have shape ({columns}, {columns}) for a weight of shape "
            f"{tuple(weight.shape)}, not {tuple(hessian.shape)}"
        )
    if pattern is not None and (block % pattern[1] or columns % pattern[1]):
        raise ValueError(f"groups of {pattern[1]} do not divide {columns} columns, {block} a block")
    w = weight.detach().float().clone()
    h = hessian.float().clone()
    dead = h.diagonal() == 0  # an input that is always zero: its weight does not matter
    h.diagonal()[dead] = 1
    w[:, dead] = 0
    h.diagonal().add_(damping * h.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = torch.zeros(rows, end - start)
        mask = None
        for j in range(start, end):
            if pattern is None and j == start:
                costs = (w[:, start:end] / inverse.diagonal()[start:end]).square()
                mask = keep_largest(costs, sparsity)
            elif pattern is not None and (j - start) % pattern[1] == 0:
                m = pattern[1]
                costs = (w[:, j : j + m] / inverse.diagonal()[j : j + m]).square()
                chosen = keep_n_of_m(costs, *pattern)
                mask = chosen if mask is None else torch.cat([mask, chosen], dim=1)
            kept = torch.where(mask[:, j - start], w[:, j], 0)
            error = (w[:, j] - kept) / inverse[j, j]
            w[:, j:end] -= error[:, None] * inverse[j, j:end]
            w[:, j] = kept  # exactly zero, where rounding would leave almost zero
            errors[:, j - start] = error
        w[:, end:] -= errors @ inverse[start:end, end:]
    return w.to(weight.dtype)


def prune_sparsegpt_(model: nn.Module, hessians: dict[str, Tensor], **options) -> None:
    """Prune the linear layers that `hessians` names, in place; options as in `sparsegpt`."""
    with torch.no_grad():
        for name, hessian in hessians.items():
            weight = model.get_submodule(name).weight
            weight.copy_(sparsegpt(weight, hessian, **options))
