"""Typical mistakes in the exercises on measuring, and what the instant check says of each.

A function is called after its exercise and its mistake; its docstring is the sentence for the
student, which names the mistake and never tells the answer. Those without a docstring are caught
by hidden inputs only, or by a shape or type: there is nothing to say about them on SHOWN inputs.
"""

import math

import torch

# ---------------------------------------------------------------- amdahl


def amdahl__weighted_mean(seconds, speedups):
    """That is the mean of the speed-ups, weighted by time. Speed-ups do not add; times do."""
    total = sum(seconds.values())
    return sum(time / total * speedups.get(part, 1) for part, time in seconds.items())


def amdahl__assumes_shares(seconds, speedups):
    """You return 1 over the time that is left: right for shares that sum to 1, but these are
    seconds."""
    return 1 / sum(time / speedups.get(part, 1) for part, time in seconds.items())


def amdahl__forgets_other_parts(seconds, speedups):
    """The parts that are not sped up still take their time: they belong to both sums."""
    after = sum(seconds[part] / speedup for part, speedup in speedups.items())
    before = sum(seconds[part] for part in speedups)
    return before / after if after else math.inf


def amdahl__forgets_other_parts_afterwards(seconds, speedups):
    """The parts that are not sped up are missing from the time afterwards."""
    after = sum(seconds[part] / speedup for part, speedup in speedups.items())
    return sum(seconds.values()) / after if after else math.inf


def amdahl__upside_down(seconds, speedups):
    """Upside down: a speed-up is the time before over the time after."""
    after = sum(time / speedups.get(part, 1) for part, time in seconds.items())
    return after / sum(seconds.values())


def amdahl__seconds_afterwards(seconds, speedups):
    """These are the seconds that the run takes afterwards. How many times as fast is that?"""
    return sum(time / speedups.get(part, 1) for part, time in seconds.items())


def amdahl__product(seconds, speedups):
    """You multiply the speed-ups. A part's speed-up only acts on that part's time."""
    return math.prod(speedups.values())


def amdahl__multiplies(seconds, speedups):
    """Twice as fast is half the time: divide a part's time by its speed-up."""
    after = sum(time * speedups.get(part, 1) for part, time in seconds.items())
    return sum(seconds.values()) / after


def amdahl__changes_its_input(seconds, speedups):
    before = sum(seconds.values())
    for part, speedup in speedups.items():
        seconds[part] /= speedup
    return before / sum(seconds.values()) if any(seconds.values()) else math.inf


def amdahl__divides_by_zero(seconds, speedups):
    return sum(seconds.values()) / sum(t / speedups.get(p, 1) for p, t in seconds.items())


# ---------------------------------------------------------------- sentences_needed


def _rates(first, second):
    n = len(first)
    return int((first & ~second).sum()) / n, int((~first & second).sum()) / n


def sentences_needed__unpaired(first, second, half_width):
    """That is for two models that read *different* sentences. These read the same: only those
    that they disagree on count."""
    p, q = first.double().mean().item(), second.double().mean().item()
    return max(1, math.ceil(1.96**2 * (p * (1 - p) + q * (1 - q)) / half_width**2))


def sentences_needed__rounds_down(first, second, half_width):
    """Rounded down, or to the nearest: the interval would be a little too wide. Always round up."""
    b, c = _rates(first, second)
    return max(1, int(1.96**2 * (b + c - (c - b) ** 2) / half_width**2))


def sentences_needed__full_width(first, second, half_width):
    """You make the whole interval as narrow as that; the half-width is to *either* side."""
    b, c = _rates(first, second)
    return max(1, math.ceil(4 * 1.96**2 * (b + c - (c - b) ** 2) / half_width**2))


def sentences_needed__not_squared(first, second, half_width):
    """The width shrinks with the square root of n. Solve for n: both 1.96 and the half-width
    have to be squared."""
    b, c = _rates(first, second)
    return max(1, math.ceil(1.96 * math.sqrt(b + c - (c - b) ** 2) / half_width))


