import copy
import weakref

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compresslab import storage
from compresslab.quantization.nf4 import (
    NF4Linear,
    dequantize_absmax,
    dequantize_nf4,
    dynamic_levels,
    nf4_bytes,
    nf4_levels,
    quantize_absmax,
    quantize_linears_nf4_,
    quantize_nf4,
)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def magnitudes(count, seed=0):
    return 0.1 + 0.03 * randn(count, seed=seed).abs()


def make(**options):
    return NF4Linear(randn(24, 40) / 8, randn(24, seed=1), **options)


def test_the_levels_are_those_of_bitsandbytes_to_the_last_bit():
    assert torch.equal(nf4_levels(), bnb.get_4bit_type("nf4", device="cpu"))
    assert torch.equal(dynamic_levels(), bnb.create_dynamic_map())


@given(
    st.integers(1, 700),
    st.sampled_from([32, 64, 128]),
    st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    st.integers(0, 2**31),
)
def test_codes_and_absmax_are_those_of_bitsandbytes(count, block_size, dtype, seed):
    x = randn(count, seed=seed).to(dtype)
    theirs, state = bnb.quantize_4bit(x, blocksize=block_size, quant_type="nf4")
    codes, absmax = quantize_nf4(x, block_size=block_size)
    assert torch.equal(codes, theirs.flatten())
    assert torch.equal(absmax, state.absmax)


@pytest.mark.parametrize("double", [False, True])
def test_bitsandbytes_reads_what_was_stored_and_gets_the_same_numbers(double):
    x = randn(300, 64)
    layer = NF4Linear(x, double=double)
    options = {"dtype": torch.float32, "shape": x.shape, "quant_type": "nf4", "blocksize": 64}
    if double:
        second = bnb.QuantState(
            layer.absmax_scale, code=dynamic_levels(), blocksize=256, dtype=torch.float32
        )
        options |= {"offset": layer.absmax_offset, "state2": second}
    theirs = bnb.dequantize_4bit(layer.codes[:, None], bnb.QuantState(layer.absmax, **options))
    torch.testing.assert_close(layer.dequantize(), theirs, rtol=1e-6, atol=0)


def test_every_number_goes_to_the_nearest_level_of_its_block():
    x = randn(300)
    back = dequantize_nf4(*quantize_nf4(x), (300,))
    for block, rounded in zip(x.split(64), back.split(64), strict=True):
        levels = nf4_levels() * block.abs().max()
        assert torch.equal(rounded, levels[(block[:, None] - levels).abs().argmin(1)])


def test_a_tie_goes_to_the_lower_level():
    levels = nf4_levels()
    ties = torch.cat([(levels[:-1] + levels[1:]) / 2, torch.ones(1)])
    codes, _ = quantize_nf4(ties)
    assert torch.equal(torch.stack([codes >> 4, codes & 15], 1).flatten(), torch.arange(16))


def test_the_first_of_two_codes_is_in_the_high_bits_and_an_odd_one_is_filled_up_with_zero():
    codes, absmax = quantize_nf4(torch.tensor([-2.0, 2.0, -2.0]))
    assert codes.tolist() == [0x0F, 0x07]
    assert absmax.tolist() == [2.0]


def test_blocks_run_over_the_ends_of_rows_and_the_last_may_be_short():
    x = randn(3, 30)
    _, absmax = quantize_nf4(x)
    assert torch.equal(absmax, torch.stack([b.abs().max() for b in x.flatten().split(64)]))


@pytest.mark.parametrize("count", [64, 70])
def test_zeros_stay_zeros(count):
    codes, absmax = quantize_nf4(torch.zeros(count))
    assert (codes == 0x77).all()
    assert (absmax == 0).all()
    assert (dequantize_nf4(codes, absmax, (count,)) == 0).all()
    back = dequantize_absmax(*quantize_absmax(absmax))
    assert (back == 0).all()


def test_a_power_of_two_passes_through_to_the_absmax():
    (codes, absmax), (small, small_absmax) = (
        quantize_nf4(x) for x in (randn(70), randn(70) / 2**60)
    )
    assert torch.equal(small, codes)
    assert torch.equal(small_absmax * 2**60, absmax)


def test_numbers_too_small_to_divide_by_stay_finite():
    x = torch.tensor([1e-40, -1e-44])
    assert (dequantize_nf4(*quantize_nf4(x), (2,)).abs() <= 1e-40).all()


@pytest.mark.parametrize("count", [256, 700])
def test_the_absmax_of_the_absmax_is_that_of_bitsandbytes_and_so_are_the_codes_but_for_ties(count):
    x = randn(64 * count)
    _, state = bnb.quantize_4bit(x, quant_type="nf4", compress_statistics=True)
    _, absmax = quantize_nf4(x)
    codes, scale, offset = quantize_absmax(absmax)
    assert torch.equal(scale, state.state2.absmax)
    assert torch.equal(offset, state.offset)
    # Its kernel on a CPU rounds to 65,536 steps of [-1, 1] first: half a step from a tie is open.
    levels = dynamic_levels()
    ties = (levels[1:] + levels[:-1]) / 2
    scaled = (absmax - offset) / scale.repeat_interleave(256)[:count]
    clear = (scaled[:, None] - ties).abs().amin(1) > 1.01 / 65535
    assert clear.float().mean() > 0.9
    assert torch.equal(codes[clear], state.absmax[clear])


