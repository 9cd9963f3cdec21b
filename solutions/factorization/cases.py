"""Inputs of the exercises on factorization: SHOWN in instant checks, HIDDEN for grading.

function -> cases, each of a few words on what is special in it, and the keyword arguments.
"""

import torch
from torch import Tensor

random = torch.Generator().manual_seed(4)


def normal(*shape: int, steps: int = 4) -> Tensor:
    """Numbers that take few characters in a file, and none of them 0: so many to a step of one."""
    x = torch.randn(*shape, generator=random).double()
    return ((steps * x).floor() + 0.5) / steps


def gram(size: int, *, spread: float = 0.0) -> Tensor:
    """X Xᵀ of inputs that go together: 2 · size tokens, mixed from as many sources as inputs.

    Args:
        spread: how far apart the sizes of the inputs are, in powers of ten to either side.
    """
    mix, sources = (torch.randn(size, n, generator=random).double() for n in (size, 2 * size))
    sizes = 10 ** torch.linspace(-spread, spread, size)[:, None]
    x = mix @ sources
    x = x * sizes if spread else x.round()  # whole numbers take few characters in a file
    return x @ x.T


def factorized(outputs: int, inputs: int, rank: int) -> dict[str, Tensor]:
    """Arguments of `refit_factors`, without rounds."""
    return {
        "weight": normal(outputs, inputs),
        "right": normal(rank, inputs),
        "hessian": gram(inputs),
    }


def sided(outputs: int, inputs: int, *, spread: float = 0.0) -> dict[str, Tensor]:
    """Arguments of `two_sided_svd`, without the rank."""
    return {
        "weight": normal(outputs, inputs),
        "outputs": gram(outputs, spread=spread),
        "inputs": gram(inputs, spread=-spread),
    }


def adapter(outputs: int, inputs: int, rank: int, scale: float) -> tuple[Tensor, Tensor, float]:
    return normal(outputs, rank), normal(rank, inputs, steps=16), scale


def counted(*counts: int) -> Tensor:
    return torch.tensor(counts)


def zipf(tokens: int) -> Tensor:
    """Counts of as many tokens, in no order; many of the rare ones are equal."""
    ranks = torch.randperm(tokens, generator=random) + 1
    return 3 * tokens // ranks


THREE = [normal(3, 4), normal(1, 4), normal(2, 4)]
SIZES = [normal(4, 6), 8 * normal(3, 6), normal(5, 6) / 8]
DIAGONALS = {
    "weight": normal(2, 3),
    "outputs": torch.tensor([4.0, 0.25]).double().diag(),
    "inputs": torch.tensor([1.0, 9.0, 0.25]).double().diag(),
}
LIKE_IDENTITY = 2 * torch.eye(3).double()
# In an adapter the columns are in no order: here the second is the longer one.
ONE = (torch.tensor([[1, 2], [0.5, -1], [-1, 3], [0, 2.5]]).double(), 0.5 + normal(2, 4), 1.0)

