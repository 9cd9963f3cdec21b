"""What the recipes together_peers and together_pruned do without the peers."""

import copy

import pytest
import torch
from datasets import Dataset
from small import batch, classifier
from test_environment import MAKEFILE, pins

from compresslab.measure import compare_accuracy
from compresslab.recipes import together_peers, together_pruned
from compresslab.recipes.together_peers import Source, check_installed, dominated, shipped, timed
from compresslab.scoreboard import correct_of, pack_bits
from compresslab.training import TextBatches


def candidate(name, right, size, milliseconds, *, ours=False):
    """One that gets the first `right` of eight sentences right."""
    hits = pack_bits(torch.arange(8) < right)
    latency = {"2": {"1": {"milliseconds": milliseconds}, "32": {"milliseconds": 5.0}}}
    return {
        "name": name,
        "source": "student",
        "ours": ours,
        "bytes": size,
        "zipped": size,
        "test": {"correct": hits, "sentences": 8},
        "latency": latency,
    }


def pairs(candidates):
    return {(each["peer"].split(",")[0], each["cost"]) for each in dominated(candidates)}


def test_a_peer_dominates_where_it_is_no_worse_in_both_and_better_in_one():
    mine = candidate("mine", 6, 100, 10.0, ours=True)
    slow, fast = "batch 1, threads 2", "batch 32, threads 2"
    # As accurate, smaller, slower; the time at batch 32 is the same.
    smaller = candidate("smaller", 6, 99, 11.0)
    assert pairs([mine, smaller]) == {("smaller", "bytes"), ("smaller", "zipped")}
    # As large and as fast as mine, and better.
    better = candidate("better", 7, 100, 10.0)
    assert pairs([mine, better]) == {("better", c) for c in ("bytes", "zipped", slow, fast)}
    # The same in everything, and worse but smaller and faster.
    assert not pairs([mine, candidate("same", 6, 100, 10.0), candidate("worse", 5, 1, 1.0)])
    # Mine do not dominate each other, and what was not measured dominates nothing.
    other = candidate("other", 8, 1, 1.0, ours=True)
    assert not pairs([mine, other, {"name": "none", "ours": False, "reason": "x"}])


def test_a_dominating_peer_comes_with_its_difference_in_accuracy():
    mine, better = candidate("mine", 5, 9, 1.0, ours=True), candidate("better", 7, 9, 2.0)
    (found, *_) = dominated([mine, better])
    assert found["ours"] == "mine, student"
    assert found["difference"]["value"] == 0.25
    hits = [correct_of(each["test"]) for each in (mine, better)]
    assert found["difference"] == vars(compare_accuracy(*hits).difference)


def test_a_missing_peer_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr(
        together_peers, "find_spec", lambda name: None if name in ("nncf", "openvino") else name
    )
    with pytest.raises(ModuleNotFoundError, match=r"nncf, openvino .*`make \.venv/bench`"):
        check_installed()
    monkeypatch.setattr(together_peers, "find_spec", lambda name: name)
    check_installed()


def test_every_peer_has_an_exact_version():
    for name in together_peers.PACKAGES.values():
        assert name in pins() or f" {name}==" in MAKEFILE.replace("\t", " "), name


def test_all_files_count_but_for_the_vocabulary_of_ours(tmp_path, monkeypatch):
    (tmp_path / "model.xml").write_bytes(bytes(1000))
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "model.bin").write_bytes(bytes(range(256)))
    found = shipped(tmp_path)
    assert found["bytes"] == 1256
    assert 256 < found["zipped"] < 300  # a run of zeros, and what has no repetition
    (tmp_path / "a.clab").write_bytes(bytes(range(100)))
    monkeypatch.setattr(together_peers, "sections", lambda path: {"head": 24, "vocabulary": 70})
    assert shipped(tmp_path)["bytes"] == 1256 + 30


def test_one_that_is_far_too_slow_is_timed_once(monkeypatch):
    once = {"dense": 1.0, "fast": 0.5, "slow": 9.0}
    monkeypatch.setattr(together_peers, "seconds", lambda call: once[call()])
    found = timed({n: (lambda n=n: n) for n in once}, baseline="dense")
    assert found["slow"]["once"]
    assert found["slow"]["milliseconds"] == 9000
    assert found["slow"]["speedup"] == {"value": 1 / 9, "low": 1 / 9, "high": 1 / 9}
    assert "once" not in found["fast"]
    assert found["dense"]["speedup"]["value"] == 1


class Words:
    """A tokenizer of words: "a" is 1, "b" is 2, and so on."""

    pad_token_id = 0

    def __call__(self, texts, **options):
        return {"input_ids": [[ord(word) - 96 for word in text.split()] for text in texts]}


