"""AWQ: before rounding, enlarge the weights whose inputs are large.

Source: Lin et al. (2023), AWQ: Activation-aware Weight Quantization for LLM Compression and
Acceleration, arXiv:2306.00978, equations 4 and 5:

    s = s_X^α        α from a grid, the smallest ‖Q(W diag(s)) (diag(s)⁻¹ X) - W X‖

A weight that is multiplied by s and whose input is divided by s has its rounding error divided by
s, as long as it does not become the largest of its group.

    code     paper
    weight   W     (out_features, in_features)
    mean     s_X   (in_features,), mean |x| over the tokens of the calibration text
    hessian  XXᵀ   (in_features, in_features): the error is tr(Δ XXᵀ Δᵀ) with Δ = Ŵ - W, and no
                   inputs need to be stored
    ratio    α     20 values, 0 to 0.95; 0 is plain rounding
    scale    s     divided by sqrt(max s · min s), as in the authors' code

Afterwards the range of each group is narrowed while the error of the group's own part of the output
falls (section 3.2 mentions it, the authors' code has it): ten ranges from the whole to 0.55 of it.

Layers that read the same input share s, which the module before them takes up for nothing (see
`smoothquant`); where none can, `PackedLinear` divides its input. The authors search with the
output of the whole attention or feed-forward block where layers share an input; here it is
their own outputs together. They do not narrow the ranges of queries and keys; here all are.
Not included: searching block by block with the inputs of the rounded blocks before.
"""

from functools import partial

import torch
from torch import Tensor, nn

from ..layers import replace_
from .affine import Quantized, affine_parameters, dequantize, min_max, quantize, quantize_tensor
from .linear import PackedLinear
from .smoothquant import Input, divide_output_, find_inputs


def output_error(delta: Tensor, hessian: Tensor) -> Tensor:
    """‖ΔX‖² = tr(Δ XXᵀ Δᵀ), a scalar; delta (out_features, in_features)."""
    return (delta @ hessian).mul_(delta).sum()


def search_scale(
    weight: Tensor, mean: Tensor, hessian: Tensor, *, bits: int, group_size: int, ratios: int = 20
) -> Tensor:
    """s (in_features,), float32 numbers that float16 holds exactly.

    Args:
        weight: (out_features, in_features), of several layers that read the same input one below
            another.
        ratios: size of the grid.

    Raises:
        ValueError: `mean` or `hessian` does not fit the weight.
    """
    width = weight.shape[1]
    for name, tensor, shape in (("mean", mean, (width,)), ("hessian", hessian, (width, width))):
        if tensor.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} for a weight of shape {tuple(weight.shape)}, "
                f"not {tuple(tensor.shape)}"
            )
    weight, best, least = weight.detach().float(), None, float("inf")
    for i in range(ratios):
        scale = mean.float().pow(i / ratios).clamp(min=1e-4)
        scale = (scale / (scale.max() * scale.min()).sqrt()).half().float()
        rounded = quantize_tensor(weight * scale, bits=bits, granularity=group_size).dequantize()
        error = output_error(rounded.div_(scale).sub_(weight), hessian)
        if error < least:
            best, least = scale, error
    return best


