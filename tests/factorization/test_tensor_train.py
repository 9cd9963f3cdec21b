import numpy as np
import pytest
import tensorly
import torch
from tensorly.decomposition import tensor_train as their_tensor_train

from compresslab.factorization.tensor_train import (
    apply_tt_matrix,
    tensor_train,
    tt_matrix,
    tt_matrix_to_dense,
    tt_to_tensor,
)
from compresslab.measure import count_flops

SHAPE = (4, 3, 5, 2)
OUT, IN = (2, 3, 4), (3, 2, 5)


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def unfoldings(x):
    """The matrices (n₁ ... n_k, n_{k+1} ... n_d)."""
    return [x.reshape(x.shape[:k].numel(), -1) for k in range(1, x.dim())]


def matrix_cores(rank=2):
    sizes = [1, rank, rank, 1]
    return [numbers(sizes[k], OUT[k], IN[k], sizes[k + 1], seed=k) for k in range(3)]


def test_an_entry_is_the_product_of_its_matrices():
    cores = [numbers(1, 4, 2), numbers(2, 3, 3, seed=1), numbers(3, 5, 1, seed=2)]
    x = tt_to_tensor(cores)
    assert x.shape == (4, 3, 5)
    for i, j, k in [(0, 0, 0), (3, 1, 4), (2, 2, 0)]:
        entry = cores[0][:, i] @ cores[1][:, j] @ cores[2][:, k]
        torch.testing.assert_close(x[i, j, k], entry.squeeze())


@pytest.mark.parametrize("ranks", [(1, 1, 1), (2, 3, 1), (3, 4, 2)])
def test_cores_are_those_of_tensorly_up_to_their_signs(ranks):
    x = numbers(*SHAPE)
    with tensorly.backend_context("numpy", local_threadsafe=True):
        theirs = their_tensor_train(x.numpy(), [1, *ranks, 1])
        dense = tensorly.tt_to_tensor(theirs)
    cores = tensor_train(x, ranks)
    assert [core.shape for core in cores] == [core.shape for core in theirs]
    np.testing.assert_allclose(tt_to_tensor(cores).numpy(), dense, atol=1e-12)
    for core, their in zip(cores, theirs, strict=True):
        np.testing.assert_allclose(core.abs().numpy(), np.abs(their), atol=1e-10)


@pytest.mark.parametrize("ranks", [1, 2, (3, 5, 1), (4, 3, 2)])
def test_the_error_is_at_most_the_dropped_singular_values_of_all_unfoldings(ranks):
    x = numbers(*SHAPE)
    cores = tensor_train(x, ranks)
    found = [core.shape[2] for core in cores[:-1]]
    error = (x - tt_to_tensor(cores)).square().sum()
    dropped = [
        torch.linalg.svdvals(matrix)[rank:].square().sum()
        for matrix, rank in zip(unfoldings(x), found, strict=True)
    ]
    assert max(dropped) - 1e-12 <= error <= sum(dropped) + 1e-12
    torch.testing.assert_close(error, x.square().sum() - cores[-1].square().sum())


def test_all_cores_but_the_last_are_orthonormal():
    for core in tensor_train(numbers(*SHAPE), 3)[:-1]:
        matrix = core.flatten(0, 1)
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(core.shape[2], dtype=core.dtype))


@pytest.mark.parametrize("shape", [SHAPE, (7,), (1, 4), (2, 1, 3), (6, 2)])
def test_without_a_limit_it_is_exact_at_the_ranks_of_the_unfoldings(shape):
    x = numbers(*shape)
    cores = tensor_train(x)
    torch.testing.assert_close(tt_to_tensor(cores), x)
    ranks = [int(torch.linalg.matrix_rank(matrix)) for matrix in unfoldings(x)]
    assert [core.shape[2] for core in cores] == [*ranks, 1]


def test_for_a_matrix_it_is_the_truncated_svd():
    x = numbers(5, 7)
    u, s, vh = torch.linalg.svd(x)
    torch.testing.assert_close(tt_to_tensor(tensor_train(x, 3)), u[:, :3] * s[:3] @ vh[:3])


