"""The exercises: that what is handed out follows from the source, and that its checks work."""

import functools
import json
import re
import zipfile

import nbformat
import pytest
from nbclient import NotebookClient

from compresslab.grading import checks, release
from compresslab.grading.plain import decode, difference, encode

ASSIGNMENTS = release.assignments()
FUNCTIONS = [
    (name, function)
    for name in ASSIGNMENTS
    for function in release.load_module(name, "cases").SHOWN
]
# Every worker imports this file: what takes seconds waits for the first test that asks for it.
exercises = functools.cache(release.exercises)


def of_every(module: str) -> list:
    return [
        pytest.param(name, function, implementation, id=f"{function}-{kind}")
        for name in ASSIGNMENTS
        for function, kinds in release.variants(name, module).items()
        for kind, implementation in kinds.items()
    ]


def diagnose(name: str, function: str, implementation, part: str) -> str | None:
    exercise = exercises(name, part)[function]
    found = [checks.outcome(implementation, case["arguments"]) for case in exercise["cases"]]
    return checks.diagnose(exercise, found)


def source(name: str):
    return nbformat.read(release.SOLUTIONS / name / f"{name}.ipynb", as_version=4)


def handed_out(name: str):
    return nbformat.read(checks.EXERCISES / name / f"{name}.ipynb", as_version=4)


def test_there_is_an_assignment_for_the_first_two_lectures():
    assert {"measuring", "pruning"} <= set(ASSIGNMENTS)


@pytest.fixture(scope="module")
def made_anew(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exercises")
    release.write_exercises(folder)
    return folder


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_what_is_handed_out_is_what_the_source_gives(made_anew, name):
    fresh = nbformat.read(made_anew / name / f"{name}.ipynb", as_version=4)
    assert fresh == handed_out(name), "run make exercises"
    old, new = (
        json.loads((folder / name / "checks.json").read_text())
        for folder in (checks.EXERCISES, made_anew)
    )
    # Another processor may round the last digit otherwise.
    assert difference(numbers(new), numbers(old), tolerance=1e-9) is None, "run make exercises"


def numbers(value):
    """Lists of numbers as tensors, so that they are compared up to rounding."""
    if isinstance(value, dict):
        return {key: numbers(item) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, float) for item in value):
            return decode({"tensor": "float64", "shape": [len(value)], "data": value})
        return [numbers(item) for item in value]
    return value


def test_there_is_nothing_in_the_folder_that_the_source_does_not_give():
    for name in ASSIGNMENTS:
        found = {path.name for path in (checks.EXERCISES / name).iterdir() if path.is_file()}
        assert found == {f"{name}.ipynb", "checks.json"}


@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_the_solution_is_right(name, function):
    solution = release.load_solution(name)[function]
    for part in ("SHOWN", "HIDDEN"):
        assert not diagnose(name, function, solution, part)


@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_the_untouched_stub_is_wrong_everywhere(name, function):
    cell = next(
        c
        for c in handed_out(name).cells
        if c.metadata.get("nbgrader", {}).get("grade_id") == function
    )
    space = {}
    exec("import math\nfrom torch import Tensor\n" + cell.source, space)
    for part in ("SHOWN", "HIDDEN"):
        for case in exercises(name, part)[function]["cases"]:
            found = checks.outcome(space[function], case["arguments"])
            assert checks.verdict(case, found) == "nothing is written yet"


@pytest.mark.parametrize(("name", "function", "mutant"), of_every("mutants"))
def test_a_mistake_is_caught_and_named(name, function, mutant):
    shown = diagnose(name, function, mutant, "SHOWN")
    assert shown or diagnose(name, function, mutant, "HIDDEN")
    if mutant.__doc__:
        assert shown.startswith(" ".join(mutant.__doc__.split()))


@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_there_are_five_mistakes_and_two_other_right_answers(name, function):
    assert len(release.variants(name, "mutants")[function]) >= 5
    assert len(release.variants(name, "alternatives")[function]) >= 2


