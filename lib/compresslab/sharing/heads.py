"""Shared keys and values: several query heads read the same key-value head.

Sources: Shazeer (2019), arXiv:1911.02150 (multi-query attention: one for all); Ainslie et al.
(2023), GQA, arXiv:2305.13245, sections 2.1 and 2.2 (grouped-query attention: one for each group,
made from a trained model by the mean of the group's heads, and then trained on).

    head_i = softmax(Q_i Kᵀ_g(i) / √dim) V_g(i)        g(i) = ⌊i · kv_heads / heads⌋

    code       GQA
    heads      H   query heads
    kv_heads   G   groups; 1 is multi-query attention, H is multi-head attention

A group is of neighbours: heads 0, 1, 2 share the first key-value head of 9 to 3, not heads 0, 3, 6.
Keys may be merged before they are rotated by their position: that is linear, and the same for all.

    share_kv_heads_(model, 1)
    kv_cache_bytes(layers=30, kv_heads=1, head_dim=64, tokens=8192)     in `costs`

The cache shrinks in proportion to kv_heads. GQA leaves encoders as they are: they have no cache.
In a BERT the key and value projections have fewer parameters and less work; all else costs what it
did.

Differs from GQA: nothing is trained here, so most of the quality is lost at first. Not included:
its random start; choosing which heads go well together.
"""

from torch import Tensor, nn

from ..layers import new_linear, wide


def repeat_heads(x: Tensor, heads: int) -> Tensor:
    """Keys or values for every query head: (batch, kv_heads, time, dim) to (batch, heads, time,
    dim), neighbours the same.

    Raises:
        ValueError: `heads` is no multiple of kv_heads.
    """
    if heads % x.shape[1]:
        raise ValueError(f"heads must be a multiple of the {x.shape[1]} of x, not {heads}")
    return x.repeat_interleave(heads // x.shape[1], dim=1)


def merge_heads(weight: Tensor, heads: int, kv_heads: int, *, start: str = "mean") -> Tensor:
    """A key or value projection of fewer heads: (kv_heads · dim, ...) in the dtype of `weight`.

    Args:
        weight: (heads · dim, ...), a weight or a bias.
        start: "mean" of each group, or the "first" of it.

    Raises:
        ValueError: another `start`, or `heads` is no multiple of `kv_heads`.
    """
    if start not in ("mean", "first"):
        raise ValueError(f"start must be 'mean' or 'first', not {start!r}")
    if kv_heads < 1 or heads % kv_heads:
        raise ValueError(
            f"kv_heads must divide the {heads} heads there are, which {kv_heads} doesn't"
        )
    groups = weight.unflatten(0, (kv_heads, heads // kv_heads, -1))
    kept = wide(groups).mean(1) if start == "mean" else groups[:, 0]
    return kept.flatten(0, 1).to(weight.dtype)


class RepeatedHeads(nn.Module):
    """A projection whose heads are each given out several times, side by side.

    Args:
        linear: with kv_heads · dim outputs.
        repeats: heads / kv_heads.
    """

    def __init__(self, linear: nn.Linear, *, dim: int, repeats: int):
        super().__init__()
        self.linear, self.dim, self.repeats = linear, dim, repeats

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., heads · dim)"""
        heads = self.linear(x).unflatten(-1, (-1, self.dim))
        return heads.repeat_interleave(self.repeats, dim=-2).flatten(-2)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, repeats={self.repeats}"


def share_kv_heads_(model: nn.Module, kv_heads: int, *, start: str = "mean") -> None:
    """Leave every attention of a Llama or a BERT this many key-value heads.

    A Llama is then one with another `num_key_value_heads`, which its configuration says. A BERT
    knows no such thing: its projections become `RepeatedHeads`, and a saved state fits a model only
    after the same change.

    Args:
        start: as in `merge_heads`.

    Raises:
        ValueError: no such attention, projections that are no linear layers (any more), or as
            `merge_heads`; the model is then as it was.
    """
    changes = []  # made only after all that can fail
    for attention in model.modules():
        if hasattr(attention, "k_proj") and hasattr(attention, "num_key_value_groups"):
            for name in ("k_proj", "v_proj"):
                linear = _merged(attention, name, attention.head_dim, kv_heads, start)
                changes.append((attention, name, linear))
            groups = attention.config.num_attention_heads // kv_heads
            changes.append((attention, "num_key_value_groups", groups))
            changes.append((attention.config, "num_key_value_heads", kv_heads))
        elif hasattr(attention, "key") and hasattr(attention, "attention_head_size"):
            dim = attention.attention_head_size
            for name in ("key", "value"):
                linear = _merged(attention, name, dim, kv_heads, start)
                repeats = getattr(attention, name).out_features // linear.out_features
                new = RepeatedHeads(linear, dim=dim, repeats=repeats).train(attention.training)
                changes.append((attention, name, new))
    if not changes:
        raise ValueError(f"{type(model).__name__} has no attention of a Llama or a BERT")
    for owner, name, new in changes:
        setattr(owner, name, new)


def _merged(attention: nn.Module, name: str, dim: int, kv_heads: int, start: str) -> nn.Linear:
    """A linear layer with the merged heads of a projection."""
    linear = getattr(attention, name)
    if not isinstance(linear, nn.Linear):
        raise ValueError(f"{name} must be an nn.Linear, not a {type(linear).__name__}")
    heads, parts = linear.out_features // dim, [linear.weight, linear.bias]
    parts = [t if t is None else merge_heads(t, heads, kv_heads, start=start) for t in parts]
    new = new_linear(*parts).train(linear.training)
    return new.requires_grad_(linear.weight.requires_grad)
