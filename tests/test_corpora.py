"""The splits of the course, on the real texts: what they hold and what they must not share."""

import html
import math
import re
from itertools import combinations

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from compresslab.assets import fetch
from compresslab.corpora import FILES, load_articles, load_reviews, load_transfer

TRANSFER = ("products", "tweets", "news")
SCHEMA = {"text": Value("string"), "label": Value("int64"), "rating": Value("float64")}


@pytest.fixture(scope="module")
def reviews():
    return load_reviews()


@pytest.fixture(scope="module", params=TRANSFER)
def transfer(request):
    """(name, splits) of each transfer set."""
    return request.param, load_transfer(request.param)


def normalized(text: str) -> str:
    """Without case, spaces and punctuation."""
    return re.sub(r"[\W_]", "", text.lower()) or text


def share_nothing(sets) -> bool:
    return all(first.isdisjoint(second) for first, second in combinations(sets, 2))


def texts(splits: DatasetDict) -> list[str]:
    return [text for split in splits.values() for text in split["text"]]


# ---------------------------------------------------------------- movie reviews


def test_reviews_have_the_stated_sizes_and_columns(reviews):
    sizes = {name: len(split) for name, split in reviews.items()}
    assert sizes == {"train": 7070, "validation": 1000, "test": 2000}
    assert all(split.features == SCHEMA for split in reviews.values())


def test_reviews_are_stratified(reviews):
    positive = {name: sum(split["label"]) / len(split) for name, split in reviews.items()}
    assert positive["train"] == pytest.approx(positive["test"], abs=0.0005)
    assert positive["validation"] == pytest.approx(positive["test"], abs=0.0005)


def test_no_review_sentence_occurs_twice(reviews):
    keys = [normalized(text) for text in texts(reviews)]
    assert len(set(keys)) == len(keys) == 10_070


def test_reviews_are_the_same_every_time(reviews):
    again = load_reviews()
    assert all(again[name].to_dict() == split.to_dict() for name, split in reviews.items())


def test_reviews_are_not_sorted_by_label(reviews):
    for split in reviews.values():
        changes = sum(a != b for a, b in zip(split["label"], split["label"][1:], strict=False))
        assert changes > 0.4 * len(split)


def check_labels(splits):
    for split in splits.values():
        for label, rating in zip(split["label"], split["rating"], strict=True):
            assert 0.5 <= abs(rating) <= 4
            assert label == (rating > 0)


def test_review_labels_are_the_signs_of_clear_ratings(reviews):
    check_labels(reviews)


def test_reviews_are_clean_text(reviews):
    for text in texts(reviews):
        assert text
        assert text == html.unescape(text).strip()


def test_an_unknown_source_is_a_value_error():
    with pytest.raises(ValueError, match="source must be 'pypi' or 'hub', not 'pip'"):
        load_reviews(source="pip")


# ---------------------------------------------------------------- transfer sets


def test_transfer_sets_have_the_columns_of_the_reviews(transfer):
    _, splits = transfer
    assert list(splits) == ["train", "test"]
    assert all(split.features == SCHEMA and len(split) > 1400 for split in splits.values())


def test_transfer_labels_are_the_signs_of_clear_ratings(transfer):
    check_labels(transfer[1])


def test_transfer_sets_share_no_sentence(transfer):
    keys = [normalized(text) for text in texts(transfer[1])]
    assert len(set(keys)) == len(keys)


def test_transfer_sets_share_no_document(transfer):
    name, splits = transfer
    documents = {}  # of every text, as the file numbers them: DOCUMENT_SENTENCE, rating, text
    for line in (fetch("sentences") / FILES[name]).read_text(encoding="utf-8-sig").splitlines():
        number, _, text = html.unescape(html.unescape(line)).split("\t", 2)
        documents.setdefault(normalized(text), number.partition("_")[0])
    sides = [{documents[normalized(text)] for text in split["text"]} for split in splits.values()]
    assert min(map(len, sides)) > 100
    assert share_nothing(sides)


def test_transfer_sets_are_clean_text(transfer):
    for text in texts(transfer[1]):
        assert text
        assert text == html.unescape(text).strip()


def test_transfer_sets_are_the_same_every_time(transfer):
    name, splits = transfer
    again = load_transfer(name)
    assert all(again[side].to_dict() == split.to_dict() for side, split in splits.items())


@pytest.mark.parametrize("name", ["movies", "poems"])
def test_an_unknown_transfer_set_is_a_value_error(name):
    with pytest.raises(ValueError, match=f"'products', 'tweets' or 'news', not '{name}'"):
        load_transfer(name)


# ---------------------------------------------------------------- articles


def test_articles_are_running_text_in_three_splits():
    articles = load_articles()
    sizes = {name: len(split) for name, split in articles.items()}
    assert sizes == {"calibration": 200, "validation": 100, "test": 198}
    assert all(split.features == {"text": Value("string")} for split in articles.values())
    assert all(text == html.unescape(text).strip() for text in texts(articles))
    words = [len(text.split()) for text in texts(articles)]
    assert sum(words) / len(words) > 150  # whole articles, not sentences


def test_no_article_sentence_occurs_twice():
    sentences = [
        normalized(sentence)
        for text in texts(load_articles())
        for sentence in re.split(r"(?<=[.!?]) ", text)
        if len(sentence) > 60  # short ones, as "Not so.", may recur by nature
    ]
    assert len(set(sentences)) == len(sentences) > 3500


# ---------------------------------------------------------------- the Hugging Face hub


@pytest.fixture
def sst2(monkeypatch):
    """A small set with the columns of SST-2 in place of the hub; the list of what was asked for."""
    features = Features(
        {
            "sentence": Value("string"),
            "label": ClassLabel(names=["negative", "positive"]),
            "idx": Value("int32"),
        }
    )

    def split(size, name):
        rows = {
            "sentence": [f"{name} phrase {i} " for i in range(size)],
            "label": [i % 2 for i in range(size)],
            "idx": list(range(size)),
        }
        return Dataset.from_dict(rows, features=features)

    asked = []

    def load_dataset(*args, **options):
        asked.append((args, options))
        return DatasetDict({"train": split(3000, "train"), "validation": split(50, "held-out")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_the_hub_gives_sst2_in_the_same_form(sst2):
    reviews = load_reviews(source="hub")
    assert sst2 == [(("stanfordnlp/sst2",), {})]
    sizes = {name: len(split) for name, split in reviews.items()}
    assert sizes == {"train": 2000, "validation": 1000, "test": 50}
    assert all(split.features == SCHEMA for split in reviews.values())
    assert reviews["test"]["text"][:2] == ["held-out phrase 0", "held-out phrase 1"]
    assert reviews["test"]["label"][:2] == [0, 1]
    assert all(math.isnan(rating) for split in reviews.values() for rating in split["rating"])
    assert sum(reviews["validation"]["label"]) == 500
    assert share_nothing([set(split["text"]) for split in reviews.values()])


@pytest.mark.usefixtures("sst2")
def test_progress_bars_are_left_as_they_were():
    assert not datasets.are_progress_bars_disabled()
    load_reviews(source="hub")
    assert not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        load_reviews(source="hub")
        assert datasets.are_progress_bars_disabled()
    finally:
        datasets.enable_progress_bars()


@pytest.mark.usefixtures("no_network")
def test_an_unreachable_hub_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)  # no earlier download
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the hub's client tries six times
    with pytest.raises(ConnectionError, match="sst2"):
        load_reviews(source="hub")