def test_every_absmax_goes_to_the_nearest_of_256_levels_around_the_mean():
    absmax = magnitudes(600)
    codes, scale, offset = quantize_absmax(absmax)
    assert torch.equal(offset, absmax.mean())
    back = dequantize_absmax(codes, scale, offset)
    for i, (block, rounded) in enumerate(zip(absmax.split(256), back.split(256), strict=True)):
        levels = dynamic_levels() * (block - offset).abs().max() + offset
        nearest = (block[:, None] - levels).abs().amin(1)
        torch.testing.assert_close((block - rounded).abs(), nearest, rtol=0, atol=1e-7)
        assert scale[i] == (block - offset).abs().max()


def test_a_normal_weight_loses_almost_nothing_more_by_the_second_quantization():
    weight = randn(384, 384) / 20
    once, twice = (NF4Linear(weight, double=d).dequantize() for d in (False, True))
    error = [(weight - w).square().mean() / weight.square().mean() for w in (once, twice)]
    assert 0.005 < error[0] < 0.01
    assert error[1] == pytest.approx(error[0].item(), rel=0.01)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("block_size", [32, 64])
@pytest.mark.parametrize("shape", [(1, 1), (5, 13), (24, 40), (300, 384)])
def test_the_bytes_are_those_of_the_formula(shape, block_size, double):
    layer = NF4Linear(randn(*shape), block_size=block_size, double=double)
    held = sum(t.nbytes for t in layer.state_dict().values())
    assert held == nf4_bytes(shape[0] * shape[1], block_size=block_size, double=double)


def test_the_bits_of_a_weight_are_those_of_the_paper():
    count = 2**20
    assert 8 * nf4_bytes(count, double=False) / count == 4 + 32 / 64
    bits = 8 * nf4_bytes(count) / count
    assert bits == 4 + 8 / 64 + 32 / (64 * 256) + 32 / count  # the last is the mean
    assert round(bits, 3) == 4.127


@pytest.mark.parametrize("double", [False, True])
def test_output_and_gradient_are_those_of_the_dequantized_weight(double):
    layer, x = make(double=double), randn(2, 5, 40, seed=2).requires_grad_()
    other = x.detach().clone().requires_grad_()
    y, expected = layer(x), F.linear(other, layer.dequantize(), layer.bias)
    assert torch.equal(y, expected)
    for each in (y, expected):
        each.square().sum().backward()
    torch.testing.assert_close(x.grad, other.grad)


def test_the_gradient_is_right_in_float64():
    layer, x = make(), randn(3, 40, seed=2).double().requires_grad_()
    assert layer(x).dtype == torch.float64
    assert torch.autograd.gradcheck(layer, (x,))


def test_it_has_nothing_to_train_and_computes_under_autocast():
    layer, x = make(), randn(3, 40).requires_grad_()
    assert not list(layer.parameters())
    assert not layer(x.detach()).requires_grad
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert x.grad.dtype == torch.float32


def test_no_copy_of_the_weight_waits_for_backward():
    layer, x, made = make(), randn(3, 40).requires_grad_(), []

    def dequantize():
        weight = NF4Linear.dequantize(layer)
        made.append(weakref.ref(weight))
        return weight

    layer.dequantize = dequantize
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(saved.append, lambda t: t):
        y = layer(x)
    assert not saved
    assert [ref() for ref in made] == [None]
    y.sum().backward()
    assert len(made) == 2  # made anew


@pytest.mark.parametrize("double", [False, True])
def test_a_file_holds_the_layer_as_it_is(double, tmp_path):
    layer = make(double=double)
    storage.save(layer, tmp_path / "layer.safetensors")
    state = storage.load(tmp_path / "layer.safetensors")
    assert state["codes"].dtype == torch.uint8
    assert state["absmax"].dtype == (torch.uint8 if double else torch.float32)
    other = NF4Linear(torch.zeros(24, 40), torch.zeros(24), double=double)
    other.load_state_dict(state)
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name])
    assert torch.equal(other.dequantize(), layer.dequantize())


def test_layers_of_a_model_are_replaced_and_no_others():
    model = nn.Sequential(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 2, bias=False))
    dense, x = copy.deepcopy(model), randn(4, 64)
    quantize_linears_nf4_(model, ["0"], block_size=32)
    assert isinstance(model[0], NF4Linear)
    assert model[0].block_size == 32
    assert type(model[2]) is nn.Linear
    assert torch.equal(model[0].bias, dense[0].bias)
    torch.testing.assert_close(model(x), dense(x), rtol=0, atol=0.2)
    quantize_linears_nf4_(dense)
    assert isinstance(dense[2], NF4Linear)
    assert dense[2].bias is None


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="block_size must be even and positive, not 63"):
        quantize_nf4(torch.ones(4), block_size=63)
    with pytest.raises(ValueError, match="x must be finite"):
        quantize_nf4(torch.tensor([1.0, torch.inf]))
    codes, absmax = quantize_nf4(torch.ones(70))
    with pytest.raises(ValueError, match=r"\(9, 9\) in blocks of 64 takes 41 bytes of codes and 2"):
        dequantize_nf4(codes, absmax, (9, 9))
    with pytest.raises(ValueError, match="35 bytes of codes and 3 absmax, not 35 and 2"):
        dequantize_nf4(codes, absmax, (70,), block_size=32)
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with pytest.raises(ValueError, match="has no linear layer '7'"):
        quantize_linears_nf4_(model, ["7"])
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="0 shares its weight with another layer"):
        quantize_linears_nf4_(model)
