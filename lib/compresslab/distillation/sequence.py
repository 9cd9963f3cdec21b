"""Language models: soft targets at every position, or whole texts that the teacher wrote.

Source: Kim and Rush (2016), Sequence-Level Knowledge Distillation, arXiv:1606.07947, sections 3.1
and 3.2; the temperature of the first is from Hinton et al. (2015), arXiv:1503.02531.

    word level       L = T² · mean over t of KL(p(· | y_<t) ‖ q(· | y_<t)),   y a given text
    sequence level   L = - log q(ŷ | x),     ŷ the teacher's own continuation of x

    code                  paper
    student, teacher      q, p   logits (batch, time, tokens)
    prompts               x      (batch, time); the paper's source sentence
    ids                   x ŷ    (batch, time + new)
    beams                 5 in the paper; 1 takes the likeliest token at each step

At sequence level the student sees what the teacher is most likely to say, without the rest of its
distribution: any text will do as a target, the vocabularies may differ, and the texts can be made
once and kept. At word level both models read one text, so their vocabularies must be the same, and
the logits are large: 49,152 numbers a token for SmolLM2.

Differs from the paper: it translates, and all of ŷ comes from the teacher; here the text begins
with a prompt, and only what comes after it counts. With sample=True ŷ is drawn from p, so that the
loss becomes the cross-entropy of the paper's equation for all texts in expectation. Not included:
sequence-level interpolation (of several ŷ the one most like the true text).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..layers import wide
from .masking import check_same, masked_mean


class Continuations(NamedTuple):
    """Prompts and what a teacher added."""

    ids: Tensor  # (batch, time + new) int64
    mask: Tensor  # the same, bool: True where the teacher wrote, its end of text included


def token_loss(
    student: Tensor, teacher: Tensor, mask: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Soft targets at every position, mean over those that count, in at least float32.

    Both models' logits at position t are about token t + 1, so nothing has to be shifted.

    Args:
        student, teacher: logits (batch, time, tokens); no gradient reaches the teacher.
        mask: (batch, time), not zero where a position counts.
        temperature: above 0.

    Raises:
        ValueError: shapes differ, mask has another shape, or temperature is not above 0.
    """
    check_same(student, teacher, "(batch, time, tokens)", mask)
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    keep = mask.bool()  # before the softmax: padding would cost as much as text
    log_q = (wide(student[keep]) / temperature).log_softmax(dim=-1)
    log_p = (wide(teacher.detach()[keep]) / temperature).log_softmax(dim=-1)
    total = F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    return temperature**2 * total / keep.sum().clamp(min=1)


@torch.no_grad()
def continue_texts(
    teacher: PreTrainedModel,
    prompts: Tensor,
    *,
    new_tokens: int,
    beams: int = 1,
    sample: bool = False,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> Continuations:
    """What the teacher writes after each prompt, up to its end of text.

    Args:
        teacher: a causal language model of transformers, in evaluation mode.
        prompts: (batch, time) int64, all of one length, none padded.
        new_tokens: at most so many.
        beams: of a beam search; 1 is greedy.
        sample: draw each token from the whole distribution (no top-k, no top-p) instead.
        temperature: of that; below 1, likely tokens become likelier.

    Returns:
        new may be below `new_tokens` where all texts ended earlier. After its end a text is filled
        up, and mask is False there.

    Raises:
        ValueError: prompts of another shape or dtype, new_tokens or beams below 1, beams with
            sample, or temperature is not above 0.
    """
    if prompts.ndim != 2 or prompts.dtype != torch.int64:
        raise ValueError(
            f"prompts must be int64 (batch, time), not {prompts.dtype} {tuple(prompts.shape)}"
        )
    if new_tokens < 1 or beams < 1:
        raise ValueError(f"new_tokens and beams must be at least 1, not {new_tokens} and {beams}")
    if sample and beams > 1:
        raise ValueError(f"beams must be 1 where tokens are drawn, not {beams}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, not {temperature}")
    ends = teacher.generation_config.eos_token_id
    ends = [] if ends is None else torch.tensor(ends).flatten().tolist()
    options = {"do_sample": False, "num_beams": beams}
    if sample:
        options = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with _seeded(teacher.device, generator) if sample else nullcontext():
        ids = teacher.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=new_tokens,
            pad_token_id=ends[0] if ends else 0,
            **options,
        )
    is_end = torch.isin(ids, torch.tensor(ends, dtype=ids.dtype, device=ids.device))
    is_end[:, : prompts.shape[1]] = False  # one inside the prompt is not the teacher's
    mask = is_end.cumsum(dim=1) - is_end.long() == 0
    mask[:, : prompts.shape[1]] = False
    return Continuations(ids, mask)


def sequence_loss(logits: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    """Cross-entropy of the marked tokens, each with the logits one position before it, mean over
    them, in at least float32; zero if none is marked.

    Args:
        logits: the student's, (batch, time, tokens).
        ids: (batch, time) int64, the text that it read.
        mask: (batch, time), not zero where a token is to be learned; the first has nothing before
            it and never counts.

    Raises:
        ValueError: shapes do not fit together.
    """
    if logits.ndim != 3 or not logits.shape[:2] == ids.shape == mask.shape:
        raise ValueError(
            "logits (batch, time, tokens), ids and mask (batch, time) do not fit: "
            f"{tuple(logits.shape)}, {tuple(ids.shape)} and {tuple(mask.shape)}"
        )
    losses = F.cross_entropy(
        wide(logits[:, :-1]).transpose(1, 2), ids[:, 1:], reduction="none"
    )  # (batch, time - 1)
    return masked_mean(losses, mask[:, 1:])


@contextmanager
def _seeded(device: torch.device, generator: torch.Generator | None) -> Iterator[None]:
    """`generate` takes no generator: seed the global one of the device, and put it back after."""
    seed = int(torch.randint(2**62, (), generator=generator))
    on_gpu = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        (torch.cuda if on_gpu else torch.default_generator).manual_seed(seed)
        yield
