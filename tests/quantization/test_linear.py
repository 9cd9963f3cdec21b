import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compresslab import storage
from compresslab.quantization.affine import Quantized, quantize_tensor
from compresslab.quantization.linear import (
    PackedEmbedding,
    PackedLinear,
    pack_embedding_,
    pack_linears_,
)


def quantized(bits=4, granularity=16, shape=(24, 64)):
    weight = torch.randn(*shape, generator=torch.Generator().manual_seed(0)) / 8
    return quantize_tensor(weight, bits=bits, granularity=granularity)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", [16, "channel", "tensor"])
def test_it_computes_with_the_weight_that_was_packed(bits, granularity):
    weight, bias, x = quantized(bits, granularity), torch.randn(24), torch.randn(2, 5, 64)
    y = PackedLinear(weight, bias)(x)
    # The scale is rounded to float16, by at most one part in 2048.
    torch.testing.assert_close(y, F.linear(x, weight.dequantize(), bias), rtol=0, atol=2e-2)
    half = Quantized(weight.codes, weight.scale.half(), weight.zero_point, bits)
    torch.testing.assert_close(y, F.linear(x, half.dequantize(), bias))


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_file_has_the_bytes_of_the_formula_and_gives_the_layer_back(bits, tmp_path):
    layer = PackedLinear(quantized(bits), torch.randn(24))
    size = storage.save(layer, tmp_path / "layer.safetensors")
    n, g = 24 * 64, 16
    content = n * bits // 8 + 2 * n // g + bits * n // g // 8 + 4 * 24
    assert sum(t.nbytes for t in layer.state_dict().values()) == content
    assert content < size < content + 500  # the file's own header
    other = PackedLinear(quantized(bits, shape=(24, 64)), torch.zeros(24))
    other.codes.zero_()
    other.load_state_dict(storage.load(tmp_path / "layer.safetensors"))
    x = torch.randn(3, 64)
    assert torch.equal(other(x), layer(x))


def test_a_zero_point_between_two_codes_is_kept():
    weight = quantized()
    between = Quantized(weight.codes, weight.scale, weight.zero_point + 0.25, 4)
    layer = PackedLinear(between)
    assert layer.zero_point.dtype == torch.float16
    torch.testing.assert_close(layer.dequantize(), between.dequantize(), rtol=1e-3, atol=1e-3)


def test_the_input_is_divided_by_its_scale():
    weight, x, s = quantized(), torch.randn(3, 64), torch.rand(64) + 0.5
    layer = PackedLinear(weight, input_scale=s)
    torch.testing.assert_close(layer(x), PackedLinear(weight)(x / s.half().float()))


def test_layers_of_a_model_are_replaced_and_no_others():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    dense, x = copy.deepcopy(model), torch.randn(4, 16)
    pack_linears_(model, lambda name, w: quantize_tensor(w, bits=8), ["0"])
    assert isinstance(model[0], PackedLinear)
    assert model[2].weight is not None
    torch.testing.assert_close(model(x), dense(x), rtol=0, atol=0.05)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("granularity", [16, "channel"])
def test_an_embedding_gives_the_rows_of_its_matrix(bits, granularity):
    embedding = PackedEmbedding(quantized(bits, granularity))
    ids = torch.tensor([[3, 0, 3], [23, 7, 1]])
    assert torch.equal(embedding(ids), F.embedding(ids, embedding.dequantize()))


def test_an_output_layer_shares_the_packed_embedding_on_the_disk_too(tmp_path):
    model = nn.Sequential(nn.Embedding(24, 64), nn.Linear(64, 24, bias=False))
    model[1].weight = model[0].weight
    pack_embedding_(model, "0", lambda name, w: quantize_tensor(w, bits=4), head="1")
    assert model[1].codes.data_ptr() == model[0].codes.data_ptr()
    assert torch.equal(model[1].dequantize(), model[0].dequantize())
    size = storage.save(model, tmp_path / "model.safetensors")
    assert size < 24 * 64 / 2 + 24 * 3 + 1000


def test_bad_input_is_named():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with pytest.raises(ValueError, match="has no linear layer '7'"):
        pack_linears_(model, lambda name, w: quantize_tensor(w, bits=4), ["7"])
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="0 shares its weight with another layer"):
        pack_linears_(model, lambda name, w: quantize_tensor(w, bits=4))
    huge = quantize_tensor(torch.tensor([[0.0, 1e9]]), bits=4)
    with pytest.raises(ValueError, match="float16 cannot hold the scale"):
        PackedLinear(huge)
    with pytest.raises(ValueError, match="rows of 64 in groups of 1536 are not whole groups"):
        PackedEmbedding(quantized(granularity="tensor"))
    with pytest.raises(ValueError, match="1 does not share the weight of 0"):
        pack_embedding_(
            nn.Sequential(nn.Embedding(4, 8), nn.Linear(8, 4)), "0", quantize_tensor, head="1"
        )
