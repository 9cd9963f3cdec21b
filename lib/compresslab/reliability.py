"""What the probabilities of a classifier are worth: of the answers that it is 80 % sure of, are
80 % right? Called calibration, too; not the calibration that chooses a quantizer's range.

    confidence, correct = judge(logits, labels)
    reliability(confidence, correct).error              expected calibration error
    chance_error(confidence)                            what perfect probabilities would get
    T = fit_temperature(validation_logits, validation_labels)
    judge(test_logits / T, test_labels)                 the same answers, put right
    shift = matching_shift(validation_logits, validation_labels)

    ECE = Σ_b n_b / n · |acc_b − conf_b|

Source: Guo et al. (2017), On Calibration of Modern Neural Networks, arXiv:1706.04599: section 2 for
bins and error, section 4 for the temperature. For `chance_error`, Roelofs et al. (2020), Mitigating
Bias in Calibration Error Estimation, arXiv:2012.08668: perfect probabilities have an error, too.

    code                    paper
    confidence              p̂, the probability of the answer
    counts                  |B_m|
    accuracy - confidence   acc(B_m) − conf(B_m)
    factor                  1 / T

Not included: a temperature for each class, and calibration of the other classes' probabilities.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Width = Literal["equal", "quantile"]


@dataclass(frozen=True)
class Bins:
    """Answers sorted into bins by their confidence; float64 (bins,), NaN in an empty bin.

    `counts` are answers, `confidence` is the mean of theirs, `accuracy` the fraction that is right.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """Expected calibration error: how far accuracy and confidence are apart, 0 to 1, averaged
        over the answers."""
        gaps = (self.accuracy - self.confidence).abs().nan_to_num(0.0)
        return ((self.counts / self.counts.sum()) @ gaps).item()


def judge(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The confidence of each answer, float64 (sentences,), and whether it is right, bool.

    Args:
        logits: (sentences, classes).
        labels: int64 (sentences,).

    Raises:
        ValueError: other shapes, or a logit that is not finite.
    """
    _check(logits, labels)
    confidence, answers = logits.double().softmax(-1).max(-1)
    return confidence, answers == labels


def reliability(
    confidence: Tensor,
    correct: Tensor,
    *,
    bins: int = 15,
    width: Width = "equal",
) -> Bins:
    """Sort answers into bins by confidence.

    Args:
        confidence: (sentences,), 0 to 1.
        correct: bool (sentences,).
        bins: 15 is what the paper takes.
        width: "equal" cuts 0 to 1 into parts of one width, as the paper does: with two classes the
            lower half stays empty. "quantile" has about as many answers in each bin. A number on an
            edge belongs to the bin below.

    Raises:
        ValueError: shapes differ or are others, a confidence outside 0 to 1, or no bins.
    """
    if confidence.shape != correct.shape:
        raise ValueError(
            "confidence and correct must be of one shape, not "
            f"{tuple(confidence.shape)} and {tuple(correct.shape)}"
        )
    of = _bins_of(confidence, bins, width)
    counts = torch.bincount(of, minlength=bins).double()
    sums, right = (
        torch.bincount(of, weights.double(), minlength=bins) for weights in (confidence, correct)
    )
    return Bins(counts, sums / counts, right / counts)


def _bins_of(confidence: Tensor, bins: int, width: str) -> Tensor:
    """The number of each answer's bin, int64 (sentences,)."""
    if confidence.ndim != 1 or len(confidence) == 0:
        raise ValueError(f"confidence must be (sentences,), not {tuple(confidence.shape)}")
    if not bool(((confidence >= 0) & (confidence <= 1)).all()):
        raise ValueError("confidence must be from 0 to 1")
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    confidence = confidence.double()
    edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
    if width == "quantile":
        edges = confidence.quantile(edges)
    elif width != "equal":
        raise ValueError(f"width must be 'equal' or 'quantile', not {width!r}")
    return torch.bucketize(confidence, edges[1:-1])


def chance_error(
    confidence: Tensor,
    *,
    draws: int = 200,
    bins: int = 15,
    width: Width = "equal",
    generator: torch.Generator | None = None,
) -> Tensor:
    """The error, float64 (draws,), if every answer were right as often as it is confident.

    Draws who is right from the confidences themselves. What is left is the luck of a finite sample:
    an error is a finding only where it is larger than nearly all of these.

    Args:
        confidence, bins, width: as in `reliability`.

    Raises:
        ValueError: as `reliability`.
    """
    inside = F.one_hot(_bins_of(confidence, bins, width), bins).double()  # (sentences, bins)
    p = confidence.double()
    drawn = torch.rand(draws, len(p), dtype=torch.float64, generator=generator) < p
    return ((drawn.double() - p) @ inside).abs().sum(1) / len(p)


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The T at which softmax(logits / T) makes the labels likeliest; above 1 for a model that is
    too sure. The answers stay what they are.

    The mean of −log softmax(f · logits)[label] is convex in the factor f = 1 / T. Its slope is the
    mean logit that the model expects minus the mean logit of the labels, and halving an interval
    finds where that is 0, to some ten digits.

    Args:
        logits: (sentences, classes), of sentences that neither training nor the test has.
        labels: int64 (sentences,).

    Raises:
        ValueError: other shapes, or a logit that is not finite; or no temperature is best, since
            all answers are right (the surer the better), or no better than chance.
    """
    _check(logits, labels)
    scores = logits.double()
    own = scores.gather(1, labels[:, None])[:, 0]

    def slope(factor: float) -> float:
        return (((factor * scores).softmax(-1) * scores).sum(-1) - own).mean().item()

    if bool((own == scores.amax(-1)).all()) or slope(0.0) >= 0:
        raise ValueError("no temperature is best: all answers are right, or no better than chance")
    low, high = 0.0, 1.0
    while slope(high) < 0:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / high


def matching_shift(logits: Tensor, labels: Tensor) -> float:
    """What to add to the logit of label 1 so that a classifier of two labels gives it as often as
    it is right. It takes how often that is from `labels`, and not which sentence has which.

    Damage can push all logits to one side, which is mended so; unlike a temperature, it changes
    answers. The threshold lies halfway between the two sentences that it has to separate.

    Args:
        logits: (sentences, 2), of sentences that neither training nor the test has.
        labels: int64 (sentences,), 0 or 1.

    Raises:
        ValueError: other shapes, a logit that is not finite, or a label that does not occur.
    """
    _check(logits, labels)
    count = int(labels.sum())
    if logits.shape[1] != 2 or not 0 < count < len(labels):
        raise ValueError(
            f"logits must be (sentences, 2) and both labels must occur, not {tuple(logits.shape)} "
            f"with {count} of {len(labels)} labels 1"
        )
    margins = (logits[:, 1] - logits[:, 0]).double().sort(descending=True).values
    return -(margins[count - 1] + margins[count]).item() / 2


def _check(logits: Tensor, labels: Tensor) -> None:
    if logits.ndim != 2 or labels.shape != logits.shape[:1] or len(labels) == 0:
        raise ValueError(
            "logits must be (sentences, classes) and labels (sentences,), not "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    if not bool(logits.isfinite().all()):
        raise ValueError("logits must be finite")
