import pytest
import torch
from hqq.core.optimize import optimize_weights_proximal, optimize_weights_proximal_v2
from hqq.core.quantize import Quantizer

from compresslab.quantization.affine import quantize_tensor
from compresslab.quantization.hqq import hqq
from compresslab.quantization.linear import PackedLinear


def heavy_tailed(rows=40, columns=128, size=1.0):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(rows, columns, generator=generator)
    return size * weight * (1 + 4 * (torch.rand(rows, columns, generator=generator) < 0.02))


def theirs(weight, bits, group_size, solve, **options):
    """Codes and zero points of the authors' package, from its own start."""
    groups = weight.view(-1, group_size)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (2**bits - 1) / (high - low)
    codes, _, zero = solve(groups, scale, -low * scale, [0, 2**bits - 1], axis=1, **options)
    return codes.view(weight.shape), zero


@pytest.mark.parametrize("size", [0.05, 1.0, 10.0])  # none, some and most errors let alone
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_it_is_the_authors_own(bits, size):
    weight = heavy_tailed(size=size)
    codes, zero = theirs(weight, bits, 64, optimize_weights_proximal_v2)
    ours = hqq(weight, bits=bits, group_size=64)
    assert (ours.codes != codes).float().mean() < 1e-3  # they multiply by 1 / s: some ties differ
    torch.testing.assert_close(ours.zero_point, zero, rtol=1e-3, atol=2e-3)


def error(weight, quantized, norm=0.7):
    return (weight - quantized.dequantize()).abs().pow(norm).mean().item()


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_it_is_as_good_as_the_package_with_its_defaults(bits, monkeypatch):
    weight = heavy_tailed()
    monkeypatch.setattr(Quantizer, "optimize_weights", optimize_weights_proximal)
    codes, meta = Quantizer.quantize(weight, nbits=bits, group_size=64, axis=1, device="cpu")
    meta["compute_dtype"] = torch.float32
    package = (weight - Quantizer.dequantize(codes, meta)).abs().pow(0.7).mean()
    assert error(weight, hqq(weight, bits=bits, group_size=64)) < 1.01 * package


@pytest.mark.parametrize("group_size", [None, 64])
@pytest.mark.parametrize("bits", [2, 3])
def test_more_weights_are_near_than_with_plain_rounding(bits, group_size):
    weight = 0.05 * torch.randn(40, 128, generator=torch.Generator().manual_seed(0))
    plain = quantize_tensor(weight, bits=bits, granularity=group_size or "channel")
    quantized = hqq(weight, bits=bits, group_size=group_size)
    assert quantized.scale.shape == plain.scale.shape
    assert error(weight, quantized) < 0.98 * error(weight, plain)


@pytest.mark.parametrize("size", [0.05, 1.0])
def test_the_error_falls_with_every_step(size):
    weight = heavy_tailed(size=size)
    errors = [error(weight, hqq(weight, bits=2, iterations=n), norm=1) for n in range(5)]
    assert errors == sorted(set(errors), reverse=True)


def test_an_error_below_the_threshold_is_none_to_let_alone():
    # (1 / β)^(1 / (2 - p)) = 0.17. Beyond it, zero points follow the rest of the group.
    small, large = heavy_tailed(size=0.01), heavy_tailed()
    options = {"bits": 2, "iterations": 1}
    for weight, same in ((small, True), (large, False)):
        zero_point = hqq(weight, **options).zero_point
        assert same == torch.equal(zero_point, hqq(weight, beta=1e-9, **options).zero_point)


def test_numbers_on_the_grid_and_equal_numbers_are_exact():
    grid = torch.arange(8.0).repeat(3, 2) * 0.25 + 10  # far from 0, which need not be a code
    torch.testing.assert_close(hqq(grid, bits=3).dequantize(), grid)
    same = torch.tensor([[0.3], [-2.0], [0.0]]).repeat(1, 8)
    torch.testing.assert_close(hqq(same, bits=3).dequantize(), same)


def test_a_group_far_from_zero_and_hardly_wide_can_still_be_packed():
    weight = 5 + torch.tensor([[1e-5], [1e-3]]) * torch.linspace(0, 1, 8)
    layer = PackedLinear(hqq(weight, bits=3))
    torch.testing.assert_close(layer.dequantize(), weight, rtol=0, atol=1e-2)


def test_the_codes_can_be_packed_and_the_zero_points_are_kept():
    weight = 0.05 * heavy_tailed()
    quantized = hqq(weight, bits=3, group_size=64)
    layer = PackedLinear(quantized)
    assert layer.zero_point.dtype == torch.float16
    assert (quantized.zero_point != quantized.zero_point.round()).any()
    torch.testing.assert_close(layer.dequantize(), quantized.dequantize(), rtol=2e-3, atol=1e-3)


def test_half_precision_is_accepted_and_the_input_is_left_alone():
    weight = heavy_tailed().half()
    before = weight.clone()
    assert hqq(weight, bits=4).dequantize().dtype == torch.float32
    assert torch.equal(weight, before)


def test_bad_input_is_named():
    weight = heavy_tailed()
    with pytest.raises(ValueError, match="group_size must divide 128, the columns, not 5"):
        hqq(weight, bits=4, group_size=5)
    with pytest.raises(ValueError, match="norm must be above 0 and at most 1, not 2"):
        hqq(weight, bits=4, norm=2)
    with pytest.raises(ValueError, match="bits must be 1 to 8, not 9"):
        hqq(weight, bits=9)
    weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="weight has numbers that are infinite or NaN"):
        hqq(weight, bits=4)