@pytest.mark.parametrize("tolerance", [1e-10, 0.1, 0.3, 0.6, 2.0])
def test_the_error_stays_within_the_tolerance_which_is_used(tolerance):
    x = numbers(*SHAPE) + 3
    cores = tensor_train(x, tolerance=tolerance)
    assert (x - tt_to_tensor(cores)).norm() <= tolerance * x.norm() + 1e-12
    allowed = tolerance * x.norm() / 3**0.5
    s = torch.linalg.svdvals(unfoldings(x)[0])  # the first SVD is one of the tensor itself
    least = next(r for r in range(1, 5) if s[r:].norm() <= allowed)
    assert cores[0].shape[2] == least


def test_the_stricter_of_ranks_and_tolerance_counts():
    x = numbers(*SHAPE) + 3
    free = [core.shape[2] for core in tensor_train(x, tolerance=0.2)]
    assert [core.shape[2] for core in tensor_train(x, 100, tolerance=0.2)] == free
    assert max(free) > 2
    assert [core.shape[2] for core in tensor_train(x, 2, tolerance=0.2)] == [
        min(2, rank) for rank in free
    ]


def test_a_train_of_these_ranks_is_found_again():
    x = tt_to_tensor([numbers(1, 4, 2), numbers(2, 3, 3, seed=1), numbers(3, 5, 1, seed=2)])
    cores = tensor_train(x, tolerance=1e-10)
    assert [core.shape[2] for core in cores] == [2, 3, 1]
    torch.testing.assert_close(tt_to_tensor(cores), x)


@pytest.mark.parametrize("scale", [0.0, 1e-30])
def test_zeros_and_tiny_numbers_have_a_defined_result(scale):
    x = scale * numbers(3, 4, 2, dtype=torch.float32)
    torch.testing.assert_close(tt_to_tensor(tensor_train(x)), x, rtol=1e-5, atol=1e-35)


def test_a_matrix_is_split_as_the_paper_splits_it():
    cores = matrix_cores()
    dense = tt_matrix_to_dense(cores)
    assert dense.shape == (24, 30)
    for i, j in [((0, 0, 0), (0, 0, 0)), ((1, 2, 3), (2, 1, 4)), ((1, 0, 2), (0, 1, 3))]:
        row, column = np.ravel_multi_index(i, OUT), np.ravel_multi_index(j, IN)
        entry = cores[0][:, i[0], j[0]] @ cores[1][:, i[1], j[1]] @ cores[2][:, i[2], j[2]]
        torch.testing.assert_close(dense[row, column], entry.squeeze())


def test_the_train_of_a_matrix_is_that_of_tensorly():
    weight = numbers(24, 30)
    with tensorly.backend_context("numpy", local_threadsafe=True):
        tensor = weight.reshape(*OUT, *IN).numpy()
        theirs = tensorly.decomposition.tensor_train_matrix(tensor, [1, 3, 4, 1])
        dense = tensorly.tt_matrix.tt_matrix_to_matrix(theirs)
    cores = tt_matrix(weight, out_modes=OUT, in_modes=IN, rank=(3, 4))
    assert [core.shape for core in cores] == [core.shape for core in theirs]
    np.testing.assert_allclose(tt_matrix_to_dense(cores).numpy(), dense, atol=1e-12)


def test_a_kronecker_product_has_rank_1_and_any_matrix_is_exact_at_full_rank():
    parts = [numbers(m, n, seed=m) for m, n in zip(OUT, IN, strict=True)]
    product = torch.kron(torch.kron(parts[0], parts[1]), parts[2])
    cores = tt_matrix(product, out_modes=OUT, in_modes=IN, rank=1)
    torch.testing.assert_close(tt_matrix_to_dense(cores), product)
    weight = numbers(24, 30)
    for modes in ((OUT, IN), ((24,), (30,)), ((24, 1), (5, 6))):
        cores = tt_matrix(weight, out_modes=modes[0], in_modes=modes[1])
        torch.testing.assert_close(tt_matrix_to_dense(cores), weight)
    cores = tt_matrix(weight, out_modes=OUT, in_modes=IN, tolerance=0.5)
    assert (tt_matrix_to_dense(cores) - weight).norm() <= 0.5 * weight.norm()


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 5), (0,)])
def test_the_fast_product_is_the_dense_one(batch):
    cores, x = matrix_cores(rank=3), numbers(*batch, 30, seed=9)
    y = apply_tt_matrix(x, cores)
    assert y.shape == (*batch, 24)
    torch.testing.assert_close(y, x @ tt_matrix_to_dense(cores).T)
    only = numbers(1, 24, 30, 1)
    torch.testing.assert_close(apply_tt_matrix(x, [only]), x @ only[0, ..., 0].T)


