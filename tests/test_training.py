import copy
import math
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.nn import functional as F

from compresslab.models import load_classifier
from compresslab.training import TextBatches, classification_loss, train


class Words:
    """A tokenizer whose tokens are the numbers that a text consists of."""

    pad_token_id = 99

    def __call__(self, texts, truncation, max_length):
        assert truncation
        return {"input_ids": [[int(w) for w in text.split()][:max_length] for text in texts]}


def dataset(rows, seed=0):
    """Sentences of 1 to 12 words; the first word is the number of the row."""
    lengths = torch.randint(0, 12, (rows,), generator=torch.Generator().manual_seed(seed))
    return Dataset.from_dict(
        {
            "text": [" ".join([str(1000 + i)] + ["7"] * n) for i, n in enumerate(lengths.tolist())],
            "label": [i % 3 for i in range(rows)],
        }
    )


def rows_of(batches):
    return [int(i) - 1000 for batch in batches for i in batch["input_ids"][:, 0]]


# ---------------------------------------------------------------- batches


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("rows", "size"), [(1, 4), (7, 1), (8, 4), (9, 4), (3, 10), (150, 4)])
def test_every_row_comes_once_an_epoch_whole_with_its_label(rows, size, shuffle):
    data = dataset(rows)
    batches = TextBatches(data, Words(), batch_size=size, shuffle=shuffle)
    for _ in range(2):
        passed = list(batches)
        assert len(passed) == len(batches) == math.ceil(rows / size)
        assert all(0 < len(batch["labels"]) <= size for batch in passed)
        assert sorted(rows_of(passed)) == list(range(rows))
        for batch in passed:
            for ids, mask, label, place in zip(*batch.values(), strict=True):
                row = int(place)
                assert int(ids[0]) - 1000 == row
                words = [int(w) for w in data["text"][row].split()]
                assert ids.tolist() == words + [99] * (len(ids) - len(words))
                assert mask.tolist() == [1] * len(words) + [0] * (len(ids) - len(words))
                assert label == data["label"][row]


def test_batches_are_int64_and_no_longer_than_their_longest_row():
    for batch in TextBatches(dataset(50), Words(), batch_size=8, shuffle=True):
        assert list(batch) == ["input_ids", "attention_mask", "labels", "rows"]
        assert {tensor.dtype for tensor in batch.values()} == {torch.int64}
        assert batch["attention_mask"].sum(1).max() == batch["input_ids"].shape[1]


def test_unshuffled_order_is_longest_first_and_index_maps_it_back():
    batches = TextBatches(dataset(50), Words(), batch_size=8)
    lengths = [int(n) for batch in batches for n in batch["attention_mask"].sum(1)]
    assert lengths == sorted(lengths, reverse=True)
    assert rows_of(batches) == batches.index
    assert rows_of(batches) == rows_of(batches)


def test_shuffled_order_differs_from_epoch_to_epoch_and_repeats_with_the_seed():
    def epochs(seed):
        batches = TextBatches(dataset(90), Words(), batch_size=4, shuffle=True, seed=seed)
        return [rows_of(batches) for _ in range(3)]

    first = epochs(1)
    assert first[0] != first[1] != first[2] != first[0]
    assert epochs(1) == first
    assert epochs(2)[0] != first[0]


def test_shuffled_epochs_mix_the_rows_of_a_batch_anew():
    batches = TextBatches(dataset(400), Words(), batch_size=4, shuffle=True)
    first, second = ({frozenset(rows_of([b])) for b in batches} for _ in range(2))
    assert len(first & second) < 10  # of 100


def test_shuffled_batches_do_not_come_by_length():
    batches = TextBatches(dataset(64), Words(), batch_size=4, shuffle=True)
    lengths = [batch["input_ids"].shape[1] for batch in batches]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_shuffled_batches_hold_little_padding():
    batches = TextBatches(dataset(400), Words(), batch_size=4, shuffle=True)
    masks = [batch["attention_mask"] for batch in batches]
    assert sum(int(m.sum()) for m in masks) > 0.9 * sum(m.numel() for m in masks)


def test_long_rows_are_cut_to_max_length():
    batches = TextBatches(dataset(50), Words(), max_length=3)
    assert max(batch["input_ids"].shape[1] for batch in batches) == 3


def test_data_without_rows_is_refused():
    with pytest.raises(ValueError, match="no rows"):
        TextBatches(Dataset.from_dict({"text": [], "label": []}), Words())


def test_padding_is_the_one_of_the_real_tokenizer():
    _, tokenizer = load_classifier(adapter=None)
    texts = ["a fine film", "dull", "I have never seen a worse film than this, ever"]
    data = Dataset.from_dict({"text": texts, "label": [1, 0, 0]})
    batches = TextBatches(data, tokenizer)
    (batch,) = batches
    expected = tokenizer([texts[i] for i in batches.index], padding=True, return_tensors="pt")
    assert torch.equal(batch["input_ids"], expected["input_ids"])
    assert torch.equal(batch["attention_mask"], expected["attention_mask"])


