import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compresslab.quantization.packing import pack, packed_size, unpack


@given(st.integers(1, 8), st.integers(0, 70), st.integers(0, 2**31))
def test_codes_come_back_from_as_many_bytes_as_the_formula_says(bits, count, seed):
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(2**bits, (count,), dtype=torch.uint8, generator=generator)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.numel() == packed_size(count, bits)
    assert torch.equal(unpack(packed, bits, (count,)), codes)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_bytes_are_the_codes_as_one_binary_number(bits):
    codes = [(7 * i + 3) % 2**bits for i in range(16)]
    stream = sum(code << (bits * i) for i, code in enumerate(codes))
    packed = pack(torch.tensor(codes, dtype=torch.uint8), bits)
    assert bytes(packed.tolist()) == stream.to_bytes(2 * bits, "little")


def test_a_shape_comes_back():
    codes = torch.arange(6, dtype=torch.uint8).view(2, 3)
    assert torch.equal(unpack(pack(codes, 3), 3, (2, 3)), codes)


def test_bad_input_is_named():
    codes = torch.tensor([1, 4], dtype=torch.uint8)
    with pytest.raises(ValueError, match="a code is 4: 2 bits hold 0 to 3"):
        pack(codes, 2)
    with pytest.raises(ValueError, match=r"codes must be uint8, not torch\.int8"):
        pack(codes.to(torch.int8), 4)
    with pytest.raises(ValueError, match="bits must be 1 to 8, not 9"):
        pack(codes, 9)
    with pytest.raises(ValueError, match=r"\(9,\) codes of 4 bits are 8 bytes, not 4"):
        unpack(pack(codes, 4), 4, (9,))
