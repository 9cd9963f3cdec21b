import bitsandbytes as bnb
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compresslab.quantization.affine import quantize_tensor
from compresslab.quantization.llm_int8 import LLMInt8Linear, llm_int8_, llm_int8_matmul


def problem(outliers=(3, 17), tokens=40, rows=24, columns=64, seed=0):
    """Inputs around 1 with a few columns around 40, and a weight."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator).clamp(-5, 5)
    x[:, list(outliers)] *= 40
    return x, torch.randn(rows, columns, generator=generator) / 8


def int8(weight):
    return quantize_tensor(weight, bits=8, symmetric=True)


def error(y, x, weight):
    exact = x.double() @ weight.double().T
    return ((y - exact).norm() / exact.norm()).item()


def test_bitsandbytes_computes_the_same():
    x, weight = problem()
    x[:, 3] += x[:, 3].sign() * 6  # it takes the scale of a token from small values in
    x[:, 17] += x[:, 17].sign() * 6  # the columns of outliers, too: here are none
    x, weight = x.half(), weight.half()
    state = bnb.MatmulLtState()
    state.is_training, state.has_fp16_weights = False, False
    state.CB, state.SCB, _ = bnb.functional.int8_vectorwise_quant(weight)
    theirs = bnb.matmul(x, state.CB, state=state, threshold=6.0)
    assert state.idx.tolist() == [3, 17]
    assert torch.equal(int8(weight).codes, state.CB)
    torch.testing.assert_close(llm_int8_matmul(x, int8(weight)), theirs, rtol=4e-3, atol=2e-2)


def test_the_two_parts_are_those_of_equation_8():
    x, weight = problem()
    w = int8(weight)
    inside = x.clone()
    inside[:, [3, 17]] = 0
    x8 = (inside / (inside.abs().amax(1, keepdim=True) / 127)).round()
    products = (x8[:, None] * w.codes.float()).sum(2)
    y = products * (inside.abs().amax(1, keepdim=True) / 127) * w.scale.T
    y += x[:, [3, 17]] @ w.dequantize()[:, [3, 17]].T
    torch.testing.assert_close(llm_int8_matmul(x, w), y, rtol=1e-4, atol=1e-4)


def test_the_decomposition_repairs_what_outliers_break():
    x, weight = problem()
    plain = llm_int8_matmul(x, int8(weight), threshold=float("inf"))
    mixed = llm_int8_matmul(x, int8(weight))
    # The outputs are mostly the outliers': what is left is the part of all other features.
    rest = x.clone()
    rest[:, [3, 17]] = 0
    outliers = (x - rest) @ int8(weight).dequantize().T
    assert error(mixed - outliers, rest, weight) < 0.02
    assert error(plain - outliers, rest, weight) > 0.1


def test_a_feature_is_an_outlier_for_all_tokens_if_it_is_one_for_a_single_token():
    x, weight = problem(outliers=())
    x[5, 9] = -6.0
    w = int8(weight)
    without = x.clone()
    without[:, 9] = 0
    y = llm_int8_matmul(without, w) + x[:, 9:10] @ w.dequantize()[:, 9:10].T
    torch.testing.assert_close(llm_int8_matmul(x, w), y)


def test_all_features_and_none_of_them_may_be_outliers():
    x, weight = problem()
    w = int8(weight)
    torch.testing.assert_close(llm_int8_matmul(x, w, threshold=0.0), x @ w.dequantize().T)
    assert error(llm_int8_matmul(x, w, threshold=float("inf")), x, weight) < 0.05


def test_a_sum_beyond_float32_s_whole_numbers_is_exact():
    x, weight = torch.ones(1, 2001), torch.ones(1, 2001)
    x[0, 0] = 2 / 127
    weight[0, 0] = 3 / 127
    y = llm_int8_matmul(x, int8(weight))  # 2,000 · 127² + 6 does not fit into 24 bits
    assert y.double().item() == pytest.approx((2000 * 127**2 + 6) / 127**2, rel=1e-7)


def test_a_token_of_zeros_gives_zeros():
    x, weight = problem()
    x[4] = 0
    assert (llm_int8_matmul(x, int8(weight))[4] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_layer_takes_any_shape_and_gives_the_dtype_back(dtype):
    x, weight = problem()
    bias = torch.randn(24, dtype=dtype)
    layer = LLMInt8Linear(int8(weight), bias)
    y = layer(x.to(dtype).view(2, 4, 5, 64))
    assert y.dtype == dtype
    assert y.shape == (2, 4, 5, 24)
    expected = F.linear(x.to(dtype).float(), weight, bias.float()).view_as(y)
    torch.testing.assert_close(y.float(), expected, rtol=0.02, atol=0.5)


def test_a_layer_is_int8_and_a_scale_a_row():
    layer = LLMInt8Linear(int8(problem()[1]), torch.zeros(24))
    assert sum(t.nbytes for t in layer.state_dict().values()) == 24 * 64 + 4 * 24 + 4 * 24


def test_the_layer_s_threshold_is_the_one_it_was_given():
    x, weight = problem()
    for threshold in (3.0, float("inf")):
        expected = llm_int8_matmul(x, int8(weight), threshold=threshold)
        assert torch.equal(LLMInt8Linear(int8(weight), threshold=threshold)(x), expected)


def test_layers_of_a_model_are_replaced_and_no_others():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    x = torch.randn(4, 16)
    dense = model(x)
    llm_int8_(model, ["0"], threshold=3.0)
    assert isinstance(model[0], LLMInt8Linear)
    assert model[0].threshold == 3.0
    assert isinstance(model[2], nn.Linear)
    torch.testing.assert_close(model(x), dense, rtol=0, atol=0.05)
    llm_int8_(model)
    assert isinstance(model[2], LLMInt8Linear)


def test_a_weight_of_another_kind_is_refused():
    weight = problem()[1]
    with pytest.raises(ValueError, match=r"int8 codes and 24 scales, .* torch.uint8 and 24"):
        LLMInt8Linear(quantize_tensor(weight, bits=8))
    with pytest.raises(ValueError, match=r"int8 codes and 24 scales, .* torch.int8 and 1"):
        LLMInt8Linear(quantize_tensor(weight, bits=8, symmetric=True, granularity="tensor"))
