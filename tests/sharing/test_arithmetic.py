"""rANS against the entropy, and against whole numbers of any size."""

import contextlib
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.sharing import huffman
from compresslab.sharing.arithmetic import decode, encode, share_frequencies


def draw(p, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(torch.tensor(p), size, True, generator=generator).byte()


def counts_of(symbols, alphabet):
    return torch.bincount(symbols, minlength=alphabet)


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=256).filter(any))
def test_frequencies_are_in_proportion_and_whole(counts):
    f = share_frequencies(torch.tensor(counts)).tolist()
    assert sum(f) == 2**15
    total, most = sum(counts), counts.index(max(counts))
    for i, (share, count) in enumerate(zip(f, counts, strict=True)):
        if i != most:
            assert share == (max(1, count * 2**15 // total) if count else 0)
    assert f[most] > 0


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=9).filter(any),
    st.integers(0, 60),
    st.sampled_from([1, 3, 8]),
    st.integers(0, 2**31),
)
def test_symbols_come_back(p, size, lanes, seed):
    symbols = draw([float(n) for n in p], size, seed) if size else torch.tensor([]).byte()
    frequencies = share_frequencies(torch.tensor(p))
    data = encode(symbols, frequencies, lanes=lanes)
    assert data.dtype == torch.uint8
    back = decode(data, frequencies, size, lanes=lanes)
    assert back.dtype == torch.uint8
    assert torch.equal(back, symbols)


def test_one_lane_is_the_number_of_the_paper():
    symbols = draw([0.7, 0.2, 0.1], 90)
    frequencies = share_frequencies(counts_of(symbols, 3))
    f = frequencies.tolist()
    x, words = 2**16, []
    for s in reversed(symbols.tolist()):
        if x * 2**15 // f[s] >= 2**32:
            words.append(x % 2**16)
            x //= 2**16
        x = 2**15 * (x // f[s]) + sum(f[:s]) + x % f[s]
    expected = x.to_bytes(4, "little") + b"".join(w.to_bytes(2, "little") for w in words[::-1])
    assert bytes(encode(symbols, frequencies, lanes=1).tolist()) == expected


@pytest.mark.parametrize("p", [[0.95, 0.05], [0.4, 0.3, 0.2, 0.1], [0.99] + [0.001] * 10])
def test_it_is_at_the_entropy_where_huffman_is_above(p):
    symbols = draw(p, 100_000)
    counts = counts_of(symbols, len(p))
    bits = 8 * len(encode(symbols, share_frequencies(counts), lanes=32)) / 100_000
    lengths = huffman.code_lengths(counts)
    by_huffman = 8 * huffman.encoded_bytes(counts, lengths) / 100_000
    h = huffman.entropy(counts)
    states = 32 * 32 / 100_000
    assert h < bits < h + states + 0.001 < by_huffman


def test_a_lone_symbol_takes_no_bits_but_the_states():
    symbols = torch.full((1000,), 2, dtype=torch.uint8)
    frequencies = share_frequencies(counts_of(symbols, 4))
    data = encode(symbols, frequencies, lanes=4)
    assert len(data) == 16
    assert torch.equal(decode(data, frequencies, 1000, lanes=4), symbols)


def test_data_that_is_cut_off_or_altered_is_refused():
    symbols = draw([0.5, 0.3, 0.2], 200)
    frequencies = share_frequencies(counts_of(symbols, 3))
    data = encode(symbols, frequencies, lanes=4)
    assert torch.equal(decode(data, frequencies, 200, lanes=4), symbols)
    for odd in (data[:-1], data[:-2], data[:12], torch.cat([data, data[:2]])):
        with pytest.raises(ValueError, match="data"):
            decode(odd, frequencies, 200, lanes=4)
    for count in (0, 199, 201):
        with pytest.raises(ValueError, match="data"):
            decode(data, frequencies, count, lanes=4)
    for bit in range(0, 8 * len(data), 3):
        altered = data.clone()
        altered[bit // 8] ^= 1 << bit % 8
        with contextlib.suppress(ValueError):
            assert not torch.equal(decode(altered, frequencies, 200, lanes=4), symbols)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="counts must be of 1 to 256 symbols, not 2 with 0"):
        share_frequencies(torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="not 257 with 257"):
        share_frequencies(torch.ones(257, dtype=torch.int64))
    frequencies = share_frequencies(torch.tensor([1, 0, 2]))
    for odd in (1, 3):
        with pytest.raises(ValueError, match="symbols must all have a frequency above 0"):
            encode(torch.tensor([0, odd], dtype=torch.uint8), frequencies)
    assert math.isclose(frequencies[0].item(), 2**15 / 3, abs_tol=1)
