"""Put grades into a table of Moodle's or Canvas's own, for uploading it again.

    python -m compresslab.grading.export WORKSHEET.csv --assignment NAME [--grades grades.csv]

WORKSHEET is what the platform gives: in Moodle the *grading worksheet* of the assignment (View all
submissions, Download grading worksheet), in Canvas the exported gradebook. The points go into a
copy beside it, NAME-filled.csv, in which nothing else is touched. Whoever has no total, or one that
is not complete, gets no points there, which is not zero points. For Moodle the feedback pages are
packed as well, into ASSIGNMENT-feedback.zip.
"""

import argparse
import csv
import io
import re
import sys
import zipfile
from pathlib import Path

from .release import ROOT


def fill(worksheet: str, totals: dict[str, str], *, column: str = "") -> tuple[str, list[str]]:
    """The worksheet with the totals, and the ids of whoever is not in it.

    Args:
        worksheet: text of the CSV file.
        totals: student's id -> points; empty for none.
        column: where the points go; Moodle's "Grade" by default.

    Raises:
        ValueError: it is no such table, or has no such column.
    """
    rows = list(csv.DictReader(io.StringIO(worksheet)))
    header = next(csv.reader(io.StringIO(worksheet)), [])
    if "Identifier" in header:
        key, column = "Identifier", column or "Grade"
    elif {"Student", "ID"} <= set(header):
        key = "ID"
        if not column:
            raise ValueError(f"which column gets the points? --column, one of: {_columns(header)}")
    else:
        raise ValueError(
            "neither Moodle's grading worksheet (with a column Identifier) nor Canvas's gradebook "
            f"(with columns Student and ID); it has {', '.join(header) or 'no header'}"
        )
    if column not in header:
        raise ValueError(f"no column {column!r}; there are {_columns(header)}")
    missing = dict(totals)
    for row in rows:
        student = re.sub(r"\D", "", row[key] or "")
        points = missing.pop(student, "")
        if points:
            row[column] = points
    out = io.StringIO()
    table = csv.DictWriter(out, header)
    table.writeheader()
    table.writerows(rows)
    return out.getvalue(), [student for student, points in missing.items() if points]


def pack_feedback(folder: Path, rows: list[dict]) -> bytes | None:
    """The pages of students as Moodle wants them back: a zip file of the folders that it gave.

    Args:
        folder: of the results, in which `feedback/` lies.
        rows: of the table; those that did not come from Moodle are left out.
    """
    packed, out = 0, io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for row in rows:
            page = folder / "feedback" / row["assignment"] / f"{row['student']}.html"
            match = re.match(r"[^/]+_\d+_assignsubmission_[a-z]+_", row["file"])
            if match and page.exists():
                archive.write(page, f"{match[0]}/feedback.html")
                packed += 1
    return out.getvalue() if packed else None


def _columns(header: list[str]) -> str:
    return ", ".join(repr(name) for name in header)


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m compresslab.grading.export", description=__doc__.split("\n")[0]
    )
    parser.add_argument("worksheet", type=Path, help="the platform's own table")
    parser.add_argument("--assignment", required=True, help="whose points")
    parser.add_argument("--grades", type=Path, default=ROOT / "grading" / "grades.csv")
    parser.add_argument("--column", default="", help="where they go; Canvas only")
    given = parser.parse_args()
    given.worksheet = given.worksheet.expanduser()
    try:
        with given.grades.open(encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["assignment"] == given.assignment]
        if not rows:
            raise ValueError(f"{given.grades} has nothing of {given.assignment!r}")
        totals = {row["student"]: row["total"] for row in rows}
        # Excel and Moodle put a mark in front of UTF-8.
        text = given.worksheet.read_text(encoding="utf-8")
        mark = "\ufeff" if text.startswith("\ufeff") else ""
        text = text.removeprefix(mark)
        filled, missing = fill(text, totals, column=given.column)
    except (OSError, ValueError, KeyError) as error:
        print(error, file=sys.stderr)
        return 1
    path = given.worksheet.with_name(f"{given.worksheet.stem}-filled.csv")
    path.write_text(mark + filled, encoding="utf-8", newline="")
    complete = sum(bool(total) for total in totals.values())
    print(f"{path}: {complete - len(missing)} of {len(totals)} students have their points")
    if complete < len(totals):
        print(f"{len(totals) - complete} have no complete total: see {given.grades}")
    if missing:
        print(f"not in the worksheet: {', '.join(missing)}")
    pages = pack_feedback(given.grades.parent, rows)
    if pages:
        path = given.worksheet.with_name(f"{given.assignment}-feedback.zip")
        path.write_bytes(pages)
        print(f"{path}: the pages, for Moodle's *Upload multiple feedback files in a zip*")
    return 0


if __name__ == "__main__":
    sys.exit(main())
