"""Find, replace, observe and shrink the layers of a model: what most methods start from."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def find_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every `nn.Linear` of `model` by its dotted name, in the order of the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


def own_linears(model: nn.Module, names: Iterable[str] | None = None) -> dict[str, nn.Linear]:
    """The linear layers to be replaced, by name; see `own_layers`."""
    return own_layers(model, nn.Linear, names, what="linear layer")


def own_layers(
    model: nn.Module,
    kind: type[nn.Module],
    names: Iterable[str] | None = None,
    *,
    what: str | None = None,
) -> dict[str, nn.Module]:
    """The layers of a kind that are to be replaced, by name.

    Args:
        names: of the layers; all of this kind if left out.
        what: the kind in words, for the message.

    Raises:
        ValueError: `names` has what is of another kind, or one whose weight another layer uses.
    """
    layers = {name: m for name, m in model.named_modules() if isinstance(m, kind)}
    parameters = [p for m in model.modules() for p in m.parameters(recurse=False)]
    chosen = {}
    for name in layers if names is None else names:
        if name not in layers:
            raise ValueError(f"{type(model).__name__} has no {what or kind.__name__} {name!r}")
        chosen[name] = layers[name]
        if sum(p is chosen[name].weight for p in parameters) > 1:
            raise ValueError(f"{name} shares its weight with another layer: leave it out of names")
    return chosen


def replace_(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put `new` where `model` has the submodule called `name` (dotted), in place.

    Raises:
        ValueError: `model` has no such submodule.
    """
    parent, _, child = name.rpartition(".")
    try:
        owner = model.get_submodule(parent)
        owner.get_submodule(child)
    except AttributeError:
        owner = None
    if owner is None or not child:
        raise ValueError(f"{type(model).__name__} has no submodule {name!r}")
    setattr(owner, child, new)


def wide(x: Tensor) -> Tensor:
    """In float32, or in float64 if it is: what sums and decompositions are computed in."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def new_linear(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear layer with copies of `weight` (out_features, in_features) and `bias`."""
    out_features, in_features = weight.shape
    linear = nn.utils.skip_init(  # draws no random numbers
        nn.Linear,
        in_features,
        out_features,
        bias=bias is not None,
        device=weight.device,
        dtype=weight.dtype,
    )
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear


def collect_inputs(
    model: nn.Module,
    batches: Iterable[Tensor],
    measure: Callable[[Tensor], Tensor],
    combine: Callable[[Tensor, Tensor], Tensor] = torch.add,
) -> dict[str, Tensor]:
    """What `measure` finds in the input of every linear layer, joined over batches by `combine`.

    Args:
        batches: token numbers (windows, time).
        measure: of x (tokens, in_features) float32.

    Returns:
        name of a layer -> what was measured.
    """
    found: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        new = measure(x.float())
        found[name] = combine(found[name], new) if name in found else new

    with observe_inputs(model, see):
        for batch in batches:
            model(input_ids=batch)
    return found


@contextmanager
def observe_inputs(model: nn.Module, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    """While the context is open, call `see(name, x)` with the input of every linear layer.

    `x` is detached and flattened to (tokens, in_features); nothing is stored here.
    """

    def hook(name: str):
        def observe(module, args):  # gives back None: anything else would replace the input
            see(name, args[0].detach().reshape(-1, module.in_features))

        return observe

    handles = [m.register_forward_pre_hook(hook(n)) for n, m in find_linears(model).items()]
    try:
        with torch.no_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()


def check_fits(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, what: str) -> None:
    """Refuse a `state`, called `what` in the message, that has not the names and shapes expected.

    Raises:
        ValueError: a name or a shape differs.
    """
    if state.keys() != expected.keys():
        odd = sorted(state.keys() ^ expected.keys())
        raise ValueError(f"the {what} does not fit the model: {len(odd)} names differ, as {odd[0]}")
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)} in the {what} and "
                f"{tuple(expected[name].shape)} in the model"
            )


def bert_layers(model: nn.Module) -> nn.ModuleList:
    """The encoder layers of a BERT, with or without a head.

    Raises:
        ValueError: `model` is none.
    """
    try:
        return model.base_model.encoder.layer
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no layers of a BERT") from None


def layer_at(layers: nn.ModuleList, i: int) -> nn.Module:
    """Layer `i`, counted from 0. Raises ValueError if there is none."""
    if not 0 <= i < len(layers):
        raise ValueError(f"layers are 0 to {len(layers) - 1}, not {i}")
    return layers[i]


def keep_features_(linear: nn.Linear, index: Tensor, *, dim: int) -> None:
    """Make a linear layer smaller: keep some outputs (dim 0, with their bias) or inputs (dim 1)."""
    names = ("weight", "bias") if dim == 0 and linear.bias is not None else ("weight",)
    for name in names:
        old = getattr(linear, name)
        new = old.detach().index_select(dim, index.to(old.device))
        setattr(linear, name, nn.Parameter(new, requires_grad=old.requires_grad))
    linear.out_features, linear.in_features = linear.weight.shape
