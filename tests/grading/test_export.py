"""Grades into the tables of Moodle and Canvas."""

import csv
import io
import subprocess
import sys
import zipfile

import pytest

from compresslab.grading.export import fill, main, pack_feedback

MOODLE = (
    'Identifier,"Full name","Email address",Status,Grade,"Maximum Grade","Feedback comments"\n'
    '"Participant 1001","Ada Lovelace",ada@uni,"Submitted for grading",,20.00,"see, page"\n'
    '"Participant 1002","Bo Right",bo@uni,"No submission",,20.00,\n'
    '"Participant 1003","Cy ""X"" Late",cy@uni,"Submitted for grading",7.00,20.00,\n'
)
CANVAS = (
    "Student,ID,SIS User ID,SIS Login ID,Section,Measuring (4711),Final Score\n"
    "    Points Possible,,,,,20,\n"
    '"Lovelace, Ada",1001,s1,ada,A,,88\n'
    '"Right, Bo",1002,s2,bo,A,,\n'
)
TOTALS = {"1001": "17.5", "1002": "", "1009": "3.0"}


def read(text: str) -> list[dict]:
    return list(csv.DictReader(text.splitlines()))


def test_moodles_worksheet_is_filled_and_otherwise_as_it_was():
    text, missing = fill(MOODLE, TOTALS)
    before, after = read(MOODLE), read(text)
    assert [row["Grade"] for row in after] == ["17.5", "", "7.00"]
    for old, new in zip(before, after, strict=True):
        assert old | {"Grade": ""} == new | {"Grade": ""}
    assert missing == ["1009"]


def test_canvas_gradebook_is_filled_in_the_column_that_was_named():
    text, _ = fill(CANVAS, TOTALS, column="Measuring (4711)")
    assert [row["Measuring (4711)"] for row in read(text)] == ["20", "17.5", ""]
    assert [row["Final Score"] for row in read(text)] == ["", "88", ""]


@pytest.mark.parametrize(
    ("worksheet", "column", "says"),
    [
        (CANVAS, "", r"which column gets the points.*'Measuring \(4711\)'"),
        (CANVAS, "Pruning", r"no column 'Pruning'; there are .*'Measuring"),
        ("a,b\n1,2\n", "", "neither Moodle's grading worksheet .* it has a, b"),
        ("", "", "no header"),
    ],
)
def test_another_table_is_refused_in_words(worksheet, column, says):
    with pytest.raises(ValueError, match=says):
        fill(worksheet, TOTALS, column=column)


def test_feedback_is_packed_into_the_folders_that_moodle_gave(tmp_path):
    page = tmp_path / "feedback" / "measuring" / "1001.html"
    page.parent.mkdir(parents=True)
    page.write_text("<p>well done</p>")
    file = "Ada Lovelace_1001_assignsubmission_file_/measuring.ipynb"
    rows = [
        {"student": "1001", "assignment": "measuring", "file": file},
        {"student": "1002", "assignment": "measuring", "file": file.replace("1001", "1002")},
        {"student": "1001", "assignment": "measuring", "file": "lovelaceada_1001_5_m.ipynb"},
    ]
    with zipfile.ZipFile(io.BytesIO(pack_feedback(tmp_path, rows))) as archive:
        assert archive.namelist() == ["Ada Lovelace_1001_assignsubmission_file_/feedback.html"]
        assert archive.read(archive.namelist()[0]) == b"<p>well done</p>"
    assert pack_feedback(tmp_path, rows[2:]) is None


def test_a_name_that_no_grades_have_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "sheet.csv").write_text(MOODLE)
    (tmp_path / "grades.csv").write_text("student,assignment,total,file\n1001,measuring,17.5,x\n")
    arguments = ["sheet.csv", "--assignment", "mesuring", "--grades", "grades.csv"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", *arguments])
    assert main() == 1
    assert "grades.csv has nothing of 'mesuring'" in capsys.readouterr().err
    assert not (tmp_path / "sheet-filled.csv").exists()


def test_the_command_leaves_the_worksheet_alone_and_writes_a_copy(tmp_path):
    (tmp_path / "sheet.csv").write_text("\ufeff" + MOODLE, encoding="utf-8")
    (tmp_path / "grades.csv").write_text(
        "student,assignment,total,file\n"
        "1001,measuring,17.5,a\n1002,measuring,,b\n1001,pruning,3,c\n"
    )
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "compresslab.grading.export",
            tmp_path / "sheet.csv",
            "--assignment",
            "measuring",
            "--grades",
            tmp_path / "grades.csv",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "1 of 2 students have their points" in done.stdout
    assert "1 have no complete total" in done.stdout
    assert (tmp_path / "sheet.csv").read_text(encoding="utf-8") == "\ufeff" + MOODLE
    filled = (tmp_path / "sheet-filled.csv").read_text(encoding="utf-8")
    assert filled.startswith("\ufeff")  # Excel wants the mark
    assert read(filled[1:])[0]["Grade"] == "17.5"
