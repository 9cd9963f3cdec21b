"""The leaderboard of the final project: `make leaderboard FROM=folder PRIVATE=sentences.csv`.

    python -m compresslab.grading.leaderboard FOLDER_OR_ZIP [--private FILE]

leaves in `grading/`

    leaderboard.md    a table for each track, without names of persons: to be shown
    leaderboard.csv   a row for each student, with whose file it was: not to be shown

A submission is a file that `compresslab.export` wrote, and no code of a student is run. What counts
is found out here, or by our code in the sandbox (`trial`): the bytes are those of the file as it
came in; the labels stay here, and only sentences go to the model; the speed is a ratio to the
float32 classifier, measured in turns in one process, from sentences to labels.

The rank in a track is one more than the number of files that are shown to be better. Bytes show
themselves. A higher accuracy is shown if the paired interval of the two leaves out 0, a higher
speed if their intervals do not meet. So what cannot be told apart shares a rank. Accuracy decides
in every track, so without private sentences nobody has a rank.
"""

import argparse
import csv
import io
import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import corpora
from ..machine import processor
from ..measure import Comparison, Estimate, accuracy, compare_accuracy
from ..models import load_classifier
from . import sandbox
from .intake import (
    File,
    Kind,
    Unreadable,
    attempt,
    count_students,
    find_submissions,
    own_name,
)
from .release import ROOT
from .results import write_file, write_table
from .trial import BATCH_SIZES, STEPS, classify

MODEL = Kind(".clab file", (".clab",))
BUDGET = 1_800_000  # bytes, of the track for accuracy: a fiftieth of the float32 classifier
POINT = 0.01  # of accuracy
FEWEST = 100  # sentences of a private split: what fewer of them say is too little
TIMED = 32  # sentences
ROUNDS = 15
LIMITS = sandbox.Limits(cell=120, submission=300)  # a cell is one of `trial.STEPS` here
PRIVATE = "Accuracy is measured on {:,} sentences that nobody was given."
PUBLIC = (
    "**Anyone could have trained on these sentences**: they are the {:,} of the course's own test "
    "split, and accuracy is as good as everybody's word. So nobody is ranked."
)
COLUMNS = (
    *("student", "name", "file", "entry", "problem", "smallest", "fastest", "most accurate"),
    *("bytes", "accuracy", "to float32", *(f"batch {size}" for size in BATCH_SIZES)),
)
LONGEST = 300  # characters of a problem
MARKUP = r"[\x00-\x1f\ud800-\udfff<>|`\[\]*_\\]"  # what a page would take for more than text

log = logging.getLogger("compresslab.grading")


@dataclass(frozen=True)
class Row:
    """A student's file: `entry` is what it is called on the board, and `problem` says why the rest,
    what was measured of it, is missing.

    Args:
        size: bytes.
        correct: whether each label is right, bool (sentences,).
        difference: to the float32 classifier.
        speedups: batch size -> how many times as fast as the float32 classifier.
    """

    file: File
    entry: str
    problem: str = ""
    size: int = 0
    correct: Tensor | None = None
    difference: Comparison | None = None
    speedups: dict[int, Estimate] | None = None

    @property
    def within(self) -> bool:
        """Whether it is at most a point below the float32 classifier: by the estimate and not its
        interval, so that the limit is in the same place however many sentences there are."""
        return self.difference.difference.value >= -POINT

    @property
    def slowest(self) -> Estimate:
        """The speed-up at the batch size at which it is smaller."""
        return min(self.speedups.values(), key=lambda speedup: speedup.value)


@dataclass(frozen=True)
class Track:
    """Who takes part, and whether a row is shown to be better than another, if they are ranked."""

    title: str
    admits: Callable[[Row], bool]
    better: Callable[[Row, Row], bool] | None

    def rank(self, rows: list[Row]) -> list[tuple[int | str, Row]]:
        """Ranks, "" if there are none, and rows of all that take part, best first; of equal ranks
        the smaller file."""
        rows = [row for row in rows if not row.problem and self.admits(row)]
        ranked = [
            (1 + sum(self.better(other, row) for other in rows) if self.better else "", row)
            for row in rows
        ]
        return sorted(ranked, key=lambda pair: (pair[0], pair[1].size, pair[1].entry))


TRACKS = {
    "smallest": Track(
        "Smallest within a point of the float32 classifier",
        lambda row: row.within,
        lambda a, b: a.size < b.size,
    ),
    "fastest": Track(
        "Fastest within a point, at the batch size at which it is slower",
        lambda row: row.within,
        lambda a, b: a.slowest.low > b.slowest.high,
    ),
    "most accurate": Track(
        f"Most accurate in {BUDGET / 1e6:.1f} MB",
        lambda row: row.size <= BUDGET,
        lambda a, b: compare_accuracy(b.correct, a.correct).difference.low > 0,
    ),
}
UNRANKED = {"smallest": Track("Measured, the smallest first", lambda row: True, None)}


