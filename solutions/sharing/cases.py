"""Inputs of the exercises on weight sharing: SHOWN in instant checks, HIDDEN for grading.

function -> cases, each of a few words on what is special in it, and the keyword arguments.
"""

import torch
from torch import Tensor

random = torch.Generator().manual_seed(6)


def normal(*shape: int, steps: int = 4, spread: float = 1.0) -> Tensor:
    """Numbers that take few characters in a file: so many to a step of one."""
    x = spread * torch.randn(*shape, generator=random).double()
    return (steps * x).round() / steps


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ones(size: int) -> Tensor:
    return torch.ones(size).double()


def layers(rows: int, columns: int, rank: int) -> dict[str, Tensor | int]:
    return {"first": normal(rows, columns), "second": normal(rows, columns), "rank": rank}


def apart(rows: int, columns: int, difference: int, rank: int) -> dict[str, Tensor | int]:
    """Two layers whose difference has a given rank."""
    first = normal(rows, columns)
    second = first + normal(rows, difference, steps=2) @ normal(difference, columns, steps=2)
    return {"first": first, "second": second, "rank": rank}


def heads(count: int, dim: int, inputs: int, outputs: int, rounds: int) -> dict[str, Tensor | int]:
    return {
        "heads": normal(count, dim, inputs),
        "readers": normal(count, dim, outputs),
        "rounds": rounds,
    }


def one_turned(turns: list[Tensor], inputs: int, rounds: int) -> dict[str, Tensor | int]:
    """Heads that are one head, turned in several ways."""
    head = normal(len(turns[0]), inputs)
    together = torch.stack([turn @ head for turn in turns])
    return {"heads": together, "readers": normal(*together.shape[:2], 2), "rounds": rounds}


def weighed(count: int, clusters: int, *, spread: float = 1.0) -> dict[str, Tensor | int]:
    """Values of which some are equal, and importances that are very different."""
    importance = (2 * torch.randn(count, generator=random)).exp().double()
    return {
        "values": normal(count, steps=100, spread=spread),
        "importance": (1000 * importance).ceil() / 1000,
        "clusters": clusters,
    }


def sums(vectors: int, width: int, first: int, second: int, *, steps=100) -> dict[str, Tensor]:
    """Vectors, and two codebooks of these sizes."""
    return {
        "vectors": normal(vectors, width, steps=steps),
        "first": normal(first, width, steps=steps, spread=0.8),
        "second": normal(second, width, steps=steps, spread=0.5),
    }


def coded(count: int, codes: int, price: float, rounds: int) -> dict[str, Tensor | float | int]:
    """Values, and a codebook of even distances to begin with."""
    return {
        "values": normal(count, steps=1000),
        "codebook": torch.linspace(-2.5, 2.5, codes).double() + 0.0123,
        "bits": torch.zeros(codes).double(),
        "price": price,
        "rounds": rounds,
    }


def tailed(symbols: int, power: float) -> list[int]:
    """Counts of which a few are large and most are small, in no order, no two of them equal."""
    order = torch.randperm(symbols, generator=random).tolist()
    return [round(1e7 / (i + 1) ** power) + 13 * i * i + 7 * i for i in order]


TURN, MIRROR = numbers(0.6, -0.8, 0.8, 0.6).view(2, 2), numbers(1, 0, 0, -1).view(2, 2)
SAME = torch.eye(2).double()
LAYER = normal(4, 3)
FEW = numbers(0.1, 0.4, -0.3, 1.3, 1.9, -1.7, 0.2, -0.8, 2.6, 0.6)

