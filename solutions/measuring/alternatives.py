"""Right answers to the exercises on measuring, written another way than the solution."""

import math

import numpy as np
import torch


def amdahl__numpy(seconds, speedups):
    times = np.array(list(seconds.values()))
    rates = np.array([speedups.get(part, 1.0) for part in seconds])
    with np.errstate(divide="ignore"):
        return times.sum() / (times / rates).sum()


def amdahl__loop(seconds, speedups):
    before = after = torch.tensor(0.0, dtype=torch.float64)
    for part in seconds:
        before = before + seconds[part]
        after = after + (seconds[part] / speedups[part] if part in speedups else seconds[part])
    return before / after


def sentences_needed__loop(first, second, half_width):
    lost = gained = 0
    for one, other in zip(first.tolist(), second.tolist(), strict=True):
        lost += one and not other
        gained += other and not one
    n = len(first)
    variance = lost / n + gained / n - (gained / n - lost / n) ** 2
    return float(max(1, math.ceil((1.96 * math.sqrt(variance) / half_width) ** 2)))


def sentences_needed__variance_of_differences(first, second, half_width):
    differences = second.double() - first.double()
    needed = (1.96 / half_width) ** 2 * differences.var(correction=0)
    return needed.ceil().clamp(min=1)


def bits_per_byte__loop(losses, mask, texts):
    nats = 0.0
    for row, kept in zip(losses.tolist(), mask.tolist(), strict=True):
        nats += sum(loss for loss, keep in zip(row, kept, strict=True) if keep)
    return nats * math.log2(math.e) / len("".join(texts).encode())


def bits_per_byte__where(losses, mask, texts):
    bits = torch.where(mask, losses.float(), 0).sum() / torch.log(torch.tensor(2.0))
    return bits / sum(len(bytes(text, "utf-8")) for text in texts)


def tokens_that_fit__search(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    def cost(tokens):
        kept = global_layers * tokens + local_layers * min(tokens, window)
        return 2 * kv_heads * head_dim * kept * bits / 8

    if cost(10**15) <= budget:
        return math.inf
    low, high = 0, 10**15
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return low


def tokens_that_fit__numbers(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    numbers = int(budget * 8 // bits // (2 * kv_heads * head_dim))  # tokens of one layer
    if numbers < window * (global_layers + local_layers):
        return numbers // (global_layers + local_layers)
    if global_layers == 0:
        return float("inf")
    return torch.tensor((numbers - local_layers * window) // global_layers)


def crossover_batch__count_up(weights, cache, operations, *, bandwidth, peak_flops):
    batch = 1
    while batch < 100_000:
        if batch * operations / peak_flops >= (weights + batch * cache) / bandwidth * (1 - 1e-12):
            return batch
        batch += 1
    return math.inf


def crossover_batch__one_fraction(weights, cache, operations, *, bandwidth, peak_flops):
    below = operations * bandwidth - cache * peak_flops
    return np.inf if below <= 0 else np.maximum(1, np.ceil(weights * peak_flops / below))


def influence__polyfit(years, parameters):
    x, y = years.numpy().astype(float), np.log10(parameters.numpy().astype(float))
    times = [1 / np.polyfit(np.delete(x, i), np.delete(y, i), 1)[0] for i in range(len(x))]
    return np.array(times) * np.polyfit(x, y, 1)[0] - 1


def influence__list(years, parameters):
    x, y = years.double(), parameters.double().log()

    def time(keep):
        design = torch.stack([torch.ones(len(keep)).double(), x[keep] - 2000], 1)
        return 1 / torch.linalg.lstsq(design, y[keep, None]).solution[1].item()

    n = range(len(x))
    return [time([j for j in n if j != i]) / time(list(n)) - 1 for i in n]
