import pytest
import small
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import randn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from compresslab.attention.sinks import SinkCache, rotate_on, sink_attention, sink_pattern

SIZES = {"hidden_size": 64, "intermediate_size": 64, "initializer_range": 0.2, "eos_token_id": None}
HEADS, DIM = 2, 16


@pytest.fixture(scope="module")
def model():
    return small.llama(**SIZES, pad_token_id=0).double()


@pytest.fixture(scope="module")
def shallow():
    """Its first layer's keys and values are of a token alone, whatever came before."""
    model = small.llama(**SIZES).double()
    model.model.layers = model.model.layers[:1]
    model.config.num_hidden_layers = 1
    return model


@pytest.fixture
def ids():
    return torch.randint(1, 49, (2, 40), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, ids, cache, sizes):
    """Of all tokens, read in parts of these sizes."""
    parts = ids.split(sizes, dim=1)
    return torch.cat([model(input_ids=p, past_key_values=cache).logits for p in parts], dim=1)


def assert_near(found, expected):
    """The model's own angles are float32, so they add up to the same angle up to rounding."""
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sizes", [[40], [1] * 40, [25, 1, 1, 10, 3]])
def test_while_all_fits_nothing_changes(model, ids, sizes):
    cache = SinkCache(model, sinks=4, window=36)
    assert torch.equal(logits(model, ids, cache, sizes), logits(model, ids, DynamicCache(), sizes))
    assert cache.nbytes == 2 * 2 * 2 * 39 * HEADS * DIM * 8


@pytest.mark.parametrize(("sinks", "window"), [(4, 6), (1, 1), (0, 5), (3, 20)])
def test_a_token_sees_a_text_of_the_sinks_and_the_window_and_its_positions(
    shallow, ids, sinks, window
):
    """The paper's positions: with one layer, a fresh text of those tokens alone is the oracle."""
    found = logits(shallow, ids, SinkCache(shallow, sinks=sinks, window=window), [1] * 40)
    for t in range(40):
        kept = [j for j in range(t + 1) if j < sinks or t - j < window]
        with torch.no_grad():
            expected = shallow(input_ids=ids[:, kept]).logits[:, -1]
        assert_near(found[:, t], expected)


def test_positions_of_the_text_would_be_something_else(shallow, ids):
    found = logits(shallow, ids, SinkCache(shallow, sinks=4, window=6), [1] * 40)[:, -1]
    kept = torch.cat([torch.arange(4), torch.arange(34, 40)])
    with torch.no_grad():
        text = shallow(input_ids=ids[:, kept], position_ids=kept[None]).logits[:, -1]
    assert (found - text).abs().max() > 0.01


def test_tokens_that_arrive_together_see_each_other_and_the_cache(shallow, ids):
    cache = SinkCache(shallow, sinks=3, window=8)
    found = logits(shallow, ids, cache, [20, 15, 5])
    with torch.no_grad():
        assert_near(found[:, :20], shallow(input_ids=ids[:, :20]).logits)
        for start, end in ((20, 35), (35, 40)):
            kept = torch.cat([ids[:, :3], ids[:, start - 7 : end]], dim=1)
            expected = shallow(input_ids=kept).logits[:, 10:]
            assert_near(found[:, start:end], expected)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(0, 4), st.integers(1, 8))
def test_however_they_arrive_the_first_and_the_last_are_kept(model, sizes, sinks, window):
    time = sum(sizes)
    keys, values = randn(2, HEADS, time, DIM), randn(2, HEADS, time, DIM, seed=1)
    cache = SinkCache(model, sinks=sinks, window=window)
    for k, v in zip(keys.split(sizes, 2), values.split(sizes, 2), strict=True):
        held, offset = cache.get_mask_sizes(k.shape[2], 0)
        seen_keys, seen_values = cache.update(k, v, 0)
        assert seen_keys.shape[2] == held
        assert offset + held == cache.get_seq_length()
        assert torch.equal(seen_keys[:, :, -k.shape[2] :], k)
        assert torch.equal(seen_values[:, :, :sinks], values[:, :, : min(sinks, held)])
    first, last = sinks, max(sinks, time - (window - 1))
    kept = [*range(min(first, time)), *range(last, time)]
    assert torch.equal(cache.layers[0].keys, keys[:, :, kept])
    assert torch.equal(cache.layers[0].values, values[:, :, kept])
    assert cache.get_seq_length() == time
    assert cache.nbytes == 2 * 2 * HEADS * DIM * 8 * len(kept)


