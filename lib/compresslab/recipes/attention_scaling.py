"""Every form of attention from 256 to 32,768 tokens: time, memory, exponents, crossovers.

    python -m compresslab.recipes.attention_scaling

One text, 4 heads of 64 (256 channels where a method has no heads), float32, one thread; forward
only, no projections. Causal where the method can be, and compared with torch's own
scaled_dot_product_attention, causal or not likewise. In every round all methods are timed at one
length, in a new order; times are medians of the rounds, exponents the slope of log time against log
length over the last three doublings, one for each round, with the exact interval for a median.
Memory is the peak of live tensors, measured once. A method stops where the next length would take
more than 20 seconds or 3 GB, going by how it grew before.

The C library gives large blocks of memory back to the system and gets them anew, zeroed page by
page, at every call: that alone makes long texts slower and exponents larger. So each length is
`measured` in a process with GLIBC_TUNABLES that keep memory, and that has had 3 GB before the clock
runs. About 20 minutes; the machine must be idle, and have 4 GB of memory.
"""

import json
import math
import os
import random
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ..attention.bigbird import bigbird_attention, draw_random_blocks
from ..attention.delta import chunked_delta, recurrent_delta
from ..attention.flash import flash_attention
from ..attention.full import full_attention
from ..attention.linear import linear_attention
from ..attention.linformer import Linformer
from ..attention.lsh import lsh_attention
from ..attention.mamba import chunked_scan, parallel_scan, recurrent_scan
from ..attention.nystrom import nystrom_attention
from ..attention.performer import draw_projection, performer_attention
from ..attention.retention import (
    chunked_retention,
    parallel_retention,
    recurrent_retention,
    retention_decay,
)
from ..attention.rwkv import chunked_wkv, recurrent_wkv
from ..attention.s4d import S4D, s4d_convolution, s4d_recurrence
from ..attention.sliding_window import window_attention
from ..measure import median_interval, peak_memory
from . import in_parallel, launch, record

SEED = 0
HEADS, DIM = 4, 64
LENGTHS = tuple(2**i for i in range(8, 16))
ROUNDS = 7
DOUBLINGS = 3  # that exponents are fitted over
MOST_SECONDS, MOST_BYTES = 20, 3e9
WINDOW, BLOCK, RANDOM_BLOCKS, RANK, LANDMARKS, FEATURES = 256, 64, 3, 128, 64, 128
MODES, STATE = 64, 16  # numbers of state a channel, of S4D and of Mamba
BASELINES = ("torch", "torch, not causal")
OTHER_WINDOWS = (64, 1024)
NOT_CAUSAL = (BASELINES[1], "Linformer", "Nyströmformer")

Calls = dict[str, Callable[[], object]]


