import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compresslab.quantization.linear import PackedLinear
from compresslab.quantization.qat import add_quantizers_, finish_
from compresslab.quantization.ternary import (
    Ternary,
    TernaryLinear,
    pack_trits,
    ternarize,
    unpack_trits,
)

OPTIONS = [
    {"granularity": granularity, "threshold": threshold}
    for granularity in ("tensor", "channel", 8)
    for threshold in (None, 0.75)
]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_an_example_by_hand():
    # The mean size is 1: below 0.5 becomes zero, and what is above 1.5 is clipped.
    weight = torch.tensor([[0.1, -0.4, 0.5], [-0.6, 1.0, 3.4]])
    quantized = ternarize(weight)
    assert quantized.scale.item() == pytest.approx(1)
    assert quantized.codes.tolist() == [[1, 1, 1], [0, 2, 2]]
    torch.testing.assert_close(quantized.dequantize(), torch.tensor([[0.0, 0, 0], [-1, 1, 1]]))


def test_rows_have_a_scale_of_their_own_if_asked():
    weight = torch.tensor([[0.1, -0.1], [10.0, 0.0]])
    assert ternarize(weight).codes.tolist() == [[1, 1], [2, 1]]
    quantized = ternarize(weight, granularity="channel")
    assert quantized.codes.tolist() == [[2, 0], [2, 1]]
    torch.testing.assert_close(quantized.scale, torch.tensor([[0.1], [5.0]]))


def squared_error(weight, signs, scale):
    return (weight - scale * signs).square().sum()


def test_a_ternary_weight_network_has_the_best_scale_for_its_signs():
    weight = numbers(1, 200)
    quantized = ternarize(weight, threshold=0.75)
    signs, scale = quantized.codes.float() - 1, quantized.scale.item()
    best = squared_error(weight, signs, scale)
    for factor in (0.98, 1.02):
        assert squared_error(weight, signs, factor * scale) > best
    assert best < squared_error(weight, *(ternarize(weight).codes - 1.0, ternarize(weight).scale))


def test_its_threshold_is_nearly_the_best_one_for_normal_weights():
    weight = numbers(1, 2000)
    quantized = ternarize(weight, threshold=0.75)
    largest = weight.abs().flatten().sort(descending=True).values
    # With the best scale, keeping the k largest lowers the error by (their sum)² / k.
    gains = largest.cumsum(0).square() / torch.arange(1, 2001)
    error = squared_error(weight, quantized.codes - 1.0, quantized.scale)
    assert error == pytest.approx((weight.square().sum() - gains.max()).item(), rel=0.01)


def test_the_error_of_all_sign_patterns_is_never_below_the_best_by_threshold():
    weight = numbers(1, 6)
    best = min(
        squared_error(weight, signs, (weight * signs).sum() / signs.square().sum().clamp(min=1))
        for signs in map(torch.tensor, itertools.product((-1.0, 0.0, 1.0), repeat=6))
    )
    errors = [
        squared_error(weight, q.codes - 1.0, q.scale)
        for q in (ternarize(weight, threshold=t / 20) for t in range(60))
    ]
    assert min(errors).item() == pytest.approx(best.item(), rel=1e-5)


@pytest.mark.parametrize("options", OPTIONS)
def test_the_gradient_passes_straight_also_for_clipped_weights(options):
    weight, outer = numbers(4, 16).requires_grad_(), numbers(4, 16, seed=1)
    rounded = Ternary(**options)(weight)
    rounded.backward(outer)
    assert torch.equal(rounded, ternarize(weight, **options).dequantize())
    assert torch.equal(weight.grad, outer)


@given(st.lists(st.integers(0, 2), max_size=23))
def test_five_trits_are_one_number_of_base_three(codes):
    packed = pack_trits(torch.tensor(codes, dtype=torch.uint8))
    padded = codes + [0] * (-len(codes) % 5)
    assert packed.tolist() == [
        sum(code * 3**i for i, code in enumerate(padded[start : start + 5]))
        for start in range(0, len(padded), 5)
    ]
    assert unpack_trits(packed, (len(codes),)).tolist() == codes


def test_all_243_bytes_come_back_in_shape():
    codes = torch.cartesian_prod(*[torch.arange(3, dtype=torch.uint8)] * 5)
    packed = pack_trits(codes)
    assert sorted(packed.tolist()) == list(range(243))
    assert torch.equal(unpack_trits(packed, (243, 5)), codes)


@pytest.mark.parametrize("options", OPTIONS)
def test_both_packed_layers_compute_what_the_trained_one_did(options):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 24)), numbers(4, 16)
    add_quantizers_(model, lambda w: Ternary(**options))
    expected, weight = model(x), model[0].parametrizations.weight.original
    bits, trits = (make(ternarize(weight, **options), model[0].bias) for make in LAYERS)
    assert torch.equal(bits(x), trits(x))
    finish_(model, TernaryLinear)
    assert torch.equal(model(x), trits(x))
    torch.testing.assert_close(model(x), expected, rtol=0, atol=2e-3)  # scales in float16


LAYERS = (PackedLinear, TernaryLinear)


def test_trits_take_a_fifth_less_than_two_bits():
    weight = ternarize(numbers(64, 100), granularity="channel")
    layer = TernaryLinear(weight, torch.zeros(64))
    sizes = {name: tensor.nbytes for name, tensor in layer.state_dict().items()}
    assert sizes == {"trits": 64 * 100 // 5, "scale": 64 * 2, "bias": 64 * 4}
    assert sizes["trits"] == 0.8 * PackedLinear(weight).codes.nbytes


@pytest.mark.parametrize("options", OPTIONS)
def test_a_weight_of_zeros_stays_zero(options):
    weight = torch.zeros(2, 8)
    assert (ternarize(weight, **options).codes == 1).all()
    assert (Ternary(**options)(weight) == 0).all()
    assert (TernaryLinear(ternarize(weight, **options)).dequantize() == 0).all()


def test_bad_input_is_named():
    codes = torch.tensor([1, 3], dtype=torch.uint8)
    with pytest.raises(ValueError, match="a code is 3: a trit holds 0 to 2"):
        pack_trits(codes)
    with pytest.raises(ValueError, match=r"codes must be uint8, not torch\.int8"):
        pack_trits(codes.to(torch.int8))
    with pytest.raises(ValueError, match=r"\(6,\) trits are 2 bytes, not 1"):
        unpack_trits(codes[:1], (6,))
