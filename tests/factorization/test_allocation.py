"""Ranks by budget against every possible choice."""

import itertools

import pytest
import torch

from compresslab.factorization.allocation import allocate_ranks, uniform_ranks
from compresslab.factorization.svd import break_even_rank

SHAPES = {"a": (8, 8), "b": (12, 8), "c": (16, 8)}


def spectra(seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.rand(min(shape), generator=generator).sort(descending=True).values
        for name, shape in SHAPES.items()
    }


def numbers(ranks: dict) -> int:
    return sum(rank * sum(SHAPES[name]) for name, rank in ranks.items())


def error(spectra: dict, ranks: dict) -> float:
    return sum(float(s[ranks[name] :].square().sum()) for name, s in spectra.items())


@pytest.mark.parametrize("seed", range(5))
def test_no_choice_that_costs_as_much_has_a_smaller_error(seed):
    s = spectra(seed)
    most = {name: break_even_rank(*shape) for name, shape in SHAPES.items()}
    for budget in (60, 100, 150, 200):
        ranks = allocate_ranks(s, SHAPES, budget)
        assert numbers(ranks) <= budget
        for other in itertools.product(*(range(1, most[name] + 1) for name in SHAPES)):
            other = dict(zip(SHAPES, other, strict=True))
            if numbers(other) <= numbers(ranks):
                assert error(s, ranks) <= error(s, other) + 1e-9


def test_a_large_budget_stops_at_break_even_and_the_least_is_rank_one():
    s = spectra(0)
    assert allocate_ranks(s, SHAPES, 10_000) == {"a": 3, "b": 4, "c": 5}
    assert allocate_ranks(s, SHAPES, 60) == {"a": 1, "b": 1, "c": 1}


def test_the_layer_of_low_rank_gets_less():
    flat, steep = torch.ones(64), torch.tensor([8.0] + [0.01] * 63)
    shapes = {"flat": (64, 64), "steep": (64, 64)}
    ranks = allocate_ranks({"flat": flat, "steep": steep}, shapes, 20 * 128)
    assert ranks == {"flat": 19, "steep": 1}


def test_of_equal_values_those_of_the_smaller_layer_are_kept():
    same = torch.ones(32)
    shapes = {"large": (256, 32), "small": (32, 32)}
    ranks = allocate_ranks({"large": same, "small": same}, shapes, 288 + 10 * 64)
    assert ranks == {"large": 1, "small": 10}


def test_uniform_ranks_have_the_ratio_of_each_matrix():
    ranks = uniform_ranks({"square": (384, 384), "wide": (1536, 384)}, 0.5)
    assert ranks == {"square": 96, "wide": 153}
    assert uniform_ranks({"tiny": (2, 2)}, 0.1) == {"tiny": 1}


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least 60 numbers, rank 1 everywhere: 59"):
        allocate_ranks(spectra(0), SHAPES, 59)
    with pytest.raises(ValueError, match="differ in 1 names, as a"):
        allocate_ranks({k: v for k, v in spectra(0).items() if k != "a"}, SHAPES, 100)
    with pytest.raises(ValueError, match=r"ratio must be above 0 and at most 1, not 1\.5"):
        uniform_ranks(SHAPES, 1.5)
