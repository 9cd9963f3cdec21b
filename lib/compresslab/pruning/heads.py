"""Attention heads: score each, and rebuild the layers of a BERT without the least important.

Source: Michel, Levy and Neubig (2019), Are Sixteen Heads Really Better than One?,
arXiv:1905.10650, section 4.1. A gate ξ_h, which is 1, multiplies the output of head h:

    I_h = E_x |∂L(x) / ∂ξ_h|

    code     paper
    gate     ξ_h   (heads,), or (batch, heads) for a gate of its own for each example
    scores   I_h   (heads,) for each layer
    loss     L     the mean over a batch; the score undoes the mean

The absolute value is taken of each example's gradient. That of a batch's gradient lets examples
cancel out, and the score then depends on the batch size. All examples of a batch have gates of
their own, so one backward pass gives all their gradients.

Differs from the paper: normalizing by layer is an option, off by default. From the authors' code
for BERT: it takes the absolute value at each position of the sequence, here the positions of an
example are summed first, as in the equation. Not included: leaving one head of a layer alone,
scoring again between rounds of removal, heads that learn to switch off (Voita et al., 2019).

    scores = head_importance(model, batches, classification_loss, normalize=True)
    remove_heads_(model, choose_heads(scores, 0.25))
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..layers import bert_layers, keep_features_, layer_at
from .masks import keep_largest_globally

Batch = dict[str, Tensor]


def head_importance(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor],
    *,
    normalize: bool = False,
) -> dict[int, Tensor]:
    """I_h of every head of a BERT in evaluation mode, at the cost of a forward and backward pass.

    Args:
        batches: dictionaries of tensors (batch, ...).
        loss: of the model on a batch, the mean over its examples: `classification_loss`.
        normalize: divide by the ℓ2 norm of the layer's scores, so that layers compare; a layer
            whose scores are all zero keeps them.

    Returns:
        number of a layer -> (heads,), float32, or float64 for a model in float64.

    Raises:
        ValueError: not a BERT, or no batches.
    """
    layers = bert_layers(model)
    totals, examples = [0.0] * len(layers), 0
    for batch in batches:
        size = len(next(iter(batch.values())))
        gates = [
            layer.attention.output.dense.weight.new_ones(size, _heads(layer), requires_grad=True)
            for layer in layers
        ]
        with torch.enable_grad(), gate_heads(model, dict(enumerate(gates))):
            gradients = torch.autograd.grad(size * loss(model, batch), gates)
        for i, gradient in enumerate(gradients):
            wide = torch.promote_types(gradient.dtype, torch.float32)
            totals[i] = totals[i] + gradient.abs().sum(0, dtype=wide)
        examples += size
    if not examples:
        raise ValueError("batches is empty")
    scores = {i: total / examples for i, total in enumerate(totals)}
    return (
        {i: nn.functional.normalize(s, dim=0) for i, s in scores.items()} if normalize else scores
    )


def ablate_heads(model: nn.Module, quality: Callable[[nn.Module], float]) -> dict[int, Tensor]:
    """The quality with each head off, all others on: what `head_importance` approximates.

    Args:
        quality: of the model: its accuracy, or its loss; called layers · heads times.

    Returns:
        number of a layer -> (heads,) float64. `model` is as it was.

    Raises:
        ValueError: not a BERT.
    """
    results = {}
    for i, layer in enumerate(bert_layers(model)):
        results[i] = torch.empty(_heads(layer), dtype=torch.float64)
        for head in range(_heads(layer)):
            gate = layer.attention.output.dense.weight.new_ones(_heads(layer))
            gate[head] = 0
            with gate_heads(model, {i: gate}):
                results[i][head] = float(quality(model))
    return results


@contextmanager
def gate_heads(model: nn.Module, gates: Mapping[int, Tensor]) -> Iterator[None]:
    """While the context is open, multiply the output of every head by its gate.

    Args:
        gates: number of a layer -> (heads,), or (batch, heads); other layers stay as they are.

    Raises:
        ValueError: not a BERT, no such layer, or the shape of a gate is another.
    """
    layers = bert_layers(model)
    for i, gate in gates.items():
        heads = _heads(layer_at(layers, i))
        if gate.ndim not in (1, 2) or gate.shape[-1] != heads:
            raise ValueError(
                f"the gate of layer {i} must have shape ({heads},) or (batch, {heads}), "
                f"not {tuple(gate.shape)}"
            )

    def hook(gate: Tensor, dim: int):
        wide = gate.repeat_interleave(dim, -1)  # (..., heads · dim), as the heads lie in x
        wide = wide.unsqueeze(1) if wide.ndim == 2 else wide
        return lambda module, args: (args[0] * wide,)  # x is (batch, time, heads · dim)

    handles = [
        layers[i].attention.output.dense.register_forward_pre_hook(
            hook(gate, layers[i].attention.self.attention_head_size)
        )
        for i, gate in gates.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def choose_heads(scores: Mapping[int, Tensor], sparsity: float) -> dict[int, set[int]]:
    """The heads with the smallest scores of all layers together, round(sparsity · n) of n.

    The best head of each layer stays, whatever its score. Ties as in `masks`.

    Raises:
        ValueError: sparsity outside [0, 1], or so large that a layer would lose all its heads.
    """
    scores = {str(i): s.clone() for i, s in scores.items()}
    for s in scores.values():
        s[s.argmax()] += math.inf
    masks = keep_largest_globally(scores, sparsity)
    if not all(mask.any() for mask in masks.values()):
        raise ValueError(f"sparsity {sparsity} leaves a layer without heads")
    return {int(i): set((~m).nonzero().flatten().tolist()) for i, m in masks.items() if not m.all()}


def remove_heads_(model: nn.Module, heads: Mapping[int, Collection[int]]) -> None:
    """Take heads out of the layers of a BERT: rows of query, key and value, columns of the
    projection after them. What stays is numbered anew, from 0.

    The bias of that projection stays, so the model computes what it did with these gates at zero.
    Layers may then differ in their heads, which the configuration of a BERT cannot say: it keeps
    the old number, and a saved state fits a model only after the same removal.

    Args:
        heads: number of a layer -> heads to remove.

    Raises:
        ValueError: not a BERT, no such layer or head, or no head of a layer would be left; the
            model is then as it was.
    """
    layers, kept = bert_layers(model), {}
    for i, remove in heads.items():
        count = _heads(layer_at(layers, i))
        if not set(remove) <= set(range(count)):
            raise ValueError(f"heads of layer {i} are 0 to {count - 1}, not {sorted(remove)}")
        kept[i] = [head for head in range(count) if head not in remove]
        if not kept[i]:
            raise ValueError(f"heads has all {count} of layer {i}: one must stay")
    for i, stay in kept.items():
        attention, dense = layers[i].attention.self, layers[i].attention.output.dense
        dim = attention.attention_head_size
        index = torch.tensor([h * dim + d for h in stay for d in range(dim)])
        for linear in (attention.query, attention.key, attention.value):
            keep_features_(linear, index, dim=0)
        keep_features_(dense, index, dim=1)
        attention.num_attention_heads = len(stay)
        attention.all_head_size = len(stay) * dim


def _heads(layer: nn.Module) -> int:
    attention = layer.attention.self
    return attention.query.out_features // attention.attention_head_size
