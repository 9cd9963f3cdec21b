"""From files to grades: the synthetic class, and what happens to results."""

import csv
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import nbformat
import pytest
import synthetic_class
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic_class import (
    CLASS,
    NAME,
    POINTS,
    Submission,
    changed,
    data,
    own_cell,
    place,
    solved,
    with_answers,
    write,
)

from compresslab.grading import grade, results, sandbox

# Short, so that what never ends is over soon; the first cell loads torch, and needs some seconds.
LIMITS = sandbox.Limits(cell=15, submission=120)
WHY_NOT = sandbox.why_not()
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def run(source, target, *, limits=LIMITS, **options) -> dict[str, dict]:
    """Grade; student's name -> record."""
    records = grade.grade_class(source, target, limits=limits, **options)
    return {record["name"]: record for record in records}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("class")


@pytest.fixture(scope="module")
def graded(folder):
    write(folder / "submissions")
    return run(folder / "submissions", folder / "grading")


@pytest.fixture(autouse=True)
def two_assignments(monkeypatch):
    """To make a gradebook for all assignments takes longer than to grade one submission: only that
    of the forty has all, since `graded` is there before this."""
    every = grade.load_assignments()
    two = {name: every[name] for name in (NAME, "pruning")}
    monkeypatch.setattr(grade, "load_assignments", lambda: two)


def check(submission: Submission, record: dict) -> None:
    assert record["state"] == submission.state, record["reason"]
    assert submission.reason in record["reason"]
    if not submission.gradable:
        assert "exercises" not in record
        return
    for function, points in POINTS.items():
        earned = record["exercises"][function]["points"]
        wanted = submission.points.get(function, points)
        assert 0 < earned < points if wanted == "some" else earned == wanted, (
            function,
            record["exercises"][function]["lines"],
            record["reason"],
        )


def test_there_are_forty_of_them_with_forty_names():
    assert len({submission.who for submission in CLASS}) == 40


@pytest.mark.parametrize("submission", CLASS, ids=lambda s: s.who)
def test_every_submission_comes_to_what_it_should(graded, submission):
    check(submission, graded[submission.who])


def test_every_state_is_one_that_is_documented(graded):
    assert {record["state"] for record in graded.values()} == set(grade.STATES)


# ---------------------------------------------------------------- what is left behind


def table(folder) -> dict[str, dict]:
    with (folder / "grading" / "grades.csv").open(encoding="utf-8") as file:
        return {row["name"]: row for row in csv.DictReader(file)}


def test_the_table_has_one_row_each_and_no_invented_zero(graded, folder):
    rows = table(folder)
    assert rows.keys() == {submission.who for submission in CLASS}
    for submission in CLASS:
        row = rows[submission.who]
        assert row["state"] == submission.state
        assert bool(row["automatic"]) == submission.gradable
        # A total would be wrong as long as a person has not read the answers.
        assert row["total"] == "" or row["waiting"] == "0"
    assert rows["Ada Right"]["automatic"] == "16.0"
    assert rows["Ada Right"]["waiting"] == "2"
    assert rows["Pam Stub"]["total"] == "0.0"


def test_an_answer_whose_cell_is_missing_waits_for_a_person(graded, folder):
    row = table(folder)["Tom Missing"]
    assert (row["waiting"], row["total"]) == ("2", "")
    page = (folder / "grading" / "feedback" / NAME / "1020.html").read_text(encoding="utf-8")
    assert "Needs a person." in page


def test_the_log_names_every_submission(graded, folder):
    log = (folder / "grading" / "grading.log").read_text(encoding="utf-8")
    for number, submission in enumerate(CLASS, start=1001):
        assert re.search(rf" {number} .*{submission.state}", log), submission.who


def test_nbgraders_gradebook_has_the_points(graded, folder):
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{folder / 'grading' / 'gradebook.db'}") as gradebook:
        for number, submission in enumerate(CLASS, start=1001):
            if not submission.gradable:
                continue
            record = graded[submission.who]
            found = gradebook.find_submission(NAME, str(number))
            points = sum(entry["points"] for entry in record["exercises"].values())
            assert found.score == pytest.approx(points)
            waiting = any(entry["answered"] for entry in record["written"].values())
            assert found.needs_manual_grade == waiting


