"""GPTQ: round weights one column after another, and let those that follow make up for each.

Source: Frantar et al. (2022), GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers, arXiv:2210.17323, algorithm 1. It is optimal brain quantization (Frantar, Singh and
Alistarh, 2022, arXiv:2208.11580) in an order that all rows share: for the error ‖WX - ŴX‖² with
H = XXᵀ, rounding weight p costs (w_p - ŵ_p)² / [H⁻¹]_pp, and the best change of the others is

    -(w_p - ŵ_p) / [H⁻¹]_pp · H⁻¹_{:,p}

    code        paper
    weight      W         (out_features, in_features)
    hessian     H         (in_features, in_features), summed over the tokens of the calibration
                          text; the paper has 2XXᵀ, and the factor does not matter
    inverse     in `obq`, H⁻¹ of the columns that are not yet rounded; in `gptq`, the upper Cholesky
                factor of H⁻¹, whose row j is row j of the former, divided by √[H⁻¹]_jj
    damping     λ         a fraction of the mean of H's diagonal
    block       B         columns after which the errors are passed on to all that follow

The range of a group is chosen when its first column comes up, from weights that have made up for
all columns before. With `act_order` (an option of the authors' code) columns come by decreasing
diagonal of H. The columns of a group are then far apart in time, so all ranges are chosen at the
start, and a group is still made of neighbours.

    gptq_model_(model, windows, bits=3, group_size=64)      block after block
    hessians = collect_hessians(model.model, batches)       or all at once, from the dense model:
    pack_linears_(model.model, lambda name, w: gptq(w, hessians[name], bits=3, group_size=64))

Differs from the paper: the ranges of groups smaller than a block see every update (in the authors'
code, only those up to the start of the block). Not included: symmetric codes.
"""

from collections.abc import Callable
from contextlib import suppress

import torch
from torch import Tensor, nn

from ..layers import observe_inputs
from .affine import (
    ChooseRange,
    Quantized,
    affine_parameters,
    dequantize,
    min_max,
    quantize,
    row_group_size,
)
from .linear import pack_linears_


def gptq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    choose: ChooseRange = min_max,
    act_order: bool = False,
    block: int = 128,
    damping: float = 0.01,
) -> Quantized:
    """The weight in few bits, whole rows or groups of each sharing a scale.

    An input that is always zero gets the weight 0.

    Args:
        weight: (out_features, in_features).
        hessian: (in_features, in_features).
        group_size: neighbours in a row that share a scale; all of a row if left out.
        choose: how the range of a group is chosen, as in `quantize_tensor`.
        act_order: columns by decreasing diagonal of the Hessian instead of from left to right.
        block: columns whose errors are passed on at once; the result does not depend on it.
        damping: added to the diagonal, as a fraction of its mean.

    Raises:
        ValueError: the Hessian does not fit the weight, `group_size` does not divide the columns,
            or `block` neither divides the size of a group nor is a multiple of it.
    """
    w, h, size = _prepare(weight, hessian, group_size, damping)
    rows, columns = w.shape
    if block < 1 or (block % size and size % block):
        raise ValueError(
            f"block must divide {size}, the size of a group, or be a multiple of it, not {block}"
        )
    # Not used with act_order=False: each is chosen anew when its group starts.
    scale, zero_point = (x.view(rows, -1) for x in _grid(w.view(-1, size), bits, choose))
    order = torch.arange(columns, device=w.device)
    if act_order:
        order = h.diagonal().argsort(descending=True, stable=True)
        w, h = w[:, order], h[order][:, order]
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    codes = torch.empty_like(w, dtype=torch.uint8)
    for start in range(0, columns, block):
        end = min(start + block, columns)
        errors = w.new_empty(rows, end - start)
        for j in range(start, end):
            group = order[j] // size
            if j % size == 0 and not act_order:
                scale[:, [group]], zero_point[:, [group]] = _grid(w[:, j : j + size], bits, choose)
            s, z = scale[:, group], zero_point[:, group]
            codes[:, order[j]] = q = quantize(w[:, j], s, z, bits=bits)
            error = (w[:, j] - dequantize(q, s, z)) / inverse[j, j]
            w[:, j:end] -= error[:, None] * inverse[j, j:end]
            errors[:, j - start] = error
        w[:, end:] -= errors @ inverse[start:end, end:]
    return Quantized(codes, scale.view(-1, 1), zero_point.view(-1, 1), bits)


