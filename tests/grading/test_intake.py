"""Reading what students hand in: layouts, damaged files, and the work put in its place."""

import io
import json
import os
import warnings
import zipfile

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_class import NAME, changed, data, handed_out, old_format, own_cell, place, solved

from compresslab.grading import intake
from compresslab.grading.intake import (
    Unreadable,
    attempt,
    count_students,
    find_submissions,
    identify,
    identify_student,
    read_notebook,
    rebuild,
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["cells", "source", "metadata", "nbgrader", "grade_id"])
            | st.sampled_from(["cell_type", "outputs", "id", "nbformat"])
            | st.text(max_size=3),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


def every(source):
    return [file for files in find_submissions(source) for file in files]


@pytest.mark.parametrize(
    ("path", "student", "name"),
    [
        ("Ada Lovelace_1234_assignsubmission_file_/measuring.ipynb", "1234", "Ada Lovelace"),
        ("Ada Lovelace_1234_assignsubmission_file_measuring.ipynb", "1234", "Ada Lovelace"),
        ("José d'Été_77_assignsubmission_file_/a b.ipynb", "77", "José d'Été"),
        ("lovelaceada_1234_98765_measuring.ipynb", "1234", "lovelaceada"),
        ("lovelaceada_LATE_1234_98765_measuring-2.ipynb", "1234", "lovelaceada"),
        ("ada/measuring/measuring.ipynb", "ada", "ada"),
        ("ada/measuring.ipynb", "ada", "ada"),
        ("ada.ipynb", "ada", "ada"),
        ("a/../b:c.ipynb", "a", "a"),
        ("mallory/doe_88_1_z-9.ipynb", "mallory", "mallory"),
        ("mallory/Doe_88_assignsubmission_file_/z.ipynb", "mallory", "mallory"),
    ],
)
def test_the_name_of_a_file_tells_whose_it_is(path, student, name):
    assert identify_student(path) == (student, name)


def test_an_id_is_always_safe_as_the_name_of_a_file():
    for path in ("../x.ipynb", "a b/c.ipynb", "-rf.ipynb", "§.ipynb", "x" * 9 + "/y.ipynb"):
        assert "/" not in identify_student(path)[0]
        assert identify_student(path)[0] not in ("", ".", "..")


def test_two_students_whose_names_are_made_alike_stay_two():
    names = ["A B", "A-B", "A_B", "a b", "..", "!!", "___", "-A", "=A", "x" * 300, "x" * 301]
    ids = [identify_student(f"{name}/m.ipynb")[0] for name in names]
    assert len(set(ids)) == len(names)
    assert all(len(i) < 80 and i[0].isalnum() and "/" not in i for i in ids)


def test_a_search_in_many_empty_lines_takes_no_time():
    cell = nbformat.v4.new_code_cell("\n" * 300_000)
    assert identify(nbformat.v4.new_notebook(cells=[cell]), {NAME: handed_out()}) is None


def pasted(notebook):
    cell = notebook.cells[place(notebook, "question_1")]
    cell.source += "\n\n![](attachment:figure.png)"
    cell.attachments = {"figure.png": {"image/png": "iVBORw0KGgo="}, "x": {"text/html": "<b>"}}


def test_a_picture_that_was_pasted_into_an_answer_is_kept():
    rebuilt = rebuild(handed_out(), read_notebook(changed(pasted)()))
    cell = rebuilt.notebook.cells[place(rebuilt.notebook, "question_1")]
    assert cell.attachments == {"figure.png": {"image/png": "iVBORw0KGgo="}}


def test_of_outputs_text_and_pictures_are_kept():
    def shows(notebook):
        outputs = [
            nbformat.v4.new_output("display_data", data=data)
            for data in (
                {"text/html": "<script>1</script>", "text/plain": "a table"},
                {"image/svg+xml": "<svg onload=1>"},
                {"image/png": 'iVBO" onerror="1'},
                {"image/png": "iVBORw0KGgo=\n"},
            )
        ]
        notebook.cells[place(notebook, "profile_run")].outputs = outputs

    rebuilt = rebuild(handed_out(), read_notebook(changed(shows)()))
    kept = [o.data for o in rebuilt.notebook.cells[place(rebuilt.notebook, "profile_run")].outputs]
    assert kept == [{"text/plain": "a table"}, {}, {}, {"image/png": "iVBORw0KGgo=\n"}]


