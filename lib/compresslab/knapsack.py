"""Which layer gets how much of a budget, where each has a few choices: a knapsack.

Sources: Sinha and Zoltners (1979), The Multiple-Choice Knapsack Problem, doi:10.1287/opre.27.3.503;
for bits, Shoham and Gersho (1988), Efficient bit allocation for an arbitrary set of quantizers,
doi:10.1109/29.90373, which goes by slopes:

    min Σ_j d_j(i_j)    with    Σ_j c_j(i_j) ≤ budget

    code      papers
    options   what each layer j can be: the cost c and the damage d of its choices i
    budget    R_c, b
    slope     λ    damage that goes for one more unit of cost

    options = {"query": [(100, 0.9), (200, 0.2)], "value": [(100, 0.3), (200, 0.1)]}
    least_damage(options, 300)      {"query": 1, "value": 0}

`least_damage` finds the best choice there is, by dynamic programming over the budget. `by_slope`
starts with the cheapest choices, and takes the steps between corners of each layer's lower convex
hull, the steepest first, until one no longer fits. What it finds is the best for what it costs, but
may leave over a part of the budget, less than one step; `factorization.allocation` is this for
ranks, whose every step is a corner. Both add up damages, as if layers did not know of each other.

Not included: several budgets at once, damages of pairs of layers.
"""

import itertools
from collections.abc import Mapping, Sequence

import torch

Options = Mapping[str, Sequence[tuple[int, float]]]  # name of a layer -> (cost, damage) of each


def least_damage(options: Options, budget: int, *, unit: int = 1) -> dict[str, int]:
    """The choice of least total damage whose costs are at most `budget`.

    Args:
        unit: costs are counted in this many, rounded up: 1 is exact. The time is that of
            choices · budget / unit additions.

    Returns:
        name of a layer -> number of its choice.

    Raises:
        ValueError: a layer without choices, or a budget that the cheapest, so counted, exceed.
    """
    sizes = {name: [-(-cost // unit) for cost, _ in own] for name, own in options.items()}
    room = budget // unit
    _check(sizes, room, unit)
    # The least damage of the layers so far, by how many units they may cost.
    least = torch.zeros(room + 1, dtype=torch.float64)
    picks = {}
    for name, choices in options.items():
        totals = torch.full((len(choices), room + 1), torch.inf, dtype=torch.float64)
        for total, size, (_, damage) in zip(totals, sizes[name], choices, strict=True):
            if size <= room:
                total[size:] = least[: room + 1 - size] + damage
        least, picks[name] = totals.min(0)
    chosen = {}
    for name in reversed(options):
        chosen[name] = int(picks[name][room])
        room -= sizes[name][chosen[name]]
    return {name: chosen[name] for name in options}


def by_slope(options: Options, budget: int) -> dict[str, int]:
    """A choice within the budget, than which none that costs as much has less damage.

    Of equally steep steps the earlier layer's comes first.

    Returns:
        name of a layer -> number of its choice.

    Raises:
        ValueError: a layer without choices, or a budget that the cheapest exceed.
    """
    _check({name: [cost for cost, _ in own] for name, own in options.items()}, budget, 1)
    corners = {name: _hull(choices) for name, choices in options.items()}
    steps = [
        (_slope(options[name][a], options[name][b]), name, b)
        for name, hull in corners.items()
        for a, b in itertools.pairwise(hull)
    ]
    chosen = {name: hull[0] for name, hull in corners.items()}
    spent = sum(options[name][i][0] for name, i in chosen.items())
    for _, name, i in sorted(steps, key=lambda step: -step[0]):
        spent += options[name][i][0] - options[name][chosen[name]][0]
        if spent > budget:
            break
        chosen[name] = i
    return chosen


def _hull(choices: Sequence[tuple[int, float]]) -> list[int]:
    """The corners of the lower convex hull, from the cheapest choice to the one of least damage."""
    hull = []
    for i in sorted(range(len(choices)), key=lambda i: choices[i]):
        if hull and choices[i][1] >= choices[hull[-1]][1]:
            continue  # it costs more, or as much, and is no better
        while len(hull) > 1 and _slope(choices[hull[-2]], choices[hull[-1]]) < _slope(
            choices[hull[-1]], choices[i]
        ):
            hull.pop()
        hull.append(i)
    return hull


def _slope(a: tuple[int, float], b: tuple[int, float]) -> float:
    """How much damage goes for each unit that `b` costs more than `a`."""
    return (a[1] - b[1]) / (b[0] - a[0])


def _check(sizes: Mapping[str, Sequence[int]], room: int, unit: int) -> None:
    if empty := [name for name, own in sizes.items() if not own]:
        raise ValueError(f"options has no choice for {empty[0]}")
    least = sum(min(own) for own in sizes.values())
    if room < least:
        raise ValueError(f"budget must be at least {least * unit}, the cheapest, not {room * unit}")
