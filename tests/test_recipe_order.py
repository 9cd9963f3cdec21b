"""The chains of the recipe together_order, on a model and sentences that take seconds."""

from collections import Counter

import pytest
import small
import torch
from datasets import Dataset, Value

from compresslab.export import load
from compresslab.factorization.embedding import FactorizedEmbedding
from compresslab.layers import bert_layers, find_linears
from compresslab.measure import compare_accuracy, correct_answers
from compresslab.quantization.int8 import Int8BertLayer
from compresslab.recipes import factorization_embeddings, together_order, tuning

WORDS = ("a", "good", "bad", "film", "not")


def sentences(count, seed):
    draw = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (count, 6), generator=draw).tolist()
    texts = [" ".join(WORDS[i] for i in pick) for pick in picks]
    return Dataset.from_dict({"text": texts, "label": ["good" in t.split() for t in texts]})


REVIEWS = {"train": sentences(48, 0), "validation": sentences(40, 1), "test": sentences(40, 2)}
REVIEWS = {name: data.cast_column("label", Value("int64")) for name, data in REVIEWS.items()}


def load_classifier():
    model = small.classifier(layers=3, width=16, neurons=24, attention="sdpa").float()
    model.config.id2label = {0: "negative", 1: "positive"}
    return model, small.wordpiece()


@pytest.fixture
def little(monkeypatch):
    for module in (together_order, factorization_embeddings, tuning):
        monkeypatch.setattr(module, "load_reviews", lambda: REVIEWS)
        monkeypatch.setattr(module, "load_classifier", load_classifier)
    sizes = {"SENTENCES": 16, "LAYERS": 2, "TOKENS": 38, "RANK": 8, "EPOCHS": 1}
    sizes |= {"PRODUCT": {"width": 2, "bits": 3}, "NEURONS": 0.5}
    for name, value in sizes.items():
        monkeypatch.setattr(together_order, name, value)


def correct():
    return correct_answers(load_classifier()[0], REVIEWS["validation"], small.wordpiece())


def go(chain, folder):
    return together_order.run(chain, tuning.teacher_logits(), correct(), folder)


def test_chains_have_the_same_steps_but_for_the_order():
    first, *others = (
        Counter("factorized" if s == "product" else s for s in steps)
        for steps in together_order.CHAINS.values()
    )
    for steps in others:
        for step in together_order.UNTRAINED:
            del steps[step]
        assert steps == first
    assert sum(first.values()) == 6


@pytest.mark.parametrize("chain", together_order.CHAINS)
def test_a_chain_ends_in_a_small_file_of_integers(chain, little, tmp_path):
    found = go(chain, tmp_path)
    assert tuple(step["step"] for step in found) == together_order.CHAINS[chain]
    assert sum(step["epochs"] for step in found) == 6
    path = together_order.path_of(tmp_path, chain, found[-1]["step"])
    model, tokenizer = load(path)
    assert path.stat().st_size == found[-1]["bytes"]
    assert len(tokenizer) == 38
    layers = bert_layers(model)
    assert len(layers) == 2
    assert all(isinstance(layer, Int8BertLayer) for layer in layers)
    assert sum(layer.heads for layer in layers) == 2  # of four
    assert sum(layer.up.out_features for layer in layers) == 24  # of 48
    codes = torch.cat([layer.up.codes.flatten() for layer in layers])
    assert codes.min() >= -4
    assert codes.max() <= 3
    table = model.bert.embeddings.word_embeddings
    if chain == "product":
        assert len(table.weight.view(38, 8, 2)[:, 0].unique(dim=0)) <= 8
    else:
        assert isinstance(table, FactorizedEmbedding)
        assert len(table.table.weight.unique()) <= 16
    hits = correct_answers(model, REVIEWS["validation"], tokenizer)
    assert found[-1]["difference"] == vars(compare_accuracy(correct(), hits).difference)


