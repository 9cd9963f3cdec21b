import pytest
import torch
from torch import nn

from compresslab.layers import find_linears, observe_inputs, replace_


@pytest.fixture
def model():
    return nn.Sequential(
        nn.Embedding(10, 4),
        nn.ModuleDict({"up": nn.Linear(4, 6), "norm": nn.LayerNorm(6)}),
        nn.Linear(6, 2),
    )


def run(model, tokens):
    return model[2](model[1]["norm"](model[1]["up"](model[0](tokens))))


def test_linears_are_found_by_dotted_name_in_order(model):
    found = find_linears(model)
    assert list(found) == ["1.up", "2"]
    assert found["1.up"] is model[1]["up"]
    assert found["2"] is model[2]


@pytest.mark.parametrize("name", ["1.up", "2", "1"])
def test_replace_puts_the_new_module_there_and_nowhere_else(model, name):
    before = dict(model.named_modules())
    new = nn.Identity()
    replace_(model, name, new)
    after = dict(model.named_modules())
    assert after.pop(name) is new
    gone = {n for n in before if n == name or n.startswith(name + ".")}
    assert after == {n: m for n, m in before.items() if n not in gone}


@pytest.mark.parametrize("name", ["3", "1.down", "0.up", "1.up.weight", "up", "", "1."])
def test_replace_refuses_a_name_that_is_no_submodule(model, name):
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match=f"Sequential has no submodule '{name}'"):
        replace_(model, name, nn.Identity())
    assert dict(model.named_modules()) == before


def test_observe_sees_every_linear_input_flattened_to_tokens(model):
    seen = {}
    with observe_inputs(model, lambda name, x: seen.update({name: x})):
        output = run(model, torch.arange(6).view(2, 3))
    assert {name: tuple(x.shape) for name, x in seen.items()} == {"1.up": (6, 4), "2": (6, 6)}
    assert torch.equal(seen["1.up"], model[0].weight[:6])
    assert not any(x.requires_grad for x in seen.values())
    assert not output.requires_grad
    assert run(model, torch.arange(6)).requires_grad  # gradients are on again


@pytest.mark.parametrize(
    ("shape", "tokens"), [((4,), 1), ((5, 4), 5), ((2, 3, 5, 4), 30), ((0, 4), 0)]
)
def test_observe_flattens_any_number_of_dimensions(model, shape, tokens):
    seen = []
    with observe_inputs(model[1], lambda name, x: seen.append((name, tuple(x.shape)))):
        model[1]["up"](torch.ones(shape))
    assert seen == [("up", (tokens, 4))]


def test_observed_inputs_are_detached_even_where_gradients_are_wanted(model):
    seen = []
    with observe_inputs(model, lambda name, x: seen.append(x.requires_grad)), torch.enable_grad():
        assert run(model, torch.arange(3)).requires_grad
    assert seen == [False, False]


def test_observe_leaves_the_output_alone(model):
    tokens = torch.arange(6).view(2, 3)
    expected = run(model, tokens)
    with observe_inputs(model, lambda name, x: torch.zeros(1)):
        assert torch.equal(run(model, tokens), expected)


def test_observe_ends_with_its_context(model):
    seen = []
    with observe_inputs(model, lambda name, x: seen.append(name)):
        run(model, torch.arange(3))
    assert seen == ["1.up", "2"]
    run(model, torch.arange(3))
    assert seen == ["1.up", "2"]


def test_observe_ends_after_an_exception_too(model):
    def fail(name, x):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), observe_inputs(model, fail):
        run(model, torch.arange(3))
    assert run(model, torch.arange(3)).requires_grad
    assert not any(m._forward_pre_hooks for m in model.modules())