def sentences_needed__not_rounded(first, second, half_width):
    """A whole number of sentences, rounded up."""
    b, c = _rates(first, second)
    return max(1, 1.96**2 * (b + c - (c - b) ** 2) / half_width**2)


def sentences_needed__no_z(first, second, half_width):
    """The 1.96 is missing: this is one standard error, not the 95 % interval."""
    b, c = _rates(first, second)
    return max(1, math.ceil((b + c - (c - b) ** 2) / half_width**2))


def sentences_needed__counts(first, second, half_width):
    """You put counts where rates belong: divide by the number of sentences in the pilot."""
    b, c = int((first & ~second).sum()), int((~first & second).sum())
    return max(1, math.ceil(1.96**2 * (b + c - (c - b) ** 2 / len(first)) / half_width**2))


def sentences_needed__half_counts(first, second, half_width):
    """You add half counts, as the library does; the exercise wants the plain formula."""
    n = len(first) + 2
    b, c = (rate * len(first) / n + 0.5 / n for rate in _rates(first, second))
    return max(1, math.ceil(1.96**2 * (b + c - (c - b) ** 2) / half_width**2))


def sentences_needed__forgets_the_difference(first, second, half_width):
    """The term (c − b)² is missing under the root."""
    b, c = _rates(first, second)
    return max(1, math.ceil(1.96**2 * (b + c) / half_width**2))


def sentences_needed__none(first, second, half_width):
    """At least 1, says the docstring, also where the models never disagree."""
    b, c = _rates(first, second)
    return math.ceil(1.96**2 * (b + c - (c - b) ** 2) / half_width**2)


# ---------------------------------------------------------------- bits_per_byte


def _bytes(texts):
    return sum(len(text.encode()) for text in texts)


def bits_per_byte__nats(losses, mask, texts):
    """These are nats for each byte. A bit is ln 2 nats."""
    return losses[mask].double().sum().item() / _bytes(texts)


def bits_per_byte__wrong_way(losses, mask, texts):
    """From nats to bits one *divides* by ln 2: there are more bits than nats."""
    return losses[mask].double().sum().item() * math.log(2) / _bytes(texts)


def bits_per_byte__characters(losses, mask, texts):
    """You count characters. In UTF-8 some take two to four bytes."""
    return losses[mask].double().sum().item() / math.log(2) / sum(map(len, texts))


def bits_per_byte__tokens(losses, mask, texts):
    """These are bits for each *token*, and the number of tokens is what should not matter."""
    return losses[mask].double().mean().item() / math.log(2)


def bits_per_byte__mean(losses, mask, texts):
    """You divide the *mean* loss by the bytes: take the sum, the loss of the whole text."""
    return losses[mask].double().mean().item() / math.log(2) / _bytes(texts)


def bits_per_byte__padding(losses, mask, texts):
    """The losses at padding count here, and should not."""
    return losses.double().sum().item() / math.log(2) / _bytes(texts)


def bits_per_byte__only_padding(losses, mask, texts):
    """You select the padding: the mask is True at the tokens of the texts."""
    return losses[~mask].double().sum().item() / math.log(2) / _bytes(texts)


def bits_per_byte__mean_of_texts(losses, mask, texts):
    """You average over texts what each needs: a short text counts as much as a long one. Sum
    first, divide once."""
    rates = [
        loss[kept].double().sum().item() / math.log(2) / len(text.encode())
        for loss, kept, text in zip(losses, mask, texts, strict=True)
    ]
    return sum(rates) / len(rates)


def bits_per_byte__multiplies_by_the_mask(losses, mask, texts):
    return (losses * mask).double().sum().item() / math.log(2) / _bytes(texts)


def bits_per_byte__sums_in_half(losses, mask, texts):
    return losses[mask].sum().item() / math.log(2) / _bytes(texts)


# ---------------------------------------------------------------- tokens_that_fit