def test_codes_are_counted_that_a_cut_model_has_kept(monkeypatch):
    draw = torch.Generator().manual_seed(0)
    up, down = torch.randint(-4, 4, (2, 6, 24, 12), generator=draw)
    whole = [{"up": up[i], "down": down[i].T} for i in range(6)]
    left = [7, 3, 20, 11]
    cut = [{"up": whole[i]["up"][left], "down": whole[i]["down"][:, left].clone()} for i in (0, 1)]
    monkeypatch.setattr(together_order, "layers_of_codes", {"whole": whole, "cut": cut}.get)
    assert together_order.codes_kept("whole", "cut") == 1
    cut[1]["up"][2, 5] += 1
    cut[0]["down"][3, :2] -= 1
    assert together_order.codes_kept("whole", "cut") == 1 - 3 / 192


def test_what_becomes_float_again_has_lost_its_bytes_but_not_its_grid(little, tmp_path):
    found = {step["step"]: step for step in go("low bits first", tmp_path)}
    assert found["float again"]["uncoded"] > 1.5 * found["low bits"]["uncoded"]
    again, tuned = (
        load(together_order.path_of(tmp_path, "low bits first", step))[0]
        for step in ("float again", "shallow")
    )
    rows = [[len(row.unique()) for row in m.bert.encoder.layer[0].output.dense.weight]
            for m in (again, tuned)]  # fmt: skip
    assert max(rows[0]) <= 8
    assert max(rows[1]) > 12


def test_a_model_that_is_cut_last_keeps_quantizers(little, monkeypatch):
    model, tokenizer = together_order.low_bits(*load_classifier())
    before = {n: m.weight.detach().clone() for n, m in find_linears(model).items()}
    cut, _ = together_order.narrow(model, tokenizer)
    assert not together_order.take_quantizers_off_(model)  # it was changed on the way
    assert torch.equal(model.bert.pooler.dense.weight, before["bert.pooler.dense"])
    assert together_order.take_quantizers_off_(cut)
    for name, linear in find_linears(cut.bert).items():
        assert all(len(row.unique()) <= 8 for row in linear.weight), name


def test_what_is_stored_answers_as_the_quantizers_do(little):
    model, _ = together_order.low_bits(*load_classifier())
    with torch.no_grad():
        expected = model(**small.batch()).logits
        found = together_order.stored(model)(**small.batch()).logits
    assert isinstance(bert_layers(together_order.stored(model))[0], Int8BertLayer)
    assert not isinstance(bert_layers(model)[0], Int8BertLayer)
    torch.testing.assert_close(found, expected, atol=0.1, rtol=0.05)  # but for 8-bit inputs


def test_every_chain_is_recorded_and_the_first_is_measured_on_test(little, monkeypatch):
    recorded, shared = {}, {"lecture": 8}
    monkeypatch.setattr(
        together_order, "in_parallel", lambda run, tasks: (run(**task) for task in tasks)
    )
    monkeypatch.setattr(together_order, "latencies", lambda *args, **options: {"1": 2.0})
    monkeypatch.setattr(together_order, "row", lambda name, **about: shared | about)
    monkeypatch.setattr(together_order, "record", lambda name, **about: recorded.update(about))
    monkeypatch.setattr(together_order, "CHAINS", {
        "in order": ("low bits", "clustered"), "low bits first": ("low bits", "shallow")
    })  # fmt: skip
    together_order.main()
    runs = {(run["chain"], run["step"]): run for run in recorded["figures"]["runs"]}
    assert list(runs) == [
        *(("in order", step) for step in ("dense", "half")),
        *(("low bits first", step) for step in ("low bits", "shallow")),
        *(("in order", step) for step in ("low bits", "clustered")),
    ]
    timed = [key for key, run in runs.items() if "latency" in run]
    assert ("low bits first", "low bits") not in timed
    assert len(timed) == 5
    assert runs["in order", "half"]["bytes"] < runs["in order", "dense"]["bytes"]
    assert runs["in order", "dense"]["difference"]["value"] == 0
    kept = {chain: run["codes_kept"] for (chain, _), run in runs.items() if "codes_kept" in run}
    assert 0.2 < kept["low bits first"] < 1
    assert set(kept) == set(together_order.CHAINS)
    (row,) = recorded["models"]
    assert row["bytes"] == runs["in order", "clustered"]["bytes"]
    assert row["data"] is REVIEWS["test"]