@pytest.mark.parametrize(("name", "function", "answer"), of_every("alternatives"))
def test_a_right_answer_of_another_kind_passes(name, function, answer):
    for part in ("SHOWN", "HIDDEN"):
        assert not diagnose(name, function, answer, part)


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_an_assignment_has_the_size_that_was_agreed(name):
    cells = source(name).cells
    graded = [c for c in cells if c.metadata.get("nbgrader", {}).get("grade")]
    assert sum(cell.metadata.nbgrader.points for cell in graded) == 20
    assert {cell.cell_type for cell in graded} == {
        "code",
        "markdown",
    }  # by program, and by a person
    rows = re.findall(r"^\| ([\d +]+) \| (\d+) \| [●○]{3} \| to ", join(cells), flags=re.M)
    assert 5 <= len(rows) <= 8
    assert sum(sum(map(int, points.split("+"))) for points, _ in rows) == 20
    assert sum(int(minutes) for _, minutes in rows) == 90


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_every_exercise_has_its_parts(name):
    cells = handed_out(name).cells
    functions = list(exercises(name, "SHOWN"))
    sections = re.split(r"^## Exercise \d+", join(cells), flags=re.M)[1:]
    assert len(sections) == len(functions)
    for section, function in zip(sections, functions, strict=True):
        assert re.search(rf'def {function}\(.*\) -> .*:\n    """', section, flags=re.S)
        assert "Args:" in section
        assert "Returns:" in section
        assert section.count("<summary>Hint ") >= 2
        assert section.count("<details>") == section.count("</details>")
        assert f"check({function})" in section
    assert join(cells).count("How it is graded:") == join(cells).count("*Write your answer here.*")


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_a_model_answer_has_a_rubric_that_adds_up(name):
    for cell in source(name).cells:
        if cell.cell_type == "markdown" and cell.metadata.get("nbgrader", {}).get("grade"):
            assert "*A model answer.*" in cell.source
            points = re.findall(
                r"(\d+) point", cell.source.split("*Rubric.*")[1].split("No point")[0]
            )
            assert sum(map(int, points)) == cell.metadata.nbgrader.points


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_no_solution_is_handed_out(name):
    text = join(handed_out(name).cells)
    solution = join(source(name).cells)
    for part in re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", solution, flags=re.S):
        for line in filter(None, map(str.strip, part.splitlines())):
            assert len(line) < 20 or line not in text
    assert "model answer" not in text
    assert "Rubric" not in text


def join(cells) -> str:
    return "\n".join(cell.source for cell in cells)


# ---------------------------------------------------------------- the instant check


def test_check_says_that_a_function_is_right(capsys):
    checks.check(release.load_solution("pruning")["keep_blocks"])
    assert capsys.readouterr().out == "✔ keep_blocks: 4 cases right\n"


def test_check_names_a_mistake_in_one_line():
    def keep_blocks(scores, block, sparsity):
        return ~release.load_solution("pruning")["keep_blocks"](scores, block, sparsity)

    with pytest.raises(checks.CheckFailed, match=r"^keep_blocks: .* other way round.*4 × 4"):
        checks.check(keep_blocks)


def test_check_shows_no_traceback_in_a_notebook():
    shown = checks.CheckFailed("amdahl: upside down")._render_traceback_()
    assert shown == ["✘ amdahl: upside down"]


def test_check_says_what_is_wrong_with_a_name():
    def amdhal(seconds, speedups):
        return 1.0

    with pytest.raises(LookupError, match=r"no exercise is called 'amdhal'.*amdahl, sentences"):
        checks.check(amdhal)


def test_check_says_that_the_input_was_changed():
    def amdahl(seconds, speedups):
        total = release.load_solution("measuring")["amdahl"](seconds, speedups)
        seconds.clear()
        return total

    with pytest.raises(checks.CheckFailed, match="changes what it was given"):
        checks.check(amdahl)


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (None, "a number was expected, nothing .None"),
        ("1.5", "a number was expected, a text came back"),
        ([1.0, 2.0], r"shape \(\) was expected, \(2,\) came back"),
        (float("nan"), "not a number"),
        (True, "numbers were expected, truth values came back"),
        (object(), "of the type object"),
        (lambda: 1, "of the type function"),
        (1.4, "the value is wrong"),
    ],
)
def test_check_says_of_what_kind_a_wrong_result_is(result, says):
    def amdahl(seconds, speedups):
        return result

    with pytest.raises(checks.CheckFailed, match=says):
        checks.check(amdahl)


