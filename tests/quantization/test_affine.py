import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from compresslab.quantization.affine import (
    affine_parameters,
    code_range,
    dequantize,
    fake_quantize,
    min_max,
    quantize,
    quantize_tensor,
    to_groups,
)

GRIDS = [(bits, symmetric) for bits in (8, 4, 3, 2) for symmetric in (False, True)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_example_by_hand():
    # From -1 to 2 in 4 codes: a step of 1, and code 1 is zero.
    weight = torch.tensor([[-1.0, 0.0, 0.4, 2.0]])
    quantized = quantize_tensor(weight, bits=2)
    assert quantized.scale.item() == 1.0
    assert quantized.zero_point.item() == 1
    assert quantized.codes.tolist() == [[0, 1, 1, 3]]
    assert quantized.dequantize().tolist() == [[-1.0, 0.0, 0.0, 2.0]]


def test_halves_go_to_the_even_code():
    codes = quantize(
        torch.tensor([0.5, 1.5, 2.5]), torch.tensor(1.0), torch.tensor(0, dtype=torch.int32), bits=4
    )
    assert codes.tolist() == [0, 2, 2]


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_a_tensor_is_rounded_as_torch_does(bits, symmetric):
    x = numbers(40, 30)
    scale, zero = affine_parameters(
        *min_max(to_groups(x, "tensor"), bits=bits, symmetric=symmetric),
        bits=bits,
        symmetric=symmetric,
    )
    torchs = torch.fake_quantize_per_tensor_affine(
        x, scale.item(), int(zero), *code_range(bits, symmetric=symmetric)
    )
    ours = fake_quantize(x, bits=bits, granularity="tensor", symmetric=symmetric)
    torch.testing.assert_close(ours, torchs)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_channels_are_rounded_as_torch_does(bits, symmetric):
    x = numbers(6, 50) * torch.tensor([[0.01], [1], [100], [1], [3], [1e-4]])
    quantized = quantize_tensor(x, bits=bits, symmetric=symmetric)
    torchs = torch.fake_quantize_per_channel_affine(
        x,
        quantized.scale[:, 0],
        quantized.zero_point[:, 0],
        0,
        *code_range(bits, symmetric=symmetric),
    )
    torch.testing.assert_close(quantized.dequantize(), torchs)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_the_error_is_at_most_half_a_step(bits, symmetric):
    # And half a step more at the ends, where the zero point was rounded.
    x = to_groups(numbers(8, 64), 16)
    quantized = quantize_tensor(x, bits=bits, granularity=16, symmetric=symmetric)
    steps = (x - quantized.dequantize()).abs() / quantized.scale
    low, high = code_range(bits, symmetric=symmetric)
    inside = (low < quantized.codes) & (quantized.codes < high)
    assert steps[inside].max() <= 0.5 + 1e-4
    assert steps.max() <= (0.5 if symmetric else 1) + 1e-4


def test_what_lies_on_the_grid_comes_back_bit_for_bit():
    x = fake_quantize(numbers(8, 64), bits=4, granularity=32)
    torch.testing.assert_close(fake_quantize(x, bits=4, granularity=32), x, rtol=0, atol=1e-6)


@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_is_exact_and_a_group_of_zeros_stays_zero(symmetric):
    x = numbers(3, 8) + 5  # all positive: the range must still reach zero
    x[:, 3], x[1] = 0, 0
    back = fake_quantize(x, bits=3, symmetric=symmetric)
    assert (back[:, 3] == 0).all()
    assert (back[1] == 0).all()


def test_smaller_groups_round_more_finely():
    x = numbers(32, 128)
    errors = [
        (x - fake_quantize(x, bits=3, granularity=g)).square().mean()
        for g in ("tensor", "channel", 64, 16)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_group_is_a_channel_or_a_tensor_at_the_limits():
    x = numbers(4, 32)
    same = fake_quantize(x, bits=4, granularity=32)
    assert torch.equal(same, fake_quantize(x, bits=4, granularity="channel"))
    same = fake_quantize(x.view(1, -1), bits=4, granularity=4 * 32).view(4, 32)
    assert torch.equal(same, fake_quantize(x, bits=4, granularity="tensor"))


@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20),
    st.sampled_from(GRIDS),
)
def test_codes_stay_in_their_range_and_nothing_gets_larger_than_the_range(values, grid):
    bits, symmetric = grid
    x = torch.tensor([values])
    quantized = quantize_tensor(x, bits=bits, symmetric=symmetric)
    low, high = code_range(bits, symmetric=symmetric)
    assert low <= int(quantized.codes.min())
    assert int(quantized.codes.max()) <= high
    back = quantized.dequantize()
    assert back.isfinite().all()
    assert (back - x).abs().max() <= quantized.scale.item() * (1 + 1e-4)


def test_half_precision_comes_back_as_such_and_the_input_is_left_alone():
    x = numbers(4, 8).half()
    before = x.clone()
    assert fake_quantize(x, bits=8).dtype == torch.float16
    assert torch.equal(x, before)


def test_a_zero_point_between_two_codes_is_used_as_it_is():
    scale, zero = torch.tensor(1.0), torch.tensor(1.5)
    codes = quantize(torch.tensor([0.0, 0.9, 1.1]), scale, zero, bits=4)
    assert codes.tolist() == [2, 2, 3]
    assert dequantize(codes, scale, zero).tolist() == [0.5, 0.5, 1.5]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="bits must be 1 to 8, not 9"):
        quantize_tensor(numbers(2, 4), bits=9)
    with pytest.raises(ValueError, match="bits must be 2 to 8, not 1"):
        quantize_tensor(numbers(2, 4), bits=1, symmetric=True)
    with pytest.raises(ValueError, match="a number that divides 4, the last dimension, not 3"):
        quantize_tensor(numbers(2, 4), bits=4, granularity=3)
    with pytest.raises(ValueError, match="infinite or NaN"):
        quantize_tensor(torch.tensor([[1.0, float("nan")]]), bits=4)
