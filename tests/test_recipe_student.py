"""The capstone's three recipes, one after another, on models and sentences that take seconds."""

import pytest
import small
import torch
from datasets import Dataset
from torch import nn

from compresslab import export
from compresslab.inference import Int8Bert
from compresslab.quantization.int8 import Int8BertLayer
from compresslab.recipes import (
    distillation_data,
    distillation_sentiment,
    distillation_teachers,
    factorization_embeddings,
    together_capstone,
    together_student,
    together_teachers,
    tuning,
)

MODULES = (
    *(distillation_data, distillation_sentiment, distillation_teachers, factorization_embeddings),
    *(together_capstone, together_student, together_teachers, tuning),
)
TEXTS = ["a good film", "a bad film", "not good", "not a bad film", "bad", "good good film"]


def sentences(count):
    texts = [TEXTS[i % len(TEXTS)] for i in range(count)]
    return Dataset.from_dict({"text": texts, "label": [int("good" in text) for text in texts]})


REVIEWS = {"train": sentences(18), "validation": sentences(12), "test": sentences(12)}
INPUTS = small.batch()
INPUTS["input_ids"].clamp_(max=37)  # of as many tokens as are kept
TRANSFER = {"train": sentences(5), "test": sentences(4)}


def load_classifier(**options):
    model = small.classifier(layers=3, width=16, heads=4, neurons=24, attention="sdpa").float()
    model.config.id2label = {0: "negative", 1: "positive"}
    return model.requires_grad_(False), small.wordpiece()


def large():
    """A second teacher, with a head that `predict` and `tune_` find."""
    model = small.classifier(seed=1, layers=1, width=16, attention="sdpa").float()
    return model, small.wordpiece()


@pytest.fixture
def recorded(monkeypatch, tmp_path):
    found = {}
    for module in MODULES:
        for name, new in {
            "load_reviews": lambda: REVIEWS,
            "load_transfer": lambda name: TRANSFER,
            "load_classifier": load_classifier,
            "in_parallel": lambda run, tasks: (run(**task) for task in tasks),
            "record": lambda name, **about: found.update({name: about}),
            "row": lambda name, **about: about,
            "latencies": lambda model, *rest, **options: model,
        }.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, new)
    monkeypatch.setattr(together_teachers, "large", large)
    paths = {module: tmp_path / module.__name__ for module in MODULES[-4:-1]}
    for module, path in paths.items():
        monkeypatch.setattr(module, "PATH", path)
    monkeypatch.setattr(together_teachers.answers, "__defaults__", (paths[together_teachers],))
    monkeypatch.setattr(together_capstone, "STUDENT", paths[together_student])
    shape = {"tokens": 38, "layers": 2, "rank": 4, "heads": 0.5, "neurons": 0.5}
    monkeypatch.setattr(together_student, "SHAPES", dict.fromkeys(("thin", "medium"), shape))
    sizes = {"TOKENS": 38, "LAYERS": 2, "RELATION_HEADS": 2}
    sizes["CHOICES"] = [choice | {"epochs": 3} for choice in together_student.CHOICES]
    for name, value in sizes.items():
        monkeypatch.setattr(together_student, name, value)
    monkeypatch.setattr(distillation_sentiment, "SENTENCES", 12)
    monkeypatch.setattr(distillation_data, "CANDIDATES", 2)
    monkeypatch.setattr(together_teachers, "COPIES", 2)
    monkeypatch.setattr(together_capstone, "BITS", (7, 4))
    monkeypatch.setattr(together_capstone, "TABLE_BITS", (8, 4))
    return found


def test_from_two_teachers_to_a_file_that_is_measured_once_on_test(recorded):
    together_teachers.main()
    (first, second), found = recorded["together_teachers"]["figures"]["teachers"], recorded
    count = found["together_teachers"]["figures"]["sentences"]
    assert count == 18 * 3 + 3 * 5 * 2  # reviews and their copies; three transfer sets and theirs
    answers = together_teachers.answers()
    assert {name: tuple(logits.shape) for name, logits in answers.items()} == dict.fromkeys(
        ("classifier", "SmolLM2", "both"), (count, 2)
    )
    torch.testing.assert_close(
        answers["both"], (answers["classifier"] + answers["SmolLM2"]) / 2, atol=1e-2, rtol=0
    )
    labels = torch.tensor(REVIEWS["train"]["label"])
    for name, teacher in (("classifier", first), ("SmolLM2", second)):
        hits = answers[name][: len(labels)].argmax(-1) == labels  # reviews come first
        assert hits.float().mean().item() == pytest.approx(teacher["train"])

    together_student.main()
    figures = recorded["together_student"]["figures"]
    matched = [bool(run["matched"]) for run in figures["runs"]]
    assert matched == [choice["matched"] for choice in together_student.CHOICES]
    assert {len(run["history"]) for run in figures["runs"]} == {2, 3}
    student, _ = export.load(together_student.PATH)
    assert together_student.PATH.stat().st_size == figures["bytes"]
    assert student.config.num_hidden_layers == 2

    together_capstone.main()
    figures = recorded["together_capstone"]["figures"]
    assert [(run["bits"], run["table bits"]) for run in figures["runs"]] == [
        *((7, 8), (7, 4), (4, 8), (4, 4))
    ]
    assert figures["bytes"] == sum(figures["sections"].values())
    assert figures["best"] in figures["runs"]
    names, stages = zip(*figures["latency"].items(), strict=True)
    assert names[0] == "float32"
    assert names[-1] == "no Python"
    with torch.inference_mode():
        found = [stage(**INPUTS).logits for stage in stages]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], atol=0.2, rtol=0.1)
    assert torch.equal(found[-1], found[-2])
    plain, row = recorded["together_capstone"]["models"]
    assert row["bytes"] == together_capstone.PATH.stat().st_size == figures["bytes"]
    assert row["data"] is REVIEWS["test"]
    timed = row["timed"]
    with torch.inference_mode():
        assert torch.equal(timed(**INPUTS).logits, row["model"](**INPUTS).logits)
    assert isinstance(row["model"].bert, Int8Bert)
    assert isinstance(row["model"].bert.encoder.layer[0], Int8BertLayer)
    assert not isinstance(timed, nn.Module)  # a trace
    assert plain["timed"] is None


def test_the_best_on_validation_is_the_one_that_is_kept(recorded, monkeypatch):
    """Of two students, that of the run with the higher last accuracy is in the file."""
    together_teachers.main()
    kept = {}

    def run(shape, teacher, matched, epochs, classifier, path):
        student, _ = together_student.new_student(**together_student.SHAPES[shape])
        nn.init.constant_(student.classifier.bias, len(kept))
        together_student.save_file(student.state_dict(), path)
        kept[len(kept)] = path
        return {"shape": shape, "history": [{"accuracy": (0.5, 0.9, 0.7, 0.6)[len(kept) - 1]}]}

    monkeypatch.setattr(together_student, "run", run)
    together_student.main()
    student, _ = export.load(together_student.PATH)
    assert (student.classifier.bias == 1).all()


def test_without_answers_it_says_what_to_run(recorded):
    with pytest.raises(
        FileNotFoundError, match=r"python -m compresslab\.recipes\.together_teachers"
    ):
        together_teachers.answers()
