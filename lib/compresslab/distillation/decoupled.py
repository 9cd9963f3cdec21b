"""Decoupled distillation: how sure the teacher is, and what it takes the others for, weighed apart.

Source: Zhao et al. (2022), Decoupled Knowledge Distillation, arXiv:2203.08679, sections 3.1 and
3.3. The divergence of soft targets is the sum of two, and p_t is the teacher's probability of the
label:

    KL(p ‖ q) = KL(b_p ‖ b_q) + (1 - p_t) · KL(p̂ ‖ q̂)  =  TCKD + (1 - p_t) · NCKD
    L = T² · (α · TCKD + β · NCKD)

    code               paper
    student, teacher   z^S, z^T            logits
    parts.label        TCKD = KL(b_p ‖ b_q)   b: the label against all others together
    parts.others       NCKD = KL(p̂ ‖ q̂)   p̂: the others among themselves, adding up to 1
    parts.rest         1 - p_t             the weight that plain distillation gives to NCKD
    alpha, beta        α, β

The more sure the teacher is, the less plain distillation counts what it knows about the others. A
beta that is one number undoes that; beta = parts.rest, a number for each example, is plain
distillation. With two classes there is one other, NCKD is zero, and nothing is decoupled: the loss
is alpha times `soft_target_loss`.

Differs from the authors' code: that takes the label out of a softmax by subtracting 1000 from its
logit; here the others have a softmax of their own. Not included: their warm-up of the loss, and the
cross-entropy with the label that is added to it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ..layers import wide
from .labels import check_classes


class Parts(NamedTuple):
    """The two divergences of every example, and what plain distillation weighs the second by."""

    label: Tensor  # (batch,)
    others: Tensor  # (batch,)
    rest: Tensor  # (batch,), the teacher's probability of all classes but the label


def decoupled_parts(
    student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 2.0
) -> Parts:
    """TCKD, NCKD and 1 - p_t of every example, in at least float32, without the factor T².

    Args:
        student, teacher: logits (batch, classes), at least two classes; no gradient reaches the
            teacher.
        labels: (batch,) int64, the right classes.
        temperature: above 0; also of p_t.

    Raises:
        ValueError: shapes differ or are not (batch, classes), fewer than two classes, labels of
            another shape or dtype or outside the classes, or temperature is not above 0.
    """
    if student.shape != teacher.shape or student.ndim != 2 or student.shape[1] < 2:
        raise ValueError(
            "student and teacher must be logits of one shape (batch, 2 or more classes), not "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    batch, classes = student.shape
    if labels.shape != (batch,) or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape ({batch},), "
            f"not {labels.dtype} of shape {tuple(labels.shape)}"
        )
    check_classes(labels, classes)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    log_q = _split(wide(student) / temperature, labels)
    log_p = _split(wide(teacher.detach()) / temperature, labels)
    label, others = (_divergence(p, q) for p, q in zip(log_p, log_q, strict=True))
    return Parts(label, others, log_p[0][:, 1].exp())


def decoupled_loss(
    student: Tensor,
    teacher: Tensor,
    labels: Tensor,
    *,
    alpha: float = 1.0,
    beta: float | Tensor = 1.0,
    temperature: float = 2.0,
) -> Tensor:
    """T² · (α · TCKD + β · NCKD), mean over the batch; zero where student and teacher agree.

    Args:
        alpha, beta: numbers, or (batch,), a weight for each example. In the paper
            alpha is 1, and beta 8 is best for one pair of models with 100 classes.

    Other arguments as for `decoupled_parts`.

    Raises:
        ValueError: weights of another shape, or as `decoupled_parts`.
    """
    for name, weight in (("alpha", alpha), ("beta", beta)):
        if isinstance(weight, Tensor) and weight.shape not in (labels.shape, ()):
            raise ValueError(
                f"{name} must be a number or have shape {tuple(labels.shape)}, "
                f"not {tuple(weight.shape)}"
            )
    parts = decoupled_parts(student, teacher, labels, temperature=temperature)
    return temperature**2 * (alpha * parts.label + beta * parts.others).mean()


def _split(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of b, (batch, 2), and of p̂, (batch, classes - 1)."""
    is_label = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, labels[:, None], True)
    # Taken out, not set to -∞: 0 · (∞ - ∞) would be no number.
    label, others = logits[is_label][:, None], logits[~is_label].view(len(logits), -1)
    binary = torch.cat([label, others.logsumexp(dim=1, keepdim=True)], dim=1)
    return binary.log_softmax(dim=1), others.log_softmax(dim=1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(dim=1)
