"""Bytes of arrays: what goes in comes out, and nothing else gets in."""

import json
import lzma
import zlib

import pytest
import torch
from forgery import description_of, forge
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab import archive
from compresslab.archive import CHECK, HEAD, MAGIC, MOST, pack, read


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randint(-7, 8, (16, 24), generator=generator, dtype=torch.int8),
        torch.randn(5, 3, generator=generator),
        torch.randn(40, generator=generator).half(),
        torch.tensor(3),
    ]


def same(ours, theirs):
    return ours.shape == theirs.shape and torch.equal(
        ours.float().view(-1).view(torch.int32), theirs.float().view(-1).view(torch.int32)
    )


@settings(deadline=None)
@given(
    st.sampled_from(["codes", "float16", "float32", "rounded"]),
    st.lists(st.integers(1, 9), max_size=3),
    st.integers(-128, 40),
    st.integers(0, 255),
    st.integers(0, 2**31),
)
def test_every_array_comes_back_bit_for_bit(kind, shape, lowest, span, seed):
    generator = torch.Generator().manual_seed(seed)
    if kind == "codes":
        tensor = torch.randint(lowest, min(lowest + span, 255) + 1, shape, generator=generator)
    else:
        bits = torch.randint(0, 2**32, shape, generator=generator)  # NaN and −0.0 among them
        tensor = (bits - 2**31).int().view(torch.float32) if shape else torch.tensor(-0.0)
        tensor = tensor if kind == "float32" else tensor.half()
        tensor = tensor.float() if kind == "rounded" else tensor
    found = read(pack({"a": [1]}, [tensor]), "it")
    assert found.description == {"a": [1]}
    nan = tensor.float().isnan()  # which of them is the machine's choice
    assert torch.equal(found.tensors[0].float().isnan(), nan)
    assert same(found.tensors[0].masked_fill(nan, 0), tensor.masked_fill(nan, 0))


def test_numbers_that_float16_holds_take_two_bytes():
    generator = torch.Generator().manual_seed(0)
    exact = torch.randn(1000, generator=generator)
    sizes = read(pack({}, [exact, exact.half().float()]), "it").sizes
    assert 3000 < sizes[0] <= 4000
    assert 1500 < sizes[1] <= 2000  # the byte of the exponent is shorter than 1000


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_codes_take_little_more_than_their_entropy(bits):
    generator = torch.Generator().manual_seed(0)
    spread = torch.randn(60_000, generator=generator) * 2**bits / 6 + 2 ** (bits - 1)
    codes = spread.floor().clamp(0, 2**bits - 1).byte()
    p = torch.bincount(codes).double() / len(codes)
    entropy = len(codes) * torch.special.entr(p).sum().item() / torch.tensor(2.0).log().item() / 8
    assert entropy <= read(pack({}, [codes]), "it").sizes[0] < 1.02 * entropy + 100


def test_the_size_is_that_of_the_documented_sections():
    data = pack({"name": "x"}, some_tensors())
    magic, version, size, stored, length = HEAD.unpack_from(data)
    assert (magic, version, size) == (MAGIC, 1, len(data))
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**18}]
    text = lzma.decompress(data[24 : 24 + stored], lzma.FORMAT_RAW, filters=filters)
    assert len(text) == length
    described = json.loads(text)
    streams = [n for entry in described["parts"] for _, n in entry[3]]
    assert len(data) == 24 + stored + sum(streams) + 4
    assert sum(read(data, "it").sizes) == sum(streams)
    assert [entry[:3] for entry in described["parts"]] == [
        [4, -7, [16, 24]],
        ["float32", 0, [5, 3]],
        ["float16", 0, [40]],
        [1, 3, []],
    ]
    assert data[-4:] == zlib.crc32(data[:-4]).to_bytes(4, "little")


def test_a_stream_reads_as_documented():
    codes = torch.tensor([5, 6, 7, 6, 5, 8, 5, 5])
    data = pack({}, [codes])
    # Less 5: 0 1 2 1 0 3 0 0, two bits each, the first lowest; too short to be compressed.
    assert description_of(data)["parts"] == [[2, 5, [8], [[0, 2]]]]
    assert data[-6:-4] == bytes([0b01_10_01_00, 0b00_00_11_00])


def test_equal_arrays_are_stored_once():
    first, other = torch.arange(100), torch.arange(100) // 2
    found = read(pack({}, [first, other, first.clone(), first.view(10, 10)]), "it")
    assert found.sizes[2] == 0
    assert found.tensors[2] is found.tensors[0]
    assert found.sizes[3] > 0  # of another shape
    assert found.tensors[3].shape == (10, 10)


def test_what_cannot_be_stored_is_refused():
    with pytest.raises(ValueError, match="float64"):
        pack({}, [torch.ones(2, dtype=torch.float64)])
    with pytest.raises(ValueError, match="from 0 to 256"):
        pack({}, [torch.tensor([0, 256])])


