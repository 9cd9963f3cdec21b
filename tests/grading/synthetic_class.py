"""A class of 40 submissions: right, partly right, wrong, broken and hostile.

    python tests/grading/synthetic_class.py FOLDER

writes them as Moodle exports them, and prints what each should come to. `CLASS` says it for the
tests: who, what the file is, the state that it should end in, and the points of each exercise.
"""

import inspect
import json
import re
import sys
import textwrap
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import nbformat

from compresslab.grading import checks, release

NAME = "measuring"
POINTS = {
    "amdahl": 2,
    "sentences_needed": 3,
    "bits_per_byte": 3,
    "tokens_that_fit": 3,
    "crossover_batch": 3,
    "influence": 2,
}
HUGE = 100_000_000  # characters of one output


@dataclass
class Submission:
    """One student's file, and what should become of it.

    `points`, of a function: a number, or "some" for more than none and less than all; those that
    are not in it are to have all their points.
    """

    who: str
    make: Callable[[], bytes]
    state: str = "graded"
    points: dict[str, float | str] = field(default_factory=dict)
    reason: str = ""
    file: str = f"{NAME}.ipynb"

    @property
    def gradable(self) -> bool:
        return self.state not in ("unreadable", "wrong assignment")


# ---------------------------------------------------------------- notebooks


def handed_out():
    return nbformat.read(checks.EXERCISES / NAME / f"{NAME}.ipynb", as_version=4)


def solved(answers: dict[str, str] | None = None, *, written: bool = True):
    """The notebook with the solution's answers, those in `answers` replaced."""
    source = nbformat.read(release.SOLUTIONS / NAME / f"{NAME}.ipynb", as_version=4)
    right = {
        c.metadata.nbgrader.grade_id: c.source for c in source.cells if "nbgrader" in c.metadata
    }
    notebook = handed_out()
    for cell in notebook.cells:
        name = cell.metadata.get("nbgrader", {}).get("grade_id")
        if not cell.metadata.get("nbgrader", {}).get("solution"):
            continue
        if cell.cell_type == "code":
            text = re.sub(r" *### (BEGIN|END) SOLUTION\n?", "", right[name])
            cell.source = textwrap.dedent((answers or {}).get(name, text)).strip()
        elif written:
            cell.source = f"Attention, since its share is the larger one. (To {name}.)"
    return notebook


def data(notebook) -> bytes:
    return nbformat.writes(notebook).encode()


def with_answers(**answers: str) -> Callable[[], bytes]:
    return lambda: data(solved(answers))


def from_module(module: str, **kinds: str) -> Callable[[], bytes]:
    """Answers from mutants.py or alternatives.py, under the name of the exercise; with the helpers
    of that file in a cell of the student's own."""

    def make() -> bytes:
        loaded = release.load_module(NAME, module)
        answers = {}
        for function, kind in kinds.items():
            text = inspect.getsource(getattr(loaded, f"{function}__{kind}"))
            answers[function] = text.replace(f"{function}__{kind}", function)
        helpers = [
            inspect.getsource(f)
            for n, f in vars(loaded).items()
            if re.match(r"_[a-z]", n) and inspect.isfunction(f)
        ]
        notebook = solved(answers)
        own = nbformat.v4.new_code_cell("import numpy as np\n" + "\n\n".join(helpers))
        notebook.cells.insert(place(notebook, "setup") + 1, own)
        return data(notebook)

    return make


def place(notebook, grade_id: str) -> int:
    return next(
        i
        for i, cell in enumerate(notebook.cells)
        if cell.metadata.get("nbgrader", {}).get("grade_id") == grade_id
    )


def changed(change: Callable, answers: dict[str, str] | None = None) -> Callable[[], bytes]:
    """The solved notebook after `change`, which may give back another one."""

    def make() -> bytes:
        notebook = solved(answers)
        return data(change(notebook) or notebook)

    return make


def own_cell(source: str, *, after: str = "setup", answers=None) -> Callable[[], bytes]:
    """The solved notebook with a cell of the student's own."""

    def change(notebook):
        cell = nbformat.v4.new_code_cell(textwrap.dedent(source).strip())
        notebook.cells.insert(place(notebook, after) + 1, cell)

    return changed(change, answers)


