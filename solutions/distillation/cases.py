"""Inputs of the exercises on distillation: SHOWN in instant checks, HIDDEN for grading.

function -> cases, each of a few words on what is special in it, and the keyword arguments.
"""

import torch
from torch import Tensor

random = torch.Generator().manual_seed(5)
NONE = -torch.inf  # the logit of a token that has no probability at all


def normal(*shape: int, steps: int = 4, spread: float = 1.0) -> Tensor:
    """Numbers that take few characters in a file: so many to a step of one."""
    x = spread * torch.randn(*shape, generator=random).double()
    return (steps * x).round() / steps


def numbers(*values: float) -> Tensor:
    return torch.tensor(values).double()


def ones(size: int) -> Tensor:
    return torch.ones(size).double()


def judged(sentences: int, classes: int, *, sharp: float, right: float) -> dict[str, Tensor]:
    """Arguments of `best_temperature`, without the ends: logits of a classifier, and labels.

    Args:
        sharp: how large the logits are.
        right: a fraction of the labels that are those of the largest logit; the others are drawn.
    """
    logits = normal(sentences, classes, spread=sharp)
    drawn = torch.randint(classes, (sentences,), generator=random)
    known = torch.rand(sentences, generator=random) < right
    return {"logits": logits, "labels": torch.where(known, logits.argmax(1), drawn)}


def far(x: Tensor, offset: float) -> Tensor:
    """The same states, all moved by one large vector, in float32."""
    return (x + offset * torch.tensor([1.0, -1.0]).repeat(x.shape[1])[: x.shape[1]]).float()


def pair(batch: int, time: int, tokens: int, *, spread: float = 1.5) -> dict[str, Tensor]:
    """Logits of a student and a teacher, and a mask where everything counts."""
    return {
        "student": normal(batch, time, tokens, spread=spread),
        "teacher": normal(batch, time, tokens, spread=spread),
        "mask": torch.ones(batch, time).long(),
    }


def lengths(*counts: int) -> Tensor:
    """A mask of sentences of these lengths."""
    return (torch.arange(max(counts)) < torch.tensor(counts)[:, None]).long()


def spans(text: str, *, special: bool = True) -> list[tuple[int, int]]:
    """Where the tokens of a text are that has a bar before each but the first: "un|happy| end".

    A space is no character of a token, as in BERT. With `special`, an empty span at either end.
    """
    found, place = [], 0
    for token in text.split("|"):
        start = place + len(token) - len(token.lstrip())
        place += len(token)
        found.append((start, place))
    return [(0, 0), *found, (0, 0)] if special else found


def asked(sentences: int, classes: int, width: int, *, sharp: float = 1.5) -> dict[str, Tensor]:
    return {"logits": normal(sentences, classes, spread=sharp), "states": normal(sentences, width)}


CROSS = numbers(0, 2, 3, 0, 0, -2, -3, 0).view(4, 2)
HALF_RIGHT = judged(40, 3, sharp=1, right=0.5)
PLANE = normal(6, 2)
SAME = normal(1, 2, 4)
TWO_GROUPS = torch.cat([8 + normal(3, 2), normal(3, 2)])

