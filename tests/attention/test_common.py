"""What is true of all forms of attention, one after the other."""

from functools import partial

import pytest
import torch
from qkv import assert_same, heads, padded, with_gradients
from small import randn

from compresslab.attention.bigbird import bigbird_attention, draw_random_blocks
from compresslab.attention.common import masked_softmax
from compresslab.attention.flash import flash_attention
from compresslab.attention.full import full_attention
from compresslab.attention.linear import linear_attention
from compresslab.attention.linformer import linformer_attention
from compresslab.attention.lsh import lsh_attention
from compresslab.attention.nystrom import nystrom_attention
from compresslab.attention.performer import draw_projection, performer_attention
from compresslab.attention.sliding_window import window_attention
from compresslab.measure import peak_memory

TIME, HEADS = 13, 3
QUADRATIC = {"full": full_attention, "parallel": partial(linear_attention, form="parallel")}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def lsh(query, key, value, **options):
    key = query if key.shape == query.shape else key
    return lsh_attention(query, key, value, generator=generator(), **options)


def methods(time=TIME, *, block=2, dim=4, chunk=TIME, tile=4):
    """Every form with small options, by name."""
    blocks = -(-time // block)
    count = int(blocks > 5)
    table = draw_random_blocks(blocks, heads=HEADS, count=count, generator=generator())
    mixes = {"key_mix": randn(4, time), "value_mix": randn(4, time, seed=1)}
    projection = draw_projection(6, dim, generator=generator())
    return {
        "full": full_attention,
        "flash": partial(flash_attention, query_block=tile, key_block=tile + 1),
        "window": partial(window_attention, window=4, global_tokens=range(1, time)[:8:6]),
        "bigbird": partial(bigbird_attention, block_size=block, random_blocks=table),
        "lsh": partial(lsh, buckets=2, rounds=2, chunk_size=chunk),
        "linformer": partial(linformer_attention, **mixes),
        "nystrom": partial(nystrom_attention, landmarks=4),
        "performer": partial(performer_attention, projection=projection, chunk_size=3),
        "parallel": partial(linear_attention, form="parallel"),
        "recurrent": partial(linear_attention, form="recurrent"),
        "chunked": partial(linear_attention, form="chunked", chunk_size=3),
    }


NAMES = list(methods())
BOTH_WAYS = ("linformer", "nystrom")
CASES = [
    (name, causal) for name in NAMES for causal in (False, True)[: 1 + (name not in BOTH_WAYS)]
]


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{'causal' if case[1] else 'all'}")
def method(request):
    name, causal = request.param
    return partial(methods()[name], causal=causal)


def test_shapes_and_dtypes_are_the_callers_and_sums_are_wider(method):
    half = [x.bfloat16() for x in heads(TIME)]
    out = method(*half)
    assert out.shape == (2, HEADS, TIME, 5)
    assert out.dtype == torch.bfloat16
    assert method(*heads(TIME)).dtype == torch.float64
    # One rounding of what float32 gives for the same numbers.
    assert torch.equal(out, method(*(x.float() for x in half)).bfloat16())


def test_padding_is_attended_to_by_none(method):
    mask = padded(TIME)
    hidden = mask[:, None, :, None] == 0
    inputs = heads(TIME)
    one, *gradients = with_gradients(method, *inputs, mask=mask)
    for fill in (0.0, 30.0):
        other = method(*(x.masked_fill(hidden, fill) for x in inputs), mask=mask)
        torch.testing.assert_close(one.masked_fill(hidden, 0), other.masked_fill(hidden, 0))
    assert (gradients[2].masked_fill(~hidden, 0) == 0).all()
    assert (method(*inputs, mask=mask) != method(*inputs)).any()


def test_a_text_that_is_all_padding_gives_zero_and_no_gradient(method):
    mask = padded(TIME)
    mask[1] = 0
    out, *gradients = with_gradients(method, *heads(TIME), mask=mask)
    for x in (out, *gradients):
        assert x.isfinite().all()
        assert (x[1] == 0).all()
    assert (out[0] != 0).any()
    assert (gradients[2][0] != 0).any()


def test_texts_of_a_batch_do_not_mix(method):
    inputs, mask = heads(TIME), padded(TIME)
    whole = method(*inputs, mask=mask)
    louder = method(*(torch.stack([x[0], 3 * x[1]]) for x in inputs), mask=mask)
    torch.testing.assert_close(whole[:1], method(*(x[:1] for x in inputs), mask=mask[:1]))
    torch.testing.assert_close(whole[0], louder[0])


@pytest.mark.parametrize("name", [name for name in NAMES if name not in BOTH_WAYS])
def test_a_later_token_changes_nothing_before(name):
    method, inputs = methods()[name], heads(TIME)
    out = method(*inputs, causal=True)
    for t in (1, 6, 12):
        later = [x.clone() for x in inputs]
        for x in later:
            x[:, :, t:] = 5 * x[:, :, t:].flip(2) + 1
        changed = method(*later, causal=True)
        torch.testing.assert_close(changed[:, :, :t], out[:, :, :t])
        assert (changed[:, :, t:] != out[:, :, t:]).any()


@pytest.mark.parametrize("name", BOTH_WAYS)
def test_what_mixes_the_whole_text_refuses_to_be_causal(name):
    with pytest.raises(ValueError, match="causal must be False"):
        methods()[name](*heads(TIME), causal=True)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "linformer"])
