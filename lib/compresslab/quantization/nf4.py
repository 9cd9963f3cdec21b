"""NF4: four bits a weight, on levels that suit a normal distribution; and scales in eight bits.

Source: Dettmers et al. (2023), QLoRA: Efficient Finetuning of Quantized LLMs, arXiv:2305.14314,
sections 2 and 3. A block of weights is divided by its largest magnitude, and each goes to the
nearest of 16 levels; the magnitudes c₂ less their mean are quantized again in the same way:

    Ŵ = c₂ · q[codes]            c₂ ≈ mean(c₂) + c₁ · d[absmax codes]

    code                 paper
    absmax               c₂   largest magnitude of a block of 64 weights
    scale                c₁   largest magnitude of 256 of them, their mean taken away
    nf4_levels           q    16 quantiles of the normal distribution, 0 among them
    dynamic_levels       d    256 levels with 0 to 6 bits of fraction, the fewer the nearer to 0:
                              Dettmers et al. (2022), 8-bit Optimizers via Block-wise
                              Quantization, arXiv:2110.02861

A tie goes to the lower level. n weights take n/2 bytes, and n/64 · 4 for c₂ in float32 (4.5 bits a
weight in all) or n/64 + n/(64 · 256) · 4 for c₂ quantized (4.127 bits), and 4 for its mean.

Differs from the paper as bitsandbytes, the authors' code, does: equation 4 puts an outer level
at infinity, so the quantiles here lie between 1/2 and OFFSET; c₂ takes the levels above, not an
8-bit float. Differs from bitsandbytes: its CPU kernel finds the codes of c₂ in a table of 65,536
steps, so that what is within 2⁻¹⁶ of a tie may go the wrong way. Not included: paged optimizers.
"""

from collections.abc import Callable, Iterable
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import own_linears, replace_

# Halfway between 1 - 1/30 and 1 - 1/32, the middles of the last of 15 and of 16 equal bins.
OFFSET = 0.9677083
ABSMAX_BLOCK = 256


def nf4_levels() -> Tensor:
    """The 16 levels from -1 to 1, float32: 7 below zero, 0, and 8 above.

    They are quantiles at evenly spaced probabilities from 1/2 to OFFSET, other ones in each half,
    over the largest. In float32 as here, this is the table of bitsandbytes to the last bit.
    """

    def half(count: int) -> Tensor:
        probabilities = torch.linspace(0.5, OFFSET, count + 1, dtype=torch.float32)[1:].tolist()
        return torch.tensor([NormalDist().inv_cdf(p) for p in probabilities], dtype=torch.float32)

    levels = torch.cat([-half(7).flip(0), torch.zeros(1), half(8)])
    return levels / levels[-1]


def dynamic_levels() -> Tensor:
    """256 levels from -0.993 to 1, float32: 2ⁱ in each decade 10ⁱ⁻⁶ · [0.1, 1], for i = 0 to 6, the
    same below zero, 0, and 1.
    """
    decades = []
    for i in range(7):
        edges = torch.linspace(0.1, 1, 2**i + 1, dtype=torch.float32)
        decades.append(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)
    above = torch.cat(decades)
    return torch.cat([-above.flip(0), torch.zeros(1), above, torch.ones(1)])


NF4_LEVELS, DYNAMIC_LEVELS = nf4_levels(), dynamic_levels()
NF4_PAIRS = torch.cartesian_prod(NF4_LEVELS, NF4_LEVELS)  # (256, 2): what each byte stands for