def obq(
    weight: Tensor,
    hessian: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    choose: ChooseRange = min_max,
    damping: float = 0.01,
) -> Quantized:
    """What `gptq` computes, as the equation has it: slower, and easier to read.

    Columns go from left to right. (OBQ itself takes in each row the weight that costs least.)
    Arguments and errors as in `gptq`.
    """
    w, h, size = _prepare(weight, hessian, group_size, damping)
    inverse = torch.linalg.inv(h)
    codes, scales, zero_points = [], [], []
    for j in range(w.shape[1]):
        if j % size == 0:
            scale, zero_point = _grid(w[:, j : j + size], bits, choose)
            scales.append(scale)
            zero_points.append(zero_point)
        codes.append(quantize(w[:, [j]], scale, zero_point, bits=bits))
        error = w[:, [j]] - dequantize(codes[-1], scale, zero_point)
        w -= error / inverse[j, j] * inverse[j]
        # H⁻¹ of the columns that are left, by one step of Gauss; row and column j become 0.
        inverse -= inverse[:, [j]] * inverse[j] / inverse[j, j]
    scale, zero_point = torch.cat(scales, 1).view(-1, 1), torch.cat(zero_points, 1).view(-1, 1)
    return Quantized(torch.cat(codes, 1), scale, zero_point, bits)


def gptq_model_(
    model: nn.Module,
    windows: Tensor,
    *,
    batch_size: int = 8,
    after_block: Callable[[int, int], None] | None = None,
    **options,
) -> None:
    """Replace the linear layers of a Llama's blocks by packed ones, block after block, in place.

    The inputs of a block come from the blocks before it as they are quantized by then. Besides
    the model, this holds the hidden states of all windows and the Hessians of one block.

    Args:
        windows: token numbers (windows, time), the calibration text.
        after_block: called with (blocks done, blocks), for a progress bar.
        options: of `gptq`: bits, group_size, and so on.

    Raises:
        ValueError: `model` has no blocks of a Llama.
    """
    try:
        blocks = model.base_model.layers
    except AttributeError:
        raise ValueError(f"{type(model).__name__} has no blocks of a Llama") from None
    with torch.no_grad():
        calls = _first_calls(model, blocks[0], windows.split(batch_size))
        for i, block in enumerate(blocks):
            hessians = _hessians(block, calls)
            pack_linears_(block, lambda name, w, h=hessians: gptq(w, h[name], **options))
            calls = [(block(x, **others), others) for x, others in calls]
            if after_block is not None:
                after_block(i + 1, len(blocks))


# What a block is called with: the hidden states, and the arguments that all blocks are given.
Call = tuple[Tensor, dict]


class _Caught(Exception):
    pass


def _first_calls(model: nn.Module, first: nn.Module, batches: tuple[Tensor, ...]) -> list[Call]:
    """What `model` calls its first block with for each batch; nothing beyond is run."""
    calls = []

    def catch(_, args, others):
        calls.append((args[0], others))
        raise _Caught

    handle = first.register_forward_pre_hook(catch, with_kwargs=True)
    try:
        for batch in batches:
            with suppress(_Caught):
                model(input_ids=batch, use_cache=False)
    finally:
        handle.remove()
    return calls


def _hessians(block: nn.Module, calls: list[Call]) -> dict[str, Tensor]:
    hessians: dict[str, Tensor] = {}

    def see(name: str, x: Tensor) -> None:
        x = x.float()
        hessians[name] = hessians.get(name, 0) + x.T @ x

    with observe_inputs(block, see):
        for x, others in calls:
            block(x, **others)
    return hessians


def _grid(groups: Tensor, bits: int, choose: ChooseRange) -> tuple[Tensor, Tensor]:
    return affine_parameters(*choose(groups, bits=bits, symmetric=False), bits=bits)


def _prepare(
    weight: Tensor, hessian: Tensor, group_size: int | None, damping: float
) -> tuple[Tensor, Tensor, int]:
    """Copies in float32, without dead inputs and with damping, and the size of a group."""
    columns = weight.shape[1]
    if hessian.shape != (columns, columns):
        raise ValueError(
            f"hessian must have shape ({columns}, {columns}) for a weight of shape "
            f"{tuple(weight.shape)}, not {tuple(hessian.shape)}"
        )
    size = row_group_size(columns, group_size)
    w, h = weight.detach().float().clone(), hessian.float().clone()
    dead = h.diagonal() == 0  # an input that is always zero: its weight does not matter
    h.diagonal().add_(damping * h.diagonal().mean())
    h.diagonal()[dead] = 1
    w[:, dead] = 0
    return w, h, size
