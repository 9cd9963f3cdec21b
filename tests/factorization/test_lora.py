import copy

import pytest
import torch
from torch import nn

from compresslab.factorization.lora import (
    LoRALinear,
    add_lora_,
    load_lora_,
    lora_state,
    merge_lora_,
)
from compresslab.quantization.nf4 import NF4Linear, quantize_linears_nf4_


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(6, 10)
        self.inner = nn.Sequential(nn.Tanh(), nn.Linear(10, 8, bias=False))
        self.norm = nn.LayerNorm(8)

    def forward(self, x):
        return self.norm(self.inner(self.up(x)))


def make(dtype=torch.float64):
    torch.manual_seed(0)
    return Block().to(dtype).eval()


def adapt(model, **options):
    add_lora_(model, **{"rank": 3, "generator": torch.Generator().manual_seed(1)} | options)
    return model


def tuned(dtype=torch.float64, **options):
    """A model whose updates are far from zero."""
    model = adapt(make(dtype), **options)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter)
    return model


@pytest.fixture
def x():
    return torch.randn(2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_adapted_model_starts_as_the_model_it_was(x):
    assert torch.equal(adapt(make())(x), make()(x))


def test_every_linear_layer_is_adapted_and_nothing_else():
    model = adapt(make())
    assert [n for n, m in model.named_modules() if isinstance(m, LoRALinear)] == ["up", "inner.1"]
    assert model.up.lora_a.shape == (3, 6)
    assert model.up.lora_b.shape == (10, 3)
    assert isinstance(model.norm, nn.LayerNorm)


def test_output_is_the_one_of_equation_3(x):
    model = tuned(alpha=5.0)
    up = model.up
    weight = up.linear.weight + 5.0 / 3 * up.lora_b @ up.lora_a
    torch.testing.assert_close(up(x), x @ weight.T + up.linear.bias, rtol=1e-13, atol=1e-13)


def test_alpha_is_twice_the_rank_unless_given():
    assert adapt(make(), rank=4).up.scale == 2
    assert adapt(make(), rank=4, alpha=1.0).up.scale == 0.25


def test_only_the_two_factors_get_gradients_and_they_are_right():
    model = tuned()
    model(torch.randn(4, 6, dtype=torch.float64)).square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        *("up.lora_a", "up.lora_b", "inner.1.lora_a", "inner.1.lora_b"),
    }
    layer = model.up
    inputs = torch.randn(3, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda a, b: torch.func.functional_call(layer, {"lora_a": a, "lora_b": b}, inputs),
        (layer.lora_a.detach().requires_grad_(), layer.lora_b.detach().requires_grad_()),
    )


def test_a_layer_of_its_own_freezes_what_it_adapts():
    layer = LoRALinear(nn.Linear(6, 10), rank=3, alpha=1.0)
    assert [n for n, p in layer.named_parameters() if p.requires_grad] == ["lora_a", "lora_b"]