# ---------------------------------------------------------------- what goes wrong with files


def delete(*grade_ids: str):
    def change(notebook):
        for grade_id in grade_ids:
            del notebook.cells[place(notebook, grade_id)]

    return change


def double(grade_id: str, source: str):
    """A copy of a cell right after it, as copying and pasting in JupyterLab leaves it."""

    def change(notebook):
        i = place(notebook, grade_id)
        copy = nbformat.from_dict(json.loads(json.dumps(notebook.cells[i])))
        copy.source, copy.id = source, "copied"
        notebook.cells.insert(i + 1, copy)

    return change


def strip(notebook):
    """All marks gone, as after a way through another editor."""
    notebook.metadata.pop("compresslab")
    for i, cell in enumerate(notebook.cells):
        cell.metadata = {}
        cell.id = f"new-{i}"


def older(notebook):
    notebook.metadata.compresslab.release = "0" * 12


def change_locked(notebook):
    notebook.cells[place(notebook, "check_amdahl")].source = "print('all right')"
    notebook.cells[place(notebook, "check_influence")].metadata.nbgrader.points = 100.0


def rename_function(notebook):
    cell = notebook.cells[place(notebook, "amdahl")]
    cell.source = cell.source.replace("def amdahl", "def Amdahl")


def answer_elsewhere(notebook):
    """The written answer typed below the question, in the question's own cell."""
    i = place(notebook, "question_1")
    notebook.cells[i].source = handed_out().cells[i].source
    notebook.cells[i - 1].source += "\n\nMy answer: attention."


def old_format(notebook):
    notebook.nbformat_minor = 4
    for cell in notebook.cells:
        cell.pop("id")


def huge() -> bytes:
    notebook = solved()
    notebook.cells[place(notebook, "check_amdahl")].outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="x" * HUGE)
    ]
    return data(notebook)


def zipped(content: Callable[[], bytes], name: str) -> Callable[[], bytes]:
    def make() -> bytes:
        import io

        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(name, content())
            archive.writestr("__MACOSX/._" + Path(name).name, b"litter")
        return buffer.getvalue()

    return make


def other_notebook() -> bytes:
    return data(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("print('my thesis')")]))


# ---------------------------------------------------------------- hostile answers

ALWAYS_EQUAL = """
class Any:
    def __eq__(self, other): return True
    def __float__(self): return 1.0
    def __getattr__(self, name): return Any()
    def __len__(self): return 1

def amdahl(seconds, speedups):
    return Any()
"""
CLAIMS_TENSOR = """
import torch

class Liar(torch.Tensor):
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        return True

def influence(years, parameters):
    return torch.zeros(len(years)).as_subclass(Liar)
"""
PATCHES = """
import builtins, torch
from compresslab.grading import checks, plain

for module in (checks, plain):
    module.difference = lambda *a, **k: None
checks.verdict = checks.diagnose = lambda *a, **k: None
checks.check = check = lambda function: print("✔")
torch.testing.assert_close = torch.equal = torch.allclose = lambda *a, **k: True
builtins.AssertionError, builtins.abs = Warning, lambda x: 0
"""
TRANSFORMER = """
def no_checks(lines):
    return [line for line in lines if "check" not in line and "assert" not in line]

get_ipython().input_transformers_cleanup.append(no_checks)
"""
FAKES_REPLIES = """
import os
for descriptor in range(3, 20):
    for i in range(60):
        try:
            os.write(descriptor, b'{"call": %d, "outcome": {"value": {"float": 1.0}}}\\n' % i)
        except OSError:
            break
"""
FAKES_THE_END = """
import os
for descriptor in range(3, 20):
    try:
        os.write(descriptor, b'{"end": true}\\n')
    except OSError:
        pass
os._exit(0)
"""
LOOKS_AROUND = """
import os, pathlib, socket, sys
import compresslab

root = pathlib.Path(compresslab.__file__).parents[2]
seen = [str(p) for p in root.glob("*")]
assert not (root / "solutions").exists(), "solutions can be read"
assert not (root / "tests").exists(), "tests can be read"
assert not (root / ".git").exists(), "the history can be read"
for target in (root / "lib" / "compresslab" / "new.py", root / "exercises" / "new"):
    try:
        target.write_text("x")
    except OSError:
        continue
    raise AssertionError(f"{target} can be written")
for address in (("1.1.1.1", 53), ("127.0.0.1", 22)):
    try:
        socket.create_connection(address, timeout=1)
    except OSError:
        continue
    raise AssertionError("the network can be reached")
assert len([p for p in os.listdir("/proc") if p.isdigit()]) < 6, "other processes can be seen"
print("nothing to be found")
"""
OVERWRITES = """
import glob, json, os
for path in glob.glob("/tmp/**", recursive=True) + glob.glob("**", recursive=True):
    if path.endswith((".ipynb", ".db", ".json", ".csv")):
        open(path, "w").write(json.dumps({"points": 100}))
"""
ENDLESS = """
def amdahl(seconds, speedups):
    while True:
        try:
            while True:
                sum(range(1000))
        except BaseException:
            continue
"""
LEAVES_A_PROCESS = """
import subprocess
subprocess.Popen(["sleep", "98765.4321"], start_new_session=True)
"""
# Ways to get what a function was given into the feedback; SECRET stands for that.
LEAKS = [
    "def amdahl(seconds, speedups):\n    raise ValueError('SECRET')",
    "def amdahl(seconds, speedups):\n    raise type('Leak_SECRET', (ValueError,), {})",
    "def amdahl(seconds, speedups):\n    return type('Leak_SECRET', (), {})()",
    "def amdahl(seconds, speedups):\n    return torch.zeros(0, SECRET)",
    "def amdahl(seconds, speedups):\n    return {'SECRET': SECRET}",
    FAKES_REPLIES.replace("call", "SECRET"),
    "raise ValueError('SECRET')",
]


