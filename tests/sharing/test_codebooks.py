"""Codebooks: what is stored, what it stands for, and how it trains."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compresslab import storage
from compresslab.pruning.masks import keep_largest
from compresslab.sharing.codebooks import (
    Clustered,
    CodebookLinear,
    centroid_gradient,
    cluster,
    cluster_linears_,
    clustered_bytes,
)
from compresslab.sharing.kmeans import lloyd, start_centroids

GRANULARITIES = pytest.mark.parametrize("granularity", ["tensor", "channel", 8])


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.sampled_from(["tensor", "channel", 8]),
    st.sampled_from(["linear", "random", "density"]),
    st.sampled_from([0.0, 0.4, 1.0]),
    st.integers(0, 2**31),
)
def test_kept_weights_are_at_their_nearest_centroid_and_pruned_ones_at_zero(
    bits, granularity, start, sparsity, seed
):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(6, 16, generator=generator)
    mask = keep_largest(weight.abs(), sparsity)
    shared = cluster(
        weight, bits=bits, granularity=granularity, start=start, mask=mask, generator=generator
    )
    assert shared.codes.dtype == torch.uint8
    assert shared.codes.shape == weight.shape
    assert torch.equal(shared.codes > 0, mask)
    assert (shared.codebook[:, 0] == 0).all()
    back = shared.reconstruct()
    assert (back[~mask] == 0).all()
    groups = {"tensor": 1, "channel": 6, 8: 12}[granularity]
    assert shared.codebook.shape == (groups, 2**bits)
    rows = (t.reshape(groups, -1) for t in (weight, back, mask))
    for row, own, kept, book in zip(*rows, shared.codebook, strict=True):
        nearest = (row[kept, None] - book[1:]).abs().amin(1)
        assert torch.equal((row - own)[kept].abs(), nearest)


@GRANULARITIES
@pytest.mark.parametrize("pruned", [False, True])
def test_a_group_has_the_codebook_that_k_means_gives_its_kept_weights(granularity, pruned):
    weight = randn(6, 16)
    mask = weight.abs() > 0.5 if pruned else torch.ones(6, 16, dtype=torch.bool)
    shared = cluster(
        weight,
        bits=3,
        granularity=granularity,
        start="density",
        mask=mask if pruned else None,
    )
    groups = len(shared.codebook)
    for row, kept, book in zip(
        weight.view(groups, -1), mask.view(groups, -1), shared.codebook, strict=True
    ):
        own = row[kept][None]
        expected = lloyd(own, start_centroids(own, 8 - pruned, "density"))[0]
        torch.testing.assert_close(book[int(pruned) :], expected)
    assert shared.zero == pruned


def test_more_bits_leave_less_error_and_as_many_as_weights_none():
    weight = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    errors = [
        (cluster(weight, bits=b, start="density").reconstruct() - weight).square().sum().item()
        for b in range(1, 9)
    ]
    assert all(a > b for a, b in itertools.pairwise(errors))
    assert errors[-1] == 0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_codebook_is_in_floating_point_of_32_bits_or_more(dtype):
    weight = randn(4, 8).to(dtype)
    shared = cluster(weight, bits=2)
    assert shared.codebook.dtype == (dtype if dtype == torch.float64 else torch.float32)
    assert (shared.reconstruct() - weight).abs().max() < 1
    assert weight.dtype == dtype


@GRANULARITIES
@pytest.mark.parametrize("pruned", [False, True])
def test_the_gradient_of_a_centroid_is_the_sum_over_its_members(granularity, pruned):
    weight, x, target = randn(6, 16), randn(5, 16, seed=1), randn(5, 6, seed=2)
    mask = weight.abs() > 0.5 if pruned else None
    shared = cluster(weight, bits=2, granularity=granularity, mask=mask)
    dense = shared.reconstruct().requires_grad_()
    F.mse_loss(F.linear(x, dense), target).backward()
    ours = centroid_gradient(dense.grad, shared)
    # Equation 3, by loops.
    codes = shared.codes.view(len(shared.codebook), -1)
    members = dense.grad.view(codes.shape)
    expected = [[g[c == k].sum() for k in range(4)] for g, c in zip(members, codes, strict=True)]
    torch.testing.assert_close(ours, torch.tensor(expected))
    # Autograd, through the layer, which has no zero to train.
    layer = CodebookLinear(shared, trained=True)
    F.mse_loss(layer(x), target).backward()
    torch.testing.assert_close(layer.codebook.grad, ours[:, int(pruned) :])


def test_the_gradient_of_the_codebook_is_right_in_float64():
    shared = cluster(randn(3, 8), bits=2, granularity="channel", mask=randn(3, 8) > -0.5)
    x, layer = randn(2, 8, seed=1), CodebookLinear(shared, randn(3), trained=True)

    def output(codebook, bias):
        return torch.func.functional_call(layer, {"codebook": codebook, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(output, (layer.codebook, layer.bias))


def test_training_moves_the_centroids_and_neither_codes_nor_zeros():
    weight, x = randn(6, 16), randn(40, 16, seed=1)
    mask = keep_largest(weight.abs(), 0.5)
    layer = CodebookLinear(cluster(weight, bits=2, mask=mask), trained=True)
    before, target = layer.clustered(), x @ weight.T
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.01, weight_decay=0.1)
    losses = []
    for _ in range(30):
        loss = F.mse_loss(layer(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    after = layer.clustered()
    assert losses[-1] < losses[0]
    assert torch.equal(after.codes, before.codes)
    assert (after.reconstruct()[~mask] == 0).all()
    assert (after.codebook[:, 1:] != before.codebook[:, 1:]).all()


@GRANULARITIES
@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("pruned", [False, True])
def test_the_bytes_are_those_of_the_formula_and_of_the_file(granularity, bits, pruned, tmp_path):
    weight = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
    mask = weight.abs() > 0.3 if pruned else None
    shared = cluster(weight, bits=bits, granularity=granularity, mask=mask)
    layer = CodebookLinear(shared)
    groups = len(shared.codebook)
    expected = clustered_bytes(6 * 24, bits=bits, groups=groups, zero=pruned)
    assert expected == 6 * 24 * bits / 8 + 4 * groups * (2**bits - pruned)
    assert sum(t.nbytes for t in layer.state_dict().values()) == expected
    size = storage.save(layer, tmp_path / "layer")
    assert expected < size < expected + 300  # the file's own header
    other = CodebookLinear(Clustered(*map(torch.zeros_like, (shared.codes, shared.codebook)), bits))
    if not pruned:
        other.load_state_dict(storage.load(tmp_path / "layer"))
        assert torch.equal(other.clustered().reconstruct(), shared.reconstruct())


def test_the_rate_is_that_of_the_papers_figure_3():
    # 16 weights of 32 bits as 2-bit codes with 4 centroids: 3.2 times smaller (section 3).
    assert 16 * 4 / clustered_bytes(16, bits=2) == 3.2


@pytest.mark.parametrize("trained", [False, True])
def test_a_layer_computes_with_its_weight_and_trains_only_if_it_is_to(trained):
    weight, bias, x = torch.randn(5, 9), torch.randn(5), torch.randn(2, 3, 9)
    shared = cluster(weight, bits=3, mask=weight > -1)
    layer = CodebookLinear(shared, bias, trained=trained)
    assert torch.equal(layer(x), F.linear(x, shared.reconstruct(), bias))
    assert {n for n, _ in layer.named_parameters()} == ({"codebook", "bias"} if trained else set())
    assert set(layer.state_dict()) == {"codes", "codebook", "bias"}
    assert layer.bias.data_ptr() != bias.data_ptr()
    assert layer.codebook.untyped_storage().data_ptr() != shared.codebook.data_ptr()
    other = CodebookLinear(shared, torch.zeros(5), trained=not trained)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))
    half = CodebookLinear(
        Clustered(shared.codes, shared.codebook.half(), 3, True), bias, trained=trained
    )
    assert half.codebook.dtype == torch.float16
    torch.testing.assert_close(half(x), layer(x), rtol=0, atol=0.05)


def test_layers_of_a_model_are_replaced_and_no_others():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2, bias=False)).eval()
    dense, x, seen = copy.deepcopy(model), torch.randn(4, 16), []

    def choose(name, weight):
        seen.append(name)
        return cluster(weight, bits=8, start="density")

    cluster_linears_(model, choose, ["0"])
    assert seen == ["0"]
    assert isinstance(model[0], CodebookLinear)
    assert type(model[2]) is nn.Linear
    assert not model[0].training
    torch.testing.assert_close(model(x), dense(x))
    assert not list(model[0].parameters())
    cluster_linears_(dense, choose, trained=True)
    assert [len(list(dense[i].parameters())) for i in (0, 2)] == [2, 1]


def test_bad_input_is_named():
    weight = torch.randn(4, 6)
    with pytest.raises(ValueError, match="bits must be 1 to 8, not 9"):
        cluster(weight, bits=9)
    with pytest.raises(ValueError, match=r"mask must have the shape \(4, 6\), not \(6, 4\)"):
        cluster(weight, bits=2, mask=torch.ones(6, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="granularity must be 'tensor', 'channel' or a number"):
        cluster(weight, bits=2, granularity=4)
    with pytest.raises(ValueError, match="start must be linear, random, density, not 'quantile'"):
        cluster(weight, bits=2, start="quantile")
    with pytest.raises(ValueError, match="values must be finite"):
        cluster(weight.log(), bits=2)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with pytest.raises(ValueError, match="has no linear layer '7'"):
        cluster_linears_(model, lambda name, w: cluster(w, bits=2), ["7"])
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="0 shares its weight with another layer"):
        cluster_linears_(model, lambda name, w: cluster(w, bits=2))