def test_one_token_gets_its_own_value(name):
    query, key, value = heads(1)
    torch.testing.assert_close(methods(1)[name](query, key, value), value)


def test_gradients_are_those_of_the_function(method):
    inputs = [x.requires_grad_() for x in heads(TIME, batch=1, dim=4, dim_value=2)]
    assert torch.autograd.gradcheck(method, inputs, fast_mode=True)


# Not the recurrent form: a loop over tokens, which keeps a state of each for the gradient.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "recurrent"])
def test_twice_the_text_takes_twice_the_memory_or_four_times(name):
    """A tensor with time² numbers would show: the inputs are narrow."""
    peaks = []
    for time in (1024, 2048):
        inputs = [x.float().requires_grad_() for x in heads(time, batch=1)]
        method = methods(time, block=16, chunk=16, tile=256)[name]
        peaks.append(peak_memory(lambda m=method, x=inputs: m(*x).sum().backward()))
    assert (peaks[1] / peaks[0] < 2.2) == (name not in QUADRATIC)
    assert (peaks[1] > 4 * HEADS * 2048**2) == (name in QUADRATIC)


def test_bad_shapes_are_named(method):
    query, key, value = heads(TIME)
    with pytest.raises(ValueError, match=r"not \(2, 3, 13, 4\), \(2, 3, 12, 4\) and"):
        method(query, key[:, :, 1:], value)
    with pytest.raises(ValueError, match=r"and \(2, 1, 13, 5\)"):
        method(query, key, value[:, :1])
    with pytest.raises(ValueError, match=r"not \(3, 13, 4\)"):
        method(query[0], key[0], value[0])
    with pytest.raises(ValueError, match="time at least 1"):
        method(query[:, :, :0], key[:, :, :0], value[:, :, :0])
    with pytest.raises(ValueError, match=r"mask must have shape \(2, 13\).*not \(2, 12\)"):
        method(query, key, value, mask=torch.ones(2, 12))


def test_a_softmax_among_some_is_that_of_those_alone():
    scores = 5 * randn(4, 6)
    allowed = torch.rand(4, 6, generator=generator()) < 0.6
    allowed[2] = False
    assert_same(masked_softmax(scores, None), scores.softmax(-1))
    for row, keep, weights in zip(scores, allowed, masked_softmax(scores, allowed), strict=True):
        torch.testing.assert_close(weights[keep], row[keep].softmax(-1))
        assert (weights[~keep] == 0).all()
