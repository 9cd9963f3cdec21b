import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qkv import assert_same, heads, oracle, with_gradients
from small import randn
from torch import nn

from compresslab.attention.flash import flash_attention, online_softmax
from compresslab.attention.full import full_attention
from compresslab.measure import count_flops, saved_for_backward

SIZES = st.integers(1, 20)


@settings(deadline=None, max_examples=60)
@given(SIZES, SIZES, SIZES, st.booleans(), st.integers(0, 2**20), st.sampled_from([None, 0.7]))
def test_any_tiles_give_torchs_attention_and_gradient(
    time, query_block, key_block, causal, bits, scale
):
    mask = torch.tensor([[bits >> t & 1 for t in range(time)], [1] * time])
    options = {"causal": causal, "mask": mask, "scale": scale}
    blocks = {"query_block": query_block, "key_block": key_block}
    ours = with_gradients(flash_attention, *heads(time), **options, **blocks)
    assert_same(ours, with_gradients(oracle, *heads(time), **options))


@pytest.mark.parametrize("causal", [False, True])
def test_without_a_mask_too(causal):
    ours = with_gradients(flash_attention, *heads(30), causal=causal, query_block=7, key_block=4)
    assert_same(ours, with_gradients(oracle, *heads(30), causal=causal))


def test_large_scores_overflow_nowhere():
    query, key, value = (x.float() for x in heads(20))
    options = {"query_block": 3, "key_block": 3}
    out, *gradients = with_gradients(flash_attention, 40 * query, 40 * key, value, **options)
    assert all(x.isfinite().all() for x in gradients)
    torch.testing.assert_close(out, full_attention(40 * query, 40 * key, value), atol=1e-3, rtol=0)


def test_memory_is_that_of_inputs_and_outputs_not_of_scores():
    def saved(method, time):
        inputs = [x.requires_grad_() for x in heads(time, batch=1)]
        return saved_for_backward(nn.Identity(), lambda: method(*inputs))

    # Queries, keys, values and outputs, and a number for each query, of 8 bytes.
    assert saved(flash_attention, 512) == 8 * 3 * 512 * (4 + 4 + 5 + 5 + 1)
    assert saved(full_attention, 512) > 8 * 3 * 512 * 512


def test_tiles_above_the_diagonal_are_not_computed():
    inputs = heads(64)
    blocks = {"query_block": 8, "key_block": 8}
    whole = count_flops(lambda: flash_attention(*inputs, **blocks))
    causal = count_flops(lambda: flash_attention(*inputs, causal=True, **blocks))
    assert causal * (8 * 8) == whole * (8 * 9 // 2)


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from([1.0, 100.0]))
def test_the_online_softmax_is_the_softmax(count, block_size, size):
    scores = size * randn(3, count)
    torch.testing.assert_close(
        online_softmax(scores, block_size=block_size), scores.softmax(dim=-1)
    )


def test_the_online_softmax_takes_minus_infinity_even_for_a_whole_block():
    scores = randn(2, 9)
    scores[0, :4] = -torch.inf
    scores[1, 5:] = -torch.inf
    torch.testing.assert_close(online_softmax(scores, block_size=2), scores.softmax(dim=-1))
    half = online_softmax(scores.bfloat16(), block_size=2)
    torch.testing.assert_close(half, scores.bfloat16().softmax(dim=-1))


def test_bad_blocks_are_named():
    with pytest.raises(ValueError, match="query_block must be at least 1, not 0"):
        flash_attention(*heads(), query_block=0)
    with pytest.raises(ValueError, match="key_block must be at least 1, not -1"):
        flash_attention(*heads(), key_block=-1)
    with pytest.raises(ValueError, match="block_size must be at least 1"):
        online_softmax(randn(3), block_size=0)
