import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from compresslab import storage
from compresslab.pruning.heads import remove_heads_
from compresslab.quantization.affine import affine_parameters, quantize, quantize_tensor
from compresslab.quantization.calibration import collect_ranges
from compresslab.quantization.int8 import (
    Int8BertLayer,
    Int8Embedding,
    Int8Linear,
    fuse_bert_layers_,
    has_operator,
    int8_matmul,
    integer_linear,
    quantize_bias,
    quantize_embeddings_int8_,
    quantize_linears_int8_,
    requantize,
)

NEEDS_OPERATOR = pytest.mark.skipif(not has_operator(), reason="this torch has not the operator")


def integers(*shape, low=-128, high=128, dtype=torch.int8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high, shape, generator=generator).to(dtype)


def linear(in_features=64, out_features=24, bias=True):
    torch.manual_seed(0)
    return nn.Linear(in_features, out_features, bias=bias)


def layer(source, bits=7, **options):
    weight = quantize_tensor(source.weight, bits=bits, symmetric=True)
    return Int8Linear(weight, source.bias, **options)


@pytest.fixture(params=["integers", "floats"])
def product(request, monkeypatch):
    """Both ways to multiply, whatever this processor has."""
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: request.param == "integers")


# ---------------------------------------------------------------- integers


@pytest.mark.parametrize("shape", [(1, 1, 1), (1, 384, 8), (3, 5, 7), (17, 1025, 2), (2, 1536, 3)])
@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
@pytest.mark.usefixtures("product")
def test_a_product_of_integers_is_exact(shape, dtype):
    m, k, n = shape
    low, high = torch.iinfo(dtype).min, torch.iinfo(dtype).max + 1
    a, b = integers(m, k, low=low, high=high, dtype=dtype), integers(n, k, seed=1).T
    ours = int8_matmul(a, b)
    assert ours.dtype == torch.int32
    assert torch.equal(ours.long(), a.long() @ b.long())
    assert torch.equal(int8_matmul(a, b.contiguous()), ours)


@pytest.mark.parametrize("a", [torch.tensor(v, dtype=torch.int8) for v in (-128, 127)])
@pytest.mark.parametrize("b", [-128, 127])
@pytest.mark.parametrize("k", [512, 1536])
@pytest.mark.usefixtures("product")
def test_the_largest_sums_are_exact(a, b, k):
    left, right = a.expand(2, k), torch.full((k, 3), b, dtype=torch.int8)
    # One product differs, so that the sum is odd: what floats round first.
    right[0], odd = 1, int(a) * b * (k - 1) + int(a)
    assert (int8_matmul(left, right) == odd).all()
    assert (int8_matmul(torch.full((2, k), 255).byte(), right) == 255 * (b * (k - 1) + 1)).all()


@pytest.mark.usefixtures("product")
def test_the_longest_sum_that_int32_holds():
    k = 65_793
    a, b = torch.full((1, k), 255, dtype=torch.uint8), torch.full((k, 1), -128, dtype=torch.int8)
    assert int8_matmul(a, b).item() == -255 * 128 * k >= -(2**31)
    assert 255 * 128 * (k + 1) > 2**31
    with pytest.raises(ValueError, match="k at most 65,793"):
        int8_matmul(torch.zeros(1, k + 1).char(), torch.zeros(k + 1, 1).char())


def test_the_zero_point_is_taken_off():
    codes, weight = integers(5, 40, low=0, high=256, dtype=torch.uint8), integers(6, 40)
    for zero_point in (torch.tensor(0), torch.tensor(255), torch.tensor([[0], [7], [9], [1], [2]])):
        zero_point = zero_point.int()
        total = integer_linear(codes, zero_point, weight)
        assert torch.equal(total.long(), (codes.long() - zero_point) @ weight.long().T)
        assert torch.equal(integer_linear(codes, zero_point, weight, weight.sum(1).int()), total)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=8),
    st.floats(2**-32, 2**20),
    st.integers(0, 255),
)
def test_requantizing_is_rounding_a_product_with_halves_up(values, multiplier, zero_point):
    total = torch.tensor(values, dtype=torch.int32)
    ours = requantize(total, torch.tensor(multiplier, dtype=torch.float64), zero_point)
    # Python's integers have no end, so this is exact: ⌊M · total + ½⌋ with M of 31 bits.
    mantissa, exponent = torch.frexp(torch.tensor(multiplier, dtype=torch.float64))
    fixed, shift = round(mantissa.item() * 2**31), 31 - exponent.item()
    exact = [((2 * v * fixed + (1 << shift)) >> (shift + 1)) + zero_point for v in values]
    assert ours.tolist() == [min(max(e, 0), 255) for e in exact]
    close = (total.double() * multiplier).round() + zero_point
    assert (ours - close.clamp(0, 255)).abs().max() <= 1


