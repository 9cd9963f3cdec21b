"""Augmentation: more sentences for the teacher to answer, from words with similar embeddings.

Source: Jiao et al. (2019), TinyBERT: Distilling BERT for Natural Language Understanding,
arXiv:1909.10351, section 3.2 and algorithm 1:

    for each word, with probability p_t, one of its K candidates at random; N_a copies a sentence

    code           paper
    probability    p_t   0.4
    candidates     K     15
    copies         N_a   20

Nearest by embedding does not mean the same: `good` and `bad` are neighbours. The label of a
sentence does not hold for its copies, and nothing here gives them one. Train on what the teacher
says to them, which is what distillation needs.

    words = {word for text in texts for word in split_words(text)}
    neighbours = nearest_words(words, tokenizer.get_vocab(), table, candidates=15)
    copies = augment(texts, neighbours, copies=5, probability=0.4, generator=generator)

Differs from the paper: there a masked BERT proposes the candidates for words of one piece, and
GloVe for those of several. Here they come from the model's own token embeddings, which only words
of one piece have, so the others stay. Candidates do not depend on the sentence. The authors' code
leaves stop words alone and drops copies that occur twice; here, leave such words out of `words`.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import wide

# Letters and digits without a break, as BERT's tokenizer cuts words; an underscore is a break.
_WORD = re.compile(r"[^\W_]+")


def split_words(text: str) -> list[str]:
    """The words of a text, in lower case, in order."""
    return [word.lower() for word in _WORD.findall(text)]


def nearest_words(
    words: Iterable[str], vocabulary: Mapping[str, int], table: Tensor, *, candidates: int = 15
) -> dict[str, list[str]]:
    """The words whose embeddings have the largest cosine with that of each word, nearest first.

    Both sides are whole words: tokens of two or more letters and nothing else. A word that is no
    such token gets no entry. Of equal cosines the token with the smaller number comes first.

    Args:
        vocabulary: token -> its number, a row of `table`.
        table: (tokens, width), the token embeddings.

    Returns:
        word -> `candidates` others, sorted by word. Costs 2 · words · tokens · width operations.

    Raises:
        ValueError: a number that `table` does not have, or fewer other whole words than candidates.
    """
    if max(vocabulary.values()) >= len(table):
        raise ValueError(f"token {max(vocabulary.values())} has no row among {len(table)}")
    whole = sorted((t for t in vocabulary if len(t) > 1 and t.isalpha()), key=vocabulary.get)
    if not 1 <= candidates < len(whole):
        raise ValueError(f"candidates must be from 1 to {len(whole) - 1}, not {candidates}")
    place = {token: i for i, token in enumerate(whole)}
    index = torch.tensor([vocabulary[token] for token in whole], device=table.device)
    rows = F.normalize(wide(table.detach()[index]), dim=1)
    asked, found = sorted(set(words) & place.keys()), {}
    for start in range(0, len(asked), 512):  # bounds the memory: 512 · tokens cosines
        some = asked[start : start + 512]
        own = torch.tensor([place[word] for word in some], device=table.device)
        cosine = rows[own] @ rows.T
        cosine.scatter_(1, own[:, None], -2.0)  # a word is no candidate of its own
        order = cosine.sort(dim=1, descending=True, stable=True).indices[:, :candidates]
        for word, best in zip(some, order.tolist(), strict=True):
            found[word] = [whole[i] for i in best]
    return found


def augment(
    texts: Iterable[str],
    neighbours: Mapping[str, list[str]],
    *,
    copies: int,
    probability: float = 0.4,
    generator: torch.Generator | None = None,
) -> list[list[str]]:
    """Copies of each text in which words are replaced at random, each word by itself.

    What is not replaced stays as it was, in upper or lower case; a replacement is in lower case.
    The originals are not among the copies, unless by chance.

    Args:
        neighbours: word in lower case -> what may take its place; other words stay.
        copies: of each text.
        probability: that a word which has neighbours is replaced, 0 to 1.

    Returns:
        the copies of the first text, of the second, and so on.

    Raises:
        ValueError: copies below 1, probability outside [0, 1], or a word without any neighbour in
            its list.
    """
    if copies < 1:
        raise ValueError(f"copies must be at least 1, not {copies}")
    if not 0 <= probability <= 1:
        raise ValueError(f"probability must be from 0 to 1, not {probability}")
    if empty := [word for word, others in neighbours.items() if not others]:
        raise ValueError(f"{len(empty)} words have an empty list of neighbours, as {empty[0]!r}")

    def copy(text: str) -> str:
        # Two numbers for each word, also where it stays, drawn at once: one call is slow.
        draws = iter(torch.rand(len(_WORD.findall(text)), 2, generator=generator).tolist())

        def replace(match: re.Match) -> str:
            chance, choice = next(draws)
            others = neighbours.get(match[0].lower())
            if others is None or chance >= probability:
                return match[0]
            return others[int(choice * len(others))]

        return _WORD.sub(replace, text)

    return [[copy(text) for _ in range(copies)] for text in texts]
