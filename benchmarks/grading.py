"""Grading beside plain `nbgrader autograde`: seconds for the same submissions, and their ratio.

Twenty submissions of *measuring*: the solution, written answers included, each with a cell of its
own. nbgrader runs every cell in a kernel, one submission after the other, without a sandbox; so the
experiments, which grading leaves out here, are taken out of the notebooks for both.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "grading"))

import nbformat
from synthetic_class import NAME, handed_out, solved

from compresslab.grading.grade import grade_class
from compresslab.grading.release import is_experiment
from compresslab.machine import cores

COUNT = 20


def without_experiments(notebook):
    notebook.cells = [cell for cell in notebook.cells if not is_experiment(cell)]
    return notebook


def write(folder: Path) -> None:
    """nbgrader's layout, which grading takes as well."""
    source = folder / "source" / NAME / f"{NAME}.ipynb"
    source.parent.mkdir(parents=True)
    nbformat.write(without_experiments(handed_out()), source)
    for i in range(COUNT):
        path = folder / "submitted" / f"student{i}" / NAME / f"{NAME}.ipynb"
        path.parent.mkdir(parents=True)
        notebook = without_experiments(solved())
        notebook.cells.append(nbformat.v4.new_code_cell(f"mine = {i}"))
        nbformat.write(notebook, path)


def nbgrader(folder: Path, *command: str) -> float:
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "nbgrader", *command, NAME, f"--CourseDirectory.root={folder}"],
        env=environment,
        check=True,
        capture_output=True,
    )
    return time.perf_counter() - start


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        start = time.perf_counter()
        grade_class(folder / "submitted", folder / "grading")
        ours = time.perf_counter() - start
        nbgrader(folder, "generate_assignment")
        theirs = nbgrader(folder, "autograde")
    print(
        f"{COUNT} submissions on {cores()} cores, seconds: here {ours:.0f}, nbgrader {theirs:.0f}"
    )
    print(f"a minute: here {60 * COUNT / ours:.0f}, nbgrader {60 * COUNT / theirs:.0f}")
    print(f"here / nbgrader: {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