# ---------------------------------------------------------------- training


class Toy(nn.Module):
    """A linear regression with a mode that changes what it computes."""

    def __init__(self, dtype=torch.float64):
        super().__init__()
        self.linear = nn.Linear(3, 1, dtype=dtype)
        self.drop = nn.Dropout(0.0)

    def forward(self, x):
        return self.linear(x)


def regression(rows=6, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 8, 3, generator=generator, dtype=dtype)
    return [{"x": each, "y": each @ torch.tensor([1.0, -2, 3], dtype=dtype) + 1} for each in x]


def squared_error(model, batch):
    return F.mse_loss(model(batch["x"]).squeeze(-1), batch["y"])


def toy(dtype=torch.float64):
    torch.manual_seed(0)
    return Toy(dtype)


class Constant(nn.Module):
    """One weight vector, whose loss has the same gradient everywhere."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(4, dtype=torch.float64))


def fit(model, batches=None, loss=squared_error, **options):
    return train(
        model, regression() if batches is None else batches, loss, **{"progress": False} | options
    )


def test_loss_falls_on_a_problem_that_can_be_solved():
    model = toy()
    history = fit(model, epochs=60, learning_rate=0.1)
    assert [entry["epoch"] for entry in history] == list(range(1, 61))
    assert history[-1]["loss"] < 1e-3 * history[0]["loss"]
    assert torch.allclose(
        model.linear.weight, torch.tensor([[1.0, -2, 3]], dtype=torch.float64), atol=0.05
    )


@pytest.mark.parametrize(
    ("warmup", "rise"), [(0.0, 1), (0.1, 2), (0.5, 10), (1.0, 20)], ids=lambda v: str(v)
)
def test_learning_rate_rises_and_falls_linearly(warmup, rise):
    model, before, rates = Constant(), [torch.zeros(4)], []

    def after_step(step, total):
        # Under a constant gradient Adam moves every weight by the learning rate.
        rates.append((before[0] - model.w.detach()).mean().item())
        before[0] = model.w.detach().clone()

    fit(
        model,
        [{"x": torch.zeros(1)}] * 5,
        lambda model, batch: model.w.sum(),
        epochs=4,
        learning_rate=0.1,
        weight_decay=0.0,
        warmup=warmup,
        after_step=after_step,
    )
    expected = [
        0.1 * (step / rise if step <= rise else (21 - step) / (21 - rise)) for step in range(1, 21)
    ]
    assert rates == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("clip", [0.05, 1.0, 1e9])
def test_training_is_adamw_on_clipped_gradients(clip):
    model, other = toy(), toy()
    fit(model, learning_rate=0.1, weight_decay=0.3, warmup=0.0, clip=clip)
    optimizer = torch.optim.AdamW(other.parameters(), lr=0.1, weight_decay=0.3)
    for step, batch in enumerate(regression()):
        optimizer.zero_grad()
        squared_error(other, batch).backward()
        norm = torch.cat([p.grad.flatten() for p in other.parameters()]).norm().item()
        for parameter in other.parameters():
            parameter.grad *= min(1.0, clip / (norm + 1e-6))
        optimizer.param_groups[0]["lr"] = 0.1 * (6 - step) / 6
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-12, atol=1e-12)


class Scored(Toy):
    """A toy with a parameter beside its weights."""

    def __init__(self):
        super().__init__()
        self.scores = nn.Parameter(torch.ones(1, dtype=torch.float64))
        self.linear.scores = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return super().forward(x) * self.scores * self.linear.scores


def test_own_rates_are_those_of_the_named_parameters_without_weight_decay():
    torch.manual_seed(0)
    model = Scored()
    other = copy.deepcopy(model)
    fit(model, learning_rate=0.1, own_rates={"scores": 0.02}, weight_decay=0.3, warmup=0.0)
    scores = [other.scores, other.linear.scores]
    optimizer = torch.optim.AdamW(
        [
            {"params": [other.linear.weight, other.linear.bias], "lr": 0.1, "weight_decay": 0.3},
            {"params": scores, "lr": 0.02, "weight_decay": 0.0},
        ]
    )
    for step, batch in enumerate(regression()):
        optimizer.zero_grad()
        squared_error(other, batch).backward()
        nn.utils.clip_grad_norm_(other.parameters(), 1.0)
        for group, rate in zip(optimizer.param_groups, (0.1, 0.02), strict=True):
            group["lr"] = rate * (6 - step) / 6
        optimizer.step()
    torch.testing.assert_close(model.state_dict(), other.state_dict(), rtol=1e-12, atol=1e-12)


def test_all_that_trains_may_have_rates_of_its_own():
    model = toy()
    before = copy.deepcopy(model.state_dict())
    fit(model, own_rates={"weight": 0.1, "bias": 0.0})
    assert torch.equal(model.linear.bias, before["linear.bias"])
    assert (model.linear.weight != before["linear.weight"]).all()


@pytest.mark.parametrize("name", ["score", "linear.weight", "bias"])
def test_a_rate_for_nothing_that_trains_is_refused(name):
    model = toy()
    model.linear.bias.requires_grad_(False)
    with pytest.raises(ValueError, match=f"own_rates names '{name}'"):
        fit(model, own_rates={name: 0.1})


def test_gradients_from_before_do_not_count():
    model, other = toy(), toy()
    squared_error(model, regression()[0]).backward()
    model.linear.weight.grad *= -1000
    fit(model)
    fit(other)
    assert torch.equal(model.linear.weight, other.linear.weight)
    assert model.linear.weight.grad is None


def test_frozen_parameters_stay_as_they_are():
    model = toy()
    model.linear.bias.requires_grad_(False)
    weight, bias = model.linear.weight.detach().clone(), model.linear.bias.clone()
    fit(model, weight_decay=0.5)
    assert torch.equal(model.linear.bias, bias)
    assert model.linear.bias.grad is None
    assert (model.linear.weight != weight).all()


def test_after_step_counts_from_one_to_the_total_across_epochs():
    calls = []
    fit(toy(), epochs=2, after_step=lambda step, total: calls.append((step, total)))
    assert calls == [(step, 12) for step in range(1, 13)]


def test_what_after_step_masks_stays_masked():
    model = toy()

    def mask(step, total):
        with torch.no_grad():
            model.linear.weight[0, 1] = 0

    fit(model, epochs=2, after_step=mask)
    assert model.linear.weight[0, 1] == 0


def test_validation_joins_the_history_and_sees_evaluation_mode():
    model, modes, losses = toy(), [], []

    def loss(model, batch):
        modes.append(model.training and model.drop.training)
        losses.append(squared_error(model, batch))
        return losses[-1]

    def validate(validated):
        assert validated is model
        modes.append("validate")
        return {"evaluating": not (model.training or model.drop.training)}

    history = fit(model, loss=loss, epochs=2, validate=validate)
    assert modes == ([True] * 6 + ["validate"]) * 2
    assert history == [
        {"epoch": 1, "loss": pytest.approx(sum(losses[:6]).item() / 6), "evaluating": True},
        {"epoch": 2, "loss": pytest.approx(sum(losses[6:]).item() / 6), "evaluating": True},
    ]


def test_model_is_left_in_evaluation_mode():
    model = toy()
    fit(model.train())
    assert not model.training
    assert not model.drop.training


def test_bfloat16_is_of_the_forward_pass_alone():
    model, seen = toy(torch.float32), []

    def loss(model, batch):
        output = model(batch["x"])
        seen.append(output.dtype)
        return F.mse_loss(output.squeeze(-1).float(), batch["y"])

    data = regression(dtype=torch.float32)
    history = fit(model, data, loss, dtype=torch.bfloat16, epochs=20, learning_rate=0.1)
    assert set(seen) == {torch.bfloat16}
    assert model.linear.weight.dtype == torch.float32
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    seen.clear()
    fit(model, data, loss)
    assert set(seen) == {torch.float32}


def test_model_without_anything_to_train_is_refused():
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        fit(toy().requires_grad_(False))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_no_number_stops_before_the_weights_are_ruined(bad):
    model, good = toy(), []

    def loss(model, batch):
        return squared_error(model, batch) * (bad if len(good) == 2 else 1.0)

    with pytest.raises(ValueError, match=f"the loss is {bad} at step 3: lower the learning rate"):
        fit(
            model,
            loss=loss,
            after_step=lambda step, total: good.append(model.linear.weight.detach().clone()),
        )
    assert torch.equal(model.linear.weight, good[1])
    assert good[1].isfinite().all()


@pytest.mark.parametrize("progress", [True, False])
def test_only_the_progress_bar_prints(capsys, progress):
    fit(toy(), progress=progress)
    out, err = capsys.readouterr()
    assert out == ""
    assert ("6/6" in err) is progress
    assert (err != "") is progress


def test_classification_loss_is_the_mean_cross_entropy_in_float32():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    seen = {}

    def model(**inputs):
        seen.update(inputs)
        return SimpleNamespace(logits=logits)

    batch = {"input_ids": torch.ones(5, 2), "attention_mask": torch.zeros(5, 2)}
    labels = torch.tensor([0, 2, 1, 1, 0])
    value = classification_loss(model, batch | {"labels": labels})
    exact = -logits.double().log_softmax(-1)[torch.arange(5), labels].mean()
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(exact.item(), rel=1e-6)
    assert seen == batch
