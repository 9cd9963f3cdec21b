"""Soft targets: the student learns the teacher's whole distribution, not the one right answer.

Source: Hinton et al. (2015), Distilling the Knowledge in a Neural Network, arXiv:1503.02531,
section 2. Both distributions are softened by a temperature T, and the loss is multiplied by T²,
since its gradient shrinks with 1/T²:

    L = T² · KL(softmax(t / T) ‖ softmax(s / T))

    code                 paper
    student, teacher     z, v     logits
    temperature          T

Differs from the paper: that writes the cross-entropy, whose gradient is the same; its value is
larger by the entropy of the teacher, so that it does not end at zero.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def soft_target_loss(student: Tensor, teacher: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Divergence of the student from the teacher, mean over the batch, in at least float32; zero
    where they agree.

    Args:
        student, teacher: logits (batch, classes); no gradient reaches the teacher.
        temperature: above 0; the higher, the more the small probabilities count.

    Raises:
        ValueError: shapes differ or are not (batch, classes), or temperature is not above 0.
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(
            "student and teacher must be logits of one shape (batch, classes), not "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    wide = torch.promote_types(student.dtype, torch.float32)
    log_q = F.log_softmax(student.to(wide) / temperature, dim=-1)
    log_p = F.log_softmax(teacher.detach().to(wide) / temperature, dim=-1)
    return temperature**2 * (log_p.exp() * (log_p - log_q)).sum(dim=-1).mean()