def test_every_truncation_and_every_addition_is_refused():
    data = pack({}, some_tensors())
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"a\.clab (is no file|was cut off)"):
            read(data[:length], "a.clab")
    with pytest.raises(ValueError, match="something was added"):
        read(data + b"\0", "a.clab")


def test_every_changed_byte_is_found():
    data = pack({}, some_tensors())
    for place in range(len(data)):
        for bit in (1, 128):
            changed = bytearray(data)
            changed[place] ^= bit
            with pytest.raises(ValueError, match=r"no file of|version|cut off|was altered"):
                read(bytes(changed), "a.clab")


def test_messages_say_what_to_do():
    data = pack({}, some_tensors())
    with pytest.raises(ValueError, match=r"begins with b'PK"):
        read(b"PK\3\4" + data, "a.clab")
    with pytest.raises(ValueError, match="version 2, and this library reads 1: load it with"):
        read(data[:8] + b"\2" + data[9:], "a.clab")
    with pytest.raises(ValueError, match="copy it again"):
        read(data[:-1], "a.clab")
    with pytest.raises(ValueError, match=r"checksum is \w{8}, not \w{8}; copy it again"):
        read(data[:-30] + b"\0" + data[-29:], "a.clab")


HUGE = [
    [8, 0, [2**40], [[0, 4]]],
    [8, 0, [2**62, 4], [[0, 4]]],
    [1, 0, [-1, -64], [[0, 8]]],
    [1, 0, [2.0], [[0, 1]]],
    ["float32", 0, [10**6], [[1, 1], [1, 1], [1, 1], [1, 1]]],
    ["float32", 0, [1], [[0, 4]]],
    ["float64", 0, [1], [[0, 1]] * 8],
    ["no", 0, [1], [[0, 1]]],
    [3, 0, [8], [[0, 3]]],
    [8, 0, [8], [[0, 10**9]]],
    [8, 0, [8], [[0, -1]]],
    [8, 10**9, [8], [[0, 8]]],
    [8, 0, [8], [[7, 8]]],
    [8, 0, [8], [[1, 8]]],
    [8, 0, [8], [[2, 8]]],
    [8, 0, [8], []],
    8,
    None,
]


@pytest.mark.parametrize("entry", HUGE)
def test_a_description_that_lies_is_refused_in_spite_of_its_checksum(entry):
    data = forge(pack({}, some_tensors()), {"parts": [entry]}, streams=bytes(8))
    with pytest.raises(ValueError, match="whole, but says what cannot be"):
        read(data, "a.clab")


def test_no_more_is_inflated_than_was_announced(monkeypatch):
    bomb = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = bomb.compress(bytes(10**8)) + bomb.flush()
    longest = 0
    original = archive._expand

    def expand(method, data, size):
        nonlocal longest
        longest = max(longest, size)
        return original(method, data, size)

    monkeypatch.setattr(archive, "_expand", expand)
    for shape in ([8], [8, 10**8], [10**8]):
        entry = [8, 0, shape, [[1, len(bomb)]]]
        data = forge(pack({}, some_tensors()), {"parts": [entry]}, streams=bomb)
        with pytest.raises(ValueError, match=r"does not have|more than 64 for each byte"):
            read(data, "a.clab")
        assert longest <= MOST * len(data)


def test_a_long_description_is_not_inflated():
    data = forge(pack({}, some_tensors()), {"parts": []}, length=10**9)
    with pytest.raises(ValueError, match="description are too many"):
        read(data, "a.clab")
    deep = forge(data, {"parts": []}, streams=b"")
    text = archive._lzma(b'{"parts":' + b"[" * 2000, 3)
    whole = HEAD.pack(MAGIC, 1, HEAD.size + len(text) + CHECK, len(text), 2009) + text
    deep = whole + zlib.crc32(whole).to_bytes(CHECK, "little")
    with pytest.raises(ValueError, match=r"says what cannot be|too many"):
        read(deep, "a.clab")


def test_a_description_cannot_claim_to_be_longer_than_the_file():
    text = archive._lzma(b" " * 1000, 3)
    head = HEAD.pack(MAGIC, 1, HEAD.size + len(text) + CHECK, 2**26, 2**32 - 1)
    whole = head + text
    with pytest.raises(ValueError, match="does not fit in the file"):
        read(whole + zlib.crc32(whole).to_bytes(CHECK, "little"), "a.clab")


def test_equal_parts_cannot_multiply():
    parts = [[8, 0, [8], [[0, 8]]], *([0] * 1000)]
    found = read(forge(pack({}, some_tensors()), {"parts": parts}, streams=bytes(8)), "it")
    assert len({id(t) for t in found.tensors}) == 1
