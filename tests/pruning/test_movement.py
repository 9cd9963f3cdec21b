import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from compresslab.pruning.magnitude import magnitude_masks
from compresslab.pruning.masks import hold_masks, keep_largest, keep_largest_globally
from compresslab.pruning.movement import (
    MaskedLinear,
    add_masks_,
    kept,
    merge_masks_,
    regularization,
    set_kept_,
    set_threshold_,
)
from compresslab.pruning.schedule import cubic_sparsity
from compresslab.training import train

F64 = torch.float64


def make(scores="movement", *, seed=0):
    """Two masked layers of different sizes, the scores of the second larger."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3, bias=False)).to(F64)
    add_masks_(model, scores=scores)
    if scores == "movement":
        for scale, layer in zip((1, 5), (model[0], model[2]), strict=True):
            draw = torch.randn(layer.weight.shape, dtype=F64, generator=generator)
            layer.scores.data.copy_(scale * draw)
    return model


@pytest.fixture
def x():
    return torch.randn(4, 5, 6, dtype=F64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("scores", ["movement", "magnitude"])
def test_a_model_with_masks_starts_as_the_model_it_was(scores, x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3)).to(F64).eval()
    weight, expected = model[0].weight, model(x)
    state = torch.get_rng_state()
    add_masks_(model, scores=scores)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(model(x), expected)
    assert model[0].weight is weight
    assert not model[0].training
    assert kept(model) == 1
    if scores == "movement":
        assert not model[0].scores.any()
        assert model[0].scores.dtype == F64
    else:
        assert set(dict(model[0].named_parameters())) == {"weight", "bias"}


def test_gradients_are_those_of_the_paper(x):
    layer = make()[0]
    layer.mask.copy_(torch.rand(10, 6, generator=torch.Generator().manual_seed(2)) < 0.5)
    target = torch.randn(4, 5, 10, dtype=F64)
    output = layer(x)
    (output - target).square().sum().backward()
    outer = torch.einsum("bto,bti->oi", 2 * (output - target).detach(), x)  # ∂L/∂a_i · x_j
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(layer.weight.grad, outer * layer.mask, **close)
    torch.testing.assert_close(layer.scores.grad, outer * layer.weight.detach(), **close)
    assert (layer.scores.grad[~layer.mask] != 0).all()
    torch.testing.assert_close(layer.bias.grad, 2 * (output - target).sum((0, 1)), **close)


def test_gradients_equal_those_of_a_detached_difference_through_two_layers(x):
    model = make()
    set_kept_(model, 0.4)
    model(x).square().mean().backward()
    parameters = {n: p.detach().clone().requires_grad_() for n, p in model.named_parameters()}
    hidden = x
    for name in ("0", "2"):
        scores, mask = parameters[f"{name}.scores"], model.get_submodule(name).mask
        weight = parameters[f"{name}.weight"] * (mask + (scores - scores.detach()))
        hidden = F.linear(hidden, weight, parameters.get(f"{name}.bias"))
        hidden = hidden.tanh() if name == "0" else hidden
    hidden.square().mean().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, parameters[name].grad, rtol=1e-12, atol=1e-15)


def test_by_magnitude_pruned_weights_get_no_gradient(x):
    layer = make("magnitude")[0]
    set_kept_(layer, 0.5)
    layer(x).square().sum().backward()
    assert (layer.weight.grad[~layer.mask] == 0).all()
    assert (layer.weight.grad[layer.mask] != 0).all()


@given(st.floats(0, 1), st.integers(0, 3), st.booleans(), st.integers(0, 99))
def test_the_weights_kept_are_those_of_keep_largest_also_when_scores_tie(v, levels, globally, seed):
    model = make()
    generator = torch.Generator().manual_seed(seed)
    scores = {}
    for name in ("0", "2"):
        layer = model.get_submodule(name)
        draw = torch.randint(levels + 1, layer.scores.shape, generator=generator)
        scores[name] = layer.scores.data.copy_(draw - 1)
    set_kept_(model, v, globally=globally)
    if globally:
        expected = keep_largest_globally(scores, 1 - v)
    else:
        expected = {name: keep_largest(s, 1 - v) for name, s in scores.items()}
    assert all(torch.equal(model.get_submodule(n).mask, mask) for n, mask in expected.items())


def test_counts_are_exact_locally_and_globally():
    model = make()
    set_kept_(model, 0.3)
    assert [int(layer.mask.sum()) for layer in (model[0], model[2])] == [18, 9]
    assert kept(model) == 27 / 90
    set_kept_(model, 0.3, globally=True)
    counts = [int(layer.mask.sum()) for layer in (model[0], model[2])]
    assert sum(counts) == 27
    assert counts[1] > 9  # its scores are larger


@pytest.mark.parametrize("globally", [False, True])
def test_all_or_nothing_may_be_kept(globally, x):
    model = make()
    dense = model(x)
    set_kept_(model, 0, globally=globally)
    assert kept(model) == 0
    assert not model(x).any()
    set_kept_(model, 1, globally=globally)
    assert kept(model) == 1
    assert torch.equal(model(x), dense)


def test_the_first_of_equal_scores_stay():
    model = nn.Sequential(nn.Linear(2, 2))
    add_masks_(model)
    set_kept_(model, 0.5)
    assert model[0].mask.tolist() == [[True, True], [False, False]]


@pytest.mark.parametrize("globally", [False, True])
@pytest.mark.parametrize("v", [0, 0.1, 0.5, 1])
def test_magnitude_equals_magnitude_masks(v, globally):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3, bias=False)).to(F64)
    expected = magnitude_masks(plain, 1 - v, globally=globally)
    model = make("magnitude")
    set_kept_(model, v, globally=globally)
    assert all(torch.equal(model.get_submodule(n).mask, mask) for n, mask in expected.items())


def test_threshold_is_on_the_sigmoid_of_the_scores():
    layer = MaskedLinear(nn.Linear(3, 1))
    layer.scores.data = torch.tensor([[-3.0, 0.0, 0.1]])
    for threshold, mask in [(0, [1, 1, 1]), (0.1, [0, 1, 1]), (0.5, [0, 0, 1]), (1, [0, 0, 0])]:
        set_threshold_(layer, threshold)
        assert layer.mask.int().tolist() == [mask]


def test_regularization_is_the_mean_over_layers_of_the_mean_sigmoid():
    model = make()
    layers = (model[0], model[2])
    value = regularization(model)
    means = [(1 / (1 + (-layer.scores).exp())).mean() for layer in layers]
    torch.testing.assert_close(value, (means[0] + means[1]) / 2, rtol=1e-13, atol=0)
    value.backward()
    for layer in layers:
        s = layer.scores.detach().sigmoid()
        expected = s * (1 - s) / s.numel() / 2
        torch.testing.assert_close(layer.scores.grad, expected, rtol=1e-12, atol=0)
        assert layer.weight.grad is None


def test_merged_model_computes_exactly_the_same(x):
    model = make().eval()
    model[0].bias.requires_grad_(False)
    set_kept_(model, 0.35)
    expected, masks = model(x), {"0": model[0].mask, "2": model[2].mask}
    before = copy.deepcopy(model.state_dict())
    merged = copy.deepcopy(model)
    returned = merge_masks_(merged)
    assert torch.equal(merged(x), expected)
    assert type(merged[0]) is type(merged[2]) is nn.Linear
    assert (merged[2].bias, merged[0].bias.requires_grad) == (None, False)
    assert not merged[0].training
    assert returned.keys() == masks.keys()
    for name, mask in masks.items():
        assert torch.equal(returned[name], mask)
        assert torch.equal(merged.get_submodule(name).weight != 0, mask)
    for layer in (merged[0], merged[2]):
        nn.init.zeros_(layer.weight)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_merging_keeps_the_random_numbers_and_its_masks_hold():
    model = make()
    set_kept_(model, 0.5)
    state = torch.get_rng_state()
    masks = merge_masks_(model)
    assert torch.equal(torch.get_rng_state(), state)
    nn.init.ones_(model[0].weight)
    hold_masks(model, masks)(1, 1)
    assert model[0].weight.sum() == 30


class Batches(list):
    """What `train` iterates: here of (x, y)."""


def regression(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean()


def toward_zero(scores):
    """Tune a layer whose large weight has to shrink and whose small one has to grow."""
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.3]])
    add_masks_(model, scores=scores)
    x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    batches = Batches([{"x": x, "y": x @ torch.tensor([[0.7], [0.6]])}])
    train(model, batches, regression, epochs=20, learning_rate=0.02, progress=False)
    set_kept_(model, 0.5)
    return model[0]


def test_movement_prunes_the_weight_that_shrinks_and_magnitude_the_small_one():
    movement, magnitude = toward_zero("movement"), toward_zero("magnitude")
    for layer in (movement, magnitude):  # the first is still the larger one
        assert 1 > layer.weight[0, 0] > layer.weight[0, 1] > 0.3
    assert movement.mask.tolist() == [[False, True]]
    assert magnitude.mask.tolist() == [[True, False]]


@pytest.mark.parametrize("globally", [False, True])
@pytest.mark.parametrize("scores", ["movement", "magnitude"])
def test_the_schedule_prunes_while_training(scores, globally, x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
    add_masks_(model, scores=scores)
    rows = x.float().flatten(0, 1)
    batches = Batches([{"x": part, "y": part[:, :3]} for part in rows.split(5)])
    seen = []

    def prune(step, total):
        sparsity = cubic_sparsity(step, start=2, end=total - 2, final=0.8)
        set_kept_(model, 1 - sparsity, globally=globally)
        seen.append(kept(model))

    history = train(
        *(model, batches, regression),
        epochs=5,
        learning_rate=0.05,
        after_step=prune,
        progress=False,
    )
    assert history[-1]["loss"] < history[0]["loss"]
    assert seen[:2] == [1, 1]
    assert seen == sorted(seen, reverse=True)
    assert seen[-3:] == [18 / 90] * 3
    expected = model(rows)
    merge_masks_(model)
    assert torch.equal(model(rows), expected)
    assert sum(int((model[i].weight != 0).sum()) for i in (0, 2)) == 18


def test_soft_movement_prunes_more_the_larger_lambda_is(x):
    def tuned(weight):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3))
        add_masks_(model)
        rows = x.float().flatten(0, 1)
        train(
            model,
            Batches([{"x": rows, "y": rows[:, :3]}]),
            lambda model, batch: regression(model, batch) + weight * regularization(model),
            epochs=20,
            learning_rate=0.02,
            after_step=lambda step, total: set_threshold_(model, 0.49 * step / total),
            progress=False,
        )
        return kept(model)

    assert 1 > tuned(0.0) > tuned(1.0) > tuned(100.0) == 0


def test_the_masks_are_part_of_the_state(x):
    model, other = make(), make(seed=3)
    set_kept_(model, 0.5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))


def test_bad_input_is_named():
    model = make()
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
            set_kept_(model, fraction)
        with pytest.raises(ValueError, match="threshold must be between 0 and 1"):
            set_threshold_(model, fraction)
    model[2].scores.data[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"shape \(30,\) have a NaN"):
        set_kept_(model, 0.5)
    assert kept(model) == 1
    plain = nn.Sequential(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="'movement' or 'magnitude', not 'taylor'"):
        add_masks_(plain, scores="taylor")
    assert type(plain[0]) is nn.Linear
    with pytest.raises(ValueError, match="no linear layer"):
        add_masks_(nn.Sequential(nn.Tanh()))
    with pytest.raises(ValueError, match="no linear layer"):
        add_masks_(model)
    for function in (kept, regularization):
        with pytest.raises(ValueError, match="no masked layer"):
            function(plain)
    with pytest.raises(ValueError, match="no masked layer"):
        set_kept_(plain, 0.5)
    magnitude = make("magnitude")
    with pytest.raises(ValueError, match="no trained scores"):
        regularization(magnitude)
    with pytest.raises(ValueError, match="no trained scores"):
        set_threshold_(magnitude, 0.1)