def methods(length: int) -> Calls:
    """Every method on tensors of this length, by name; a name's part after a comma is a form."""
    generator = torch.Generator().manual_seed(SEED)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    heads = tuple(randn(1, HEADS, length, DIM) for _ in range(3))
    query, _, value = heads
    torch_attention = partial(F.scaled_dot_product_attention, *heads)
    found: Calls = {
        BASELINES[0]: partial(torch_attention, is_causal=True),
        BASELINES[1]: torch_attention,
        "full": partial(full_attention, *heads, causal=True),
        "flash": partial(flash_attention, *heads, causal=True),
    }
    window = partial(window_attention, *heads, causal=True)
    found["sliding window"] = partial(window, window=WINDOW)
    found |= {f"sliding window, {w}": partial(window, window=w) for w in OTHER_WINDOWS}

    blocks = -(-length // BLOCK)
    count = min(RANDOM_BLOCKS, max(blocks - 5, 0))
    table = draw_random_blocks(blocks, heads=HEADS, count=count, generator=generator)
    found["BigBird"] = partial(
        bigbird_attention, *heads, causal=True, block_size=BLOCK, random_blocks=table
    )
    lsh = partial(lsh_attention, query, query, value, causal=True, chunk_size=BLOCK)
    found["Reformer"] = partial(lsh, buckets=64, generator=generator)
    found["Reformer, 2 · length / 64 buckets"] = partial(
        lsh, buckets=2 * blocks, generator=generator
    )

    linformer = Linformer(length, RANK, generator=generator)
    projection = draw_projection(FEATURES, DIM, generator=generator)
    found["Linformer"] = partial(linformer, *heads)
    found["Nyströmformer"] = partial(nystrom_attention, *heads, landmarks=LANDMARKS)
    found["Performer"] = partial(performer_attention, *heads, causal=True, projection=projection)
    linear = partial(linear_attention, *heads, causal=True)
    found["linear attention"] = linear
    found |= {f"linear attention, {f}": partial(linear, form=f) for f in ("parallel", "recurrent")}

    decay = retention_decay(HEADS)
    found["RetNet"] = partial(chunked_retention, *heads, decay)
    found["RetNet, parallel"] = partial(parallel_retention, *heads, decay)
    found["RetNet, recurrent"] = partial(recurrent_retention, *heads, decay)
    beta, gate = randn(1, HEADS, length).sigmoid(), F.logsigmoid(randn(1, HEADS, length) + 4)
    found["delta rule"] = partial(chunked_delta, *heads, beta)
    found["delta rule, recurrent"] = partial(recurrent_delta, *heads, beta)
    found["gated delta rule"] = partial(chunked_delta, *heads, beta, log_decay=gate)

    channels = HEADS * DIM
    x, system = randn(1, length, channels), S4D(channels, state_size=MODES).system()
    found["S4D"] = partial(s4d_convolution, x, system)
    found["S4D, recurrent"] = partial(s4d_recurrence, x, system)
    step = F.softplus(randn(1, length, channels) - 4)
    write, read = randn(1, length, STATE), randn(1, length, STATE)
    scanned = (x, step, write, read, -torch.arange(1.0, STATE + 1).repeat(channels, 1))
    found["Mamba"] = partial(chunked_scan, *scanned)
    found["Mamba, parallel"] = partial(parallel_scan, *scanned)
    found["Mamba, recurrent"] = partial(recurrent_scan, *scanned)
    key, fade, bonus = randn(1, length, channels), -randn(channels).exp(), randn(channels)
    found["RWKV"] = partial(chunked_wkv, key, x, fade, bonus)
    found["RWKV, recurrent"] = partial(recurrent_wkv, key, x, fade, bonus)
    return found


def measured(run: Callable, **task):
    """`run(**task)`, of a process of its own that keeps its memory.

    The C library reads these settings as a process begins, so that they do not reach this one; they
    do nothing but on Linux with glibc.
    """
    os.environ["GLIBC_TUNABLES"] = ":".join(
        (
            "glibc.malloc.mmap_max=0",  # all blocks, large ones too, from the heap
            f"glibc.malloc.trim_threshold={2**33}",  # which shrinks by nothing less
            f"glibc.malloc.top_pad={2**28}",  # and grows by so much
        )
    )
    [found] = in_parallel(with_memory, [{"run": run, **task}])
    return found


def with_memory(run: Callable, **task):
    """`run(**task)`, after having had all memory once that a method may take."""
    torch.ones(int(MOST_BYTES) // 4)
    return run(**task)


def timed(calls: Calls, *, rounds: int = ROUNDS, seconds: float = 0.05) -> dict[str, list[float]]:
    """Seconds a call of each, one number a round; all in every round, in a new order.

    Args:
        seconds: a call that takes less is repeated until about as much has passed.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    order, generator = list(calls), random.Random(SEED)
    repeats = {}
    for name, call in calls.items():
        first = once(call)  # allocates, and says little of a short call
        repeats[name] = max(1, round(seconds / once(call))) if first < seconds else 1
    for _ in range(rounds):
        generator.shuffle(order)
        for name in order:
            times[name].append(once(calls[name], repeats[name]))
    return times


def once(call: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - start) / repeats


def next_value(values: list[float]) -> float:
    """The next of values at doubled lengths, if it grows as the last one did; 0 before there are
    two.
    """
    return values[-1] ** 2 / values[-2] if len(values) > 1 else 0.0


def exponent(lengths: list[int], values: list[float]) -> float:
    """The slope of the straight line through the logarithms, by least squares."""
    return statistics.linear_regression(
        [math.log(length) for length in lengths], [math.log(value) for value in values]
    ).slope


def crossing(lengths: list[int], ratios: list[float]) -> float | None:
    """From which length on the ratio is 1 or more, between two lengths on a line of logarithms.

    Returns:
        the first length if it always is; None if it is not at the last.
    """
    below = [i for i, ratio in enumerate(ratios) if ratio < 1]
    if not below:
        return float(lengths[0])
    i = below[-1]
    if i == len(lengths) - 1:
        return None
    low, high = math.log(ratios[i]), math.log(ratios[i + 1])
    part = -low / (high - low)
    return lengths[i] ** (1 - part) * lengths[i + 1] ** part


def measure(length: int, names: list[str]) -> dict[str, dict]:
    """A point of each method named: seconds, those of each round, and bytes."""
    with torch.inference_mode():
        calls = {name: call for name, call in methods(length).items() if name in names}
        times = timed(calls)
        return {
            name: {
                "length": length,
                "seconds": statistics.median(times[name]),
                "rounds": times[name],
                "bytes": peak_memory(call),
            }
            for name, call in calls.items()
        }


def goes_on(points: list[dict]) -> bool:
    """Whether a method with these points is measured at the next length."""
    seconds, size = ([p[key] for p in points] for key in ("seconds", "bytes"))
    return next_value(seconds) <= MOST_SECONDS and next_value(size) <= MOST_BYTES


def summary(name: str, own: list[dict], points: dict[str, list[dict]]) -> dict:
    """A method's exponents and the length from which on it is faster than torch's attention."""
    last = own[-DOUBLINGS - 1 :]
    at = [p["length"] for p in last]
    slopes = [exponent(at, seconds) for seconds in zip(*(p["rounds"] for p in last), strict=True)]
    baseline = points[BASELINES[name in NOT_CAUSAL]]
    both = list(zip(own, baseline, strict=False))  # either may have stopped
    ratios = [
        statistics.median(b / a for a, b in zip(p["rounds"], q["rounds"], strict=True))
        for p, q in both
    ]
    return {
        "name": name,
        "causal": name not in NOT_CAUSAL,
        "points": own,
        "fitted": at,
        "exponent": vars(median_interval(slopes)),
        "memory_exponent": exponent(at, [p["bytes"] for p in last]),
        "speedup": ratios,
        "crossover": crossing([p["length"] for p, _ in both], ratios),
    }


def main() -> None:
    points: dict[str, list[dict]] = {name: [] for name in methods(LENGTHS[0])}
    for length in LENGTHS:
        names = [name for name, own in points.items() if goes_on(own)]
        for name, point in measured(measure, length=length, names=names).items():
            points[name].append(point)
            print(json.dumps({"name": name} | point), flush=True)
    figures = {
        "heads": HEADS,
        "dim": DIM,
        "threads": 1,
        "lengths": LENGTHS,
        "rounds": ROUNDS,
        "doublings": DOUBLINGS,
        "most_seconds": MOST_SECONDS,
        "most_bytes": MOST_BYTES,
        "options": {
            "window": WINDOW,
            "block": BLOCK,
            "random_blocks": RANDOM_BLOCKS,
            "rank": RANK,
            "landmarks": LANDMARKS,
            "features": FEATURES,
            "s4d_state": MODES,
            "mamba_state": STATE,
        },
        "methods": [summary(name, own, points) for name, own in points.items()],
    }
    print(record("attention_scaling", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
