import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qkv import assert_same, heads, oracle, padded, with_gradients
from small import randn
from transformers import LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from compresslab.attention.full import full_attention
from compresslab.attention.sliding_window import global_pattern, window_attention, window_pattern


def by_loop(time, reach):
    return torch.tensor([[reach(i, j) for j in range(time)] for i in range(time)])


@pytest.mark.parametrize("window", [1, 2, 5, 8, 30])
@pytest.mark.parametrize("dilation", [1, 3])
def test_the_pattern_is_half_a_width_on_each_side_or_all_of_it_behind(window, dilation):
    half = window // 2

    def both(i, j):
        return (i - j) % dilation == 0 and abs(i - j) <= half * dilation

    def behind(i, j):
        return j <= i and (i - j) % dilation == 0 and i - j < window * dilation

    options = {"window": window, "dilation": dilation}
    assert torch.equal(window_pattern(12, **options), by_loop(12, both))
    assert torch.equal(window_pattern(12, causal=True, **options), by_loop(12, behind))


def test_a_row_shows_as_many_tokens_as_the_width():
    assert window_pattern(50, window=9)[25].sum() == 9
    assert window_pattern(50, window=8)[25].sum() == 9  # the paper's: the token and 4 on each side
    assert window_pattern(50, window=8, causal=True)[25].sum() == 8
    assert window_pattern(50, window=8, dilation=5)[25].sum() == 9


def test_global_tokens_have_rows_and_columns():
    expected = by_loop(9, lambda i, j: i in (0, 5) or j in (0, 5))
    assert torch.equal(global_pattern(9, [5, 0]), expected)
    assert torch.equal(global_pattern(9, [5, 0], causal=True), expected.tril())
    assert not global_pattern(9, []).any()


@settings(deadline=None, max_examples=80)
@given(st.data(), st.integers(1, 100), st.integers(1, 110), st.booleans())
def test_chunks_give_masked_full_attention_and_its_gradient(data, time, window, causal):
    tokens = data.draw(st.lists(st.integers(0, time - 1), max_size=3))
    mask = torch.ones(2, time)
    mask[1, : data.draw(st.integers(0, time))] = 0
    options = {"causal": causal, "mask": mask}
    ours = with_gradients(
        window_attention, *heads(time), window=window, global_tokens=tokens, **options
    )
    pattern = window_pattern(time, window=window, causal=causal) | global_pattern(time, tokens)
    assert_same(ours, with_gradients(oracle, *heads(time), pattern=pattern, **options))


@pytest.mark.parametrize("causal", [False, True])
def test_a_window_as_wide_as_the_text_is_full_attention(causal):
    inputs = heads(40)
    torch.testing.assert_close(
        window_attention(*inputs, causal=causal, window=80),
        full_attention(*inputs, causal=causal),
    )


@pytest.mark.parametrize("tokens", [[], [0, 5]])
def test_it_is_the_longformers_self_attention(tokens):
    config = LongformerConfig(
        hidden_size=12, num_attention_heads=3, attention_window=[4], attention_probs_dropout_prob=0
    )
    layer = LongformerSelfAttention(config, 0).double()
    for name in ("query", "key", "value"):  # one projection for all tokens
        getattr(layer, f"{name}_global").load_state_dict(getattr(layer, name).state_dict())
    x, mask = 5 * randn(2, 16, 12), padded(16, left=0)
    kind = (mask - 1).double()  # below zero for padding, above for global tokens
    kind[:, tokens] = 1
    with torch.no_grad():
        expected = layer(
            x, 10000 * kind, kind < 0, kind > 0, bool(tokens), output_attentions=False
        )[0]
        inputs = [
            getattr(layer, name)(x).unflatten(-1, (3, 4)).transpose(1, 2)
            for name in ("query", "key", "value")
        ]
    out = window_attention(*inputs, mask=mask, window=4, global_tokens=tokens)
    out, real = out.transpose(1, 2).flatten(2), mask.bool()
    # There the softmax is in float32.
    torch.testing.assert_close(out[real], expected[real], atol=1e-5, rtol=1e-4)
    other = window_attention(*inputs, mask=mask, window=6, global_tokens=tokens)
    assert not torch.allclose(other.transpose(1, 2).flatten(2)[real], expected[real], atol=0.01)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="window must be at least 1, not 0"):
        window_attention(*heads(), window=0)
    with pytest.raises(ValueError, match="global tokens must be 0 to 12, not 13"):
        window_attention(*heads(), window=3, global_tokens=[2, 13])
    with pytest.raises(ValueError, match="global tokens must be 0 to 4, not -1"):
        global_pattern(5, [-1])
    with pytest.raises(ValueError, match="dilation must be at least 1, not 0"):
        window_pattern(5, window=3, dilation=0)
