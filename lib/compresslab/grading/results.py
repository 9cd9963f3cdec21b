"""What grading leaves behind: records, nbgrader's gradebook, a table, feedback, a log.

A record is written first, as a whole or not at all; everything else follows from the records and
is made again where a run was cut off. Points that a person gave are in the gradebook alone, and
only read here.
"""

import csv
import hashlib
import io
import json
import logging
import os
import re
import statistics
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode
from nbformat.v4 import new_output

from .feedback import page
from .similar import normalize, write_similar

COLUMNS = (
    *("student", "name", "assignment", "state", "reason"),
    *("automatic", "automatic_max", "written", "written_max", "waiting", "total", "file"),
)
CONFIG = """# For nbgrader's formgrader: `jupyter lab` in this folder, menu Nbgrader, Formgrader.
c = get_config()  # noqa
c.CourseDirectory.root = {root!r}
c.CourseDirectory.db_url = {url!r}
"""

log = logging.getLogger("compresslab.grading")


class Results:
    """The folder of results of one class."""

    def __init__(self, folder: Path, released: Mapping[str, NotebookNode]):
        """Open `folder`, which may hold results of earlier runs.

        Raises:
            ValueError: the gradebook in it was made for other exercises.
        """
        from nbgrader.preprocessors import SaveCells
        from sqlalchemy.exc import SAWarning

        self.folder, self.released = Path(folder).absolute(), dict(released)
        self.records = self.folder / "records"
        self.records.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(
            self.folder / "grading.log", encoding="utf-8", errors="replace"
        )
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        log.addHandler(handler)
        log.setLevel(logging.INFO)
        self._handler = handler
        # Noise from inside nbgrader, of what it does with its own tables.
        warnings.filterwarnings("ignore", category=SAWarning)
        # nbgrader calls alembic by its bare name.
        os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.url = f"sqlite:///{self.folder / 'gradebook.db'}"
        config = CONFIG.format(root=str(self.folder), url=self.url)
        (self.folder / "nbgrader_config.py").write_text(config, encoding="utf-8")
        with self._gradebook() as gradebook:
            for name, notebook in self.released.items():
                gradebook.update_or_create_assignment(name)
                source = self.folder / "source" / name / f"{name}.ipynb"
                source.parent.mkdir(parents=True, exist_ok=True)
                nbformat.write(notebook, source)
                try:
                    SaveCells().preprocess(nbformat.from_dict(notebook), self._resources(name))
                except RuntimeError as error:
                    raise ValueError(
                        f"{self.folder} was graded with other exercises of {name}: choose another "
                        f"folder for the results ({error})"
                    ) from None

    def has(self, record: dict) -> bool:
        """Whether the very same submission is graded, and all that follows is written."""
        known = self._load(self._path(record))
        return bool(known) and known.get("digest") == record["digest"] and known.get("done", False)

    def save(self, record: dict, notebook: NotebookNode | None) -> None:
        """Write a record, and what follows from it."""
        printed = record.pop("printed", {})
        path = self._path(record)
        write_file(path, json.dumps(record, indent=1))
        if record.get("exercises"):
            self._save_grades(record, notebook, printed)
            for kind, suffix in (("records", ".json"), ("feedback", ".html")):
                # The same file may have been unreadable before.
                self._path(record | {"assignment": ""}, kind, suffix).unlink(missing_ok=True)
        write_file(path, json.dumps(record | {"done": True}, indent=1))
        log.info(
            "%s %s: %s%s",
            *(record["student"], record["assignment"] or record["path"], record["state"]),
            f" ({record['reason']})" if record["reason"] else "",
        )

    def close(self) -> list[dict]:
        """Write the table and the feedback; give back all records, with a person's points."""
        records = [self._load(path) for path in sorted(self.records.rglob("*.json"))]
        records = [record for record in records if record]
        with self._gradebook() as gradebook:
            for record in records:
                self._add_manual(gradebook, record)
        rows = [_row(record) for record in records]
        write_table(self.folder / "grades.csv", COLUMNS, rows)
        for record, row in zip(records, rows, strict=True):
            path = self._path(record, "feedback", ".html")
            write_file(path, page(record, row, self.released.get(record["assignment"])))
        self._find_similar(records)
        log.removeHandler(self._handler)
        self._handler.close()
        return records

    # ------------------------------------------------------------ inside

    def _path(self, record: dict, kind: str = "records", suffix: str = ".json") -> Path:
        """Of a record, or of what belongs to it. A file of no assignment goes by its own name."""
        name = record["student"]
        if not record["assignment"]:
            name += "-" + hashlib.sha256(record["path"].encode()).hexdigest()[:8]
        return self.folder / kind / (record["assignment"] or "none") / f"{name}{suffix}"

    def _find_similar(self, records: list[dict]) -> None:
        answers: dict[str, dict[str, dict[str, str]]] = {}
        for record in records:
            if record.get("exercises"):
                own = record.get("answers", {})
                prose = [text for name, text in own.items() if name in record["written"]]
                code = [normalize(t) for name, t in own.items() if name in record["exercises"]]
                texts = {"code": "\n".join(code), "prose": "\n".join(prose)}
                answers.setdefault(record["assignment"], {})[record["student"]] = texts
        count = write_similar(self.folder / "similar.csv", answers)
        log.info("%d pairs of submissions are alike", count)

    def _load(self, path: Path) -> dict | None:
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _gradebook(self):
        from nbgrader.api import Gradebook

        return Gradebook(self.url)

    def _resources(self, name: str, student: str = "") -> dict:
        own = {"notebook": name, "assignment": name, "student": student, "db_url": self.url}
        return {"nbgrader": own}

    def _save_grades(self, record: dict, notebook: NotebookNode, printed: dict) -> None:
        """The notebook for the formgrader, with the points as nbgrader reads them from cells."""
        from nbgrader.preprocessors import SaveAutoGrades

        name, student = record["assignment"], record["student"]
        for i, cell in enumerate(notebook.cells):
            if cell.cell_type != "code":
                continue
            if i in printed:
                text = printed[i]
                cell.outputs = [new_output("stream", name="stdout", text=text)] if text else []
            own = cell.metadata.get("nbgrader", {})
            if own.get("grade"):
                scored = record["exercises"][own["grade_id"].removeprefix("check_")]
                text = "\n".join(f"{'✔' if fine else '✘'} {line}" for fine, line in scored["lines"])
                result = {"text/plain": str(scored["points"])}
                cell.outputs = [
                    new_output("stream", name="stdout", text=text),
                    new_output("execute_result", data=result, execution_count=1),
                ]
        handed_out = {cell.source for cell in self.released[name].cells}
        for cell in notebook.cells:
            if cell.cell_type == "markdown" and cell.source not in handed_out:
                cell.source = _harmless(cell.source)
        path = self.folder / "autograded" / student / name / f"{name}.ipynb"
        write_file(path, nbformat.writes(notebook))
        with self._gradebook() as gradebook:
            first, _, last = record["name"].rpartition(" ")
            gradebook.update_or_create_student(student, first_name=first, last_name=last)
            gradebook.update_or_create_submission(name, student)
        SaveAutoGrades().preprocess(notebook, self._resources(name, student))
        with self._gradebook() as gradebook:
            for function, entry in record["exercises"].items():
                if entry.get("waiting"):
                    grade = gradebook.find_grade(f"check_{function}", name, name, student)
                    grade.needs_manual_grade = True
            gradebook.db.commit()

    def _add_manual(self, gradebook, record: dict) -> None:
        """Put what a person decided into the record: points, comments, what is still waiting."""
        from nbgrader.api import MissingEntry

        if not record.get("exercises"):
            return
        entries = [(f"check_{name}", name, e) for name, e in record["exercises"].items()]
        entries += [(name, name, entry) for name, entry in record["written"].items()]
        for graded, answered, entry in entries:
            where = (record["assignment"], record["assignment"], record["student"])
            try:
                grade = gradebook.find_grade(graded, *where)
                entry["comment"] = gradebook.find_comment(answered, *where).manual_comment or ""
            except MissingEntry:
                continue
            decided = grade.manual_score is not None or grade.auto_score is not None
            if answered in record["written"]:
                entry["points"] = grade.score if decided else None
                entry["waiting"] = bool(grade.needs_manual_grade)
            elif grade.manual_score is not None or grade.extra_credit:
                entry["manual"] = grade.score  # with extra credit