def test_a_notebook_for_the_formgrader_has_the_answers_and_the_verdicts(graded, folder):
    path = folder / "grading" / "autograded" / "1009" / NAME / f"{NAME}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    outputs = {
        cell.metadata.nbgrader.grade_id: cell.outputs
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.metadata.get("nbgrader")
    }
    assert outputs["check_amdahl"][0].text.startswith("✔ instant check: all right")
    assert (
        "✘ instant check: Rounded down, or to the nearest"
        in outputs["check_sentences_needed"][0].text
    )


def test_a_page_tells_what_was_right_what_was_wrong_and_where(graded, folder):
    page = (folder / "grading" / "feedback" / NAME / "1009.html").read_text(encoding="utf-8")
    assert "Ida Floor" in page
    assert "Exercise 2 · How many sentences does a comparison need?" in page
    assert "the interval would be a little too wide." in page
    assert "(on 20 sentences that the models disagree on, 12 to 8, of 100, " in page
    assert "is expected)" in page
    assert "✘&ensp;a large pilot: the result is wrong" in page
    assert "read by a person, later" in page
    assert not re.search(r"(src|href)=\"?(http|//)", page)


def test_a_page_of_what_could_not_be_graded_says_that_it_is_no_zero(graded, folder):
    (page,) = (folder / "grading" / "feedback" / "none").glob("1028*.html")
    text = page.read_text(encoding="utf-8")
    assert "Not graded: unreadable." in text
    assert "This is not zero" in text


def test_the_summary_tells_the_distribution_and_what_was_hard(graded):
    text = results.summary(list(graded.values()))
    assert f"{NAME}: 37 submissions" in text
    assert "no assignment: 3 submissions" in text
    assert re.search(r"amdahl +all points +\d+, some +\d+, none +\d+", text)


# ---------------------------------------------------------------- hidden things stay hidden


@pytest.mark.parametrize("answer", synthetic_class.LEAKS)
def test_no_answer_can_carry_a_hidden_input_into_the_feedback(tmp_path, answer):
    secret = "1234567"
    leak = with_answers(amdahl=answer.replace("SECRET", secret))
    write(tmp_path / "in", [Submission("Sol Leak", leak)])
    run(tmp_path / "in", tmp_path / "out")
    for path in [*(tmp_path / "out" / "feedback").rglob("*.html"), tmp_path / "out" / "grades.csv"]:
        assert secret not in path.read_text(encoding="utf-8").replace(",", "")


def test_what_a_cell_prints_is_not_in_the_feedback(tmp_path):
    notebook = solved()
    notebook.cells.append(nbformat.v4.new_code_cell("print('a secret ' + 'of mine')"))
    write(tmp_path / "in", [Submission("Ann Prints", lambda: data(notebook))])
    run(tmp_path / "in", tmp_path / "out")
    assert (
        "a secret of mine" not in (tmp_path / "out" / "feedback" / NAME / "1001.html").read_text()
    )
    autograded = tmp_path / "out" / "autograded" / "1001" / NAME / f"{NAME}.ipynb"
    assert "a secret of mine" in autograded.read_text()


FORGED = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["float", "tensor", "shape", "data"]), inner)
        | st.dictionaries(st.sampled_from(["value", "arguments", "raises", "refused"]), inner)
        | st.dictionaries(st.sampled_from(["dict", "set", "tuple", "late", "missing"]), inner)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(
    found=st.dictionaries(
        st.sampled_from(["value", "arguments", "raises", "refused", "message", "late", "unrun"]),
        FORGED,
    )
)
def test_a_forged_outcome_is_refused_or_earns_nothing(measuring, found):
    if sandbox._is_outcome(found):
        scored = grade._score(measuring, "amdahl", [found] * 4, [found] * 4)
        assert scored["points"] == 0
        assert all(isinstance(line, str) for _, line in scored["lines"])


@pytest.fixture(scope="module")
def measuring():
    return grade.load_assignments()[NAME]


def find_the_runner(what: str) -> str:
    """A cell that gets hold of the runner's own function `say` and its `job`, and then `what`."""
    return f"""
        import gc, json
        every = gc.get_objects()
        name = "main.<locals>.say"
        say = next(o for o in every if getattr(o, "__qualname__", "") == name)
        job = next(o for o in every if isinstance(o, dict) and "calls" in o and "seconds" in o)
        {what}
    """


STUBS = {f: f"def {f}(*a, **k):\n    raise NotImplementedError" for f in POINTS}