def first_word(*, invert=False):
    """A classifier that takes "b" in front for positive."""

    class Model(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            self.logits = torch.stack([input_ids[:, 0] == 1, input_ids[:, 0] == 2], -1).float()
            self.logits = self.logits.flip(-1) if invert else self.logits
            return self

    return Model()


def test_each_is_measured_by_bytes_answers_and_time_or_has_a_reason(tmp_path, monkeypatch):
    data = Dataset.from_dict({"text": ["a b", "b", "b a a", "a"] * 10, "label": [0, 1, 1, 1] * 10})
    reviews = dict.fromkeys(("train", "validation", "test"), data)

    def peer(source, folder):
        print("noise")
        (folder / "model").write_bytes(bytes(10))
        return lambda: source.model

    def broken(source, folder):
        raise RuntimeError("no such operator\nand a long trace")

    def mine(source, folder):
        (folder / "model").write_bytes(bytes(4))
        return lambda: first_word()

    monkeypatch.setattr(together_peers, "check_installed", lambda: None)
    monkeypatch.setattr(together_peers, "load_reviews", lambda: reviews)
    monkeypatch.setattr(together_peers, "SENTENCES", 4)
    monkeypatch.setattr(together_peers, "PEERS", {"torch, float32": peer, "broken": broken})
    ours = {"classifier": {}, "student": {"ours": mine}}
    monkeypatch.setattr(together_peers, "OURS", ours)
    monkeypatch.setattr(
        together_peers,
        "sources",
        lambda folder: [
            Source("classifier", first_word(), Words(), folder),
            Source("student", first_word(invert=True), Words(), folder),
        ],
    )
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(torch, "set_num_threads", lambda number: None)
    found = together_peers.measure(tmp_path)
    names = [(each["name"], each["source"], each["ours"]) for each in found]
    assert names == [
        ("torch, float32", "classifier", False),
        ("broken", "classifier", False),
        ("torch, float32", "student", False),
        ("broken", "student", False),
        ("ours", "student", True),
    ]
    dense, failed, peers, _, own = found
    assert failed["reason"] == "RuntimeError: no such operator"
    assert failed.keys() == {"name", "source", "ours", "reason"}
    assert (dense["bytes"], own["bytes"]) == (10, 4)
    for split in ("validation", "test"):
        values = [each[split]["accuracy"]["value"] for each in (dense, peers, own)]
        assert values == [0.75, 0.25, 0.75]
        assert [each[split].get("difference", {}).get("value") for each in (dense, peers, own)] == [
            None,
            -0.5,
            0.0,
        ]
    for each in (dense, peers, own):
        assert all(set(by) == {"1", "32"} for by in each["latency"].values())
        assert list(each["latency"]) == ["1", "2"]
    assert {each["cost"] for each in dominated(found)} <= set(together_peers.costs(own))
    assert "bytes" not in {each["cost"] for each in dominated(found)}


# ---------------------------------------------------------------- torch-pruning


def labelled():
    return [batch() | {"labels": torch.tensor([0, 1, 0])}]


def test_torch_pruning_removes_the_neurons_and_heads_that_do_nothing():
    model = classifier(heads=2, width=8, neurons=12)
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.output.dense.weight[:, ::2] = 0
            layer.attention.output.dense.weight[:, 4:] = 0
    before = model(**batch()).logits
    together_pruned.prune_(model, labelled(), neurons=0.5, heads=0.5)
    for layer in model.bert.encoder.layer:
        assert layer.intermediate.dense.out_features == 6
        assert layer.attention.self.query.out_features == 4
        assert layer.attention.self.num_attention_heads == 1
    torch.testing.assert_close(model(**batch()).logits, before)


def test_torch_pruning_narrows_everything_between_the_layers():
    model = classifier(heads=2, width=8, neurons=12)
    whole = copy.deepcopy(model)
    together_pruned.prune_(model, labelled(), neurons=0.25, hidden=0.5)
    assert (model.config.hidden_size, model.config.num_attention_heads) == (4, 1)
    assert model.bert.embeddings.word_embeddings.weight.shape == (40, 4)
    assert model.classifier.in_features == whole.classifier.in_features
    for layer in model.bert.encoder.layer:
        assert layer.intermediate.dense.weight.shape == (9, 4)
        assert layer.attention.self.query.weight.shape == (8, 4)
        assert layer.output.LayerNorm.weight.shape == (4,)
    # Which columns stayed, everywhere the same.
    kept = [
        int((whole.bert.embeddings.word_embeddings.weight == column[:, None]).all(0).nonzero())
        for column in model.bert.embeddings.word_embeddings.weight.T
    ]
    old, new = (m.bert.encoder.layer[0].attention.self.query.weight for m in (whole, model))
    assert torch.equal(new, old[:, kept])
    assert model(**batch()).logits.isfinite().all()


def test_an_untrained_pruned_model_says_how_to_train_it(tmp_path, monkeypatch):
    monkeypatch.setattr(together_pruned, "cache_folder", lambda: tmp_path)
    with pytest.raises(FileNotFoundError, match=r"python -m compresslab\.recipes\.together_pruned"):
        together_pruned.path("student")


def test_batches_to_collect_ranges_from_have_no_padding(monkeypatch, tmp_path):
    data = Dataset.from_dict({"text": ["a b", "b"], "label": [0, 1]})
    monkeypatch.setattr(together_peers, "load_reviews", lambda: {"train": data})
    monkeypatch.setattr(together_peers, "SENTENCES", 2)
    found = list(Source("", None, Words(), tmp_path).inputs())
    assert [x["input_ids"].tolist() for x in found] == [[[1, 2]], [[2]]]
    assert all(x["attention_mask"].all() for x in found)
    assert len(TextBatches(data, Words())) == 1
