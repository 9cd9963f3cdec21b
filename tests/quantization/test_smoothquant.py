import copy

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from compresslab.quantization.affine import fake_quantize
from compresslab.quantization.outliers import collect_absmax
from compresslab.quantization.smoothquant import (
    ScaledInput,
    divide_output_,
    find_inputs,
    smooth_,
    smoothing_scale,
)

IDS = torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(1))


def tiny(kind, heads=4):
    """A random model of two blocks in float64, norms and biases not at their start values."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
    if kind == "bert":
        model = BertForSequenceClassification(BertConfig(num_attention_heads=4, **sizes))
    else:
        config = LlamaConfig(num_attention_heads=4, num_key_value_heads=heads, **sizes)
        model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.5, 2)
        else:
            nn.init.normal_(parameter, std=0.2)
    return model.double().eval()


@pytest.fixture(params=["bert", "llama", "grouped"])
def model(request):
    return tiny(request.param, heads=2 if request.param == "grouped" else 4)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def test_the_scale_is_the_one_of_equation_4():
    weight = torch.tensor([[1.0, -2.0], [-4.0, 1.0]])
    absmax = torch.tensor([16.0, 8.0])
    assert smoothing_scale(absmax, weight).tolist() == [2.0, 2.0]
    assert smoothing_scale(absmax, weight, alpha=1.0).tolist() == [16.0, 8.0]
    assert smoothing_scale(absmax, weight, alpha=0.0).tolist() == [0.25, 0.5]


def test_at_half_inputs_and_weights_get_the_same_largest_values():
    x, weight = torch.randn(50, 8) * torch.arange(1.0, 9), torch.randn(6, 8)
    scale = smoothing_scale(x.abs().amax(0), weight)
    torch.testing.assert_close((x / scale).abs().amax(0), (weight * scale).abs().amax(0))


def test_an_input_that_is_always_zero_or_never_read_is_left_alone():
    scale = smoothing_scale(torch.tensor([0.0, 4.0, 4.0]), torch.tensor([[1.0, 0.0, 1.0]]))
    assert scale.tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.9])
def test_the_model_computes_the_same(model, alpha, everywhere):
    before = copy.deepcopy(model)
    smooth_(model, collect_absmax(model, [IDS]), alpha=alpha, everywhere=everywhere)
    torch.testing.assert_close(logits(model), logits(before), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("everywhere", [False, True])
def test_inputs_end_halfway_to_the_weights_that_read_them(model, everywhere):
    before, inputs = copy.deepcopy(model), find_inputs(model)
    absmax = collect_absmax(model, [IDS])
    smooth_(model, absmax, everywhere=everywhere)
    after = collect_absmax(model, [IDS])
    assert sum(each.from_norm for each in inputs) == len(inputs) / 2
    for each in inputs:
        name = each.readers[0]
        weights = torch.cat([before.get_submodule(n).weight for n in each.readers])
        expected = (absmax[name] * weights.abs().amax(0).float()).sqrt()
        if not (each.from_norm or everywhere):
            expected = absmax[name]
        found = after[name] if name in after else after[f"{name}.linear"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_only_where_nothing_can_take_up_the_factor_does_a_layer_divide_its_input():
    def divided(model, **options):
        smooth_(model, collect_absmax(model, [IDS]), **options)
        return {
            n.split(".", 4)[-1]
            for n, m in model.named_modules()
            if isinstance(m, ScaledInput) and ".1." in n
        }

    first = {*(f"attention.self.{n}" for n in ("query", "key", "value")), "intermediate.dense"}
    assert divided(tiny("bert")) == first
    assert divided(tiny("bert"), everywhere=True) == first | {"output.dense"}
    assert divided(tiny("llama", heads=2)) == divided(tiny("llama"), everywhere=True) == set()
    assert divided(tiny("llama", heads=2), everywhere=True) == {"o_proj"}


def test_the_norms_of_a_bert_keep_their_weights():
    model = tiny("bert")
    norms = {n: p.clone() for n, p in model.named_parameters() if "LayerNorm" in n}
    smooth_(model, collect_absmax(model, [IDS]))
    assert all(torch.equal(p, norms[n]) for n, p in model.named_parameters() if n in norms)


def test_an_outlier_costs_less_in_8_bits_after_smoothing():
    model = tiny("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.input_layernorm.weight[3] *= 100
            layer.post_attention_layernorm.weight[5] *= 100
    exact = logits(model)

    def error(model):
        model = copy.deepcopy(model)
        for module in list(model.modules()):
            if isinstance(module, nn.Linear):
                module.weight.data = fake_quantize(module.weight.data, bits=8, symmetric=True)
                module.register_forward_pre_hook(
                    lambda m, x: fake_quantize(x[0], bits=8, granularity="tensor", symmetric=True)
                )
        return (logits(model) - exact).norm()

    naive = error(model)
    smooth_(model, collect_absmax(model, [IDS]))
    assert error(model) < 0.7 * naive


def test_a_norm_and_a_linear_layer_are_divided_with_their_bias():
    x, scale = torch.randn(5, 4), torch.rand(4) + 0.5
    for module in (nn.LayerNorm(4), nn.Linear(4, 4)):
        nn.init.normal_(module.bias)
        before = module(x)
        divide_output_(module, scale)
        torch.testing.assert_close(module(x), before / scale)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"absmax must have shape \(2,\) .* not \(3,\)"):
        smoothing_scale(torch.ones(3), torch.ones(4, 2))
    with pytest.raises(ValueError, match="Sequential has no blocks of a Llama or a BERT"):
        find_inputs(nn.Sequential(nn.Linear(2, 2)))
