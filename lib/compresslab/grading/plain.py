"""Plain data: what a student's function may hand back, and how it is compared.

    encode(value)               tensors, numbers, text, lists, sets and dictionaries -> JSON's types
    decode(data)                and back
    difference(expected, got)   None, or a sentence that says what differs and never tells a value

A grader decodes what another process sent as JSON, so that only values cross and never objects: no
method of a student's class is called where the verdict is made. A tensor becomes
{"tensor": dtype, "shape": [...], "data": [...]}, any other number {"float": ...} or itself.
"""

import math

import numpy as np
import torch
from torch import Tensor

LARGEST = 1_000_000  # numbers in one tensor: no exercise asks for as many


class NotPlain(ValueError):
    """A value that is not plain data; the message says which, in words for a student."""


def encode(value: object) -> object:
    """What `json.dumps` can write of a value.

    Raises:
        NotPlain: something else is in it, or a tensor is too large.
    """
    return _encode(value, "the result")


def decode(data: object) -> object:
    """The value that `encode` was given, built anew.

    Raises:
        NotPlain: not what `encode` gives.
    """
    try:
        return _decode(data)
    except (
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        RuntimeError,
        TypeError,
        ValueError,
    ) as error:
        raise NotPlain(f"no plain data: {error}") from None


def difference(expected: object, got: object, *, tolerance: float = 1e-4) -> str | None:
    """None if `got` is what was expected, up to rounding; else a sentence.

    The sentence tells of a type, a shape, a length or keys that are wrong, or that values are; it
    never tells a value. Numbers in a list, an array or a tensor are the same, and so are a number
    and a tensor of one; a list and a tuple; dtypes of one kind. Truth values are not numbers.

    Args:
        tolerance: relative; in absolute terms a hundredth of it.
    """
    numbers = isinstance(expected, list | tuple) and all(map(_is_number, expected)) and expected
    if isinstance(expected, Tensor) or _is_number(expected) or numbers:
        return _compare_numbers(expected, got, tolerance)
    if isinstance(expected, list | tuple) and isinstance(got, list | tuple):
        if len(expected) != len(got):
            return f"{_count(len(expected), 'value')} expected, {len(got):,} came back"
        pairs = zip(expected, got, strict=True)
    elif isinstance(expected, dict) and isinstance(got, dict):
        if expected.keys() != got.keys():
            return "the dictionary has other keys than expected"
        pairs = ((expected[key], got[key]) for key in expected)
    elif type(expected) is type(got):
        return None if expected == got else f"the {_kind(expected)} is another one"
    else:
        return f"a {_kind(expected)} was expected, {_kind(got, came=True)} came back"
    parts = (difference(e, g, tolerance=tolerance) for e, g in pairs)
    return next((part for part in parts if part), None)


def _encode(value: object, where: str) -> object:
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.array(value))
        except TypeError:
            raise NotPlain(f"{where} is an array of {value.dtype}; give back numbers") from None
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_complex():
            raise NotPlain(f"{where} is a sparse or complex tensor; give back an ordinary one")
        if value.numel() > LARGEST:
            raise NotPlain(f"{where} is too large: a tensor of {value.numel():,} numbers")
        return {
            "tensor": str(value.dtype).removeprefix("torch."),
            "shape": list(value.shape),
            "data": [_finite(x) for x in value.detach().cpu().flatten().tolist()],
        }
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return {"float": _finite(value)}
    if type(value) in (list, tuple):
        items = [_encode(item, f"item {i} of {where}") for i, item in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if type(value) in (set, frozenset):
        members = [_encode(item, f"a member of {where}") for item in value]
        return {"set": sorted(members, key=repr)}
    if type(value) is dict:
        return {
            "dict": [
                [_encode(key, f"a key of {where}"), _encode(item, f"an entry of {where}")]
                for key, item in value.items()
            ]
        }
    raise NotPlain(
        f"{where} is of the type {type(value).__name__}; give back tensors, numbers, text, or "
        "lists, sets and dictionaries of them"
    )


def _finite(x: float) -> float | str:
    """JSON has no nan and no infinities: they are written as text."""
    return x if type(x) is not float or math.isfinite(x) else repr(x)


def _decode(data: object) -> object:
    if isinstance(data, list):
        return [_decode(item) for item in data]
    if not isinstance(data, dict):
        return data
    if "float" in data:
        return float(data["float"])
    if "tuple" in data:
        return tuple(_decode(item) for item in data["tuple"])
    if "dict" in data:
        return {_decode(key): _decode(item) for key, item in data["dict"]}
    if "set" in data:
        return {_decode(item) for item in data["set"]}
    dtype = getattr(torch, data["tensor"])
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"no dtype {data['tensor']!r}")
    numbers = [float(x) if isinstance(x, str) else x for x in data["data"]]
    return torch.tensor(numbers, dtype=dtype).reshape(data["shape"])


def _compare_numbers(expected: Tensor | float | list, got: object, tolerance: float) -> str | None:
    try:
        found = torch.as_tensor(got)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return f"a {_kind(expected)} was expected, {_kind(got, came=True)} came back"
    wanted = torch.as_tensor(expected)
    if wanted.shape != found.shape and not wanted.numel() == found.numel() == 1:
        turned = wanted.ndim == 2 and wanted.shape == found.shape[::-1]
        return (
            f"shape {tuple(wanted.shape)} was expected, {tuple(found.shape)} came back"
            + ": rows and columns are exchanged" * turned
        )
    if (wanted.dtype == torch.bool) != (found.dtype == torch.bool):
        words = {True: "truth values", False: "numbers"}
        truths = wanted.dtype == torch.bool
        return f"{words[truths]} were expected, {words[not truths]} came back"
    wanted, found = wanted.flatten().double(), found.flatten().double()
    if (found.isnan() & ~wanted.isnan()).any():
        return "a value is not a number (nan)"
    close = torch.isclose(found, wanted, rtol=tolerance, atol=tolerance / 100, equal_nan=True)
    wrong = int((~close).sum())
    if not wrong:
        return None
    return "the value is wrong" if len(close) == 1 else f"{wrong:,} of {len(close):,} values differ"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _kind(value: object, *, came: bool = False) -> str:
    if value is None:
        return "nothing (None: is there a return?)" if came else "None"
    if isinstance(value, bool):
        name = "truth value"
    elif _is_number(value):
        name = "number"
    else:
        names = {Tensor: "tensor", str: "text", dict: "dictionary", set: "set"}
        name = next((n for kind, n in names.items() if isinstance(value, kind)), "list")
    return f"a {name}" if came else name


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"
