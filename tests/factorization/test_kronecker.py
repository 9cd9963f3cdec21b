import pytest
import torch

from compresslab.factorization.kronecker import (
    apply_kronecker,
    kronecker_sum,
    nearest_kronecker,
    rearrange,
)
from compresslab.measure import count_flops


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def test_an_example_by_hand():
    weight = torch.arange(16).view(4, 4)
    assert rearrange(weight, (2, 2)).tolist() == [
        [0, 1, 4, 5],
        [2, 3, 6, 7],
        [8, 9, 12, 13],
        [10, 11, 14, 15],
    ]


def test_a_kronecker_product_is_an_outer_product_when_rearranged():
    a, b = numbers(2, 3), numbers(4, 5, seed=1)
    product = torch.outer(a.flatten(), b.flatten())
    torch.testing.assert_close(rearrange(torch.kron(a, b), (2, 3)), product)


def test_the_sum_is_the_one_of_torch():
    a, b = numbers(3, 2, 3), numbers(3, 4, 5, seed=1)
    expected = sum(torch.kron(a[t], b[t]) for t in range(3))
    torch.testing.assert_close(kronecker_sum(a, b), expected)


@pytest.mark.parametrize("shape", [(2, 3), (3, 5), (6, 1), (1, 15)])
@pytest.mark.parametrize("terms", [1, 2, 4])
def test_the_error_is_the_dropped_singular_values(shape, terms):
    weight = numbers(6, 15)
    a, b = nearest_kronecker(weight, shape=shape, terms=terms)
    assert a.shape == (terms, *shape)
    assert b.shape == (terms, 6 // shape[0], 15 // shape[1])
    dropped = torch.linalg.svdvals(rearrange(weight, shape))[terms:].square().sum()
    torch.testing.assert_close((weight - kronecker_sum(a, b)).square().sum(), dropped)


def test_no_alternating_least_squares_from_any_start_does_better():
    weight = numbers(6, 8)
    best = (weight - kronecker_sum(*nearest_kronecker(weight, shape=(3, 2)))).norm()
    blocks = weight.view(3, 2, 2, 4)  # (m1, m2, n1, n2)
    errors = []
    for seed in range(5):
        b = numbers(2, 4, seed=10 + seed)
        for _ in range(100):
            a = torch.einsum("iajb,ab->ij", blocks, b) / b.square().sum()
            b = torch.einsum("iajb,ij->ab", blocks, a) / a.square().sum()
        errors.append((weight - torch.kron(a, b)).norm())
    assert min(errors) >= best - 1e-12
    torch.testing.assert_close(min(errors), best)


def test_all_terms_are_exact_and_so_is_one_for_a_product():
    weight = numbers(6, 8)
    torch.testing.assert_close(
        kronecker_sum(*nearest_kronecker(weight, shape=(3, 2), terms=6)), weight
    )
    product = torch.kron(numbers(3, 2), numbers(2, 4, seed=1))
    torch.testing.assert_close(kronecker_sum(*nearest_kronecker(product, shape=(3, 2))), product)


def test_blocks_of_one_row_or_one_number_are_the_known_cases():
    weight = numbers(6, 8)
    a, b = nearest_kronecker(weight, shape=(6, 1), terms=2)  # (6, 1) ⊗ (1, 8): rank 2
    u, s, vh = torch.linalg.svd(weight)
    torch.testing.assert_close(kronecker_sum(a, b), u[:, :2] * s[:2] @ vh[:2])
    a, b = nearest_kronecker(weight, shape=(6, 8))
    assert b.shape == (1, 1, 1)
    torch.testing.assert_close(kronecker_sum(a, b), weight)


def test_the_two_factors_are_of_one_size():
    a, b = nearest_kronecker(numbers(6, 8), shape=(3, 2), terms=3)
    torch.testing.assert_close(a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1))
    norms = a.flatten(1).norm(dim=1)
    assert norms.tolist() == sorted(norms.tolist(), reverse=True)


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 5), (0,)])
def test_the_fast_product_is_the_dense_one(batch):
    a, b, x = numbers(3, 2, 3), numbers(3, 4, 5, seed=1), numbers(*batch, 15, seed=2)
    y = apply_kronecker(x, a, b)
    assert y.shape == (*batch, 8)
    torch.testing.assert_close(y, x @ kronecker_sum(a, b).T)


def test_gradients_are_right_and_those_of_the_dense_product():
    inputs = [numbers(2, 6, seed=2), numbers(2, 2, 3), numbers(2, 3, 2, seed=1)]
    assert torch.autograd.gradcheck(apply_kronecker, [t.requires_grad_() for t in inputs])
    x, a, b = inputs
    fast = torch.autograd.grad(apply_kronecker(x, a, b).square().sum(), inputs)
    dense = torch.autograd.grad((x @ kronecker_sum(a, b).T).square().sum(), inputs)
    torch.testing.assert_close(fast, dense)


def test_the_cost_is_the_one_the_docstring_says():
    terms, m1, n1, m2, n2, batch = 3, 2, 3, 4, 5, 7
    a, b, x = numbers(terms, m1, n1), numbers(terms, m2, n2), numbers(batch, n1 * n2)
    flops = count_flops(lambda: apply_kronecker(x, a, b))
    assert flops == 2 * batch * terms * n1 * m2 * (n2 + m1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_come_back_and_the_weight_is_left_alone(dtype):
    weight = torch.nn.Parameter(numbers(6, 8).to(dtype))
    before = weight.detach().clone()
    a, b = nearest_kronecker(weight, shape=(3, 2), terms=6)
    assert a.dtype == b.dtype == kronecker_sum(a, b).dtype == dtype
    assert apply_kronecker(weight.detach(), a, b).dtype == dtype
    assert not a.requires_grad
    assert torch.equal(weight, before)
    error = (kronecker_sum(a, b) - before).abs().max()
    assert error < {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"weight must be a matrix, not of shape \(2, 2, 2\)"):
        nearest_kronecker(numbers(2, 2, 2), shape=(1, 1))
    for shape in [(4, 2), (3, 3), (0, 2), (3, -2)]:
        with pytest.raises(ValueError, match=r"shape must divide \(6, 8\), the shape of weight"):
            nearest_kronecker(numbers(6, 8), shape=shape)
    for terms in [0, 7]:
        with pytest.raises(ValueError, match=rf"terms must be 1 to 6 .*\(3, 2\).* not {terms}"):
            nearest_kronecker(numbers(6, 8), shape=(3, 2), terms=terms)
    a, b = numbers(2, 3, 2), numbers(2, 2, 4)
    with pytest.raises(ValueError, match=r"x must have 8 as its last dimension, not \(5, 6\)"):
        apply_kronecker(numbers(5, 6), a, b)
    with pytest.raises(ValueError, match=r"not \(2, 3, 2\) and \(1, 2, 4\)"):
        apply_kronecker(numbers(8), a, b[:1])
    with pytest.raises(ValueError, match=r"not \(3, 2\) and \(2, 4\)"):
        kronecker_sum(a[0], b[0])
