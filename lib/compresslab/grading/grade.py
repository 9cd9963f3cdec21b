"""Grade what a class handed in: `make grade FROM=folder`.

    python -m compresslab.grading.grade FOLDER_OR_ZIP [--to grading] [--assignment NAME]

leaves in `grading/`

    gradebook.db      nbgrader's, for its formgrader
    grades.csv        a row for each student and assignment: state, reason, points
    feedback/         a page for each, which may go to the student
    autograded/       the notebooks as they were graded, for the formgrader
    records/          what was found out about each submission, as JSON
    similar.csv       pairs of submissions that are very alike, for a person to look at
    grading.log

How many points an exercise earns is decided here, in the grader's process, from plain data that the
submission handed out (`sandbox`): half for the shown inputs, if all are right; the other half for
the hidden ones, in proportion. A second run grades only what has changed, and never a person's
points. Every submission ends in one of STATES.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from torch import Tensor
from tqdm.auto import tqdm

from ..machine import cores
from . import sandbox
from .checks import EXERCISES, recognize, verdict
from .intake import (
    File,
    Rebuilt,
    Unreadable,
    attempt,
    count_students,
    find_submissions,
    grade_id,
    identify,
    read_notebook,
    rebuild,
)
from .plain import NotPlain, decode
from .release import ROOT, assignments, exercises, is_experiment, is_graded
from .results import Results, summary

STATES = {
    "graded": "all of it was run and graded",
    "timed out": "a part ran too long and was left out; the rest is graded",
    "crashed": "a part ended the process and was left out; the rest is graded",
    "tampered": "it sent results that nobody asked for; graded as if it had not",
    "needs a person": "something has to be looked at before the points can stand",
    "unreadable": "no notebook could be read; there are no points, which is not zero points",
    "wrong assignment": "it is a notebook of no assignment here; there are no points",
}
WRONG = "the result is wrong"
UNSAFE = "--run-submissions-unprotected-with-all-my-rights"

log = logging.getLogger("compresslab.grading")


@dataclass(frozen=True)
class Assignment:
    """What grading needs to know of an assignment; the hidden part never leaves this process."""

    name: str
    released: NotebookNode
    shown: dict[str, dict]
    hidden: dict[str, dict]

    @property
    def version(self) -> str:
        """Changes with whatever a grade depends on."""
        parts = [self.released.metadata.compresslab.release, self.shown, self.hidden]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]

    def points(self, name: str) -> float:
        """The points of the graded cell whose grade_id is `name`."""
        return next(
            cell.metadata.nbgrader.points for cell in self.released.cells if grade_id(cell) == name
        )


def load_assignments() -> dict[str, Assignment]:
    """Every assignment that has a source here."""
    return {
        name: Assignment(
            name=name,
            released=nbformat.read(EXERCISES / name / f"{name}.ipynb", as_version=4),
            shown=exercises(name, "SHOWN"),
            hidden=exercises(name, "HIDDEN"),
        )
        for name in assignments()
    }


# ---------------------------------------------------------------- one submission


def grade(
    assignment: Assignment, rebuilt: Rebuilt, *, limits: sandbox.Limits, sandboxed: bool = True
) -> dict:
    """Run a submission and decide its points.

    Returns:
        `state` and `reason`; `exercises`, function -> `points`, `max` and `lines` for feedback;
        `written`, grade_id -> `max` and whether it is `answered`; `answers`, grade_id -> text;
        `printed` and `seconds`.
    """
    # The instant checks in the notebook prove nothing here: the calls below take their place.
    cells = [
        (i, cell.source)
        for i, cell in enumerate(rebuilt.notebook.cells)
        if cell.cell_type == "code" and not is_experiment(cell) and not is_graded(cell)
    ]
    calls = [
        (function, kind, case)
        for function in assignment.shown
        for kind in ("shown", "hidden")
        for case in getattr(assignment, kind)[function]["cases"]
    ]
    run = sandbox.run(
        cells,
        [(function, case["arguments"]) for function, _, case in calls],
        limits=limits,
        sandboxed=sandboxed,
    )
    if run.failures and run.failures[0].kind == "start":  # nothing that a submission could do
        why = f"the grader failed: nothing could be run: {run.failures[0].why}"
        return {"state": "needs a person", "reason": why, "digest": ""}
    found = {}
    for i, (function, kind, _) in enumerate(calls):
        found.setdefault((function, kind), []).append(run.outcomes.get(i, {"unrun": True}))
    scored = {
        function: _score(assignment, function, found[function, "shown"], found[function, "hidden"])
        for function in assignment.shown
    }
    written = {
        cell.metadata.nbgrader.grade_id: {
            "max": cell.metadata.nbgrader.points,
            "answered": cell.metadata.nbgrader.grade_id in rebuilt.answers,
        }
        for cell in assignment.released.cells
        if cell.cell_type == "markdown" and is_graded(cell)
    }
    failures = _describe(run.failures, rebuilt, calls)
    if run.odd:
        state = "tampered"
        failures.append("it sent results that nobody asked for")
    elif any(entry.get("waiting") for entry in scored.values()):
        state = "needs a person"
    elif run.failures:
        state = "timed out" if any(failure.late for failure in run.failures) else "crashed"
    elif rebuilt.lost:
        state = "needs a person"
    else:
        state = "graded"
    return {
        "state": state,
        "reason": "; ".join([*failures, *rebuilt.remarks]),
        "exercises": scored,
        "written": written,
        "answers": rebuilt.answers,
        "printed": run.printed,
        "seconds": round(run.seconds, 1),
    }


def _score(assignment: Assignment, function: str, shown: list[dict], hidden: list[dict]) -> dict:
    """Points and lines of feedback. Nothing in a line is chosen by the submission, not even a shape
    or the name of an exception: it could carry hidden inputs to the student.
    """
    points = assignment.points(f"check_{function}")
    if any("unrun" in found for found in [*shown, *hidden]):
        text = "not run to its end: the time for all exercises together was over"
        return {"points": 0.0, "max": points, "lines": [[False, text]], "waiting": True}
    if any("missing" in found for found in shown):
        text = f"there is no function {function}, or its cell failed or was left out"
        return {"points": 0.0, "max": points, "lines": [[False, text]]}
    exercise = assignment.shown[function]
    wrong = [_wrong(case, found) for case, found in zip(exercise["cases"], shown, strict=True)]
    first = next((i for i, sentence in enumerate(wrong) if sentence), None)
    if first is None:
        text = "all right"
    elif wrong[first] == WRONG:
        text = _recognize(exercise, shown, first) or "not right; run it to see what it says"
    else:
        text = wrong[first]
    if first is not None:
        case = exercise["cases"][first]
        text += f" (on {case['about']}{_expected(case)})"
    lines = [[first is None, f"instant check: {text}"]]
    for case, found in zip(assignment.hidden[function]["cases"], hidden, strict=True):
        text = _wrong(case, found)
        lines.append([text is None, case["about"] + (f": {text}" if text else "")])
    right = [fine for fine, _ in lines[1:]]
    earned = points * ((first is None) / 2 + sum(right) / len(right) / 2)
    return {"points": round(earned, 2), "max": points, "lines": lines}


def _recognize(exercise: dict, shown: list[dict], first: int) -> str | None:
    try:
        return recognize(exercise, shown, first)
    except NotPlain:  # one of the outcomes is forged
        return None


def _expected(case: dict) -> str:
    """What a shown case expects, if it is short enough to help."""
    if "value" not in case["expected"]:
        return ""
    value = decode(case["expected"]["value"])
    value = value.tolist() if isinstance(value, Tensor) else value
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f", {text} is expected" if len(text) <= 60 else ""


def _wrong(case: dict, found: dict) -> str | None:
    """None, or one of a few constant sentences."""
    if found.get("late"):
        return "the call takes too long"
    if found.get("died"):
        return "the call ends the process"
    if found.get("raises") == "NotImplementedError":
        return "nothing is written yet"
    try:
        fine = verdict(case, found) is None
    except NotPlain:
        fine = False
    if fine:
        return None
    return "it raises an exception" if "raises" in found else WRONG


def _describe(failures: list[sandbox.Failure], rebuilt: Rebuilt, calls: list) -> list[str]:
    """What was left out: one sentence for each answer, and one for all of a student's own cells,
    in the order of the notebook. Their number and order could tell the student something."""
    whys = {}
    for failure in failures:
        name = None
        if failure.kind == "call":
            name = calls[failure.index][0]
        elif failure.kind == "cell":
            name = grade_id(rebuilt.notebook.cells[failure.index])
        whys.setdefault(name, failure.why)
    ids = map(grade_id, rebuilt.notebook.cells)
    sentences = [f"{name} left out: {whys[name]}" for name in filter(None, ids) if name in whys]
    return sentences + ([f"a cell of your own left out: {whys[None]}"] if None in whys else [])


# ---------------------------------------------------------------- a class


def grade_class(
    source: Path,
    target: Path,
    *,
    only: str | None = None,
    sandboxed: bool = True,
    workers: int | None = None,
    limits: sandbox.Limits | None = None,
) -> list[dict]:
    """Grade everything in `source` that is new or has changed; write all results to `target`.

    Args:
        only: name of an assignment; notebooks of the others are left alone.
        workers: submissions that run at once; one for each core by default.
        limits: what each may take.

    Returns:
        the records of all submissions that `target` knows, those of earlier runs included.

    Raises:
        ValueError: `source` is no folder or zip file, or there is no assignment `only`.
        RuntimeError: there is no working sandbox, and `sandboxed` is True.
    """
    if sandboxed and (reason := sandbox.why_not()):
        raise RuntimeError(
            f"submissions cannot be run safely here: {reason}. To run them all the same, with "
            f"everything that you may read, write and send open to them: {UNSAFE}"
        )
    known = load_assignments()
    if only is not None and only not in known:
        raise ValueError(f"no assignment {only!r}; there are {', '.join(known)}")
    total = count_students(source)
    workers, limits = workers or cores(), limits or sandbox.Limits()
    results = Results(target, {name: a.released for name, a in known.items()})
    running: dict[Future, tuple[dict, Rebuilt]] = {}

    def save(record: dict, notebook: NotebookNode | None) -> None:
        try:
            results.save(record, notebook)
        except Exception as error:  # ours: never a reason to lose the others
            log.exception("the results of %r could not be written", record["path"])
            results.save(_begin(record) | _failed(error), None)

    def finish() -> None:
        for future in wait(running, return_when=FIRST_COMPLETED).done:
            record, rebuilt = running.pop(future)
            try:
                record |= future.result()
            except Exception as error:
                log.exception("the grader failed on %r", record["path"])
                record |= _failed(error)
            save(record, rebuilt.notebook)

    with ThreadPoolExecutor(workers) as pool:
        for files in tqdm(find_submissions(source), total=total, unit=" students"):
            try:
                found = list(_sort_out(files, known, only))
            except Exception as error:
                log.exception("the grader failed on %r", files[0].path)
                found = [(_begin(vars(files[0])) | _failed(error), None)]
            for record, rebuilt in found:
                if rebuilt is None:
                    save(record, None)
                elif not results.has(record):
                    assignment = known[record["assignment"]]
                    job = pool.submit(
                        grade, assignment, rebuilt, sandboxed=sandboxed, limits=limits
                    )
                    running[job] = (record, rebuilt)
            # No more notebooks in memory than can be worked on.
            while len(running) > workers:
                finish()
        while running:
            finish()
    return results.close()


def _begin(of: Mapping) -> dict:
    """A record that says only whose and which file it is."""
    return {key: of[key] for key in ("student", "name", "path")} | {"assignment": ""}


def _failed(error: Exception) -> dict:
    """For a record: our own failure. Without a digest, so that the next run tries again."""
    why = f"the grader failed: {type(error).__name__}"
    return {"state": "needs a person", "reason": why, "digest": ""}


def _sort_out(
    files: list[File], known: dict[str, Assignment], only: str | None
) -> Iterator[tuple[dict, Rebuilt | None]]:
    """What a student's files are: records that are begun, with the work if it can be graded."""
    found: dict[str, list[tuple[File, Rebuilt]]] = {}
    for file in files:
        record = _begin(vars(file))
        try:
            if file.content is None:
                raise Unreadable(file.problem)
            notebook = read_notebook(file.content)
        except Unreadable as error:
            yield record | {"state": "unreadable", "reason": str(error)}, None
            continue
        name = identify(notebook, {name: a.released for name, a in known.items()})
        if name is None:
            reason = f"it is none of {', '.join(known)}"
            yield record | {"state": "wrong assignment", "reason": reason}, None
        elif only in (None, name):
            found.setdefault(name, []).append((file, rebuild(known[name].released, notebook)))
        else:
            reason = f"it is {name}, and {only} is to be graded"
            yield record | {"state": "wrong assignment", "reason": reason}, None
    for name, tries in found.items():
        # The last try counts; an untouched copy of what was handed out is none.
        file, rebuilt = max(
            tries, key=lambda pair: (bool(pair[1].answers), attempt(pair[0].path), pair[0].path)
        )
        others = [other.path for other, _ in tries if other is not file]
        rebuilt.remarks += [f"not graded, since another one was: {path}" for path in others]
        digest = hashlib.sha256(file.content + known[name].version.encode()).hexdigest()
        yield _begin(vars(file)) | {"assignment": name, "digest": digest}, rebuilt


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m compresslab.grading.grade",
        description="Grade what a class handed in. What has been graded before, and has not "
        "changed, is left as it is.",
    )
    parser.add_argument("source", type=Path, help="a folder or zip file, as a platform exports it")
    parser.add_argument("--to", type=Path, default=ROOT / "grading", help="folder for the results")
    parser.add_argument("--assignment", help="grade only this one")
    parser.add_argument("--workers", type=int, help="submissions at once; one a core by default")
    parser.add_argument("--seconds", type=float, help="for a whole submission; 120 by default")
    parser.add_argument(UNSAFE, action="store_true", dest="unsafe", help="run without a sandbox")
    given = parser.parse_args()
    limits = sandbox.Limits(submission=given.seconds) if given.seconds else sandbox.Limits()
    begun = time.monotonic()
    try:
        records = grade_class(
            given.source.expanduser(),
            given.to,
            only=given.assignment,
            sandboxed=not given.unsafe,
            workers=given.workers,
            limits=limits,
        )
    except (ValueError, RuntimeError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    print(summary(records))
    print(f"{given.to}: {time.monotonic() - begun:.0f} seconds")
    return 0


if __name__ == "__main__":
    sys.exit(main())
