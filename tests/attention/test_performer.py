import math

import pytest
import torch
from qkv import heads, oracle, padded
from small import randn

from compresslab.attention.linear import linear_attention
from compresslab.attention.performer import draw_projection, log_features, performer_attention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def estimates(query, key, *, orthogonal, draws=4000):
    """Of e^(q · k), each from as many directions as there are dimensions: (draws,)."""
    dim = len(query)
    projection = draw_projection(
        draws * dim, dim, orthogonal=orthogonal, generator=generator()
    ).double()
    q, k = (log_features(x.view(1, 1, 1, -1), projection).flatten() for x in (query, key))
    return draws * (q + k).exp().view(draws, dim).sum(dim=1)


@pytest.mark.parametrize("orthogonal", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_the_product_of_features_is_the_exponential_on_average(orthogonal, seed):
    query, key = 0.5 * randn(2, 6, seed=seed)
    found = estimates(query, key, orthogonal=orthogonal)
    error = found.mean() - (query @ key).exp()
    assert error.abs() < 4 * found.std() / math.sqrt(len(found))  # once in 16,000 beyond
    assert found.std() / math.sqrt(len(found)) < 0.06 * found.mean()


def test_orthogonal_directions_vary_less():
    query, key = 0.5 * randn(2, 6, seed=1)
    variances = [estimates(query, key, orthogonal=o, draws=20_000).var() for o in (True, False)]
    assert variances[0] < 0.9 * variances[1]


def test_the_variance_is_that_of_the_papers_lemma():
    """Lemma 2, of independent directions: e^(‖q + k‖²) e^(2 q · k) (1 - e^(-‖q + k‖²)) / m."""
    query, key = 0.5 * randn(2, 6, seed=2)
    square = (query + key).square().sum()
    expected = square.exp() * (2 * query @ key).exp() * (1 - (-square).exp()) / 6
    found = estimates(query, key, orthogonal=False, draws=40_000).var()
    assert 0.85 < found / expected < 1.15


def test_directions_are_orthogonal_in_groups_and_normal_each():
    projection = draw_projection(4003, 4, generator=generator())
    assert projection.shape == (4003, 4)
    groups = projection[:4000].view(1000, 4, 4)
    products = groups @ groups.mT
    assert (products - products.diagonal(dim1=1, dim2=2).diag_embed()).abs().max() < 1e-4
    square = projection.square().sum(1)  # chi-squared with 4 degrees of freedom
    assert 3.8 < square.mean() < 4.2
    assert 6.8 < square.var() < 9.2
    covariance = projection.T @ projection / 4003
    assert (covariance - torch.eye(4)).abs().max() < 0.1
    assert projection.mean(0).abs().max() < 0.1
    assert (projection[:, 0] > 0).float().mean() == pytest.approx(0.5, abs=0.05)
    assert torch.equal(projection, draw_projection(4003, 4, generator=generator()))


@pytest.mark.parametrize("causal", [False, True])
def test_the_shifts_cancel(causal):
    """Without them it is linear attention with the same features, as long as nothing overflows."""
    query, key, value = heads()
    projection = draw_projection(10, 4, generator=generator()).double()

    def features(x):
        return log_features(x / 4**0.25, projection).exp()

    options = {"causal": causal, "mask": padded(13)}
    torch.testing.assert_close(
        performer_attention(query, key, value, projection=projection, **options),
        linear_attention(query, key, value, feature_map=features, **options),
    )


def test_large_numbers_neither_overflow_nor_vanish():
    query, key, value = heads()
    query, key = 40 + query, 40 - key  # features of about e^(-‖40‖²), zero even in float64
    projection = draw_projection(10, 4, generator=generator())
    assert (log_features(key / 4**0.25, projection) < -1000).all()
    out = performer_attention(query, key, value, projection=projection)
    assert out.isfinite().all()
    assert (out != 0).all()
    half = (x.float() for x in (query, key, value))
    same = performer_attention(*half, projection=projection)
    torch.testing.assert_close(same, out.float(), atol=0.02, rtol=0)


def test_padding_with_larger_features_than_all_else_does_not_hide_them():
    query, key, value = heads()
    mask = padded(13, left=0)
    key = 40 - key
    key[1, :, 10:] = 0
    projection = draw_projection(10, 4, generator=generator())
    out = performer_attention(query + 40, key, value, mask=mask, projection=projection)
    alone = (x[1:, :, :10] for x in (query + 40, key, value))
    expected = performer_attention(*alone, projection=projection)
    torch.testing.assert_close(out[1:, :, :10], expected)


@pytest.mark.parametrize("causal", [False, True])
def test_more_features_come_nearer_to_the_softmax(causal):
    query, key, value = heads(30)
    query, key = query / 2, key / 2
    exact = oracle(query, key, value, causal=causal)
    errors = []
    for features in (4, 64, 1024, 16_384):
        projection = draw_projection(features, 4, generator=generator())
        out = performer_attention(query, key, value, causal=causal, projection=projection)
        errors.append((out - exact).square().mean().sqrt().item())
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    assert 2 < errors[1] / errors[2] < 8  # about the root of 16


def test_each_head_may_have_directions_of_its_own():
    inputs = heads()
    projections = torch.stack([draw_projection(10, 4, generator=generator(i)) for i in range(3)])
    out = performer_attention(*inputs, projection=projections)
    for h in range(3):
        one = performer_attention(*(x[:, [h]] for x in inputs), projection=projections[h])
        torch.testing.assert_close(out[:, [h]], one)


def test_bad_input_is_named():
    with pytest.raises(
        ValueError, match=r"\(features, 4\) or \(3 heads, features, 4\), not \(8, 5\)"
    ):
        performer_attention(*heads(), projection=randn(8, 5))
    with pytest.raises(ValueError, match=r"not \(2, 8, 4\)"):
        performer_attention(*heads(), projection=randn(2, 8, 4))
    with pytest.raises(ValueError, match=r"not \(4,\)"):
        performer_attention(*heads(), projection=randn(4))
    with pytest.raises(ValueError, match="features and dim must be at least 1, not 0 and 4"):
        draw_projection(0, 4)