def test_gradients_are_right_and_those_of_the_dense_product():
    cores = [numbers(1, 2, 3, 2), numbers(2, 3, 2, 1, seed=1)]
    inputs = [t.requires_grad_() for t in (numbers(2, 6, seed=2), *cores)]
    assert torch.autograd.gradcheck(lambda x, *cores: apply_tt_matrix(x, cores), inputs)
    fast = torch.autograd.grad(apply_tt_matrix(inputs[0], cores).square().sum(), inputs)
    dense = (inputs[0] @ tt_matrix_to_dense(cores).T).square().sum()
    torch.testing.assert_close(fast, torch.autograd.grad(dense, inputs))


def test_the_cost_is_the_one_the_docstring_says():
    cores, x = matrix_cores(rank=3), numbers(7, 30)
    ranks = [1, 3, 3, 1]
    each = [ranks[k] * ranks[k + 1] * np.prod(OUT[: k + 1]) * np.prod(IN[k:]) for k in range(3)]
    assert count_flops(lambda: apply_tt_matrix(x, cores)) == 2 * 7 * sum(each)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_come_back_and_the_weight_is_left_alone(dtype):
    weight = torch.nn.Parameter(numbers(24, 30).to(dtype))
    before = weight.detach().clone()
    cores = tt_matrix(weight, out_modes=OUT, in_modes=IN)
    back = tt_matrix_to_dense(cores)
    product = apply_tt_matrix(before, cores)
    assert {back.dtype, product.dtype, *(core.dtype for core in cores)} == {dtype}
    assert not cores[0].requires_grad
    assert torch.equal(weight, before)
    worst = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.1}[dtype]
    assert (back - before).abs().max() < worst


def test_bad_input_is_named():
    x = numbers(*SHAPE)
    with pytest.raises(ValueError, match=r"tensor must have modes and numbers, not shape \(\)"):
        tensor_train(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"modes and numbers, not shape \(2, 0\)"):
        tensor_train(numbers(2, 0))
    with pytest.raises(ValueError, match=r"ranks must be 3, .*\(4, 3, 5, 2\), not \(2, 2\)"):
        tensor_train(x, (2, 2))
    with pytest.raises(ValueError, match="every rank must be 1 or more, not 0"):
        tensor_train(x, 0)
    for tolerance in (-0.1, float("nan")):
        with pytest.raises(ValueError, match=f"tolerance must be 0 or more, not {tolerance}"):
            tensor_train(x, tolerance=tolerance)
    weight = numbers(24, 30)
    for out_modes, in_modes in [(OUT, (3, 10)), (OUT, (3, 2, 6)), ((2, 3, 3), IN)]:
        with pytest.raises(ValueError, match=r"out_modes and in_modes .*\(24, 30\) as their"):
            tt_matrix(weight, out_modes=out_modes, in_modes=in_modes)
    cores = matrix_cores()
    with pytest.raises(ValueError, match=r"x must have 30 as its last dimension, not \(5, 24\)"):
        apply_tt_matrix(numbers(5, 24), cores)
    for wrong in (cores[:2], cores[::-1], [], [cores[0][..., 0]]):
        with pytest.raises(ValueError, match=r"cores must be \(rank before, m, n, rank after\)"):
            tt_matrix_to_dense(wrong)
    with pytest.raises(ValueError, match=r"before, n, rank after\), .* not \[\(1, 2, 3, 2\)"):
        tt_to_tensor(cores)