SHOWN = {
    "energy_rank": [
        (
            "four values, none of them 0",
            {"singular_values": torch.tensor([4.0, 2, 1, 1]), "fraction": 0.9, "shape": (6, 4)},
        ),
        (
            "equal values, of which half have just half of the energy",
            {"singular_values": torch.tensor([2.0, 2, 2, 2]), "fraction": 0.5, "shape": (4, 8)},
        ),
        (
            "a rank at which factors do not pay",
            {"singular_values": torch.tensor([5.0, 4, 4, 3, 2]), "fraction": 0.95, "shape": (5, 5)},
        ),
        (
            "all of the energy, where the last values are 0",
            {"singular_values": torch.tensor([3.0, 1, 0, 0]), "fraction": 1.0, "shape": (4, 6)},
        ),
        (
            "a matrix of zeros",
            {"singular_values": torch.zeros(3), "fraction": 0.8, "shape": (3, 7)},
        ),
    ],
    "shared_factor": [
        ("two layers of the same shape", {"weights": [normal(3, 4), normal(3, 4)], "budget": 20}),
        ("three layers of different heights", {"weights": THREE, "budget": 24}),
        ("one layer", {"weights": [normal(4, 3)], "budget": 8}),
        (
            "a budget for more than there is",
            {"weights": [normal(2, 4), normal(1, 4)], "budget": 99},
        ),
        ("a budget that is too small", {"weights": THREE, "budget": 9}),
    ],
    "refit_factors": [
        (
            "inputs of one size that do not go together",
            {
                "weight": normal(4, 3),
                "right": normal(1, 3),
                "hessian": LIKE_IDENTITY,
                "rounds": 1,
            },
        ),
        ("inputs that go together", {**factorized(3, 4, 2), "rounds": 1}),
        ("three rounds", {**factorized(3, 4, 2), "rounds": 3}),
        ("factors of full rank", {**factorized(4, 3, 3), "rounds": 1}),
    ],
    "two_sided_svd": [
        ("two diagonal matrices", {**DIAGONALS, "rank": 1}),
        (
            "outputs that all count the same",
            {**sided(2, 3), "outputs": torch.eye(2).double(), "rank": 1},
        ),
        (
            "inputs that all count the same",
            {**sided(3, 2), "inputs": torch.eye(2).double(), "rank": 1},
        ),
        ("both sides full", {**sided(3, 4), "rank": 2}),
        ("a square weight", {**sided(3, 3), "rank": 1}),
    ],
    "merge_adapters": [
        ("one adapter, cut to rank 1", {"adapters": [ONE], "rank": 1}),
        (
            "two adapters with scales of their own",
            {"adapters": [adapter(4, 4, 2, 2.0), adapter(4, 4, 1, 0.5)], "rank": 2},
        ),
        (
            "two adapters of which nothing is cut",
            {"adapters": [adapter(3, 5, 1, 1.0), adapter(3, 5, 1, 1.0)], "rank": 2},
        ),
        (
            "adapters that have more ranks together than there are inputs",
            {"adapters": [adapter(4, 3, 2, 1.0), adapter(4, 3, 2, 1.5)], "rank": 2},
        ),
    ],
    "band_table": [
        (
            "six tokens, of which the two most frequent stay as they are",
            {
                "table": normal(6, 3),
                "counts": counted(3, 90, 5, 2, 70, 4),
                "bands": [(2, 3), (4, 1)],
            },
        ),
        (
            "tokens that occur equally often",
            {
                "table": normal(7, 3),
                "counts": counted(1, 1, 8, 0, 1, 8, 1),
                "bands": [(3, 2), (4, 1)],
            },
        ),
        (
            "factors that are as large as the rows of their band",
            {
                "table": normal(9, 4),
                "counts": counted(9, 8, 1, 2, 7, 6, 3, 5, 4),
                "bands": [(4, 2), (5, 1)],
            },
        ),
        (
            "two bands that are both factorized",
            {
                "table": normal(9, 4),
                "counts": counted(4, 31, 3, 2, 30, 29, 6, 5, 28),
                "bands": [(5, 2), (4, 1)],
            },
        ),
        (
            "bands that leave out a token",
            {"table": normal(4, 2), "counts": counted(4, 3, 2, 1), "bands": [(1, 2), (2, 1)]},
        ),
    ],
}

