import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compresslab.quantization.floats import (
    BFLOAT16,
    FLOAT4_E2M1,
    FLOAT8_E4M3,
    FLOAT8_E5M2,
    FLOAT16,
    FLOAT32,
)

TORCH = [
    (FLOAT32, torch.float32),
    (BFLOAT16, torch.bfloat16),
    (FLOAT16, torch.float16),
    (FLOAT8_E5M2, torch.float8_e5m2),
    (FLOAT8_E4M3, torch.float8_e4m3fn),
]


@pytest.mark.parametrize(("ours", "dtype"), TORCH)
def test_limits_are_those_of_torch(ours, dtype):
    info = torch.finfo(dtype)
    assert ours.bits == info.bits
    assert ours.largest == info.max
    assert ours.smallest == info.tiny * 2.0**-ours.mantissa


@pytest.mark.parametrize(("ours", "dtype"), TORCH[1:])
def test_the_numbers_are_those_of_torch(ours, dtype):
    integer = torch.int16 if ours.bits == 16 else torch.int8
    every = torch.arange(2**ours.bits).to(integer).view(dtype).double()
    assert torch.equal(ours.values(), every[every.isfinite()].unique())


def test_the_numbers_of_float4_are_those_of_the_specification():
    positive = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert FLOAT4_E2M1.values().tolist() == [-x for x in positive[:0:-1]] + positive


@pytest.mark.parametrize(("ours", "dtype"), TORCH[1:])
@given(seed=st.integers(0, 2**31), power=st.integers(-45, 20))
def test_rounding_is_that_of_torch(ours, dtype, seed, power):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(100, generator=generator) * 2.0**power
    x = torch.where(x.abs() > torch.finfo(torch.float32).tiny, x, 0)
    assert torch.equal(ours.round(x), x.to(dtype).double())


@pytest.mark.parametrize("ours", [FLOAT4_E2M1, FLOAT8_E4M3, FLOAT8_E5M2])
def test_rounding_finds_the_nearest_and_a_tie_the_even_one(ours):
    values = ours.values()
    assert torch.equal(ours.round(values), values)
    middles = (values[1:] + values[:-1]) / 2
    index = torch.arange(len(values)) - len(values) // 2  # 0 is even, and from there every second
    even = torch.where(index[1:] % 2 == 0, values[1:], values[:-1])
    assert torch.equal(ours.round(middles), even)
    assert torch.equal(ours.round(middles + 1e-9 * values.diff()), values[1:])


def test_what_is_too_large_becomes_infinite_or_the_largest_number_and_nan_stays():
    x = torch.tensor([1e9, -1e9])
    assert FLOAT16.round(x).tolist() == [torch.inf, -torch.inf]
    assert FLOAT4_E2M1.round(x).tolist() == [6, -6]
    assert FLOAT16.round(torch.tensor(torch.nan)).isnan()


def test_a_format_with_too_many_numbers_is_not_listed():
    with pytest.raises(ValueError, match="float32 has too many numbers"):
        FLOAT32.values()
