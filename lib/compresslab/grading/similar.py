"""Which submissions are so alike that a person should look at them.

    similar.csv, beside grades.csv: two students, what is alike, and how much

The measure: the normalized Indel similarity (rapidfuzz.fuzz.ratio; 100 for equal texts) of all of a
student's answers to an assignment, code and prose apart. In code, comments, docstrings and layout
are dropped, and names are replaced by numbers in the order in which they first come, so that
renaming variables hides nothing. It is a reason to look, never a verdict: short right answers
resemble each other.
"""

import ast
import csv
import io
import keyword
import tokenize
from collections.abc import Mapping
from pathlib import Path

CODE, PROSE = 90.0, 80.0  # from here on a pair is named; independent code had 60 to 72
SHORTEST = 150  # characters: less says nothing


def normalize(source: str) -> str:
    """Python code without what its author can change without thinking."""
    try:
        return _normalize(ast.parse(source))
    except Exception:  # a student's source can be anything; then it is compared as it is
        return " ".join(source.split())


def _normalize(tree: ast.AST) -> str:
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        docstring = isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None
        if docstring:
            node.body = body[1:] or [ast.Pass()]
        if isinstance(node, ast.FunctionDef):
            node.returns = None
            for argument in ast.walk(node.args):
                if isinstance(argument, ast.arg):
                    argument.annotation = None
    text = ast.unparse(tree)
    names: dict[str, str] = {}
    words = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        word = token.string
        if token.type == tokenize.NAME and not keyword.iskeyword(word):
            word = names.setdefault(word, f"n{len(names)}")
        words.append(word.strip() and word)
    return " ".join(filter(None, words))


def find_similar(answers: Mapping[str, Mapping[str, str]]) -> list[tuple[str, str, float]]:
    """Pairs of students whose answers are alike.

    Args:
        answers: student -> "code" or "prose" -> text, code normalized.

    Returns:
        (student, student, kind, similarity in percent), the most alike first.
    """
    from rapidfuzz import fuzz, process

    pairs = []
    for kind, least in (("code", CODE), ("prose", PROSE)):
        students = [s for s, texts in answers.items() if len(texts.get(kind, "")) >= SHORTEST]
        texts = [answers[student][kind] for student in students]
        for i, text in enumerate(texts):  # a row at a time: memory grows with the class only
            rest = texts[i + 1 :]
            for _, score, j in process.extract(
                text, rest, scorer=fuzz.ratio, score_cutoff=least, limit=None
            ):
                pairs.append((students[i], students[i + 1 + j], kind, round(score, 1)))
    return sorted(pairs, key=lambda pair: (-pair[3], pair))


def write_similar(path: Path, assignments: Mapping[str, Mapping[str, Mapping[str, str]]]) -> int:
    """Write the pairs of every assignment as a table; give back how many there are."""
    rows = [
        (name, *pair) for name, answers in assignments.items() for pair in find_similar(answers)
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("assignment", "student", "other", "kind", "percent"))
        table.writerows(rows)
    return len(rows)
