"""One-dimensional k-means against scikit-learn from the same start, and against the best of all."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from compresslab.sharing.kmeans import STARTS, assign, lloyd, start_centroids

ALL_STARTS = pytest.mark.parametrize("start", STARTS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def error(values, centroids):
    return (values - centroids.gather(1, assign(values, centroids))).square().sum(1)


def least_error(values, clusters):
    """Of all ways to cut the sorted values into intervals, the least sum of squares."""
    ordered = sorted(values.tolist())

    def spread(part):
        return sum((x - sum(part) / len(part)) ** 2 for x in part)

    return min(
        sum(spread(ordered[a:b]) for a, b in itertools.pairwise((0, *cuts, len(ordered))))
        for cuts in itertools.combinations(range(1, len(ordered)), clusters - 1)
    )


@ALL_STARTS
@pytest.mark.parametrize("clusters", [2, 5, 16])
def test_it_ends_where_scikit_learn_ends_from_the_same_start(start, clusters):
    values = randn(3, 400)
    begin = start_centroids(values, clusters, start, generator=generator())
    found = lloyd(values, begin)
    for row, init, own in zip(values, begin, found, strict=True):
        oracle = KMeans(clusters, init=init[:, None].numpy(), n_init=1, tol=0, max_iter=1000)
        oracle.fit(row[:, None].numpy())
        centroids = torch.from_numpy(oracle.cluster_centers_).flatten().sort().values
        torch.testing.assert_close(own, centroids)
    assert (error(values, found) < error(values, begin)).all()
    assert torch.equal(lloyd(values, begin.flip(1)), found)


def test_the_best_of_several_starts_is_the_best_of_all():
    values = randn(1, 12, seed=3)
    for clusters in (1, 2, 3, 4):
        errors = [
            error(values, lloyd(values, start_centroids(values, clusters, "random", generator=g)))
            for g in map(generator, range(20))
        ]
        best = least_error(values[0], clusters)
        assert min(errors).item() == pytest.approx(best)
        assert max(errors).item() >= best - 1e-12


@settings(deadline=None)
@given(
    st.integers(1, 30),
    st.integers(1, 12),
    st.sampled_from(STARTS),
    st.sampled_from([torch.float32, torch.float64]),
    st.integers(0, 2**31),
)
def test_each_weight_is_at_the_nearest_centroid_and_each_centroid_in_the_middle(
    size, clusters, start, dtype, seed
):
    # Quarters, so that there are ties, equal weights and empty clusters.
    values = (torch.randint(-9, 9, (2, size), generator=generator(seed)) / 4).to(dtype)
    kept = torch.rand(2, size, generator=generator(seed)) < 0.7
    begin = start_centroids(values, clusters, start, mask=kept, generator=generator(seed))
    found = lloyd(values, begin, mask=kept)
    codes = assign(values, found)
    assert found.dtype == begin.dtype == dtype
    assert (found.diff(dim=1) >= 0).all()
    for i in range(2):
        distance = (values[i, :, None] - found[i]).abs()
        torch.testing.assert_close(distance.gather(1, codes[i, :, None])[:, 0], distance.amin(1))
        for k in range(clusters):
            members = values[i][kept[i] & (codes[i] == k)]
            if len(members):
                torch.testing.assert_close(found[i, k], members.mean())
        if not kept[i].any():
            assert (found[i] == 0).all()


def test_starts_are_those_of_the_paper():
    values = torch.tensor([[4.0, 0, 1, 3, 12, 2, 8, 9]])
    assert start_centroids(values, 4).tolist() == [[0, 4, 8, 12]]
    assert start_centroids(values, 4, "density").tolist() == [[1, 3, 8, 12]]  # of 0 1 2 3 4 8 9 12
    assert start_centroids(values, 1).tolist() == [[0]]
    drawn = start_centroids(values, 5, "random", generator=generator())
    assert len(set(drawn[0].tolist()) & set(values[0].tolist())) == 5
    assert drawn.tolist() == drawn.sort(1).values.tolist()
    again = start_centroids(values, 5, "random", generator=generator())
    other = start_centroids(values, 5, "random", generator=generator(1))
    assert torch.equal(drawn, again)
    assert not torch.equal(drawn, other)


def test_random_starts_are_at_all_weights_equally_often():
    values = torch.arange(6.0).expand(3000, 6)
    kept = torch.arange(6).expand(3000, 6) < 5
    drawn = start_centroids(values, 2, "random", mask=kept, generator=generator())
    counts = torch.bincount(drawn.flatten().long(), minlength=6)
    assert counts[5] == 0
    assert (counts[:5] - 1200).abs().max() < 120  # 4 standard deviations


def test_a_tie_goes_to_the_lower_centroid_and_an_empty_cluster_keeps_its_own():
    centroids = torch.tensor([[0.0, 2, 7, 8]])
    assert assign(torch.tensor([[1.0, 1.5, 4.5, 9]]), centroids).tolist() == [[0, 1, 1, 3]]
    values = torch.tensor([[1.0, 3, 4.5, 9]])
    # The first step: 1 | 3, 4.5 | none | 9.
    assert lloyd(values, centroids, iterations=1).tolist() == [[1, 3.75, 7, 9]]


def test_pruned_weights_do_not_count():
    values = 1e4 * torch.tensor([[8.0, -100, 1, 9, 100, 2]])
    kept = torch.tensor([[True, False, True, True, False, True]])
    for start in STARTS:
        begin = start_centroids(values, 2, start, mask=kept, generator=generator())
        torch.testing.assert_close(
            lloyd(values, begin, mask=kept), 1e4 * torch.tensor([[1.5, 8.5]])
        )


@pytest.mark.parametrize("start", ["random", "density"])
def test_with_a_centroid_for_each_weight_there_is_no_error(start):
    values = torch.randn(4, 16, generator=generator()).exp() * 1e-3
    # Neighbours in float32, whose middle is no float32, and numbers beside which others are lost.
    values[0, 0] = torch.nextafter(values[0, 1], torch.tensor(1.0))
    values[1, :2] = torch.tensor([-1e30, 1e30])
    found = lloyd(values, start_centroids(values, 16, start, generator=generator()))
    assert torch.equal(found, values.sort(1).values)
    assert (error(values, found) == 0).all()


@ALL_STARTS
def test_equal_weights_and_one_cluster(start):
    values = torch.full((2, 9), 0.1)
    found = lloyd(values, start_centroids(values, 4, start, generator=generator()))
    assert (found == 0.1).all()
    assert (assign(values, found) == 0).all()
    values = randn(2, 9)
    found = lloyd(values, start_centroids(values, 1, start, generator=generator()))
    torch.testing.assert_close(found, values.mean(1, keepdim=True))


def test_more_clusters_than_weights_leave_the_rest_empty():
    values = torch.tensor([[3.0, 1, 2]])
    for start in ("random", "density"):
        found = lloyd(values, start_centroids(values, 8, start, generator=generator()))
        assert set(found[0].tolist()) == {1, 2, 3}


def test_bad_input_is_named():
    values = randn(2, 6)
    with pytest.raises(ValueError, match="start must be linear, random, density, not 'k-means'"):
        start_centroids(values, 3, "k-means")
    with pytest.raises(ValueError, match="clusters must be at least 1, not 0"):
        start_centroids(values, 0)
    with pytest.raises(ValueError, match=r"mask must have the shape \(2, 6\), not \(6,\)"):
        lloyd(values, values[:, :2], mask=torch.ones(6, dtype=torch.bool))
    for odd in (torch.inf, torch.nan):
        with pytest.raises(ValueError, match="values must be finite"):
            start_centroids(torch.tensor([[1.0, odd]]), 1)