def test_merged_model_computes_the_same(x):
    model = tuned()
    expected = model(x)
    merge_lora_(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)
    assert type(model.up) is type(model.inner[1]) is nn.Linear
    assert model.inner[1].bias is None
    assert all(p.requires_grad for p in model.parameters())
    assert set(model.state_dict()) == set(make().state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_rounds_a_low_precision_weight_once(dtype):
    layer = tuned(dtype).up
    exact = layer.linear.weight.float() + layer.scale * layer.lora_b.float() @ layer.lora_a.float()
    assert torch.equal(layer.merged().weight, exact.to(dtype))


def test_merging_leaves_the_layer_and_the_random_numbers_alone():
    layer = tuned().up
    before = copy.deepcopy(layer.state_dict())
    state = torch.get_rng_state()
    merged = layer.merged()
    assert torch.equal(torch.get_rng_state(), state)
    nn.init.zeros_(merged.weight)
    nn.init.zeros_(merged.bias)
    assert all(torch.equal(t, before[name]) for name, t in layer.state_dict().items())


def test_merged_layer_is_in_the_mode_of_the_adapted_one():
    model = tuned()
    assert not model.eval().up.merged().training
    assert model.train().up.merged().training


def test_peft_computes_the_same_from_the_same_factors(x):
    from peft import LoraConfig, get_peft_model

    model = tuned(alpha=5.0)
    theirs = get_peft_model(
        make(), LoraConfig(r=3, lora_alpha=5, target_modules=["up", "inner.1"], lora_dropout=0.0)
    )
    with torch.no_grad():
        for name in ("up", "inner.1"):
            layer = theirs.base_model.model.get_submodule(name)
            layer.lora_A["default"].weight.data = model.get_submodule(name).lora_a.detach().clone()
            layer.lora_B["default"].weight.data = model.get_submodule(name).lora_b.detach().clone()
    torch.testing.assert_close(model(x), theirs(x), rtol=1e-12, atol=1e-12)
    merge_lora_(model)
    merged = theirs.merge_and_unload().state_dict()
    assert set(merged) == set(model.state_dict())
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rank", [0, -1, 7])
def test_rank_that_does_not_fit_is_refused(rank):
    with pytest.raises(ValueError, match=rf"between 1 and 6 .*\(10, 6\), not {rank}"):
        LoRALinear(nn.Linear(6, 10), rank=rank, alpha=1.0)


@pytest.mark.parametrize("rank", [1, 6])
def test_rank_may_be_one_or_full(rank, x):
    model = tuned(rank=rank, dtype=torch.float64)
    expected = model.up(x)
    torch.testing.assert_close(model.up.merged()(x), expected, rtol=1e-12, atol=1e-12)


def test_factors_have_the_dtype_of_the_weight_and_the_bound_of_a_linear_layer():
    layer = LoRALinear(nn.Linear(16, 400).bfloat16(), rank=16, alpha=1.0)
    assert layer.lora_a.dtype == layer.lora_b.dtype == torch.bfloat16
    assert 0.23 < layer.lora_a.abs().max() <= 0.25  # 1 / sqrt(16)
    assert not layer.lora_b.any()


def test_generator_makes_the_start_reproducible():
    def start(seed):
        return adapt(make(), generator=torch.Generator().manual_seed(seed)).up.lora_a

    state = torch.get_rng_state()
    assert torch.equal(start(1), start(1))
    assert not torch.equal(start(1), start(2))
    torch.manual_seed(5)
    first = adapt(make()).up.lora_a
    torch.manual_seed(6)
    assert torch.equal(adapt(make()).up.lora_a, first)
    torch.set_rng_state(state)


def test_state_of_one_model_makes_another_the_same(x):
    model, other = tuned(), adapt(make(), generator=torch.Generator().manual_seed(9))
    state = lora_state(model)
    assert set(state) == {"up.lora_a", "up.lora_b", "inner.1.lora_a", "inner.1.lora_b"}
    assert not any(tensor.requires_grad for tensor in state.values())
    load_lora_(other, state)
    assert torch.equal(other(x), model(x))


def test_state_holds_other_parameters_that_train_too(x):
    model, other = tuned(), adapt(make())
    for each in (model, other):
        each.norm.requires_grad_(True)
    nn.init.normal_(model.norm.bias)
    state = lora_state(model)
    assert {"norm.weight", "norm.bias"} < set(state)
    load_lora_(other, state)
    assert torch.equal(other(x), model(x))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("up.lora_b"), "1 names differ, as up.lora_b"),
        (lambda s: s.update({"down.lora_a": torch.zeros(1)}), "1 names differ, as down.lora_a"),
        (
            lambda s: s.update({"up.lora_a": torch.zeros(4, 6)}),
            r"up.lora_a has shape \(4, 6\) in the adapter and \(3, 6\) in the model",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_adapter_that_does_not_fit_is_refused_by_name(change, message):
    state = lora_state(tuned())
    change(state)
    with pytest.raises(ValueError, match=message):
        load_lora_(adapt(make()), state)


def test_a_rank_too_large_for_one_layer_leaves_the_model_without_adapters():
    model = make()
    with pytest.raises(ValueError, match="rank must be between 1 and 6"):
        add_lora_(model, rank=7)
    assert not any(isinstance(module, LoRALinear) for module in model.modules())


def test_an_adapter_of_another_shape_changes_nothing():
    model = adapt(make(), rank=2)
    before = lora_state(model)
    wrong = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    last = list(wrong)[-1]
    wrong[last] = torch.ones(1, 1)
    with pytest.raises(ValueError, match=last):
        load_lora_(model, wrong)
    assert all(torch.equal(tensor, before[name]) for name, tensor in lora_state(model).items())


def test_the_state_is_a_copy_that_further_training_leaves_alone():
    model = adapt(make(), rank=2)
    state = lora_state(model)
    with torch.no_grad():
        model.up.lora_a.zero_()
    assert (state["up.lora_a"] != 0).all()


def test_on_a_model_in_nf4_the_adapters_alone_train_and_merging_gives_float_layers():
    model, x = make(torch.float32), torch.randn(4, 6)
    quantize_linears_nf4_(model)
    expected = model(x)
    adapt(model)
    assert isinstance(model.up.linear, NF4Linear)
    assert torch.equal(model(x), expected)
    frozen = copy.deepcopy(model.up.linear.state_dict())
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # the gradient of A is zero while B is
        model(x).square().sum().backward()
        optimizer.step()
    assert set(lora_state(model)) == {"up.lora_a", "up.lora_b", "inner.1.lora_a", "inner.1.lora_b"}
    assert all(p.grad.any() for p in model.parameters() if p.requires_grad)
    assert all(torch.equal(t, frozen[name]) for name, t in model.up.linear.state_dict().items())
    trained = model(x)
    assert not torch.allclose(trained, expected, atol=1e-3)
    merge_lora_(model)
    assert type(model.up) is nn.Linear
    torch.testing.assert_close(model(x), trained)
