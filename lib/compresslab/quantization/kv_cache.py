"""A cache of keys and values in few bits: keys by channel, values by token.

Source: Liu et al. (2024), KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache,
arXiv:2402.02750, section 3 and algorithm 1:

    q = round((x - z) / s)      x̂ = s · q + z      z = min x,  s = (max x - min x) / (2ᵇ - 1)

Some channels of the keys are large for every token, so that a group which mixes channels has a
coarse step; a group of one channel along the tokens has not. Values have no such channels, and the
attention adds up tokens, so that a token's error is best kept to that token.

    code         paper
    low          z     unlike a zero point, it does not widen the range to include 0
    scale        s
    group_size   G     tokens of a channel (keys), or channels of a token (values)
    window       R     the last tokens, which stay in floating point

    cache = QuantizedCache(bits=2)
    model(input_ids=prompt, past_key_values=cache)      or model.generate(…, past_key_values=cache)
    cache.nbytes

Bytes of n numbers that are packed: n·b/8 for the codes, 4·n/G for low and scale (float16 each).

Differs from the paper: keys and values leave the window together, a whole group of tokens at a
time, so that at least `window` tokens and at most window + G - 1 are exact. (In the paper the keys
leave all at once when there are R of them, the values one by one.) Tokens that arrive together
attend to each other exactly, there as here. Not included: attention on the packed bytes, which are
made float at every step; beam search; taking tokens back.
"""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from .affine import to_groups
from .packing import pack, unpack


@dataclass(frozen=True)
class Packed:
    """Keys or values (batch, heads, time, dim) in few bits.

    codes uint8, scale and low float16; by token they are (batch, heads, time, dim · bits / 8) and
    twice (batch, heads, time, dim / group_size), by channel the same with time and dim exchanged.
    """

    codes: Tensor
    scale: Tensor
    low: Tensor
    bits: int
    by_channel: bool

    def dequantize(self) -> Tensor:
        """(batch, heads, time, dim) in float32."""
        count = self.codes.numel() * 8 // self.bits
        groups = (self.scale.numel(), count // self.scale.numel())
        codes = unpack(self.codes.flatten(), self.bits, groups).float()
        x = codes * self.scale.view(-1, 1) + self.low.view(-1, 1)
        x = x.view(*self.codes.shape[:3], -1)
        return x.transpose(2, 3) if self.by_channel else x

    def append(self, new: "Packed") -> "Packed":
        """These tokens and then the new ones."""
        time = 3 if self.by_channel else 2
        parts = ((getattr(p, name) for p in (self, new)) for name in ("codes", "scale", "low"))
        return Packed(*(torch.cat([*p], time) for p in parts), self.bits, self.by_channel)

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes + self.low.nbytes


def quantize_keys(keys: Tensor, *, bits: int, group_size: int = 32) -> Packed:
    """Keys (batch, heads, time, dim) by channel; `group_size` divides time; else as
    `quantize_values`.
    """
    return _quantize(keys.transpose(2, 3), bits, group_size, by_channel=True)


def quantize_values(values: Tensor, *, bits: int, group_size: int = 32) -> Packed:
    """Values (batch, heads, time, dim) by token; `group_size` divides dim.

    Halves are rounded to the even code. A group of equal numbers gets the scale 1.

    Raises:
        ValueError: `bits` is not 1 to 8, `group_size` is no multiple of 8 (whole bytes) or does not
            divide what it should, or there are numbers that float16 cannot hold.
    """
    return _quantize(values, bits, group_size, by_channel=False)


def _quantize(x: Tensor, bits: int, group_size: int, *, by_channel: bool) -> Packed:
    if group_size % 8:
        raise ValueError(f"group_size must be a multiple of 8, not {group_size}")
    groups, most = to_groups(x.detach(), group_size).float(), 2**bits - 1
    low, high = groups.amin(1, keepdim=True).half(), groups.amax(1, keepdim=True)
    scale = ((high - low) / most).half()
    if not (low.isfinite() & scale.isfinite()).all():
        raise ValueError("there are numbers that float16 cannot hold")
    scale = torch.where(scale > 0, scale, 1)
    codes = ((groups - low) / scale).round().clamp(0, most).byte()
    *rest, n = x.shape
    each = (*rest, n // group_size)
    return Packed(
        pack(codes, bits).view(*rest, -1), scale.view(each), low.view(each), bits, by_channel
    )


class QuantizedLayer(DynamicLayer):
    """The cache of one attention layer: `keys` and `values` hold the window, the rest is packed."""

    is_croppable = False

    def __init__(self, *, bits: int, group_size: int, window: int, keys: str):
        super().__init__()
        self.options = {"bits": bits, "group_size": group_size}
        self.group_size, self.window = group_size, window
        self.quantize_keys = quantize_keys if keys == "channel" else quantize_values
        self.old_keys = self.old_values = None

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Add tokens; give back keys and values of all, (batch, heads, time, dim) each."""
        keys, values = super().update(key_states, value_states)
        if self.old_keys is not None:
            keys = torch.cat([self.old_keys.dequantize().to(keys.dtype), keys], dim=2)
            values = torch.cat([self.old_values.dequantize().to(values.dtype), values], dim=2)
        leave = (self.keys.shape[2] - self.window) // self.group_size * self.group_size
        if leave > 0:
            old_keys = self.quantize_keys(self.keys[:, :, :leave], **self.options)
            old_values = quantize_values(self.values[:, :, :leave], **self.options)
            first = self.old_keys is None
            self.old_keys = old_keys if first else self.old_keys.append(old_keys)
            self.old_values = old_values if first else self.old_values.append(old_values)
            # Copies: a view would keep the bytes of the tokens that left.
            self.keys = self.keys[:, :, leave:].clone()
            self.values = self.values[:, :, leave:].clone()
        return keys, values

    def get_seq_length(self) -> int:
        """The number of tokens."""
        old = 0 if self.old_values is None else self.old_values.codes.shape[2]
        return old + super().get_seq_length()

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.old_keys = self.old_values = None

    @property
    def nbytes(self) -> int:
        window = (t.untyped_storage() for t in (self.keys, self.values) if t is not None)
        packed = (p for p in (self.old_keys, self.old_values) if p is not None)
        return sum(part.nbytes() for part in window) + sum(part.nbytes for part in packed)

    def _refuse(self, *args) -> None:
        raise NotImplementedError("packed tokens are neither taken back nor reordered")

    crop = reorder_cache = batch_repeat_interleave = batch_select_indices = _refuse


class QuantizedCache(Cache):
    """What a model of transformers takes as `past_key_values`; one for each text.

    Args:
        bits: 1 to 8.
        group_size: numbers that share a scale, a multiple of 8.
        window: how many of the last tokens stay exact, at least.
        keys: "channel", or "token" to quantize them like the values.

    Raises:
        ValueError: `keys` is neither.
    """

    def __init__(
        self, *, bits: int = 2, group_size: int = 32, window: int = 128, keys: str = "channel"
    ):
        if keys not in ("channel", "token"):
            raise ValueError(f"keys must be 'channel' or 'token', not {keys!r}")
        options = {"bits": bits, "group_size": group_size, "window": window, "keys": keys}
        super().__init__(layer_class_to_replicate=partial(QuantizedLayer, **options))

    @property
    def nbytes(self) -> int:
        """Bytes of all layers: codes, scales, and the window in the model's own dtype."""
        return sum(layer.nbytes for layer in self.layers)