SHOWN = {
    "ensemble_logits": [
        (
            "two teachers that disagree, at temperature 1",
            {
                "logits": numbers(3, 0, 0, -1, 2, 0).view(2, 1, 3),
                "weights": ones(2),
                "temperature": 1.0,
            },
        ),
        (
            "three teachers at temperature 2",
            {"logits": normal(3, 2, 3, spread=2), "weights": ones(3), "temperature": 2.0},
        ),
        (
            "one teacher",
            {"logits": normal(1, 2, 4), "weights": ones(1), "temperature": 3.0},
        ),
        (
            "weights that do not add up to 1",
            {
                "logits": normal(3, 2, 2, spread=2),
                "weights": numbers(4, 1, 3),
                "temperature": 0.5,
            },
        ),
        (
            "probabilities that are too small for a number",
            {
                "logits": numbers(0, -1000, -2000, 0, -1500, -900).view(2, 1, 3),
                "weights": ones(2),
                "temperature": 1.0,
            },
        ),
    ],
    "best_temperature": [
        (
            "a teacher that is too sure",
            {**judged(12, 2, sharp=4, right=0.5), "low": 0.05, "high": 20.0},
        ),
        (
            "three classes, and a teacher that is not sure enough",
            {
                "logits": numbers(
                    *(1, 0, 0.5, -0.5, 1, 0, 0.25, 0, 1, 1, 0.75, -1, 0, 0.5, 0.75, 0.5, 1, 0)
                ).view(6, 3),
                "labels": torch.tensor([0, 1, 2, 0, 1, 1]),
                "low": 0.05,
                "high": 20.0,
            },
        ),
        (
            "labels that are all right",
            {
                "logits": numbers(1, -1, 0.5, 2, 3, 0).view(3, 2),
                "labels": torch.tensor([0, 1, 0]),
                "low": 0.25,
                "high": 8.0,
            },
        ),
        (
            "labels that are mostly wrong",
            {
                "logits": numbers(2, 0, 0, 1, 3, 0).view(3, 2),
                "labels": torch.tensor([1, 1, 1]),
                "low": 0.25,
                "high": 8.0,
            },
        ),
    ],
    "relational_loss": [
        (
            "three sentences, and states of one width",
            {
                "student": numbers(0, 0, 1, 0, 0, 2).view(3, 2),
                "teacher": numbers(0, 0, 3, 0, 0, 4).view(3, 2),
            },
        ),
        (
            "a student that is narrower than its teacher",
            {"student": normal(4, 2), "teacher": normal(4, 5)},
        ),
        (
            "a student whose states are a hundred times as large",
            {"student": 100 * normal(4, 3), "teacher": normal(4, 3)},
        ),
        (
            "distances that are very different",
            {"student": normal(6, 2), "teacher": numbers(0, 0, 0, 0, 0, 9).view(6, 1)},
        ),
        (
            "a student to whom all sentences are the same",
            {"student": torch.full((4, 2), 0.5).double(), "teacher": normal(4, 3)},
        ),
    ],
    "align_tokens": [
        (
            "a word that the student reads in three pieces",
            {"student": spans("mov|ie|s| end"), "teacher": spans("movies| end")},
        ),
        (
            "a student's token that the teacher reads in two pieces of different lengths",
            {"student": spans("movies| end"), "teacher": spans("movie|s| end")},
        ),
        (
            "pieces that end at different places",
            {
                "student": spans("un|forgett|able", special=False),
                "teacher": spans("unfor|gettable", special=False),
            },
        ),
        (
            "a teacher that was cut off earlier",
            {"student": spans("a| good| end"), "teacher": spans("a| go")},
        ),
        (
            "a student whose tokens have the space before a word, and no special tokens",
            {
                "student": [(0, 4), (4, 8), (8, 11)],
                "teacher": [(0, 0), (0, 4), (5, 8), (8, 11), (0, 0)],
            },
        ),
    ],
    "jensen_shannon_loss": [
        (
            "one position, beta one half",
            {
                "student": numbers(0, 0, 0).view(1, 1, 3),
                "teacher": numbers(2, 0, -1).view(1, 1, 3),
                "mask": torch.ones(1, 1).long(),
                "beta": 0.5,
            },
        ),
        ("beta 0.1", {**pair(1, 2, 3), "beta": 0.1}),
        ("beta 0", {**pair(1, 2, 4), "beta": 0.0}),
        ("beta 1", {**pair(1, 2, 4), "beta": 1.0}),
        (
            "two sentences of different lengths",
            {**pair(2, 3, 3), "mask": lengths(3, 1), "beta": 0.75},
        ),
        (
            "a token without any probability",
            {
                "student": numbers(1, 0, NONE).view(1, 1, 3),
                "teacher": numbers(0, NONE, NONE).view(1, 1, 3),
                "mask": torch.ones(1, 1).long(),
                "beta": 0.25,
            },
        ),
        ("no position that counts", {**pair(1, 2, 3), "mask": lengths(0, 2)[:1], "beta": 0.5}),
    ],
    "choose_questions": [
        (
            "a student that is equally unsure everywhere",
            {"logits": torch.zeros(4, 2).double(), "states": CROSS, "count": 4},
        ),
        (
            "a sentence that is far from all others, of which the student is sure",
            {
                "logits": numbers(0.5, 0, 0, 0.25, 9, 0, 0, 0.75, 0.5, 0.25).view(5, 2),
                "states": numbers(1, 2, -2, 1, 6, 6, 2, -1, 3, 0.5).view(5, 2),
                "count": 3,
            },
        ),
        (
            "two groups of sentences, one of them with longer states",
            {
                "logits": numbers(0.5, 0, 0, 0.25, 0.25, 0, 0, 1, 1, 0, 0, 1.5).view(6, 2),
                "states": TWO_GROUPS,
                "count": 4,
            },
        ),
        ("three classes", {**asked(7, 3, 3), "count": 4}),
        ("one question", {**asked(5, 2, 3), "count": 1}),
    ],
}