HIDDEN = {
    "energy_rank": [
        (
            "many values",
            {
                "singular_values": (3 * torch.rand(40, generator=random)).sort(descending=True)[0],
                "fraction": 0.8,
                "shape": (40, 90),
            },
        ),
        (
            "small values beside a large one",
            {
                "singular_values": torch.tensor([4096.0, 1, 0.5, 0.25]),
                "fraction": 1.0,
                "shape": (4, 9),
            },
        ),
        (
            "a small fraction",
            {"singular_values": torch.tensor([3.0, 3, 3]), "fraction": 0.01, "shape": (8, 3)},
        ),
        (
            "one value",
            {"singular_values": torch.tensor([2.5]), "fraction": 0.5, "shape": (1, 9)},
        ),
        (
            "a share that is just missed",
            {"singular_values": torch.tensor([8.0, 6, 5, 1]), "fraction": 0.8, "shape": (9, 4)},
        ),
        (
            "factors that are just as large as the matrix",
            {"singular_values": torch.tensor([2.0, 2, 1, 1]), "fraction": 0.8, "shape": (4, 4)},
        ),
        (
            "values that fall fast, in float64",
            {
                "singular_values": 0.5 ** torch.arange(12).double(),
                "fraction": 0.999,
                "shape": (64, 12),
            },
        ),
    ],
    "shared_factor": [
        ("many layers", {"weights": [normal(6, 10) for _ in range(5)], "budget": 170}),
        ("layers of very different sizes of weights", {"weights": SIZES, "budget": 36}),
        ("a budget that is just used up", {"weights": [normal(5, 4), normal(3, 4)], "budget": 36}),
        ("a budget that is short by one", {"weights": [normal(5, 4), normal(3, 4)], "budget": 35}),
        ("more outputs than inputs", {"weights": [normal(9, 2), normal(8, 2)], "budget": 10_000}),
        ("layers of one output", {"weights": [normal(1, 6), normal(1, 6)], "budget": 8}),
        ("no budget", {"weights": [normal(2, 3)], "budget": 0}),
        (
            "weights in float32",
            {"weights": [normal(4, 6).float(), normal(6, 6).float()], "budget": 50},
        ),
    ],
    "refit_factors": [
        ("a large layer", {**factorized(12, 9, 4), "rounds": 2}),
        ("many rounds", {**factorized(6, 7, 3), "rounds": 8}),
        ("rank 1", {**factorized(5, 6, 1), "rounds": 2}),
        (
            "inputs of very different sizes",
            {**factorized(5, 6, 2), "hessian": gram(6, spread=0.7), "rounds": 1},
        ),
        ("fewer outputs than inputs", {**factorized(2, 8, 2), "rounds": 1}),
        ("a rank of all inputs", {**factorized(9, 4, 4), "rounds": 3}),
    ],
    "two_sided_svd": [
        ("a large layer", {**sided(12, 9), "rank": 4}),
        ("more inputs than outputs", {**sided(3, 8), "rank": 2}),
        ("full rank", {**sided(5, 4), "rank": 4}),
        ("sizes that are very different", {**sided(5, 6, spread=0.6), "rank": 2}),
        ("a square weight", {**sided(6, 6), "rank": 3}),
        ("one output", {**sided(1, 4), "rank": 1}),
    ],
    "merge_adapters": [
        (
            "a layer whose update has no room in memory",
            {"adapters": [adapter(40_000, 30_000, 2, 0.5)], "rank": 1},
        ),
        (
            "three adapters",
            {"adapters": [adapter(9, 12, rank, 1.5) for rank in (2, 3, 1)], "rank": 4},
        ),
        (
            "an adapter that is taken off again",
            {"adapters": [adapter(8, 7, 2, 1.0), adapter(8, 7, 2, -0.75)], "rank": 3},
        ),
        ("full rank", {"adapters": [adapter(3, 9, 2, 1.0), adapter(3, 9, 3, 2.0)], "rank": 3}),
        ("one output", {"adapters": [adapter(1, 6, 1, 0.25), adapter(1, 6, 1, 1.0)], "rank": 1}),
    ],
    "band_table": [
        (
            "many tokens",
            {"table": normal(60, 8), "counts": zipf(60), "bands": [(6, 8), (14, 3), (40, 2)]},
        ),
        ("one band", {"table": normal(12, 5), "counts": zipf(12), "bands": [(12, 2)]}),
        (
            "a band of one token",
            {"table": normal(9, 3), "counts": zipf(9), "bands": [(1, 1), (8, 1)]},
        ),
        (
            "a rank that the band cannot have",
            {"table": normal(10, 4), "counts": zipf(10), "bands": [(3, 7), (7, 2)]},
        ),
        (
            "counts that are all 0",
            {"table": normal(8, 3), "counts": torch.zeros(8).long(), "bands": [(4, 1), (4, 1)]},
        ),
        (
            "bands with too many tokens",
            {"table": normal(5, 3), "counts": zipf(5), "bands": [(3, 3), (3, 1)]},
        ),
        (
            "a rank that grows with rarity",
            {"table": normal(20, 6), "counts": zipf(20), "bands": [(9, 1), (11, 3)]},
        ),
    ],
}
