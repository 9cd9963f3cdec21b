import itertools

import pytest
import torch
from datasets import Dataset
from scipy.stats import hypergeom

from compresslab.measure import compare_accuracy
from compresslab.subgroups import (
    compare_groups,
    holm,
    permutation_p_value,
    pooled_change,
    sentence_groups,
)


def answers(changes):
    """What two models have right, for changes of -1 (lost), 0 and 1 (gained)."""
    changes = torch.tensor(changes)
    return changes <= 0, changes >= 0


def test_a_group_by_hand():
    first, second = answers([-1, -1, 0, 1, 0, 0, -1, 0, 0, 0])
    members = torch.arange(10) < 4
    change = compare_groups(first, second, {"four": members})["four"]
    own = compare_accuracy(first[:4], second[:4]).difference
    assert change.sentences == 4
    assert change.before == 0.75
    assert change.changed == 0.75
    assert change.difference == own
    assert change.difference.value == pytest.approx(-1 / 4)
    assert change.beyond.value == pytest.approx(-1 / 4 + 1 / 6)
    # Independent samples: the squares of the half-widths add up.
    rest = compare_accuracy(first[4:], second[4:]).difference
    halves = [(d.high - d.low) / 2 for d in (change.beyond, own, rest)]
    assert halves[0] ** 2 == pytest.approx(halves[1] ** 2 + halves[2] ** 2)


@pytest.mark.parametrize("changes", [
    [-1, -1, 0, 1, 0, 0, -1, 0, 0], [-1, -1, -1, 0, 0, 0, 0, 1, 1], [0, 0, 1, 0, 0, 0, -1, -1, 0],
    [0] * 9, [-1] * 9,
])  # fmt: skip
@pytest.mark.parametrize("size", [1, 3, 6])
def test_the_p_value_counts_every_way_to_draw_the_group(changes, size):
    first, second = answers(changes)
    change = compare_groups(first, second, {"": torch.arange(9) < size})[""]
    values = torch.tensor(changes).double()

    def apart(members) -> float:
        inside = torch.zeros(9, dtype=torch.bool)
        inside[list(members)] = True
        return abs((values[inside].mean() - values[~inside].mean()).item())

    draws = [apart(members) for members in itertools.combinations(range(9), size)]
    expected = sum(d >= apart(range(size)) - 1e-9 for d in draws) / len(draws)
    assert change.p_value == pytest.approx(expected)


def test_the_p_value_of_losses_alone_is_the_hypergeometric_one():
    # 40 of 2,000 sentences are lost, 12 of them in a group of 216 that is to have 4.32.
    law = hypergeom(2000, 40, 216)
    expected = law.sf(11)  # as far below would be fewer than none
    found = permutation_p_value(216, 2000, lost=(12, 40), gained=(0, 0))
    assert found == pytest.approx(expected, rel=1e-6)


def test_pooling_one_model_is_comparing_it():
    changes = [-1] * 9 + [1] * 3 + [0] * 48
    first, second = answers(changes)
    groups = {"half of the losses": torch.arange(60) % 2 == 0, "all losses": torch.arange(60) < 9}
    found = pooled_change(first, second[None], groups, generator=torch.Generator().manual_seed(0))
    for name, change in compare_groups(first, second, groups).items():
        beyond, p = found[name]
        assert beyond == pytest.approx(change.beyond.value)
        assert p == pytest.approx(change.p_value, abs=0.015)


def test_copies_of_a_model_are_no_more_evidence():
    first, second = answers([-1] * 6 + [0] * 14)
    groups = {"some": torch.arange(20) % 3 == 0}
    one, ten = (
        pooled_change(
            first, second.repeat(n, 1), groups, generator=torch.Generator().manual_seed(0)
        )["some"]
        for n in (1, 10)
    )
    assert one == pytest.approx(ten)


def test_a_group_that_no_draw_reaches_has_no_p_value_of_zero():
    first, second = answers([-1] * 20 + [0] * 180)
    found = pooled_change(first, second[None], {"": torch.arange(200) < 20}, draws=99)
    assert found[""] == (-1.0, 0.01)
    with pytest.raises(ValueError, match=r"must be \(models, 200\), not \(200,\)"):
        pooled_change(first, second, {})


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def dataset(texts, ratings):
    return Dataset.from_dict(
        {"text": texts, "rating": ratings, "label": [int(r > 0) for r in ratings]}
    )


@pytest.mark.parametrize(
    ("text", "rating", "expected"),
    [
        ("A good film", 1.49, {"mild", "positive", "short"}),
        ("A good film", -1.5, {"negative", "short"}),
        ("A good film", 2.2, {"strong", "positive", "short"}),
        ("a " * 13 + "Film", 1.5, {"positive"}),
        ("a " * 25 + "Film", 1.5, {"positive", "long"}),
        ("A good film by Kurosawa", 1.5, {"positive", "short"}),
        ("A turgid film", 1.5, {"positive", "short", "rare words"}),
        ("a " * 10 + "turgid", 1.5, {"positive"}),  # one word of eleven
        ("It isn’t a film", 1.5, {"positive", "short", "negation"}),
        ("NOT a film", 1.5, {"positive", "short", "negation"}),
        ("a notable film", 1.5, {"positive", "short"}),
        ("But a film", 1.5, {"positive", "short", "contrast"}),
    ],
)
def test_sentences_are_found(text, rating, expected):
    train = dataset(["A GOOD film, but not notable; by. It isn't."], [1.0])
    groups = sentence_groups(dataset([text], [rating]), train)
    assert {name for name, members in groups.items() if members.item()} == expected


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (torch.ones(3, dtype=torch.bool), r"must be \(4,\), not \(3,\)"),
        (torch.ones(4, dtype=torch.bool), "has 4 of 4"),
        (torch.zeros(4, dtype=torch.bool), "has 0 of 4"),
    ],
)
def test_a_group_that_cannot_be_compared_is_named(members, message):
    with pytest.raises(ValueError, match=rf"'odd' {message}"):
        compare_groups(*answers([0, 1, -1, 0]), {"odd": members})


def test_a_p_value_that_is_none_is_refused():
    with pytest.raises(ValueError, match="from 0 to 1"):
        holm([0.5, 1.5])