def test_check_tells_of_an_exception():
    def amdahl(seconds, speedups):
        return 1 / 0

    with pytest.raises(checks.CheckFailed, match=r"raises ZeroDivisionError \(division by zero\)"):
        checks.check(amdahl)


def test_a_damaged_file_of_checks_is_named(tmp_path, monkeypatch):
    (tmp_path / "pruning").mkdir()
    (tmp_path / "pruning" / "checks.json").write_text("{")
    monkeypatch.setattr(checks, "EXERCISES", tmp_path)
    with pytest.raises(LookupError, match=r"checks\.json is damaged"):
        checks.check(test_a_damaged_file_of_checks_is_named)


# ---------------------------------------------------------------- the archive for students


def test_the_archive_has_what_students_need_and_nothing_else(tmp_path):
    path = release.write_archive(tmp_path / "student.zip")
    with zipfile.ZipFile(path) as archive:
        content = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    assert {
        "Makefile",
        "README.md",
        "benchmarks/together.py",
        "data/manifest.toml",
        "exercises/pruning/checks.json",
        "exercises/pruning/pruning.ipynb",
        "lib/compresslab/pruning/masks.py",
        "notebooks/01_motivation.ipynb",
    } <= set(content)
    assert not [name for name in content if name.startswith(("solutions", "tests", "."))]
    page = content["README.md"].decode()
    for target in re.findall(r"\]\((?!http)([^)#]+)", page):
        assert any(name == target or name.startswith(target) for name in content), target
    everything = b"\n".join(content.values()).decode("utf-8", errors="ignore")
    for name in ASSIGNMENTS:
        text = join(source(name).cells)
        for part in re.findall(r"### BEGIN SOLUTION\n(.*?)### END SOLUTION", text, flags=re.S):
            first, *_ = filter(None, map(str.strip, part.splitlines()))
            assert f"{first}\n" not in everything
        for function, hidden in exercises(name, "HIDDEN").items():
            for case in hidden["cases"]:
                assert json.dumps(case["arguments"]) not in everything, function
        for kinds in release.variants(name, "mutants").values():
            assert not [kind for kind in kinds if f"__{kind}" in everything]


def test_the_archive_is_whole_wherever_the_repository_lies(tmp_path, monkeypatch):
    root = tmp_path / ".hidden" / "course"
    (root / "lib").mkdir(parents=True)
    (root / "lib" / "module.py").write_text("x = 1")
    (root / "lib" / ".secret").write_text("no")
    monkeypatch.setattr(release, "ROOT", root)
    with zipfile.ZipFile(release.write_archive(tmp_path / "student.zip")) as archive:
        assert archive.namelist() == ["compresslab-course/lib/module.py"]


def test_the_archive_is_the_same_as_before_when_nothing_changed(tmp_path):
    one, two = (release.write_archive(tmp_path / f"{i}.zip").read_bytes() for i in range(2))
    assert one == two


def test_encoded_cases_come_back_as_they_were():
    for name in ASSIGNMENTS:
        for part in ("SHOWN", "HIDDEN"):
            for inputs in getattr(release.load_module(name, "cases"), part).values():
                for _, arguments in inputs:
                    assert difference(arguments, decode(encode(arguments))) is None


# ---------------------------------------------------------------- the experiments


@pytest.mark.parametrize("name", ASSIGNMENTS)
def test_the_source_runs_from_top_to_bottom_with_its_experiments(name):
    notebook = source(name)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
    for cell in notebook.cells:
        if cell.cell_type == "code" and release.is_experiment(cell):
            assert cell.source.startswith("# Experiment\n")
    printed = [cell for cell in notebook.cells if release.is_experiment(cell) and cell.outputs]
    assert len(printed) >= 5
