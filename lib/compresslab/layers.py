"""Find, replace and observe the linear layers of a model: what most methods start from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def find_linears(model: nn.Module) -> dict[str, nn.Linear]:
    """Every `nn.Linear` of `model` by its dotted name, in the order of the model."""
    return {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}


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
