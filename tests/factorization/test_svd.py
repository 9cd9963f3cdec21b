"""Truncated SVD against Eckart and Young's error, the randomized one against scikit-learn's."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.extmath import randomized_svd as oracle

from compresslab.factorization.svd import (
    break_even_rank,
    randomized_svd,
    singular_values,
    truncated_svd,
)


def matrix(rows=12, columns=7, *, seed=0, dtype=torch.float64):
    return torch.randn(rows, columns, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def slow_spectrum(rows: int, columns: int) -> torch.Tensor:
    """A matrix whose singular values fall as 1/√i, about as those of trained weights do."""
    u, _, vh = torch.linalg.svd(matrix(rows, columns), full_matrices=False)
    s = torch.arange(1, u.shape[1] + 1, dtype=torch.float64) ** -0.5
    return u * s @ vh


@pytest.mark.parametrize("shape", [(12, 7), (7, 12), (6, 6)])
def test_the_error_is_the_sum_of_the_dropped_squares(shape):
    w = matrix(*shape)
    s = torch.linalg.svdvals(w)
    torch.testing.assert_close(singular_values(w), s)
    for rank in range(1, min(shape) + 1):
        factors = truncated_svd(w, rank)
        assert factors.left.shape == (shape[0], rank)
        assert factors.right.shape == (rank, shape[1])
        assert factors.rank == rank
        error = (w - factors.product()).square().sum()
        torch.testing.assert_close(error, s[rank:].square().sum(), atol=1e-12, rtol=1e-9)


def test_no_other_matrix_of_this_rank_is_nearer():
    w = matrix()
    best = (w - truncated_svd(w, 3).product()).norm()
    for seed in range(20):  # least squares on any three directions
        q = torch.linalg.qr(matrix(12, 3, seed=seed + 1)).Q
        assert (w - q @ q.T @ w).norm() >= best


def test_both_factors_are_of_one_size():
    factors = truncated_svd(matrix(), 4)
    torch.testing.assert_close(factors.left.norm(dim=0), factors.right.norm(dim=1))


@given(st.integers(1, 300), st.integers(1, 300))
@settings(deadline=None)
def test_break_even_is_the_last_rank_with_fewer_numbers(m, n):
    rank = break_even_rank(m, n)
    assert rank * (m + n) < m * n
    assert (rank + 1) * (m + n) >= m * n


def test_break_even_of_the_classifiers_layers():
    assert break_even_rank(384, 384) == 191
    assert break_even_rank(1536, 384) == 307


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
def test_the_randomized_one_comes_as_near_as_scikit_learns(shape):
    w = slow_spectrum(*shape)
    best = (w - truncated_svd(w, 8).product()).norm()
    ours = randomized_svd(w, 8, generator=torch.Generator().manual_seed(0))
    u, s, vh = oracle(
        w.numpy(), 8, n_oversamples=10, n_iter=2, power_iteration_normalizer="QR", random_state=0
    )
    theirs = (w - torch.from_numpy(u * s @ vh)).norm()
    error = (w - ours.product()).norm()
    assert best <= error <= 1.01 * best
    assert error.item() == pytest.approx(theirs.item(), rel=0.01)


def test_iterations_are_what_a_slow_spectrum_needs():
    w = slow_spectrum(200, 100)
    best = (w - truncated_svd(w, 10).product()).norm()
    over = [
        (
            w
            - randomized_svd(
                w, 10, iterations=i, generator=torch.Generator().manual_seed(1)
            ).product()
        ).norm()
        / best
        - 1
        for i in (0, 1, 3)
    ]
    assert over[0] > 3 * over[1] > 3 * over[2] >= 0


def test_the_randomized_one_is_exact_at_full_rank_and_repeats_with_a_seed():
    w = matrix()
    a, b = (randomized_svd(w, 7, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    torch.testing.assert_close(a.product(), w)
    assert torch.equal(a.left, b.left)


def test_half_precision_comes_back_as_it_came():
    w = matrix(dtype=torch.float32).bfloat16()
    for factors in (truncated_svd(w, 7), randomized_svd(w, 7)):
        assert factors.left.dtype == factors.right.dtype == torch.bfloat16
        assert (factors.product() - w).norm() < 0.02 * w.norm()


@pytest.mark.parametrize("cut", [truncated_svd, randomized_svd])
def test_bad_input_is_named(cut):
    with pytest.raises(ValueError, match=r"between 1 and 7 for a weight of shape \(12, 7\), not 8"):
        cut(matrix(), 8)
    with pytest.raises(ValueError, match="not 0"):
        cut(matrix(), 0)
    with pytest.raises(ValueError, match=r"must be a matrix, not of shape \(7,\)"):
        cut(matrix()[0], 1)