HIDDEN = {
    "ensemble_logits": [
        (
            "many teachers",
            {
                "logits": normal(12, 5, 4, spread=3),
                "weights": 0.5 + torch.rand(12, generator=random).double(),
                "temperature": 1.5,
            },
        ),
        (
            "a teacher that counts for nothing",
            {
                "logits": normal(3, 4, 3, spread=2),
                "weights": numbers(2, 0, 1),
                "temperature": 2.0,
            },
        ),
        (
            "a high temperature",
            {"logits": normal(4, 3, 5, spread=3), "weights": ones(4), "temperature": 100.0},
        ),
        (
            "a low temperature",
            {"logits": normal(4, 3, 5, spread=3), "weights": ones(4), "temperature": 0.001},
        ),
        (
            "large logits that all have the same sign",
            {
                "logits": 2000 + normal(2, 4, 3, spread=9),
                "weights": numbers(1, 2),
                "temperature": 1.0,
            },
        ),
        (
            "one class",
            {"logits": normal(3, 2, 1), "weights": ones(3), "temperature": 2.0},
        ),
    ],
    "best_temperature": [
        (
            "many sentences",
            {**judged(300, 2, sharp=4, right=0.6), "low": 0.01, "high": 100.0},
        ),
        (
            "many classes",
            {**judged(80, 9, sharp=5, right=0.5), "low": 0.05, "high": 20.0},
        ),
        (
            "logits in float32 that are large",
            {
                "logits": 300 * HALF_RIGHT["logits"].float(),
                "labels": HALF_RIGHT["labels"],
                "low": 0.05,
                "high": 5000.0,
            },
        ),
        (
            "a best temperature above the higher end",
            {**judged(40, 2, sharp=6, right=0.5), "low": 0.5, "high": 1.25},
        ),
        (
            "a best temperature below the lower end",
            {**judged(40, 3, sharp=0.5, right=0.98), "low": 0.75, "high": 4.0},
        ),
        (
            "a best temperature far below 1",
            {**judged(60, 4, sharp=0.5, right=0.9), "low": 0.01, "high": 100.0},
        ),
        (
            "one sentence that is wrong among many of which the teacher is sure",
            {
                "logits": numbers(8, 0).repeat(30, 1),
                "labels": torch.tensor([0] * 29 + [1]),
                "low": 0.05,
                "high": 20.0,
            },
        ),
    ],
    "relational_loss": [
        ("a large batch", {"student": normal(40, 6), "teacher": normal(40, 12)}),
        ("two sentences", {"student": normal(2, 3), "teacher": normal(2, 4)}),
        (
            "states far from zero, and near to one another",
            {"student": far(normal(30, 4), 3000), "teacher": far(normal(30, 8), -3000)},
        ),
        (
            "sentences that occur twice",
            {
                "student": normal(3, 4)[[0, 1, 2, 0, 1]],
                "teacher": normal(3, 5)[[0, 1, 2, 0, 1]],
            },
        ),
        (
            "a teacher to whom all sentences are the same",
            {"student": normal(5, 3), "teacher": torch.zeros(5, 2).double()},
        ),
        (
            "relations that are the same, but turned",
            {
                "student": PLANE @ numbers(0.6, 0, 0.8, -0.8, 0, 0.6).view(2, 3),
                "teacher": PLANE,
            },
        ),
        (
            "one sentence far from all others",
            {
                "student": torch.cat([normal(12, 3), 90 * ones(3)[None]]),
                "teacher": normal(13, 3),
            },
        ),
    ],
    "align_tokens": [
        (
            "a long sentence",
            {
                "student": spans("dis|till|ation| is| a| won|der|ful| thing| to| be|hold| tod|ay"),
                "teacher": spans("distil|lation| is| a| wonder|ful| thing| to| behold| to|day"),
            },
        ),
        ("the same tokens", {"student": spans("as| it| was"), "teacher": spans("as| it| was")}),
        (
            "padding behind the tokens of the student",
            {
                "student": [*spans("go|od| end"), (0, 0), (0, 0)],
                "teacher": spans("good| end"),
            },
        ),
        (
            "padding behind the tokens of both",
            {
                "student": [*spans("go|od| end"), (0, 0)],
                "teacher": [*spans("good| end"), (0, 0), (0, 0)],
            },
        ),
        (
            "a teacher that reads bytes, several of them in one character",
            {
                "student": spans("so| ☺☺| end"),
                "teacher": [(0, 2), (2, 4), (3, 4), (3, 4), (4, 5), (4, 5), (5, 9)],
            },
        ),
        (
            "single characters, and words",
            {"student": spans("g|o|o|d| e|n|d"), "teacher": spans("good| end")},
        ),
        (
            "words, and single characters",
            {"student": spans("good| end"), "teacher": spans("g|o|o|d| e|n|d")},
        ),
        (
            "no token in common",
            {"student": spans("good", special=False), "teacher": [(5, 8), (8, 9)]},
        ),
    ],
    "jensen_shannon_loss": [
        ("a large vocabulary", {**pair(2, 5, 300, spread=3), "beta": 0.3}),
        ("beta near 0", {**pair(1, 3, 5), "beta": 0.001}),
        ("beta near 1", {**pair(1, 3, 5), "beta": 0.999}),
        (
            "many sentences of different lengths, beta 0",
            {**pair(4, 6, 4), "mask": lengths(2, 6, 1, 4), "beta": 0.0},
        ),
        (
            "many sentences of different lengths, beta 1",
            {**pair(4, 6, 4), "mask": lengths(2, 6, 1, 4), "beta": 1.0},
        ),
        (
            "a token that the teacher has no probability for, beta 0",
            {
                **pair(1, 2, 3),
                "teacher": numbers(1, NONE, 0, NONE, 0.5, 0).view(1, 2, 3),
                "beta": 0.0,
            },
        ),
        (
            "a token that the student has no probability for, beta 1",
            {
                **pair(1, 2, 3),
                "student": numbers(1, NONE, 0, NONE, 0.5, 0).view(1, 2, 3),
                "beta": 1.0,
            },
        ),
        (
            "a token that only the teacher has a probability for",
            {
                **pair(1, 2, 3),
                "student": numbers(1, NONE, 0, NONE, 0.5, 0).view(1, 2, 3),
                "beta": 0.5,
            },
        ),
        (
            "probabilities that are too small for a number",
            {
                "student": numbers(0, -900, 2).view(1, 1, 3),
                "teacher": numbers(1, 0, -1200).view(1, 1, 3),
                "mask": torch.ones(1, 1).long(),
                "beta": 0.4,
            },
        ),
        (
            "a student that agrees",
            {"student": SAME, "teacher": SAME, "mask": torch.ones(1, 2).long(), "beta": 0.2},
        ),
    ],
    "choose_questions": [
        ("many sentences", {**asked(200, 2, 8), "count": 40}),
        ("many classes", {**asked(60, 12, 5, sharp=2.5), "count": 15}),
        ("all of them", {**asked(9, 3, 4), "count": 9}),
        (
            "a sentence that occurs twice",
            {
                "logits": normal(6, 2)[[0, 1, 2, 3, 4, 5, 2]],
                "states": normal(6, 3)[[0, 1, 2, 3, 4, 5, 2]],
                "count": 5,
            },
        ),
        (
            "gradients that have no room in memory",
            {
                "logits": normal(40, 10_000, steps=2, spread=2),
                "states": normal(40, 1_500, steps=2),
                "count": 6,
            },
        ),
        (
            "a student that is equally unsure of sentences in a square",
            {
                "logits": torch.zeros(4, 2).double(),
                "states": numbers(1, 1, 1, -1, -1, 1, -1, -1).view(4, 2),
                "count": 3,
            },
        ),
        (
            "logits that are large",
            {"logits": 1000 + normal(30, 3), "states": normal(30, 4), "count": 8},
        ),
    ],
}
