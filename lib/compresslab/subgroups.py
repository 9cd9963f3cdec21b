"""Whom compression costs: accuracy before and after, by groups of sentences.

    groups = sentence_groups(reviews["test"], reviews["train"])
    lines = compare_groups(dense_hits, compressed_hits, groups)
    print(lines["mild"].difference)                      the group's own difference, paired
    print(lines["mild"].beyond, lines["mild"].p_value)   does it lose more than the rest?
    holm([line.p_value for line in lines.values()])      for having looked at so many
    pooled_change(dense_hits, hits_of_many, groups)      one look a group, for many models

A group may lose more than the whole and still be no finding: its own interval is wide, and of many
groups one is always the worst. So each is compared with all other sentences, by an exact
permutation test: how often would as many sentences, drawn at random, differ as much from theirs?

Sources: Hooker et al. (2019), What Do Compressed Deep Neural Networks Forget?, arXiv:1911.05248,
and Hooker et al. (2020), Characterising Bias in Compressed Models, arXiv:2010.03058, for the
question; Holm (1979), A Simple Sequentially Rejective Multiple Test Procedure,
doi:10.2307/4615733, for the correction.

Differs from the papers: they train some thirty models a level of compression and look for the
sentences on which the populations disagree. Here one model is compared with one.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from datasets import Dataset
from torch import Tensor

from .measure import Estimate, compare_accuracy

MILD, STRONG = 1.5, 2.2  # of |rating|, whose largest is 4: about a third is below, or above
SHORT, LONG = 10, 26  # words: about a fifth of the sentences is below, or above
RARE = 0.1  # of a sentence's words, not counting those with a capital
WORD = re.compile(r"\b[a-z]+(?:'[a-z]+)?\b")
NEGATION = re.compile(r"\b(?:not|no|never|nothing|neither|nor|without|hardly)\b|n't")
CONTRAST = re.compile(r"\b(?:but|although|though|however|despite|while|yet|instead)\b")


def sentence_groups(data: Dataset, train: Dataset) -> dict[str, Tensor]:
    """Groups of the sentences of `data`, bool (sentences,) each, that overlap.

    `mild` and `strong` go by people's ratings, `negative` and `positive` by the label, `short` and
    `long` by words. `rare words`: at least a tenth of the words in lower case, so no names, are
    nowhere in `train`. `negation` and `contrast` have such a *word* ("not", "but"): whether it
    turns the meaning around, no list of words can tell.

    Args:
        data, train: with columns `text`, `label` and `rating`.
    """
    texts = [text.replace("’", "'") for text in data["text"]]
    known = Counter(w for text in train["text"] for w in words(text.replace("’", "'").lower()))
    length = torch.tensor([len(text.split()) for text in texts])
    rare = [sum(w not in known for w in words(t)) / max(1, len(words(t))) for t in texts]
    strength, label = torch.tensor(list(data["rating"])).abs(), torch.tensor(list(data["label"]))
    return {
        "mild": strength < MILD,
        "strong": strength >= STRONG,
        "negative": label == 0,
        "positive": label == 1,
        "short": length <= SHORT,
        "long": length >= LONG,
        "rare words": torch.tensor(rare) >= RARE,
        "negation": _has(NEGATION, texts),
        "contrast": _has(CONTRAST, texts),
    }


def words(text: str) -> list[str]:
    """The words of a text that are all in lower case."""
    return WORD.findall(text)


def _has(pattern: re.Pattern, texts: list[str]) -> Tensor:
    return torch.tensor([bool(pattern.search(text.lower())) for text in texts])


@dataclass(frozen=True)
class GroupChange:
    """What a group of sentences lost or gained.

    Attributes:
        sentences: in the group.
        before: accuracy of the first model on them.
        difference: accuracy of the second minus that of the first, paired.
        changed: fraction of them that only one of the two models has right.
        beyond: the group's difference minus that of all other sentences: below 0, it lost more.
        p_value: of `beyond`, by permutation, exact; one look, not corrected.
    """

    sentences: int
    before: float
    difference: Estimate
    changed: float
    beyond: Estimate
    p_value: float


def compare_groups(
    first: Tensor, second: Tensor, groups: dict[str, Tensor]
) -> dict[str, GroupChange]:
    """Each group's difference in accuracy, and how it differs from that of all other sentences.

    Args:
        first, second: bool (sentences,), what each model has right, in the same order.
        groups: name -> bool (sentences,).

    Raises:
        ValueError: a shape differs, or a group has no sentence or every one.
    """
    return {name: _change(first, second, members, name) for name, members in groups.items()}


def _change(first: Tensor, second: Tensor, members: Tensor, name: str) -> GroupChange:
    _check(members, first, name)
    own, rest = (compare_accuracy(first[part], second[part]) for part in (members, ~members))
    size = int(members.sum())
    a, b = own.difference, rest.difference
    centre = (a.low + a.high - b.low - b.high) / 2
    half = math.hypot(a.high - a.low, b.high - b.low) / 2  # the two samples are independent
    return GroupChange(
        sentences=size,
        before=first[members].float().mean().item(),
        difference=a,
        changed=(own.only_first + own.only_second) / size,
        beyond=Estimate(a.value - b.value, centre - half, centre + half),
        p_value=permutation_p_value(
            size,
            len(members),
            lost=(own.only_first, own.only_first + rest.only_first),
            gained=(own.only_second, own.only_second + rest.only_second),
        ),
    )


def _check(members: Tensor, first: Tensor, name: str) -> None:
    if members.shape != first.shape:
        raise ValueError(f"group {name!r} must be {tuple(first.shape)}, not {tuple(members.shape)}")
    if not 0 < int(members.sum()) < len(members):
        raise ValueError(f"group {name!r} has {int(members.sum())} of {len(members)} sentences")


def permutation_p_value(
    size: int, sentences: int, *, lost: tuple[int, int], gained: tuple[int, int]
) -> float:
    """How likely `size` of `sentences` drawn at random would be at least as far from what is
    expected of them, in gains minus losses, on either side.

    All draws of losses i and gains j are counted: the chance of each is
    C(L, i) · C(G, j) · C(n − L − G, m − i − j) / C(n, m).

    Args:
        lost: sentences that the second model lost, in the group and altogether.
        gained: those that it gained, likewise.
    """
    (i, losses), (j, gains) = lost, gained
    a = torch.arange(losses + 1, dtype=torch.float64)[:, None]
    b = torch.arange(gains + 1, dtype=torch.float64)
    others = sentences - losses - gains
    chance = _log_choose(losses, a) + _log_choose(gains, b) + _log_choose(others, size - a - b)
    chance = (chance - _log_choose(sentences, torch.tensor(float(size)).double())).exp()
    expected = size * (gains - losses) / sentences
    far = (b - a - expected).abs() >= abs(j - i - expected) - 1e-9
    return min(1.0, chance[far].sum().item())


def pooled_change(
    first: Tensor,
    seconds: Tensor,
    groups: dict[str, Tensor],
    *,
    draws: int = 4999,
    generator: torch.Generator | None = None,
) -> dict[str, tuple[float, float]]:
    """What each group lost beyond all other sentences in the mean of many models, and its p-value.

    Models that answer the same sentences make the same mistakes, so they are no independent
    witnesses. Here each sentence counts once, with the mean of its changes, and p is the fraction
    of `draws` random groups of the same size whose mean is at least as far from that of all, on
    either side. The group itself counts as one more, since a p of 0 would be wrong.

    Args:
        first: bool (sentences,), what the first model has right.
        seconds: bool (models, sentences), what the others have.
        groups: name -> bool (sentences,).

    Raises:
        ValueError: a shape differs, or a group has no sentence or every one.
    """
    if seconds.ndim != 2 or seconds.shape[1:] != first.shape:
        raise ValueError(f"seconds must be (models, {len(first)}), not {tuple(seconds.shape)}")
    change = (seconds.double() - first.double()).mean(0)
    order = torch.rand(draws, len(change), generator=generator).argsort(1)
    found = {}
    for name, members in groups.items():
        _check(members, first, name)
        size = int(members.sum())
        drawn, own = change[order[:, :size]].mean(1), change[members].mean()
        far = (drawn - change.mean()).abs() >= (own - change.mean()).abs() - 1e-12
        beyond = own - change[~members].mean()
        found[name] = (beyond.item(), (1 + int(far.sum())) / (1 + draws))
    return found


def _log_choose(n: int, k: Tensor) -> Tensor:
    """log C(n, k), -inf where there is no way to choose."""
    inside = (k >= 0) & (k <= n)
    k = k.clamp(0, n)
    ways = math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return ways.where(inside, -math.inf)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are, in the same order.

    If all below 0.05 are called findings, the chance that even one of them is false is at most 5 %,
    however they depend on each other: the smallest is multiplied by their number, the next by one
    less, and so on; none becomes smaller than one before it, or larger than 1.

    Raises:
        ValueError: one is not from 0 to 1.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("p_values must be from 0 to 1")
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, largest = [0.0] * len(p_values), 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p_values[i]))
        corrected[i] = largest
    return corrected
