"""Hashed weights: the hash by whole numbers of Python, the best vector by least squares."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compresslab import storage
from compresslab.sharing.hashing import (
    HashedLinear,
    collisions,
    fit_vector,
    hash_entries,
    hash_linears_,
    hashed_matrix,
    mix,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def mixed(x):
    """The last step of MurmurHash3, in whole numbers of any size."""
    x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
    x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
    return x ^ x >> 16


@given(st.integers(0, 2**32 - 1))
def test_numbers_are_mixed_as_in_the_definition(x):
    assert mix(torch.tensor(x)).item() == mixed(x)


def test_numbers_are_mixed_as_in_murmurhash():
    # The hash of no bytes is the seed, mixed: published values of MurmurHash3_x86_32.
    assert mix(torch.tensor([0, 1, 0xFFFFFFFF])).tolist() == [0, 0x514E28B7, 0x81F16F39]


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 2**31), st.integers(0, 2**32 - 1))
def test_bucket_and_sign_are_those_of_the_definition(rows, columns, buckets, seed):
    bucket, sign = hash_entries((rows, columns), buckets, seed=seed)
    for p in range(rows * columns):
        x = mixed(p ^ mixed(seed))
        i, j = divmod(p, columns)
        assert sign[i, j] == (-1 if x % 2 else 1)
        assert bucket[i, j] == (x // 2) * buckets // 2**31
        assert 0 <= bucket[i, j] < buckets


def test_they_are_the_same_on_every_machine():
    bucket, sign = hash_entries((2, 4), 100, seed=5)
    assert bucket.tolist() == [[61, 18, 26, 64], [86, 10, 13, 90]]
    assert sign.tolist() == [[1, -1, 1, 1], [1, 1, -1, -1]]


def test_buckets_and_signs_are_as_even_as_chance_and_go_their_own_ways():
    n, k = 400 * 500, 1000
    bucket, sign = (t.flatten() for t in hash_entries((400, 500), k, seed=1))
    count = torch.bincount(bucket, minlength=k).double()
    chi_square = ((count - n / k).square() / (n / k)).sum().item()
    assert abs(chi_square - (k - 1)) < 4 * (2 * (k - 1)) ** 0.5
    assert abs(sign.sum().item()) < 4 * n**0.5
    sums = torch.zeros(k).index_add_(0, bucket, sign.float())
    assert abs(sums.square().mean().item() / (n / k) - 1) < 4 * (2 / k) ** 0.5
    other, turned = (t.flatten() for t in hash_entries((400, 500), k, seed=2))
    assert abs((bucket == other).sum().item() - n / k) < 4 * (n / k) ** 0.5
    assert abs((sign * turned).sum().item()) < 4 * n**0.5


def test_collisions_are_counted_and_are_those_of_chance():
    bucket, _ = hash_entries((5, 6), 12)
    pairs = sum((bucket.flatten()[i] == bucket.flatten()[:i]).sum().item() for i in range(30))
    empty = 12 - len(set(bucket.flatten().tolist()))
    assert collisions((5, 6), 12) == (pairs, empty)
    n, k = 300 * 200, 20_000
    pairs, empty = collisions((300, 200), k)
    assert abs(pairs - n * (n - 1) / (2 * k)) < 4 * (n * n / (2 * k)) ** 0.5
    assert abs(empty - k * (1 - 1 / k) ** n) < 4 * (k / 20) ** 0.5
    assert collisions((3, 4), 1) == (66, 0)


@pytest.mark.parametrize("buckets", [1, 7, 40, 200])
def test_the_vector_is_the_least_squares_solution(buckets):
    weight = randn(8, 10)
    bucket, sign = hash_entries((8, 10), buckets, seed=3)
    design = torch.zeros(80, buckets, dtype=torch.float64)
    design[torch.arange(80), bucket.flatten()] = sign.flatten().double()
    expected = torch.linalg.pinv(design) @ weight.flatten()  # 0 where a column is 0
    vector = fit_vector(weight, buckets, seed=3)
    torch.testing.assert_close(vector, expected)
    torch.testing.assert_close(
        hashed_matrix(vector, (8, 10), seed=3), (design @ vector).view(8, 10)
    )
    assert fit_vector(weight.bfloat16(), buckets).dtype == torch.bfloat16


def test_a_hashed_matrix_comes_back_and_a_trained_one_keeps_a_share():
    vector = randn(50)
    matrix = hashed_matrix(vector, (30, 40), seed=9)
    torch.testing.assert_close(fit_vector(matrix, 50, seed=9), vector)
    weight = randn(200, 300)
    kept = hashed_matrix(fit_vector(weight, 3000), (200, 300)).square().sum()
    assert kept / weight.square().sum() == pytest.approx(3000 / 60_000, rel=0.1)


def test_the_gradient_of_a_number_is_the_signed_sum_over_its_entries():
    layer, x = HashedLinear(randn(6), 4, 5, randn(4), seed=2), randn(3, 5)
    matrix = layer.matrix().detach().requires_grad_()
    F.linear(x, matrix, layer.bias).square().sum().backward()
    bucket, sign = hash_entries((4, 5), 6, seed=2)
    expected = [(sign * matrix.grad)[bucket == k].sum() for k in range(6)]
    layer(x).square().sum().backward()
    torch.testing.assert_close(layer.vector.grad, torch.stack(expected))

    def output(vector, bias):
        return torch.func.functional_call(layer, {"vector": vector, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(output, (layer.vector, layer.bias))


def test_the_state_is_the_vector_and_knows_its_seed(tmp_path):
    layer, x = HashedLinear(torch.randn(20), 8, 16, torch.randn(8), seed=4), torch.randn(2, 16)
    assert sum(t.nbytes for t in layer.state_dict().values()) == 4 * 20 + 4 * 8 + 8
    storage.save(layer, tmp_path / "layer")
    other = HashedLinear(torch.zeros(20), 8, 16, torch.zeros(8))
    other.load_state_dict(storage.load(tmp_path / "layer"))
    assert torch.equal(other(x), layer(x))
    assert torch.equal(layer(x), F.linear(x, layer.matrix(), layer.bias))
    assert HashedLinear(torch.randn(20).bfloat16(), 8, 16)(x).dtype == torch.float32


def test_layers_of_a_model_are_replaced_and_no_others():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)).eval()
    dense = copy.deepcopy(model)
    hash_linears_(model, 0.25, ["0"], seed=7)
    assert isinstance(model[0], HashedLinear)
    assert not model[0].training
    assert torch.equal(model[0].vector, fit_vector(dense[0].weight, 32, seed=7))
    assert torch.equal(model[0].bias, dense[0].bias)
    assert type(model[2]) is nn.Linear
    hash_linears_(dense, 0.01)
    assert [len(dense[i].vector) for i in (0, 2)] == [1, 1]
    assert [int(dense[i].seed) for i in (0, 2)] == [0, 1]
    assert dense[2].bias is None


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="buckets must be 1 to 2³¹, not 0"):
        hash_entries((2, 2), 0)
    with pytest.raises(ValueError, match=r"seed must be 0 to 2³² - 1, not -1"):
        hash_entries((2, 2), 1, seed=-1)
    with pytest.raises(ValueError, match=r"fewer than 2³² entries, not \(65536, 65536\)"):
        hash_entries((2**16, 2**16), 1)
    for odd in (0, 1.5):
        with pytest.raises(ValueError, match="fraction must be above 0 and at most 1, not"):
            hash_linears_(nn.Sequential(nn.Linear(2, 2)), odd)
    with pytest.raises(ValueError, match="has no linear layer '7'"):
        hash_linears_(nn.Sequential(nn.Linear(2, 2)), 0.5, ["7"])
