"""Instant checks: a student's function against recorded results, and a sentence for a mistake.

    from compresslab.grading.checks import check
    check(keep_blocks)

The results come from `exercises/NAME/checks.json`, which `make exercises` writes: for each function
the arguments of some cases, what the solution gives for them, and what typical mistakes give, each
with the sentence that names it. Neither the solution nor a hidden case is in that file.
"""

import json
from collections.abc import Callable

from ..assets import DATA
from .plain import NotPlain, decode, difference, encode

EXERCISES = DATA.parent / "exercises"


class CheckFailed(AssertionError):
    """What is wrong with a student's function, in a sentence or two."""

    def _render_traceback_(self) -> list[str]:
        """IPython prints this in place of a traceback, which would lead into the library."""
        return f"✘ {self}".split("\n")


def check(function: Callable) -> None:
    """Call `function` on the recorded cases; print that all are right, or raise what is not.

    Raises:
        CheckFailed: with a sentence for the student.
        LookupError: no assignment has a function of this name.
    """
    exercise = _find(function.__name__)
    cases = exercise["cases"]
    found = [outcome(function, case["arguments"]) for case in cases]
    first = first_wrong(exercise, found)
    if first is not None:
        call = _describe(cases[first]["arguments"], found[first])
        raise CheckFailed(f"{function.__name__}: {diagnose(exercise, found)}{call}")
    print(f"✔ {function.__name__}: {len(found)} cases right")


def _describe(arguments: object, found: dict) -> str:
    """Lines with what a function was given and what it returned, where that is short."""
    given = ", ".join(f"{name}={value!r}" for name, value in decode(arguments).items())
    lines = {"called with": given}
    if "value" in found:
        lines["it returned"] = repr(decode(found["value"]))
    lines = {label: " ".join(text.split()) for label, text in lines.items() if text}
    return "".join(f"\n  {label} {text}" for label, text in lines.items() if len(text) <= 300)


def outcome(function: Callable, arguments: object) -> dict:
    """What a call does, as plain data for `verdict`, and for JSON.

    Args:
        arguments: keyword arguments, encoded: each call has its own.

    Returns:
        `value` and `arguments`, the result and what the arguments are after the call, encoded; or
        `raises`, the name of an exception, and `message`; or `refused`, why the result is no
        plain data.
    """
    given = decode(arguments)
    try:
        value = function(**given)
    except Exception as error:  # a student's code may raise anything
        return {"raises": type(error).__name__, "message": str(error)[:500]}
    try:
        return {"value": encode(value), "arguments": encode(given)}
    except NotPlain as error:
        return {"refused": str(error)}


def diagnose(exercise: dict, found: list[dict]) -> str | None:
    """None if all cases are right; else a sentence on the first that is not.

    Args:
        exercise: `cases`, as `verdict` takes them, and `mistakes`, pairs of a sentence and the
            outcome of that mistake for each case.
        found: an outcome for each case.
    """
    first = first_wrong(exercise, found)
    if first is None:
        return None
    about = exercise["cases"][first]["about"]
    mistake = recognize(exercise, found, first)
    if mistake:
        return f"{mistake} (Seen on {about}.)"
    return f"{verdict(exercise['cases'][first], found[first])}, on {about}"


def first_wrong(exercise: dict, found: list[dict]) -> int | None:
    """The first case that is wrong."""
    pairs = zip(exercise["cases"], found, strict=True)
    return next((i for i, (case, outcome) in enumerate(pairs) if verdict(case, outcome)), None)


def recognize(exercise: dict, found: list[dict], first: int) -> str | None:
    """The sentence of the known mistake that explains the wrong case `first`, if there is one; of
    several, that which explains most of the other cases."""
    alike = {
        sentence: [_compare(e, f) is None for e, f in zip(mistake, found, strict=True)]
        for sentence, mistake in exercise["mistakes"]
    }
    alike = {sentence: sum(agrees) for sentence, agrees in alike.items() if agrees[first]}
    return max(alike, key=alike.get, default=None)


def verdict(case: dict, found: dict) -> str | None:
    """None if the outcome `found` is the one that the case expects; else what is wrong with it.

    Args:
        case: `about`, a few words on what is special in it; `arguments`, encoded; `expected`, the
            outcome of the solution.

    Raises:
        NotPlain: `found` is not what `outcome` gives.
    """
    wrong = _compare(case["expected"], found)
    if wrong is None and "arguments" in found:
        changed = difference(decode(case["arguments"]), decode(found["arguments"]))
        return "it changes what it was given; work on a copy" if changed else None
    return wrong


def _compare(expected: dict, found: dict) -> str | None:
    if "refused" in found:
        return found["refused"] or "no plain data"
    if found.get("raises") == "NotImplementedError":
        return "nothing is written yet"
    if "raises" in expected:
        if found.get("raises") == expected["raises"]:
            return None
        return f"it should raise a {expected['raises']}, as the docstring says"
    if "raises" in found:
        return f"it raises {found['raises']} ({found.get('message')})"
    if "value" not in found:
        raise NotPlain("no outcome of a call")
    return difference(decode(expected["value"]), decode(found["value"]))


def _find(name: str) -> dict:
    """The recorded cases and mistakes of the function `name`, in whichever assignment has it."""
    known = []
    for path in sorted(EXERCISES.glob("*/checks.json")):
        try:
            functions = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise LookupError(f"{path} is damaged: fetch it again") from None
        if name in functions:
            return functions[name]
        known += functions
    raise LookupError(
        f"no exercise is called {name!r}: keep the name of the function. The exercises are "
        + (", ".join(known) or "missing: is the folder exercises/ where it was?")
    )
