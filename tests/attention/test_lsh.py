import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qkv import assert_same, heads, oracle, padded, with_gradients
from small import randn
from torch.nn import functional as F
from transformers import ReformerConfig
from transformers.models.reformer.modeling_reformer import LSHSelfAttention

from compresslab.attention.lsh import lsh_attention, lsh_buckets


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lsh(query, value, **options):
    return lsh_attention(query, query, value, generator=generator(), **options)


def pattern(query, *, buckets, rounds, chunk_size, causal=False, mask=None):
    """Who meets whom, bool (batch, heads, time, time), by sorting each text with a loop."""
    bucket = lsh_buckets(query, buckets=buckets, rounds=rounds, generator=generator())
    batch, count, _, time = bucket.shape
    meet = torch.zeros(batch, count, time, time, dtype=torch.bool)
    for b in range(batch):
        real = [t for t in range(time) if mask is None or mask[b, t]]
        for h in range(count):
            for found in bucket[b, h].tolist():
                order = sorted(real, key=lambda t, found=found: (found[t], t))
                for p, i in enumerate(order):
                    for s, j in enumerate(order):
                        near = 0 <= p // chunk_size - s // chunk_size <= 1
                        if near and found[i] == found[j] and (j <= i or not causal):
                            meet[b, h, i, j] = True
    alone = meet.sum(-1) <= 1  # itself, or padding
    itself = torch.eye(time, dtype=torch.bool)
    return torch.where(alone[..., None], meet & itself, meet & ~itself)


def shared(query, value, pattern):
    """Full attention among the pairs, keys of length 1."""
    return F.scaled_dot_product_attention(
        query, F.normalize(query, dim=-1), value, attn_mask=pattern, scale=1.0
    )


@settings(deadline=None, max_examples=50)
@given(
    st.integers(1, 24),
    st.integers(1, 30),
    st.sampled_from([1, 2, 6]),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 2**24),
)
def test_it_is_attention_among_the_pairs_that_meet(time, chunk_size, buckets, rounds, causal, bits):
    query, _, value = heads(time)
    mask = torch.tensor([[bits >> t & 1 for t in range(time)], [1] * time])
    options = {"buckets": buckets, "rounds": rounds, "chunk_size": chunk_size}
    options |= {"causal": causal, "mask": mask}
    meet = pattern(query, **options)
    out, *gradients = with_gradients(lsh, query, value, **options)
    assert_same((out, *gradients), with_gradients(shared, query, value, pattern=meet))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
def test_one_bucket_and_one_chunk_are_full_attention_to_all_others(causal, rounds):
    query, _, value = heads()
    out = lsh(query, value, causal=causal, buckets=1, rounds=rounds, chunk_size=13)
    others = ~torch.eye(13, dtype=torch.bool)
    key = F.normalize(query, dim=-1)
    expected = oracle(query, key, value, causal=causal, pattern=others, scale=1.0)
    if causal:
        expected[:, :, 0] = value[:, :, 0]  # nobody else
    torch.testing.assert_close(out, expected)


def test_a_short_text_is_that_of_the_reformer_of_transformers():
    config = ReformerConfig(
        hidden_size=12,
        num_attention_heads=3,
        attention_head_size=4,
        lsh_attn_chunk_length=16,
        lsh_attention_probs_dropout_prob=0.0,
        is_decoder=True,
    )
    layer = LSHSelfAttention(config).double().eval()
    x, mask = 5 * randn(2, 13, 12), padded(13, left=0)
    with torch.no_grad():
        expected = layer(x, attention_mask=mask).hidden_states
        query, value = (
            y.unflatten(-1, (3, 4)).transpose(1, 2) for y in (layer.query_key(x), layer.value(x))
        )
    out = lsh(query, value, causal=True, mask=mask, buckets=1, chunk_size=13)
    out, real = out.transpose(1, 2).flatten(2), mask.bool()
    # There 10⁻⁶ is added below the root when keys are brought to length 1.
    torch.testing.assert_close(out[real], expected[real], atol=1e-4, rtol=1e-4)


def test_a_token_alone_in_its_bucket_gets_its_own_value():
    query = torch.cat([torch.eye(4), -torch.eye(4)])[None, None].double()
    bucket = lsh_buckets(query, buckets=64, generator=generator())
    counts = (bucket[..., :, None] == bucket[..., None, :]).sum(-1)[0, 0, 0]
    assert (counts == 1).any()
    value = heads(8, batch=1, count=1)[2]
    out = lsh(query, value, buckets=64)
    assert torch.equal((out == value).all(-1)[0, 0], counts == 1)


def test_near_vectors_share_a_bucket_more_often_and_length_does_not_matter():
    x = randn(1, 1, 500, 8)
    towards = F.normalize(randn(1, 1, 500, 8, seed=1), dim=-1) * x.norm(dim=-1, keepdim=True)
    rates = []
    for step in (0.0, 0.2, 0.6, 3.0):
        both = torch.cat([x, 7 * (x + step * towards)])
        one, other = lsh_buckets(both, buckets=16, rounds=20, generator=generator())
        rates.append((one == other).float().mean().item())
    assert rates[0] == 1
    assert rates == sorted(rates, reverse=True)
    assert rates[1] > 0.7
    assert rates[-1] < 0.25
    found = lsh_buckets(x, buckets=16, rounds=20, generator=generator())
    assert found.shape == (1, 1, 20, 500)
    assert (found.flatten().bincount(minlength=16) > 350).all()  # 625 on average


def test_rounds_and_heads_have_rotations_of_their_own():
    x = randn(1, 1, 50, 8).expand(1, 2, 50, 8)
    found = lsh_buckets(x, buckets=8, rounds=2, generator=generator())
    assert not torch.equal(found[:, 0], found[:, 1])
    assert not torch.equal(found[:, :, 0], found[:, :, 1])


def test_more_rounds_come_nearer_to_full_attention():
    query, _, value = heads(200, batch=1)
    query = 2 * query
    full = lsh(query, value, buckets=1, chunk_size=200)
    errors = [
        (lsh(query, value, buckets=8, rounds=rounds, chunk_size=50) - full).square().mean().item()
        for rounds in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 4


def test_no_gradient_comes_from_later_tokens_even_with_many_chunks():
    query, _, value = (x.requires_grad_() for x in heads(40))
    out = lsh(query, value, causal=True, buckets=4, rounds=2, chunk_size=5)
    for gradient in torch.autograd.grad(out[:, :, :20].square().sum(), (query, value)):
        assert (gradient[:, :, 20:] == 0).all()
        assert (gradient[:, :, :20] != 0).any()


def test_bad_input_is_named():
    query, _, value = heads()
    with pytest.raises(ValueError, match="key must be query itself"):
        lsh_attention(query, query.clone(), value, buckets=2)
    for buckets, rounds in ((3, 1), (0, 1), (2, 0)):
        with pytest.raises(ValueError, match=f"at least 1, not {buckets} and {rounds}"):
            lsh(query, value, buckets=buckets, rounds=rounds)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        lsh(query, value, buckets=2, chunk_size=0)
