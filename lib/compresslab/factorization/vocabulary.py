"""Vocabulary trimming: leave out tokens that the task does not use, and their rows of the table.

Source: Abdaoui, Pradel and Sigel (2020), Load What You Need: Smaller Versions of Multilingual BERT,
arXiv:2010.05609, which keeps the tokens of one language. Here they are those of a corpus.

What was left out is not unknown: WordPiece then finds a word in smaller pieces, down to single
characters, which are all kept. So the text stays readable, becomes longer, and what a whole word
meant has to be told from its pieces. Text of another kind suffers most.

    counts = count_tokens(tokenizer(texts)["input_ids"], len(tokenizer))
    kept = choose_tokens(tokenizer.get_vocab(), counts, 8_000, special=tokenizer.all_special_tokens)
    definition, index = trim_wordpiece(tokenizer.backend_tokenizer.to_str(), kept)
    trim_embedding_(model, "bert.embeddings.word_embeddings", index)

Not included: other kinds of tokenizer. Byte-pair merges depend on each other, so that a token
cannot go before those that are made of it.
"""

import json
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from ..layers import own_layers, replace_


def count_tokens(texts: Iterable[Iterable[int]], size: int) -> Tensor:
    """How often each of `size` tokens occurs in texts of token numbers. (size,) int64."""
    ids = torch.tensor([i for text in texts for i in text], dtype=torch.int64)
    return torch.bincount(ids, minlength=size)


def choose_tokens(
    vocabulary: Mapping[str, int], counts: Tensor, size: int, *, special: Collection[str]
) -> set[str]:
    """The tokens to keep: special ones, single characters, and then the most frequent.

    Of equally frequent tokens the one with the smaller number stays: BERT's vocabulary is sorted
    by frequency in its own corpus, but for the places called [unused...], which go first of all.

    Args:
        vocabulary: token -> its number.
        counts: (tokens,), by number.
        size: how many are kept.

    Raises:
        ValueError: a number without a count, or a size below what is always kept.
    """
    if max(vocabulary.values()) >= len(counts):
        raise ValueError(f"token {max(vocabulary.values())} has no count among {len(counts)}")
    always = {t for t in vocabulary if len(t.removeprefix("##")) == 1} | set(special)
    if size < len(always):
        raise ValueError(f"size must be at least {len(always)}, the characters: {size}")
    order = {
        token: (token.startswith("[unused"), -int(counts[i]), i)
        for token, i in vocabulary.items()
        if token not in always
    }
    return always | set(sorted(order, key=order.get)[: size - len(always)])


def trim_wordpiece(definition: str, kept: Collection[str]) -> tuple[str, Tensor]:
    """A WordPiece tokenizer with fewer tokens, in the JSON that the package tokenizers reads.

    Args:
        definition: of the whole tokenizer, `tokenizer.backend_tokenizer.to_str()`.
        kept: the tokens that stay, in their order.

    Returns:
        the new definition, and the old number of each new one, (tokens,) int64.

    Raises:
        ValueError: not WordPiece, a token that it does not have, or a special one left out.
    """
    parts = json.loads(definition)
    if parts["model"]["type"] != "WordPiece":
        raise ValueError(f"the tokenizer must be WordPiece, not {parts['model']['type']}")
    old = parts["model"]["vocab"]
    if unknown := set(kept) - old.keys():
        raise ValueError(f"{len(unknown)} tokens are not in the vocabulary, as {min(unknown)!r}")
    needed = {token["content"] for token in parts["added_tokens"]}
    if missing := needed - set(kept):
        raise ValueError(f"special tokens must be kept: {', '.join(sorted(missing))}")
    order = sorted(kept, key=old.__getitem__)
    new = {token: i for i, token in enumerate(order)}
    parts["model"]["vocab"] = new
    for token in parts["added_tokens"]:
        token["id"] = new[token["content"]]
    # [CLS], [SEP] and [PAD] are named by number elsewhere, too.
    for special in (parts["post_processor"] or {}).get("special_tokens", {}).values():
        special["ids"] = [new[token] for token in special["tokens"]]
    if parts["padding"] is not None:
        parts["padding"]["pad_id"] = new[parts["padding"]["pad_token"]]
    return json.dumps(parts, ensure_ascii=False), torch.tensor([old[token] for token in order])


def trim_embedding_(model: nn.Module, name: str, index: Tensor) -> None:
    """Keep the rows `index` (tokens,) int64 of the embedding called `name`, in place.

    Raises:
        ValueError: it is no embedding, or another layer uses its weight.
    """
    old = own_layers(model, nn.Embedding, [name], what="embedding")[name]
    padding = None
    if old.padding_idx is not None:
        padding = (index == old.padding_idx).nonzero().flatten().tolist()
        padding = padding[0] if padding else None
    rows = old.weight.detach()[index.to(old.weight.device)]
    new = nn.Embedding(len(rows), old.embedding_dim, padding_idx=padding, _weight=rows)
    replace_(model, name, new.train(old.training))