def test_canvas_numbers_later_tries():
    files = ["adal_1_2_m-3.ipynb", "adal_1_3_m-1.ipynb", "adal_LATE_1_14_m.zip/m-9.ipynb"]
    assert [attempt(file) for file in files] == [2, 3, 14]
    assert attempt("ada/adal_1_2_m.ipynb") == 0


def test_a_zip_of_an_export_is_as_good_as_the_folder(tmp_path):
    for who in ("Ada_1", "Bo_2"):
        folder = tmp_path / "in" / f"{who}_assignsubmission_file_"
        folder.mkdir(parents=True)
        (folder / "m.ipynb").write_bytes(data(solved()))
        (folder / "photo.png").write_bytes(b"png")
        (folder / "checks.json").write_bytes(b"{}")
        (folder / ".DS_Store").write_bytes(b"litter")
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        for path in sorted((tmp_path / "in").rglob("*"), reverse=True):
            archive.write(path, path.relative_to(tmp_path / "in"))
    from_folder, from_zip = (every(tmp_path / n) for n in ("in", "all.zip"))
    assert from_folder == from_zip
    assert [file.student for file in from_zip] == ["1", "2"]
    assert count_students(tmp_path / "in") == count_students(tmp_path / "all.zip") == 2


def test_a_link_is_not_followed(tmp_path):
    secret = tmp_path / "secret.ipynb"
    secret.write_bytes(data(solved()))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "ada.ipynb").symlink_to(secret)
    (file,) = every(tmp_path / "in")
    assert file.content is None
    assert "link" in file.problem


def test_a_zip_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "LARGEST", 10_000)
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in" / "ada.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m.ipynb", b"0" * 1_000_000)
    (file,) = every(tmp_path / "in")
    assert file.content is None
    assert "unpacks to" in file.problem


def test_what_is_too_large_in_an_export_is_told_without_a_name(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "LARGEST", 10_000)
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Ada Lovelace_1_assignsubmission_file_/m.ipynb", b"0" * 1_000_000)
    (file,) = every(tmp_path / "all.zip")
    assert file.content is None
    assert file.problem.startswith("it unpacks to more than")


def zipped():
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("m.ipynb", b"{}" * 500)
    return data.getvalue()


def patched(where, *values):
    """A zip file with other bytes from an offset on, behind one of its signatures."""
    signature, offset = where
    data = bytearray(zipped())
    start = data.index(signature) + offset
    data[start : start + len(values)] = values
    return bytes(data)


CENTRAL, LOCAL = b"PK\1\2", b"PK\3\4"


@pytest.mark.parametrize(
    "content",
    [
        b"PK no zip",
        b"",
        zipped()[500:],
        patched((CENTRAL, 6), 200),  # a version of the format that nobody has
        patched((CENTRAL, 8), 0, 8, *[0] * 36, 255),  # a name in UTF-8 that is none
        patched((LOCAL, 6), 0, 8, *[0] * 22, 255),
        patched((LOCAL, 40), 1),  # another checksum
        patched((CENTRAL, 8), 1),  # a password
    ],
)
def test_a_damaged_zip_file_is_told_and_ends_nothing(tmp_path, content):
    (tmp_path / "Ada Lovelace.zip").write_bytes(content)
    (tmp_path / "bo.ipynb").write_bytes(b"{}")
    bad, good = every(tmp_path)
    assert bad.content is None
    assert bad.problem.startswith("the zip file is damaged or locked")
    assert "Ada" not in bad.problem  # it may be shown to all
    assert good.content == b"{}"


def test_two_names_that_are_no_utf8_stay_two(tmp_path):
    for name in (b"\xe9ric.ipynb", b"\xe8ric.ipynb"):
        (tmp_path / os.fsdecode(name)).write_bytes(b"{}")
    assert len({file.student for file in every(tmp_path)}) == 2


def test_a_student_cannot_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MOST", 10)
    for i in range(3):
        (tmp_path / "ada").mkdir(exist_ok=True)
        (tmp_path / "ada" / f"{i}.ipynb").write_bytes(b"1234")
    assert [file.content for file in every(tmp_path)] == [b"1234", b"1234", None]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"\xff\xfe\x00", "UTF-8"),
        (b"{", "no notebook"),
        (b"[" * 100_000, "no notebook"),
        (b"[]", "no notebook"),
        (b'{"cells": 5}', "no notebook"),
        (b'{"nbformat": 4}', "no notebook"),
    ],
)
def test_what_is_no_notebook_is_told(content, says):
    with pytest.raises(Unreadable, match=says):
        read_notebook(content)


