"""What the recipe together_people finds, on logits that are made up."""

import pytest
import torch
from datasets import Dataset

from compresslab.measure import compare_accuracy
from compresslab.recipes.together_people import (
    by_group,
    compare,
    pack_margins,
    recorded_logits,
    shifted,
)
from compresslab.reliability import judge, reliability
from compresslab.scoreboard import DENSE

SENTENCES = 400


def data(seed: int) -> Dataset:
    generator = torch.Generator().manual_seed(seed)
    ratings = 6 * torch.rand(SENTENCES, generator=generator) - 3
    kinds = ("word", "not", "but", f"odd{chr(97 + seed)}")  # the last one is nowhere else
    texts = [f"{kinds[i % 4]} " * (5 + i % 30) for i in range(SENTENCES)]
    return Dataset.from_dict(
        {"text": texts, "label": (ratings > 0).long().tolist(), "rating": ratings.tolist()}
    )


DATA = {text: data(i) for i, text in enumerate(("validation", "test", "tweets"))}


def logits(*, scale: float = 1.0, shift: float = 0.0) -> dict[str, torch.Tensor]:
    """Those of a classifier that is right mostly, times `scale`, leaning by `shift` to label 1."""
    found = {}
    for i, (text, part) in enumerate(DATA.items()):
        noise = torch.randn(SENTENCES, generator=torch.Generator().manual_seed(10 + i))
        margin = scale * (2 * torch.tensor(part["rating"]) + 1.5 * noise) + shift
        found[text] = torch.stack([torch.zeros(SENTENCES), margin], -1)
    return found


def test_margins_come_back_to_a_thousandth_and_with_their_sign():
    sample = 5 * torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    recorded = recorded_logits({"margins": {"test": pack_margins(sample)}}, "test")
    assert recorded.shape == (50, 2)
    assert (recorded[:, 0] == 0).all()
    assert torch.equal(recorded.argmax(-1), sample.argmax(-1))
    torch.testing.assert_close(recorded[:, 1], sample[:, 1] - sample[:, 0], rtol=1e-3, atol=1e-4)


def test_a_model_that_only_leans_is_mended_by_a_shift():
    found = compare("leaning", logits(shift=3.0), logits(), DATA)
    assert list(found["texts"]) == ["test", "tweets"]
    test = found["texts"]["test"]
    negative, positive = (d["value"] for d in test["as it is"]["by_label"])
    assert negative < -0.1 < 0 < positive
    assert test["as it is"]["difference"]["value"] < -0.05
    assert test["shift"]["difference"]["value"] > -0.02
    assert found["repairs"]["shift"]["shift"] == pytest.approx(-3, abs=0.5)
    # A temperature changes no answer.
    for name in ("value", "difference", "by_label", "changed"):
        assert test["temperature"][name] == test["as it is"][name]


def test_a_model_that_is_too_sure_is_mended_by_a_temperature():
    dense, sure = logits(), logits(scale=6.0)
    found, calm = (compare("", z, dense, DATA) for z in (sure, dense))
    ratio = (m["repairs"]["temperature"]["temperature"] for m in (found, calm))
    assert next(ratio) / next(ratio) == pytest.approx(6, rel=1e-6)
    before, after = (found["texts"]["test"][repair] for repair in ("as it is", "temperature"))
    assert before["too_sure"] > 0.05 > abs(after["too_sure"])
    assert before["error"] > before["chance"]["high"] > before["chance"]["mean"] > 0
    assert before["surprise"] > after["surprise"]
    labels = torch.tensor(DATA["test"]["label"])
    t = found["repairs"]["temperature"]["temperature"]
    assert after["error"] == reliability(*judge(sure["test"].double() / t, labels)).error
    assert before["changed"] == 0


def test_both_repairs_are_those_of_validation_one_after_the_other():
    found = compare("", logits(scale=6.0, shift=9.0), logits(), DATA)
    both = found["repairs"]["both"]
    assert both["shift"] == found["repairs"]["shift"]["shift"]
    alone = compare("", {t: shifted(z, both["shift"]) for t, z in
                         logits(scale=6.0, shift=9.0).items()}, logits(), DATA)  # fmt: skip
    assert alone["repairs"]["temperature"]["temperature"] == pytest.approx(both["temperature"])


def test_groups_are_compared_with_the_dense_model_and_corrected_together():
    models = {DENSE: logits(), "leaning": logits(shift=3.0), "same": logits()}
    groups = by_group(models, "test", DATA, DATA["validation"])
    lines = groups["each"]
    assert {line["model"] for line in lines} == {"leaning", "same"}
    found = {line["group"]: line for line in lines if line["model"] == "leaning"}
    labels = torch.tensor(DATA["test"]["label"])
    hits = [z["test"].argmax(-1) == labels for z in (models[DENSE], models["leaning"])]
    expected = compare_accuracy(*(h[labels == 0] for h in hits)).difference
    assert found["negative"]["difference"] == vars(expected)
    assert found["negative"]["beyond"]["value"] < 0 < found["positive"]["beyond"]["value"]
    smallest = min(line["p_value"] for line in lines)
    assert min(line["corrected"] for line in lines) == pytest.approx(smallest * len(lines))
    assert all(line["corrected"] == 1 for line in lines if line["model"] == "same")
    pooled = {line["group"]: line for line in groups["pooled"]}
    half = found["negative"]["beyond"]["value"] / 2  # one of two models has changed
    assert pooled["negative"]["beyond"]["value"] == pytest.approx(half)
    assert pooled["negative"]["corrected"] < 0.05 < pooled["contrast"]["corrected"]