def _row(record: dict) -> dict:
    exercises, written = record.get("exercises"), record.get("written", {})
    row = dict.fromkeys(COLUMNS, "") | {
        key: record[key] for key in ("student", "name", "assignment", "state", "reason")
    }
    row["file"] = record["path"]
    if not exercises:
        return row
    automatic = sum(e.get("manual", e["points"]) for e in exercises.values())
    row["automatic"] = round(automatic, 2)
    row["automatic_max"] = sum(entry["max"] for entry in exercises.values())
    given = [entry.get("points") for entry in written.values()]
    row["written"] = sum(points for points in given if points is not None)
    row["written_max"] = sum(entry["max"] for entry in written.values())
    row["waiting"] = sum(
        entry.get("waiting", False) or entry.get("points") is None for entry in written.values()
    ) + sum("waiting" in entry and "manual" not in entry for entry in exercises.values())
    # No total before every point is decided: half a total looks like a bad one.
    row["total"] = "" if row["waiting"] else round(row["automatic"] + row["written"], 2)
    return row


def _harmless(text: str) -> str:
    """A student's Markdown without tags, and with links to the web and to pasted pictures only: the
    formgrader would follow all others with the rights of whoever grades."""
    text = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", text)
    text = re.sub(r"\]\(\s*(?!https?://|attachment:)", "] (", text)
    return re.sub(r"^(\s*\[[^\]]*\]):", r"\1 :", text, flags=re.M)


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping]) -> None:
    """Write rows as CSV, as a whole or not at all; what a row lacks is empty."""
    text = io.StringIO()
    table = csv.DictWriter(text, columns)
    table.writeheader()
    for row in rows:
        table.writerow({column: _cell(row.get(column, "")) for column in columns})
    write_file(path, text.getvalue())


