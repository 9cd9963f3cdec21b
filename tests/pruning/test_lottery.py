import copy
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compresslab.pruning.lottery import find_ticket, random_ticket, rewind_
from compresslab.pruning.magnitude import magnitude_masks
from compresslab.training import train

SIZES = {"0": 60, "2": 30}


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 10), nn.Tanh(), nn.Linear(10, 3), nn.BatchNorm1d(3))


def batches():
    x = torch.randn(32, 6, generator=torch.Generator().manual_seed(1))
    return [{"x": part, "y": part[:, :3].sin()} for part in x.split(8)]


def regression(model, batch):
    return (model(batch["x"]) - batch["y"]).square().mean()


def tune(model, after_step):
    options = {"learning_rate": 0.02, "after_step": after_step, "progress": False}
    train(model, batches(), regression, **options)


def early():
    """The weights after some steps of training."""
    model = make()
    tune(model, None)
    return copy.deepcopy(model.state_dict())


def search(**options):
    return find_ticket(make(), tune, early(), **{"rounds": 3, "fraction": 0.4} | options)


def counts(masks):
    return {name: int(mask.sum()) for name, mask in masks.items()}


@pytest.mark.parametrize("globally", [False, True])
def test_rewound_weights_equal_the_early_ones_under_the_mask(globally):
    ticket, found = search(globally=globally)
    for name, tensor in early().items():
        mask = found[-1].get(name.removesuffix(".weight")) if name.endswith("weight") else None
        expected = tensor if mask is None else torch.where(mask, tensor, 0)
        assert torch.equal(ticket.state_dict()[name], expected)
    assert ticket[0].weight.requires_grad


@given(st.integers(1, 4), st.sampled_from([0.0, 0.2, 0.4, 0.9, 1.0]))
def test_every_round_leaves_the_power_of_what_it_keeps(rounds, fraction):
    _, found = find_ticket(
        make(), lambda model, after_step: None, early(), rounds=rounds, fraction=fraction
    )
    assert [counts(masks) for masks in found] == [
        {name: n - round((1 - (1 - fraction) ** r) * n) for name, n in SIZES.items()}
        for r in range(1, rounds + 1)
    ]


def test_globally_the_count_is_that_of_all_layers_together():
    _, found = search(globally=True)
    each = [counts(masks) for masks in found]
    assert [sum(count.values()) for count in each] == [54, 32, 19]
    assert any(count["0"] != 2 * count["2"] for count in each)


@pytest.mark.parametrize("globally", [False, True])
def test_masks_lie_within_those_of_the_round_before(globally):
    _, found = search(rounds=4, globally=globally)
    for before, after in itertools.pairwise(found):
        for name in SIZES:
            assert not (after[name] & ~before[name]).any()
            assert not torch.equal(after[name], before[name])


def test_what_is_gone_stays_gone_when_all_that_is_left_trains_to_zero():
    def vanish(model, after_step):
        nn.init.zeros_(model[0].weight)

    model = make()
    nn.init.ones_(model[0].weight)
    last = torch.ones(10, 6)
    last[:5] = 0.5  # the first to go, and the first in the order of the weights

    def first(model, after_step):
        model[0].weight.data.copy_(last)

    trainings = iter([first, vanish])
    _, (one, two) = find_ticket(
        model,
        lambda model, after_step: next(trainings)(model, after_step),
        copy.deepcopy(model.state_dict()),
        rounds=2,
        fraction=0.5,
        layers=["0"],
    )
    assert torch.equal(one["0"], last == 1)
    assert not (two["0"] & ~one["0"]).any()
    assert two["0"].sum() == 15


def test_each_round_starts_at_the_early_weights_and_prunes_those_it_trained():
    starts, ends = [], []

    def watch(model, after_step):
        starts.append(copy.deepcopy(model.state_dict()))
        tune(model, after_step)
        ends.append(copy.deepcopy(model))

    checkpoint = early()
    _, found = find_ticket(make(), watch, checkpoint, rounds=3, fraction=0.4)
    assert all(torch.equal(starts[0][name], tensor) for name, tensor in checkpoint.items())
    for start, end, masks in zip(starts[1:], ends[1:], found, strict=False):
        assert torch.equal(start["0.weight"], checkpoint["0.weight"] * masks["0"])
        assert torch.equal(start["3.running_mean"], checkpoint["3.running_mean"])
        assert torch.equal(end[0].weight != 0, masks["0"])  # held at zero while training
    for r, (end, masks) in enumerate(zip(ends, found, strict=True), 1):
        expected = magnitude_masks(end, 1 - 0.6**r)
        assert all(torch.equal(masks[name], mask) for name, mask in expected.items())


def test_the_model_and_the_checkpoint_are_left_alone():
    model, checkpoint = make(), early()
    before, weights = copy.deepcopy(model.state_dict()), copy.deepcopy(checkpoint)
    ticket, _ = find_ticket(model, tune, checkpoint, rounds=2)
    tune(ticket, None)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in checkpoint.items())
    own, _ = find_ticket(model, tune, model.state_dict(), rounds=1)  # rewound to step 0
    assert torch.equal(own[0].bias, model[0].bias)


def test_only_the_layers_named_are_pruned():
    ticket, found = search(layers=["0"])
    assert [set(masks) for masks in found] == [{"0"}] * 3
    assert torch.equal(ticket[2].weight, early()["2.weight"])


def test_a_random_ticket_keeps_as_many_in_every_layer_at_other_places():
    _, found = search(globally=True)

    def draw(seed):
        return random_ticket(found[-1], generator=torch.Generator().manual_seed(seed))

    one, two = draw(0), draw(1)
    assert counts(one) == counts(two) == counts(found[-1])
    for name, mask in found[-1].items():
        assert one[name].dtype == torch.bool
        assert one[name].shape == mask.shape
        assert not torch.equal(one[name], mask)
        assert not torch.equal(one[name], two[name])
        assert torch.equal(one[name], draw(0)[name])
    model = make()
    rewind_(model, early(), one)
    assert torch.equal(model[0].weight, early()["0.weight"] * one["0"])


def test_a_random_ticket_keeps_every_weight_equally_often():
    mask = {"0": torch.tensor([True, False, False, False])}
    generator = torch.Generator().manual_seed(0)
    total = sum(random_ticket(mask, generator=generator)["0"].int() for _ in range(2000))
    assert ((total - 500).abs() < 100).all()  # five standard deviations


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("2.bias"), "1 names differ, as 2.bias"),
        (lambda c: c.update({"4.weight": torch.ones(1)}), "1 names differ, as 4.weight"),
        (
            lambda c: c.update({"2.weight": torch.ones(3, 9)}),
            r"2.weight has shape \(3, 9\) in the checkpoint and \(3, 10\) in the model",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_a_checkpoint_that_does_not_fit_is_refused_and_changes_nothing(change, message):
    model, checkpoint = make(seed=5), early()
    change(checkpoint)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=message):
        rewind_(model, checkpoint, {})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="rounds must be at least 1, not 0"):
        search(rounds=0)
    for fraction in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction must be between 0 and 1"):
            search(fraction=fraction)
    with pytest.raises(ValueError, match="layers names '1', no linear layer of Sequential"):
        search(layers=["0", "1"])
    with pytest.raises(ValueError, match="Tanh has no linear layer"):
        find_ticket(nn.Tanh(), tune, {}, rounds=1)
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        rewind_(make(), early(), {"0": torch.ones(3).bool()})