SHOWN = {
    "pair_offsets": [
        ("offsets of rank 1", layers(4, 4, 1)),
        ("two layers whose difference has rank 2, and offsets of rank 1", apart(4, 5, 2, 1)),
        ("rank 0: nothing but the shared matrix", layers(3, 2, 0)),
        ("a rank with which nothing is lost", layers(3, 4, 2)),
        ("wide layers", layers(3, 6, 1)),
    ],
    "turn_heads": [
        ("a head, and the same head turned", one_turned([SAME, TURN], 3, 1)),
        ("two heads that are not alike, one round", heads(2, 2, 3, 2, 1)),
        ("a head, and its mirror image", one_turned([SAME, MIRROR], 3, 1)),
        ("three heads, and readers of another width, three rounds", heads(3, 2, 3, 4, 3)),
        ("one head", heads(1, 2, 3, 2, 2)),
    ],
    "best_codebook": [
        (
            "two clusters",
            {"values": numbers(0, 1, 2, 10, 11, 15), "importance": ones(6), "clusters": 2},
        ),
        (
            "values where the steps of k-means end too early",
            {
                "values": numbers(2, 8, 10, 11, 16, 21, 22, 26, 28),
                "importance": ones(9),
                "clusters": 3,
            },
        ),
        (
            "values that do not count the same",
            {
                "values": numbers(3.5, -1, 3.5, 5, 2, -1.5, 0.5, 0, -1.5),
                "importance": numbers(5, 0.25, 0.25, 0.25, 5, 5, 1, 0.5, 0.5),
                "clusters": 3,
            },
        ),
        (
            "values in no order, some of them equal",
            {
                "values": numbers(0.5, -1, 1, 3.5, -1.5, 3, 5, 1, 3),
                "importance": numbers(9, 0.25, 9, 5, 0.25, 1, 5, 2, 2),
                "clusters": 3,
            },
        ),
        (
            "fewer different values than clusters",
            {
                "values": numbers(1, 3, 1, 3),
                "importance": numbers(1, 2, 3, 4),
                "clusters": 3,
            },
        ),
        (
            "values of importance 0",
            {
                "values": numbers(5, 1, 2, 9, 4, 7),
                "importance": numbers(0, 1, 2, 0, 1, 0),
                "clusters": 3,
            },
        ),
    ],
    "best_pairs": [
        (
            "a vector for which the nearest of the first codebook is the wrong one",
            {
                "vectors": numbers(1.8, 6.9, -2.6).view(3, 1),
                "first": numbers(0, 4).view(2, 1),
                "second": numbers(3, -3.2, 0.5).view(3, 1),
            },
        ),
        ("vectors of three numbers", sums(4, 3, 3, 3)),
        ("codebooks of different sizes", sums(5, 2, 5, 2)),
        ("a second codebook with one vector", sums(4, 2, 3, 1)),
    ],
    "entropy_codes": [
        (
            "one round, with bits that are not equal",
            {
                "values": FEW,
                "codebook": numbers(-1.5, 0.05, 0.75, 2.2),
                "bits": numbers(4, 1, 2, 3),
                "price": 0.2,
                "rounds": 1,
            },
        ),
        (
            "three rounds, with no bits to begin with",
            {
                "values": numbers(-0.3, -0.4, -0.2, 0.3, 2, -1.4, -1.4, 0, 0.9, -1.2, -1.5, 3.4),
                "codebook": numbers(-1.57, -0.37, -0.07, 0.43),
                "bits": torch.zeros(4).double(),
                "price": 0.3,
                "rounds": 3,
            },
        ),
        (
            "a code that no value chooses",
            {
                "values": FEW,
                "codebook": numbers(-1, 0, 9, 1),
                "bits": numbers(2, 1, 3, 2),
                "price": 0.1,
                "rounds": 1,
            },
        ),
        (
            "a code of infinite bits, and bits that cost nothing",
            {
                "values": FEW,
                "codebook": numbers(-1, 0, 1, 2.1),
                "bits": numbers(2, torch.inf, 1, 3),
                "price": 0.0,
                "rounds": 1,
            },
        ),
        (
            "a price at which one code is left",
            {
                "values": FEW,
                "codebook": numbers(-1, 0.15, 1.1),
                "bits": numbers(2, 1, 2),
                "price": 25.0,
                "rounds": 3,
            },
        ),
    ],
    "limited_lengths": [
        ("a limit that matters", {"counts": [6, 43, 3, 4, 2, 18, 57], "longest": 4}),
        ("three symbols", {"counts": [54, 72, 83], "longest": 2}),
        ("a limit that does not matter", {"counts": [5, 9, 12, 13, 16, 45], "longest": 8}),
        ("a symbol that does not occur", {"counts": [30, 0, 1, 14, 2, 6], "longest": 3}),
        ("as many symbols as there are codes", {"counts": [50, 1, 9, 3], "longest": 2}),
        ("a symbol that is alone", {"counts": [0, 7, 0], "longest": 3}),
        ("more symbols than codes", {"counts": [4, 1, 7, 3, 2], "longest": 2}),
    ],
}

