from itertools import pairwise

import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import tucker as their_tucker

from compresslab.factorization.tucker import (
    hosvd,
    mode_product,
    tucker,
    tucker_to_tensor,
    unfold,
)

SHAPE, RANKS = (4, 5, 6), (2, 3, 2)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def error(tensor, core, factors):
    return (tensor - tucker_to_tensor(core, factors)).square().sum()


def theirs(tensor, ranks, iterations):
    """tensorly's HOOI, stopped by nothing but the number of iterations, as a dense tensor."""
    with tensorly.backend_context("numpy", local_threadsafe=True):
        found = their_tucker(tensor.numpy(), list(ranks), n_iter_max=iterations, tol=None)
        return torch.from_numpy(tensorly.tucker_to_tensor(found))


def test_an_example_by_hand():
    x = torch.arange(8).view(2, 2, 2)
    assert unfold(x, 0).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert unfold(x, 1).tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert unfold(x, 2).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


@pytest.mark.parametrize("mode", range(4))
def test_unfolding_and_product_are_those_of_tensorly(mode):
    x = numbers(2, 3, 4, 5)
    matrix = numbers(7, x.shape[mode], seed=1)
    with tensorly.backend_context("numpy", local_threadsafe=True):
        unfolded = tensorly.unfold(x.numpy(), mode)
        product = tensorly.tenalg.mode_dot(x.numpy(), matrix.numpy(), mode)
    assert np.array_equal(unfold(x, mode).numpy(), unfolded)
    np.testing.assert_allclose(mode_product(x, matrix, mode).numpy(), product, atol=1e-12)
    torch.testing.assert_close(
        unfold(mode_product(x, matrix, mode), mode), matrix @ unfold(x, mode)
    )


@pytest.mark.parametrize("iterations", [1, 3])
@pytest.mark.parametrize(("shape", "ranks"), [(SHAPE, RANKS), ((3, 4, 2, 5), (2, 2, 2, 3))])
def test_hooi_is_that_of_tensorly(shape, ranks, iterations):
    x = numbers(*shape)
    core, factors = tucker(x, ranks, iterations=iterations)
    assert core.shape == ranks
    assert [factor.shape for factor in factors] == list(zip(shape, ranks, strict=True))
    torch.testing.assert_close(tucker_to_tensor(core, factors), theirs(x, ranks, iterations))


def test_hosvd_projects_on_the_leading_directions_of_each_mode():
    x = numbers(*SHAPE)
    expected = x
    for mode, rank in enumerate(RANKS):
        gram = unfold(x, mode) @ unfold(x, mode).T
        top = torch.linalg.eigh(gram).eigenvectors[:, -rank:]
        expected = mode_product(expected, top @ top.T, mode)
    torch.testing.assert_close(tucker_to_tensor(*hosvd(x, RANKS)), expected)
    torch.testing.assert_close(tucker(x, RANKS, iterations=0), hosvd(x, RANKS))


def test_without_truncation_the_slices_of_the_core_are_orthogonal_and_sorted():
    x = numbers(*SHAPE)
    core, _ = hosvd(x, SHAPE)
    for mode in range(3):
        gram = unfold(core, mode) @ unfold(core, mode).T
        squares = torch.linalg.svdvals(unfold(x, mode)).square()
        torch.testing.assert_close(gram, squares.diag(), rtol=1e-9, atol=1e-9)


def test_the_error_of_hosvd_is_within_its_bounds_and_that_of_hooi_never_grows():
    x = numbers(*SHAPE)
    dropped = sum(
        torch.linalg.svdvals(unfold(x, mode))[rank:].square().sum()
        for mode, rank in enumerate(RANKS)
    )
    errors = [error(x, *tucker(x, RANKS, iterations=n)) for n in (0, 1, 2, 5, 20)]
    assert errors[0] <= dropped
    assert all(later <= earlier + 1e-12 for earlier, later in pairwise(errors))
    assert errors[-1] < errors[0] - 0.1
    assert errors[0] <= 3 * errors[-1]


