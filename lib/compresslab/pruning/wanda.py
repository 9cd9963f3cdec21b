"""Wanda: a weight matters as much as it is large, times how large its input is.

Source: Sun et al. (2023), A Simple and Effective Pruning Approach for Large Language Models,
arXiv:2306.11695, equation 1:

    S_ij = |W_ij| · ‖X_j‖₂

    code    paper
    weight  W     (out_features, in_features)
    norms   ‖X_j‖ (in_features,), over all tokens of the calibration text

Scores are compared within a row, so every output loses the same number of weights. No weight that
stays is changed. Not included: pruning block by block with the inputs of the pruned blocks before;
`collect_norms` sees the inputs of the dense model, once.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from ..layers import collect_inputs, find_linears
from .masks import keep_largest_in_rows, keep_n_of_m


def collect_norms(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """‖X_j‖₂ of the input of every linear layer while `model` reads the batches.

    Args:
        batches: token numbers (windows, time).

    Returns:
        name of a layer -> (in_features,) float32.
    """
    squares = collect_inputs(model, batches, lambda x: x.square().sum(0))
    return {name: total.sqrt() for name, total in squares.items()}


def wanda_scores(weight: Tensor, norms: Tensor) -> Tensor:
    """Scores (out_features, in_features) of a weight, float32.

    Raises:
        ValueError: the norms do not fit the weight.
    """
    if norms.shape != weight.shape[1:]:
        raise ValueError(
            f"norms must have shape {tuple(weight.shape[1:])} for a weight of shape "
            f"{tuple(weight.shape)}, not {tuple(norms.shape)}"
        )
    return weight.detach().abs().float() * norms.float()


def wanda_masks(
    model: nn.Module,
    norms: dict[str, Tensor],
    sparsity: float = 0.5,
    *,
    pattern: tuple[int, int] | None = None,
) -> dict[str, Tensor]:
    """Masks of the linear layers that `norms` names.

    Args:
        sparsity: fraction removed from each row.
        pattern: (n, m) keeps n of every m neighbours in a row, instead of `sparsity`.
    """
    linears = find_linears(model)
    scores = {name: wanda_scores(linears[name].weight, norms[name]) for name in norms}
    if pattern is not None:
        return {name: keep_n_of_m(s, *pattern) for name, s in scores.items()}
    return {name: keep_largest_in_rows(s, sparsity) for name, s in scores.items()}
