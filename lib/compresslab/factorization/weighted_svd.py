"""Low rank where the error matters: decompose the weight in other units, and go back.

Every method of this module has one form. Inputs (or outputs) are measured in units in which an
error of one counts the same for all of them, the weight is cut to a rank there, where the singular
value decomposition is the best there is, and the units are undone in the factor:

    W S = U Σ Vᵀ,     Ŵ = U_r Σ_r V_rᵀ S⁻¹,     ‖(W - Ŵ) S‖² = Σ_{i>r} σ_i²

    method               S, (in_features, in_features)
    fisher_weighted_svd  diag(√ Σ_o F_oi)
    asvd                 diag(mean |x_i|^α)
    whitened_svd         L, the Cholesky factor: L Lᵀ = X Xᵀ

Sources: Hsu et al. (2022), Language model compression with weighted low-rank factorization,
arXiv:2207.00112; Yuan et al. (2023), ASVD, arXiv:2312.05821; Wang et al. (2024), SVD-LLM,
arXiv:2403.07378.

    code     papers
    weight   W     (out_features, in_features)
    fisher   Î_W   (out_features, in_features), mean square of each weight's gradient
    means    mean absolute value of every input feature, (in_features,)
    hessian  X Xᵀ  (in_features, in_features), summed over tokens
    alpha    α     0.5 in the paper

Only whitening has the error of the outputs on its left side: ‖(W - Ŵ) L‖² = ‖(W - Ŵ) X‖². No matrix
of this rank has a smaller one on these inputs.

Differs from the papers. Hsu et al. write y = x W + b, so that their rows, over which Fisher
information is added, are columns here. SVD-LLM's Cholesky factor fails where inputs span less than
all directions; here the diagonal is damped by a fraction of its mean, as in GPTQ. Not included:
ASVD's search of ranks, SVD-LLM's update of one factor after the other.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from ..layers import own_linears, wide
from .svd import Factors, balanced, check_rank

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


def fisher_weighted_svd(weight: Tensor, fisher: Tensor, rank: int) -> Factors:
    """Cut `weight` to a rank where inputs count by the Fisher information of their weights.

    Args:
        weight: (out_features, in_features).
        fisher: of the same shape, see `collect_fisher`. An input without any counts a little.

    Raises:
        ValueError: another shape, or a rank outside [1, min(out_features, in_features)].
    """
    if fisher.shape != weight.shape:
        raise ValueError(
            f"fisher must have the shape of weight, {tuple(weight.shape)}, "
            f"not {tuple(fisher.shape)}"
        )
    return scaled_svd(weight, wide(fisher.detach()).sum(0).sqrt(), rank)


def asvd(weight: Tensor, means: Tensor, rank: int, *, alpha: float = 0.5) -> Factors:
    """Cut `weight` to a rank where inputs count by their mean absolute value.

    Args:
        weight: (out_features, in_features).
        means: (in_features,), see `quantization.outliers.collect_means`.
        alpha: 0 is `truncated_svd`.

    Raises:
        ValueError: another shape, or a rank outside [1, min(out_features, in_features)].
    """
    return scaled_svd(weight, wide(means.detach()) ** alpha, rank)


def scaled_svd(weight: Tensor, scale: Tensor, rank: int) -> Factors:
    """The best factors by the sum of squares of (W - Ŵ) · diag(scale).

    Args:
        scale: (in_features,), not negative. Zeros are raised to a thousandth of the mean: what
            counts for nothing would not be determined.

    Raises:
        ValueError: another shape, or a rank outside [1, min(out_features, in_features)].
    """
    check_rank(weight, rank)
    if scale.shape != weight.shape[1:]:
        raise ValueError(
            f"there must be a scale for each of {weight.shape[1]} inputs, not {tuple(scale.shape)}"
        )
    scale = wide(scale.detach())
    scale = scale.clamp(min=1e-3 * scale.mean()) if scale.any() else torch.ones_like(scale)
    u, s, vh = torch.linalg.svd(wide(weight.detach()) * scale, full_matrices=False)
    return balanced(u[:, :rank], s[:rank], vh[:rank] / scale, like=weight)


def whitened_svd(weight: Tensor, hessian: Tensor, rank: int, *, damping: float = 0.01) -> Factors:
    """The factors whose outputs are nearest to those of `weight`, on the inputs behind `hessian`.

    Args:
        weight: (out_features, in_features).
        hessian: X Xᵀ, (in_features, in_features), see `pruning.sparsegpt.collect_hessians`.
        damping: added to its diagonal, as a fraction of the mean.

    Raises:
        ValueError: another shape, or a rank outside [1, min(out_features, in_features)].
    """
    check_rank(weight, rank)
    u, s, vh, root = _whiten(weight, hessian, damping)
    right = torch.linalg.solve_triangular(root, vh[:rank], upper=False, left=False)
    return balanced(u[:, :rank], s[:rank], right, like=weight)


def whitened_singular_values(weight: Tensor, hessian: Tensor, *, damping: float = 0.01) -> Tensor:
    """σ of W L: what each rank adds to the outputs. (min(out_features, in_features),)"""
    return _whiten(weight, hessian, damping)[1]


def _whiten(weight: Tensor, hessian: Tensor, damping: float) -> tuple[Tensor, ...]:
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"hessian must have shape ({columns}, {columns}) for a weight of shape "
            f"{tuple(weight.shape)}, not {tuple(hessian.shape)}"
        )
    w, h = wide(weight.detach()), wide(hessian.detach())
    dtype = torch.promote_types(w.dtype, h.dtype)
    w, h = w.to(dtype), h.to(dtype, copy=True)
    mean = h.diagonal().mean()
    h.diagonal().add_(damping * mean if mean > 0 else 1)
    root = torch.linalg.cholesky(h)
    return *torch.linalg.svd(w @ root, full_matrices=False), root


def collect_fisher(
    model: nn.Module, batches: Iterable[Batch], loss: Loss, names: Iterable[str] | None = None
) -> dict[str, Tensor]:
    """The mean over examples of the squared gradient of every weight of the linear layers.

    The gradient of a batch's mean loss would not do: gradients of its examples cancel in it. So
    there is one backward pass for each example.

    Args:
        model: in evaluation mode, its weights frozen or not; no `.grad` changes.
        batches: dictionaries of tensors (batch, ...).
        loss: of the model on one example: `classification_loss`.
        names: of the layers; all linear layers if left out.

    Returns:
        name of a layer -> (out_features, in_features), float32, or float64 for a model in float64.

    Raises:
        ValueError: no batches, or a name that is no linear layer's.
    """
    weights = {name: linear.weight for name, linear in own_linears(model, names).items()}
    required = [w.requires_grad for w in weights.values()]
    totals, examples = [torch.zeros_like(wide(w.detach())) for w in weights.values()], 0
    try:
        for w in weights.values():
            w.requires_grad_(True)
        for batch in batches:
            for i in range(len(next(iter(batch.values())))):
                example = {name: tensor[i : i + 1] for name, tensor in batch.items()}
                with torch.enable_grad():
                    gradients = torch.autograd.grad(loss(model, example), list(weights.values()))
                for total, gradient in zip(totals, gradients, strict=True):
                    total += wide(gradient.detach()).square()
                examples += 1
    finally:
        for w, r in zip(weights.values(), required, strict=True):
            w.requires_grad_(r)
    if not examples:
        raise ValueError("batches is empty")
    return {name: total / examples for name, total in zip(weights, totals, strict=True)}
