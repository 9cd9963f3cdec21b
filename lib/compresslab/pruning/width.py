"""Width: score the neurons inside each feed-forward layer of a BERT, and rebuild it narrower.

Source: Molchanov et al. (2019), Importance Estimation for Neural Network Pruning,
arXiv:1906.10771, section 3: removing the weights S changes the loss, to first order, by Σ g_s w_s,

    I_S = (Σ_{s∈S} g_s w_s)²

and Molchanov et al. (2016), arXiv:1611.06440, the same for an activation in place of a weight.
With up (neurons, in) and down (out, neurons), neuron n owns row n of up, its bias, and column n of
down: row n of the matrix `group`.

    code      paper
    group     w_s, s ∈ S   (neurons, in + 1 + out), no 1 without a bias
    gradients g_s          the same layout, gradient of the mean loss
    gate      1, multiplies the activation of a neuron; its gradient is Σ g_s w_s over the column

Two forms, which rank differently:

    absolute="each"   Σ |g_s w_s|   (default) what torch-pruning's GroupTaylorImportance adds up
    absolute="sum"    |Σ g_s w_s|   the root of the paper's, so the same ranking for one batch

Differs from the papers: they average a score over batches, so it depends on the batch size. Here
`taylor_scores` has one gradient of all examples together (they may cancel out), and `gate_scores`
the mean of each example's absolute gradient; neither depends on it. torch-pruning by default leaves
the bias out, and divides by the mean score of the layer; its `multivariable` form adds the absolute
sums of up and of down. Not included: second order, gates that stay in the model, removing some
neurons, tuning, and scoring again.

    scores = taylor_scores(model, collect_gradients(model, batches, classification_loss))
    remove_neurons_(model, choose_neurons(scores, 0.5))
"""

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..layers import bert_layers, keep_features_, layer_at, wide
from .masks import keep_largest, keep_largest_globally

Batch = dict[str, Tensor]
Loss = Callable[[nn.Module, Batch], Tensor]


