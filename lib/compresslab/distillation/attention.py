"""Attention: the student looks where the teacher looks.

Source: Jiao et al. (2019), TinyBERT: Distilling BERT for Natural Language Understanding,
arXiv:1909.10351, section 3.1, equation 7:

    L_attn = 1/h Σ_i MSE(A_i^S, A_i^T),     A_i = Q_i K_iᵀ / √d_k

    code                     paper
    query, key               Q_i, K_i   (batch, heads, time, dim)
    student, teacher         A_i        scores (batch, heads, time, time), before the softmax
    heads                    h          as many in the student as in the teacher

Not the probabilities: after the softmax nearly all differences are tiny, and the paper found scores
to train faster and better. transformers gives back probabilities only, and the fast forms of
attention not even those, so what goes into the scores is read off the linear layers:

    with observe_heads(model) as seen:
        model(**batch)
    scores = attention_scores(seen[5].query, seen[5].key)

Differs from the authors' code: pairs where query or key is padding do not count; there, padded
queries do, and padded keys add a zero to the mean. Not included: models other than BERT.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from ..layers import bert_layers, wide
from .masking import check_same, masked_mean, pairs

PARTS = ("query", "key", "value")


class Heads(NamedTuple):
    """What a layer's attention is computed from, each (batch, heads, time, dim)."""

    query: Tensor
    key: Tensor
    value: Tensor


@contextmanager
def observe_heads(model: nn.Module) -> Iterator[dict[int, Heads]]:
    """While the context is open, keep queries, keys and values of every forward pass of a BERT.

    They are part of the graph, so a loss on them trains the model; run a teacher in
    `torch.no_grad()`. They stay after the context is closed, until the dictionary goes.

    Yields:
        number of a layer -> `Heads`, of the latest pass; empty before the first.

    Raises:
        ValueError: not a BERT.
    """
    seen: dict[int, Heads] = {}
    handles = []

    def watch(i: int, attention: nn.Module) -> None:
        found: dict[str, Tensor] = {}

        def keep(name: str):
            def hook(module, args, output):
                heads = output.unflatten(-1, (-1, attention.attention_head_size))
                found[name] = heads.transpose(1, 2)

            return hook

        def gather(module, args, output):
            seen[i] = Heads(**found)
            found.clear()

        handles.extend(getattr(attention, n).register_forward_hook(keep(n)) for n in PARTS)
        handles.append(attention.register_forward_hook(gather))

    for i, layer in enumerate(bert_layers(model)):
        watch(i, layer.attention.self)
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def attention_scores(query: Tensor, key: Tensor) -> Tensor:
    """Q Kᵀ / √dim, without mask: (batch, heads, time, dim) twice -> (batch, heads, time, time), in
    at least float32.

    Raises:
        ValueError: shapes differ.
    """
    if query.shape != key.shape or query.ndim != 4:
        raise ValueError(
            "query and key must be of one shape (batch, heads, time, dim), not "
            f"{tuple(query.shape)} and {tuple(key.shape)}"
        )
    return wide(query) @ wide(key).transpose(-1, -2) / query.shape[-1] ** 0.5


def attention_loss(student: Tensor, teacher: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of scores, over heads and over pairs of real tokens of a sentence.

    Args:
        student, teacher: (batch, heads, time, time), before the softmax; no gradient reaches the
            teacher.
        mask: (batch, time), not zero where a token is real.

    Raises:
        ValueError: shapes differ, also if only in the number of heads, or mask has another shape.
    """
    check_same(student, teacher, "(batch, heads, time, time)", mask)
    return masked_mean((wide(student) - wide(teacher.detach())).square(), pairs(mask))
