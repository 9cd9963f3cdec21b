"""Layers whose weight is stored in few bits and computed in floating point.

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

from ..layers import own_linears, replace_
from .affine import Quantized, dequantize
from .packing import pack, unpack

Quantize = Callable[[str, Tensor], Quantized]  # from the name and the weight of a layer


class _Packed(nn.Module):
    """A matrix (rows, columns) with asymmetric codes in buffers.

    Raises:
        ValueError: a scale that float16 cannot hold.
    """

    def __init__(self, weight: Quantized):
        super().__init__()
        self.rows, self.columns = weight.codes.shape
        self.bits, self.groups = weight.bits, len(weight.scale)
        scale = weight.scale.half()
        if not scale.isfinite().all():
            raise ValueError(f"float16 cannot hold the scale {weight.scale.max().item():.3g}")
        self.whole = not weight.zero_point.is_floating_point()
        zero_point = weight.zero_point.flatten()
        zero_point = pack(zero_point.byte(), self.bits) if self.whole else zero_point.half()
        self.register_buffer("codes", pack(weight.codes, self.bits))
        self.register_buffer("scale", scale.flatten())
        self.register_buffer("zero_point", zero_point)

    def dequantize(self) -> Tensor:
        """The matrix in float32."""
        codes = unpack(self.codes, self.bits, (self.groups, self._size))
        weight = dequantize(codes, self.scale[:, None], self._zero_points()[:, None])
        return weight.view(self.rows, self.columns)

    @property
    def _size(self) -> int:
        return self.rows * self.columns // self.groups

    def _zero_points(self) -> Tensor:
        if self.whole:
            return unpack(self.zero_point, self.bits, (self.groups,)).float()
        return self.zero_point.float()

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, bits={self.bits}, groups={self.groups}"


class PackedLinear(_Packed):
    """y = x · Ŵᵀ + bias, with Ŵ packed.

    Args:
        weight: (out_features, in_features), asymmetric codes.
        bias: (out_features,) or None.
        input_scale: (in_features,), by which the input is divided first, for AWQ; or None.

    Raises:
        ValueError: a scale that float16 cannot hold.
    """

    def __init__(
        self, weight: Quantized, bias: Tensor | None = None, *, input_scale: Tensor | None = None
    ):
        super().__init__(weight)
        self.out_features, self.in_features = self.rows, self.columns
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.register_buffer("input_scale", None if input_scale is None else input_scale.half())

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        if self.input_scale is not None:
            x = x / self.input_scale.to(x.dtype)
        return F.linear(x, self.dequantize().to(x.dtype), self.bias)


class PackedEmbedding(_Packed):
    """Rows of a packed matrix, float32; only the rows that are asked for are unpacked.

    Args:
        weight: (tokens, width), asymmetric codes; a row is a whole number of groups and of bytes.

    Raises:
        ValueError: it is not, or a scale that float16 cannot hold.
    """

    def __init__(self, weight: Quantized):
        super().__init__(weight)
        if self.groups % self.rows or self.columns % 8:
            raise ValueError(
                f"rows of {self.columns} in groups of {self._size} are not whole groups and bytes"
            )

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (…) to (…, width)."""
        each = self.groups // self.rows
        groups = each * ids.reshape(-1, 1) + torch.arange(each, device=ids.device)
        codes = self.codes.view(self.rows, -1)[ids.flatten()].flatten()
        codes = unpack(codes, self.bits, (*groups.shape, self._size))
        zero_point = self.zero_point[groups] if not self.whole else self._whole_of(groups)
        scale, zero_point = self.scale[groups], zero_point.float()
        weight = dequantize(codes, scale[..., None], zero_point[..., None])
        return weight.view(*ids.shape, self.columns)

    def _whole_of(self, groups: Tensor) -> Tensor:
        """The zero points of some groups, from the octets that they lie in."""
        octets = self.zero_point.view(-1, self.bits)[groups // 8].flatten()
        octets = unpack(octets, self.bits, (*groups.shape, 8))
        return octets.gather(-1, groups[..., None] % 8)[..., 0]


def pack_embedding_(
    model: nn.Module, name: str, quantize: Quantize, *, head: str | None = None
) -> None:
    """Replace an embedding by a packed one, in place.

    Args:
        head: name of the output layer, if it has the same weight: they share the packed one, too.

    Raises:
        ValueError: `head` has another weight.
    """
    embedding = model.get_submodule(name)
    if head is not None and model.get_submodule(head).weight is not embedding.weight:
        raise ValueError(f"{head} does not share the weight of {name}")
    weight = quantize(name, embedding.weight.detach())
    packed = PackedEmbedding(weight)
    replace_(model, name, packed)
    if head is not None:
        output = PackedLinear(weight)
        for part in ("codes", "scale", "zero_point"):
            setattr(output, part, getattr(packed, part))
        replace_(model, head, output)


def pack_linears_(
    model: nn.Module,
    quantize: Quantize,
    names: Iterable[str] | None = None,
) -> None:
    """Replace linear layers by packed ones, in place.

    Args:
        names: of the layers; all linear layers if left out.

    Raises:
        ValueError: `names` has what is no linear layer, or one whose weight others share.
    """
    with torch.no_grad():
        for name, linear in own_linears(model, names).items():
            replace_(model, name, PackedLinear(quantize(name, linear.weight), linear.bias))
