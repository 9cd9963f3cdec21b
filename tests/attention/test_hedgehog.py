import torch
from qkv import assert_same, heads, padded, with_gradients
from small import randn

from compresslab.attention.hedgehog import LearnedMap


def learned_map():
    own = LearnedMap(3, 4).double()
    with torch.no_grad():
        own.weight.add_(0.3 * randn(2, 3, 4, 4))
        own.bias.add_(0.3 * randn(2, 3, 1, 4))
    return own


def by_formula(own, query, key, allowed):
    x, y = (
        z * 4**-0.25 @ weight + bias
        for z, weight, bias in zip((query, key), own.weight, own.bias, strict=True)
    )
    products = x.exp() @ y.exp().mT + (-x).exp() @ (-y).exp().mT
    products = products * allowed
    return products / products.sum(-1, keepdim=True)


def test_it_is_the_papers_formula_and_gives_its_weights_and_gradient():
    own, mask = learned_map(), padded(13, left=0)
    query, key, value = heads()
    past, real = torch.ones(13, 13).tril(), mask[:, None, None]
    expected = by_formula(own, query, key, real)
    torch.testing.assert_close(own.weights(query, key, mask), expected)
    torch.testing.assert_close(own.weights(query, key), by_formula(own, query, key, 1))
    for causal, allowed in ((False, real), (True, real * past)):

        def formula(query, key, value, allowed=allowed):
            return by_formula(own, query, key, allowed) @ value

        ours = with_gradients(own, query, key, value, causal=causal, mask=mask)
        assert_same(ours, with_gradients(formula, query, key, value))


def test_it_begins_with_the_identity_and_learns():
    own = LearnedMap(3, 4).double()
    query, key, value = heads()
    q, k = own.features(query, key)
    assert q.shape == k.shape == (2, 3, 13, 8)
    torch.testing.assert_close(q[..., :4].log() - q[..., 4:].log(), 2 * query * 4**-0.25)
    own(query, key, value).square().sum().backward()
    assert all((p.grad != 0).any() for p in own.parameters())


def test_large_numbers_do_not_overflow():
    query, key, value = heads()
    assert learned_map()(100 * query, 100 * key, value).isfinite().all()
