import pytest
import small
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache

from compresslab.quantization.kv_cache import (
    QuantizedCache,
    quantize_keys,
    quantize_values,
)

HEADS, DIM = 2, 16


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model():
    return small.llama(
        hidden_size=64,
        intermediate_size=64,
        initializer_range=0.2,
        pad_token_id=0,
        eos_token_id=49,
    )


@pytest.fixture
def ids():
    return torch.randint(1, 49, (2, 60), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def logits(model, ids, cache, sizes):
    """Of all tokens, read in parts of these sizes."""
    parts = ids.split(sizes, dim=1)
    return torch.cat([model(input_ids=p, past_key_values=cache).logits for p in parts], dim=1)


def test_an_example_by_hand():
    # From 10 to 13 in 4 codes: a step of 1, since the range need not include zero.
    values = torch.tensor([10, 10.4, 10.6, 13, 12, 11, 11.5, 12.5]).view(1, 1, 1, 8)
    packed = quantize_values(values, bits=2, group_size=8)
    assert (packed.scale.item(), packed.low.item()) == (1, 10)
    assert packed.dequantize().flatten().tolist() == [10, 10, 11, 13, 12, 11, 12, 12]
    assert packed.codes.dtype == torch.uint8
    assert packed.codes.shape == (1, 1, 1, 2)


@given(st.sampled_from([1, 2, 3, 4, 8]), st.sampled_from([8, 16, 32]), st.integers(0, 2**31))
def test_the_error_is_at_most_half_a_step_of_the_groups_own_range(bits, group_size, seed):
    x = 5 * numbers(2, 3, 4, 32, seed=seed) + 20 * numbers(2, 3, 4, 1, seed=seed + 1)
    packed = quantize_values(x, bits=bits, group_size=group_size)
    groups = x.view(-1, group_size)
    step = (groups.amax(1) - groups.amin(1)) / (2**bits - 1)
    error = (packed.dequantize() - x).view(-1, group_size).abs().amax(1)
    # And what float16 cannot tell apart, of the lowest number and of all the steps.
    rounding = (groups.abs().amax(1) + (2**bits - 1) * step) / 1024
    assert (error <= step / 2 + rounding).all()


def test_keys_by_channel_are_values_by_token_of_the_transposed():
    keys = numbers(2, 3, 16, 8)
    turned = quantize_values(keys.transpose(2, 3), bits=3, group_size=8).dequantize()
    packed = quantize_keys(keys, bits=3, group_size=8)
    assert torch.equal(packed.dequantize(), turned.transpose(2, 3))


def test_a_large_channel_spoils_the_token_and_not_the_channels():
    keys = numbers(1, 2, 64, 32)
    keys[..., 5] += 30
    others = [i for i in range(32) if i != 5]

    def error(packed):
        return (packed.dequantize() - keys)[..., others].square().mean()

    assert error(quantize_keys(keys, bits=2)) < error(quantize_values(keys, bits=2)) / 20


@pytest.mark.parametrize("quantize", [quantize_keys, quantize_values])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_bytes_are_those_of_the_formula(quantize, bits):
    packed = quantize(numbers(2, 3, 64, 32), bits=bits, group_size=16)
    n = 2 * 3 * 64 * 32
    assert packed.nbytes == n * bits // 8 + 4 * n // 16


@pytest.mark.parametrize("quantize", [quantize_keys, quantize_values])
def test_groups_that_come_later_are_appended(quantize):
    x = numbers(2, 3, 24, 8)
    whole = quantize(x, bits=3, group_size=8)
    parts = quantize(x[:, :, :16], bits=3, group_size=8).append(
        quantize(x[:, :, 16:], bits=3, group_size=8)
    )
    assert torch.equal(parts.dequantize(), whole.dequantize())
    assert parts.nbytes == whole.nbytes


def test_equal_numbers_come_back_and_a_slice_does_no_harm():
    x = torch.full((1, 1, 16, 8), -0.75)
    packed = quantize_values(x, bits=2, group_size=8)
    assert torch.equal(packed.dequantize(), x)
    assert (packed.scale == 1).all()
    wide = numbers(1, 4, 16, 16)
    part = wide[:, ::2, :, 8:]
    same = quantize_keys(part.contiguous(), bits=4, group_size=8).dequantize()
    assert torch.equal(quantize_keys(part, bits=4, group_size=8).dequantize(), same)


@pytest.mark.parametrize("sizes", [[60], [1] * 60, [25, 1, 1, 30, 3]])
def test_while_all_fits_into_the_window_nothing_changes(model, ids, sizes):
    cache = QuantizedCache(bits=1, group_size=8, window=60)
    assert torch.equal(logits(model, ids, cache, sizes), logits(model, ids, DynamicCache(), sizes))
    assert cache.nbytes == 2 * 2 * ids.numel() * HEADS * DIM * 4


def test_token_by_token_equals_the_whole_text_with_a_float_cache(model, ids):
    cache = QuantizedCache(window=100)
    whole = model(input_ids=ids).logits
    torch.testing.assert_close(logits(model, ids, cache, [20] + [1] * 40), whole)


@pytest.mark.parametrize("keys", ["channel", "token"])
def test_eight_bits_are_close_and_fewer_are_farther(model, ids, keys):
    whole = logits(model, ids, DynamicCache(), [60])
    errors = []
    for bits in (8, 4, 3, 2):
        cache = QuantizedCache(bits=bits, group_size=8, window=8, keys=keys)
        errors.append((logits(model, ids, cache, [20] + [1] * 40) - whole).square().mean().sqrt())
    assert 0 < errors[0] < 0.02 * whole.std()
    assert errors == sorted(errors)
    assert errors[-1] > 10 * errors[0]


@given(st.lists(st.integers(1, 20), min_size=1, max_size=8), st.sampled_from([0, 5, 16]))
def test_however_they_arrive_the_window_is_exact_and_the_rest_is_packed_once(sizes, window):
    time = sum(sizes)
    keys, values = numbers(2, HEADS, time, DIM), numbers(2, HEADS, time, DIM, seed=1)
    cache = QuantizedCache(bits=4, group_size=8, window=window)
    past_keys = past_values = keys[:, :, :0]
    for k, v in zip(keys.split(sizes, 2), values.split(sizes, 2), strict=True):
        seen_keys, seen_values = cache.update(k, v, 0)
        # What was there before, as it was kept, and what is new, exactly.
        assert torch.equal(seen_keys[:, :, -k.shape[2] :], k)
        assert torch.equal(seen_keys[:, :, : past_keys.shape[2]], past_keys)
        assert torch.equal(seen_values[:, :, : past_keys.shape[2]], past_values)
        nbytes = cache.nbytes
        past_keys, past_values = cache.update(k[:, :, :0], v[:, :, :0], 0)
    assert cache.get_seq_length() == time
    packed = max(0, (time - window) // 8 * 8)
    assert torch.equal(past_keys[:, :, packed:], keys[:, :, packed:])
    assert torch.equal(past_values[:, :, packed:], values[:, :, packed:])
    if packed:
        old = quantize_keys(keys[:, :, :packed], bits=4, group_size=8)
        assert torch.equal(past_keys[:, :, :packed], old.dequantize())
        old = quantize_values(values[:, :, :packed], bits=4, group_size=8)
        assert torch.equal(past_values[:, :, :packed], old.dequantize())
    numbers_of = 2 * 2 * HEADS * DIM  # of a token: keys and values, two texts
    assert nbytes == numbers_of * (packed * 4 // 8 + 4 * packed // 8 + 4 * (time - packed))


def test_generation_at_eight_bits_says_what_the_float_cache_says(model, ids):
    options = {"max_new_tokens": 20, "do_sample": False, "attention_mask": torch.ones(2, 20)}
    cache = QuantizedCache(bits=8, group_size=8, window=8)
    text = model.generate(ids[:, :20], past_key_values=cache, **options)
    assert torch.equal(text, model.generate(ids[:, :20], **options))
    assert cache.get_seq_length() == text.shape[1] - 1
    assert cache.layers[0].old_keys.codes.shape[3] == 24  # tokens, a byte each


def test_half_precision_stays_what_it_is():
    cache = QuantizedCache(bits=2, group_size=8, window=8)
    for _ in range(3):
        keys, values = cache.update(*(numbers(1, 2, 10, 16).bfloat16(),) * 2, 0)
    assert keys.dtype == values.dtype == torch.bfloat16
    assert keys.shape == (1, 2, 30, 16)


def test_a_reset_cache_is_empty(model, ids):
    cache = QuantizedCache(bits=2, group_size=8, window=8)
    expected = logits(model, ids, cache, [30, 30])
    cache.reset()
    assert (cache.nbytes, cache.get_seq_length()) == (0, 0)
    assert torch.equal(logits(model, ids, cache, [30, 30]), expected)


def test_what_it_cannot_do_and_bad_input_is_named():
    cache = QuantizedCache(bits=2, group_size=8, window=8)
    cache.update(numbers(1, 1, 20, 8), numbers(1, 1, 20, 8), 0)
    with pytest.raises(NotImplementedError, match="neither taken back nor reordered"):
        cache.crop(-2)
    with pytest.raises(NotImplementedError, match="neither taken back nor reordered"):
        cache.reorder_cache(torch.tensor([0]))
    with pytest.raises(ValueError, match="keys must be 'channel' or 'token', not 'head'"):
        QuantizedCache(keys="head")
    with pytest.raises(ValueError, match="group_size must be a multiple of 8, not 4"):
        quantize_values(numbers(1, 1, 4, 8), bits=2, group_size=4)
    with pytest.raises(ValueError, match="a number that divides 12, the last dimension, not 8"):
        quantize_values(numbers(1, 1, 4, 12), bits=2, group_size=8)
    with pytest.raises(ValueError, match="bits must be 1 to 8, not 9"):
        quantize_values(numbers(1, 1, 4, 8), bits=9, group_size=8)
    with pytest.raises(ValueError, match="numbers that float16 cannot hold"):
        quantize_values(1e6 * numbers(1, 1, 4, 8), bits=4, group_size=8)
