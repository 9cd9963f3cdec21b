"""Which layer gets how much of the budget: ranks by what they add, not one ratio for all.

The error of a layer at rank r is the sum of its dropped σ². Keeping one more costs out + in
numbers. So the ranks with the least total error are found by always keeping the σ² that is largest
for its cost: within a layer they come in order, so this is the best possible up to the last one.

    code     meaning
    spectra  name of a layer -> its singular values, largest first, in units that can be compared
    shapes   name of a layer -> (out_features, in_features)
    budget   numbers in all factors together

The result is no better than those units. Singular values of whitened weights are errors of outputs,
and the same error costs one layer's answers a thousand times as much as another's; divided by the
layer's sum they do not become costs either. Multiplied by the root of what one unit of squared
error does to the answers, they do, which takes a run of the model for each layer: see the recipe
`factorization_oneshot`. Wang et al. (2025), SVD-LLM V2, arXiv:2503.12340, let only matrices of one
kind share a budget, by the error of each.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from .svd import break_even_rank


def uniform_ranks(shapes: Mapping[str, tuple[int, int]], ratio: float) -> dict[str, int]:
    """The rank of each layer at which its factors have `ratio` of the numbers of its matrix,
    rounded down, and at least 1.

    Raises:
        ValueError: ratio outside (0, 1].
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be above 0 and at most 1, not {ratio}")
    return {name: max(1, int(ratio * m * n / (m + n))) for name, (m, n) in shapes.items()}


def allocate_ranks(
    spectra: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], budget: int
) -> dict[str, int]:
    """The ranks of least total error whose factors have at most `budget` numbers.

    Every layer gets at least rank 1 and at most its break-even rank.

    Raises:
        ValueError: the names differ, or the budget is below that of rank 1 everywhere.
    """
    if spectra.keys() != shapes.keys():
        odd = sorted(spectra.keys() ^ shapes.keys())
        raise ValueError(f"spectra and shapes differ in {len(odd)} names, as {odd[0]}")
    names = list(shapes)
    least = sum(m + n for m, n in shapes.values())
    if budget < least:
        raise ValueError(f"budget must be at least {least} numbers, rank 1 everywhere: {budget}")
    gains, costs, owners = [], [], []
    for i, name in enumerate(names):
        m, n = shapes[name]
        most = max(1, break_even_rank(m, n))
        squares = spectra[name][1:most].double().square()
        gains.append(squares / (m + n))
        costs.append(torch.full_like(squares, m + n))
        owners.append(torch.full((len(squares),), i))
    gains, costs, owners = torch.cat(gains), torch.cat(costs), torch.cat(owners)
    # Stable: of equal gains the earlier layer, and within a layer the larger value, comes first.
    order = gains.argsort(descending=True, stable=True)
    fits = costs[order].cumsum(0) <= budget - least
    chosen = torch.bincount(owners[order][fits], minlength=len(names))
    return {name: 1 + int(count) for name, count in zip(names, chosen, strict=True)}
