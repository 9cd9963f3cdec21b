"""Affine quantization: a real number becomes a small integer, by a scale and a zero point.

Source: Jacob et al. (2017), Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, arXiv:1712.05877, section 2.1; Nagel et al. (2021), A White Paper
on Neural Network Quantization, arXiv:2106.08295, section 2.2:

    q = clamp(round(x / s) + z, q_min, q_max)        x̂ = s · (q - z)

    code        paper
    scale       s   the width of a step, > 0
    zero_point  z   the code that stands for 0, so that 0 is exact
    bits        b

    asymmetric  q from 0 to 2ᵇ - 1; the range [low, high] always includes 0
    symmetric   q from -(2ᵇ⁻¹ - 1) to 2ᵇ⁻¹ - 1, z = 0: 7 steps on each side at 4 bits, and the code
                -8 is left out, so that the grid has no more room on one side than on the other

Numbers that share a scale are a group: a tensor, a channel (a row), or `group_size` neighbours of a
row. All three are rows of a (groups, size) view, on which everything here works.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Granularity = str | int
# From (groups, size) and what the codes will be, the ends of each group's range, (groups, 1) each.
ChooseRange = Callable[..., tuple[Tensor, Tensor]]


def code_range(bits: int, *, symmetric: bool = False) -> tuple[int, int]:
    """The smallest and the largest code.

    Raises:
        ValueError: `bits` is not 1 to 8, or 1 and symmetric, which leaves the code 0 alone.
    """
    if not 1 + symmetric <= bits <= 8:
        raise ValueError(f"bits must be {1 + symmetric} to 8, not {bits}")
    most = 2 ** (bits - 1) - 1
    return (-most, most) if symmetric else (0, 2**bits - 1)


def to_groups(x: Tensor, granularity: Granularity) -> Tensor:
    """A view (groups, size) of `x`, whose rows are the numbers that share a scale.

    Args:
        granularity: "tensor", "channel" (a slice along the first dimension), or the group size,
            which divides the last dimension.

    Raises:
        ValueError: anything else.
    """
    if granularity == "tensor":
        return x.reshape(1, -1)
    if granularity == "channel":
        return x.reshape(x.shape[0], -1)
    if not isinstance(granularity, int) or granularity < 1 or x.shape[-1] % granularity:
        raise ValueError(
            f"granularity must be 'tensor', 'channel' or a number that divides {x.shape[-1]}, "
            f"the last dimension, not {granularity!r}"
        )
    return x.reshape(-1, granularity)


def row_group_size(columns: int, group_size: int | None) -> int:
    """How many neighbours in a row of `columns` share a scale; all of them for None.

    Raises:
        ValueError: `group_size` does not divide the columns.
    """
    size = columns if group_size is None else group_size
    if size < 1 or columns % size:
        raise ValueError(f"group_size must divide {columns}, the columns, not {group_size}")
    return size


def min_max(groups: Tensor, *, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """The whole range of each group: nothing is clipped. (groups, 1) each."""
    return groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)


def affine_parameters(
    low: Tensor, high: Tensor, *, bits: int, symmetric: bool = False
) -> tuple[Tensor, Tensor]:
    """Scale (float32) and zero point (int32) for ranges [low, high], each of their shape.

    The range is widened to include 0. A range that is 0 alone gets the scale 1.

    Raises:
        ValueError: an end that is not finite, or low above high.
    """
    q_min, q_max = code_range(bits, symmetric=symmetric)
    low, high = low.float().clamp(max=0), high.float().clamp(min=0)
    if not (low.isfinite() & high.isfinite()).all():
        raise ValueError("a range must be finite: there are numbers that are infinite or NaN")
    if symmetric:
        scale = torch.maximum(-low, high) / q_max
    else:
        scale = high / (q_max - q_min) - low / (q_max - q_min)  # high - low could overflow
    scale = torch.where(scale > 0, scale, 1)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    return scale, (q_min - (low / scale).round()).clamp(q_min, q_max).int()


def quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, bits: int, symmetric: bool = False
) -> Tensor:
    """The codes of `x`: int8 if symmetric, else uint8; halves are rounded to even.

    Args:
        scale, zero_point: broadcast against `x`. The zero point need not be an integer (HQQ).
    """
    q_min, q_max = code_range(bits, symmetric=symmetric)
    if zero_point.is_floating_point():
        codes = (x.float() / scale + zero_point).round()
    else:
        codes = (x.float() / scale).round() + zero_point
    return codes.clamp(q_min, q_max).to(torch.int8 if symmetric else torch.uint8)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The numbers that the codes stand for, in float32."""
    return (codes.float() - zero_point) * scale.float()


@dataclass(frozen=True)
class Quantized:
    """A tensor as codes, with a scale and a zero point a group.

    codes (the tensor's shape) int8 or uint8; scale (groups, 1) float; zero_point (groups, 1).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    bits: int

    def dequantize(self) -> Tensor:
        """The tensor in float32."""
        groups = self.codes.reshape(len(self.scale), -1)
        return dequantize(groups, self.scale, self.zero_point).view(self.codes.shape)


def quantize_tensor(
    x: Tensor,
    *,
    bits: int,
    granularity: Granularity = "channel",
    symmetric: bool = False,
    choose: ChooseRange = min_max,
) -> Quantized:
    """Round a tensor to the grid of its groups: round-to-nearest.

    Args:
        choose: how the range of a group is chosen, `min_max` or one of `calibration`.
    """
    groups = to_groups(x.detach(), granularity)
    low, high = choose(groups, bits=bits, symmetric=symmetric)
    scale, zero_point = affine_parameters(low, high, bits=bits, symmetric=symmetric)
    codes = quantize(groups, scale, zero_point, bits=bits, symmetric=symmetric)
    return Quantized(codes.view(x.shape), scale, zero_point, bits)


def fake_quantize(x: Tensor, **options) -> Tensor:
    """`x` rounded to the grid and turned back, in its own dtype; options of `quantize_tensor`."""
    return quantize_tensor(x, **options).dequantize().to(x.dtype)
