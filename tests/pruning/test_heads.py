import copy
import math

import pytest
import torch
from tiny_bert import build, double_loss, logits
from torch import nn
from torch.nn import functional as F

from compresslab import storage
from compresslab.corpora import load_reviews
from compresslab.measure import bytes_on_disk, count_flops, count_parameters
from compresslab.models import load_classifier
from compresslab.pruning.heads import (
    ablate_heads,
    choose_heads,
    gate_heads,
    head_importance,
    remove_heads_,
)
from compresslab.training import TextBatches, classification_loss

LAYERS, HEADS, DIM, HIDDEN = 2, 4, 3, 12


@pytest.fixture
def model():
    return build(hidden_size=HIDDEN, num_attention_heads=HEADS, intermediate_size=20)


def split(data, size):
    """Batches of `size`, each padded to its longest sentence."""
    for start in range(0, 8, size):
        batch = {name: x[start : start + size] for name, x in data.items()}
        length = int(batch["attention_mask"].sum(1).max())
        yield {name: x[:, :length] if x.ndim == 2 else x for name, x in batch.items()}


def gated_loss(model, batch, gates):
    """The loss with explicit gates (layers, heads), written into the projection's weight."""
    values = {}
    for i, layer in enumerate(model.bert.encoder.layer):
        name = f"bert.encoder.layer.{i}.attention.output.dense.weight"
        weight = layer.attention.output.dense.weight
        values[name] = (weight.view(HIDDEN, HEADS, DIM) * gates[i][:, None]).reshape(weight.shape)
    inputs = {n: batch[n] for n in ("input_ids", "attention_mask")}
    out = torch.func.functional_call(model, values, kwargs=inputs).logits
    return F.cross_entropy(out, batch["labels"])


def stacked(scores):
    return torch.stack([scores[i] for i in range(LAYERS)])


def test_importance_is_the_mean_absolute_gradient_of_each_example(model, data):
    expected = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
    for example in split(data, 1):
        gates = torch.ones(LAYERS, HEADS, dtype=torch.float64, requires_grad=True)
        expected += torch.autograd.grad(gated_loss(model, example, gates), gates)[0].abs() / 8
    ours = stacked(head_importance(model, split(data, 8), double_loss))
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_importance_is_that_of_finite_differences(model, data):
    expected = torch.zeros(LAYERS, HEADS, dtype=torch.float64)
    ones, step = torch.ones(LAYERS, HEADS, dtype=torch.float64), 1e-5
    with torch.no_grad():
        for example in split(data, 1):
            for i in range(LAYERS):
                for h in range(HEADS):
                    change = torch.zeros_like(ones)
                    change[i, h] = step
                    up = gated_loss(model, example, ones + change)
                    down = gated_loss(model, example, ones - change)
                    expected[i, h] += ((up - down) / (2 * step)).abs() / 8
    ours = stacked(head_importance(model, split(data, 4), double_loss))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("size", [1, 3, 4])
def test_importance_does_not_depend_on_the_batch_size(model, data, size):
    whole = stacked(head_importance(model, [data], double_loss))
    parts = stacked(head_importance(model, split(data, size), double_loss))
    torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-12)


def test_importance_of_a_frozen_model_and_without_gradients_around_it(model, data):
    expected = stacked(head_importance(model, [data], double_loss))
    with torch.no_grad():
        ours = head_importance(model.requires_grad_(False), [data], double_loss)
    assert torch.equal(stacked(ours), expected)


def test_normalized_scores_have_norm_one_in_a_layer_and_zeros_stay(model, data):
    model.bert.encoder.layer[1].attention.output.dense.weight.data.zero_()
    plain = head_importance(model, [data], double_loss)
    scores = head_importance(model, [data], double_loss, normalize=True)
    torch.testing.assert_close(scores[0], plain[0] / plain[0].square().sum().sqrt())
    assert scores[0].norm() == pytest.approx(1)
    assert torch.equal(scores[1], torch.zeros(HEADS, dtype=torch.float64))


