"""Inputs of the exercises on measuring: SHOWN in instant checks, HIDDEN for grading.

function -> cases, each of a few words on what is special in it, and the keyword arguments.
"""

import math

import torch
from torch import Tensor

random = torch.Generator().manual_seed(1)


def seconds(parts: int) -> dict[str, float]:
    return {
        f"part {i}": time for i, time in enumerate(torch.rand(parts, generator=random).tolist())
    }


def answers(n: int, accuracy: float) -> Tensor:
    return torch.rand(n, generator=random) < accuracy


def losses(texts: int, tokens: int) -> Tensor:
    return 5 * torch.rand(texts, tokens, generator=random)


def padded(lengths: list[int]) -> Tensor:
    return torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]


def with_nan(values: Tensor, mask: Tensor) -> Tensor:
    return values.masked_fill(~mask, math.nan)


RUN = {"attention": 3.0, "feed-forward": 5.0, "rest": 2.0}
MODEL = {"kv_heads": 4, "head_dim": 64}
CHIP = {"bandwidth": 1e12, "peak_flops": 1e14}
YEARS = torch.tensor([2018.4, 2019.1, 2019.8, 2020.4, 2021.0])
SIZES = torch.tensor([110_000_000, 1_500_000_000, 11_000_000_000, 175_000_000_000, 280_000_000_000])
SPREAD = 2017 + 6 * torch.rand(12, generator=random).double()

SHOWN = {
    "amdahl": [
        ("one part of three, twice as fast", {"seconds": RUN, "speedups": {"feed-forward": 2.0}}),
        (
            "two parts, one of them slower than before",
            {"seconds": RUN, "speedups": {"attention": 3.0, "rest": 0.5}},
        ),
        (
            "a part that takes no time any more",
            {"seconds": RUN, "speedups": {"attention": math.inf}},
        ),
        ("nothing is faster", {"seconds": RUN, "speedups": {}}),
    ],
    "sentences_needed": [
        (
            "20 sentences that the models disagree on, 12 to 8, of 100",
            {
                "first": torch.arange(100) < 80,
                "second": (torch.arange(100) >= 12) & (torch.arange(100) < 88),
                "half_width": 0.02,
            },
        ),
        (
            "a small pilot and a wide interval",
            {"first": answers(30, 0.8), "second": answers(30, 0.7), "half_width": 0.13},
        ),
        (
            "two models that agree everywhere",
            {"first": torch.arange(30) < 25, "second": torch.arange(30) < 25, "half_width": 0.05},
        ),
    ],
    "bits_per_byte": [
        (
            "two texts of the same length",
            {
                "losses": losses(2, 4),
                "mask": torch.ones(2, 4, dtype=torch.bool),
                "texts": ["a good film", "a bad one"],
            },
        ),
        (
            "a text that is padded",
            {"losses": losses(2, 6), "mask": padded([6, 2]), "texts": ["so it goes on", "no"]},
        ),
        (
            "letters that take more than a byte",
            {"losses": losses(1, 5), "mask": padded([5]), "texts": ["naïve 🙂"]},
        ),
    ],
    "tokens_that_fit": [
        (
            "global layers only",
            {"budget": 1e6, "global_layers": 3, "local_layers": 0, "window": 8, **MODEL},
        ),
        (
            "a window that is not full yet",
            {"budget": 1e6, "global_layers": 2, "local_layers": 2, "window": 900, **MODEL},
        ),
        (
            "a window that is full",
            {"budget": 1e6, "global_layers": 2, "local_layers": 2, "window": 100, **MODEL},
        ),
        (
            "8 bits",
            {
                "budget": 1e6,
                "global_layers": 2,
                "local_layers": 1,
                "window": 50,
                **MODEL,
                "bits": 8,
            },
        ),
    ],
    "crossover_batch": [
        (
            "no cache, and lines that meet at a whole number",
            {"weights": 64.0, "cache": 0.0, "operations": 8.0, "bandwidth": 2.0, "peak_flops": 4.0},
        ),
        ("a small cache", {"weights": 1e9, "cache": 3e6, "operations": 1e9, **CHIP}),
        ("a cache that costs too much", {"weights": 1e9, "cache": 3e7, "operations": 1e9, **CHIP}),
    ],
    "influence": [
        ("five models", {"years": YEARS, "parameters": SIZES}),
        (
            "a trend that is exact, so that nobody matters",
            {
                "years": torch.tensor([0.0, 1.0, 2.0, 4.0]),
                "parameters": 2.0 ** torch.tensor([20, 22, 24, 28]),
            },
        ),
    ],
}

