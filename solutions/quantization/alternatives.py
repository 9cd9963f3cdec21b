"""Right answers to the exercises on quantization, written another way than the solution."""

import math

import numpy as np
import torch
from torch.nn import functional as F

from compresslab.quantization.affine import affine_parameters, dequantize, quantize, quantize_tensor
from compresslab.quantization.packing import pack, packed_size
from compresslab.quantization.smoothquant import smoothing_scale


def round_groups__library(weight, *, bits, group_size):
    """Zeros at the end of a row change no range that includes 0."""
    columns = weight.shape[1]
    padded = F.pad(weight, (0, -columns % group_size))
    quantized = quantize_tensor(padded, bits=bits, granularity=group_size)
    overhead = quantized.scale.numel() * (16 + bits)
    return quantized.dequantize()[:, :columns], bits + overhead / weight.numel()


def round_groups__loop(weight, *, bits, group_size):
    top = 2**bits - 1
    result, stored = np.zeros(weight.shape, np.float32), 0
    for r, row in enumerate(weight.numpy()):
        for start in range(0, len(row), group_size):
            group = row[start : start + group_size]
            stored += 16 + bits + bits * len(group)
            low, high = min(0.0, float(group.min())), max(0.0, float(group.max()))
            if low == high:
                continue
            step = (high - low) / top
            zero = round(-low / step)
            codes = np.clip(np.rint(group / np.float32(step)) + zero, 0, top)
            result[r, start : start + group_size] = step * (codes - zero)
    return result, stored / result.size


def repack__library(blocks, count):
    codes = torch.stack([blocks % 16, blocks // 16], 1).reshape(-1)[:count]
    assert packed_size(count, 4) >= math.ceil(count / 2)
    return pack(codes, 4)[: math.ceil(count / 2)]


def repack__loop(blocks, count):
    half = blocks.shape[1]
    result = [0] * ((count + 1) // 2)
    for n in range(count):
        block, place = divmod(n, 2 * half)
        value = int(blocks[block, place % half])
        nibble = value >> 4 if place >= half else value & 15
        result[n // 2] += nibble * (16 if n % 2 else 1)
    return result


def clip_factors__loop(weight, importance, *, bits, factors):
    result = []
    for row in weight:
        losses = {}
        for factor in factors:
            ends = factor * row.min().view(1), factor * row.max().view(1)
            scale, zero_point = affine_parameters(*ends, bits=bits)
            rounded = dequantize(quantize(row, scale, zero_point, bits=bits), scale, zero_point)
            losses[factor] = torch.dot(importance, (row - rounded) ** 2).item()
        least = min(losses.values())
        result.append(max(factor for factor, loss in losses.items() if loss == least))
    return result


def clip_factors__all_at_once(weight, importance, *, bits, factors):
    f = torch.tensor(factors).sort(descending=True).values[:, None, None]
    top = 2**bits - 1
    low = (f * weight.amin(1, keepdim=True)).clamp(max=0)
    high = (f * weight.amax(1, keepdim=True)).clamp(min=0)
    step = ((high - low) / top).masked_fill(high == low, 1.0)
    zero = torch.round(-low / step)
    hat = step * (torch.clamp(torch.round(weight / step) + zero, 0, top) - zero)
    losses = (weight - hat).square() @ importance
    return f.flatten()[losses.argmin(0)]


def asymmetric_linear__differences(
    codes,
    input_scale,
    input_zero_point,
    weight_codes,
    weight_scale,
    weight_zero_point,
    bias,
):
    """Not what hardware does, but the same numbers."""
    u = codes.double() - input_zero_point
    v = weight_codes.double() - weight_zero_point
    return F.linear(u * input_scale, v * weight_scale, bias.double())


def asymmetric_linear__numpy(
    codes,
    input_scale,
    input_zero_point,
    weight_codes,
    weight_scale,
    weight_zero_point,
    bias,
):
    u, w = codes.numpy().astype(np.int64), weight_codes.numpy().astype(np.int64)
    a, b = input_zero_point.numpy(), weight_zero_point.numpy().T
    total = np.einsum("tj,ij->ti", u, w) - a * w.sum(1) - b * (u.sum(1)[:, None] - u.shape[1] * a)
    return np.outer(input_scale.numpy(), weight_scale.numpy()) * total + bias.numpy()


def smooth_values__library(values, output, absmax, *, kv_heads, alpha):
    """The weights that read a feature, one below the other."""
    features = values.shape[0]
    head_dim = features // kv_heads
    heads = [part.reshape(-1, features) for part in _by_sharing(output, kv_heads, head_dim)]
    most = torch.cat(
        [part.reshape(-1, features) for part in _by_sharing(absmax[None], kv_heads, head_dim)]
    )
    scale = smoothing_scale(most.amax(0), torch.cat(heads), alpha=alpha)
    repeated = scale.view(kv_heads, head_dim).repeat_interleave(output.shape[1] // features, dim=0)
    return values / scale.view(-1, 1), output * repeated.view(1, -1)


def _by_sharing(x, kv_heads, head_dim):
    """For each of the query heads that share one, the columns of x in the order of the values."""
    return x.view(len(x), kv_heads, -1, head_dim).unbind(2)


def smooth_values__loop(values, output, absmax, *, kv_heads, alpha):
    new_values, new_output = values.clone(), output.clone()
    size = values.shape[0] // kv_heads
    heads = output.shape[1] // size
    for feature in range(values.shape[0]):
        head, c = divmod(feature, size)
        places = [h * size + c for h in range(heads) if h * kv_heads // heads == head]
        a = max(absmax[place].item() for place in places)
        b = output[:, places].abs().max().item()
        if a > 0 and b > 0:
            s = math.exp(alpha * math.log(a) - (1 - alpha) * math.log(b))
            new_values[feature] /= s
            new_output[:, places] *= s
    return new_values, new_output


def greedy_obq__solved_anew(weight, hessian, *, scale, zero_point, bits):
    """No update is kept: in each turn the best values of all that are left, from the equations."""
    start, done, result = weight.double(), [], weight.double().clone()
    low, high = -zero_point * scale, (2**bits - 1 - zero_point) * scale
    while len(done) < len(start):
        free = [i for i in range(len(start)) if i not in done]
        among = hessian[free][:, free]
        pull = hessian[free][:, done] @ (result[done] - start[done])
        values = start[free] - torch.linalg.solve(among, pull)
        targets = (torch.round(values / scale) * scale).clamp(low, high)
        inverse = torch.linalg.inv(among)
        costs = ((values - targets) ** 2 / inverse.diagonal()).tolist()
        best = min(range(len(free)), key=costs.__getitem__)
        result[free[best]] = targets[best]
        done.append(free[best])
    return result, done


def greedy_obq__shrinking(weight, hessian, *, scale, zero_point, bits):
    """What is rounded is taken out of all arrays."""
    w, inverse = weight.numpy().astype(float), np.linalg.inv(hessian.numpy())
    places, found = np.arange(len(w)), {}
    while places.size:
        q = np.clip(np.rint(w / scale) + zero_point, 0, 2**bits - 1)
        error = w - (q - zero_point) * scale
        p = np.argmin(error**2 / np.diag(inverse))
        found[int(places[p])] = (q[p] - zero_point) * scale
        keep, column = np.arange(len(w)) != p, inverse[:, p]
        w = (w - error[p] / column[p] * column)[keep]
        inverse = (inverse - np.outer(column, column) / column[p])[keep][:, keep]
        places = places[keep]
    return [found[i] for i in range(len(found))], list(found)
