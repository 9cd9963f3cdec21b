"""Inputs of the exercises on pruning: SHOWN in instant checks, HIDDEN for grading.

function -> cases, each of a few words on what is special in it, and the keyword arguments.
"""

import torch
from torch import Tensor

random = torch.Generator().manual_seed(2)


def normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=random)


def distinct(*shape: int) -> Tensor:
    """Values of either sign, no two of the same magnitude."""
    n = torch.Size(shape).numel()
    sign = torch.randint(2, (n,), generator=random) * 2 - 1
    return (sign * (torch.randperm(n, generator=random) + 1) / 7).view(shape)


def mask(*shape: int, kept: float) -> Tensor:
    """True at round(kept · n) random places."""
    n = torch.Size(shape).numel()
    return (torch.randperm(n, generator=random) < round(kept * n)).view(shape)


def places(*where: int, shape: tuple[int, int]) -> Tensor:
    """True at these places, counted from 0, row by row."""
    flat = torch.zeros(shape[0] * shape[1], dtype=torch.bool)
    flat[list(where)] = True
    return flat.view(shape)


ENCODER = [(384, 384)] * 4 + [(1536, 384), (384, 1536)]
BLOCKS = torch.tensor(
    [[9, 3, 5, 0], [0, 0, 0, 0], [2.5, 2.5, 4, 4], [2.5, 2.5, 0.5, 0.5]]
)  # two blocks have the largest sums, others the largest squares, others the largest score
NUMBERS = torch.arange(12.0).view(3, 4)

SHOWN = {
    "layer_sparsities": [
        ("two layers of one encoder", {"shapes": [(384, 384), (1536, 384)], "sparsity": 0.5}),
        ("layers that are all alike", {"shapes": [(64, 64)] * 3, "sparsity": 0.3}),
        (
            "a small layer that stays dense",
            {"shapes": [(2, 64), (64, 64), (128, 64)], "sparsity": 0.5},
        ),
        ("nothing to remove", {"shapes": [(8, 16), (16, 4)], "sparsity": 0.0}),
    ],
    "keep_blocks": [
        ("a 4 × 4 matrix in blocks of 2", {"scores": BLOCKS, "block": 2, "sparsity": 0.5}),
        ("a wide matrix", {"scores": distinct(4, 12), "block": 2, "sparsity": 0.25}),
        ("blocks that are all alike", {"scores": torch.ones(4, 6), "block": 2, "sparsity": 0.5}),
        ("blocks of one weight", {"scores": distinct(3, 5), "block": 1, "sparsity": 0.4}),
    ],
    "gap_bytes": [
        (
            "values at the places 1, 4 and 15",
            {"mask": places(0, 3, 14, shape=(4, 4)), "bits": 3, "value_bits": 29},
        ),
        ("a matrix that is full", {"mask": mask(4, 6, kept=1), "bits": 2, "value_bits": 6}),
        (
            "a value just in reach, and one just out of it",
            {"mask": places(3, 8, shape=(3, 4)), "bits": 2, "value_bits": 6},
        ),
        (
            "one value, far from both ends",
            {"mask": places(18, shape=(5, 8)), "bits": 1, "value_bits": 32},
        ),
    ],
    "drop_and_grow": [
        (
            "half of the connections exchanged",
            {
                "weight": (w := distinct(4, 5)),
                "mask": mask(4, 5, kept=0.4),
                "gradient": 1 / w,  # steepest where a weight has just been dropped
                "fraction": 0.5,
            },
        ),
        (
            "a fifth of them, in a wide matrix",
            {
                "weight": distinct(3, 20),
                "mask": mask(3, 20, kept=0.5),
                "gradient": distinct(3, 20),
                "fraction": 0.2,
            },
        ),
        (
            "weights that are zero where there is no connection",
            {
                "weight": torch.where(m := mask(4, 6, kept=0.5), distinct(4, 6), 0.0),
                "mask": m,
                "gradient": distinct(4, 6),
                "fraction": 0.25,
            },
        ),
    ],
    "trim_vocabulary": [
        (
            "six tokens of twelve",
            {"embedding": NUMBERS.view(6, 2), "ids": torch.tensor([5, 3, 3, 0]), "unknown": 0},
        ),
        (
            "an unknown token that is not used",
            {"embedding": normal(8, 3), "ids": torch.tensor([6, 2, 7]), "unknown": 4},
        ),
        (
            "a batch of ids",
            {"embedding": normal(9, 2), "ids": torch.tensor([[1, 8], [8, 3]]), "unknown": 1},
        ),
    ],
}