@pytest.mark.parametrize("iterations", [0, 4])
def test_factors_are_orthonormal_so_the_error_is_what_the_core_lacks(iterations):
    x = numbers(*SHAPE)
    core, factors = tucker(x, RANKS, iterations=iterations)
    for factor, rank in zip(factors, RANKS, strict=True):
        torch.testing.assert_close(factor.T @ factor, torch.eye(rank, dtype=x.dtype))
    torch.testing.assert_close(error(x, core, factors), x.square().sum() - core.square().sum())


def test_for_a_matrix_it_is_the_truncated_svd():
    x = numbers(5, 7)
    u, s, vh = torch.linalg.svd(x)
    for iterations in (0, 2):
        found = tucker_to_tensor(*tucker(x, (3, 3), iterations=iterations))
        torch.testing.assert_close(found, u[:, :3] * s[:3] @ vh[:3])


@pytest.mark.parametrize(
    ("shape", "ranks"),
    [(SHAPE, SHAPE), ((2, 3, 9), (2, 3, 6)), ((3, 1, 3), (3, 1, 3)), ((4,), (1,))],
)
def test_full_rank_is_exact(shape, ranks):
    x = numbers(*shape)
    for iterations in (0, 2):
        torch.testing.assert_close(tucker_to_tensor(*tucker(x, ranks, iterations=iterations)), x)


def test_a_tensor_of_these_ranks_is_found_exactly_whatever_the_start():
    x = tucker_to_tensor(
        numbers(*RANKS), [numbers(n, r, seed=n) for n, r in zip(SHAPE, RANKS, strict=True)]
    )
    torch.testing.assert_close(tucker_to_tensor(*hosvd(x, RANKS)), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
def test_dtypes_come_back_and_the_tensor_is_left_alone(dtype):
    x = torch.nn.Parameter(numbers(*SHAPE).to(dtype))
    before = x.detach().clone()
    core, factors = tucker(x, SHAPE, iterations=1)
    back = tucker_to_tensor(core, factors)
    assert {core.dtype, back.dtype, *(factor.dtype for factor in factors)} == {dtype}
    assert not core.requires_grad
    assert torch.equal(x, before)
    worst = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 0.02}[dtype]
    assert (back - before).abs().max() < worst


def test_the_dense_tensor_has_the_gradients_of_its_parts():
    parts = [numbers(2, 2), numbers(3, 2, seed=1), numbers(4, 2, seed=2)]
    assert torch.autograd.gradcheck(
        lambda core, *factors: tucker_to_tensor(core, factors), [t.requires_grad_() for t in parts]
    )


def test_bad_input_is_named():
    x = numbers(*SHAPE)
    for mode in (-1, 3):
        with pytest.raises(ValueError, match=rf"mode must be 0 to 2 .*\(4, 5, 6\), not {mode}"):
            unfold(x, mode)
    with pytest.raises(ValueError, match=r"5 columns, the size of mode 1 .*not shape \(5, 4\)"):
        mode_product(x, numbers(5, 4), 1)
    with pytest.raises(
        ValueError, match=r"ranks must be 3, one a mode .*\(4, 5, 6\), not \(2, 2\)"
    ):
        hosvd(x, (2, 2))
    for ranks, most in [((5, 5, 5), 4), ((0, 1, 1), 1), ((4, 2, 1), 2)]:
        with pytest.raises(ValueError, match=rf"\(4, 5, 6\): mode 0 must have 1 to {most}"):
            tucker(x, ranks)
    with pytest.raises(ValueError, match="iterations must be 0 or more, not -1"):
        tucker(x, RANKS, iterations=-1)
    core, factors = hosvd(x, RANKS)
    with pytest.raises(ValueError, match=r"factors must be 3, .*\(2, 3, 2\), not 2"):
        tucker_to_tensor(core, factors[:2])
    with pytest.raises(ValueError, match=r"matrix must have 2 columns, the size of mode 0"):
        tucker_to_tensor(core, factors[1:] + factors[:1])