HIDDEN = {
    "amdahl": [
        (
            "six parts, some faster",
            {"seconds": seconds(6), "speedups": {"part 1": 4.0, "part 3": 1.5, "part 5": 0.8}},
        ),
        (
            "parts that take no time any more",
            {"seconds": seconds(4), "speedups": {"part 0": math.inf, "part 2": math.inf}},
        ),
        (
            "all parts at once, by the same",
            {"seconds": RUN, "speedups": dict.fromkeys(RUN, 3.0)},
        ),
        ("no time is left", {"seconds": RUN, "speedups": dict.fromkeys(RUN, math.inf)}),
    ],
    "sentences_needed": [
        (
            "a large pilot",
            {"first": answers(400, 0.86), "second": answers(400, 0.8), "half_width": 0.03},
        ),
        (
            "a model that is always right, and one that is not",
            {
                "first": torch.ones(60, dtype=torch.bool),
                "second": answers(60, 0.6),
                "half_width": 0.05,
            },
        ),
        (
            "a model that is always wrong",
            {
                "first": torch.zeros(50, dtype=torch.bool),
                "second": answers(50, 0.4),
                "half_width": 0.11,
            },
        ),
        (
            "two models that are always wrong",
            {
                "first": torch.zeros(9, dtype=torch.bool),
                "second": torch.zeros(9, dtype=torch.bool),
                "half_width": 0.1,
            },
        ),
    ],
    "bits_per_byte": [
        (
            "three texts, padded",
            {
                "losses": losses(3, 9),
                "mask": padded([9, 3, 1]),
                "texts": ["the end of the affair", "après vous", "∞"],
            },
        ),
        (
            "padding where the loss is nan",
            {
                "losses": with_nan(losses(2, 5), padded([5, 2])),
                "mask": padded([5, 2]),
                "texts": ["über alle Maßen", "ok"],
            },
        ),
        (
            "many tokens, in float16",
            {
                "losses": (20 + losses(4, 300)).half(),
                "mask": padded([300, 299, 250, 4]),
                "texts": ["x" * 900, "y" * 800, "é" * 400, "z"],
            },
        ),
    ],
    "tokens_that_fit": [
        (
            "a window that is just full",
            {"budget": 1024 * 60.0, "global_layers": 1, "local_layers": 1, "window": 30, **MODEL},
        ),
        (
            "a token more for the global layers alone",
            {"budget": 1024 * 122.0, "global_layers": 1, "local_layers": 3, "window": 30, **MODEL},
        ),
        (
            "local layers only, and room for all their windows",
            {"budget": 1e6, "global_layers": 0, "local_layers": 4, "window": 100, **MODEL},
        ),
        (
            "local layers only, and no room for their windows",
            {"budget": 1e5, "global_layers": 0, "local_layers": 4, "window": 100, **MODEL},
        ),
        (
            "no room for a single token",
            {"budget": 1000.0, "global_layers": 2, "local_layers": 2, "window": 10, **MODEL},
        ),
        (
            "a large model at 4 bits",
            {
                "budget": 8e9,
                "global_layers": 16,
                "local_layers": 48,
                "window": 4096,
                "kv_heads": 8,
                "head_dim": 128,
                "bits": 4,
            },
        ),
    ],
    "crossover_batch": [
        ("a large model", {"weights": 14e9, "cache": 5e6, "operations": 14e9, **CHIP}),
        (
            "a fast memory and slow arithmetic",
            {
                "weights": 1e6,
                "cache": 0.0,
                "operations": 1e9,
                "bandwidth": 1e12,
                "peak_flops": 1e11,
            },
        ),
        (
            "a cache that costs as much as the arithmetic",
            {"weights": 1e9, "cache": 1e7, "operations": 1e9, **CHIP},
        ),
        (
            "the lines meet at a whole number",
            {
                "weights": 210.0,
                "cache": 2.0,
                "operations": 16.0,
                "bandwidth": 4.0,
                "peak_flops": 4.0,
            },
        ),
        (
            "a chip with little memory traffic",
            {
                "weights": 7e9,
                "cache": 1e6,
                "operations": 13e9,
                "bandwidth": 5e10,
                "peak_flops": 4e12,
            },
        ),
    ],
    "influence": [
        (
            "twelve models",
            {
                "years": SPREAD,
                "parameters": 2 ** (25 + 2 * (SPREAD - 2017) + torch.randn(12, generator=random)),
            },
        ),
        (
            "a trend that falls",
            {
                "years": torch.tensor([2020.0, 2021.0, 2022.5, 2024.0]),
                "parameters": torch.tensor([9e11, 3e11, 2e11, 4e10]),
            },
        ),
        (
            "three models, whole numbers",
            {
                "years": torch.tensor([2019.5, 2021.25, 2023.0]),
                "parameters": torch.tensor([340_000_000, 10_000_000_000_000, 7_000_000_000]),
            },
        ),
    ],
}
