"""Choices within a budget against all choices there are."""

import itertools
import random

import pytest
import torch

from compresslab.factorization.allocation import allocate_ranks
from compresslab.knapsack import by_slope, least_damage


def problem(seed: int) -> dict:
    """Four layers of two to five choices, whose damages do not always fall with the cost."""
    draw = random.Random(seed)
    return {
        name: [(draw.randint(1, 30), draw.random()) for _ in range(draw.randint(2, 5))]
        for name in "abcd"
    }


def cost(options: dict, chosen: dict) -> int:
    return sum(options[name][i][0] for name, i in chosen.items())


def damage(options: dict, chosen: dict) -> float:
    return sum(options[name][i][1] for name, i in chosen.items())


def best(options: dict, budget: int) -> float:
    """The least damage of all choices, tried one after another."""
    every = itertools.product(*options.values())
    return min(sum(d for _, d in own) for own in every if sum(c for c, _ in own) <= budget)


def budgets(options: dict) -> range:
    cheapest = sum(min(own)[0] for own in options.values())
    return range(cheapest, cheapest + 60, 7)


@pytest.mark.parametrize("seed", range(10))
def test_dynamic_programming_finds_the_least_damage_of_all_choices(seed):
    options = problem(seed)
    for budget in budgets(options):
        chosen = least_damage(options, budget)
        assert list(chosen) == list(options)
        assert cost(options, chosen) <= budget
        assert damage(options, chosen) == pytest.approx(best(options, budget))


def test_slopes_find_the_best_for_what_it_costs():
    worse = 0
    for seed in range(10):
        options = problem(seed)
        for budget in budgets(options):
            chosen = by_slope(options, budget)
            assert cost(options, chosen) <= budget
            assert damage(options, chosen) == pytest.approx(best(options, cost(options, chosen)))
            worse += damage(options, chosen) > best(options, budget) + 1e-9
    assert worse > 0  # a part of some budget is left over


def test_slopes_may_leave_over_what_would_have_bought_a_smaller_step():
    options = {"a": [(1, 1.0), (9, 0.1)], "b": [(1, 0.2), (3, 0.1)]}
    assert by_slope(options, 9) == {"a": 0, "b": 0}  # the step of a is steeper, and does not fit
    assert least_damage(options, 9) == {"a": 0, "b": 1}


def test_units_round_costs_up_and_so_keep_to_the_budget():
    for seed in range(10):
        options = problem(seed)
        budget = max(budgets(options))
        chosen = least_damage(options, budget, unit=4)
        rounded = {n: [(-(-c // 4), d) for c, d in own] for n, own in options.items()}
        assert cost(options, chosen) <= budget
        assert damage(options, chosen) == pytest.approx(best(rounded, budget // 4))


def test_slopes_are_those_by_which_ranks_are_allocated():
    shapes = {"a": (8, 8), "b": (12, 8), "c": (16, 8)}
    most = {"a": 3, "b": 4, "c": 5}  # break-even
    generator = torch.Generator().manual_seed(0)
    spectra = {n: torch.rand(8, generator=generator).sort(descending=True)[0] for n in shapes}
    options = {
        name: [
            (rank * sum(shapes[name]), s[rank:].double().square().sum().item())
            for rank in range(1, most[name] + 1)
        ]
        for name, s in spectra.items()
    }
    for budget in range(60, 280, 10):
        ranks = {name: 1 + i for name, i in by_slope(options, budget).items()}
        assert ranks == allocate_ranks(spectra, shapes, budget)


def test_a_choice_that_costs_more_and_harms_more_is_never_taken():
    options = {"a": [(5, 0.1), (9, 0.4), (3, 0.8)], "b": [(4, 0.2)]}
    for choose in (least_damage, by_slope):
        assert choose(options, 100) == {"a": 0, "b": 0}
        assert choose(options, 8) == {"a": 2, "b": 0}


@pytest.mark.parametrize("choose", [least_damage, by_slope])
def test_bad_input_is_named(choose):
    with pytest.raises(ValueError, match="at least 7, the cheapest, not 6"):
        choose({"a": [(5, 0.1), (3, 0.8)], "b": [(4, 0.2)]}, 6)
    with pytest.raises(ValueError, match="no choice for b"):
        choose({"a": [(1, 0.1)], "b": []}, 6)
