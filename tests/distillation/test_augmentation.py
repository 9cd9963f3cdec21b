import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import randn

from compresslab.distillation.augmentation import augment, nearest_words, split_words

TOKENS = [
    "[PAD]", "[CLS]", "a", "##ing", "good", "bad", "film", "movie", "1990", "dull", "fun", "tone",
    ",", "don",
]  # fmt: skip
VOCABULARY = {token: i for i, token in enumerate(TOKENS)}
WHOLE = {"good", "bad", "film", "movie", "dull", "fun", "tone", "don"}
TEXT = "A Good film_fest, don't you think? It's good fun: 1990s tone (movie)."


def neighbours(candidates=3):
    return nearest_words(WHOLE, VOCABULARY, randn(len(TOKENS), 5), candidates=candidates)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_words_are_cut_as_bert_cuts_them():
    assert split_words("Don't film_fest 1990s — naïve") == [
        "don", "t", "film", "fest", "1990s", "naïve",
    ]  # fmt: skip
    assert split_words(" ... ") == []


def test_neighbours_are_those_of_largest_cosine_by_a_loop():
    table = randn(len(TOKENS), 5)
    found = neighbours()
    assert list(found) == sorted(WHOLE)
    for word, others in found.items():
        x = table[VOCABULARY[word]]
        cosines = {
            other: float(x @ y / (x.norm() * y.norm()))
            for other in WHOLE - {word}
            for y in [table[VOCABULARY[other]]]
        }
        assert others == sorted(cosines, key=cosines.get, reverse=True)[:3]


def test_length_does_not_count_and_ties_go_to_the_smaller_number():
    table = torch.ones(len(TOKENS), 5) * torch.arange(1, len(TOKENS) + 1)[:, None]
    found = nearest_words(["good", "fun"], VOCABULARY, table, candidates=2)
    assert found == {"fun": ["good", "bad"], "good": ["bad", "film"]}


def test_no_entry_for_what_is_no_whole_word():
    table = randn(len(TOKENS), 5)
    words = ["[CLS]", "##ing", "a", "1990", "unheard", ",", "dull"]
    assert list(nearest_words(words, VOCABULARY, table, candidates=2)) == ["dull"]


def test_many_words_are_answered_as_one_at_a_time():
    # More words than fit one block of the computation.
    letters = [a + b + c for a in "abcdefghij" for b in "abcdefghij" for c in "abcdef"]
    vocabulary = {word: i for i, word in enumerate(letters)}
    table = randn(len(letters), 4)
    found = nearest_words(letters, vocabulary, table, candidates=2)
    assert len(found) == 600
    for word in ("aaa", "fbf", "fbc", "jjf"):
        assert nearest_words([word], vocabulary, table, candidates=2) == {word: found[word]}


def test_the_same_seed_gives_the_same_copies_and_another_gives_others():
    options = {"copies": 5, "probability": 0.5}
    one, two, other = (
        augment([TEXT, TEXT], neighbours(), **options, generator=seeded(s)) for s in (0, 0, 1)
    )
    assert one == two
    assert one != other
    assert [len(copies) for copies in one] == [5, 5]
    assert one[0] != one[1]  # goes on drawing
    assert len(set(one[0])) > 1


def test_probability_zero_changes_nothing_and_one_changes_every_word_that_has_neighbours():
    found = neighbours()
    assert augment([TEXT], found, copies=2, probability=0) == [[TEXT, TEXT]]
    (copies,) = augment([TEXT], found, copies=20, probability=1, generator=seeded(0))
    for copy in copies:
        for old, new in zip(split_words(TEXT), split_words(copy), strict=True):
            assert new in found[old] if old in found else new == old
    assert {split_words(copy)[1] for copy in copies} == set(found["good"])


@settings(max_examples=50, deadline=None)
@given(
    text=st.text(alphabet="agodbfilmunte GOD ,.'_-19", max_size=40),
    probability=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_all_but_replaced_words_stays_as_it_was(text, probability, seed):
    found = {"good": ["bad"], "film": ["movie"], "a": ["x"]}
    ((copy,),) = augment([text], found, copies=1, probability=probability, generator=seeded(seed))
    back = {"bad": "good", "movie": "film", "x": "a"}

    def restored(words):
        return [back.get(word, word) for word in words]

    assert restored(split_words(copy)) == restored(split_words(text))
    keep = [c for c in text if not c.isalnum()]
    assert [c for c in copy if not c.isalnum()] == keep


def test_as_many_words_change_as_the_probability_says_and_each_candidate_as_often():
    text = " ".join(["good"] * 4000)
    ((copy,),) = augment(
        [text], {"good": ["bad", "fun"]}, copies=1, probability=0.3, generator=seeded(0)
    )
    words = copy.split()
    # Five standard deviations.
    assert words.count("good") / 4000 == pytest.approx(0.7, abs=0.037)
    assert words.count("bad") / 4000 == pytest.approx(0.15, abs=0.029)
    assert words.count("fun") / 4000 == pytest.approx(0.15, abs=0.029)


def test_bad_input_is_named():
    table = randn(len(TOKENS), 5)
    with pytest.raises(ValueError, match="token 13 has no row among 13"):
        nearest_words(["good"], VOCABULARY, table[:13])
    for bad in (0, 8):
        with pytest.raises(ValueError, match=f"candidates must be from 1 to 7, not {bad}"):
            nearest_words(["good"], VOCABULARY, table, candidates=bad)
    with pytest.raises(ValueError, match="copies must be at least 1, not 0"):
        augment([TEXT], {}, copies=0)
    for bad in (1.5, -0.1):
        with pytest.raises(ValueError, match="probability must be from 0 to 1"):
            augment([TEXT], {}, copies=1, probability=bad)
    with pytest.raises(ValueError, match="1 words have an empty list of neighbours, as 'good'"):
        augment([TEXT], {"good": []}, copies=1)