def _quantize_blocks(x: Tensor, levels: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Codes (blocks, size), the last block filled up with zeros, and the absmax of each block."""
    blocks = F.pad(x.detach().float().flatten(), (0, -x.numel() % size)).view(-1, size)
    absmax = blocks.abs().amax(1)
    tiny = torch.finfo(torch.float32).tiny  # a block of zeros stays one
    scaled = blocks * (1 / absmax.clamp(min=tiny))[:, None]
    levels = levels.to(x.device)
    return torch.bucketize(scaled, (levels[:-1] + levels[1:]) / 2).byte(), absmax


def _scale_blocks(values: Tensor, absmax: Tensor, size: int) -> Tensor:
    """`values` (n,) times the absmax of their blocks."""
    return values * absmax.float().repeat_interleave(size)[: len(values)]


def quantize_nf4(x: Tensor, *, block_size: int = 64) -> tuple[Tensor, Tensor]:
    """The codes of `x` two in a byte and the absmax of its blocks, both as in bitsandbytes.

    Args:
        x: any shape, n numbers; blocks follow its rows and run over their ends.
        block_size: even. The last block may be shorter.

    Returns:
        codes uint8 (⌈n/2⌉,), the first of two in the high bits, 0 added to an odd number of them;
        absmax float32 (⌈n/block_size⌉,). A block of zeros has absmax 0 and comes back as zeros.

    Raises:
        ValueError: `block_size` is not even and positive, or a number is not finite.
    """
    if block_size < 2 or block_size % 2:
        raise ValueError(f"block_size must be even and positive, not {block_size}")
    if not x.isfinite().all():
        raise ValueError("x must be finite: there are numbers that are infinite or NaN")
    codes, absmax = _quantize_blocks(x, NF4_LEVELS, block_size)
    codes = codes.flatten()[: x.numel() + x.numel() % 2]
    return codes[::2] << 4 | codes[1::2], absmax


def dequantize_nf4(
    codes: Tensor, absmax: Tensor, shape: tuple[int, ...], *, block_size: int = 64
) -> Tensor:
    """What `quantize_nf4` stored, float32 of this shape.

    Raises:
        ValueError: the shape does not fit the codes or the blocks.
    """
    count = torch.Size(shape).numel()
    sizes, needed = (codes.numel(), absmax.numel()), (-(-count // 2), -(-count // block_size))
    if sizes != needed:
        raise ValueError(
            f"shape {tuple(shape)} in blocks of {block_size} takes {needed[0]} bytes of codes and "
            f"{needed[1]} absmax, not {sizes[0]} and {sizes[1]}"
        )
    values = NF4_PAIRS.to(codes.device).index_select(0, codes.int()).flatten()[:count]
    return _scale_blocks(values, absmax, block_size).view(shape)


def quantize_absmax(absmax: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Double quantization: absmax (blocks,) as codes uint8 (blocks,), their scale float32
    (⌈blocks/256⌉,) and the offset float32 (), which is the mean.
    """
    offset = absmax.mean()
    codes, scale = _quantize_blocks(absmax - offset, DYNAMIC_LEVELS, ABSMAX_BLOCK)
    return codes.flatten()[: absmax.numel()], scale, offset


def dequantize_absmax(codes: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """What `quantize_absmax` stored, float32 (blocks,)."""
    values = DYNAMIC_LEVELS.to(codes.device)[codes.int()]
    return _scale_blocks(values, scale, ABSMAX_BLOCK) + offset.float()


def nf4_bytes(count: int, *, block_size: int = 64, double: bool = True) -> int:
    """Bytes that `count` weights take, scales included."""
    blocks = -(-count // block_size)
    scales = blocks + 4 * -(-blocks // ABSMAX_BLOCK) + 4 if double else 4 * blocks
    return -(-count // 2) + scales


class _Product(torch.autograd.Function):
    """x · Wᵀ + bias, for a weight that is made anew in backward: no float copy waits for it."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Callable[[], Tensor], bias: Tensor | None) -> Tensor:
        ctx.weight = weight
        return F.linear(x, weight().to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad @ ctx.weight().to(grad.dtype), None, None


class NF4Linear(nn.Module):
    """y = x · Ŵᵀ + bias, with Ŵ frozen in NF4. The gradient reaches the input, nothing else.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,) or None; stored in float32.
        block_size: weights that share an absmax.
        double: quantize the absmax, too.

    The state has codes and absmax (float32), or absmax (uint8), absmax_scale and absmax_offset.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        block_size: int = 64,
        double: bool = True,
    ):
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.block_size = block_size
        codes, absmax = quantize_nf4(weight, block_size=block_size)
        absmax, scale, offset = quantize_absmax(absmax) if double else (absmax, None, None)
        self.register_buffer("codes", codes)
        self.register_buffer("absmax", absmax)
        self.register_buffer("absmax_scale", scale)
        self.register_buffer("absmax_offset", offset)
        self.register_buffer("bias", None if bias is None else bias.detach().float().clone())

    def dequantize(self) -> Tensor:
        """Ŵ (out_features, in_features) in float32."""
        absmax = self.absmax
        if self.absmax_scale is not None:
            absmax = dequantize_absmax(absmax, self.absmax_scale, self.absmax_offset)
        shape = (self.out_features, self.in_features)
        return dequantize_nf4(self.codes, absmax, shape, block_size=self.block_size)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the dtype of `x`."""
        return _Product.apply(x, self.dequantize, self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, block_size={self.block_size}"


def quantize_linears_nf4_(
    model: nn.Module, names: Iterable[str] | None = None, **options: int | bool
) -> None:
    """Put an NF4Linear in place of linear layers; options as in `NF4Linear`.

    Args:
        names: of the layers; all linear layers if left out.

    Raises:
        ValueError: `names` has what is no linear layer, or one whose weight others share.
    """
    for name, linear in own_linears(model, names).items():
        replace_(model, name, NF4Linear(linear.weight, linear.bias, **options))
