"""Huffman codes against all codes there are, on small alphabets, and against the entropy."""

import contextlib
import itertools
import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.sharing import huffman
from compresslab.sharing.huffman import (
    canonical_codes,
    code_lengths,
    decode,
    encode,
    encoded_bytes,
    entropy,
)

COUNTS = st.lists(st.integers(0, 50), max_size=12)


def tensor(values, dtype=torch.int64):
    return torch.tensor(values, dtype=dtype)


def draw(counts, size, seed=0):
    """Symbols with about these counts."""
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(tensor(counts).double(), size, True, generator=generator).byte()


def strings(lengths):
    """The codes as strings of 0 and 1, by symbol."""
    return {
        i: f"{code:0{n}b}" if n else ""
        for i, (code, n) in enumerate(
            zip(canonical_codes(lengths).tolist(), lengths.tolist(), strict=True)
        )
        if n >= 0
    }


@pytest.mark.parametrize(
    "counts",
    [(1, 1), (7, 1, 1), (1, 2, 3, 4), (5, 5, 5, 5, 5), (1, 1, 2, 3, 5), (9, 1, 1, 1, 8, 8)],
)
def test_no_other_lengths_are_shorter(counts):
    # Kraft: some code has these lengths if and only if Σ 2⁻ⁿ ≤ 1.
    best = min(
        sum(c * n for c, n in zip(counts, lengths, strict=True))
        for lengths in itertools.product(range(1, len(counts) + 1), repeat=len(counts))
        if sum(2.0**-n for n in lengths) <= 1
    )
    lengths = code_lengths(tensor(counts)).tolist()
    assert sum(c * n for c, n in zip(counts, lengths, strict=True)) == best


@given(COUNTS)
def test_the_mean_length_is_less_than_a_bit_above_the_entropy(counts):
    lengths, total = code_lengths(tensor(counts)).long(), sum(counts)
    assert ((lengths >= 0) == (tensor(counts) > 0)).all()
    if not total:
        assert entropy(tensor(counts)) == 0
        return
    h = -sum(c / total * math.log2(c / total) for c in counts if c)
    assert entropy(tensor(counts)) == pytest.approx(h, abs=1e-12)
    mean = int((tensor(counts) * lengths).sum()) / total
    assert h - 1e-9 <= mean < h + 1
    used = lengths[lengths >= 0].tolist()
    assert sum(Fraction(1, 2**n) for n in used) == 1  # no code could be added


@given(COUNTS)
def test_no_code_begins_with_another_and_they_are_canonical(counts):
    lengths = code_lengths(tensor(counts))
    codes = strings(lengths)
    for a, b in itertools.permutations(codes.values(), 2):
        assert not b.startswith(a)
    in_order = sorted(codes, key=lambda i: (len(codes[i]), i))
    assert [codes[i] for i in in_order] == sorted(codes.values())


def test_ties_are_always_decided_the_same_way():
    assert code_lengths(tensor([1, 1, 1])).tolist() == [2, 2, 1]
    assert code_lengths(tensor([2, 1, 1, 2])).tolist() == [2, 2, 2, 2]
    assert strings(code_lengths(tensor([1, 0, 5, 1, 2]))) == {2: "0", 4: "10", 0: "110", 3: "111"}


@settings(deadline=None, max_examples=150)
@given(COUNTS, st.integers(0, 300), st.integers(0, 2**31))
def test_symbols_come_back_from_as_many_bytes_as_the_formula_says(counts, size, seed):
    if not any(counts):
        size, counts = 0, [*counts, 0]
    symbols = draw(counts, size, seed) if size else tensor([], torch.uint8)
    counts = torch.bincount(symbols, minlength=len(counts))
    lengths = code_lengths(counts)
    data = encode(symbols, lengths)
    codes = strings(lengths)
    stream = "".join(codes[s] for s in symbols.tolist())
    assert data.dtype == torch.uint8
    assert len(data) == encoded_bytes(counts, lengths) == math.ceil(len(stream) / 8)
    assert "".join(f"{byte:08b}" for byte in data.tolist())[: len(stream)] == stream
    assert torch.equal(decode(data, lengths, size), symbols)


