import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel

from compresslab.pruning.sparsegpt import collect_hessians
from compresslab.quantization.affine import affine_parameters, fake_quantize, quantize_tensor
from compresslab.quantization.awq import (
    awq,
    awq_,
    keep_salient,
    narrow_range,
    output_error,
    scale_inputs_,
    search_scale,
)
from compresslab.quantization.linear import PackedLinear
from compresslab.quantization.outliers import collect_means
from compresslab.quantization.smoothquant import find_inputs

OPTIONS = {"bits": 3, "group_size": 16}


def problem(rows=24, columns=64, tokens=300, seed=0):
    """A weight and inputs, a few of which are much larger than the others."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, columns, generator=generator)
    x[:, ::20] *= 30
    return torch.randn(rows, columns, generator=generator) / 8, x


def rounded(weight, **options):
    return fake_quantize(weight, bits=options["bits"], granularity=options["group_size"])


def error(weight, approximation, x):
    return ((approximation - weight) @ x.T).square().sum()


def effective(weight, x, **options):
    """The weight that layer and divided input amount to."""
    quantized, scale = awq(weight, x.abs().mean(0), x.T @ x, **OPTIONS, **options)
    return quantized.dequantize() / scale


def test_the_error_needs_no_inputs():
    weight, x = problem()
    other = rounded(weight, **OPTIONS)
    torch.testing.assert_close(output_error(other - weight, x.T @ x), error(weight, other, x))


def test_the_scale_is_the_best_of_the_grid_on_the_inputs_themselves():
    weight, x = problem()
    errors, scales = [], []
    for ratio in (0.05 * torch.arange(20)).tolist():
        s = x.abs().mean(0) ** ratio
        s = s / (s.max() * s.min()).sqrt()
        scales.append(s)
        errors.append(error(weight, rounded(weight * s, **OPTIONS) / s, x))
    best = torch.stack(errors).argmin()
    assert 0 < best < 19
    found = search_scale(weight, x.abs().mean(0), x.T @ x, **OPTIONS)
    torch.testing.assert_close(found, scales[best], rtol=1e-3, atol=0)
    assert torch.equal(found, found.half().float())


def test_one_ratio_and_no_clipping_is_plain_rounding():
    weight, x = problem()
    quantized, scale = awq(weight, x.abs().mean(0), x.T @ x, **OPTIONS, ratios=1, clip=False)
    assert (scale == 1).all()
    assert torch.equal(quantized.dequantize(), rounded(weight, **OPTIONS))


def test_large_inputs_are_served_better_and_clipping_helps_once_more():
    weight, x = problem()
    plain = error(weight, rounded(weight, **OPTIONS), x)
    scaled = error(weight, effective(weight, x, clip=False), x)
    assert scaled < plain / 4
    assert error(weight, effective(weight, x), x) < scaled


def test_inputs_of_one_size_leave_nothing_to_scale():
    weight, _ = problem()
    scale = search_scale(weight, torch.full((64,), 3.0), torch.eye(64), **OPTIONS)
    assert (scale == 1).all()


def test_a_narrowed_range_is_the_best_of_ten_for_every_group():
    weight, x = problem(rows=3, columns=32)
    groups = weight.view(-1, 16)
    low, high = narrow_range(groups, bits=3, symmetric=False, hessian=x.T @ x)
    narrowed = 0
    for i, group in enumerate(groups):
        part = x[:, 16 * (i % 2) :][:, :16]  # the inputs of this group
        ends = [group.abs().max() * (1 - j / 20) for j in range(10)]
        tries = [group.clamp(-end, end) for end in ends]
        errors = [error(group, fake_quantize(t, bits=3, granularity="tensor"), part) for t in tries]
        best = tries[torch.stack(errors).argmin()]
        narrowed += best.abs().max() < group.abs().max()
        torch.testing.assert_close(
            (low[i].item(), high[i].item()), (best.min().item(), best.max().item())
        )
    assert narrowed


def test_ranges_are_narrowed_for_the_inputs_that_are_left_after_the_division():
    weight, x = problem()
    quantized, scale = awq(weight, x.abs().mean(0), x.T @ x, **OPTIONS)
    low, high = narrow_range(
        (weight * scale).view(-1, 16), bits=3, symmetric=False, hessian=(x / scale).T @ (x / scale)
    )
    expected, _ = affine_parameters(low, high, bits=3)
    torch.testing.assert_close(quantized.scale, expected)


def test_the_layer_divides_its_input_and_computes_the_function():
    weight, x = problem()
    quantized, scale = awq(weight, x.abs().mean(0), x.T @ x, bits=8, group_size=16)
    layer = PackedLinear(quantized, torch.ones(24), input_scale=scale)
    y = x @ weight.T + 1
    assert (layer(x) - y).norm() < 0.01 * y.norm()


def test_an_input_that_is_always_zero_does_no_harm():
    weight, x = problem()
    x[:, 5] = 0
    assert effective(weight, x).isfinite().all()
    assert error(weight, effective(weight, x), x) < error(weight, rounded(weight, **OPTIONS), x)


def tiny(kind):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 50}
    if kind == "bert":
        model = BertModel(BertConfig(num_attention_heads=4, initializer_range=0.2, **sizes))
    else:
        config = LlamaConfig(
            num_attention_heads=4, num_key_value_heads=2 if kind == "grouped" else 4, **sizes
        )
        model = LlamaModel(config)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            nn.init.uniform_(parameter, 0.2, 3)
    return model.eval()


@pytest.mark.parametrize("kind", ["bert", "llama", "grouped"])
def test_a_model_computes_with_the_weights_that_the_layers_alone_would_have(kind):
    # Not with clipping: the zero point of a symmetric range lies halfway between two codes, and
    # the last bit of a number that was divided decides which of them it is.
    model, ids = tiny(kind), torch.randint(50, (8, 9))
    dense, apart = copy.deepcopy(model), copy.deepcopy(model)
    means, hessians = collect_means(model, [ids]), collect_hessians(model, [ids])
    for each in find_inputs(apart):
        linears = [apart.get_submodule(name) for name in each.readers]
        first, weight = each.readers[0], torch.cat([linear.weight for linear in linears])
        quantized, scale = awq(weight, means[first], hessians[first], **OPTIONS, clip=False)
        parts = (quantized.dequantize() / scale).split([len(linear.weight) for linear in linears])
        for linear, part in zip(linears, parts, strict=True):
            linear.weight.data = part
    awq_(model, means, hessians, **OPTIONS, clip=False)
    with torch.no_grad():
        ours, theirs, exact = (m(input_ids=ids)[0] for m in (model, apart, dense))
    assert (ours - theirs).norm() < 0.01 * theirs.norm()
    assert (ours - exact).norm() > 0.02 * exact.norm()
    packed = [m for m in model.modules() if isinstance(m, PackedLinear)]
    assert len(packed) == (12 if kind == "bert" else 14)
    divided = {"bert": 10, "llama": 0, "grouped": 2}[kind]
    assert sum(m.input_scale is not None for m in packed) == divided


@pytest.mark.parametrize("kind", ["bert", "llama", "grouped"])
def test_scaled_inputs_compute_the_same_and_rounding_gives_what_awq_would(kind):
    model, ids = tiny(kind), torch.randint(50, (8, 9))
    dense, whole = copy.deepcopy(model), copy.deepcopy(model)
    means, hessians = collect_means(model, [ids]), collect_hessians(model, [ids])
    scale_inputs_(model, means, hessians, **OPTIONS)
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids)[0], dense(input_ids=ids)[0])
    awq_(whole, means, hessians, **OPTIONS, clip=False)
    compared = changed = 0
    for name, layer in whole.named_modules():
        if isinstance(layer, PackedLinear) and layer.input_scale is None:
            weight = model.get_submodule(name).weight
            compared += 1
            changed += not torch.equal(weight, dense.get_submodule(name).weight)
            expected = layer.dequantize()
            torch.testing.assert_close(rounded(weight, **OPTIONS), expected, rtol=2e-3, atol=2e-3)
    assert changed
    assert compared == {"bert": 2, "llama": 14, "grouped": 12}[kind]


def test_salient_channels_stay_and_the_others_are_rounded():
    weight, x = problem()
    mixed = keep_salient(weight, x.abs().mean(0), 4 / 64, **OPTIONS)
    expected = rounded(weight, **OPTIONS)
    expected[:, ::20] = weight[:, ::20]
    assert torch.equal(mixed, expected)


@pytest.mark.parametrize(("fraction", "kept"), [(0.0, 0), (0.01, 1), (0.5, 32), (1.0, 64)])
def test_as_many_channels_stay_as_the_fraction_says_the_first_of_equals(fraction, kept):
    weight, _ = problem()
    mixed = keep_salient(weight, torch.ones(64), fraction, **OPTIONS)
    assert torch.equal(mixed[:, :kept], weight[:, :kept])
    assert torch.equal(mixed[:, kept:], rounded(weight, **OPTIONS)[:, kept:])


def test_the_salient_channels_are_worth_more_than_any_others():
    weight, x = problem()
    errors = {
        name: error(weight, keep_salient(weight, scores, 4 / 64, **OPTIONS), x)
        for name, scores in {
            "inputs": x.abs().mean(0),
            "weights": weight.norm(dim=0),
            "random": torch.rand(64, generator=torch.Generator().manual_seed(3)),
        }.items()
    }
    assert errors["inputs"] < min(errors["weights"], errors["random"]) / 5


def test_bad_input_is_named():
    weight, x = problem()
    with pytest.raises(ValueError, match=r"mean must have shape \(64,\) .* not \(5,\)"):
        awq(weight, torch.ones(5), x.T @ x, **OPTIONS)
    with pytest.raises(ValueError, match=r"hessian must have shape \(64, 64\) .* not \(5, 5\)"):
        awq(weight, torch.ones(64), torch.eye(5), **OPTIONS)
    with pytest.raises(ValueError, match=r"scores must have shape \(64,\)"):
        keep_salient(weight, torch.ones(5), 0.1, **OPTIONS)
    with pytest.raises(ValueError, match="fraction must be 0 to 1, not 2"):
        keep_salient(weight, torch.ones(64), 2, **OPTIONS)
    with pytest.raises(ValueError, match="a number that divides 64"):
        quantize_tensor(weight, bits=3, granularity=48)
