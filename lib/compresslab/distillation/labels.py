"""Label smoothing: soft targets without a teacher.

Source: Szegedy et al. (2015), Rethinking the Inception Architecture for Computer Vision,
arXiv:1512.00567, section 7:

    q'(k) = (1 - ε) δ_{k,y} + ε / K,     L = -Σ_k q'(k) log p(k)

    code        paper
    labels      y    the right classes
    classes     K
    smoothing   ε    0.1 in the paper

It is distillation from a teacher that knows nothing. With H the cross-entropy with the labels and
u = 1/K for every class, whose entropy is log K,

    L = (1 - ε) H + ε (KL(u ‖ p) + log K),

and KL(u ‖ p) is `soft_target_loss` at temperature 1 with logits that are all the same. What a real
teacher adds is that its targets differ from example to example. One that was itself trained with
smoothing has less of that to give: Müller, Kornblith and Hinton (2019), When Does Label Smoothing
Help?, arXiv:1906.02629.

Not included: a distribution u other than the uniform one.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import wide


def check_classes(labels: Tensor, classes: int) -> None:
    """Raises ValueError for a label that is no number of a class."""
    if ((labels < 0) | (labels >= classes)).any():
        raise ValueError(f"labels must be from 0 to {classes - 1}, not {labels.tolist()}")


def smooth_labels(labels: Tensor, classes: int, *, smoothing: float = 0.1) -> Tensor:
    """Target distributions, float32 (batch, classes), each adding up to 1.

    Args:
        labels: (batch,) int64.
        smoothing: 0 for one-hot targets, to 1 for the same probability everywhere.

    Raises:
        ValueError: labels of another shape or dtype or outside the classes, or smoothing outside
            [0, 1].
    """
    if labels.ndim != 1 or labels.dtype != torch.int64:
        raise ValueError(
            f"labels must be int64 of shape (batch,), not {labels.dtype} of shape "
            f"{tuple(labels.shape)}"
        )
    check_classes(labels, classes)
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing must be from 0 to 1, not {smoothing}")
    return (1 - smoothing) * F.one_hot(labels, classes).float() + smoothing / classes


def smoothed_loss(logits: Tensor, labels: Tensor, *, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy with smoothed labels, mean over the batch, in at least float32.

    Not zero at its best, but the entropy of the targets.

    Args:
        logits: (batch, classes).

    Raises:
        ValueError: logits that are not (batch, classes) of this batch, or as `smooth_labels`.
    """
    if logits.ndim != 2 or len(logits) != len(labels):
        raise ValueError(
            f"logits must be (batch, classes) for {len(labels)} labels, not {tuple(logits.shape)}"
        )
    log_p = wide(logits).log_softmax(dim=-1)
    targets = smooth_labels(labels, logits.shape[1], smoothing=smoothing)
    return -(targets * log_p).sum(dim=-1).mean()