# ---------------------------------------------------------------- the sentences


def read_private(path: Path) -> tuple[list[str], Tensor]:
    """Sentences, and their labels int64 (sentences,), of a private split.

    Args:
        path: CSV with columns text and label, which is negative or positive; with semicolons where
            a spreadsheet writes them.

    Raises:
        ValueError: there is no such file, it has other columns or labels, one label only, fewer
            than 100 sentences, a sentence twice, or one that is in the course's own texts.
    """
    try:
        file = io.StringIO(path.read_text(encoding="utf-8-sig"), newline="")
        header = file.readline().strip()
        file.seek(0)
        rows = list(csv.DictReader(file, delimiter=";" if ";" in header else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if rows and not {"text", "label"} <= rows[0].keys():
        raise ValueError(f"{path} must have the columns text and label, not {header!r}")
    texts = [(row["text"] or "").strip() for row in rows]
    labels = [(row["label"] or "").strip().lower() for row in rows]
    for i, known in enumerate(corpora.mark_known(texts)):
        where = f"{path}, sentence {i + 1}, {texts[i][:60]!r}"
        if labels[i] not in corpora.LABELS:
            raise ValueError(f"{where}: its label is {labels[i]!r}, not negative or positive")
        if known or not texts[i]:
            raise ValueError(f"{where}: it is empty, in the course's own texts, or there twice")
    if len(texts) < FEWEST or len(set(labels)) < 2:
        raise ValueError(f"{path} must have at least {FEWEST} sentences, and both labels")
    return texts, torch.tensor([corpora.LABELS.index(label) for label in labels])


# ---------------------------------------------------------------- one file


def measure(content: bytes, texts: list[str]) -> tuple[list[int], dict[int, Estimate]]:
    """Read a file in the sandbox, ask it for the labels of `texts`, and time it on some of them.

    Returns:
        A label for each text, and batch size -> speed-up over the float32 classifier.

    Raises:
        Unreadable: it cannot be measured; the message says why.
        RuntimeError: the sandbox failed, which no file can make it do.
    """
    lines = []

    def take(line: bytes) -> bool:
        lines.append(line)
        return len(lines) <= len(STEPS)

    job = {"texts": texts, "timed": texts[:: len(texts) // TIMED][:TIMED], "rounds": ROUNDS}
    _, why = sandbox.talk(
        "compresslab.grading.trial",
        json.dumps(job).encode() + b"\n" + content,
        take,
        limits=LIMITS,
        deadline=time.monotonic() + LIMITS.submission,
    )
    if not lines:
        raise RuntimeError(f"nothing could be run in the sandbox: {why or 'the process ended'}")
    return understand(lines, len(texts), why)


def understand(lines: list[bytes], count: int, why: str) -> tuple[list[int], dict[int, Estimate]]:
    """What `trial` says of a file, if it is all there and can be true.

    Args:
        count: of the texts.
        why: what ended the process, if it was not the process.

    Raises:
        Unreadable: something else.
    """
    try:
        said = [json.loads(line) for line in lines]
        if isinstance(said[-1], dict) and "error" in said[-1]:
            raise Unreadable(str(said[-1]["error"])[:LONGEST])
        if len(said) < len(STEPS):
            raise Unreadable(f"it was not {STEPS[len(said)]}: {why or 'its process ended'}")
        _, _, answers, times = said
        speedups = {size: Estimate(**times[str(size)]) for size in BATCH_SIZES}
        numbers = [number for speedup in speedups.values() for number in astuple(speedup)]
        possible = all(type(number) is float and 0 < number < math.inf for number in numbers)
        if len(answers) != count or not possible:
            raise ValueError
    except Unreadable:
        raise
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Unreadable("it sends what nobody asked for") from None
    return answers, speedups


# ---------------------------------------------------------------- the board


def run(source: Path, target: Path, private: Path | None = None) -> str:
    """Measure the last file of every student, write the board to `target`, and give it back.

    One file after another: two at once would slow each other down.

    Args:
        source: a folder or zip file, in one of the layouts of `intake`.
        private: sentences for `read_private`; without them, the course's own test split.

    Raises:
        ValueError: `source` or `private` is not what it should be.
        RuntimeError: there is no working sandbox.
    """
    if reason := sandbox.why_not():
        raise RuntimeError(f"files from others cannot be read safely here: {reason}")
    if not (total := count_students(source)):
        raise ValueError(f"there is nothing in {source}")
    if private is None:
        test = corpora.load_reviews()["test"]
        texts, labels = list(test["text"]), torch.tensor(list(test["label"]))
    else:
        texts, labels = read_private(private)
    dense = torch.tensor(classify(*load_classifier(), texts)) == labels

    heading, tracks = (PUBLIC, UNRANKED) if private is None else (PRIVATE, TRACKS)
    rows, heading = [], heading.format(len(texts))
    for files in tqdm(find_submissions(source, MODEL), total=total, unit=" students"):
        file = max(files, key=lambda f: (attempt(f.path), f.content is not None, f.path))
        rows.append(make_row(file, texts, labels, dense))
        # After each, so that whatever ends the run leaves what was measured.
        so_far = "" if len(rows) == total else f" So far {len(rows)} of {total} files are measured."
        board = make_board(rows, heading + so_far, accuracy(dense), tracks)
        write_file(target / "leaderboard.md", board)
        write_table(target / "leaderboard.csv", COLUMNS, make_table(rows, tracks))
    return board


def make_row(file: File, texts: list[str], labels: Tensor, dense: Tensor) -> Row:
    """Measure a file, whatever comes of it.

    Args:
        labels: of the texts, int64 (sentences,).
        dense: which of them the float32 classifier gives, bool (sentences,).
    """
    entry = re.sub(r"[^\w.+-]+", " ", own_name(file.path))[:40].strip() or "without a name"
    row = Row(replace(file, content=None), entry)
    try:
        if file.content is None:
            raise Unreadable(file.problem)
        answers, speedups = measure(file.content, texts)
    except Unreadable as error:
        return replace(row, problem=str(error))
    except Exception as error:  # ours: never a reason to lose the others
        log.exception("the leaderboard failed on %r", file.path)
        kind = type(error).__name__  # its text may name a person; the log has it
        return replace(row, problem=f"the leaderboard failed, and not the file: {kind}")
    right = zip(answers, labels.tolist(), strict=True)
    correct = torch.tensor([answer == label for answer, label in right])
    difference = compare_accuracy(dense, correct)
    return Row(row.file, entry, "", len(file.content), correct, difference, speedups)


def make_board(
    rows: list[Row], heading: str, dense: Estimate, tracks: dict[str, Track] = TRACKS
) -> str:
    """The board in Markdown. Nothing in it tells who a student is, but for the name of the file.

    Args:
        dense: accuracy of the float32 classifier.
    """
    lines = ["# Leaderboard", "", heading, f"The float32 classifier has {dense:.1%} there.", ""]
    lines += [f"Times as fast as it, on one thread of {processor()}, from sentences to labels."]
    lines += ["Intervals are of 95 %; p is of the paired test of McNemar."]
    left = {row.file.student: row for row in rows}
    for track in tracks.values():
        lines += ["", f"## {track.title}", ""]
        lines += ["| rank | entry | bytes | accuracy | to float32 | batch 1 | batch 32 |"]
        lines += ["|---:|---|---:|---|---|---|---|"]
        for place, row in track.rank(rows):
            cells = [place, row.entry, f"{row.size:,}", f"{accuracy(row.correct):.1%}"]
            cells += [row.difference, *(f"{row.speedups[size]:.1f}" for size in BATCH_SIZES)]
            lines += [f"| {' | '.join(map(str, cells))} |"]
            left.pop(row.file.student, None)
    lines += ["", "## In no track", ""]
    for row in left.values():
        why = row.problem or f"{row.size:,} bytes, {row.difference}"
        lines += [f"- {row.entry}: {re.sub(MARKUP, ' ', why)}"]
    return "\n".join(lines) + "\n"


def make_table(rows: list[Row], tracks: dict[str, Track] = TRACKS) -> list[dict]:
    """A dictionary of COLUMNS for each row."""
    ranks = {name: {r.file.student: n for n, r in t.rank(rows)} for name, t in tracks.items()}
    lines = []
    for row in rows:
        file = row.file
        line = {"student": file.student, "name": file.name, "file": file.path, "entry": row.entry}
        line |= {"problem": row.problem}
        line |= {name: places.get(file.student, "") for name, places in ranks.items()}
        if not row.problem:
            line |= {"bytes": row.size, "accuracy": round(accuracy(row.correct).value, 4)}
            line |= {"to float32": round(row.difference.difference.value, 4)}
            line |= {f"batch {size}": round(row.speedups[size].value, 2) for size in BATCH_SIZES}
        lines.append(line)
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m compresslab.grading.leaderboard",
        description="Measure and rank the files of the final project.",
    )
    parser.add_argument("source", type=Path, help="a folder or zip file, as a platform exports it")
    parser.add_argument("--private", type=Path, help="CSV file, columns text and label")
    given = parser.parse_args()
    target = ROOT / "grading"
    try:
        print(run(given.source.expanduser(), target, given.private and given.private.expanduser()))
    except (ValueError, RuntimeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(target / "leaderboard.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
