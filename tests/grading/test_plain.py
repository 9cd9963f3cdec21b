"""Plain data: what crosses from a student's process, and how it is compared."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compresslab.grading.plain import LARGEST, NotPlain, decode, difference, encode

ATOMS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**60), 2**60)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
)
PLAIN = st.recursive(
    ATOMS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3) | st.integers(0, 9), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(PLAIN)
def test_plain_data_comes_back_through_json(value):
    assert decode(json.loads(json.dumps(encode(value), allow_nan=False))) == value


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0), (2, 3, 1)])
def test_a_tensor_comes_back_with_its_dtype_and_shape(dtype, shape):
    tensor = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
    back = decode(json.loads(json.dumps(encode(tensor))))
    assert back.dtype == dtype
    assert back.shape == shape
    assert torch.equal(back, tensor)


def test_values_that_json_does_not_know():
    values = torch.tensor([math.nan, math.inf, -math.inf])
    back = decode(json.loads(json.dumps(encode([values, math.inf]), allow_nan=False)))
    assert back[0].isnan()[0]
    assert back[0][1:].tolist() == [math.inf, -math.inf]
    assert back[1] == math.inf


class AlwaysEqual:
    def __eq__(self, other):
        return True

    __hash__ = None


class FloatThatLies(float):
    def __eq__(self, other):
        return True

    __hash__ = None


@pytest.mark.parametrize(
    "value",
    [
        AlwaysEqual(),
        [AlwaysEqual()],
        {"a": AlwaysEqual()},
        FloatThatLies(1),
        lambda: 1,
        1j,
        np.array(["a"], dtype=object),
        torch.ones(2, 2).to_sparse(),
        torch.zeros(LARGEST + 1, dtype=torch.bool),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_plain_data_is_refused(value):
    with pytest.raises(NotPlain):
        encode(value)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"tensor": "load", "shape": [], "data": [1]},
        {"tensor": "float32", "shape": [3], "data": [1.0]},
        {"tensor": "float32", "shape": [-1, 0], "data": []},
        {"tensor": "float32", "shape": [1], "data": ["x"]},
        {"float": "x"},
        {"dict": [[[], 1]]},
        {"set": [[]]},
        {"dict": 5},
        {"tensor": 5},
    ],
)
def test_forged_data_is_refused(data):
    with pytest.raises(NotPlain):
        decode(data)


@pytest.mark.parametrize(
    ("expected", "got"),
    [
        (1.0, 1.0 + 1e-6),
        (3, 3.0),
        (3, torch.tensor([3])),
        (torch.tensor([1.0, 2.0]), [1, 2]),
        ([1.0, 2.0], torch.tensor([1.0, 2.0], dtype=torch.float64)),
        ((1.0, 2.0), [1.0, 2.0]),
        (torch.tensor([math.nan, math.inf]), torch.tensor([math.nan, math.inf])),
        (torch.tensor([True, False]), [True, False]),
        ({"a": [1.0, "x"]}, {"a": (1, "x")}),
        (math.inf, math.inf),
        ({1, 2}, {2, 1}),
        ([], ()),
        (None, None),
    ],
)
def test_the_same_in_another_form_is_no_difference(expected, got):
    assert difference(expected, got) is None


@pytest.mark.parametrize(
    ("expected", "got", "says"),
    [
        (1.0, 1.01, "the value is wrong"),
        (0.0, 1e-5, "the value is wrong"),
        (math.inf, 1e30, "the value is wrong"),
        (torch.zeros(2, 3), torch.zeros(3, 2), "rows and columns are exchanged"),
        (torch.zeros(4), torch.zeros(5), r"shape \(4,\) was expected, \(5,\) came back"),
        (torch.zeros(3), torch.tensor([0.0, 1, 1]), "2 of 3 values differ"),
        (torch.tensor([True]), torch.tensor([1.0]), "truth values were expected"),
        (torch.tensor([1.0]), torch.tensor([math.nan]), "not a number"),
        (1.0, "1.0", "a number was expected, a text came back"),
        (1.0, [[1], [1, 2]], "a number was expected, a list came back"),
        ([1.0, "a"], [1.0], "2 values expected, 1 came back"),
        ({"a": 1}, {"b": 1}, "other keys"),
        ("a", "b", "the text is another one"),
        ([torch.zeros(1), torch.zeros(2)], torch.zeros(2), "a list was expected, a tensor"),
        (torch.zeros(2), None, "nothing .None"),
        (None, 0, "a None was expected"),
    ],
)
def test_a_difference_is_told_in_words(expected, got, says):
    with pytest.raises(AssertionError, match=says):
        assert difference(expected, got) is None, difference(expected, got)


@given(PLAIN, PLAIN)
@settings(max_examples=100, deadline=None)
def test_difference_never_fails(one, other):
    sentence = difference(one, other)
    assert sentence is None or isinstance(sentence, str)
    assert difference(one, one) is None