HIDDEN = {
    "pair_offsets": [
        ("large layers", layers(30, 20, 4)),
        ("tall layers", layers(12, 5, 2)),
        ("a rank that is higher than any matrix has", layers(5, 4, 9)),
        ("two layers that are the same", {"first": LAYER, "second": LAYER.clone(), "rank": 1}),
        ("two layers whose difference has rank 4, and offsets of rank 2", apart(8, 9, 4, 2)),
        (
            "one layer much larger than the other",
            {"first": 50 * normal(9, 7), "second": normal(9, 7), "rank": 2},
        ),
    ],
    "turn_heads": [
        ("many heads", heads(8, 4, 12, 6, 4)),
        ("many rounds", heads(4, 3, 8, 3, 20)),
        (
            "heads of one number that have opposite signs",
            {
                "heads": numbers(1, 2, -1, -3, 2, 5).view(3, 1, 2),
                "readers": normal(3, 1, 2),
                "rounds": 2,
            },
        ),
        (
            "heads of very different lengths",
            {
                **heads(3, 3, 6, 2, 5),
                "heads": normal(3, 3, 6) * numbers(1, 100, 0.01).view(3, 1, 1),
            },
        ),
        ("one head in five positions", one_turned([SAME, TURN, MIRROR, TURN @ TURN, TURN.T], 4, 2)),
        ("a single round with many heads", heads(6, 3, 7, 5, 1)),
    ],
    "best_codebook": [
        ("many values", weighed(300, 8)),
        ("a thousand values, three clusters", weighed(1000, 3)),
        ("some dozens of clusters", weighed(120, 32)),
        (
            "values of which a few are very large",
            {
                "values": torch.cat([normal(60, steps=100), numbers(40, -75, 41.5)]),
                "importance": ones(63),
                "clusters": 5,
            },
        ),
        ("one cluster", weighed(9, 1)),
        (
            "as many clusters as values",
            {"values": numbers(3, -1, 2.5, 8), "importance": numbers(1, 5, 2, 1), "clusters": 4},
        ),
        (
            "one value, many times",
            {"values": numbers(2.5, 2.5, 2.5), "importance": numbers(1, 0, 2), "clusters": 2},
        ),
        (
            "many values of which half do not count",
            {
                "values": normal(80, steps=100),
                "importance": ones(80).where(torch.arange(80) % 2 == 0, 0),
                "clusters": 6,
            },
        ),
    ],
    "best_pairs": [
        ("many vectors", sums(1500, 8, 16, 12)),
        ("differences that have no room in memory", sums(800, 64, 64, 60)),
        ("vectors of one number", sums(20, 1, 6, 5, steps=10**6)),
        ("a first codebook with one vector", sums(9, 3, 1, 7)),
        (
            "vectors far from zero",
            {
                key: value + {"vectors": 300, "first": 500, "second": -200}[key]
                for key, value in sums(50, 4, 8, 8).items()
            },
        ),
        (
            "halves as a special case",
            {
                "vectors": normal(40, 4, steps=100),
                "first": normal(6, 4, steps=100) * numbers(1, 1, 0, 0),
                "second": normal(6, 4, steps=100) * numbers(0, 0, 1, 1),
            },
        ),
    ],
    "entropy_codes": [
        ("many values and codes", coded(2000, 16, 0.1, 12)),
        ("bits that cost nothing, many rounds", coded(300, 12, 0.0, 10)),
        ("a high price", coded(500, 8, 1.5, 8)),
        (
            "codes of infinite bits to begin with",
            {
                **coded(200, 6, 0.05, 4),
                "bits": numbers(3, torch.inf, 1, 2, torch.inf, 3),
            },
        ),
        (
            "one code",
            {
                "values": FEW,
                "codebook": numbers(5),
                "bits": numbers(2),
                "price": 1.0,
                "rounds": 2,
            },
        ),
        (
            "large values, with a price in their units",
            {
                "values": normal(150, steps=10, spread=300),
                "codebook": numbers(-700, -250, 10, 260, 650),
                "bits": numbers(3, 2, 1, 2, 3),
                "price": 9000.0,
                "rounds": 5,
            },
        ),
        (
            "codes that lose their values one after another",
            {
                "values": torch.cat([0.01 * normal(60, steps=1000), numbers(1.5, -1.5)]),
                "codebook": torch.linspace(-1.5, 1.5, 9).double() + 0.01,
                "bits": torch.zeros(9).double(),
                "price": 0.004,
                "rounds": 6,
            },
        ),
    ],
    "limited_lengths": [
        ("many symbols", {"counts": tailed(120, 2.5), "longest": 9}),
        ("as many bits as the symbols need, and no more", {"counts": tailed(33, 3), "longest": 6}),
        (
            "counts for which the codes of Huffman are very long",
            {"counts": [round(1.7**i) + i for i in range(1, 26)], "longest": 7},
        ),
        ("a limit far above what is needed", {"counts": tailed(40, 1.2), "longest": 30}),
        ("two symbols", {"counts": [3, 0, 0, 5], "longest": 1}),
        (
            "many symbols of which most do not occur",
            {
                "counts": [n if i % 5 == 0 else 0 for i, n in enumerate(tailed(100, 2))],
                "longest": 5,
            },
        ),
        ("a symbol that is alone, and a limit of 1", {"counts": [9], "longest": 1}),
        ("one symbol too many", {"counts": list(range(10, 19)), "longest": 3}),
    ],
}