def _fit(budget, n_global, n_local, window, a_token):
    grow = budget // (a_token * (n_global + n_local))
    if grow < window:
        return int(grow)
    if not n_global:
        return math.inf
    return int((budget - a_token * n_local * window) // (a_token * n_global))


def tokens_that_fit__keys_only(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """Keys *and* values are kept: twice the bytes."""
    return _fit(budget, global_layers, local_layers, window, kv_heads * head_dim * bits / 8)


def tokens_that_fit__bits_for_bytes(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """`budget` is in bytes and `bits` are bits."""
    return _fit(budget, global_layers, local_layers, window, 2 * kv_heads * head_dim * bits)


def tokens_that_fit__always_two_bytes(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """You count two bytes a number, whatever `bits` is."""
    return _fit(budget, global_layers, local_layers, window, 4 * kv_heads * head_dim)


def tokens_that_fit__no_window(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """Here the local layers go on growing after their window is full."""
    return int(budget // (2 * kv_heads * head_dim * bits / 8 * (global_layers + local_layers)))


def tokens_that_fit__global_only(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """The local layers keep their window, and that takes memory, too."""
    if not global_layers:
        return math.inf
    return int(budget // (2 * kv_heads * head_dim * bits / 8 * global_layers))


def tokens_that_fit__window_always_full(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """A sequence that is shorter than the window does not fill it: you count the whole window
    from the first token."""
    a_token = 2 * kv_heads * head_dim * bits / 8
    left = budget - a_token * local_layers * window
    if left < 0:
        return 0
    return int(left // (a_token * global_layers)) if global_layers else math.inf


def tokens_that_fit__bends_too_late(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    a_token = 2 * kv_heads * head_dim * bits / 8
    grow = int(budget // (a_token * (global_layers + local_layers)))
    if grow <= window:
        return grow
    return _fit(budget, global_layers, local_layers, window, a_token)


def tokens_that_fit__beyond_the_window(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """The global layers keep the first tokens, too: you count the window on top of all that
    they can keep."""
    a_token = 2 * kv_heads * head_dim * bits / 8
    left = budget - a_token * local_layers * window
    if left < 0 or not global_layers:
        return _fit(budget, global_layers, local_layers, window, a_token)
    return window + int(left // (a_token * global_layers))


def tokens_that_fit__no_infinity(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    a_token = 2 * kv_heads * head_dim * bits / 8
    grow = int(budget // (a_token * (global_layers + local_layers)))
    if grow < window:
        return grow
    return int((budget - a_token * local_layers * window) // (a_token * global_layers))


def tokens_that_fit__not_whole(
    budget, *, global_layers, local_layers, window, kv_heads, head_dim, bits=16
):
    """A whole number of tokens, rounded down."""
    a_token = 2 * kv_heads * head_dim * bits / 8
    grow = budget / (a_token * (global_layers + local_layers))
    if grow < window:
        return grow
    if not global_layers:
        return math.inf
    return (budget - a_token * local_layers * window) / (a_token * global_layers)


# ---------------------------------------------------------------- crossover_batch


def _meet(weights, cache, operations, bandwidth, peak_flops):
    gain = operations / peak_flops - cache / bandwidth
    return math.inf if gain <= 0 else weights / bandwidth / gain


def crossover_batch__no_cache(weights, cache, operations, *, bandwidth, peak_flops):
    """The caches are read as well, one for each sequence."""
    return max(1, math.ceil(_meet(weights, 0, operations, bandwidth, peak_flops)))


def crossover_batch__one_cache(weights, cache, operations, *, bandwidth, peak_flops):
    """You read one cache for the whole batch. Each sequence has its own."""
    return max(1, math.ceil((weights + cache) / bandwidth / (operations / peak_flops)))


def crossover_batch__rounds_down(weights, cache, operations, *, bandwidth, peak_flops):
    """Rounded down: at that batch memory still takes longer."""
    batch = _meet(weights, cache, operations, bandwidth, peak_flops)
    return batch if math.isinf(batch) else max(1, int(batch))


def crossover_batch__negative(weights, cache, operations, *, bandwidth, peak_flops):
    """A batch below 1 makes no sense. What does it mean when the lines never meet?"""
    gain = operations / peak_flops - cache / bandwidth
    return math.ceil(weights / bandwidth / gain)


def crossover_batch__negative_is_one(weights, cache, operations, *, bandwidth, peak_flops):
    """The lines never meet here. Which of the two times is then always the longer one, and what
    does the docstring say to return?"""
    gain = operations / peak_flops - cache / bandwidth
    return max(1, math.ceil(weights / bandwidth / gain)) if gain else math.inf


def crossover_batch__exchanged(weights, cache, operations, *, bandwidth, peak_flops):
    """`bandwidth` and `peak_flops` are exchanged: bytes go with the bandwidth."""
    batch = _meet(weights, cache, operations, peak_flops, bandwidth)
    return batch if math.isinf(batch) else max(1, math.ceil(batch))


def crossover_batch__cache_helps(weights, cache, operations, *, bandwidth, peak_flops):
    """A sign is wrong: a cache makes memory slower, so that arithmetic becomes the limit later."""
    gain = operations / peak_flops + cache / bandwidth
    return max(1, math.ceil(weights / bandwidth / gain))


def crossover_batch__one_too_many(weights, cache, operations, *, bandwidth, peak_flops):
    """One too many: at least as long is enough. (Rounding up, not down and one more.)"""
    batch = _meet(weights, cache, operations, bandwidth, peak_flops)
    return batch if math.isinf(batch) else int(batch) + 1


def crossover_batch__not_whole(weights, cache, operations, *, bandwidth, peak_flops):
    """A whole number of sequences, rounded up."""
    return max(1, _meet(weights, cache, operations, bandwidth, peak_flops))


# ---------------------------------------------------------------- influence


def _slope(x, y):
    u, v = x - x.mean(), y - y.mean()
    return (u * v).sum() / (u * u).sum()


def _slopes(years, parameters):
    """The slope of all, and the slopes without each."""
    x, y = years.double(), parameters.double().log2()
    rows = [torch.arange(len(x)) != i for i in range(len(x))]
    return _slope(x, y), torch.stack([_slope(x[row], y[row]) for row in rows])


def influence__upside_down(years, parameters):
    """Upside down: that is the change of the *slope*. The doubling time is 1 over it."""
    everyone, without = _slopes(years, parameters)
    return without / everyone - 1


def influence__no_logarithm(years, parameters):
    """You fit the parameters themselves, and not their logarithm."""
    everyone, without = _slopes(years, 2 ** (parameters.double() / parameters.max()))
    return everyone / without - 1


def influence__absolute(years, parameters):
    """That is the change in years. The exercise asks for the change relative to the doubling
    time of all."""
    everyone, without = _slopes(years, parameters)
    return 1 / without - 1 / everyone


def influence__without_the_one(years, parameters):
    """The minus 1 is missing: a model that changes nothing has influence 0."""
    everyone, without = _slopes(years, parameters)
    return everyone / without


def influence__percent(years, parameters):
    """These are percent. 10 % is 0.1 here."""
    everyone, without = _slopes(years, parameters)
    return 100 * (everyone / without - 1)


def influence__axes_exchanged(years, parameters):
    """The axes are exchanged: you fit the years over the logarithm of the parameters."""
    y, x = years.double(), parameters.double().log2()
    rows = [torch.arange(len(x)) != i for i in range(len(x))]
    return torch.stack([_slope(x[row], y[row]) for row in rows]) / _slope(x, y) - 1


def influence__sign_lost(years, parameters):
    """The sign tells whether the doubling time becomes longer or shorter: do not take the
    magnitude."""
    everyone, without = _slopes(years, parameters)
    return (everyone / without - 1).abs()


def influence__reversed(years, parameters):
    """The right values in the wrong order."""
    everyone, without = _slopes(years, parameters)
    return (everyone / without - 1).flip(0)


def influence__in_float32(years, parameters):
    x, y = years.float(), parameters.float().log2()
    rows = [torch.arange(len(x)) != i for i in range(len(x))]

    def slope(x, y):
        n = len(x)
        return (n * (x * y).sum() - x.sum() * y.sum()) / (n * (x * x).sum() - x.sum() ** 2)

    return slope(x, y) / torch.stack([slope(x[row], y[row]) for row in rows]) - 1
