import copy

import pytest
import torch
import torch_pruning
from tiny_bert import build, double_loss, logits
from torch import nn
from transformers import BertForSequenceClassification

from compresslab import storage
from compresslab.measure import bytes_on_disk, count_flops, count_parameters
from compresslab.pruning.width import (
    choose_neurons,
    collect_gradients,
    gate_scores,
    magnitude_scores,
    remove_neurons_,
    taylor_scores,
)

LAYERS, HIDDEN, NEURONS = 2, 8, 12


@pytest.fixture
def model():
    model = build(hidden_size=HIDDEN, num_attention_heads=2, intermediate_size=NEURONS)
    for layer in model.bert.encoder.layer:
        layer.intermediate.dense.bias.data.normal_()  # zero at the start, where it would not count
    return model


def split(data, size):
    return [{n: x[i : i + size] for n, x in data.items()} for i in range(0, 8, size)]


def without_columns(model, keep):
    """A copy as wide as before, whose down has zeros in the columns that `keep` does not name."""
    masked = copy.deepcopy(model)
    for i, index in keep.items():
        weight = masked.bert.encoder.layer[i].output.dense.weight
        gone = torch.ones(weight.shape[1], dtype=torch.bool)
        gone[index] = False
        weight.data[:, gone] = 0
    return masked


def test_taylor_scores_rank_and_scale_as_those_of_torch_pruning(model, data):
    scores = taylor_scores(model, collect_gradients(model, split(data, 8), double_loss))
    peer = copy.deepcopy(model)
    double_loss(peer, data).backward()
    graph = torch_pruning.DependencyGraph().build_dependency(
        peer, {name: data[name] for name in ("input_ids", "attention_mask")}
    )
    importance = torch_pruning.importance.GroupTaylorImportance(
        group_reduction="sum", normalizer=None, bias=True
    )
    for i, layer in enumerate(peer.bert.encoder.layer):
        group = graph.get_pruning_group(
            layer.intermediate.dense, torch_pruning.prune_linear_out_channels, list(range(NEURONS))
        )
        # torch-pruning adds up in float32.
        torch.testing.assert_close(scores[i].float(), importance(group), rtol=1e-5, atol=0)


def test_taylor_scores_equal_a_direct_computation(model, data):
    gradients = collect_gradients(model, split(data, 4), double_loss)
    assert all(p.grad is None for p in model.parameters())
    scores = {
        (a, g): taylor_scores(model, gradients, absolute=a, group=g)
        for a in ("each", "sum")
        for g in (True, False)
    }
    double_loss(model, data).backward()
    for i, layer in enumerate(model.bert.encoder.layer):
        up, down = layer.intermediate.dense, layer.output.dense
        terms = [(p * p.grad).tolist() for p in (up.weight, up.bias, down.weight)]
        for n in range(NEURONS):
            column = [row[n] for row in terms[2]]
            for group, parts in ((True, [*terms[0][n], terms[1][n], *column]), (False, column)):
                each, total = sum(abs(part) for part in parts), abs(sum(parts))
                assert scores["each", group][i][n].item() == pytest.approx(each, rel=1e-9)
                assert scores["sum", group][i][n].item() == pytest.approx(total, rel=1e-9)
    # The two forms are not the same ranking, which is why one has to say which is meant.
    assert not torch.equal(scores["each", True][0].argsort(), scores["sum", True][0].argsort())


