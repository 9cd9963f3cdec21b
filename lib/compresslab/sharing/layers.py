"""Cross-layer sharing: one layer of a transformer works at several depths.

Sources: Lan et al. (2019), ALBERT: A Lite BERT, arXiv:1909.11942, section 3.1 (one layer at all
depths) and figure 1 (what it does at each); Dehghani et al. (2018), Universal Transformers,
arXiv:1807.03819 (depth as the steps of a recurrence).

    h_d = layer_d(h_{d-1}; θ_plan[d])        ∂L/∂θ_i = Σ_{d: plan[d] = i} ∂L/∂θ at depth d

    plan of 6 depths         what is at each: the number of a trained layer
    [3, 3, 3, 3, 3, 3]       one layer, as in ALBERT
    [0, 0, 2, 2, 4, 4]       pairs
    [0, 1, 2, 0, 1, 2]       a block of three, twice
    [0, 1, 2, 3, 4, 5]       the model as it was

Each depth keeps its module, so that hooks and the cache of keys and values tell depths apart; only
the parameters are the same. Memory and file shrink, the work does not: every depth still computes.

    share_layers_(bert_layers(model), [0, 0, 2, 2, 4, 4], start="mean", own_norms=True)
    storage.save(model, path)
    share_layers_(bert_layers(other), [0, 0, 2, 2, 4, 4], own_norms=True)
    other.load_state_dict(storage.load(path))

`storage.save` writes a shared tensor once; safetensors' `save_file` and transformers'
`save_pretrained` refuse it. Loaded into a model that does not share, it is there once a depth.
Methods that replace linear layers refuse shared ones, too.

Differs from the papers: they train with sharing from the start; here trained layers begin to share,
which costs much of the quality, with one layer all of it, until they are trained again. A mean is
of units that have nothing in common but their number: layers have no common order of heads or
neurons. Not included: sharing of attention or feed-forward alone (ALBERT's table 4); the signal
that tells the Universal Transformer its step, and its halting.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from ..layers import wide


def share_layers_(
    layers: nn.ModuleList, plan: Sequence[int], *, start: str = "layer", own_norms: bool = False
) -> None:
    """Let the depths with the same number in `plan` have the same parameters.

    Args:
        layers: of a model, all alike: `bert_layers(model)`, or `model.model.layers` of a Llama.
        plan: for each depth, the number of a layer.
        start: what a shared layer starts from: "layer", the trained one with this number, or
            "mean", the mean of those at the depths that now share it.
        own_norms: each depth keeps the norms it has, scale and shift: 4 · width numbers in a BERT.

    Raises:
        ValueError: another `start`, a plan of another length or with a number of no layer, or
            layers with different parameters; the model is then as it was.
    """
    if start not in ("layer", "mean"):
        raise ValueError(f"start must be 'layer' or 'mean', not {start!r}")
    plan = list(plan)
    if len(plan) != len(layers) or not set(plan) <= set(range(len(layers))):
        raise ValueError(
            f"plan must have a number from 0 to {len(layers) - 1} for each of {len(layers)} "
            f"depths, not {plan}"
        )
    trained = [
        {n: p for n, p in layer.named_parameters() if not (own_norms and _is_of_norm(layer, n))}
        for layer in layers
    ]
    shapes = [{name: tuple(p.shape) for name, p in layer.items()} for layer in trained]
    for depth, shape in enumerate(shapes):
        if shape != shapes[0]:
            odd = sorted({name for name, _ in shape.items() ^ shapes[0].items()})
            raise ValueError(f"layers 0 and {depth} must be alike to share, but differ in {odd}")
    for number in set(plan):
        depths = [depth for depth, n in enumerate(plan) if n == number]
        sources = depths if start == "mean" else [number]
        for name, old in trained[number].items():
            mean = torch.stack([wide(trained[i][name].detach()) for i in sources]).mean(0)
            shared = nn.Parameter(mean.to(old.dtype), requires_grad=old.requires_grad)
            for depth in depths:
                owner, _, last = name.rpartition(".")
                setattr(layers[depth].get_submodule(owner), last, shared)


def relative_updates(
    model: nn.Module, layers: nn.ModuleList, batch: Mapping[str, Tensor]
) -> Tensor:
    """‖layer(x) - x‖ / ‖x‖ at each depth, the mean over tokens: float32 or float64 (depths,).

    ALBERT's figure 1 has the numerator. In a BERT, x and layer(x) are behind a norm.

    Args:
        batch: what the model is called with; what its attention_mask (batch, time) leaves out does
            not count.
    """
    mask = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    found = []

    def see(layer: nn.Module, args: tuple, output: Tensor) -> None:
        x, y = wide(args[0][mask]), wide(output[mask])
        found.append(((y - x).norm(dim=-1) / x.norm(dim=-1)).mean())

    handles = [layer.register_forward_hook(see) for layer in layers]
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found)


def _is_of_norm(layer: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a LayerNorm, an RMSNorm or another module called so."""
    return "norm" in type(layer.get_submodule(name.rpartition(".")[0])).__name__.lower()
