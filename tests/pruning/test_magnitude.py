import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compresslab.layers import find_linears
from compresslab.models import load_classifier
from compresslab.pruning.magnitude import magnitude_masks, sensitivity
from compresslab.pruning.masks import apply_masks_, sparsity_of
from compresslab.pruning.schedule import cubic_sparsity


@pytest.fixture(scope="module")
def encoder():
    return load_classifier()[0].bert.encoder


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.7, 1.0])
def test_a_layer_at_a_time_equals_torch(encoder, sparsity):
    masks = magnitude_masks(encoder, sparsity)
    for name, layer in list(find_linears(encoder).items())[:6]:
        theirs = nn.Linear(layer.in_features, layer.out_features)
        theirs.weight.data.copy_(layer.weight)
        prune.l1_unstructured(theirs, "weight", amount=sparsity)
        assert torch.equal(masks[name], theirs.weight_mask.bool())


def test_globally_equals_torch(encoder):
    masks = magnitude_masks(encoder, 0.6, globally=True)
    copies = {n: nn.Linear(m.in_features, m.out_features) for n, m in find_linears(encoder).items()}
    for name, layer in find_linears(encoder).items():
        copies[name].weight.data.copy_(layer.weight)
    prune.global_unstructured(
        [(m, "weight") for m in copies.values()], prune.L1Unstructured, amount=0.6
    )
    assert all(torch.equal(masks[n], m.weight_mask.bool()) for n, m in copies.items())
    assert sparsity_of(masks) == pytest.approx(0.6, abs=1e-6)


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ValueError, match="no linear layer"):
        magnitude_masks(nn.ReLU(), 0.5)


def test_the_scan_prunes_one_layer_at_a_time_and_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = [p.clone() for p in model.parameters()]

    def zeros(model):
        return tuple(int((layer.weight == 0).sum()) for layer in model)

    assert sensitivity(model, [0.0, 0.25, 0.5], zeros) == {
        "0": [(0, 0), (4, 0), (8, 0)],
        "1": [(0, 0), (0, 4), (0, 8)],
    }
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_masks_of_zero_and_one_keep_all_and_nothing():
    model = nn.Sequential(nn.Linear(3, 5))
    apply_masks_(model, magnitude_masks(model, 0.0))
    assert (model[0].weight != 0).all()
    apply_masks_(model, magnitude_masks(model, 1.0))
    assert (model[0].weight == 0).all()


def test_the_schedule_is_the_paper_s_between_its_ends_and_flat_outside():
    def at(step):
        return cubic_sparsity(step, start=10, end=20, initial=0.2, final=0.9)

    assert at(0) == at(10) == pytest.approx(0.2)
    assert at(20) == at(99) == pytest.approx(0.9)
    assert at(15) == pytest.approx(0.9 + (0.2 - 0.9) * (1 - 0.5) ** 3)
    assert all(at(s) <= at(s + 1) for s in range(30))
    with pytest.raises(ValueError, match="start must be before end"):
        cubic_sparsity(0, start=5, end=5, final=0.5)
