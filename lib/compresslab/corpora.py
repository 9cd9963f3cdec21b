"""The texts of the course: sentences that people rated for sentiment, split once and for all.

    load_reviews()            movie-review sentences, the task of the course
    load_transfer("tweets")   the same task on products, tweets and news
    load_articles()           newspaper articles as running text, for perplexity

Source: C.J. Hutto and E. Gilbert (2014), VADER, ICWSM-14. Every sentence carries the mean of 15 to
99 people's ratings from -4 (most negative) to +4. A label is the sign of that mean, and sentences
whose mean lies within (-0.5, 0.5) are left out, since people do not agree on what their sign is.
"""

import html
import random
from collections import defaultdict

import torch
from datasets import (
    Dataset,
    DatasetDict,
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from .assets import fetch

FILES = {
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "products": "amazonReviewSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
    "news": "nytEditorialSnippets_GroundTruth.txt",
}
LABELS = ("negative", "positive")
MINIMUM_RATING = 0.5
SEED = 20140601  # of every split; the month in which the corpus was published


def load_reviews(*, source: str = "pypi") -> DatasetDict:
    """Movie-review sentences with columns `text` (str), `label` (0 or 1) and `rating` (float).

    Splits `train` (about 7,070), `validation` (1,000) and `test` (2,000) are stratified by label
    and share no sentence: texts that differ only in case, spaces or punctuation count as the same.

    Args:
        source: "pypi" for the sentences above, or "hub" for `stanfordnlp/sst2` from the Hugging
            Face hub, which has 67,349 training phrases, no ratings (the column is NaN), and
            whose `validation` serves as `test`. `validation` is 1,000 phrases of its `train`, and
            phrases of one sentence may lie on both sides of that split.

    Raises:
        ValueError: unknown source.
        AssetError: the sentences could not be fetched.
    """
    if source == "hub":
        return _load_sst2()
    if source != "pypi":
        raise ValueError(f"source must be 'pypi' or 'hub', not {source!r}")
    examples = _labelled(_read("movies"))
    rest, test = _stratified_split(examples, 2000)
    train, validation = _stratified_split(rest, 1000)
    return _dataset({"train": train, "validation": validation, "test": test})


def load_transfer(name: str) -> DatasetDict:
    """The same task on other text: `name` is "products", "tweets" or "news".

    Columns as in `load_reviews`. Half of the documents are `train` and half `test`: sentences
    of one product review or article are never on both sides.

    Raises:
        ValueError: unknown name.
        AssetError: the sentences could not be fetched.
    """
    if name not in FILES or name == "movies":
        raise ValueError(f"name must be 'products', 'tweets' or 'news', not {name!r}")
    by_document = defaultdict(list)
    for example in _labelled(_read(name)):
        by_document[example["document"]].append(example)
    documents = sorted(by_document)
    random.Random(SEED).shuffle(documents)
    half = len(documents) // 2
    return _dataset(
        {
            "train": [e for document in documents[:half] for e in by_document[document]],
            "test": [e for document in documents[half:] for e in by_document[document]],
        }
    )


def load_articles() -> DatasetDict:
    """Newspaper articles as running text, column `text` (str), for perplexity.

    Splits: `calibration` (200 articles, the only ones a method may look at), `validation` (100)
    and `test` (the other 190 or so). A sentence that occurs twice is kept where it occurs first.

    Raises:
        AssetError: the articles could not be fetched.
    """
    sentences = defaultdict(list)
    for example in _unique(_read("news")):
        sentences[example["document"]].append(example["text"])
    documents = sorted(sentences)
    random.Random(SEED).shuffle(documents)
    parts = {
        "calibration": documents[:200],
        "validation": documents[200:300],
        "test": documents[300:],
    }
    return DatasetDict(
        {
            split: Dataset.from_dict({"text": [" ".join(sentences[d]) for d in part]})
            for split, part in parts.items()
        }
    )


def mark_known(texts: list[str]) -> list[bool]:
    """Whether each text is one of the course, of any rating and split, or one of those before it.

    As in `load_reviews`, case, spaces and punctuation do not count.

    Raises:
        AssetError: the sentences could not be fetched.
    """
    known, marks = {_key(e["text"]) for name in FILES for e in _read(name)}, []
    for key in map(_key, texts):
        marks.append(key in known)
        known.add(key)
    return marks


def token_windows(texts: list[str], tokenizer: PreTrainedTokenizerBase, *, length: int) -> Tensor:
    """Texts as one stream of tokens, cut into windows (windows, length), int64.

    An end-of-text token stands between two texts; what is left over at the end is dropped.

    Raises:
        ValueError: the texts are shorter than one window.
    """
    stream = []
    for tokens in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        stream += [*tokens, tokenizer.eos_token_id]
    count = len(stream) // length
    if count == 0:
        raise ValueError(f"the texts have {len(stream)} tokens, fewer than one window of {length}")
    return torch.tensor(stream[: count * length]).view(count, length)


def _read(name: str) -> list[dict]:
    """Every sentence of a file in its order: document, text, rating."""
    path = fetch("sentences") / FILES[name]
    examples = []
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        line = html.unescape(html.unescape(line))  # the source has some that were escaped twice
        number, rating, text = line.split("\t", 2)
        # Products and news are numbered document_sentence; the others are one sentence each.
        document = number.split("_")[0]
        examples.append({"document": document, "text": text.strip(), "rating": float(rating)})
    return examples


def _labelled(examples: list[dict]) -> list[dict]:
    """The examples with a clear rating, each text once, with the label."""
    return [
        {**example, "label": int(example["rating"] > 0)}
        for example in _unique(examples)
        if abs(example["rating"]) >= MINIMUM_RATING
    ]


def _unique(examples: list[dict]) -> list[dict]:
    first = {}
    for example in examples:
        first.setdefault(_key(example["text"]), example)
    return list(first.values())


def _key(text: str) -> str:
    return "".join(character for character in text.lower() if character.isalnum()) or text


def _stratified_split(examples: list[dict], size: int) -> tuple[list[dict], list[dict]]:
    """(rest, part): `size` examples drawn with the label proportions of the whole."""
    generator = random.Random(SEED)
    rest, part = [], []
    positive = round(size * sum(e["label"] for e in examples) / len(examples))
    for label, count in ((0, size - positive), (1, positive)):
        members = [e for e in examples if e["label"] == label]
        generator.shuffle(members)
        part += members[:count]
        rest += members[count:]
    generator.shuffle(rest)
    generator.shuffle(part)
    return rest, part


def _dataset(splits: dict[str, list[dict]]) -> DatasetDict:
    columns = ("text", "label", "rating")
    return DatasetDict(
        {
            split: Dataset.from_dict({column: [e[column] for e in examples] for column in columns})
            for split, examples in splits.items()
        }
    )


def _load_sst2() -> DatasetDict:
    from datasets import load_dataset

    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        sst2 = load_dataset("stanfordnlp/sst2").rename_column("sentence", "text")
    finally:
        if bars:
            enable_progress_bars()
    parts = sst2["train"].train_test_split(1000, seed=SEED, stratify_by_column="label")
    splits = {"train": parts["train"], "validation": parts["test"], "test": sst2["validation"]}
    return DatasetDict(
        {
            split: Dataset.from_dict(
                {
                    "text": [text.strip() for text in part["text"]],
                    "label": part["label"],
                    "rating": [float("nan")] * len(part),
                }
            )
            for split, part in splits.items()
        }
    )
