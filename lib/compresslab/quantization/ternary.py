"""Ternary weights: every weight is -s, 0 or s, five of them in a byte.

Source: Ma et al. (2024), The Era of 1-bit LLMs: All Large Language Models are in 1.58 Bits,
arXiv:2402.17764, section 2, BitNet b1.58:

    Ŵ = clip(round(W / (γ + ε)), -1, 1)        γ = mean |W|

A weight is zero if |W| is at most γ / 2; the layer computes with γ · Ŵ. In training the gradient of
γ · Ŵ goes to W as it is, also for weights that were clipped. Before it came ternary weight networks
(Li et al. 2016, arXiv:1605.04711): zero up to 0.75 · mean |W| (for normal weights), and as the
scale the mean of |W| above that, which is the best one there.

    code         paper
    scale        γ (α of Li et al.)
    threshold    Δ, of Li et al., as a fraction of mean |W|
    EPSILON      ε, 1e-5

    trits        five codes of 0, 1, 2 are the digits of a number below 3⁵ = 243, a byte: 1.6 bits
                 for each, where log₂ 3 = 1.585 is the least

Differs from the paper: starts from a model trained in float. Not included: the activations, which
BitNet rounds to 8 bits, and the multiplication-free product.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .affine import Granularity, Quantized, dequantize, to_groups

EPSILON = 1e-5
POWERS = (1, 3, 9, 27, 81)


def ternarize(
    weight: Tensor, *, granularity: Granularity = "tensor", threshold: float | None = None
) -> Quantized:
    """The weight as codes of 2 bits, 0 to 2, with the zero point 1.

    Args:
        granularity: what shares a scale; the paper's is the tensor.
        threshold: None for absmean rounding, where halves go to zero; or the fraction of mean |W|
            up to which a weight is zero, 0.75 for ternary weight networks.
    """
    groups = to_groups(weight.detach(), granularity).float()
    size = groups.abs()
    scale = size.mean(1, keepdim=True)
    if threshold is None:
        signs = (groups / (scale + EPSILON)).round().clamp(-1, 1)
    else:
        signs = groups.sign() * (size > threshold * scale)
        scale = (size * signs.abs()).sum(1, keepdim=True) / signs.abs().sum(1, keepdim=True)
        scale = scale.nan_to_num()  # a group of zeros, of which none is kept
    codes = (signs + 1).byte().view(weight.shape)
    return Quantized(codes, scale, torch.ones_like(scale, dtype=torch.int32), 2)


class Ternary(nn.Module):
    """The quantizer, for `qat.add_quantizers_`; options as in `ternarize`."""

    def __init__(self, **options):
        super().__init__()
        self.options = options

    def forward(self, weight: Tensor) -> Tensor:
        """The rounded weight, through which the gradient passes straight."""
        rounded = self.quantized(weight).dequantize().to(weight.dtype)
        return rounded + (weight - weight.detach())

    def quantized(self, weight: Tensor) -> Quantized:
        """The same as codes."""
        return ternarize(weight, **self.options)


def pack_trits(codes: Tensor) -> Tensor:
    """Codes of any shape, uint8 up to 2, as ⌈n / 5⌉ bytes; the first of five counts least.

    Raises:
        ValueError: `codes` is not uint8, or a code is too large.
    """
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, not {codes.dtype}")
    if codes.numel() and (largest := int(codes.max())) > 2:
        raise ValueError(f"a code is {largest}: a trit holds 0 to 2")
    fives = F.pad(codes.flatten(), (0, -codes.numel() % 5)).view(-1, 5)
    return (fives * fives.new_tensor(POWERS)).sum(1, dtype=torch.uint8)


def unpack_trits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The codes that `pack_trits` packed, uint8 of this shape.

    Raises:
        ValueError: `packed` has not the bytes that this shape needs.
    """
    count = torch.Size(shape).numel()
    if packed.numel() != -(-count // 5):
        raise ValueError(f"{tuple(shape)} trits are {-(-count // 5)} bytes, not {packed.numel()}")
    digits = packed[:, None] // packed.new_tensor(POWERS) % 3
    return digits.flatten()[:count].view(shape)


class TernaryLinear(nn.Module):
    """y = x · Ŵᵀ + bias, with five weights a byte; for `qat.finish_`.

    Bytes of a layer with n weights and g scales: ⌈n / 5⌉ + 2·g (float16), and the bias.

    Args:
        weight: (out_features, in_features), of `ternarize`.
        bias: (out_features,) or None.
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None):
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.register_buffer("trits", pack_trits(weight.codes))
        self.register_buffer("scale", weight.scale.flatten().half())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def dequantize(self) -> Tensor:
        """Ŵ (out_features, in_features) in float32."""
        shape = (self.out_features, self.in_features)
        groups = unpack_trits(self.trits, shape).view(len(self.scale), -1)
        return dequantize(groups, self.scale[:, None], 1).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)