@pytest.mark.parametrize(
    "outcome", ["{'refused': None}", "{'refused': ''}", "{'unrun': 1}", "{}", "{'value': None}"]
)
def test_a_patched_runner_earns_nothing(tmp_path, outcome):
    patch = f"from compresslab.grading import checks\nchecks.outcome = lambda f, a: {outcome}"
    record = single(Submission("Pat Ch", own_cell(patch, answers=STUBS)), tmp_path)
    assert record["state"] == ("graded" if outcome == "{'refused': ''}" else "tampered")
    assert sum(entry["points"] for entry in record["exercises"].values()) == 0


def test_hiding_that_the_input_was_changed_earns_nothing(tmp_path):
    patch = """
        from compresslab.grading import checks
        real = checks.outcome
        checks.outcome = lambda f, a: {"value": real(f, a)["value"]}
    """
    changes = (
        "def amdahl(seconds, speedups):\n    before = sum(seconds.values())\n"
        "    for p in seconds:\n        seconds[p] /= speedups.get(p, 1)\n"
        "    after = sum(seconds.values())\n    return before / after if after else math.inf"
    )
    record = single(Submission("Hid Es", own_cell(patch, answers={"amdahl": changes})), tmp_path)
    assert record["exercises"]["amdahl"]["points"] == 0


def test_the_clock_cannot_be_wound_back(tmp_path):
    cheat = find_the_runner(
        "signal = __import__('signal'); signal.setitimer(signal.ITIMER_REAL, 0)"
    )
    slow = (
        "def amdahl(seconds, speedups):\n    import time\n"
        "    signal.setitimer = lambda *a: signal.alarm(0)\n    signal.alarm(0)\n"
        "    for _ in range(40):\n        time.sleep(1)\n"
        "        say(cell=job['cells'][0]['index'])\n        say(call=0)\n    return 1.0"
    )
    record = single(Submission("Tim Er", own_cell(cheat, answers={"amdahl": slow})), tmp_path)
    assert record["state"] == "tampered"
    assert record["exercises"]["amdahl"]["points"] == 0
    assert record["exercises"]["influence"]["points"] == 2


def test_what_is_said_of_failures_carries_no_message(tmp_path):
    tell = find_the_runner(
        "for c in job['cells'] * 3: say(cell=c['index'], stdout='', shown=[], late=True)"
    )
    record = single(Submission("Mor Se", own_cell(tell)), tmp_path)
    assert record["reason"].endswith("it sent results that nobody asked for")
    assert record["reason"].count("left out") <= 1
    (tmp_path / "2").mkdir()
    dies = own_cell("import os\nos._exit(97)")
    record = single(Submission("Sta Tus", dies), tmp_path / "2")
    assert record["reason"] == "a cell of your own left out: the process ended"


def test_nothing_of_the_graders_environment_is_in_the_sandbox(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "ghp_1234567")
    look = own_cell(
        "import glob\nfor p in glob.glob('/proc/*/environ'):\n    print(open(p).read())"
    )
    single(Submission("Env Y", look), tmp_path)
    graded = (tmp_path / "out" / "autograded" / "1001" / NAME / f"{NAME}.ipynb").read_text()
    assert "OMP_NUM_THREADS" in graded
    assert "ghp_1234567" not in graded


def test_nothing_can_be_written_but_in_a_small_tmp(tmp_path):
    fills = own_cell("""
        import os
        for folder in ("/dev/shm", "/dev", "/", "/root", "/home", "/usr", "/run"):
            for i in range(4):
                try:
                    open(f"{folder}/x{i}", "wb").write(b"x" * 40_000_000)
                    print("wrote", folder, i)
                except OSError:
                    pass
        print(os.system("unshare -Urm true") == 0)
    """)
    single(Submission("Fil Ler", fills), tmp_path)
    graded = (tmp_path / "out" / "autograded" / "1001" / NAME / f"{NAME}.ipynb").read_text()
    assert graded.count("wrote ") == graded.count("wrote /dev/shm") == 1
    assert "False" in graded


def test_right_answers_stay_right_when_a_later_input_ends_the_process(tmp_path):
    dies = (
        "import os\ncount = 0\ndef amdahl(seconds, speedups):\n    global count\n    count += 1\n"
        "    if count == 6:\n        os._exit(3)\n"
        "    after = sum(t / speedups.get(p, 1) for p, t in seconds.items())\n"
        "    return sum(seconds.values()) / after if after else math.inf"
    )
    record = single(Submission("Die Late", with_answers(amdahl=dies)), tmp_path)
    assert record["state"] == "crashed"
    assert record["exercises"]["amdahl"]["points"] == 1.25  # the check, and one of four hidden