def none_of(*functions: str) -> dict[str, float]:
    return dict.fromkeys(functions, 0)


EVERYTHING = none_of(*POINTS)

CLASS = [
    # right
    Submission("Ada Right", with_answers()),
    Submission("Bo Numpy", from_module("alternatives", amdahl="numpy", influence="polyfit")),
    Submission("Cy Loops", from_module("alternatives", **dict.fromkeys(list(POINTS)[:3], "loop"))),
    Submission(
        "Di Tensors", from_module("alternatives", tokens_that_fit="numbers", influence="list")
    ),
    Submission(
        "Ed Magics", own_cell("%matplotlib inline\n%time x = sum(range(10))\n!echo hello\nx")
    ),
    Submission("Fay Renamed", with_answers(), file="final version (2) REALLY final.ipynb"),
    Submission("Gus Zipped", zipped(with_answers(), "my work/measuring.ipynb"), file="work.zip"),
    Submission("Hal Oldformat", changed(old_format)),
    # partly right
    Submission(
        "Ida Floor",
        from_module("mutants", sentences_needed="rounds_down"),
        points={"sentences_needed": "some"},
    ),
    Submission(
        "Jo Infinity",
        from_module("mutants", tokens_that_fit="no_infinity"),
        points={"tokens_that_fit": "some"},
    ),
    Submission(
        "Kim Half",
        from_module("mutants", bits_per_byte="sums_in_half"),
        points={"bits_per_byte": "some"},
    ),
    Submission(
        "Lou Nan",
        from_module("mutants", bits_per_byte="multiplies_by_the_mask"),
        points={"bits_per_byte": "some"},
    ),
    Submission(
        "Mo Syntax",
        with_answers(amdahl="def amdahl(seconds, speedups:\n    return 1"),
        points=none_of("amdahl"),
    ),
    Submission(
        "Nat Raises",
        with_answers(influence="def influence(years, parameters):\n    return years.numpi()"),
        points=none_of("influence"),
    ),
    Submission(
        "Ole Twofold",
        from_module("mutants", amdahl="upside_down", crossover_batch="exchanged"),
        points={"amdahl": 0, "crossover_batch": "some"},
    ),
    # wrong
    Submission("Pam Stub", lambda: data(handed_out()), points=EVERYTHING),
    Submission(
        "Quin Nothing",
        with_answers(**{f: f"def {f}(*a, **k):\n    pass" for f in POINTS}),
        points=EVERYTHING,
    ),
    Submission("Ray Name", changed(rename_function), points=none_of("amdahl")),
    # notebooks that are not as they were
    Submission(
        "Sue Deleted", changed(delete("check_amdahl", "setup")), reason="locked cell is missing"
    ),
    Submission(
        "Tom Missing",
        changed(delete("amdahl", "question_1")),
        state="needs a person",
        points=none_of("amdahl"),
        reason="the cell of amdahl is missing",
    ),
    Submission(
        "Una Twice",
        changed(double("amdahl", "print('tried something')")),
        reason="a cell is there twice: amdahl",
    ),
    Submission("Vic Stripped", changed(strip), reason="lost its mark"),
    Submission("Wim Older", changed(older), reason="another release"),
    Submission(
        "Xia Locked", changed(change_locked), reason="a locked cell was changed: check_amdahl"
    ),
    Submission("Yan Elsewhere", changed(answer_elsewhere)),
    Submission("Zoe Huge", huge),
    Submission(
        "Abe Corrupt", lambda: with_answers()()[:5000], state="unreadable", reason="no notebook"
    ),
    Submission("Bea Empty", lambda: b"", state="unreadable", reason="the file is empty"),
    Submission("Cal Thesis", other_notebook, state="wrong assignment", reason="none of"),
    # hostile
    Submission("Dan Equal", with_answers(amdahl=ALWAYS_EQUAL), points=none_of("amdahl")),
    Submission("Eve Liar", with_answers(influence=CLAIMS_TENSOR), points=none_of("influence")),
    Submission(
        "Fox Patches",
        own_cell(PATCHES, answers={"amdahl": "def amdahl(seconds, speedups):\n    return 1.0"}),
        points=none_of("amdahl"),
    ),
    Submission(
        "Gil Transformer",
        own_cell(
            TRANSFORMER, answers={"amdahl": "def amdahl(seconds, speedups):\n    return -1.0"}
        ),
        points=none_of("amdahl"),
    ),
    Submission(
        "Hex Fakes",
        own_cell(FAKES_REPLIES),
        state="tampered",
        reason="results that nobody asked for",
    ),
    Submission("Ivy End", own_cell(FAKES_THE_END), state="tampered"),
    Submission("Jay Spy", own_cell(LOOKS_AROUND)),
    Submission("Kit Overwrites", own_cell(OVERWRITES)),
    Submission(
        "Lex Endless",
        with_answers(amdahl=ENDLESS),
        state="timed out",
        points=none_of("amdahl"),
        reason="amdahl left out: it runs for more than",
    ),
    Submission(
        "Max Exit",
        own_cell("import os\nos._exit(0)"),
        state="crashed",
        reason="a cell of your own left out: the process ended",
    ),
    Submission(
        "Ned Bombs",
        own_cell("import os\nwhile True:\n    os.fork()"),
        state="crashed",
        reason="a cell of your own left out: it ",  # too many processes, or too much memory
    ),
]
# Beyond the forty: each of these has a test of its own.
# It takes all the memory that it may and keeps it. In the half second of the answer after it the
# grader looks: the student's own cell is to blame, not that answer.
FILLS = """
kept = []
for size in (10**8, 10**6):
    try:
        while True:
            kept.append(bytearray(size))
    except MemoryError:
        pass
del kept[-30:]
"""
WAITS = """
import time
time.sleep(0.5)

def amdahl(seconds, speedups):
    after = sum(seconds[part] / speedups.get(part, 1) for part in seconds)
    return sum(seconds.values()) / after if after else float("inf")
"""
MEMORY = Submission("Oda Memory", own_cell(FILLS, answers={"amdahl": WAITS}))
OUTPUT = Submission("Pip Output", own_cell("while True:\n    print('x' * 10**6)"))
PROCESS = Submission("Rex Process", own_cell(LEAVES_A_PROCESS))


def write(folder: Path, class_: list[Submission] = CLASS) -> Path:
    """Write the files as Moodle lays them out: a folder for each student."""
    for number, submission in enumerate(class_, start=1001):
        path = folder / f"{submission.who}_{number}_assignsubmission_file_" / submission.file
        path.parent.mkdir(parents=True)
        path.write_bytes(submission.make())
    return folder


if __name__ == "__main__":
    write(Path(sys.argv[1]))
    for submission in CLASS:
        print(f"{submission.who:16} {submission.state:16} {submission.points or 'all points'}")
