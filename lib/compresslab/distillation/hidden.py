"""Hidden states: the student is led along the way, not only to the answer.

Source: Sanh et al. (2019), DistilBERT, arXiv:1910.01108, section 2 (cosine of the last hidden
states); Jiao et al. (2019), TinyBERT, arXiv:1909.10351, section 3.1, equations 8 and 9:

    L_cos = mean over tokens of 1 - cos(h^S, h^T)
    L_hidn = MSE(H^S W_h, H^T) for every layer,     L_embd = MSE(E^S W_e, E^T)

    code          papers
    student       h^S, H^S, E^S   hidden states (batch, time, width)
    teacher       h^T, H^T, E^T   the same, of the teacher's width
    projection    W_h, W_e        from the student's width to the teacher's
    layers[m]     g(m + 1) - 1    the teacher's layer for layer m of the student

Layers are numbered from 0 here; the papers count from 1. The hidden states of transformers
(`output_hidden_states=True`) begin with the embeddings: layer i's are number i + 1.

A projection has to be trained with the student, and is thrown away afterwards. `train` sees the
parameters of one model, so it has to be made a part of that meanwhile:

    student.projection = width_projection(192, 384)
    ... hidden_loss(ours, theirs, mask, projection=student.projection) ...
    del student.projection

Differs from the papers: the mean is over real tokens; TinyBERT's code has padding in it. Its code
uses one projection, with a bias, for embeddings and layers alike; here it has none, as in the
paper. Not included: a weight for each layer, which the paper sets to 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import new_linear, wide
from .masking import check_same, masked_mean

AXES = "(batch, time, width)"


def uniform_layers(student: int, teacher: int) -> list[int]:
    """Which of the teacher's layers each of the student's learns from: the last of equal blocks.

    4 of 12 learn from 2, 5, 8, 11, as in TinyBERT. Where the numbers do not divide, the end of a
    block is rounded down: 4 of 6 learn from 0, 2, 3, 5. The last always learns from the last.

    Args:
        student, teacher: how many layers they have.

    Raises:
        ValueError: the student has none, or more than the teacher.
    """
    if not 1 <= student <= teacher:
        raise ValueError(
            f"student must have 1 to {teacher} layers as its teacher has, not {student}"
        )
    return [(m + 1) * teacher // student - 1 for m in range(student)]


def cosine_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """1 - cosine of the hidden states of a token, mean over real tokens, in at least float32: from
    0 for the same direction to 2 for the opposite one; 1 for a state that is zero.

    Args:
        student, teacher: (batch, time, width); no gradient reaches the teacher.
        mask: (batch, time), not zero where a token is real.

    Raises:
        ValueError: shapes differ, also if only in width, or mask has another shape.
    """
    check_same(student, teacher, AXES, mask)
    cosine = F.cosine_similarity(wide(student), wide(teacher.detach()), dim=-1)
    return masked_mean(1 - cosine, mask)


def hidden_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, *, projection: nn.Module | None = None
) -> Tensor:
    """Mean squared difference of hidden states, over real tokens and width, in at least float32.

    Args:
        student: (batch, time, width of the student).
        teacher: (batch, time, width of the teacher); no gradient reaches it.
        mask: (batch, time), not zero where a token is real.
        projection: from the student's width to the teacher's; may be left out where they are one.

    Raises:
        ValueError: shapes, after the projection, differ, or mask has another shape.
    """
    if projection is not None:
        student = projection(student)
    check_same(student, teacher, AXES, mask)
    squares = (wide(student) - wide(teacher.detach())).square()
    return masked_mean(squares.mean(dim=-1), mask)


def hidden_states_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    layers: Sequence[int],
    mask: Tensor,
    *,
    projection: nn.Module | None = None,
) -> Tensor:
    """Sum of `hidden_loss` over the student's layers, one projection for all; embeddings apart.

    Args:
        student, teacher: `hidden_states` that transformers gives, embeddings first.
        layers: the teacher's layer for each of the student's, from 0: `uniform_layers`.

    Raises:
        ValueError: not one number for each layer of the student, one that the teacher does not
            have, or as `hidden_loss`.
    """
    if len(layers) != len(student) - 1:
        raise ValueError(f"layers must have {len(student) - 1} numbers, not {list(layers)}")
    if not all(0 <= i < len(teacher) - 1 for i in layers):
        raise ValueError(f"layers of the teacher are 0 to {len(teacher) - 2}, not {list(layers)}")
    return sum(
        hidden_loss(ours, teacher[i + 1], mask, projection=projection)
        for ours, i in zip(student[1:], layers, strict=True)
    )


def embedding_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    mask: Tensor,
    *,
    projection: nn.Module | None = None,
) -> Tensor:
    """`hidden_loss` of what goes into the first layer: tokens and positions, after LayerNorm.

    Arguments and errors as for `hidden_states_loss`.
    """
    return hidden_loss(student[0], teacher[0], mask, projection=projection)


def width_projection(
    student: int, teacher: int, *, generator: torch.Generator | None = None
) -> nn.Linear:
    """A linear layer from the student's width to the teacher's, without bias, that keeps the size
    of what goes through it on average: normal, variance 1 / student.
    """
    return new_linear(torch.randn(teacher, student, generator=generator) / student**0.5)
