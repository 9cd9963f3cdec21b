import math

import pytest
import torch
from scipy.linalg import hadamard
from torch import nn

from compresslab.factorization.structured import (
    MonarchLinear,
    apply_butterfly,
    apply_monarch,
    block_diagonal,
    hadamard_factors,
    monarch_to_dense,
    project_monarch,
)
from compresslab.measure import count_flops, count_parameters

# out_features, in_features, blocks, rank
CASES = [(16, 16, 4, 1), (12, 8, 2, 3), (8, 12, 4, 2), (6, 10, 1, 2), (5, 5, 5, 1)]


def numbers(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def butterfly_to_dense(factors):
    return apply_butterfly(torch.eye(2 ** len(factors), dtype=factors.dtype), factors).T


def random_butterfly(n, seed=0, dtype=torch.float64):
    return numbers(n.bit_length() - 1, n // 2, 2, 2, seed=seed, dtype=dtype)


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 5), (0,)])
def test_a_block_diagonal_product_is_that_of_torch(batch):
    blocks, x = numbers(3, 4, 2), numbers(*batch, 6, seed=1)
    y = block_diagonal(x, blocks)
    assert y.shape == (*batch, 12)
    torch.testing.assert_close(y, x @ torch.block_diag(*blocks).T)
    torch.testing.assert_close(block_diagonal(x, numbers(1, 4, 6)), x @ numbers(4, 6).T)


def test_a_monarch_matrix_has_the_form_of_the_paper():
    left, right = numbers(3, 3, 3), numbers(3, 3, 3, seed=1)
    permutation = torch.eye(9, dtype=torch.float64).view(3, 3, 9).transpose(0, 1).reshape(9, 9)
    expected = permutation @ torch.block_diag(*left) @ permutation.T @ torch.block_diag(*right)
    torch.testing.assert_close(monarch_to_dense(left, right), expected)


@pytest.mark.parametrize(("out_features", "in_features", "blocks", "rank"), CASES)
def test_the_error_of_the_projection_is_the_dropped_singular_values(
    out_features, in_features, blocks, rank
):
    weight = numbers(out_features, in_features)
    left, right = project_monarch(weight, blocks=blocks, rank=rank)
    dense, run = monarch_to_dense(left, right), in_features // blocks
    dropped = 0
    for j in range(blocks):
        for k in range(blocks):
            u, s, vh = torch.linalg.svd(weight[j::blocks, k * run : (k + 1) * run])
            nearest = u[:, :rank] * s[:rank] @ vh[:rank]
            torch.testing.assert_close(dense[j::blocks, k * run : (k + 1) * run], nearest)
            dropped += s[rank:].square().sum()
    torch.testing.assert_close((weight - dense).square().sum(), dropped)
    assert left.numel() + right.numel() == rank * blocks * (out_features + in_features)


def test_training_the_factors_finds_nothing_nearer():
    weight = numbers(8, 12)
    left, right = project_monarch(weight, blocks=2, rank=2)
    best = (weight - monarch_to_dense(left, right)).square().sum()
    for seed in range(3):
        parts = [
            (part + 0.3 * numbers(*part.shape, seed=seed)).requires_grad_()
            for part in (left, right)
        ]
        optimizer = torch.optim.LBFGS(parts, max_iter=60, line_search_fn="strong_wolfe")

        def loss(parts=parts, optimizer=optimizer):
            optimizer.zero_grad()
            value = (weight - monarch_to_dense(*parts)).square().sum()
            value.backward()
            return value

        optimizer.step(loss)
        assert loss() >= best - 1e-10


def test_full_rank_one_number_a_block_and_a_monarch_matrix_are_exact():
    weight = numbers(12, 8)
    for blocks, rank in [(1, 8), (2, 4), (4, 2)]:
        factors = project_monarch(weight, blocks=blocks, rank=rank)
        torch.testing.assert_close(monarch_to_dense(*factors), weight)
    square = numbers(5, 5)
    torch.testing.assert_close(monarch_to_dense(*project_monarch(square, blocks=5)), square)
    monarch = monarch_to_dense(numbers(2, 6, 4), numbers(2, 4, 4, seed=1))
    found = monarch_to_dense(*project_monarch(monarch, blocks=2, rank=2))
    torch.testing.assert_close(found, monarch)