def narrow_range(
    groups: Tensor, *, bits: int, symmetric: bool, hessian: Tensor
) -> tuple[Tensor, Tensor]:
    """Ends of each group's range with the least error in its part of the output, (groups, 1) each.

    Args:
        groups: (groups, size), the groups of each row one after another.
        hessian: (in_features, in_features).
    """
    size = groups.shape[1]
    parts = hessian.shape[0] // size
    blocks = hessian.view(parts, size, parts, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    low, high = min_max(groups, bits=bits, symmetric=symmetric)
    largest = groups.abs().amax(1, keepdim=True)
    best, least = (low, high), torch.full_like(low, float("inf"))
    for i in range(10):
        end = largest * (1 - i / 20)
        ends = torch.maximum(low, -end), torch.minimum(high, end)
        grid = affine_parameters(*ends, bits=bits, symmetric=symmetric)
        rounded = dequantize(quantize(groups, *grid, bits=bits, symmetric=symmetric), *grid)
        delta = (rounded - groups).view(-1, parts, size).transpose(0, 1)
        error = ((delta @ blocks) * delta).sum(2).T.reshape(-1, 1)
        better = error < least
        least = torch.where(better, error, least)
        best = tuple(torch.where(better, new, old) for new, old in zip(ends, best, strict=True))
    return best


def round_scaled(
    weight: Tensor, scale: Tensor, hessian: Tensor, *, bits: int, group_size: int, clip: bool = True
) -> Quantized:
    """The codes of W · diag(s), for inputs that are divided by s.

    Args:
        hessian: of the inputs before they are divided.
        clip: narrow the ranges (`narrow_range`) instead of taking them whole.
    """
    hessian = hessian / scale / scale[:, None]
    choose = partial(narrow_range, hessian=hessian) if clip else min_max
    return quantize_tensor(weight * scale, bits=bits, granularity=group_size, choose=choose)


def awq(
    weight: Tensor,
    mean: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int,
    ratios: int = 20,
    clip: bool = True,
) -> tuple[Quantized, Tensor]:
    """Codes of W · diag(s) and s (in_features,): what `PackedLinear` takes.

    Arguments as in `search_scale` and `round_scaled`.
    """
    scale = search_scale(weight, mean, hessian, bits=bits, group_size=group_size, ratios=ratios)
    options = {"bits": bits, "group_size": group_size, "clip": clip}
    return round_scaled(weight, scale, hessian, **options), scale


def awq_(
    model: nn.Module,
    means: dict[str, Tensor],
    hessians: dict[str, Tensor],
    *,
    bits: int,
    group_size: int,
    clip: bool = True,
) -> None:
    """Quantize the linear layers in the blocks of a Llama or a BERT, in place.

    Args:
        means: as `outliers.collect_means` gives them.
        hessians: as `sparsegpt.collect_hessians` gives them.
    """
    options = {"bits": bits, "group_size": group_size}
    with torch.no_grad():
        found = _find_scales(model, means, hessians, **options)
        _divide_sources_(model, found)
        for each, scale in found:
            for name in each.readers:
                linear = model.get_submodule(name)
                weight = round_scaled(linear.weight, scale, hessians[name], clip=clip, **options)
                own = scale if each.source is None else None
                replace_(model, name, PackedLinear(weight, linear.bias, input_scale=own))


def scale_inputs_(
    model: nn.Module,
    means: dict[str, Tensor],
    hessians: dict[str, Tensor],
    *,
    bits: int,
    group_size: int,
) -> None:
    """Enlarge weights as AWQ does and leave the rounding to another method, such as GPTQ, in place.

    The model computes the same as before. Layers whose input no module can divide stay as they are.
    Arguments as in `awq_`.
    """
    with torch.no_grad():
        found = _find_scales(model, means, hessians, bits=bits, group_size=group_size)
        _divide_sources_(model, found)
        for each, scale in found:
            for name in each.readers if each.source is not None else ():
                model.get_submodule(name).weight.mul_(scale)


def _find_scales(
    model: nn.Module, means: dict[str, Tensor], hessians: dict[str, Tensor], **options
) -> list[tuple[Input, Tensor]]:
    found = []
    for each in find_inputs(model):
        first = each.readers[0]
        weight = torch.cat([model.get_submodule(name).weight for name in each.readers])
        found.append((each, search_scale(weight, means[first], hessians[first], **options)))
    return found


def _divide_sources_(model: nn.Module, found: list[tuple[Input, Tensor]]) -> None:
    # Not while scales are searched, since some layers are read and are the source of another.
    for each, scale in found:
        if each.source is not None:
            divide_output_(model.get_submodule(each.source), scale)


def keep_salient(
    weight: Tensor, scores: Tensor, fraction: float, *, bits: int, group_size: int
) -> Tensor:
    """The weight rounded, with its most important input channels as they were: section 3.1.

    Args:
        scores: (in_features,), the larger the more important: mean |x|, the norms of the weight's
            columns, or random numbers, between which the paper compares.
        fraction: of the channels that stay, rounded to a whole number of them; of equal scores
            the first counts as the larger.

    Raises:
        ValueError: the scores do not fit the weight, or a fraction outside [0, 1].
    """
    if scores.shape != weight.shape[1:]:
        raise ValueError(
            f"scores must have shape {tuple(weight.shape[1:])} for a weight of shape "
            f"{tuple(weight.shape)}, not {tuple(scores.shape)}"
        )
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be 0 to 1, not {fraction}")
    kept = scores.argsort(descending=True, stable=True)[: round(fraction * scores.numel())]
    mixed = quantize_tensor(weight, bits=bits, granularity=group_size).dequantize()
    mixed = mixed.to(weight.dtype)
    mixed[:, kept] = weight.detach()[:, kept]
    return mixed