@pytest.mark.parametrize("alphabet", [2, 7, 256])
def test_a_long_stream_goes_through_many_pieces(alphabet, monkeypatch):
    monkeypatch.setattr(huffman, "SEGMENT", 61)
    monkeypatch.setattr(huffman, "CHUNK", 100)
    symbols = draw([1 + 1000 // (i + 1) for i in range(alphabet)], 20_000)
    lengths = code_lengths(torch.bincount(symbols, minlength=alphabet))
    assert torch.equal(decode(encode(symbols, lengths), lengths, 20_000), symbols)


def test_codes_too_long_for_the_table_are_found():
    fibonacci = [1, 1]
    while len(fibonacci) < 36:
        fibonacci.append(sum(fibonacci[-2:]))
    lengths = code_lengths(tensor(fibonacci))
    assert lengths.max() == 35
    symbols = torch.arange(36, dtype=torch.uint8).repeat(9)[torch.randperm(324)]
    assert torch.equal(decode(encode(symbols, lengths), lengths, 324), symbols)


def test_two_symbols_take_a_bit_each_and_one_takes_none():
    lengths = code_lengths(tensor([0, 999, 1]))
    assert lengths.tolist() == [-1, 1, 1]
    assert encode(tensor([1, 1, 2, 1], torch.uint8), lengths).tolist() == [0b00100000]
    lengths = code_lengths(tensor([0, 0, 70]))
    assert lengths.tolist() == [-1, -1, 0]
    data = encode(tensor([2] * 70, torch.uint8), lengths)
    assert len(data) == 0
    assert decode(data, lengths, 70).tolist() == [2] * 70


@pytest.mark.parametrize("counts", [[], [0, 0], [3, 4, 5], [0, 5]])
def test_no_symbols_take_no_bytes(counts):
    lengths = code_lengths(tensor(counts))
    data = encode(tensor([], torch.uint8), lengths)
    assert len(data) == 0
    assert decode(data, lengths, 0).tolist() == []


def test_a_shape_is_read_row_by_row():
    symbols = tensor([[0, 1, 2], [2, 2, 0]], torch.uint8)
    lengths = code_lengths(torch.bincount(symbols.flatten()))
    assert decode(encode(symbols.T, lengths), lengths, 6).tolist() == symbols.T.flatten().tolist()


def test_data_that_is_cut_off_or_altered_is_refused():
    symbols = draw([8, 4, 2, 1, 1], 102)
    lengths = code_lengths(torch.bincount(symbols, minlength=5))
    data = encode(symbols, lengths)
    for odd in (data[:-1], data[:0], torch.cat([data, data[-1:]])):
        with pytest.raises(ValueError, match=r"data (of|has)"):
            decode(odd, lengths, 102)
    for count in (0, 60, 150):
        with pytest.raises(ValueError, match=r"data (of|has)"):
            decode(data, lengths, count)
    bits = int((torch.bincount(symbols) * lengths.long()).sum())
    assert bits % 8  # so that the last byte is filled up
    altered = data.clone()
    altered[-1] |= 1
    with pytest.raises(ValueError, match=f"102 symbols end after {bits}"):
        decode(altered, lengths, 102)
    lone = code_lengths(tensor([0, 3]))
    with pytest.raises(ValueError, match="data has 8 bits, and 3 symbols end after 0"):
        decode(tensor([0], torch.uint8), lone, 3)


def test_an_altered_stream_never_gives_the_same_symbols():
    symbols = draw([8, 4, 2, 1, 1], 40)
    lengths = code_lengths(torch.bincount(symbols, minlength=5))
    data = encode(symbols, lengths)
    for bit in range(8 * len(data)):
        altered = data.clone()
        altered[bit // 8] ^= 128 >> bit % 8
        with contextlib.suppress(ValueError):
            assert not torch.equal(decode(altered, lengths, 40), symbols)


def test_bad_input_is_named():
    symbols = tensor([0, 1], torch.uint8)
    with pytest.raises(ValueError, match="0 or more, for at most 256 symbols, not -1 or more"):
        code_lengths(tensor([3, -1]))
    with pytest.raises(ValueError, match="not 0 or more for 257"):
        code_lengths(torch.arange(257))
    with pytest.raises(ValueError, match="counts need a code of 49 bits, more than 48"):
        code_lengths(tensor([2**i for i in range(50)]))
    for odd in ([1], [1, 1, 1], [0, 0], [0] * 257, [2, 2, 2], [49, *range(1, 50)]):
        with pytest.raises(ValueError, match="not those of a complete set of codes"):
            canonical_codes(tensor(odd, torch.int8))
    with pytest.raises(ValueError, match="symbol 1 has no code"):
        encode(symbols, code_lengths(tensor([3, 0, 2])))
    with pytest.raises(ValueError, match="symbol 1 has no code"):
        encode(symbols, code_lengths(tensor([3])))
    with pytest.raises(ValueError, match=r"symbols must be uint8, not torch\.int64"):
        encode(symbols.long(), code_lengths(tensor([3, 1])))
    with pytest.raises(ValueError, match="ends before the last 3 symbols"):
        decode(symbols[:0], code_lengths(tensor([0, 0])), 3)