HIDDEN = {
    "layer_sparsities": [
        ("a layer of an encoder", {"shapes": ENCODER, "sparsity": 0.6}),
        (
            "layers that become dense one after the other",
            {"shapes": [(33, 33), (2, 2), (17, 17), (35, 35), (69, 95)], "sparsity": 0.4},
        ),
        ("a high sparsity", {"shapes": [(30, 7), (9, 100), (64, 64)], "sparsity": 0.97}),
        ("everything removed", {"shapes": [(8, 8), (8, 32)], "sparsity": 1.0}),
        ("a single layer", {"shapes": [(6, 300)], "sparsity": 0.35}),
    ],
    "keep_blocks": [
        ("a tall matrix in blocks of 3", {"scores": distinct(12, 6), "block": 3, "sparsity": 0.5}),
        ("scores of either sign", {"scores": normal(8, 8), "block": 4, "sparsity": 0.5}),
        ("a count that is half-way", {"scores": distinct(4, 20), "block": 4, "sparsity": 0.5}),
        ("nothing removed", {"scores": distinct(6, 4), "block": 2, "sparsity": 0.0}),
        ("everything removed", {"scores": distinct(4, 4), "block": 2, "sparsity": 1.0}),
        ("a shape that blocks do not fit", {"scores": normal(4, 6), "block": 4, "sparsity": 0.5}),
        (
            "equal sums among others",
            {
                "scores": torch.tensor([[1.0, 2, 1, 0, 2, 1, 1]]).repeat(1, 3).view(3, 7),
                "block": 1,
                "sparsity": 0.6,
            },
        ),
    ],
    "gap_bytes": [
        ("a large matrix", {"mask": mask(40, 50, kept=0.1), "bits": 4, "value_bits": 32}),
        (
            "a matrix that is nearly empty",
            {"mask": mask(40, 50, kept=0.01), "bits": 3, "value_bits": 16},
        ),
        ("a matrix without values", {"mask": mask(5, 5, kept=0), "bits": 4, "value_bits": 8}),
        (
            "a first value that is far away",
            {"mask": places(32, 33, shape=(5, 8)), "bits": 4, "value_bits": 8},
        ),
        (
            "distances of twice and four times what is in reach",
            {"mask": places(7, 23, 24, shape=(5, 8)), "bits": 3, "value_bits": 8},
        ),
        (
            "entries that are no whole bytes",
            {"mask": places(0, 1, 2, shape=(2, 9)), "bits": 5, "value_bits": 4},
        ),
    ],
    "drop_and_grow": [
        (
            "large values where they do not count",
            {
                "weight": torch.where(m := mask(6, 8, kept=0.5), distinct(6, 8), 1000.0),
                "mask": m,
                "gradient": torch.where(m, 1000.0, distinct(6, 8)),
                "fraction": 0.3,
            },
        ),
        (
            "few free places",
            {
                "weight": distinct(5, 5),
                "mask": mask(5, 5, kept=0.9),
                "gradient": distinct(5, 5),
                "fraction": 0.6,
            },
        ),
        (
            "a count that is not whole",
            {
                "weight": distinct(5, 5),
                "mask": mask(5, 5, kept=0.4),
                "gradient": distinct(5, 5),
                "fraction": 0.38,
            },
        ),
        (
            "all connections exchanged",
            {
                "weight": distinct(4, 8),
                "mask": mask(4, 8, kept=0.25),
                "gradient": distinct(4, 8),
                "fraction": 1.0,
            },
        ),
        (
            "nothing exchanged",
            {
                "weight": distinct(4, 4),
                "mask": mask(4, 4, kept=0.5),
                "gradient": distinct(4, 4),
                "fraction": 0.0,
            },
        ),
        (
            "no free place",
            {
                "weight": distinct(3, 3),
                "mask": mask(3, 3, kept=1.0),
                "gradient": distinct(3, 3),
                "fraction": 0.3,
            },
        ),
    ],
    "trim_vocabulary": [
        (
            "many tokens, some of them often",
            {
                "embedding": normal(60, 4),
                "ids": torch.randint(5, 40, (6, 7), generator=random),
                "unknown": 3,
            },
        ),
        (
            "every token used",
            {"embedding": normal(5, 2), "ids": torch.arange(5).flip(0), "unknown": 2},
        ),
        (
            "no token used",
            {"embedding": normal(7, 3), "ids": torch.zeros(0, dtype=torch.int64), "unknown": 6},
        ),
        (
            "the unknown token is the last",
            {"embedding": normal(10, 2), "ids": torch.tensor([4, 1]), "unknown": 9},
        ),
    ],
}
