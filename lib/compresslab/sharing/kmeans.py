"""K-means of numbers: few centroids for many weights, by the steps of Lloyd and from three starts.

Sources: Lloyd (1982), Least Squares Quantization in PCM, doi:10.1109/TIT.1982.1056489, for the
steps: each weight goes to its nearest centroid, then each centroid to the mean of its members,
which makes the sum of squares smaller until no weight moves; Han et al. (2015), Deep Compression,
arXiv:1510.00149, section 3.2, for the starts.

    min Σᵢ Σ_{w ∈ cᵢ} |w - cᵢ|²        equation 2

    code       papers
    values     w    (groups, size); each group has centroids of its own
    centroids  c    (groups, clusters), ascending
    clusters   k
    start           "linear", evenly from the smallest to the largest weight; "random" (Forgy), at
                    weights drawn without replacement; "density", at the quantiles (i + ½) / k

Weights are sorted once. Then a cluster is an interval that ends halfway between two centroids, and
its sum is the difference of two running sums: a step takes O(k log n) operations, not O(k n), and
no matrix of weights and centroids. A weight in the middle goes to the lower of two centroids. A
cluster without members keeps its centroid.

Differs from the paper, which leaves open at which levels the distribution is cut. Not included: the
best centroids of all, which need not be those where Lloyd's steps end.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

STARTS = ("linear", "random", "density")


def start_centroids(
    values: Tensor,
    clusters: int,
    start: str = "linear",
    *,
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Where k-means begins: (groups, clusters) in the dtype of `values`, ascending.

    With more clusters than weights some centroids are equal; without weights all are 0.

    Args:
        values: (groups, size).
        mask: bool (groups, size), True for the weights that count; all if left out.

    Raises:
        ValueError: another `start`, no clusters, a mask of another shape, or a weight that is not
            finite.
    """
    if start not in STARTS:
        raise ValueError(f"start must be {', '.join(STARTS)}, not {start!r}")
    if clusters < 1:
        raise ValueError(f"clusters must be at least 1, not {clusters}")
    ordered, count = _order(values, mask)
    last = (count - 1).clamp(min=0)
    if start == "linear":
        steps = torch.linspace(0, 1, clusters, dtype=ordered.dtype, device=values.device)
        centroids = torch.lerp(ordered[:, :1], ordered.gather(1, last), steps)
    else:
        rank = (2 * torch.arange(clusters, device=values.device) + 1) * count // (2 * clusters)
        if start == "random":
            rank = _draw(count, values.shape[1], clusters, generator)
        centroids = ordered.gather(1, rank.minimum(last))
    return centroids.where(count > 0, 0).to(values.dtype)


def lloyd(
    values: Tensor, centroids: Tensor, *, mask: Tensor | None = None, iterations: int = 1000
) -> Tensor:
    """The centroids (groups, clusters) to which k-means leads, ascending, in their dtype.

    Args:
        values: (groups, size).
        mask: bool (groups, size), True for the weights that count; all if left out.
        iterations: at most; it ends when no weight goes to another cluster.

    Raises:
        ValueError: a mask of another shape, or a weight that is not finite.
    """
    ordered, count = _order(values, mask)
    sums = F.pad(ordered.where(ordered.isfinite(), 0).cumsum(1), (1, 0))  # of the first i weights
    c, ends = centroids.double().sort(1).values, None
    for _ in range(iterations):
        inner = torch.searchsorted(ordered, (c[:, :-1] + c[:, 1:]) / 2, right=True)
        before, ends = ends, torch.cat([torch.zeros_like(count), inner, count], 1)
        if before is not None and torch.equal(before, ends):
            break
        low, high = ends[:, :-1], ends[:, 1:]
        mean = (sums.gather(1, high) - sums.gather(1, low)) / (high - low)
        # What the difference of large sums has lost must not lead out of the cluster.
        first = ordered.gather(1, low.clamp(max=values.shape[1] - 1))
        mean = mean.clamp(first, ordered.gather(1, (high - 1).clamp(min=0)))
        c = torch.where(high > low, mean, c)
    return c.to(centroids.dtype)


def assign(values: Tensor, centroids: Tensor) -> Tensor:
    """Which centroid is nearest, the lower of two: int64 (groups, size), in O(n log k).

    Args:
        values: (groups, size).
        centroids: (groups, clusters), ascending.
    """
    c = centroids.double()  # in which the middle of two float32 is exact
    return torch.searchsorted((c[:, :-1] + c[:, 1:]) / 2, values.double().contiguous())


def _order(values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """The weights that count in each group, ascending and with infinity behind them, (groups, size)
    float64; and how many they are, (groups, 1) int64."""
    if not values.isfinite().all():
        raise ValueError("values must be finite: there are numbers that are infinite or NaN")
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    if mask.shape != values.shape:
        raise ValueError(f"mask must have the shape {tuple(values.shape)}, not {tuple(mask.shape)}")
    ordered = values.masked_fill(~mask, torch.inf).sort(1).values.double()
    return ordered, mask.sum(1, keepdim=True)


def _draw(count: Tensor, size: int, clusters: int, generator: torch.Generator | None) -> Tensor:
    """Numbers below `count`, each once while they last: (groups, clusters) int64, ascending."""
    draw = torch.rand(len(count), max(size, clusters), generator=generator).to(count.device)
    beyond = torch.arange(draw.shape[1], device=count.device) >= count
    return draw.masked_fill(beyond, -1).topk(clusters).indices.sort(1).values
