"""Calibration: what to clip, so that the steps of the grid get smaller for all the rest.

Source: Wu et al. (2020), Integer Quantization for Deep Learning Inference: Principles and Empirical
Evaluation, arXiv:2004.09602, section 4 ("max", "entropy" and "percentile"); for `kl`, Migacz
(2017), 8-bit Inference with TensorRT, GTC; for `mse`, Nagel et al. (2021), arXiv:2106.08295,
section 3.1.

    percentile  [low, high] holds at least the fraction p of the numbers
    mse         minimizes Σ (x - x̂)² over [f · min, f · max], f a factor from 1 down
    kl          minimizes Σ P log(P / Q) over [-t, t]: P is the histogram of |x|, with all beyond t
                in its last bin; Q the part up to t, in as many levels as the grid has

    code      sources
    p         the percentile, as a fraction
    levels    128 at 8 bits: 2ᵇ⁻¹, what a grid has on one side of 0
    hist      the histogram, of 2048 bins

All are made for `choose` of `quantize_tensor`, options by `functools.partial(percentile, p=0.999)`.
Differs from the sources: `kl` tries every 16th threshold, not each; an asymmetric range, which they
do not consider, is the whole one cut at ±t. Not included: `kl` without the bin of exact zeros.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ..layers import observe_inputs
from .affine import ChooseRange, affine_parameters, dequantize, min_max, quantize


def percentile(
    groups: Tensor, *, bits: int, symmetric: bool, p: float = 0.9999
) -> tuple[Tensor, Tensor]:
    """The range that holds the fraction `p` of each group: as many numbers are cut off at both
    ends, or, if symmetric, the largest in absolute value. Its ends are numbers of the group.

    Raises:
        ValueError: `p` is not above 0 and at most 1.
    """
    if not 0 < p <= 1:
        raise ValueError(f"p must be above 0 and at most 1, not {p}")
    size = groups.shape[1]
    cut = (1 - p) * size + 1e-6  # 1 - 0.9 is a little less than 0.1
    if symmetric:
        high = groups.abs().kthvalue(size - min(int(cut), size - 1), 1, keepdim=True).values
        return -high, high
    cut = min(int(cut / 2), (size - 1) // 2)
    return tuple(groups.kthvalue(k, 1, keepdim=True).values for k in (1 + cut, size - cut))


def mse(
    groups: Tensor, *, bits: int, symmetric: bool, smallest: float = 0.2, steps: int = 80
) -> tuple[Tensor, Tensor]:
    """The range with the smallest squared rounding error of each group, out of `steps` + 1: the
    whole range times factors from 1 to `smallest`. Of equally good ones the widest.
    """
    low, high = min_max(groups, bits=bits, symmetric=symmetric)
    best, factor = torch.full_like(low, math.inf), torch.ones_like(low)
    for f in torch.linspace(1, smallest, steps + 1).tolist():
        parameters = affine_parameters(f * low, f * high, bits=bits, symmetric=symmetric)
        codes = quantize(groups, *parameters, bits=bits, symmetric=symmetric)
        error = (groups - dequantize(codes, *parameters)).square().sum(1, keepdim=True)
        factor = torch.where(error < best, f, factor)
        best = torch.minimum(best, error)
    return factor * low, factor * high


def kl(
    groups: Tensor, *, bits: int, symmetric: bool, bins: int = 2048, stride: int = 16
) -> tuple[Tensor, Tensor]:
    """The range whose histogram loses least by rounding, of each group in turn: 10 ms each."""
    low, high = min_max(groups, bits=bits, symmetric=symmetric)
    t = groups.new_tensor([kl_threshold(g, 2 ** (bits - 1), bins, stride) for g in groups])
    return low.clamp(min=-t[:, None]), high.clamp(max=t[:, None])


def kl_threshold(x: Tensor, levels: int, bins: int = 2048, stride: int = 16) -> float:
    """The t in (0, max |x|] at which clipping |x| to t and rounding to `levels` levels costs the
    least divergence; of equal ones the largest. Every `stride`-th bin from `levels` on is tried.
    """
    size = x.abs().float()
    top = size.max().item()
    hist = torch.histc(size, bins, 0, top or 1.0)
    tries = range(bins, min(levels, bins) - 1, -stride)
    costs = torch.stack([_divergence(hist, end, levels) for end in tries])
    return top * tries[int(costs.argmin())] / bins


def _divergence(hist: Tensor, end: int, levels: int) -> Tensor:
    """KL(P ‖ Q), where Q spreads each level's count over those of its bins that are not empty."""
    inside, p = hist[:end], hist[:end].clone()
    p[-1] += hist[end:].sum()
    level = torch.arange(end) * levels // end
    full = (inside > 0).float()
    counts, places = (torch.bincount(level, w, minlength=levels) for w in (inside, full))
    q = full * (counts / places)[level].nan_to_num(0)
    p, q = p / p.sum(), q / q.sum()
    cost = torch.where(p > 0, p * (p / q).log(), 0).sum()  # infinite where q lacks what p has
    return cost.nan_to_num(math.inf, math.inf)  # NaN where nothing lies inside


def collect_ranges(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    choose: ChooseRange = min_max,
    bits: int = 8,
    symmetric: bool = False,
    sample: int = 100_000,
    generator: torch.Generator | None = None,
) -> dict[str, tuple[float, float]]:
    """A range for the inputs of every linear layer, from what they are for some sentences.

    In bounded memory: of all numbers that a layer reads, `choose` sees a random sample, each
    equally likely, and always the smallest and the largest. Padding is read like other tokens.

    Args:
        batches: with `input_ids` and `attention_mask` (batch, time), as `TextBatches` gives them.
        bits, symmetric: of the codes that the inputs will get.
        sample: numbers kept a layer; 8 bytes each.
        generator: for the sample; seeded with 0 if left out.

    Returns:
        name of a layer -> (low, high).

    Raises:
        ValueError: no batches.
    """
    generator = generator or torch.Generator().manual_seed(0)
    kept: dict[str, tuple[Tensor, Tensor]] = {}
    ends: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        x = x.float().flatten()
        keys = torch.rand(x.numel(), generator=generator)
        if name in kept:
            keys, x = torch.cat([kept[name][0], keys]), torch.cat([kept[name][1], x])
        # The numbers with the smallest keys of all so far: a sample without replacement.
        keys, index = keys.topk(min(sample, keys.numel()), largest=False, sorted=False)
        both = [x, ends[name]] if name in ends else [x]
        ends[name] = torch.stack(torch.cat(both).aminmax())
        kept[name] = keys, x[index]

    with observe_inputs(model, see):
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    if not kept:
        raise ValueError("batches is empty")
    ranges = {}
    for name, (_, x) in kept.items():
        group = torch.cat([x, ends[name]])[None]
        low, high = choose(group, bits=bits, symmetric=symmetric)
        ranges[name] = low.item(), high.item()
    return ranges