def _cell(value: object) -> object:
    """A value of a table, marked as text if a spreadsheet would run it; also one that takes `;` for
    the end of a cell."""
    if not isinstance(value, str):
        return value
    value = re.sub(r";(?=\s*[\"']?[=+\-@])", ",", value)
    return f"'{value}" if value.startswith(("=", "+", "-", "@", "\t")) else value


def write_file(path: Path, text: str) -> None:
    """Write a file as a whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8", errors="replace", newline="")
    new.replace(path)


def summary(records: list[dict]) -> str:
    """States, the distribution of points, and what was hard, in a few lines."""
    lines = []
    for name in sorted({record["assignment"] for record in records}):
        of = [record for record in records if record["assignment"] == name]
        states = Counter(record["state"] for record in of)
        lines.append(f"\n{name or 'no assignment'}: {len(of)} submissions")
        lines += [f"  {count:4} {state}" for state, count in states.most_common()]
        graded = [record for record in of if record.get("exercises")]
        if not graded:
            continue
        totals = [sum(e["points"] for e in record["exercises"].values()) for record in graded]
        best = sum(entry["max"] for entry in graded[0]["exercises"].values())
        lines.append(f"  automatic points, of {best:g}: median {statistics.median(totals):g}")
        for low in range(5):
            share = [low / 5 <= t / best and (t / best < (low + 1) / 5 or low == 4) for t in totals]
            label = f"{low * best / 5:4.1f} to {(low + 1) * best / 5:4.1f}"
            lines.append(f"    {label} {'█' * sum(share)} {sum(share) or ''}")
        for function in graded[0]["exercises"]:
            scores = [r["exercises"][function]["points"] for r in graded]
            full = graded[0]["exercises"][function]["max"]
            lines.append(
                f"    {function:20} all points {sum(s == full for s in scores):3}, "
                f"some {sum(0 < s < full for s in scores):3}, none {sum(s == 0 for s in scores):3}"
            )
    return "\n".join(lines)