def test_a_layer_of_integers_alone_computes_what_floats_do():
    source, x = linear(), torch.randn(50, 64)
    weight = quantize_tensor(source.weight, bits=8, symmetric=True)
    s_x, z_x = affine_parameters(x.min(), x.max(), bits=8)
    y = source(x).detach()
    s_y, z_y = affine_parameters(y.min(), y.max(), bits=8)
    codes = quantize(x, s_x, z_x, bits=8)
    total = integer_linear(codes, z_x, weight.codes) + quantize_bias(source.bias, s_x, weight.scale)
    assert total.dtype == torch.int32
    ours = requantize(total, s_x * weight.scale.flatten() / s_y, z_y.item())
    # Against floats on the same codes: bias and result are rounded, a step at most.
    exact = F.linear(s_x * (codes.float() - z_x), weight.dequantize(), source.bias)
    assert (ours.int() - quantize(exact, s_y, z_y, bits=8).int()).abs().max() <= 1
    assert (s_y * (ours.float() - z_y) - y).abs().max() < 0.1 * y.abs().max()


# ---------------------------------------------------------------- layers


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [{}, {"fused": False}, {"per_token": True}])
@pytest.mark.usefixtures("product")
def test_a_layer_is_as_close_to_float_as_the_steps_allow(kind, bias):
    source, x = linear(bias=bias), torch.randn(3, 11, 64)
    y = layer(source, **kind)(x)
    assert y.shape == (3, 11, 24)
    assert y.dtype == x.dtype
    weight = quantize_tensor(source.weight, bits=7, symmetric=True)
    exact = F.linear(x, weight.dequantize(), source.bias)
    # A step of x at most, where the zero point was rounded: |ŷ - y| ≤ s_x · Σ|Ŵ|.
    step = (x.max() - x.min()) / 255
    assert ((y - exact).abs() <= step * weight.dequantize().abs().sum(1) + 1e-5).all()
    assert ((y - exact).norm() / exact.norm()) < 0.02


def test_it_is_exact_where_the_input_lies_on_the_grid():
    source = linear()
    weight = quantize_tensor(source.weight, bits=7, symmetric=True)
    x = (integers(9, 64, low=0, high=256, dtype=torch.uint8).float() - 100) / 16
    x[0, :2] = torch.tensor([-100, 155]) / 16
    exact = F.linear(x, weight.dequantize(), source.bias)
    for options in ({}, {"fused": False}, {"input_range": (-100 / 16, 155 / 16)}):
        torch.testing.assert_close(layer(source, **options)(x), exact, rtol=1e-5, atol=1e-4)


@NEEDS_OPERATOR
@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (2, 9, 64)])
def test_one_operator_and_the_steps_compute_the_same(static, shape):
    source, x = linear(), 3 * torch.randn(*shape)
    options = {"input_range": (-7.0, 8.0)} if static else {}
    fused, steps = layer(source, **options), layer(source, fused=False, **options)
    assert fused.fused
    assert not steps.fused
    # Numbers halfway between two codes, within rounding, may go either way.
    one = (x.max() - x.min() if not static else 15) / 255 * source.weight.abs().max()
    assert (fused(x) - steps(x)).abs().max() <= 2 * one
    assert (fused(x) - steps(x)).abs().mean() <= 0.1 * one


@NEEDS_OPERATOR
def test_torch_s_own_dynamic_layer_computes_the_same_with_its_weight():
    source, x = linear(), torch.randn(40, 64)
    theirs = torch.ao.quantization.quantize_dynamic(nn.Sequential(source), {nn.Linear})[0]
    w = theirs.weight()
    weight = quantize_tensor(source.weight, bits=8, granularity="tensor", symmetric=True)
    weight = type(weight)(w.int_repr(), torch.full((24, 1), w.q_scale()), weight.zero_point, 8)
    ours = Int8Linear(weight, source.bias, fused=False)(x)
    # torch rounds the input to 7 bits where there is no VNNI, and to 8 here.
    step = (x.max() - x.min()) / 127
    assert (ours - theirs(x)).abs().max() <= step * weight.dequantize().abs().sum(1).max() / 2
    assert (ours - theirs(x)).norm() / ours.norm() < 0.02


