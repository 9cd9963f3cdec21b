"""MiniLM: only one layer's attention is imitated, and students of any width or depth can do so.

Source: Wang et al. (2020), MiniLM: Deep Self-Attention Distillation, arXiv:2002.10957, section 3;
Wang et al. (2020), MiniLMv2: Multi-Head Self-Attention Relation Distillation,
arXiv:2012.15828, section 3. A relation says for each token how much it has to do with every other:

    R(X, Y) = softmax(X Yᵀ / √d)
    first     KL(R(Q, K)^T ‖ R(Q, K)^S) + KL(R(V, V)^T ‖ R(V, V)^S),      heads as they are
    v2        Σ_i α_i KL(R(X_i, X_i)^T ‖ R(X_i, X_i)^S), X = Q, K, V,     relation heads

    code               papers
    Heads              Q, K, V    (batch, heads, time, dim) of one layer
    relation_heads     A_r        v2: the width is cut anew, into as many parts
    weights            α          v2: of queries, keys and values
    student, teacher   S, T

A relation is (time, time) whatever the width, so there is no projection. The first form needs as
many heads in the student as in the teacher. v2 joins the heads and cuts the width anew, in student
and teacher into as many relation heads, so that only the widths must be divisible; more relation
heads than heads is finer knowledge (48 for a teacher with 12 heads of 64).

Which layer: the student's last, and of the teacher the last (the first paper, and v2 for teachers
of 12 layers) or an upper middle one (v2 for those of 24).

Differs from the papers: means are over the real tokens of a batch, not over each sentence first.
Padded keys have probability zero in both models. Not included: the teacher assistant.
"""

import torch
from torch import Tensor

from ..layers import wide
from .attention import Heads, attention_scores
from .masking import check_same, masked_mean


def relation_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Divergence of the student's relations from the teacher's, mean over heads and real tokens, in
    at least float32; zero where they agree.

    Args:
        student, teacher: (batch, heads, time, time) before the softmax over the last axis; no
            gradient reaches the teacher.
        mask: (batch, time), not zero where a token is real.

    Raises:
        ValueError: shapes differ, also if only in the number of heads, or mask has another shape.
    """
    check_same(student, teacher, "(batch, heads, time, time)", mask)
    log_q, log_p = (_log_softmax(scores, mask) for scores in (student, teacher.detach()))
    divergence = (log_p.exp() * (log_p - log_q)).sum(dim=-1)
    return masked_mean(divergence, mask[:, None, :])


def minilm_loss(student: Heads, teacher: Heads, mask: Tensor) -> Tensor:
    """Attention distributions and value relations of one layer each, the first paper's loss.

    Args:
        student, teacher: (batch, heads, time, dim) each, as many heads in both; dim may differ.
        mask: (batch, time), not zero where a token is real.

    Raises:
        ValueError: batch, heads or time differ, or mask has another shape.
    """
    attention = relation_loss(
        attention_scores(student.query, student.key),
        attention_scores(teacher.query, teacher.key),
        mask,
    )
    values = relation_loss(
        attention_scores(student.value, student.value),
        attention_scores(teacher.value, teacher.value),
        mask,
    )
    return attention + values


def minilm_v2_loss(
    student: Heads,
    teacher: Heads,
    mask: Tensor,
    *,
    relation_heads: int,
    weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
) -> Tensor:
    """Relations of queries, of keys and of values among themselves, weighed and added up.

    Args:
        student, teacher: (batch, heads, time, dim) each; heads and dim may differ.
        mask: (batch, time), not zero where a token is real.
        relation_heads: divides heads · dim of both.
        weights: of queries, keys, values.

    Raises:
        ValueError: a width that is not divisible, batch or time differ, mask has another shape, or
            there are not three weights.
    """
    if len(weights) != 3:
        raise ValueError(f"weights must be three, of queries, keys and values, not {weights}")
    total = 0.0
    for ours, theirs, weight in zip(student, teacher, weights, strict=True):
        ours, theirs = regroup(ours, relation_heads), regroup(theirs, relation_heads)
        loss = relation_loss(attention_scores(ours, ours), attention_scores(theirs, theirs), mask)
        total = total + weight * loss
    return total


def regroup(x: Tensor, heads: int) -> Tensor:
    """(batch, old heads, time, old dim) -> (batch, heads, time, dim): joined, and cut anew.

    Raises:
        ValueError: heads does not divide the width, old heads · old dim.
    """
    joined = x.transpose(1, 2).flatten(2)  # (batch, time, width)
    if heads < 1 or joined.shape[-1] % heads:
        raise ValueError(f"heads must divide the width {joined.shape[-1]}, not {heads}")
    return joined.unflatten(-1, (heads, -1)).transpose(1, 2)


def _log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    # The smallest number, not -∞: of a sentence that is all padding the gradient stays a number.
    scores = wide(scores)
    padded = ~mask.bool()[:, None, None, :]
    return scores.masked_fill(padded, torch.finfo(scores.dtype).min).log_softmax(dim=-1)
