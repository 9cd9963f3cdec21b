"""A linear layer whose weight is stored in few bits and computed in floating point.

    layer = PackedLinear(quantize_tensor(linear.weight, bits=4, granularity=64), linear.bias)
    layer.state_dict()      what `storage.save` writes: bytes, not floats

Rounding, GPTQ, AWQ and HQQ give the same kind of weight (`affine.Quantized`) and end up here. The
weight is made float anew in every forward pass: the layer is small, and not fast.

Bytes of a layer with n weights in groups of g, at b bits: n·b/8 for the codes, 2·n/g for the scales
(float16) and b·n/(8·g) for the zero points, or 2·n/g where they are not whole (HQQ).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import find_linears, replace_
from .affine import Quantized, dequantize
from .packing import pack, unpack


class PackedLinear(nn.Module):
    """y = x · Ŵᵀ + bias, with Ŵ packed.

    Args:
        weight: (out_features, in_features), asymmetric codes.
        bias: (out_features,) or None.
        input_scale: (in_features,), by which the input is divided first, for AWQ; or None.

    Raises:
        ValueError: symmetric codes, or a scale that float16 cannot hold.
    """

    def __init__(
        self, weight: Quantized, bias: Tensor | None = None, *, input_scale: Tensor | None = None
    ):
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.bits, self.groups = weight.bits, len(weight.scale)
        scale = weight.scale.half()
        if not scale.isfinite().all():
            raise ValueError(f"float16 cannot hold the scale {weight.scale.max().item():.3g}")
        self.register_buffer("codes", pack(weight.codes, self.bits))
        self.register_buffer("scale", scale.flatten())
        self.whole = not weight.zero_point.is_floating_point()
        zero_point = weight.zero_point.flatten()
        if self.whole:
            zero_point = pack(zero_point.byte(), self.bits)
        self.register_buffer("zero_point", zero_point if self.whole else zero_point.half())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("input_scale", None if input_scale is None else input_scale.half())

    def dequantize(self) -> Tensor:
        """Ŵ (out_features, in_features) in float32."""
        shape = (self.groups, self.out_features * self.in_features // self.groups)
        zero_point = self.zero_point
        if self.whole:
            zero_point = unpack(zero_point, self.bits, (self.groups,))
        codes = unpack(self.codes, self.bits, shape)
        weight = dequantize(codes, self.scale[:, None], zero_point[:, None].float())
        return weight.view(self.out_features, self.in_features)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        if self.input_scale is not None:
            x = x / self.input_scale.to(x.dtype)
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, groups={self.groups}"


def pack_linears_(
    model: nn.Module,
    quantize: Callable[[str, Tensor], Quantized],
    names: Iterable[str] | None = None,
) -> None:
    """Replace linear layers by packed ones, in place.

    Args:
        quantize: from the name and the weight of a layer, the weight in few bits.
        names: of the layers; all linear layers if left out.

    Raises:
        ValueError: `names` has what is no linear layer, or one whose weight others share.
    """
    linears = find_linears(model)
    parameters = [p for m in model.modules() for p in m.parameters(recurse=False)]
    for name in linears if names is None else names:
        if name not in linears:
            raise ValueError(f"{type(model).__name__} has no linear layer {name!r}")
        linear = linears[name]
        if sum(p is linear.weight for p in parameters) > 1:
            raise ValueError(f"{name} shares its weight with another layer: leave it out of names")
        with torch.no_grad():
            replace_(model, name, PackedLinear(quantize(name, linear.weight), linear.bias))
