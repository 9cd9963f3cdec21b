"""Quantization-aware training: round in the forward pass, and let the gradient pass as if not.

Sources: the straight-through estimator, Bengio et al. (2013), Estimating or Propagating Gradients
Through Stochastic Neurons for Conditional Computation, arXiv:1308.3432; the learned step size
(LSQ), Esser et al. (2020), Learned Step Size Quantization, arXiv:1902.08153, equations 1 to 3:

    straight through    ∂ round(x) / ∂x = 1
    LSQ                 v̂ = s · round(clip(v / s, -Q_N, Q_P))
                        ∂v̂/∂s = round(v / s) - v / s inside, -Q_N or Q_P where v is clipped
                        ∂v̂/∂v = 1 inside, 0 where v is clipped

    code       paper
    x          v     a weight
    step       s     starts at 2 · mean |v| / √Q_P; its gradient is multiplied by 1 / √(N · Q_P)
    bits       b     Q_N = 2ᵇ⁻¹, Q_P = 2ᵇ⁻¹ - 1: at 2 bits the grid is -2s, -s, 0, s

A quantizer is a module that sees the float weight, which goes on training, and gives the rounded
one. Here are `MinMax`, whose range follows the weight, and `LSQ`; `ternary` has a third.

    add_quantizers_(model.bert.encoder, lambda weight: LSQ(weight, bits=2))
    train(..., own_rates={"step": 1e-4})
    finish_(model.bert.encoder)       bytes in place of the float weights

Differs from the papers: a step for each row, not for each layer, so that N is the weights of a row;
with Adam the factor 1 / √(N · Q_P) only tells how much the steps weigh in the clipped norm. A step
may become negative, which mirrors the grid. Not included: quantized activations.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..layers import find_linears, own_linears, replace_
from .affine import (
    Granularity,
    Quantized,
    affine_parameters,
    code_range,
    min_max,
    quantize_tensor,
    to_groups,
)
from .linear import PackedLinear


def round_ste(x: Tensor) -> Tensor:
    """`x` rounded, halves to even, with the gradient of `x` itself."""
    return x.detach().round() + (x - x.detach())


def fake_quantize_ste(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, bits: int, symmetric: bool = False
) -> Tensor:
    """`x` rounded to its grid; the gradient passes, but for what lies outside the range: there it
    is zero. Arguments as in `affine.quantize`.
    """
    q_min, q_max = code_range(bits, symmetric=symmetric)
    codes = (round_ste(x / scale) + zero_point).clamp(q_min, q_max)
    return (codes - zero_point) * scale


def step_range(bits: int) -> tuple[int, int]:
    """Q_N and Q_P of LSQ: how many steps the grid has below zero, and above.

    Raises:
        ValueError: `bits` is not 2 to 8.
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must be 2 to 8, not {bits}")
    return 2 ** (bits - 1), 2 ** (bits - 1) - 1


def initial_step(groups: Tensor, *, bits: int) -> Tensor:
    """The steps (groups, 1) from which LSQ starts; 1 for a group of zeros."""
    step = 2 * groups.abs().mean(1, keepdim=True) / math.sqrt(step_range(bits)[1])
    return torch.where(step > 0, step, 1)


def lsq(x: Tensor, step: Tensor, *, bits: int) -> Tensor:
    """`x` (groups, size) rounded to multiples of `step` (groups, 1), with the gradients of LSQ.

    What lies exactly on the last step counts as inside.
    """
    below, above = step_range(bits)
    factor = 1 / math.sqrt(x.shape[1] * above)
    step = step.detach() + factor * (step - step.detach())
    return round_ste((x / step).clamp(-below, above)) * step


class MinMax(nn.Module):
    """The quantizer whose range is that of the weight as it is now: clipped is only what a rounded
    zero point pushes out."""

    def __init__(self, *, bits: int, granularity: Granularity = "channel"):
        super().__init__()
        self.bits, self.granularity = bits, granularity

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, through which the gradient passes straight."""
        groups = to_groups(weight, self.granularity)
        scale, zero_point = affine_parameters(
            *min_max(groups.detach(), bits=self.bits, symmetric=False), bits=self.bits
        )
        return fake_quantize_ste(groups, scale, zero_point, bits=self.bits).view_as(weight)

    def quantized(self, weight: Tensor) -> Quantized:
        """The same as codes."""
        return quantize_tensor(weight, bits=self.bits, granularity=self.granularity)


class LSQ(nn.Module):
    """The quantizer whose steps train along with the weight.

    Args:
        weight: that the steps start from.

    Raises:
        ValueError: `bits` is not 2 to 8.
    """

    def __init__(self, weight: Tensor, *, bits: int, granularity: Granularity = "channel"):
        super().__init__()
        self.bits, self.granularity = bits, granularity
        self.step = nn.Parameter(initial_step(to_groups(weight.detach(), granularity), bits=bits))

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, with gradients for the weight and the steps."""
        groups = to_groups(weight, self.granularity)
        return lsq(groups, self.step, bits=self.bits).view_as(weight)

    def quantized(self, weight: Tensor) -> Quantized:
        """The same as codes, from 0 on: the zero point is Q_N."""
        below, above = step_range(self.bits)
        step, groups = self.step.detach(), to_groups(weight.detach(), self.granularity)
        codes = (groups / step).clamp(-below, above).round() + below
        zero_point = torch.full_like(step, below, dtype=torch.int32)
        return Quantized(codes.byte().view(weight.shape), step, zero_point, self.bits)


def add_quantizers_(model: nn.Module, make: Callable[[Tensor], nn.Module]) -> None:
    """Let every linear layer compute with its weight rounded; the float weight goes on training.

    Args:
        make: from a weight (out_features, in_features), its quantizer.

    Raises:
        ValueError: no linear layer, or one that has a quantizer already or shares its weight.
    """
    linears = own_linears(model)
    if not linears or any(parametrize.is_parametrized(linear) for linear in linears.values()):
        raise ValueError(f"{type(model).__name__} has no linear layer, or one with a quantizer")
    for linear in linears.values():
        parametrize.register_parametrization(linear, "weight", make(linear.weight))


def finish_(
    model: nn.Module, make: Callable[[Quantized, Tensor | None], nn.Module] = PackedLinear
) -> None:
    """Put a layer of few bits, which computes the same, in place of all that have a quantizer.

    Args:
        make: from the codes of a weight and the bias, the layer.

    Raises:
        ValueError: no layer has a quantizer.
    """
    linears = {n: m for n, m in find_linears(model).items() if parametrize.is_parametrized(m)}
    if not linears:
        raise ValueError(f"{type(model).__name__} has no quantizer; add_quantizers_ makes them")
    for name, linear in linears.items():
        weight = linear.parametrizations.weight
        replace_(model, name, make(weight[0].quantized(weight.original), linear.bias))