def collect_gradients(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> dict[int, Tensor]:
    """Gradient of the mean loss over all examples, for the weights of every neuron.

    Args:
        model: a BERT in evaluation mode, its weights frozen or not; no `.grad` changes.
        batches: dictionaries of tensors (batch, ...).
        loss: of the model on a batch, the mean over its examples: `classification_loss`.

    Returns:
        number of a layer -> (neurons, in + 1 + out), float32, or float64 for a model in float64.

    Raises:
        ValueError: not a BERT, or no batches.
    """
    pairs = [_pair(layer) for layer in bert_layers(model)]
    owned = [p for up, down in pairs for p in (up.weight, up.bias, down.weight) if p is not None]
    required = [p.requires_grad for p in owned]
    totals, examples = [0.0] * len(owned), 0
    try:
        for p in owned:
            p.requires_grad_(True)
        for batch in batches:
            size = len(next(iter(batch.values())))
            with torch.enable_grad():
                gradients = torch.autograd.grad(size * loss(model, batch), owned)
            totals = [t + wide(g) for t, g in zip(totals, gradients, strict=True)]
            examples += size
    finally:
        for p, r in zip(owned, required, strict=True):
            p.requires_grad_(r)
    if not examples:
        raise ValueError("batches is empty")
    means = iter([total / examples for total in totals])
    return {
        i: _group(next(means), None if up.bias is None else next(means), next(means))
        for i, (up, _) in enumerate(pairs)
    }


def taylor_scores(
    model: nn.Module,
    gradients: Mapping[int, Tensor],
    *,
    absolute: str = "each",
    group: bool = True,
) -> dict[int, Tensor]:
    """First-order importance of every neuron of the layers that `gradients` names.

    Args:
        gradients: from `collect_gradients`.
        absolute: "each" for Σ |g w|, "sum" for |Σ g w|.
        group: over all weights of a neuron; False takes its column of down alone.

    Returns:
        number of a layer -> (neurons,), the dtype of the gradients.

    Raises:
        ValueError: not a BERT, unknown `absolute`, or gradients of another shape.
    """
    if absolute not in ("each", "sum"):
        raise ValueError(f"absolute must be 'each' or 'sum', not {absolute!r}")
    layers, scores = bert_layers(model), {}
    for i, gradient in gradients.items():
        up, down = _pair(layer_at(layers, i))
        weights = _group(up.weight, up.bias, down.weight).detach()
        if gradient.shape != weights.shape:
            raise ValueError(
                f"gradients of layer {i} must have shape {tuple(weights.shape)}, "
                f"not {tuple(gradient.shape)}"
            )
        change = weights * gradient
        change = change if group else change[:, -down.out_features :]
        scores[i] = change.abs().sum(1) if absolute == "each" else change.sum(1).abs()
    return scores


def gate_scores(model: nn.Module, batches: Iterable[Batch], loss: Loss) -> dict[int, Tensor]:
    """Mean over examples of |∂L(x)/∂gate| of every neuron, at the cost of a backward pass.

    As `heads.head_importance` for heads, and `taylor_scores` with absolute="sum", group=False for
    each example by itself. Arguments, result and errors as for `collect_gradients`, but the result
    is (neurons,).
    """
    downs = [_pair(layer)[1] for layer in bert_layers(model)]
    totals, examples = [0.0] * len(downs), 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        gates = [d.weight.new_ones(size, 1, d.in_features, requires_grad=True) for d in downs]
        handles = [
            down.register_forward_pre_hook(lambda module, args, gate=gate: (args[0] * gate,))
            for down, gate in zip(downs, gates, strict=True)
        ]
        try:
            with torch.enable_grad():
                gradients = torch.autograd.grad(size * loss(model, batch), gates)
        finally:
            for handle in handles:
                handle.remove()
        totals = [t + wide(g).abs().sum((0, 1)) for t, g in zip(totals, gradients, strict=True)]
        examples += size
    if not examples:
        raise ValueError("batches is empty")
    return {i: total / examples for i, total in enumerate(totals)}


def magnitude_scores(model: nn.Module) -> dict[int, Tensor]:
    """ℓ2 norm of all weights of every neuron, (neurons,) for each layer.

    Raises:
        ValueError: not a BERT.
    """
    pairs = [_pair(layer) for layer in bert_layers(model)]
    groups = [_group(up.weight, up.bias, down.weight).detach() for up, down in pairs]
    return {i: wide(group).norm(dim=1) for i, group in enumerate(groups)}


def choose_neurons(
    scores: Mapping[int, Tensor], sparsity: float, *, globally: bool = False
) -> dict[int, Tensor]:
    """The neurons to keep, those with the largest scores.

    Args:
        sparsity: fraction removed, 0 to 1; exact counts and ties as in `masks`.
        globally: one ranking of all layers together, where each keeps at least its best neuron;
            by default each layer loses the same fraction.

    Returns:
        number of a layer -> int64, ascending.

    Raises:
        ValueError: sparsity outside [0, 1], or so large that a layer would lose all its neurons.
    """
    scores = {str(i): s.clone() for i, s in scores.items()}
    for s in scores.values():
        s[s.argmax()] += math.inf
    if globally:
        masks = keep_largest_globally(scores, sparsity)
    else:
        masks = {i: keep_largest(s, sparsity) for i, s in scores.items()}
    if not all(mask.any() for mask in masks.values()):
        raise ValueError(f"sparsity {sparsity} leaves a layer without neurons")
    return {int(i): mask.nonzero().flatten() for i, mask in masks.items()}


def remove_neurons_(model: nn.Module, keep: Mapping[int, Tensor]) -> None:
    """Take all neurons but those in `keep` out of the named layers of a BERT: rows of up, columns
    of down. The bias of down stays, so the model computes what it did with their columns at zero.

    Where all layers end up equally wide, the configuration gets that width.

    Args:
        keep: number of a layer -> int64 (kept,), distinct.

    Raises:
        ValueError: not a BERT, no such layer, or an index that is empty, has another dtype, or
            names a neuron twice or one that is not there; the model is then as it was.
    """
    layers = bert_layers(model)
    for i, index in keep.items():
        neurons = _pair(layer_at(layers, i))[0].out_features
        if index.ndim != 1 or index.dtype != torch.int64 or index.numel() == 0:
            raise ValueError(
                f"keep of layer {i} must be int64 of shape (1 or more,), "
                f"not {index.dtype} of shape {tuple(index.shape)}"
            )
        if index.min() < 0 or index.max() >= neurons or index.unique().numel() < index.numel():
            raise ValueError(
                f"keep of layer {i}, of shape {tuple(index.shape)}, must be distinct numbers "
                f"from 0 to {neurons - 1}"
            )
    for i, index in keep.items():
        up, down = _pair(layers[i])
        keep_features_(up, index, dim=0)
        keep_features_(down, index, dim=1)
    widths = {_pair(layer)[0].out_features for layer in layers}
    if len(widths) == 1:
        model.config.intermediate_size = widths.pop()


def _group(up: Tensor, bias: Tensor | None, down: Tensor) -> Tensor:
    """(neurons, in), (neurons,), (out, neurons) -> (neurons, in + 1 + out)"""
    return torch.cat([up, down.T] if bias is None else [up, bias[:, None], down.T], dim=1)


def _pair(layer: nn.Module) -> tuple[nn.Linear, nn.Linear]:
    return layer.intermediate.dense, layer.output.dense
