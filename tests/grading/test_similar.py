"""Which submissions are named as alike."""

import csv
import inspect

import pytest
from synthetic_class import NAME, Submission, data, from_module, solved, with_answers, write

from compresslab.grading import release, sandbox
from compresslab.grading.grade import grade_class
from compresslab.grading.similar import find_similar, normalize

ONE = '''
def f(values: list, weight: float) -> float:
    """What it does."""
    total = 0.0  # starts at zero
    for value in values:
        total += weight * value
    return total
'''
RENAMED = """
def f(xs, w):

    s = 0.0
    for x in xs:
        s += (w * x)   # add it
    return s
"""
OTHER = """
def f(values, weight):
    return weight * sum(values)
"""


def test_names_layout_comments_and_docstrings_hide_nothing():
    assert normalize(ONE) == normalize(RENAMED)
    assert normalize(ONE) != normalize(OTHER)


@pytest.mark.parametrize("source", ["def f(:", "", "%magic\nx = 1", "x" * 10_000 + "(" * 1000])
def test_what_is_no_python_is_taken_as_text(source):
    assert isinstance(normalize(source), str)


def answers(name: str, number: int) -> str:
    kinds = release.variants(name, "alternatives").values()
    return "\n".join(normalize(inspect.getsource([*kind.values()][number])) for kind in kinds)


@pytest.mark.parametrize("name", release.assignments())
def test_independent_right_answers_are_not_named(name):
    assert not find_similar({f"{i}": {"code": answers(name, i)} for i in range(2)})


def test_a_copy_is_named_and_a_short_text_is_not():
    prose = (
        "Attention has the larger share on this machine, and so I would take the new attention. "
    )
    texts = {
        "ada": {"code": answers("pruning", 0), "prose": prose * 3},
        "bo": {"code": answers("pruning", 0) + " pass", "prose": "Yes."},
        "cy": {"code": "", "prose": prose * 3 + "I think."},
        "di": {"code": "", "prose": "Yes."},
    }
    found = find_similar(texts)
    assert [(one, other, kind) for one, other, kind, _ in found] == [
        ("ada", "bo", "code"),
        ("ada", "cy", "prose"),
    ]
    assert all(80 <= percent <= 100 for *_, percent in found)


@pytest.mark.skipif(sandbox.why_not() is not None, reason="no sandbox")
def test_the_table_names_the_pair_in_a_class(tmp_path):
    class_ = [
        Submission("Ada", with_answers()),
        Submission("Bo", lambda: data(solved(written=False))),
        Submission(
            "Cy",
            from_module(
                "alternatives",
                **dict.fromkeys(("amdahl", "sentences_needed", "bits_per_byte"), "loop"),
                tokens_that_fit="search",
                crossover_batch="count_up",
                influence="polyfit",
            ),
        ),
    ]
    grade_class(write(tmp_path / "in", class_), tmp_path / "out")
    (pair,) = csv.DictReader((tmp_path / "out" / "similar.csv").open(encoding="utf-8"))
    assert pair == {
        "assignment": NAME,
        "student": "1001",
        "other": "1002",
        "kind": "code",
        "percent": "100.0",
    }
