"""What students handed in: files as a learning platform exports them -> notebooks to grade.

    for files in find_submissions(folder):            a student's files: who, and the bytes
        notebook = read_notebook(file.content)        whatever it is worth
        name = identify(notebook, released)           which assignment
        rebuilt = rebuild(released[name], notebook)   the student's work in the released notebook

Only a student's own work is taken from a submission: answers, and cells that the student added.
All else is the released notebook, so that a locked cell that was changed, deleted, doubled or lost
its metadata changes nothing. What was found on the way is told in `remarks`.

Layouts: Moodle, with a folder for each student or without (NAME_NUMBER_assignsubmission_file_...);
Canvas (lastfirst_NUMBER_NUMBER_file.ipynb, with LATE, and with -1 for a second try); nbgrader's
(STUDENT/ASSIGNMENT/file.ipynb); or any folder of STUDENT.ipynb. Zip files anywhere among them.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import nbformat
from nbformat import NotebookNode
from nbformat.v4.rwbase import rejoin_lines

from .release import is_experiment, is_graded

LARGEST = 200_000_000  # bytes of one file
MOST = 5 * LARGEST  # of all files of a student
LARGEST_OUTPUT = 1_000_000  # characters of one output that are kept for a person to see
DAMAGED = "the zip file is damaged or locked"
MISSING = "*This cell is missing in what was handed in.*"
MOODLE = re.compile(r"^(?P<name>[^/]+?)_(?P<id>\d+)_assignsubmission_")
CANVAS = re.compile(
    r"^(?P<name>[^/_]+?)(_LATE)?_(?P<id>\d+)_(?P<file>\d+)_(?P<own>[^/]+?)(-\d+)?\.\w+$"
)
STUDENT_ID = re.compile(r"[^\w.@+-]+")
CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class Unreadable(ValueError):
    """A file that cannot be used; the message says why, in words for a student."""


@dataclass(frozen=True)
class Kind:
    """What is looked for: how it is called in messages, and how its files end, in lower case."""

    name: str
    endings: tuple[str, ...]


# Browsers put the last two behind a notebook that they save.
NOTEBOOK = Kind("notebook", (".ipynb", ".ipynb.json", ".ipynb.txt"))


@dataclass(frozen=True)
class File:
    """A file that somebody handed in.

    Args:
        student: an id, safe as the name of a file.
        name: the student's name, where the platform tells it.
        path: where it lay, for a person.
        content: its bytes, or None with what is wrong in `problem`.
    """

    student: str
    name: str
    path: str
    content: bytes | None
    problem: str = ""


@dataclass
class Rebuilt:
    """A submission in the shape of the released notebook.

    `answers` maps a grade_id to what the student wrote there; `remarks` says what was not as it
    was handed out; `lost` names answers that could not be found.
    """

    notebook: NotebookNode
    answers: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


# ---------------------------------------------------------------- files


def find_submissions(source: Path, kind: Kind = NOTEBOOK) -> Iterator[list[File]]:
    """The files of a kind that each student handed in, one student at a time.

    Args:
        source: a folder, or a zip file of it.

    Raises:
        ValueError: `source` is neither.
    """
    with _open(source) as (found, read):
        for student, names in _by_student(found).items():
            yield list(_files_of(student, names, lambda name: read(found[name]), kind))


def count_students(source: Path) -> int:
    """How many students there are in an export, by the names of files alone.

    Raises:
        ValueError: `source` is neither a folder nor a zip file.
    """
    with _open(source) as (found, _):
        return len(_by_student(found))


@contextmanager
def _open(source: Path) -> Iterator[tuple[dict[str, Any], Callable[[Any], bytes]]]:
    """Name -> file of everything in a folder or a zip file, and how such a file is read."""
    source = Path(source)
    if source.is_dir():
        yield _files(source), _read_file
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            found = {info.filename: info for info in archive.infolist() if not info.is_dir()}
            yield found, lambda info: _read_member(archive, info)
    else:
        raise ValueError(f"{source} is neither a folder nor a zip file")


def _files(folder: Path) -> dict[str, Path]:
    """Name -> path. A name that is no UTF-8 must not end a run when it is written somewhere."""
    return {
        os.fsencode(path.relative_to(folder)).decode("utf-8", "backslashreplace"): path
        for path in folder.rglob("*")
        if path.is_file() or path.is_symlink()
    }


def _by_student(names: Iterable[str]) -> dict[str, list[str]]:
    students = defaultdict(list)
    for name in sorted(names):
        if not _is_litter(name):
            students[identify_student(name)[0]].append(name)
    return students


def _files_of(
    student: str, names: list[str], read: Callable[[str], bytes], kind: Kind
) -> Iterator[File]:
    who = CONTROL.sub("?", identify_student(names[0])[1])
    work = [name for name in names if _is_work(name, kind)]
    if not work:
        path, problem = CONTROL.sub("?", names[0]), f"there is no {kind.name} among the files"
        yield File(student, who, path, None, problem)
    left = MOST
    for name in work:
        for file in _expand(student, who, name, partial(read, name), kind):
            left -= len(file.content or b"")
            if left < 0:
                problem = f"the files before it have {MOST / 1e6:,.0f} MB, nearly"
                file = replace(file, content=None, problem=problem)
            yield file


def _expand(
    student: str, who: str, name: str, read: Callable[[], bytes], kind: Kind
) -> Iterator[File]:
    """What is looked for in a file, which may be a zip file."""
    path = CONTROL.sub("?", name)
    try:
        content = read()
        if not name.lower().endswith(".zip"):
            yield File(student, who, path, content)
            return
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            infos = [
                info
                for info in archive.infolist()
                if not info.is_dir()
                and _is_work(info.filename, kind)
                and not _is_litter(info.filename)
            ]
            if sum(info.file_size for info in infos) > LARGEST:
                raise Unreadable("the zip file unpacks to too much")
            wanted = [i for i in infos if not i.filename.lower().endswith(".zip")]
            if not wanted:
                inside = "another zip file, and " if infos else ""
                raise Unreadable(f"there is {inside}no {kind.name} in the zip file")
            for info in wanted:
                inner = CONTROL.sub("?", info.filename)
                yield File(student, who, f"{path}/{inner}", _read_member(archive, info))
    except Unreadable as error:
        yield File(student, who, path, None, str(error))
    except OSError as error:  # without the path, which may name a person
        yield File(student, who, path, None, f"it cannot be read: {error.strerror}")
    except Exception as error:  # zipfile raises whatever it meets
        yield File(student, who, path, None, f"{DAMAGED} ({type(error).__name__})")


def _read_file(path: Path) -> bytes:
    if path.is_symlink():
        raise Unreadable("it is a link to another file")
    if path.stat().st_size > LARGEST:
        size, most = path.stat().st_size / 1e6, LARGEST / 1e6
        raise Unreadable(f"it has {size:,.0f} MB, and {most:.0f} MB are allowed")
    return path.read_bytes()


def _read_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    """Bytes of a file in a zip file. Nothing is written to disk, wherever its name points to."""
    try:
        with archive.open(info) as file:
            data = file.read(LARGEST + 1)  # the size in the header need not be true
    except Exception as error:  # zipfile raises whatever it meets
        raise Unreadable(f"{DAMAGED} ({type(error).__name__})") from None
    if len(data) > LARGEST:
        raise Unreadable(f"it unpacks to more than {LARGEST / 1e6:,.0f} MB")
    return data


def identify_student(path: str) -> tuple[str, str]:
    """Id and name of whoever handed in the file at `path`, which is relative to the export.

    The id is safe as the name of a file; where that took a change, it ends in a few characters that
    keep two students apart whose names come out the same.
    """
    if match := MOODLE.match(path):
        return match["id"], match["name"]
    # In a folder, a student may have chosen the name.
    if match := CANVAS.match(path):
        return match["id"], match["name"]
    parts = PurePosixPath(path).parts
    first = parts[0] if len(parts) > 1 else PurePosixPath(path).stem
    student = STUDENT_ID.sub("_", first).strip("_.+-@")[:60]
    if student != first:
        student = (student or "student") + "-" + hashlib.sha256(first.encode()).hexdigest()[:6]
    return student, first


def _is_work(name: str, kind: Kind) -> bool:
    """Whether a file may be or hold what is looked for, and not a picture or a PDF."""
    return name.lower().endswith((*kind.endings, ".zip"))


def _is_litter(name: str) -> bool:
    """Whether a file is one that a system or Jupyter leaves behind."""
    parts = PurePosixPath(name).parts
    if not parts or {"__MACOSX", ".ipynb_checkpoints"} & set(parts):
        return True
    return parts[-1] in (".DS_Store", "Thumbs.db", "desktop.ini") or parts[-1].startswith("._")


def attempt(path: str) -> int:
    """What is larger for a later try of a student: Canvas numbers all files that it gets. (The -1
    that it puts behind the name of a second one could be the student's own.)
    """
    match = CANVAS.match(PurePosixPath(path).parts[0])
    return int(match["file"]) if match else 0


def own_name(path: str) -> str:
    """What a student called a file, without its ending and what a platform put around it."""
    if match := CANVAS.match(path):
        return match["own"]
    path = PurePosixPath(path)
    return re.sub(r"^.*_assignsubmission_[a-z]+_", "", path.stem)


# ---------------------------------------------------------------- notebooks


def read_notebook(content: bytes) -> NotebookNode:
    """A notebook of version 4, with its cells in order and long outputs left out.

    Raises:
        Unreadable: it is not a notebook.
    """
    if not content.strip():
        raise Unreadable("the file is empty")
    try:
        data = json.loads(content)
        if not isinstance(data, dict) or not ({"cells", "worksheets"} & data.keys()):
            raise Unreadable("it is JSON, but no notebook")
        if data.get("nbformat", 4) < 4:
            data = nbformat.convert(nbformat.from_dict(data), 4)
        cells = [_cell(cell) for cell in data["cells"] if isinstance(cell, dict)]
        _make_ids_unique(cells)
        # Of all metadata only our own mark: the rest may be anything.
        metadata = data.get("metadata")
        own = metadata.get("compresslab") if isinstance(metadata, dict) else None
        metadata = {"compresslab": own} if isinstance(own, dict) else {}
        return rejoin_lines(nbformat.v4.new_notebook(cells=cells, metadata=metadata))
    except Unreadable:
        raise
    except UnicodeDecodeError:
        raise Unreadable("it is not text in UTF-8") from None
    except json.JSONDecodeError:
        raise Unreadable("it is no notebook: damaged, or not saved to its end") from None
    except Exception as error:  # JSON can be anything, and break anything
        raise Unreadable(f"it is no notebook: {type(error).__name__}") from None


def _cell(cell: dict) -> NotebookNode:
    source = cell.get("source", "")
    source = "".join(map(str, source)) if isinstance(source, list) else str(source)
    metadata = cell.get("metadata")
    mark = metadata.get("nbgrader") if isinstance(metadata, dict) else None
    options = {
        "source": source.encode("utf-8", "replace").decode(),  # half an emoji cannot be written
        "metadata": {"nbgrader": mark} if isinstance(mark, dict) else {},
    }
    if isinstance(cell.get("id"), str):
        options["id"] = cell["id"]
    if cell.get("cell_type") != "code":
        made = nbformat.v4.new_markdown_cell(**options)
        if pictures := _pictures(cell.get("attachments")):
            made.attachments = pictures
        return made
    outputs = cell.get("outputs")
    outputs = outputs if isinstance(outputs, list) else []
    made = nbformat.v4.new_code_cell(**options)
    made.outputs = [kept for output in outputs if (kept := _output(output))]
    return made


def _output(output: object) -> NotebookNode | None:
    """An output as far as a person needs it: text and pictures, nothing that a page would run."""
    if not isinstance(output, dict) or len(json.dumps(output)) > LARGEST_OUTPUT:
        return None
    if output.get("output_type") in ("display_data", "execute_result"):
        data = output.get("data")
        data = data if isinstance(data, dict) else {}
        output = {**output, "data": _harmless(data), "metadata": {}}
    output = nbformat.from_dict(output)
    try:
        nbformat.validate(output, ref="output", version=4)
    except nbformat.ValidationError:
        return None
    return output


def _pictures(attachments: object) -> dict[str, dict[str, str]]:
    """Pictures that were pasted into a text."""
    attachments = attachments if isinstance(attachments, dict) else {}
    return {
        name: kept
        for name, data in attachments.items()
        if isinstance(data, dict) and (kept := _harmless(data))
    }


def _harmless(data: dict) -> dict[str, str]:
    """Plain text, and pictures that are nothing else."""
    joined = {
        kind: "".join(map(str, value)) if isinstance(value, list) else value
        for kind, value in data.items()
    }
    return {
        kind: value
        for kind, value in joined.items()
        if isinstance(value, str)
        and (
            kind == "text/plain"
            or (
                kind in ("image/png", "image/jpeg") and re.fullmatch(r"[\w+/=\s]*", value, re.ASCII)
            )
        )
    }


def _make_ids_unique(cells: list[NotebookNode]) -> None:
    """The first cell keeps an id; nbformat gives those after it, and odd ones, a new one."""
    seen = set()
    for cell in cells:
        if cell.id in seen or not re.fullmatch(r"[\w-]{1,64}", cell.id, flags=re.ASCII):
            cell.id = nbformat.v4.new_markdown_cell().id
        seen.add(cell.id)


def grade_id(cell: NotebookNode) -> str | None:
    """The id that nbgrader gave to a cell."""
    found = cell.metadata.get("nbgrader")
    found = found.get("grade_id") if isinstance(found, dict) else None
    return found if isinstance(found, str) else None


def is_answer(cell: NotebookNode) -> bool:
    """Whether a released cell is one that the student fills in."""
    return bool(cell.metadata.get("nbgrader", {}).get("solution"))


def identify(notebook: NotebookNode, released: Mapping[str, NotebookNode]) -> str | None:
    """Name of the assignment, by what the notebook says of itself, else by what is in it."""
    own = notebook.metadata.get("compresslab")
    name = own.get("assignment") if isinstance(own, dict) else None
    if isinstance(name, str) and name in released:
        return name
    scores = {}
    for name, original in released.items():
        ids = {grade_id(cell) for cell in original.cells} - {None}
        cells = {cell.id for cell in original.cells}
        scores[name] = sum(
            grade_id(cell) in ids
            or cell.id in cells
            or any(re.search(rf"^[ \t]*def {i}\(", cell.source, flags=re.M) for i in ids)
            for cell in notebook.cells
        )
    best = max(scores, key=scores.get, default=None)
    return best if best is not None and scores[best] >= 2 else None


def rebuild(original: NotebookNode, submitted: NotebookNode) -> Rebuilt:
    """The released notebook with the student's answers, and the cells that the student added."""
    own = submitted.metadata.get("compresslab")
    result = Rebuilt(nbformat.from_dict(json.loads(json.dumps(original))))
    if not isinstance(own, dict) or own.get("release") != original.metadata.compresslab.release:
        result.remarks.append("another release of the assignment, or one that lost its mark")

    partner = _match(original, submitted)  # index of a submitted cell -> index of a released one
    first = {}  # released -> the submitted cell that stands for it
    added = defaultdict(list)  # released -> cells of the student that come after it
    place = -1
    for i, cell in enumerate(submitted.cells):
        place = partner.get(i, place)
        if i not in partner:
            added[place].append(cell)
            continue
        model = original.cells[place]
        changed = cell.source.strip() != model.source.strip()
        if place in first:
            result.remarks.append(f"a cell is there twice: {_label(original, place)}")
        elif changed and model.cell_type == "code" and not is_answer(model):
            result.remarks.append(f"a locked cell was changed: {_label(original, place)}")
        # What differs from the released cell and is no answer is kept beside it: a second try, an
        # import in a cell that was locked, an answer in the wrong place.
        is_check = is_graded(model) and model.cell_type == "code"
        if (place in first or not is_answer(model)) and changed and not is_check:
            if is_experiment(model):
                cell.metadata["tags"] = ["experiment"]  # not run for grading either
            added[place].append(cell)
        first.setdefault(place, cell)

    cells = [_own(cell) for cell in added[-1]]
    for place, cell in enumerate(result.notebook.cells):
        known = first.get(place)
        name = grade_id(cell)
        if known is not None and cell.cell_type == "code":
            cell.outputs = known.outputs
        if known is not None and known.get("attachments"):
            cell.attachments = known.attachments
        if name and is_answer(cell):
            if known is None:
                result.lost.append(name)
                result.remarks.append(f"the cell of {name} is missing")
                cell.source = ""  # a stub would hide a function that stands elsewhere
                if cell.cell_type == "markdown":  # for a person, and not a zero
                    cell.source = result.answers[name] = MISSING
            else:
                cell.source = known.source
                if known.source.strip() != original.cells[place].source.strip():
                    result.answers[name] = known.source
        elif known is None and name:
            result.remarks.append(f"a locked cell is missing: {_label(original, place)}")
        cells += [cell, *(_own(extra) for extra in added[place])]
    result.notebook.cells = cells
    return result


def _match(original: NotebookNode, submitted: NotebookNode) -> dict[int, int]:
    """Submitted cell -> released cell: by grade_id, by cell id, by text, by the function."""
    by_grade = {grade_id(c): i for i, c in enumerate(original.cells) if grade_id(c)}
    by_cell = {c.id: i for i, c in enumerate(original.cells)}
    by_text = {c.source.strip(): i for i, c in enumerate(original.cells)}
    functions = {
        name: i for name, i in by_grade.items() if original.cells[i].source.startswith("def ")
    }
    partner = {}
    for i, cell in enumerate(submitted.cells):
        found = by_grade.get(grade_id(cell), by_cell.get(cell.id))
        if found is None:
            found = by_text.get(cell.source.strip())
        if found is not None and original.cells[found].cell_type == cell.cell_type:
            partner[i] = found
    # A cell that lost every mark: the function it defines tells what it answers; and a text
    # stands for the written answer if it comes right after its question.
    taken = set(partner.values())
    for i, cell in enumerate(submitted.cells):
        if i in partner:
            continue
        defined = re.findall(r"^def (\w+)\(", cell.source, flags=re.M)
        found = next((functions[name] for name in defined if name in functions), None)
        if found is None and cell.cell_type == "markdown" and i - 1 in partner:
            after = partner[i - 1] + 1
            if after < len(original.cells) and is_answer(original.cells[after]):
                found = after if original.cells[after].cell_type == "markdown" else None
        if found is not None and found not in taken:
            partner[i] = found
            taken.add(found)
    return partner


def _own(cell: NotebookNode) -> NotebookNode:
    """A cell of the student's own: without marks that nbgrader would count."""
    cell = nbformat.from_dict(json.loads(json.dumps(cell)))
    cell.metadata.pop("nbgrader", None)
    cell.id = nbformat.v4.new_markdown_cell().id
    return cell


def _label(original: NotebookNode, place: int) -> str:
    return grade_id(original.cells[place]) or f"text {place + 1}"
