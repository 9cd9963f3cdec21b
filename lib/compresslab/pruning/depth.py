"""Depth: leave out whole layers of a transformer.

Source: Fan, Grave and Joulin (2019), Reducing Transformer Depth on Demand with Structured Dropout,
arXiv:1909.11556 (every other layer goes: those with d ≡ 0 mod ⌊1/p⌋); Sajjad et al. (2020), On the
Effect of Dropping Layers of Pre-trained Transformer Models, arXiv:2004.03844 (which to drop, if the
model was not trained for it; top layers come out best for most tasks).

    code    Fan     Sajjad
    total   N       L      layers before, numbered from 0 at the input; the papers count from 1
    drop    p · N   K      layers to drop

Each strategy is named after what it drops, and gives the numbers of the layers that stay:

    of 6, drop 2       stays
    drop_top           0 1 2 3
    drop_alternate     0 1 2 4     every other one, from the top down
    drop_middle        0 1 4 5     "symmetric" in Sajjad et al.
    drop_bottom        2 3 4 5

Differs from the papers: nothing is trained here, neither before (LayerDrop) nor after (Sajjad et
al. tune the smaller model, which is where its quality comes from). Not included: alternate dropping
that starts below the top layer, choosing layers by what they contribute.

    small = keep_layers(model, drop_top(6, 2))
"""

import copy
from collections.abc import Sequence

from torch import nn


def drop_top(total: int, drop: int) -> list[int]:
    """Without the layers next to the output. Raises ValueError unless 0 <= drop < total."""
    _check(total, drop)
    return list(range(total - drop))


def drop_bottom(total: int, drop: int) -> list[int]:
    """Without the layers next to the input. Raises ValueError unless 0 <= drop < total."""
    _check(total, drop)
    return list(range(drop, total))


def drop_middle(total: int, drop: int) -> list[int]:
    """Without those in the middle; if top and bottom cannot keep the same number, the bottom keeps
    one more. Raises ValueError unless 0 <= drop < total.
    """
    _check(total, drop)
    low = (total - drop + 1) // 2
    return [*range(low), *range(low + drop, total)]


def drop_alternate(total: int, drop: int) -> list[int]:
    """Without every other layer from the top down: total - 1, total - 3, and so on.

    Raises:
        ValueError: not 0 <= drop < total, or more than every other layer.
    """
    _check(total, drop)
    if drop > (total + 1) // 2:
        raise ValueError(f"drop must be at most {(total + 1) // 2} of {total} layers, not {drop}")
    gone = range(total - 1, total - 1 - 2 * drop, -2)
    return [i for i in range(total) if i not in gone]


def keep_layers(model: nn.Module, layers: Sequence[int]) -> nn.Module:
    """A copy of `model` that has only these layers; arguments and errors as for `keep_layers_`."""
    smaller = copy.deepcopy(model)
    keep_layers_(smaller, layers)
    return smaller


def keep_layers_(model: nn.Module, layers: Sequence[int]) -> None:
    """Take all layers but these out of a BERT or a Llama, and number the rest anew, from 0.

    The configuration gets the new number of layers, so the saved state fits a model that is made
    from it.

    Args:
        layers: numbers of the layers that stay, ascending.

    Raises:
        ValueError: a model without such layers, or `layers` empty, not ascending, or out of range.
    """
    blocks = _blocks(model)
    layers = list(layers)
    if not layers or layers != sorted(set(layers) & set(range(len(blocks)))):
        raise ValueError(
            f"layers must be ascending numbers from 0 to {len(blocks) - 1}, at least one, "
            f"not {layers}"
        )
    for i in reversed(range(len(blocks))):
        if i not in layers:
            del blocks[i]
    for i, block in enumerate(blocks):
        for module in block.modules():
            if hasattr(module, "layer_idx"):  # the layer's place in the cache of keys and values
                module.layer_idx = i
    if getattr(model.config, "layer_types", None) is not None:
        model.config.layer_types = [model.config.layer_types[i] for i in layers]
    model.config.num_hidden_layers = len(layers)


def _blocks(model: nn.Module) -> nn.ModuleList:
    base = getattr(model, "base_model", model)
    blocks = getattr(getattr(base, "encoder", None), "layer", getattr(base, "layers", None))
    if not isinstance(blocks, nn.ModuleList):
        raise ValueError(f"{type(model).__name__} has no layers of a BERT or a Llama")
    return blocks


def _check(total: int, drop: int) -> None:
    if not 0 <= drop < total:
        raise ValueError(f"drop must be from 0 to {total - 1} of {total} layers, not {drop}")
