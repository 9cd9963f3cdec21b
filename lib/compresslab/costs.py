"""What a transformer costs in memory and time, by arithmetic.

    weight_bytes(135e6, bits=4)                       weights
    training_bytes(135e6)                             weights, gradients and Adam's state
    kv_cache_bytes(layers=30, kv_heads=3, head_dim=64, tokens=8192)
    tokens_per_second(bytes_read, bandwidth)          the most that memory allows
    energy(products, bytes_moved, bits=8)             of arithmetic and of memory, roughly

Sources: Rajbhandari et al. (2019), ZeRO, arXiv:1910.02054, section 3.1, for the training state;
Shazeer (2019), arXiv:1911.02150, for decoding bound by memory; Williams, Waterman and Patterson
(2009), doi:10.1145/1498765.1498785, for the roofline; Horowitz (2014),
doi:10.1109/ISSCC.2014.6757323, for energy.
"""

from dataclasses import dataclass


def weight_bytes(parameters: float, *, bits: float = 32) -> float:
    """Bytes of the weights alone, without scales or other side information."""
    return parameters * bits / 8


def training_bytes(parameters: float, *, mixed_precision: bool = False) -> float:
    """Bytes of weights, gradients and Adam's two moments; activations come on top.

    float32: 4 + 4 + 8 bytes a parameter. Mixed precision: 2 + 2 bytes for the half-precision
    weights and gradients, and 4 + 8 for a float32 copy of the weights and the moments. Both 16.
    """
    parts = (2, 2, 4, 4, 4) if mixed_precision else (4, 4, 4, 4)
    return parameters * sum(parts)


def kv_cache_bytes(
    *, layers: int, kv_heads: int, head_dim: int, tokens: int, batch: int = 1, bits: float = 16
) -> float:
    """Bytes of the keys and values that generation keeps, for every token of every sequence."""
    return 2 * layers * kv_heads * head_dim * tokens * batch * bits / 8


def tokens_per_second(bytes_read: float, bandwidth: float, *, batch: int = 1) -> float:
    """The most tokens that can be generated in a second if each step reads `bytes_read` bytes
    once, at `bandwidth` bytes a second, for `batch` sequences together.
    """
    return batch * bandwidth / bytes_read


def attainable_flops(intensity: float, *, peak_flops: float, bandwidth: float) -> float:
    """The roofline: operations a second at `intensity` operations for each byte moved."""
    return min(peak_flops, intensity * bandwidth)


# In 45 nm, at 0.9 V: a multiplication and an addition. Products of 8 bits are added up in 32.
PICOJOULES_A_PRODUCT = {32: 3.7 + 0.9, 16: 1.1 + 0.4, 8: 0.2 + 0.1}
PICOJOULES_A_BYTE = 1300 / 8  # from DRAM; up to twice that


def energy(products: float, bytes_moved: float, *, bits: int = 32) -> dict[str, float]:
    """Joules of `arithmetic` and of `memory`, by a table of what single operations take.

    It leaves out most of what a processor does: fetching and decoding instructions, caches, and
    what it draws while it waits. Newer technology takes less for each operation. So the sum may be
    ten times too small or too large; a ratio of two models on one machine is worth more.

    Args:
        products: multiplications with their additions; half of `measure.count_flops`.
        bytes_moved: read from main memory.
        bits: of the numbers that are multiplied: floating point of 32 or 16, integers of 8.

    Raises:
        ValueError: other bits.
    """
    if bits not in PICOJOULES_A_PRODUCT:
        raise ValueError(f"bits must be 32, 16 or 8, not {bits}")
    return {
        "arithmetic": products * PICOJOULES_A_PRODUCT[bits] * 1e-12,
        "memory": bytes_moved * PICOJOULES_A_BYTE * 1e-12,
    }


@dataclass(frozen=True)
class Shape:
    """Layers, key-value heads and head width of a decoder."""

    layers: int
    kv_heads: int
    head_dim: int


def typical_shape(parameters: float) -> Shape:
    """A plausible decoder of this size, where only the number of parameters is known.

    Assumes 12 · layers · width² parameters, width = 128 · layers, heads of 128, and four query
    heads for each key-value head: Llama 3 8B, which has 32 layers and 8 key-value heads, comes
    out as 34 and 8.
    """
    layers = max(1, round((parameters / (12 * 128**2)) ** (1 / 3)))
    return Shape(layers=layers, kv_heads=max(1, layers // 4), head_dim=128)