@settings(max_examples=300, deadline=None)
@given(PLAIN)
def test_no_json_ends_anything_but_unreadable(value):
    try:
        notebook = read_notebook(json.dumps(value).encode())
    except Unreadable:
        return
    nbformat.validate(notebook)
    rebuilt = rebuild(handed_out(), notebook)
    nbformat.validate(rebuilt.notebook)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["delete", "copy", "move"]), st.integers(0, 99)), max_size=8)
)
def test_however_cells_are_mixed_the_released_ones_are_all_there(changes):
    notebook = solved()
    for kind, number in changes:
        if not notebook.cells:
            break
        i = number % len(notebook.cells)
        cell = notebook.cells[i]
        if kind != "copy":
            del notebook.cells[i]
        if kind != "delete":
            copy = nbformat.from_dict(json.loads(json.dumps(cell)))
            notebook.cells.insert((7 * number) % (len(notebook.cells) + 1), copy)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of nbformat, that ids are there twice
        content = data(notebook)
    rebuilt = rebuild(handed_out(), read_notebook(content))
    nbformat.validate(rebuilt.notebook)
    ids = [
        c.metadata["nbgrader"]["grade_id"]
        for c in rebuilt.notebook.cells
        if "nbgrader" in c.metadata
    ]
    wanted = [
        c.metadata["nbgrader"]["grade_id"] for c in handed_out().cells if "nbgrader" in c.metadata
    ]
    assert ids == wanted
    # What is neither an answer nor the student's own is as it was handed out.
    for cell in rebuilt.notebook.cells:
        own = cell.metadata.get("nbgrader", {})
        if own and not own["solution"]:
            assert cell.source == handed_out().cells[place(handed_out(), own["grade_id"])].source


def test_an_untouched_notebook_has_no_answers_and_no_remarks():
    rebuilt = rebuild(handed_out(), read_notebook(data(handed_out())))
    assert (rebuilt.answers, rebuilt.remarks, rebuilt.lost) == ({}, [], [])
    assert [c.source for c in rebuilt.notebook.cells] == [c.source for c in handed_out().cells]


def test_own_cells_stay_where_they_were_and_count_for_nothing():
    notebook = read_notebook(own_cell("helper = 1", after="sentences_needed")())
    rebuilt = rebuild(handed_out(), notebook)
    i = next(i for i, c in enumerate(rebuilt.notebook.cells) if c.source == "helper = 1")
    assert rebuilt.notebook.cells[i - 1].metadata.nbgrader.grade_id == "sentences_needed"
    assert "nbgrader" not in rebuilt.notebook.cells[i].metadata
    assert rebuilt.remarks == []


def test_an_answer_in_the_cell_of_the_question_is_kept():
    def typed(notebook):
        notebook.cells[place(notebook, "question_1") - 1].source += "\n\nAttention!"

    rebuilt = rebuild(handed_out(), read_notebook(changed(typed)()))
    assert any(cell.source.endswith("Attention!") for cell in rebuilt.notebook.cells)


def test_a_picture_that_an_experiment_drew_is_kept_for_a_person():
    def drew(notebook):
        notebook.cells[place(notebook, "profile_run")].outputs = [
            nbformat.v4.new_output("stream", name="stdout", text="attention 49 %")
        ]

    rebuilt = rebuild(handed_out(), read_notebook(changed(drew)()))
    cell = rebuilt.notebook.cells[place(rebuilt.notebook, "profile_run")]
    assert cell.outputs[0].text == "attention 49 %"


@pytest.mark.parametrize("change", [old_format, lambda n: n.metadata.pop("compresslab") and None])
def test_an_assignment_is_known_by_what_is_in_it(change):
    notebook = read_notebook(changed(change)())
    assert identify(notebook, {NAME: handed_out()}) == NAME


def test_another_notebook_is_no_assignment():
    cells = [nbformat.v4.new_code_cell("def amdahl(x):\n    return x")]
    assert identify(nbformat.v4.new_notebook(cells=cells), {NAME: handed_out()}) is None