def test_a_key_rotated_on_is_the_key_rotated_at_once(model):
    rotary = model.model.rotary_emb
    keys = randn(2, HEADS, 7, DIM)

    def rotated(first):
        positions = torch.arange(first, first + 7)[None]
        return apply_rotary_pos_emb(keys, keys, *rotary(keys, positions))[1]

    on = rotate_on(rotated(2), 1000, rotary.inv_freq.double())
    assert_near(on, rotated(1002))
    assert torch.equal(rotate_on(keys, 0, rotary.inv_freq), keys)
    assert rotate_on(keys.bfloat16(), 3, rotary.inv_freq).dtype == torch.bfloat16


def test_generation_beyond_the_window_goes_on_in_constant_memory(model, ids):
    options = {"do_sample": False, "attention_mask": torch.ones(2, 10), "max_new_tokens": 25}
    cache = SinkCache(model, sinks=2, window=6)
    text = model.generate(ids[:, :10], past_key_values=cache, **options)
    assert cache.nbytes == 2 * 2 * 2 * 7 * HEADS * DIM * 8
    by_hand = logits(model, text[:, :-1], SinkCache(model, sinks=2, window=6), [10] + [1] * 24)
    assert torch.equal(by_hand[:, 9:].argmax(-1), text[:, 10:])
    wide = SinkCache(model, sinks=2, window=60)
    expected = model.generate(ids[:, :10], **options)
    assert torch.equal(model.generate(ids[:, :10], past_key_values=wide, **options), expected)
    assert not torch.equal(text, expected)


def test_the_pattern_is_the_first_and_the_last():
    expected = [[j <= i and (j < 2 or i - j < 3) for j in range(9)] for i in range(9)]
    assert torch.equal(sink_pattern(9, sinks=2, window=3), torch.tensor(expected))
    assert sink_pattern(50, sinks=4, window=8)[40].sum() == 12


def test_a_reset_cache_is_empty(model, ids):
    cache = SinkCache(model, sinks=2, window=6)
    expected = logits(model, ids, cache, [30, 10])
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length()) == (0, 0)
    assert torch.equal(logits(model, ids, cache, [30, 10]), expected)


def test_what_it_cannot_do_and_bad_input_is_named(model):
    cache = SinkCache(model, sinks=2, window=6)
    cache.update(randn(1, HEADS, 9, DIM), randn(1, HEADS, 9, DIM), 0)
    with pytest.raises(NotImplementedError, match="neither taken back nor reordered"):
        cache.crop(-2)
    with pytest.raises(NotImplementedError, match="neither taken back nor reordered"):
        cache.reorder_cache(torch.tensor([0]))
    with pytest.raises(ValueError, match="window at least 1, not 2, 0"):
        SinkCache(model, sinks=2, window=0)
    with pytest.raises(ValueError, match="sinks must be at least 0 and window"):
        sink_pattern(9, sinks=-1, window=3)
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no rotary positions"):
        SinkCache(GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)))
    dynamic = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    with pytest.raises(ValueError, match=r"rotation \(dynamic\) changes with the length"):
        SinkCache(small.llama(**SIZES, rope_parameters=dynamic))
    with pytest.raises(ValueError, match=r"keys must have dim 16, .* not \(3, 8\)"):
        rotate_on(randn(3, 8), 1, model.model.rotary_emb.inv_freq)


def at_once(query, key, value, **sizes):
    return sink_attention(query, key, value, frequencies=torch.tensor([1.0, 0.1]), **sizes)


@pytest.mark.parametrize("block", [7, 256])
def test_at_once_and_without_sinks_it_is_a_window_in_the_text(block, monkeypatch):
    monkeypatch.setattr("compresslab.attention.sinks.BLOCK", block)
    query, key, value = (randn(1, 2, 50, 4, seed=i) for i in range(3))
    behind = torch.arange(50)[:, None] - torch.arange(50)
    pattern = (behind >= 0) & (behind < 6)
    expected = F.scaled_dot_product_attention(query, key, value, attn_mask=pattern)
    torch.testing.assert_close(at_once(query, key, value, sinks=0, window=6), expected)


def test_at_once_sinks_come_closer_by_what_is_forgotten():
    query, key, value = (randn(1, 2, 20, 4, seed=i) for i in range(3))
    found = at_once(query, key, value, sinks=2, window=5)
    for t in range(20):
        held = [*range(min(2, t + 1)), *range(max(2, t - 4), t + 1)]
        near = rotate_on(key[:, :, :2], max(t - 6, 0), torch.tensor([1.0, 0.1]))
        keys = torch.cat([near, key[:, :, 2:]], dim=2)[:, :, held]
        expected = F.scaled_dot_product_attention(query[:, :, t : t + 1], keys, value[:, :, held])
        torch.testing.assert_close(found[:, :, t : t + 1], expected)
