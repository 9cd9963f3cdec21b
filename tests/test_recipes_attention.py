"""What the recipes of lecture 7 compute, on models and lengths that take seconds."""

import math
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from small import batch, classifier, llama, randn
from torch.nn import functional as F

from compresslab.attention.full import full_attention
from compresslab.attention.hedgehog import LearnedMap
from compresslab.attention.sliding_window import window_attention
from compresslab.distillation.attention import observe_heads
from compresslab.measure import count_flops
from compresslab.recipes import (
    attention_converted,
    attention_cost,
    attention_quality,
    attention_scaling,
    attention_streaming,
)

SIZES = {"hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2}


# ---------------------------------------------------------------- cost


def test_operations_are_those_that_are_counted():
    model, ids = llama(**SIZES), torch.zeros(1, 24, dtype=torch.long)
    work = attention_cost.operations(model, 24)
    assert count_flops(lambda: attention_cost.read(model, ids)) == sum(work.values())
    query = torch.zeros(1, 4, 24, 16)
    alone = count_flops(lambda: F.scaled_dot_product_attention(query, query, query))
    assert work["attention"] == 2 * alone


@pytest.mark.parametrize("form", attention_cost.BARE)
def test_the_clock_changes_nothing_but_the_form(form):
    model, ids = llama(**SIZES), torch.arange(24)[None]
    with torch.no_grad():
        expected = attention_cost.read(model, ids)
        clock = attention_cost.Clock(model)
        clock.form = attention_cost.BARE[form]
        torch.testing.assert_close(attention_cost.read(model, ids), expected)
    assert clock.seconds > 0


def test_costs_are_measured_at_each_length(monkeypatch):
    monkeypatch.setattr(attention_cost, "LENGTHS", (8,))
    monkeypatch.setattr(attention_cost, "TILES", (8, 64))
    timed = attention_cost.timed
    monkeypatch.setattr(
        attention_cost, "timed", lambda calls, **o: timed(calls, **o | {"seconds": 0})
    )
    model = llama(**SIZES)
    points = [attention_cost.in_model(length, model) for length in (8, 16)]
    alone = [attention_cost.alone(length) for length in (64, 256)]
    tiles = attention_cost.tiled(64)
    cache = attention_cost.cache(model)
    for point in points:
        for form in attention_cost.FORMS:
            share = point[form]["share"]
            assert 0 < share["low"] <= share["value"] <= share["high"] < 1
            assert point[form]["bytes"] > 0
    found = attention_cost.overtakes(points)
    work = attention_cost.operations(model, 1000)
    exact = 1000 * work["rest"] / work["attention"]  # but for the last layer, of one token
    assert found["operations"] == pytest.approx(exact, rel=0.1)
    for point in alone:
        assert point["full"]["difference"] == 0
        assert max(point[name]["difference"] for name in ("torch", "flash")) < 1e-5
        assert point["full"]["bytes"] > point["scores_bytes"] == 4 * 4 * point["length"] ** 2
    small, large = (point["full"]["saved_bytes"] for point in alone)
    assert large > 3 * small
    assert tiles[0]["bytes"] < tiles[1]["bytes"]
    assert cache["real"]["bytes"] == cache["real"]["arithmetic"]
    of_a_token = cache["contexts"][0]["bytes"] / cache["contexts"][0]["tokens"]
    assert (cache["as_much_as_weights"] - 1) * of_a_token < cache["weights"]
    assert cache["as_much_as_weights"] * of_a_token >= cache["weights"]


# ---------------------------------------------------------------- scaling


@pytest.mark.parametrize("slope", [0.0, 1.0, 2.0])
def test_the_exponent_of_a_power_is_found(slope):
    lengths = [256, 512, 1024, 2048]
    assert attention_scaling.exponent(lengths, [3.0 * n**slope for n in lengths]) == pytest.approx(
        slope
    )


def test_a_method_crosses_where_the_ratio_stays_above_one():
    lengths = [1, 2, 4, 8]
    crossing = attention_scaling.crossing
    assert crossing(lengths, [0.5, 2.0, 0.25, 4.0]) == pytest.approx(4 * 2**0.5)
    assert crossing(lengths, [1.0, 2.0, 3.0, 4.0]) == 1
    assert crossing(lengths, [2.0, 2.0, 2.0, 0.9]) is None
    assert crossing([1, 2], [0.5, 1.0]) == 2


def test_every_method_gives_numbers_of_the_shape_of_its_values():
    with torch.inference_mode():
        for name, call in attention_scaling.methods(130).items():
            out = call()
            out = out if isinstance(out, torch.Tensor) else out[1]
            assert out.isfinite().all(), name
            assert out.shape in ((1, 4, 130, 64), (1, 130, 256)), name


def test_a_method_is_measured_and_summed_up(monkeypatch):
    names = ["full", "linear attention", "Linformer", *attention_scaling.BASELINES]
    monkeypatch.setattr(
        attention_scaling, "timed", lambda calls: {name: [1.0] * 6 for name in calls}
    )
    found = [attention_scaling.measure(n, names) for n in (128, 256, 512, 1024)]
    points = {name: [point[name] for point in found] for name in names}
    every = {name: attention_scaling.summary(name, points[name], points) for name in names}
    assert every["full"]["memory_exponent"] > 1.5
    assert every["linear attention"]["memory_exponent"] < 1.2
    assert every["full"]["causal"]
    assert not every["Linformer"]["causal"]
    assert all(m["exponent"]["value"] == 0 and m["crossover"] == 128 for m in every.values())
    short = attention_scaling.summary("full", points["full"][:2], points)
    assert short["fitted"] == [128, 256]


def test_a_method_stops_before_it_needs_too_much():
    def goes_on(*points):
        return attention_scaling.goes_on([{"seconds": s, "bytes": b} for s, b in points])

    assert goes_on()
    assert goes_on((19.0, 1e6))
    assert goes_on((1.0, 1e6), (4.0, 1e6))
    assert not goes_on((2.0, 1e6), (8.0, 1e6))
    assert not goes_on((1.0, 5e8), (1.0, 2e9))


def test_all_are_timed_in_every_round():
    seen = []
    calls = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    times = attention_scaling.timed(calls, rounds=6, seconds=0)
    assert {name: len(own) for name, own in times.items()} == dict.fromkeys("abc", 6)
    rounds = [seen[-3 * i : len(seen) - 3 * i + 3] for i in range(6, 0, -1)]
    assert all(sorted(some) == ["a", "b", "c"] for some in rounds)


def test_what_the_next_length_would_take():
    assert attention_scaling.next_value([]) == attention_scaling.next_value([7.0]) == 0
    assert attention_scaling.next_value([1.0, 2.0, 8.0]) == 32


# ---------------------------------------------------------------- streaming


@pytest.mark.parametrize(("sinks", "window"), [(0, 5), (1, 4), (4, 9), (3, 1), (4, 60), (30, 30)])
def test_a_text_read_at_once_is_as_one_read_through_the_cache(sinks, window, monkeypatch):
    monkeypatch.setattr("compresslab.attention.sinks.BLOCK", 7)
    model = llama(**SIZES, eos_token_id=None).double()
    ids = torch.randint(50, (1, 40), generator=torch.Generator().manual_seed(0))
    slow = attention_streaming.one_by_one(model, ids[0], sinks=sinks, window=window)
    whole = attention_streaming.losses(model, ids)
    attention_streaming.use_(model, sinks=sinks, window=window)
    fast = attention_streaming.losses(model, ids)
    torch.testing.assert_close(fast[0], slow, atol=1e-4, rtol=0)
    assert ((fast - whole).abs().max() < 1e-6) == (sinks + window >= 40)


def test_losses_are_judged_by_segment():
    whole, other = randn(2, 4095).abs(), randn(2, 4095, seed=1).abs() + 1
    runs = [
        {"name": name, "length": 4096, "segments": attention_streaming.segments_of(x, 256).tolist()}
        for name, x in (("whole", whole), ("cache", other))
    ]
    assert runs[0]["segments"][1][0] == pytest.approx(whole[1, :255].mean().item())
    assert runs[0]["segments"][1][15] == pytest.approx(whole[1, -256:].mean().item())
    attention_streaming.judge_(runs)
    late = other[:, 1023:].mean() - whole[:, 1023:].mean()
    assert runs[1]["late_difference"]["value"] == pytest.approx(late.item(), abs=1e-5)
    assert runs[0]["late_difference"] == {"value": 0, "low": 0, "high": 0}
    expected = whole.mean().exp().item()
    assert runs[0]["perplexity"]["value"] == pytest.approx(expected, rel=1e-3)


# ---------------------------------------------------------------- quality


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def asked(example):
    """(text, position, answer) of every answer that is asked for."""
    ids, answers = example
    assert ids.shape == answers.shape
    for text, answer in zip(ids.tolist(), answers.tolist(), strict=True):
        for t, a in enumerate(answer):
            if a != attention_quality.IGNORE:
                yield text, t, a


def test_recall_asks_for_the_value_of_each_key_once():
    found = list(asked(attention_quality.recall(5, 3, generator())))
    assert len(found) == 15
    for text, t, answer in found:
        keys, values = text[:10:2], text[1:10:2]
        assert len(set(keys)) == 5
        assert sorted(text[10:]) == sorted(keys)
        assert t >= 10
        assert max(keys) < attention_quality.KEYS <= min(values)
        assert values[keys.index(text[t])] == answer


def test_a_copy_is_asked_for_letter_by_letter():
    for text, t, answer in asked(attention_quality.copying(6, 3, generator())):
        assert text[6] == attention_quality.LETTERS
        assert text[7:] == text[:5]
        assert answer == text[t - 6]
    assert len(list(asked(attention_quality.copying(6, 3, generator())))) == 18


def test_induction_asks_what_followed_the_sign():
    found = list(asked(attention_quality.induction(9, 50, generator())))
    assert len(found) == 50
    for text, t, answer in found:
        assert t == 8
        assert text.count(attention_quality.TOKENS) == 2
        assert text[8] == attention_quality.TOKENS
        assert text[text.index(attention_quality.TOKENS) + 1] == answer
    assert {text.index(attention_quality.TOKENS) for text, _, _ in found} == set(range(7))


def test_a_document_is_of_the_label_that_most_reviews_have():
    words = attention_quality.WORDS
    sentences = [torch.full((3, words), 5), torch.full((4, words), 6)]
    found = list(asked(attention_quality.document(sentences, 20, generator())))
    assert len(found) == 20
    places = set()
    for text, t, answer in found:
        assert t == attention_quality.REVIEWS * words - 1
        reviews = [set(text[i : i + words]) for i in range(0, len(text), words)]
        assert reviews.count({5 + answer}) == attention_quality.AGREE
        assert reviews.count({6 - answer}) == attention_quality.REVIEWS - attention_quality.AGREE
        places.add(tuple(review == {5 + answer} for review in reviews))
    often = list(asked(attention_quality.document(sentences, 20, generator(), often=True)))
    assert {t for _, t, _ in often} == set(
        range(words - 1, attention_quality.REVIEWS * words, words)
    )
    lead = {}
    for text, t, answer in often:
        read = text[: t + 1 : words]
        lead[t] = read.count(6) - read.count(5)
        assert lead[t] * (2 * answer - 1) > 0
    ties = sum(text[: n * words : words].count(5) * 2 == n for text, *_ in found for n in range(12))
    assert len(often) == 20 * attention_quality.REVIEWS - (ties - 20)  # nothing read is a tie, too
    assert len(places) > 10
    assert {answer for _, _, answer in found} == {0, 1}


class Words:
    """A tokenizer that knows letters."""

    def __len__(self):
        return 26

    def __call__(self, texts, add_special_tokens):
        return {"input_ids": [[ord(letter) - ord("a") for letter in text] for text in texts]}


def test_documents_have_the_sentences_of_their_split_and_rare_words_are_one(monkeypatch):
    texts = {"train": ["ab", "ab", "ac", "b" * 30], "validation": ["ba", "aza"], "test": ["a", "b"]}
    reviews = {k: {"text": v, "label": [i % 2 for i in range(len(v))]} for k, v in texts.items()}
    monkeypatch.setattr(attention_quality, "load_reviews", lambda: reviews)
    vectors = torch.tensor([[3.0, 1.0, 0.0], [-3.0, 1.0, 0.0]] + [[9.0, 9.0, 9.0]] * 24)
    table = SimpleNamespace(weight=vectors)
    model = SimpleNamespace(get_input_embeddings=lambda: table)
    monkeypatch.setattr(attention_quality, "load_classifier", lambda: (model, Words()))
    monkeypatch.setattr(attention_quality, "WIDTH", 1)
    task = attention_quality.build_task("documents")
    assert (task.vocabulary, task.outputs) == (4, 2)  # rare, padding, a, b
    size = 2**-0.5  # of two opposite numbers with a standard deviation of 1
    torch.testing.assert_close(task.table.abs().flatten(), torch.tensor([0, 0, size, size]))
    assert task.table.sum().abs() < 1e-6

    def seen(ids):
        rows = ids.view(-1, attention_quality.WORDS).tolist()
        return {tuple(x for x in row if x != 1) for row in rows}

    assert seen(task.draw(generator())[0]) == {(2, 3), (2, 0), (3,) * 24}
    assert seen(task.exams["validation"]["label"][0][0]) == {(3, 2), (2, 0, 2)}
    assert seen(task.exams["test"]["label"][0][0]) == {(2,), (3,)}


def test_characters_are_asked_for_one_by_one(monkeypatch):
    texts = {"calibration": ["ab" * 200, "ba"], "validation": ["b" * 600], "test": ["abz" * 100]}
    articles = {name: {"text": text} for name, text in texts.items()}
    monkeypatch.setattr(attention_quality, "load_articles", lambda: articles)
    task = attention_quality.build_task("characters")
    assert task.vocabulary == task.outputs == 4  # new, newline, a, b
    (ids, answers), (test, _) = task.draw(generator()), task.exams["test"]["next"][0]
    assert ids.shape == answers.shape == (16, 128)
    assert torch.equal(ids[:, 1:], answers[:, :-1])
    assert set(answers.flatten().tolist()) <= {1, 2, 3}
    assert test[0, :6].tolist() == [2, 3, 0, 2, 3, 0]
    assert task.exams["validation"]["next"][0][0].shape == (4, 128)


@pytest.mark.parametrize("name", ["recall", "copying", "induction"])
def test_exams_of_the_splits_differ_and_have_the_sizes_that_are_asked(name):
    task = attention_quality.build_task(name)
    one, other = task.exams["validation"], task.exams["test"]
    assert one.keys() == other.keys()
    for size in one:
        assert sum(len(ids) for ids, _ in one[size]) == attention_quality.EXAMPLES
        assert not torch.equal(one[size][0][0], other[size][0][0])
    again = attention_quality.build_task(name).exams["test"]
    assert all(torch.equal(again[size][0][0], other[size][0][0]) for size in other)
    ids, _ = task.draw(generator())
    assert ids.max() < task.vocabulary


class Always(torch.nn.Module):
    """Says 1 everywhere, with the odds of 3 to 1 to each of two others."""

    def forward(self, ids):
        return torch.tensor([1.0, 3.0, 1.0]).log().expand(*ids.shape, 3)


def test_only_answers_that_are_asked_for_count():
    ids = torch.zeros(2, 3, dtype=torch.long)
    answers = torch.tensor([[-100, 1, 0], [-100, -100, 1]])
    found = attention_quality.examine(Always(), [(ids, answers), (ids, answers)])
    assert found["answers"] == 6
    assert found["accuracy"] == pytest.approx(2 / 3)
    bits = (2 * math.log2(5 / 3) + math.log2(5)) / 3
    assert found["bits"] == pytest.approx(bits)
    loss = attention_quality.answer_loss(Always(), {"ids": ids, "answers": answers})
    assert loss.item() == pytest.approx(bits * math.log(2))


def test_the_rate_is_the_best_on_validation():
    runs = [
        {"task": "t", "mixer": "m", "learning_rate": rate, "accuracy": a}
        for rate, a in ((1, 0.5), (2, 0.7), (3, 0.6))
    ]
    assert attention_quality.best_rates(runs) == {("t", "m"): 2}


def test_full_attention_learns_to_recall(monkeypatch):
    monkeypatch.setattr(attention_quality, "KEYS", 8)
    monkeypatch.setattr(attention_quality, "VALUES", 8)
    monkeypatch.setattr(attention_quality, "EXAMPLES", 64)
    size = {"vocabulary": 16, "outputs": 16, "steps": 120}
    task = attention_quality.made_up(attention_quality.recall, (2, 3), (2, 3), **size)
    monkeypatch.setattr(attention_quality, "build_task", lambda name: task)
    result = attention_quality.run("recall", "full attention", 1e-2, 0)
    assert result["accuracy"] > 0.95
    assert result["test"]["3"]["accuracy"] > 0.95
    assert result["kept"] == {"2": 2 * 2 * 64 * 6, "3": 2 * 2 * 64 * 9}


# ---------------------------------------------------------------- converted


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("form", [full_attention, partial(window_attention, window=20)])
def test_a_classifier_whose_form_is_softmax_is_the_same(attention, form):
    model = classifier(attention=attention)
    expected = model(**batch()).logits
    for layer in model.bert.encoder.layer:
        layer.attention.self = attention_converted.Converted(layer.attention.self, form)
    torch.testing.assert_close(model(**batch()).logits, expected)
    whole = {"input_ids": batch()["input_ids"][:1]}  # without padding there is no mask
    torch.testing.assert_close(model(**whole).logits, expected[:1])


@pytest.mark.parametrize("name", attention_converted.FORMS)
def test_a_converted_layer_that_is_off_is_as_before(name):
    model = classifier()
    expected = model(**batch()).logits
    attention_converted.convert_(model, name, attention_converted.new_maps(model))
    model.double()
    assert not torch.allclose(model(**batch()).logits, expected)
    padded = batch()
    padded["input_ids"] = padded["input_ids"].masked_fill(padded["attention_mask"] == 0, 9)
    torch.testing.assert_close(model(**padded).logits, model(**batch()).logits)
    for attention in attention_converted.attentions(model):
        attention.on = False
    torch.testing.assert_close(model(**batch()).logits, expected)


def learned_map(heads=2, dim=4):
    own = LearnedMap(heads, dim).double()
    with torch.no_grad():
        own.weight.add_(0.3 * randn(2, heads, dim, dim))
        own.bias.add_(0.3 * randn(2, heads, 1, dim))
    return own


def test_maps_are_matched_to_the_weights_of_the_classifier():
    model, few = classifier(), batch()
    maps = torch.nn.ModuleList([learned_map(), LearnedMap(2, 4).double()])
    found = attention_converted.matching_loss(model)(maps, few)
    with observe_heads(model) as seen, torch.no_grad():
        model(**few)
    losses = []
    for layer in range(2):
        weights = maps[layer].weights(seen[layer].query, seen[layer].key, few["attention_mask"])
        for text, length in enumerate((7, 3, 5)):
            for head in range(2):
                query, key = (x[text, head, :length] for x in (seen[layer].query, seen[layer].key))
                right = (query @ key.T / 2).softmax(-1)
                log = weights[text, head, :length, :length].log()
                losses += (-(right * log).sum(-1)).tolist()
    assert found.item() == pytest.approx(sum(losses) / len(losses))
    found.backward()
    assert all((p.grad != 0).any() for p in maps.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_the_last_layers_are_converted_first(monkeypatch):
    model, seen = classifier(), []
    attention_converted.convert_(model, "linear")
    layers = attention_converted.attentions(model)
    monkeypatch.setattr(attention_converted, "converted", lambda form, folder: (model, None))

    def lost(model, tokenizer, correct):
        seen.append([layer.on for layer in layers])
        return {"value": len(seen)}

    monkeypatch.setattr(attention_converted, "lost", lost)
    found = attention_converted.untrained("linear", None, None)
    assert seen == [[False, True], [True, True]]
    assert [(f["layers"], f["value"]) for f in found] == [(1, 1), (2, 2)]
