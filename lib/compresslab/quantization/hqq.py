"""HQQ: choose the zero points so that most weights are hit well and a few badly, without any data.

Source: Badri and Shaji (2023), Half-Quadratic Quantization of Large Machine Learning Models,
https://mobiusml.github.io/hqq_blog. It minimizes ‖W - s · (W_q - z)‖_p^p with p < 1 over z, which
need not be whole; s stays as it is. The error gets a variable of its own, W_e, held to it ever more
tightly (half-quadratic splitting), and each step has a closed form:

    W_q ← clamp(round(W / s + z), 0, 2ᵇ - 1)        W_r = s · (W_q - z)
    W_e ← sign(W - W_r) · max(0, |W - W_r| - |W - W_r|ᵖ⁻¹ / β)
    z   ← mean over the group of W_q - (W - W_e) / s
    β   ← κ · β

    code        article
    codes       W_q
    scale       s      from the range of the group, which need not include 0
    zero_point  z
    outliers    W_e    the errors that are let alone; an error below (1 / β)^(1 / (2 - p)) is none
    norm        p

The steps end when the mean absolute error of the whole weight stops falling, and the zero points
before are kept. As in the authors' package (0.2.8), a group narrower than 1e-4 gets the scale 1,
and no scale is below 5e-5, which float16 holds. That package's default leaves κ out and keeps the
zero points of one step more; this is its `optimize_weights_proximal_v2`. Not included: groups
across rows (axis 0), quantized scales and zero points.
"""

import torch
from torch import Tensor

from .affine import Quantized, code_range, dequantize, min_max, quantize, row_group_size


def hqq(
    weight: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    norm: float = 0.7,
    beta: float = 10.0,
    kappa: float = 1.01,
    iterations: int = 20,
) -> Quantized:
    """The weight in few bits; zero points are float32, not whole, and may lie outside the codes.

    Args:
        weight: (out_features, in_features).
        group_size: weights of a row that share a scale; all of a row if left out.
        norm: p, above 0 and at most 1.

    Raises:
        ValueError: `group_size` does not divide the columns, `norm` is out of range, or the weight
            has numbers that are infinite or NaN.
    """
    if not 0 < norm <= 1:
        raise ValueError(f"norm must be above 0 and at most 1, not {norm}")
    size = row_group_size(weight.shape[1], group_size)
    w = weight.detach().float().reshape(-1, size)
    scale, zero_point = _start(w, bits)
    least, best = torch.inf, zero_point
    for _ in range(iterations):
        codes = quantize(w, scale, zero_point, bits=bits)
        errors = w - dequantize(codes, scale, zero_point)
        if (mean := errors.abs().mean()) >= least:
            zero_point = best
            break
        least, best = mean, zero_point
        outliers = errors.sign() * (errors.abs() - errors.abs() ** (norm - 1) / beta).clamp(min=0)
        zero_point = (codes - (w - outliers) / scale).mean(1, keepdim=True)
        beta *= kappa
    codes = quantize(w, scale, zero_point, bits=bits)
    return Quantized(codes.view(weight.shape), scale, zero_point, bits)


def _start(w: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    low, high = min_max(w, bits=bits, symmetric=False)
    width = high - low
    if not width.isfinite().all():
        raise ValueError("weight has numbers that are infinite or NaN")
    steps = code_range(bits)[1]
    scale = torch.where(width > 1e-4, width / steps, 1).clamp(min=5e-5)
    return scale, -low / scale
