"""LLM.int8(): multiply in 8 bits, but for the few input features that hold outliers.

Source: Dettmers et al. (2022), LLM.int8(): 8-bit Matrix Multiplication for Transformers at Scale,
arXiv:2208.07339, equation 8:

    Y ≈ Σ_{h∈O} X^h W^h + S · Σ_{h∉O} X₈^h W₈^h

    code       paper
    x          X     (tokens, in_features)
    weight     Wᵀ    codes (out_features, in_features), a scale a row
    outliers   O     the features whose |x| reaches the threshold for any token of x
    threshold  α = 6.0
    scales     S = (absmax of a token / 127) · (absmax of a row of Wᵀ / 127): "vector-wise"

Differs from the paper: W^h of an outlier is not kept in 16 bits, but made of its 8-bit codes, as
bitsandbytes does when weights are held in int8 only. The memory is half as large for it, the input
of an outlier is still exact, and its weight has the rounding error of all weights. Where
bitsandbytes computes in float16, this computes in the dtype of x; there the scale of a token also
sees small values in the columns of outliers, here (as in the paper) those columns are left out.
Not included: training, and zero-point quantization, with which the paper compares.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..layers import own_linears, replace_
from .affine import Quantized, quantize_tensor
from .int8 import check_rows, int8_matmul


def llm_int8_matmul(x: Tensor, weight: Quantized, *, threshold: float = 6.0) -> Tensor:
    """x · Ŵᵀ (tokens, out_features), in the dtype of `x`.

    Args:
        x: (tokens, in_features).
        weight: (out_features, in_features), 8 bits, symmetric, a scale a row.
        threshold: smallest |x| of an outlier; infinity is plain vector-wise int8.
    """
    outliers = (x.abs() >= threshold).any(0)
    inside = quantize_tensor(x.masked_fill(outliers, 0), bits=8, symmetric=True)
    product = int8_matmul(inside.codes, weight.codes.T)
    y = product * (inside.scale * weight.scale.T)
    if outliers.any():
        y += x[:, outliers].float() @ (weight.codes[:, outliers] * weight.scale).T
    return y.to(x.dtype)


class LLMInt8Linear(nn.Module):
    """y = x · Ŵᵀ + bias, with Ŵ in int8 and outliers of x in floating point.

    Args:
        weight: (out_features, in_features), 8 bits, symmetric, a scale a row.
        bias: (out_features,) or None.

    Raises:
        ValueError: the weight is of another kind.
    """

    def __init__(self, weight: Quantized, bias: Tensor | None = None, *, threshold: float = 6.0):
        super().__init__()
        check_rows(weight)
        self.threshold = threshold
        self.out_features, self.in_features = weight.codes.shape
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        weight = Quantized(self.codes, self.scale, torch.zeros_like(self.scale), 8)
        y = llm_int8_matmul(x.reshape(-1, self.in_features), weight, threshold=self.threshold)
        y = y if self.bias is None else y + self.bias
        return y.view(*x.shape[:-1], self.out_features)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, threshold={self.threshold}"


def llm_int8_(
    model: nn.Module, names: Iterable[str] | None = None, *, threshold: float = 6.0
) -> None:
    """Replace linear layers by LLMInt8Linear, in place.

    Args:
        names: of the layers; all linear layers if left out.
    """
    for name, linear in own_linears(model, names).items():
        weight = quantize_tensor(linear.weight, bits=8, symmetric=True)
        replace_(model, name, LLMInt8Linear(weight, linear.bias, threshold=threshold))