@pytest.mark.parametrize("size", [1, 3])
def test_no_score_depends_on_the_batch_size(model, data, size):
    whole = collect_gradients(model, [data], double_loss)
    parts = collect_gradients(model, split(data, size), double_loss)
    gates = gate_scores(model, [data], double_loss)
    for i in range(LAYERS):
        torch.testing.assert_close(parts[i], whole[i], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(
            gate_scores(model, split(data, size), double_loss)[i], gates[i], rtol=1e-9, atol=1e-12
        )


def test_gate_scores_are_the_column_s_sum_for_each_example(model, data):
    expected = [0.0] * LAYERS
    for example in split(data, 1):
        gradients = collect_gradients(model, [example], double_loss)
        scores = taylor_scores(model, gradients, absolute="sum", group=False)
        expected = [e + scores[i] / 8 for i, e in enumerate(expected)]
    ours = gate_scores(model, split(data, 4), double_loss)
    for i in range(LAYERS):
        torch.testing.assert_close(ours[i], expected[i], rtol=1e-9, atol=1e-12)


def test_scores_of_a_frozen_model_and_without_gradients_around_it(model, data):
    expected = collect_gradients(model, [data], double_loss)
    weights = model.bert.encoder.layer[0].intermediate.dense.weight.requires_grad_(False)
    with torch.no_grad():
        ours = collect_gradients(model, [data], double_loss)
        gates = gate_scores(model.requires_grad_(False), [data], double_loss)
    assert all(torch.equal(ours[i], expected[i]) for i in range(LAYERS))
    assert not weights.requires_grad
    assert gates[0].shape == (NEURONS,)


def test_a_constructed_ranking_is_that_of_ablation(model, data):
    """Neurons whose columns are weaker by a known factor: loss without each, one at a time."""
    strength = 0.02 * 2.0 ** -torch.randperm(NEURONS, generator=torch.Generator().manual_seed(3))
    model.bert.encoder.layer[1].output.dense.weight.data *= strength
    examples = split(data, 1)
    scores = gate_scores(model, [data], double_loss)[1]
    change = torch.empty(NEURONS, dtype=torch.float64)
    for n in range(NEURONS):
        masked = without_columns(model, {1: torch.tensor([m for m in range(NEURONS) if m != n])})
        with torch.no_grad():
            change[n] = torch.stack(
                [(double_loss(masked, e) - double_loss(model, e)).abs() for e in examples]
            ).mean()
    assert torch.equal(scores.argsort(), change.argsort())
    torch.testing.assert_close(scores, change, rtol=0.05, atol=0)


def test_magnitude_is_the_norm_of_row_bias_and_column(model):
    scores = magnitude_scores(model)
    up, down = (
        model.bert.encoder.layer[1].intermediate.dense,
        model.bert.encoder.layer[1].output.dense,
    )
    squares = up.weight.square().sum(1) + up.bias.square() + down.weight.square().sum(0)
    torch.testing.assert_close(scores[1], squares.sqrt().detach())
    assert not scores[1].requires_grad


def test_removing_neurons_equals_their_columns_at_zero(model, data):
    keep = {0: torch.tensor([0, 3, 4, 11]), 1: torch.tensor([7])}
    expected = logits(without_columns(model, keep), data)
    assert not torch.allclose(expected, logits(model, data), atol=1e-3)
    remove_neurons_(model, keep)
    torch.testing.assert_close(logits(model, data), expected, rtol=1e-9, atol=1e-12)
    assert model.config.intermediate_size == NEURONS  # the layers differ
    gradients = collect_gradients(model, [data], double_loss)
    assert [g.shape for g in gradients.values()] == [(4, 2 * HIDDEN + 1), (1, 2 * HIDDEN + 1)]


def test_keeping_all_in_another_order_changes_nothing(model, data):
    expected = logits(model, data)
    remove_neurons_(model, {0: torch.randperm(NEURONS)})
    torch.testing.assert_close(logits(model, data), expected, rtol=1e-9, atol=1e-12)


def test_parameters_bytes_and_flops_drop_by_the_formula(model, data):
    smaller = copy.deepcopy(model)
    remove_neurons_(smaller, {0: torch.arange(5), 1: torch.arange(2, 12)})
    removed, size, time = 7 + 2, 8, 7
    saved = count_parameters(model) - count_parameters(smaller)
    assert saved == removed * (2 * HIDDEN + 1)
    assert bytes_on_disk(model) - bytes_on_disk(smaller) == pytest.approx(8 * saved, abs=100)
    work = [count_flops(lambda m=m: logits(m, data)) for m in (model, smaller)]
    assert work[0] - work[1] == removed * 4 * size * time * HIDDEN


def test_an_equal_width_is_in_the_configuration_and_the_state_fits_it(model, data, tmp_path):
    model.bert.encoder.layer[0].output.dense.weight.requires_grad_(False)
    random = torch.random.get_rng_state()
    remove_neurons_(model, choose_neurons(magnitude_scores(model), 0.25))
    assert torch.equal(torch.random.get_rng_state(), random)
    assert model.config.intermediate_size == 9
    assert not model.bert.encoder.layer[0].output.dense.weight.requires_grad
    assert model.bert.encoder.layer[0].intermediate.dense.weight.requires_grad
    storage.save(model, tmp_path / "model.safetensors")
    again = BertForSequenceClassification(model.config).double().eval()
    again.load_state_dict(storage.load(tmp_path / "model.safetensors"))
    assert torch.equal(logits(again, data), logits(model, data))
    assert logits(again, data).isfinite().all()


def test_chosen_neurons_are_the_largest_of_each_layer_or_of_all():
    scores = {0: torch.tensor([0.1, 0.4, 0.2, 0.3]), 1: torch.tensor([5.0, 8.0, 6.0, 7.0])}

    def chosen(*args, **options):
        return {i: index.tolist() for i, index in choose_neurons(scores, *args, **options).items()}

    assert chosen(0.0) == {0: [0, 1, 2, 3], 1: [0, 1, 2, 3]}
    assert chosen(0.5) == {0: [1, 3], 1: [1, 3]}
    assert chosen(0.5, globally=True) == {0: [1], 1: [1, 2, 3]}  # 0.4 stays, as its layer's best
    assert chosen(0.75, globally=True) == {0: [1], 1: [1]}
    with pytest.raises(ValueError, match=r"sparsity 1\.0 leaves a layer without neurons"):
        chosen(1.0)
    with pytest.raises(ValueError, match="leaves a layer without neurons"):
        chosen(0.875, globally=True)
    with pytest.raises(ValueError, match="NaN"):
        choose_neurons({0: torch.tensor([1.0, float("nan")])}, 0.5)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({2: torch.tensor([0])}, "layers are 0 to 1, not 2"),
        ({0: torch.tensor([], dtype=torch.int64)}, r"int64 of shape \(1 or more,\)"),
        ({0: torch.ones(NEURONS, dtype=torch.bool)}, r"not torch.bool of shape \(12,\)"),
        ({0: torch.tensor([0]), 1: torch.tensor([0, 12])}, "distinct numbers from 0 to 11"),
        ({0: torch.tensor([0]), 1: torch.tensor([3, 3])}, "distinct numbers from 0 to 11"),
        ({1: torch.tensor([-1])}, "distinct numbers from 0 to 11"),
    ],
)
def test_bad_neurons_are_refused_and_nothing_is_removed(model, keep, message):
    before = count_parameters(model)
    with pytest.raises(ValueError, match=message):
        remove_neurons_(model, keep)
    assert count_parameters(model) == before


def test_other_bad_input_is_refused(model):
    with pytest.raises(ValueError, match="absolute must be 'each' or 'sum', not 'none'"):
        taylor_scores(model, {}, absolute="none")
    with pytest.raises(ValueError, match=r"layer 0 must have shape \(12, 17\), not \(12, 16\)"):
        taylor_scores(model, {0: torch.ones(12, 16)})
    for collect in (collect_gradients, gate_scores):
        with pytest.raises(ValueError, match="batches is empty"):
            collect(model, [], double_loss)
    with pytest.raises(ValueError, match="Linear has no layers of a BERT"):
        magnitude_scores(nn.Linear(2, 2))