def test_one_block_is_the_truncated_svd():
    weight = numbers(6, 10)
    u, s, vh = torch.linalg.svd(weight)
    left, right = project_monarch(weight, blocks=1, rank=2)
    torch.testing.assert_close(left[0] @ right[0], u[:, :2] * s[:2] @ vh[:2])
    torch.testing.assert_close(left.square().sum(), right.square().sum())


@pytest.mark.parametrize("batch", [(), (3,), (2, 1, 5), (0,)])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((4, 4, 4), (4, 4, 4)),
        ((2, 6, 6), (2, 6, 4)),
        ((3, 2, 4), (2, 6, 5)),
        ((1, 5, 2), (1, 2, 3)),
    ],
)
def test_the_fast_monarch_product_is_the_dense_one(left, right, batch):
    left, right = numbers(*left), numbers(*right, seed=1)
    x = numbers(*batch, right.shape[0] * right.shape[2], seed=2)
    y = apply_monarch(x, left, right)
    assert y.shape == (*batch, left.shape[0] * left.shape[1])
    torch.testing.assert_close(y, x @ monarch_to_dense(left, right).T)


def test_gradients_of_the_monarch_product_are_right_and_those_of_the_dense_one():
    left, right, x = numbers(2, 3, 4), numbers(2, 4, 2, seed=1), numbers(2, 4, seed=2)
    inputs = [t.requires_grad_() for t in (x, left, right)]
    assert torch.autograd.gradcheck(apply_monarch, inputs)
    fast = torch.autograd.grad(apply_monarch(*inputs).square().sum(), inputs)
    dense = (x @ monarch_to_dense(left, right).T).square().sum()
    torch.testing.assert_close(fast, torch.autograd.grad(dense, inputs))


def test_the_monarch_product_costs_its_numbers():
    factors = project_monarch(numbers(12, 8), blocks=2, rank=3)
    x = numbers(7, 8)
    expected = 2 * 7 * sum(factor.numel() for factor in factors)
    assert count_flops(lambda: apply_monarch(x, *factors)) == expected


@pytest.mark.parametrize("n", [2, 4, 16, 64])
def test_the_hadamard_matrix_is_a_butterfly(n):
    factors = hadamard_factors(n)
    levels = int(math.log2(n))
    assert factors.numel() == 2 * n * levels
    assert torch.equal(butterfly_to_dense(factors), torch.from_numpy(hadamard(n)).float())
    orthogonal = butterfly_to_dense(factors / math.sqrt(2))
    torch.testing.assert_close(orthogonal @ orthogonal.T, torch.eye(n))


@pytest.mark.parametrize("n", [2, 8, 32])
def test_the_fourier_transform_is_a_butterfly_after_bit_reversal(n):
    levels = n.bit_length() - 1
    factors = torch.empty(levels, n // 2, 2, 2, dtype=torch.complex128)
    for level in range(levels):
        offset = torch.arange(n // 2) % 2**level
        twiddle = torch.exp(-2j * math.pi * offset.double() / 2 ** (level + 1))
        one = torch.ones_like(twiddle)
        factors[level] = torch.stack([one, twiddle, one, -twiddle], -1).view(-1, 2, 2)
    reverse = [int(f"{i:0{levels}b}"[::-1], 2) for i in range(n)]
    x = numbers(3, n, dtype=torch.complex128)
    torch.testing.assert_close(apply_butterfly(x[:, reverse], factors), torch.fft.fft(x))


def test_each_factor_mixes_pairs_one_distance_apart():
    n, expected = 8, torch.eye(8, dtype=torch.float64)
    factors = random_butterfly(n)
    for level, factor in enumerate(factors):
        matrix, s = torch.zeros(n, n, dtype=torch.float64), 2**level
        firsts = [a for a in range(n) if not a & s]
        for a, pair in zip(firsts, factor, strict=True):
            matrix[a, a], matrix[a, a + s] = pair[0]
            matrix[a + s, a], matrix[a + s, a + s] = pair[1]
        expected = matrix @ expected
    torch.testing.assert_close(butterfly_to_dense(factors), expected)
    x = numbers(2, 3, n, seed=1)
    torch.testing.assert_close(apply_butterfly(x, factors), x @ expected.T)
    torch.testing.assert_close(apply_butterfly(x[0, 0], factors), expected @ x[0, 0])


def test_every_butterfly_is_a_monarch_matrix():
    # Near pairs stay inside a run of 4, which is R; far ones are near after the transpose: L.
    dense = butterfly_to_dense(random_butterfly(16))
    factors = project_monarch(dense, blocks=4)
    torch.testing.assert_close(monarch_to_dense(*factors), dense)


def test_gradients_of_the_butterfly_are_right():
    inputs = (numbers(2, 8).requires_grad_(), random_butterfly(8, seed=1).requires_grad_())
    assert torch.autograd.gradcheck(apply_butterfly, inputs)


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_computes_what_a_linear_layer_with_its_matrix_does(bias):
    linear = nn.Linear(8, 12, bias=bias).double().eval()
    x = numbers(2, 3, 8)
    exact = MonarchLinear.from_linear(linear, blocks=2, rank=4)
    torch.testing.assert_close(exact(x), linear(x))
    assert not exact.training
    layer = MonarchLinear(linear.weight, linear.bias, blocks=2)
    dense = monarch_to_dense(layer.left, layer.right)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, dense, linear.bias))
    assert count_parameters(layer) == 2 * (12 + 8) + 12 * bias
    assert repr(layer) == "MonarchLinear(8, 12, blocks=2, rank=1)"