# ---------------------------------------------------------------- files that could end a run


def with_metadata(**metadata):
    notebook = solved()
    notebook.metadata.update(metadata)
    return json.dumps(notebook).encode()


def cell_with(source: str = "x = 1", **fields):
    notebook = solved()
    cell = {"cell_type": "code", "source": source, "metadata": {}, "outputs": []} | fields
    return json.dumps({**notebook, "cells": [*notebook.cells, cell]}).encode()


ODD = {
    "kernel": with_metadata(kernelspec={"name": "x"}, language_info={}),
    "mark": with_metadata(compresslab={"assignment": []}),
    "mark2": with_metadata(compresslab={"assignment": {}, "release": [1]}),
    "tags": cell_with(metadata={"tags": None, "collapsed": "x"}),
    "longid": cell_with(id="x" * 200),
    "surrogate": cell_with('print("\\ud800")'),
    "halfemoji": cell_with("# \ud83d"),
    "digits": data(solved({"influence": "X = 0x" + "f" * 5000})),
    "minuses": data(solved({"influence": "X = " + "-" * 900 + "1"})),
    "nulls": cell_with("x = '\0'"),
}


def test_no_file_ends_the_run_of_the_others(tmp_path):
    source = tmp_path / "in"
    for name, content in ODD.items():
        (source / name).mkdir(parents=True)
        (source / name / f"{NAME}.ipynb").write_bytes(content)
    (source / "=HYPERLINK(1)").mkdir()
    (source / "=HYPERLINK(1)" / "notes.pdf").write_bytes(b"%PDF")
    (source / ("long" * 60)).mkdir()
    (source / ("long" * 60) / f"{NAME}.ipynb").write_bytes(data(solved()))
    (source / "line\nbreak").mkdir()
    (source / "line\nbreak" / f"{NAME}.ipynb").write_bytes(b"{")
    latin = os.path.join(os.fsencode(source), b"M\xfcller")
    os.mkdir(latin)
    with open(os.path.join(latin, b"measuring.ipynb"), "wb") as file:
        file.write(data(solved()))
    with zipfile.ZipFile(source / "dots.zip", "w") as archive:
        archive.writestr(".", b"")
        archive.writestr("A" * 400 + ".ipynb", b"{")
    with zipfile.ZipFile(source / "nested.zip", "w") as archive:
        archive.writestr("inner.zip", b"PK")
    (source / "fine").mkdir()
    (source / "fine" / f"{NAME}.ipynb").write_bytes(data(solved()))

    records = run(source, tmp_path / "out")
    assert {r["state"] for r in records.values()} == {"graded", "unreadable"}
    assert all("grader failed" not in record["reason"] for record in records.values())
    assert records["M\\xfcller"]["state"] == records["fine"]["state"] == "graded"
    assert "no notebook among the files" in records["=HYPERLINK(1)"]["reason"]
    assert "another zip file" in records["nested"]["reason"]
    assert len(records) == len(ODD) + 7
    with (tmp_path / "out" / "grades.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(records)
    assert not [
        row for row in rows if any(v.startswith(("=", "+", "-", "@")) for v in row.values())
    ]
    log = (tmp_path / "out" / "grading.log").read_text(encoding="utf-8")
    assert all(re.match(r"\d{4}-\d\d-\d\d ", line) for line in log.splitlines())


def test_a_failure_of_our_own_is_the_students_row_and_nobody_elses(tmp_path, monkeypatch):
    source = write(tmp_path / "in", [Submission("No 0", CLASS[0].make), CLASS[0]])
    real = grade.rebuild

    def breaks(original, notebook):
        if not (tmp_path / "once").exists():
            (tmp_path / "once").touch()
            raise ZeroDivisionError
        return real(original, notebook)

    monkeypatch.setattr(grade, "rebuild", breaks)
    states = sorted(record["state"] for record in run(source, tmp_path / "out").values())
    assert states == ["graded", "needs a person"]


# ---------------------------------------------------------------- honest work in odd places


def all_in_one(notebook):
    code = [place(notebook, name) for name in POINTS]
    notebook.cells[code[0]].source = "\n\n".join(notebook.cells[i].source for i in code)
    for i in sorted(code[1:], reverse=True):
        del notebook.cells[i]


def import_in_locked_cell(notebook):
    notebook.cells[place(notebook, "setup")].source += "\nimport numpy as np"
    cell = notebook.cells[place(notebook, "amdahl")]
    cell.source = cell.source.replace("return", "return np.float64(1) *")


def copied_experiment(notebook):
    i = place(notebook, "profile_run")
    copy = nbformat.from_dict(json.loads(json.dumps(notebook.cells[i])))
    copy.source += "\nprint('with four threads')"
    notebook.cells.insert(i + 1, copy)


@pytest.mark.parametrize(
    ("change", "state"),
    [
        (all_in_one, "needs a person"),
        (import_in_locked_cell, "graded"),
        (copied_experiment, "graded"),
    ],
)
def test_right_answers_in_odd_places_get_their_points(tmp_path, change, state):
    record = single(Submission("Odd Place", changed(change)), tmp_path)
    assert record["state"] == state
    assert sum(entry["points"] for entry in record["exercises"].values()) == 16
    graded = (tmp_path / "out" / "autograded" / "1001" / NAME / f"{NAME}.ipynb").read_text()
    assert change is not copied_experiment or "with four threads" in graded


def test_an_untouched_copy_beside_the_work_is_not_taken_for_it(tmp_path):
    folder = tmp_path / "in" / "ada"
    folder.mkdir(parents=True)
    (folder / "measuring.ipynb").write_bytes(CLASS[0].make())
    (folder / "measuring_orig.ipynb").write_bytes(data(synthetic_class.handed_out()))
    record = run(tmp_path / "in", tmp_path / "out")["ada"]
    check(CLASS[0], record)
    assert "measuring_orig" in record["reason"]


# ---------------------------------------------------------------- again, and after a kill


def points_of(folder) -> list[list[str]]:
    with (folder / "grades.csv").open(encoding="utf-8") as file:
        return sorted(list(row.values()) for row in csv.DictReader(file))


def test_a_second_run_grades_only_what_changed_and_keeps_a_persons_points(tmp_path, monkeypatch):
    class_ = [Submission(f"No {i}", own_cell(f"x = {i}")) for i in range(3)]
    source, target = write(tmp_path / "in", class_), tmp_path / "out"
    run(source, target)
    give_points(target, "1001", "question_1", 1.5, "Half of it.")

    asked = []
    monkeypatch.setattr(
        grade, "grade", lambda *a, real=grade.grade, **k: asked.append(a) or real(*a, **k)
    )
    again = run(source, target)
    assert not asked
    assert again["No 0"]["written"]["question_1"]["points"] == 1.5
    assert again["No 0"]["written"]["question_1"]["comment"] == "Half of it."

    (source / "No 1_1002_assignsubmission_file_" / f"{NAME}.ipynb").write_bytes(own_cell("y = 5")())
    run(source, target)
    assert len(asked) == 1

    # The same student hands in again: a person's points stay, and a person should look once more.
    (source / "No 0_1001_assignsubmission_file_" / f"{NAME}.ipynb").write_bytes(own_cell("z = 5")())
    last = run(source, target)["No 0"]["written"]["question_1"]
    assert last["points"] == 1.5
    assert last["waiting"]


def give_points(target, student: str, grade_id: str, points: float, comment: str) -> None:
    """What a person does in the formgrader."""
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{target / 'gradebook.db'}") as gradebook:
        found = gradebook.find_grade(grade_id, NAME, NAME, student)
        found.manual_score, found.needs_manual_grade = points, False
        gradebook.find_comment(grade_id, NAME, NAME, student).manual_comment = comment
        gradebook.db.commit()


def test_the_total_stands_when_a_person_has_read_everything(tmp_path):
    source, target = write(tmp_path / "in", [CLASS[0]]), tmp_path / "out"
    run(source, target)
    give_points(target, "1001", "question_1", 2, "")
    give_points(target, "1001", "question_2", 1, "Which measure?")
    run(source, target)
    (row,) = csv.DictReader((target / "grades.csv").open(encoding="utf-8"))
    assert (row["written"], row["waiting"], row["total"]) == ("3.0", "0", "19.0")
    assert "Which measure?" in (target / "feedback" / NAME / "1001.html").read_text()


def test_a_file_that_was_unreadable_and_is_handed_in_again_is_graded(tmp_path):
    source = write(tmp_path / "in", [Submission("Tea Twice", lambda: b"{")])
    assert run(source, tmp_path / "out")["Tea Twice"]["state"] == "unreadable"
    (path,) = source.rglob("*.ipynb")
    path.write_bytes(CLASS[0].make())
    assert run(source, tmp_path / "out")["Tea Twice"]["state"] == "graded"
    assert len(points_of(tmp_path / "out")) == 1


def test_a_kill_at_any_moment_loses_nothing(tmp_path):
    class_ = [Submission(f"No {i}", own_cell(f"x = {i}")) for i in range(6)]
    source = write(tmp_path / "in", class_)
    command = [sys.executable, "-m", "compresslab.grading.grade", str(source), "--to"]
    for known in (1, 3):
        process = subprocess.Popen([*command, str(tmp_path / "out")], start_new_session=True)
        while len(list((tmp_path / "out").glob("records/*/*.json"))) < known:
            time.sleep(0.01)
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    for target in ("out", "whole"):  # with the limits of the command: only the kill may matter
        run(source, tmp_path / target, limits=sandbox.Limits())
    assert points_of(tmp_path / "out") == points_of(tmp_path / "whole")
    assert len(points_of(tmp_path / "out")) == 6
    from nbgrader.api import Gradebook

    with Gradebook(f"sqlite:///{tmp_path / 'out' / 'gradebook.db'}") as gradebook:
        assert gradebook.find_assignment(NAME).num_submissions == 6


# ---------------------------------------------------------------- limits


def single(one: Submission, tmp_path, **limits) -> dict:
    write(tmp_path / "in", [one])
    (record,) = grade.grade_class(
        tmp_path / "in", tmp_path / "out", limits=dataclasses.replace(LIMITS, **limits)
    )
    return record


def test_memory_is_limited(tmp_path):
    record = single(synthetic_class.MEMORY, tmp_path, memory=1_500_000_000)
    # Python raises MemoryError in the cell that takes too much; the grader need not end anything.
    assert record["state"] == "graded"
    assert all(entry["points"] == entry["max"] for entry in record["exercises"].values())


def test_output_is_limited(tmp_path):
    record = single(synthetic_class.OUTPUT, tmp_path)
    assert record["state"] in ("timed out", "crashed")
    assert record["exercises"]["influence"]["points"] == 2


def test_disk_is_limited(tmp_path):
    fills = own_cell("""
        written = 0
        try:
            while written < 10**9:
                written += open(f"/tmp/{written}", "wb").write(b"x" * 10**6)
        except OSError as error:
            print(error, written < 2 * 10**8)
    """)
    record = single(Submission("Dee Disk", fills), tmp_path)
    assert all(entry["points"] == entry["max"] for entry in record["exercises"].values())
    graded = tmp_path / "out" / "autograded" / "1001" / NAME / f"{NAME}.ipynb"
    assert "No space left on device True" in graded.read_text().replace("[Errno 28] ", "")


def test_a_process_left_behind_is_ended(tmp_path):
    import psutil

    record = single(synthetic_class.PROCESS, tmp_path)
    assert record["exercises"]["amdahl"]["points"] == 2
    time.sleep(1)
    assert not [p for p in psutil.process_iter(["cmdline"]) if "98765.4321" in str(p.info)]


def test_functions_that_never_end_cost_their_own_points_alone(tmp_path):
    endless = "def {}(*a, **k):\n    while True:\n        pass"
    answers = {name: endless.format(name) for name in ("amdahl", "tokens_that_fit")}
    record = single(Submission("Two Loops", with_answers(**answers)), tmp_path)
    assert record["state"] == "timed out"
    assert record["reason"].count("left out: it runs for more than 15 seconds") == 2
    for name, entry in record["exercises"].items():
        assert entry["points"] == (0 if name in answers else entry["max"])
    assert "the call takes too long" in record["exercises"]["amdahl"]["lines"][0][1]


def test_what_was_never_run_is_not_a_zero(tmp_path):
    slow = "import time\ndef amdahl(*a, **k):\n    time.sleep(1)\n    return 1.0"
    one = Submission("Uma Unrun", with_answers(amdahl=slow))
    record = single(one, tmp_path, submission=5)
    assert record["state"] == "needs a person"
    assert "seconds for all are over" in record["reason"]
    (row,) = csv.DictReader((tmp_path / "out" / "grades.csv").open(encoding="utf-8"))
    assert row["total"] == ""
    assert int(row["waiting"]) >= 5
    page = (tmp_path / "out" / "feedback" / NAME / "1001.html").read_text(encoding="utf-8")
    assert "looked at by a person, later" in page


def test_a_sandbox_that_cannot_start_makes_nobody_zero_and_is_tried_again(tmp_path, monkeypatch):
    source = write(tmp_path / "in", [CLASS[0]])
    command = sandbox._command
    with monkeypatch.context() as patched:
        patched.setattr(sandbox, "_command", lambda limits: [*command(limits), "false"])
        assert "nothing can be run in the sandbox" in sandbox.why_not.__wrapped__()
        patched.setattr(sandbox, "why_not", lambda: None)
        record = run(source, tmp_path / "out")["Ada Right"]
    assert record["state"] == "needs a person"
    assert "exercises" not in record
    (row,) = csv.DictReader((tmp_path / "out" / "grades.csv").open(encoding="utf-8"))
    assert (row["automatic"], row["total"]) == ("", "")
    check(CLASS[0], run(source, tmp_path / "out")["Ada Right"])


def test_a_cell_that_never_ends_costs_what_it_should_have_done_and_no_more(tmp_path):
    record = single(Submission("Sam Loops", own_cell("while True:\n    pass")), tmp_path)
    assert (record["state"], record["reason"]) == (
        "timed out",
        "a cell of your own left out: it runs for more than 15 seconds",
    )
    assert all(entry["points"] == entry["max"] for entry in record["exercises"].values())


def test_time_is_limited_for_the_submission_as_a_whole(tmp_path):
    sleeps = own_cell("import time\ntime.sleep(3)")
    record = single(Submission("Sid Slow", sleeps), tmp_path, submission=2.5)
    assert record["state"] == "needs a person"
    assert "2 seconds for all are over" in record["reason"]


def test_without_a_sandbox_nothing_is_run(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "why_not", sandbox.why_not.__wrapped__)
    write(tmp_path / "in", [CLASS[0]])
    with pytest.raises(RuntimeError, match=r"bubblewrap is not installed.*with-all-my-rights"):
        run(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    record = run(tmp_path / "in", tmp_path / "out", sandboxed=False)["Ada Right"]
    check(CLASS[0], record)


def test_a_zip_file_from_canvas_in_which_a_student_tried_twice(tmp_path):
    wrong = with_answers(amdahl="def amdahl(seconds, speedups):\n    return 0.0")
    with zipfile.ZipFile(tmp_path / "submissions.zip", "w") as archive:
        archive.writestr("lovelaceada_1001_50_measuring.ipynb", wrong())
        archive.writestr("lovelaceada_LATE_1001_51_measuring-1.ipynb", CLASS[0].make())
        archive.writestr("rightbo_1002_52_notes.pdf", b"%PDF")
        archive.writestr("rightbo_1002_53_work.ipynb", wrong())
    records = run(tmp_path / "submissions.zip", tmp_path / "out")
    assert {name: r["student"] for name, r in records.items()} == {
        "lovelaceada": "1001",
        "rightbo": "1002",
    }
    check(CLASS[0], records["lovelaceada"])
    assert "since another one was: lovelaceada_1001_50" in records["lovelaceada"]["reason"]
    assert records["rightbo"]["exercises"]["amdahl"]["points"] == 0


# ---------------------------------------------------------------- the command


def command(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "compresslab.grading.grade", *arguments],
        capture_output=True,
        text=True,
    )


def test_the_command_says_what_is_wrong_with_its_arguments(tmp_path):
    done = command(str(tmp_path / "nowhere"), "--to", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "neither a folder nor a zip file" in done.stderr
    done = command(str(tmp_path), "--assignment", "thesis", "--to", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "no assignment 'thesis'; there are " in done.stderr
    assert "measuring, pruning" in done.stderr


def test_one_assignment_alone(tmp_path):
    write(tmp_path / "in", [CLASS[0]])
    record = run(tmp_path / "in", tmp_path / "out", only="pruning")["Ada Right"]
    assert record["state"] == "wrong assignment"
    assert "it is measuring, and pruning is to be graded" in record["reason"]
