"""From an instructor's source to what students get: `make exercises` and `make student`.

    python -m compresslab.grading.release             solutions/NAME/ -> exercises/NAME/, for each
    python -m compresslab.grading.release student     and everything for students in one archive

solutions/NAME/ has NAME.ipynb (nbgrader's format, with the solutions), cases.py (SHOWN and HIDDEN
inputs), mutants.py (typical mistakes) and alternatives.py (right answers of another kind, for the
tests). exercises/NAME/ gets NAME.ipynb, with stubs where the solutions were, and checks.json, with
what the instant checks compare. An experiment is a cell tagged so: it is not run for grading.
"""

import hashlib
import importlib.util
import json
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nbformat
from nbformat import NotebookNode

from .checks import EXERCISES, outcome
from .plain import encode

ROOT = EXERCISES.parent
SOLUTIONS = ROOT / "solutions"
ARCHIVE = ROOT / "dist" / "compresslab-student.zip"
# What a student needs; nothing that is not in this list gets into the archive.
STUDENT = (
    *("notebooks", "exercises", "lib", "data", "docs/glossary.md", "docs/notation.md"),
    *("docs/outgrowing.md", "docs/references.bib", "README.md", "LICENSE", "LICENSE-TEXT"),
    *("CITATION.cff", "Makefile", "pyproject.toml", "constraints.txt", "environment.yml"),
    "postBuild",
    *("benchmarks/attention.py", "benchmarks/distillation.py", "benchmarks/factorization.py"),
    *("benchmarks/pruning.py", "benchmarks/quantization.py", "benchmarks/sharing.py"),
    "benchmarks/together.py",  # all but that of grading
)


def assignments() -> list[str]:
    """Names of the assignments that have a source."""
    return sorted(path.parent.name for path in SOLUTIONS.glob("*/cases.py"))


def load_module(name: str, module: str) -> ModuleType:
    """`cases`, `mutants` or `alternatives` of an assignment."""
    path = SOLUTIONS / name / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"{name}_{module}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def load_solution(name: str) -> dict[str, Callable]:
    """The functions of the source notebook. Its experiments and checks are not run."""
    notebook = nbformat.read(SOLUTIONS / name / f"{name}.ipynb", as_version=4)
    space = {"__name__": f"{name}_solution"}
    for cell in notebook.cells:
        if cell.cell_type == "code" and not is_experiment(cell) and not is_graded(cell):
            exec(compile(cell.source, f"{name}.ipynb", "exec"), space)
    return {function: space[function] for function in load_module(name, "cases").SHOWN}


def is_experiment(cell: NotebookNode) -> bool:
    """Whether a cell is one that is not run for grading."""
    return "experiment" in cell.metadata.get("tags", [])


def is_graded(cell: NotebookNode) -> bool:
    """Whether a cell has points."""
    return bool(cell.metadata.get("nbgrader", {}).get("grade"))


def variants(name: str, module: str) -> dict[str, dict[str, Callable]]:
    """Function -> what stands after `__` -> implementation, of `mutants` or `alternatives`."""
    found = {function: {} for function in load_module(name, "cases").SHOWN}
    for label, implementation in vars(load_module(name, module)).items():
        function, _, kind = label.partition("__")
        if kind and function in found:
            found[function][kind] = implementation
    return found


def exercises(name: str, part: str) -> dict[str, dict]:
    """Function -> its cases and mistakes, as `checks.diagnose` takes them.

    Args:
        part: "SHOWN" or "HIDDEN". Mistakes come with SHOWN cases only: to name one on an input
            that students do not see would tell them about it.
    """
    solution, mutants = load_solution(name), variants(name, "mutants")
    result = {}
    for function, inputs in getattr(load_module(name, "cases"), part).items():
        cases = [{"about": about, "arguments": encode(given)} for about, given in inputs]
        for case in cases:
            case["expected"] = outcome(solution[function], case["arguments"])
        mistakes = [
            [" ".join(m.__doc__.split()), [outcome(m, case["arguments"]) for case in cases]]
            for m in mutants[function].values()
            if m.__doc__ and part == "SHOWN"
        ]
        result[function] = {"cases": cases, "mistakes": mistakes}
    return result


def student_notebook(name: str) -> NotebookNode:
    """The source notebook as nbgrader releases it, marked with its name and release.

    Raises:
        ValueError: nbgrader refuses the source; the message says why.
    """
    from nbgrader import preprocessors
    from traitlets.config import Config

    config = Config()
    config.ClearSolutions.text_stub = "*Write your answer here.*"
    notebook = nbformat.read(SOLUTIONS / name / f"{name}.ipynb", as_version=4)
    # Those of `nbgrader generate_assignment` that change a notebook or look at it.
    for step in (
        "CheckCellMetadata",
        "ClearSolutions",
        "LockCells",
        "ClearOutput",
        "ClearHiddenTests",
        "ClearMarkScheme",
        "ComputeChecksums",
        "CheckCellMetadata",
    ):
        preprocessor = getattr(preprocessors, step)(config=config)
        try:
            notebook, _ = preprocessor.preprocess(notebook, {"nbgrader": {"notebook": name}})
        except Exception as error:
            raise ValueError(f"nbgrader refuses {name}.ipynb: {error}") from error
    text = json.dumps([cell.source for cell in notebook.cells])
    release = hashlib.sha256(text.encode()).hexdigest()[:12]
    notebook.metadata["compresslab"] = {"assignment": name, "release": release}
    return notebook


def write_exercises(folder: Path = EXERCISES) -> list[Path]:
    """Write `NAME/NAME.ipynb` and `NAME/checks.json` for every assignment; give back the paths."""
    written = []
    for name in assignments():
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        written += [target / f"{name}.ipynb", target / "checks.json"]
        nbformat.write(student_notebook(name), written[-2])
        lines = [f"{json.dumps(f)}: {json.dumps(c)}" for f, c in exercises(name, "SHOWN").items()]
        written[-1].write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    return written


def write_archive(path: Path = ARCHIVE) -> Path:
    """Everything for students in one zip file: lectures, library, data, exercises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in STUDENT:
            start = ROOT / entry
            for file in [start] if start.is_file() else sorted(start.rglob("*")):
                inside = file.relative_to(ROOT)  # where the repository itself lies is no matter
                hidden = any(p.startswith(".") or p == "__pycache__" for p in inside.parts)
                if file.is_file() and not hidden and ".egg-info" not in str(inside):
                    name = Path("compresslab-course", inside)
                    if file.suffix == ".md":
                        text = for_students(file.read_text("utf-8"))
                        archive.writestr(zipfile.ZipInfo(str(name)), text)
                    else:
                        archive.write(file, name)
    return path


def for_students(text: str) -> str:
    """A page without what is marked as for others: in the archive it would lead nowhere."""
    return re.sub(r"<!-- not for students -->\n.*?<!-- -->\n", "", text, flags=re.S)


def main() -> None:
    for path in write_exercises():
        print(path.relative_to(ROOT))
    if "student" in sys.argv[1:]:
        print(write_archive().relative_to(ROOT))


if __name__ == "__main__":
    main()
