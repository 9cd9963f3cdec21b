"""SmoothQuant: make the inputs easier to round, and the weights a little harder.

Source: Xiao et al. (2022), SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models, arXiv:2211.10438, equations 3 and 4:

    Y = (X diag(s)⁻¹) · (diag(s) W)        s_j = max|X_j|^α / max|W_j|^(1-α)

    code    paper
    absmax  max|X_j|   (in_features,), over all tokens of the calibration text
    weight  Wᵀ         (out_features, in_features), of all that read this input, one below the other
    alpha   α          how much of the difficulty goes to the weights: 0 none of it, 1 all
    scale   s          (in_features,)

The division costs nothing where a module before it ends in one factor a feature, which takes it up:
a norm, or a linear layer with nothing nonlinear in between. In a Llama these are the two norms of
a block, `up_proj` before `down_proj`, and `v_proj` before `o_proj`, if every head has its own keys.
In a BERT it is `value` before the attention's output, and no norm: a norm there feeds the residual
connection, too, which must not change. So all other layers of a BERT divide their input when they
run (`ScaledInput`). Where the input comes from a residual addition the paper scales that branch,
which is the same work.

As in the paper, only inputs that come from a norm are smoothed, unless asked otherwise. At α = 0.5
the largest value of a feature becomes √(max|X_j| · max|W_j|). Elsewhere there are outliers whose
weights stand out even more than their inputs, and these stand out more than before.

Differs from the paper: an input that is always zero, or that no weight reads, keeps the scale 1.
Not included: norms that multiply by 1 + weight (Gemma), and rounding itself.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layers import replace_

# Of each kind of block, in order: whether the input comes from a norm, the module that can be
# divided in its place (None: there is none), and who reads it.
BLOCKS = (
    (
        (True, "input_layernorm", ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")),
        (False, "self_attn.v_proj", ("self_attn.o_proj",)),
        (True, "post_attention_layernorm", ("mlp.gate_proj", "mlp.up_proj")),
        (False, "mlp.up_proj", ("mlp.down_proj",)),
    ),
    (
        (True, None, ("attention.self.query", "attention.self.key", "attention.self.value")),
        (False, "attention.self.value", ("attention.output.dense",)),
        (True, None, ("intermediate.dense",)),
        (False, None, ("output.dense",)),
    ),
)


@dataclass(frozen=True)
class Input:
    """Linear layers that read the same input, whether it comes from a norm, and the module that
    can be divided in its place."""

    from_norm: bool
    source: str | None
    readers: tuple[str, ...]


def find_inputs(model: nn.Module) -> list[Input]:
    """The inputs of the linear layers in the blocks of a Llama or a BERT, in the model's order.

    Raises:
        ValueError: `model` has no such block.
    """
    modules, inputs = dict(model.named_modules()), []
    for block in modules:
        for kind in BLOCKS:
            if all(f"{block}.{name}" in modules for *_, readers in kind for name in readers):
                inputs += [_input(modules, block, *part) for part in kind]
    if not inputs:
        raise ValueError(f"{type(model).__name__} has no blocks of a Llama or a BERT")
    return inputs


def _input(
    modules: dict[str, nn.Module],
    block: str,
    from_norm: bool,
    source: str | None,
    readers: tuple[str, ...],
) -> Input:
    readers = tuple(f"{block}.{name}" for name in readers)
    source = source and f"{block}.{source}"
    # Several query heads that share a key head read the same values, under different weights.
    if source and len(modules[source].weight) != modules[readers[0]].in_features:
        source = None
    return Input(from_norm, source, readers)


def smoothing_scale(absmax: Tensor, weight: Tensor, *, alpha: float = 0.5) -> Tensor:
    """By what to divide each input feature, (in_features,) in the dtype of `weight`.

    Raises:
        ValueError: `absmax` does not fit the weight.
    """
    if absmax.shape != weight.shape[1:]:
        raise ValueError(
            f"absmax must have shape {tuple(weight.shape[1:])} for a weight of shape "
            f"{tuple(weight.shape)}, not {tuple(absmax.shape)}"
        )
    absmax, largest = absmax.to(weight.dtype), weight.detach().abs().amax(0)
    scale = absmax**alpha / largest ** (1 - alpha)
    return torch.where((absmax > 0) & (largest > 0), scale, 1)


class ScaledInput(nn.Module):
    """A linear layer whose input is divided first; x (…, in_features)."""

    def __init__(self, linear: nn.Linear, scale: Tensor):
        super().__init__()
        self.linear = linear
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x / self.scale)


def divide_output_(module: nn.Module, scale: Tensor) -> None:
    """Divide what a norm or a linear layer puts out, feature by feature, in place."""
    with torch.no_grad():
        module.weight.div_(scale if module.weight.ndim == 1 else scale[:, None])
        if getattr(module, "bias", None) is not None:
            module.bias.div_(scale)


def smooth_(
    model: nn.Module,
    absmax: dict[str, Tensor],
    *,
    alpha: float = 0.5,
    everywhere: bool = False,
) -> None:
    """Smooth the inputs of linear layers in the blocks of a Llama or a BERT, in place.

    The model computes the same as before. A layer that now divides its input is called
    `NAME.linear`.

    Args:
        absmax: as `outliers.collect_absmax` gives it.
        everywhere: all inputs, not those from a norm alone.
    """
    modules = dict(model.named_modules())  # as they are before any is wrapped
    with torch.no_grad():
        for each in find_inputs(model):
            if not (each.from_norm or everywhere):
                continue
            linears = [modules[name] for name in each.readers]
            weight = torch.cat([linear.weight for linear in linears])
            scale = smoothing_scale(absmax[each.readers[0]], weight, alpha=alpha)
            for name, linear in zip(each.readers, linears, strict=True):
                linear.weight.mul_(scale)
                if each.source is None:
                    replace_(model, name, ScaledInput(linear, scale))
            if each.source is not None:
                divide_output_(modules[each.source], scale)