@NEEDS_OPERATOR
def test_weights_of_7_bits_cannot_overflow_and_8_are_not_fused_where_they_could(monkeypatch):
    source = linear(256, 8)
    with torch.no_grad():
        source.weight.fill_(1)  # the largest code throughout
    x = torch.full((4, 256), 2.0)  # and 255
    torch.testing.assert_close(layer(source)(x), source(x), rtol=1e-3, atol=0)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    assert not layer(source, bits=8).fused
    torch.testing.assert_close(layer(source, bits=8)(x), source(x), rtol=1e-3, atol=0)
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: True)
    assert layer(source, bits=8).fused


@pytest.mark.parametrize("fused", [True, False])
def test_static_is_dynamic_when_the_range_is_the_same_and_clips_what_lies_outside(fused):
    source, x = linear(), torch.randn(30, 64)
    static = layer(source, input_range=(x.min().item(), x.max().item()), fused=fused)
    torch.testing.assert_close(static(x), layer(source, fused=fused)(x), rtol=0, atol=0.02)
    narrow = layer(source, input_range=(-1.0, 1.0), fused=fused)
    torch.testing.assert_close(narrow(5 * x), narrow(5 * x.clamp(-0.2, 0.2)), rtol=0, atol=0.02)


def test_a_token_of_its_own_scale_does_not_feel_the_others():
    source, x = linear(), torch.randn(2, 64)
    x[1] *= 1000
    per_token, per_tensor = layer(source, per_token=True), layer(source)
    assert torch.equal(per_token(x)[:1], per_token(x[:1]))
    # In one scale for both, all of the small token is rounded to zero or next to it.
    assert (per_tensor(x)[0] - source(x)[0]).norm() > 10 * (per_token(x)[0] - source(x)[0]).norm()


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"per_token": True}])
def test_an_input_of_zeros_gives_the_bias(options):
    source = linear()
    y = layer(source, **options)(torch.zeros(3, 64))
    torch.testing.assert_close(y, source.bias.expand(3, 24).detach())


def test_half_precision_comes_back_as_such():
    assert layer(linear())(torch.randn(2, 64).half()).dtype == torch.float16


def test_the_file_has_a_byte_a_weight_and_gives_the_layer_back(tmp_path):
    source, x = linear(), torch.randn(5, 64)
    for options in ({}, {"fused": False}, {"input_range": (-2.0, 3.0)}):
        ours, other = layer(source, **options), layer(linear(), **options)
        content = 24 * 64 + 4 * 24 + 4 * 24 + (8 if "input_range" in options else 0)
        assert sum(t.nbytes for t in ours.state_dict().values()) == content
        storage.save(ours, tmp_path / "layer.safetensors")
        with torch.no_grad():
            other.codes.zero_()
            other.bias.zero_()
        other._prepare()
        assert not torch.equal(other(x), ours(x))
        other.load_state_dict(storage.load(tmp_path / "layer.safetensors"))
        assert torch.equal(other(x), ours(x))


def test_a_copy_and_a_pickle_compute_the_same():
    ours, x = layer(linear()), torch.randn(5, 64)
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), ours(x))
        other.load_state_dict(layer(linear(bias=True), bits=4).state_dict())
        assert not torch.equal(other(x), ours(x))


def test_an_embedding_gives_its_rows_within_half_a_step():
    table = nn.Embedding(100, 16)
    table.weight.data[3] = 0
    ours = Int8Embedding(quantize_tensor(table.weight, bits=8, symmetric=True))
    index = torch.tensor([[3, 99], [0, 3]])
    assert ours(index).shape == (2, 2, 16)
    assert (ours(index)[0, 0] == 0).all()
    steps = (ours(index) - table(index)).abs() / ours.scale[index]
    assert steps.max() <= 0.5 + 1e-4
    assert sum(t.nbytes for t in ours.state_dict().values()) == 100 * 16 + 4 * 100


# ---------------------------------------------------------------- models


def bert():
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=16,
        initializer_range=0.2,  # attention that is not the same everywhere
    )
    return BertForSequenceClassification(config).eval()


