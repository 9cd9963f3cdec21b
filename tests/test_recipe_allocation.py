"""What the recipe together_allocation measures and chooses, on a model and sentences that take
seconds."""

import pytest
import small
import torch
from datasets import Dataset

from compresslab.factorization.weighted_svd import whitened_svd
from compresslab.measure import compare_accuracy, correct_answers
from compresslab.quantization.affine import fake_quantize
from compresslab.recipes import factorization_embeddings, together_allocation, tuning

TEXTS = ["a good film", "not a film", "bad bad bad good a a", "a bad film", "good good good not"]
DATA = Dataset.from_dict({"text": TEXTS * 3, "label": [1, 0, 0, 0, 1] * 3})
LAYER = "bert.encoder.layer.0.intermediate.dense"


def load_classifier():
    model = small.classifier(layers=1, width=16, neurons=32, attention="sdpa").float()
    return model.requires_grad_(False), small.wordpiece()


def shrink(set_attribute):
    for module in (together_allocation, factorization_embeddings, tuning):
        set_attribute(module, "load_reviews", lambda: {"train": DATA, "validation": DATA})
        set_attribute(module, "load_classifier", load_classifier)
    for name, value in {"SENTENCES": 15, "GROUP": 8, "UNIT": 1}.items():
        set_attribute(together_allocation, name, value)


@pytest.fixture
def little(monkeypatch):
    shrink(monkeypatch.setattr)


@pytest.fixture
def path(little, tmp_path):
    path = tmp_path / "statistics.pt"
    torch.save(together_allocation.statistics(*load_classifier()), path)
    return path


def answers(model):
    inputs = small.wordpiece()(list(DATA["text"]), padding=True, return_tensors="pt")
    return model(**inputs).logits.log_softmax(-1)


def moved(change):
    """The mean divergence of the answers when the weight of one layer is changed."""
    model, _ = load_classifier()
    whole = answers(model)
    layer = model.get_submodule(LAYER)
    layer.weight.copy_(change(layer.weight))
    return (whole.exp() * (whole - answers(model))).sum(-1).mean().item()


def test_damage_is_what_one_matrix_does_to_the_answers(path):
    results = dict(
        zip(together_allocation.EVERY, together_allocation.run(LAYER, path), strict=True)
    )
    bits = moved(lambda w: fake_quantize(w, bits=3, granularity=8))
    assert results[1, 3][1] == pytest.approx(bits, rel=0.02)  # but for scales in float16
    h = torch.load(path)["hessians"][LAYER]
    factors = whitened_svd(
        load_classifier()[0].get_submodule(LAYER).weight, h, 8
    )  # ¾ · 32 · 16 / 48
    ranks = moved(lambda w: factors.left.half().float() @ factors.right.half().float())
    assert results[3 / 4, 16][1] == pytest.approx(ranks, rel=1e-3)
    assert results[1, 2][1] > results[1, 4][1] > results[1, 8][1] > 0
    # Codes, scales of 2 bytes, and zero points: 64 groups of 8; and factors 32 · 8 and 8 · 16.
    assert results[1, 3][0] == 512 * 3 // 8 + 64 * 2 + 64 * 3 // 8
    assert results[1, 16][0] == 2 * 512
    assert results[3 / 4, 16][0] == 2 * 8 * 48
    assert results[3 / 4, 4][0] == 8 * 48 * 4 // 8 + 48 * 2 + 48 * 4 // 8


def test_ranks_are_whole_groups(little):
    assert together_allocation.rank_for((384, 384), 1 / 2) == 96
    assert together_allocation.rank_for((1536, 384), 1 / 4) == 80  # 76.8
    assert together_allocation.rank_for((16, 16), 1 / 4) == 8


def made_up():
    """Two matrices, of which the first minds its bits and the second its ranks."""
    return {
        name: {
            (left, bits): (int(1000 * left * bits), a * 2.0**-bits + b * (1 - left))
            for left, bits in together_allocation.EVERY
        }
        for name, a, b in (("first", 100.0, 0.01), ("second", 1.0, 10.0))
    }


def test_the_budget_goes_where_the_damage_is(little):
    found = list(together_allocation.allocations(made_up()))
    assert len(found) == 3 * (3 + 2 + 4)
    cases = {(run["kind"], run["budget"], run["way"]): run for run in found}
    for (kind, budget, way), run in cases.items():
        assert run["bytes"] <= budget
        assert run["added"] <= cases[kind, budget, "uniform"]["added"] + 1e-12
        assert cases[kind, budget, "exact"]["added"] <= run["added"] + 1e-12, way
        if kind == "both" and ("bits", budget, way) in cases:
            assert run["added"] <= cases["bits", budget, way]["added"] + 1e-12
    chosen = cases["bits", 8000, "exact"]["chosen"]
    assert chosen == {"first": (1, 6), "second": (1, 2)}
    assert cases["bits", 8000, "uniform"]["chosen"] == {"first": (1, 4), "second": (1, 4)}
    chosen = cases["ranks", 16_000, "exact"]["chosen"]
    assert chosen == {"first": (1 / 4, 16), "second": (3 / 4, 16)}


def test_all_matrices_are_changed_at_once(path):
    model, tokenizer = load_classifier()
    names = list(together_allocation.matrices(model))
    assert len(names) == 1 + 6 + 1  # the table, a layer, the pooler
    correct = correct_answers(model, DATA, tokenizer)
    whole = answers(model)
    harmless = together_allocation.evaluate(dict.fromkeys(names, (1, 16)), path, correct)
    assert harmless["difference"]["value"] == 0
    assert harmless["damage"] < 1e-5
    found = together_allocation.evaluate(dict.fromkeys(names, (1, 3)), path, correct)
    for weight in together_allocation.matrices(model).values():
        weight.copy_(fake_quantize(weight, bits=3, granularity=8))
    far = (whole.exp() * (whole - answers(model))).sum(-1).mean().item()
    assert found["damage"] == pytest.approx(far, rel=0.05)
    hits = correct_answers(model, DATA, tokenizer)
    assert found["difference"] == vars(compare_accuracy(correct, hits).difference)


def test_everything_is_recorded(little, monkeypatch):
    recorded = {}
    monkeypatch.setattr(
        together_allocation, "in_parallel", lambda run, tasks: (run(**task) for task in tasks)
    )
    monkeypatch.setattr(together_allocation, "record", lambda name, **about: recorded.update(about))
    together_allocation.main()
    figures = recorded["figures"]
    assert len(figures["matrices"]) == 8
    assert all(len(own) == len(figures["choices"]) for own in figures["matrices"].values())
    for run in figures["runs"]:
        assert ("damage" in run) == (run["way"] != "slope")
        assert run["bytes"] <= run["budget"]