def test_a_constructed_ranking_is_that_of_ablation(model, data):
    """Heads that are weaker by a known factor: both ways rank them alike."""
    strength = torch.tensor([[1e-3, 1.0, 1e-2, 1e-1], [1e-1, 1e-3, 1.0, 1e-2]])
    for i, layer in enumerate(model.bert.encoder.layer):
        dense = layer.attention.output.dense
        dense.weight.data *= 0.01 * strength[i].repeat_interleave(DIM)
    examples = list(split(data, 1))

    def losses(model):
        with torch.no_grad():
            return torch.stack([double_loss(model, e) for e in examples])

    whole = losses(model)
    change = stacked(ablate_heads(model, lambda m: (losses(m) - whole).abs().mean()))
    scores = stacked(head_importance(model, [data], double_loss))
    assert torch.equal(scores.argsort(), strength.argsort())
    assert torch.equal(change.argsort(), strength.argsort())
    torch.testing.assert_close(scores, change, rtol=0.05, atol=0)  # first order: the heads are weak


def test_ablation_calls_quality_once_a_head_and_leaves_the_model(model, data):
    before = logits(model, data)
    seen = []
    results = ablate_heads(model, lambda m: seen.append(logits(m, data)) or len(seen))
    assert stacked(results).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert torch.equal(logits(model, data), before)
    for n, (i, h) in enumerate((i, h) for i in range(LAYERS) for h in range(HEADS)):
        smaller = copy.deepcopy(model)
        remove_heads_(smaller, {i: {h}})
        torch.testing.assert_close(seen[n], logits(smaller, data), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_removing_heads_equals_gates_at_zero(model, data, attention):
    model.set_attn_implementation(attention)
    heads = {0: {1, 3}, 1: {0, 1, 2}}
    gates = {i: torch.ones(HEADS, dtype=torch.float64) for i in heads}
    for i, gone in heads.items():
        gates[i][list(gone)] = 0
    with gate_heads(model, gates):
        expected = logits(model, data)
    assert not torch.allclose(expected, logits(model, data), atol=1e-3)
    remove_heads_(model, heads)
    torch.testing.assert_close(logits(model, data), expected, rtol=1e-9, atol=1e-12)


def test_removing_twice_counts_heads_anew_and_scores_follow(model, data):
    once = copy.deepcopy(model)
    remove_heads_(once, {0: {0, 2}})
    remove_heads_(model, {0: [2]})
    remove_heads_(model, {0: [0]})
    assert torch.equal(logits(model, data), logits(once, data))
    assert [len(s) for s in head_importance(model, split(data, 4), double_loss).values()] == [2, 4]


def test_parameters_bytes_and_flops_drop_by_the_formula(model, data):
    smaller = copy.deepcopy(model)
    remove_heads_(smaller, {0: {0}, 1: {1, 2}})
    removed, size, time = 3, 8, 7
    saved = count_parameters(model) - count_parameters(smaller)
    assert saved == removed * (4 * HIDDEN * DIM + 3 * DIM)
    assert bytes_on_disk(model) - bytes_on_disk(smaller) == pytest.approx(8 * saved, abs=200)
    work = [count_flops(lambda m=m: logits(m, data)) for m in (model, smaller)]
    linears, products = 8 * size * time * HIDDEN * DIM, 4 * size * time**2 * DIM
    assert work[0] - work[1] == removed * (linears + products)


def test_attributes_and_shapes_follow_and_a_frozen_weight_stays_frozen(model):
    dense = model.bert.encoder.layer[0].attention.output.dense
    dense.weight.requires_grad_(False)
    state = torch.random.get_rng_state()
    remove_heads_(model, {0: {0}})
    assert torch.equal(torch.random.get_rng_state(), state)
    attention = model.bert.encoder.layer[0].attention.self
    assert (attention.num_attention_heads, attention.all_head_size) == (3, 9)
    assert (attention.attention_head_size, attention.scaling) == (DIM, DIM**-0.5)
    assert (attention.query.out_features, dense.in_features, dense.out_features) == (9, 9, HIDDEN)
    assert attention.query.weight.requires_grad
    assert not dense.weight.requires_grad


def test_chosen_heads_are_the_smallest_but_the_best_of_each_layer_stays():
    scores = {0: torch.tensor([0.1, 0.2, 0.3]), 1: torch.tensor([5.0, 4.0, 6.0])}
    assert choose_heads(scores, 0.0) == {}
    assert choose_heads(scores, 1 / 6) == {0: {0}}
    assert choose_heads(scores, 3 / 6) == {0: {0, 1}, 1: {1}}  # 0.3 is smaller than 4, and stays
    assert choose_heads(scores, 4 / 6) == {0: {0, 1}, 1: {0, 1}}
    with pytest.raises(ValueError, match="leaves a layer without heads"):
        choose_heads(scores, 5 / 6)
    with pytest.raises(ValueError, match="NaN"):
        choose_heads({0: torch.tensor([1.0, math.nan, 2.0])}, 0.1)
    assert scores[0].tolist() == pytest.approx([0.1, 0.2, 0.3])


def test_bad_input_is_refused_and_nothing_is_removed(model, data):
    before = count_parameters(model)
    with pytest.raises(ValueError, match="heads has all 4 of layer 1: one must stay"):
        remove_heads_(model, {0: {0}, 1: {0, 1, 2, 3}})
    with pytest.raises(ValueError, match=r"heads of layer 0 are 0 to 3, not \[4\]"):
        remove_heads_(model, {0: {4}})
    with pytest.raises(ValueError, match="layers are 0 to 1, not 2"):
        remove_heads_(model, {0: {0}, 2: {0}})
    assert count_parameters(model) == before
    shapes = r"must have shape \(4,\) or \(batch, 4\), not \(3,\)"
    with pytest.raises(ValueError, match=shapes), gate_heads(model, {0: torch.ones(3)}):
        pass
    with pytest.raises(ValueError, match="batches is empty"):
        head_importance(model, [], double_loss)
    with pytest.raises(ValueError, match="Linear has no layers of a BERT"):
        remove_heads_(nn.Linear(2, 2), {})


def test_the_classifier_loses_heads_in_memory_and_on_disk(tmp_path):
    model, tokenizer = load_classifier()
    few = load_reviews()["validation"].select(range(16))
    batches = list(TextBatches(few, tokenizer, batch_size=8))
    scores = head_importance(model, batches, classification_loss, normalize=True)
    assert {tuple(s.shape) for s in scores.values()} == {(12,)}
    ones = head_importance(
        model, TextBatches(few, tokenizer, batch_size=1), classification_loss, normalize=True
    )
    for i in scores:
        torch.testing.assert_close(ones[i], scores[i], rtol=1e-3, atol=1e-5)
    heads = choose_heads(scores, 0.25)
    assert sum(map(len, heads.values())) == 18
    smaller = copy.deepcopy(model)
    remove_heads_(smaller, heads)
    gates = {
        i: torch.tensor([float(h not in gone) for h in range(12)]) for i, gone in heads.items()
    }
    with gate_heads(model, gates):
        expected = logits(model, batches[0])
    torch.testing.assert_close(logits(smaller, batches[0]), expected, rtol=1e-4, atol=1e-4)
    size = storage.save(smaller, tmp_path / "smaller.safetensors")
    saved = 4 * 18 * (4 * 384 * 32 + 3 * 32)
    assert bytes_on_disk(model) - size == pytest.approx(saved, abs=500)
    again = copy.deepcopy(model)
    remove_heads_(again, heads)
    again.load_state_dict(storage.load(tmp_path / "smaller.safetensors"))
    assert torch.equal(logits(again, batches[0]), logits(smaller, batches[0]))
    assert logits(again, batches[0]).isfinite().all()