def test_all_of_the_layer_trains_and_the_linear_layer_is_left_alone():
    linear = nn.Linear(8, 12)
    before = [p.detach().clone() for p in linear.parameters()]
    layer = MonarchLinear.from_linear(linear, blocks=4)
    assert layer.training
    layer(numbers(5, 8, dtype=torch.float32)).square().sum().backward()
    assert {name for name, p in layer.named_parameters() if p.grad.any()} == {
        *("left", "right", "bias"),
    }
    torch.optim.SGD(layer.parameters(), lr=1.0).step()
    assert all(torch.equal(*pair) for pair in zip(linear.parameters(), before, strict=True))
    assert all(p.grad is None for p in linear.parameters())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dtypes_come_back_and_the_weight_is_left_alone(dtype):
    weight = nn.Parameter(numbers(12, 8).to(dtype))
    before = weight.detach().clone()
    left, right = project_monarch(weight, blocks=2, rank=4)
    back = monarch_to_dense(left, right)
    product = apply_monarch(before, left, right)
    butterfly = apply_butterfly(before, hadamard_factors(8).to(dtype))
    assert {t.dtype for t in (left, right, back, product, butterfly)} == {dtype}
    assert not left.requires_grad
    assert torch.equal(weight, before)
    worst = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 0.05}[dtype]
    assert (back - before).abs().max() < worst


def test_bad_input_is_named():
    blocks = numbers(3, 4, 2)
    with pytest.raises(ValueError, match=r"x must have 6 .*\(3, 4, 2\), not \(5, 12\)"):
        block_diagonal(numbers(5, 12), blocks)
    with pytest.raises(ValueError, match=r"blocks must have three dimensions .*\(4, 2\)"):
        block_diagonal(numbers(2), blocks[0])
    with pytest.raises(ValueError, match=r"weight must be a matrix, not of shape \(3, 4, 2\)"):
        project_monarch(blocks, blocks=1)
    for count in (0, 3, 8):
        with pytest.raises(ValueError, match=rf"blocks must divide both of \(12, 8\), not {count}"):
            project_monarch(numbers(12, 8), blocks=count)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=rf"rank must be 1 to 4 .*\(6, 4\), not {rank}"):
            project_monarch(numbers(12, 8), blocks=2, rank=rank)
    for left, right in [((2, 6, 4), (3, 4, 4)), ((3, 6, 4), (2, 4, 4)), ((2, 6, 4), (2, 2, 4))]:
        with pytest.raises(ValueError, match=r"left and right must be \(j, l, k · rank\)"):
            monarch_to_dense(numbers(*left), numbers(*right))
    with pytest.raises(ValueError, match="right must have three dimensions"):
        apply_monarch(numbers(8), blocks, blocks[0])
    for shape in [(3, 4, 2), (3, 8, 2, 2), (0, 1, 2, 2), (2, 2, 2, 3)]:
        with pytest.raises(ValueError, match=r"factors must be \(log2 n, n/2, 2, 2\), not \("):
            apply_butterfly(numbers(8), numbers(*shape))
    with pytest.raises(ValueError, match=r"x must have 8 as its last dimension, not \(2, 16\)"):
        apply_butterfly(numbers(2, 16), random_butterfly(8))
    for n in (0, 1, 6):
        with pytest.raises(ValueError, match=f"n must be a power of two from 2 on, not {n}"):
            hadamard_factors(n)