def batch():
    """Two sentences, one of them mostly padding."""
    ids = torch.randint(50, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 2:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"per_token": True}, {"static": True}])
def test_a_classifier_in_int8_decides_as_before_with_padding_too(options):
    model = bert()
    dense = copy.deepcopy(model)
    ranges = collect_ranges(model, [batch()]) if options.pop("static", False) else None
    quantize_linears_int8_(model, ranges, **options)
    quantize_embeddings_int8_(model)
    assert not any(isinstance(m, (nn.Linear, nn.Embedding)) for m in model.modules())
    with torch.no_grad():
        ours, exact = model(**batch()).logits, dense(**batch()).logits
    assert ours.isfinite().all()
    torch.testing.assert_close(ours, exact, rtol=0, atol=0.1 * exact.abs().max().item())
    assert storage_bytes(model) < 0.4 * storage_bytes(dense)


@pytest.mark.parametrize("options", [{}, {"fused": False}, {"per_token": True}, {"static": True}])
def test_fused_layers_compute_what_the_layers_did(options):
    model = bert()
    remove_heads_(model, {0: [1, 3]})
    ranges = collect_ranges(model, [batch()]) if options.pop("static", False) else None
    quantize_linears_int8_(model, ranges, **options)
    fused = copy.deepcopy(model)
    fuse_bert_layers_(fused)
    alone = {name: tensor[:1] for name, tensor in batch().items()}  # no padding, so no mask
    for inputs in (batch(), alone):
        with torch.no_grad():
            torch.testing.assert_close(fused(**inputs).logits, model(**inputs).logits)
    assert storage_bytes(fused) <= storage_bytes(model)
    other = copy.deepcopy(fused)
    other.load_state_dict(fused.state_dict())
    with torch.no_grad():
        assert torch.equal(other(**batch()).logits, fused(**batch()).logits)


def storage_bytes(model):
    return sum(t.nbytes for t in model.state_dict().values())


def test_named_layers_are_replaced_and_no_others():
    model = bert()
    name = "bert.encoder.layer.1.output.dense"
    quantize_linears_int8_(model, names=[name])
    quantize_embeddings_int8_(model, ["bert.embeddings.word_embeddings"])
    kinds = (Int8Linear, Int8Embedding)
    found = [n for n, m in model.named_modules() if isinstance(m, kinds)]
    assert found == ["bert.embeddings.word_embeddings", name]


def test_bad_input_is_named_and_the_model_is_left_as_it_was():
    model = bert()
    with pytest.raises(ValueError, match="has no Linear 'bert'"):
        quantize_linears_int8_(model, names=["classifier", "bert"])
    with pytest.raises(ValueError, match="ranges has none for bert"):
        quantize_linears_int8_(model, {"classifier": (0.0, 1.0)})
    model.classifier.weight = model.bert.pooler.dense.weight
    with pytest.raises(ValueError, match="shares its weight"):
        quantize_linears_int8_(model)
    assert not any(isinstance(m, Int8Linear) for m in model.modules())
    quantize_linears_int8_(model, names=["bert.encoder.layer.0.output.dense"])
    with pytest.raises(ValueError, match=r"layer 0\.attention\.self\.query is not in int8"):
        fuse_bert_layers_(model)
    model = bert()
    ranges = collect_ranges(model, [batch()])
    quantize_linears_int8_(model, ranges | {"bert.encoder.layer.1.attention.self.key": (0.0, 1.0)})
    with pytest.raises(ValueError, match="ranges must be the same"):
        fuse_bert_layers_(model)
    assert not any(isinstance(m, Int8BertLayer) for m in model.modules())
    with pytest.raises(ValueError, match="leave out input_range"):
        layer(linear(), per_token=True, input_range=(0.0, 1.0))
    with pytest.raises(ValueError, match="24 scales, one a row"):
        Int8Linear(quantize_tensor(linear().weight, bits=8, granularity=16, symmetric=True))
    with pytest.raises(ValueError, match="b int8"):
        int8_matmul(integers(2, 3), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"not \(2, 3\) and \(2, 3\)"):
        int8_matmul(integers(2, 3), integers(2, 3))
    with pytest.raises(ValueError, match="multiplier must be in"):
        requantize(integers(2, 3).int(), torch.tensor(0.0), 0)
