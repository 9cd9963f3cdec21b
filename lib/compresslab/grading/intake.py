"""What students handed in: files as a learning platform exports them -> notebooks to grade.

    for file in find_submissions(folder):             who, and the bytes
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

import io
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import nbformat
from nbformat import NotebookNode
from nbformat.v4.rwbase import rejoin_lines

LARGEST = 200_000_000  # bytes of one file
LARGEST_OUTPUT = 1_000_000  # characters of one output that are kept for a person to see
MISSING = "*This cell is missing in what was handed in.*"
MOODLE = re.compile(r"^(?P<name>[^/]+?)_(?P<id>\d+)_assignsubmission_")
CANVAS = re.compile(r"^(?P<name>[^/_]+?)(_LATE)?_(?P<id>\d+)_\d+_[^/]+?(-(?P<attempt>\d+))?\.\w+$")
STUDENT_ID = re.compile(r"[^\w.@+-]+")


class Unreadable(ValueError):
    """A file that is no notebook; the message says why, in words for a student."""


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


def find_submissions(source: Path) -> Iterator[File]:
    """The files of an export, one at a time: a folder, or a zip file of it."""
    source = Path(source)
    if source.is_dir():
        found = ((p.relative_to(source).as_posix(), p) for p in sorted(source.rglob("*")))
        files = ((name, path) for name, path in found if path.is_file())
    else:
        files = _members(source.read_bytes(), source.name)
    for name, file in files:
        if not _is_litter(name):
            yield from _expand(name, file)


def count_students(source: Path) -> int:
    """How many students there are in an export, by the names of files alone.

    Raises:
        ValueError: `source` is neither a folder nor a zip file.
    """
    source = Path(source)
    if not source.is_dir() and not zipfile.is_zipfile(source):
        raise ValueError(f"{source} is neither a folder nor a zip file")
    if source.is_dir():
        names = [p.relative_to(source).as_posix() for p in source.rglob("*") if p.is_file()]
    else:
        with zipfile.ZipFile(source) as archive:
            names = [info.filename for info in archive.infolist() if not info.is_dir()]
    return len({identify_student(n)[0] for n in names if not _is_litter(n) and _is_work(n)})


def _is_work(name: str) -> bool:
    """Whether a file may be or hold a notebook, and not a picture or a PDF."""
    # Browsers put the last two behind a notebook that they save.
    return name.lower().endswith((".ipynb", ".zip", ".ipynb.json", ".ipynb.txt"))


def _is_litter(name: str) -> bool:
    """Whether a file is one that a system or Jupyter leaves behind."""
    parts = PurePosixPath(name).parts
    return bool({"__MACOSX", ".ipynb_checkpoints"} & set(parts)) or parts[-1].startswith(".")


def _expand(name: str, file: Path | bytes) -> Iterator[File]:
    student, who = identify_student(name)
    if not _is_work(name):
        return
    try:
        if isinstance(file, Path):
            if file.is_symlink():
                raise Unreadable("it is a link to another file")
            if file.stat().st_size > LARGEST:
                raise Unreadable(f"it has {file.stat().st_size / 1e6:,.0f} MB: clear the outputs")
            file = file.read_bytes()
        if not name.lower().endswith(".zip"):
            yield File(student, who, name, file)
            return
        inside = list(_members(file, name))
        notebooks = [(member, data) for member, data in inside if _is_work(member)]
        if not notebooks:
            raise Unreadable("there is no notebook in the zip file")
        for member, data in notebooks:
            yield File(student, who, f"{name}/{member}", data)
    except (Unreadable, OSError) as error:
        yield File(student, who, name, None, str(error))


def _members(content: bytes, name: str) -> Iterator[tuple[str, bytes]]:
    """Names and bytes in a zip file. Nothing is written to disk, wherever a name points to."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for info in sorted(archive.infolist(), key=lambda info: info.filename):
                if info.is_dir() or _is_litter(info.filename):
                    continue
                if info.file_size > LARGEST:
                    raise Unreadable(f"{info.filename} unpacks to {info.file_size / 1e6:,.0f} MB")
                with archive.open(info) as file:
                    data = file.read(LARGEST + 1)  # what a header says need not be true
                if len(data) > LARGEST:
                    raise Unreadable(f"{info.filename} unpacks to more than it says")
                yield info.filename, data
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError) as error:
        raise Unreadable(f"the zip file is damaged or locked: {error}") from None


def identify_student(path: str) -> tuple[str, str]:
    """Id and name of whoever handed in the file at `path`, which is relative to the export."""
    if match := MOODLE.match(path):
        return match["id"], match["name"]
    parts = PurePosixPath(path).parts
    if match := CANVAS.match(parts[-1]):
        return match["id"], match["name"]
    first = parts[0] if len(parts) > 1 else PurePosixPath(path).stem
    return STUDENT_ID.sub("_", first).strip("_.") or "unknown", first


def attempt(path: str) -> int:
    """Which try of a student a file is: Canvas numbers the second and later ones -1, -2, ..."""
    match = CANVAS.match(PurePosixPath(path).name)
    return int(match["attempt"] or 0) if match else 0


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
    except Unreadable:
        raise
    except UnicodeDecodeError:
        raise Unreadable("it is not text in UTF-8") from None
    except json.JSONDecodeError:
        raise Unreadable("it is no notebook: damaged, or not saved to its end") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreadable(f"it is no notebook: {str(error)[:200]}") from None
    metadata = data.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    return rejoin_lines(nbformat.v4.new_notebook(cells=cells, metadata=metadata))


def _cell(cell: dict) -> NotebookNode:
    source = cell.get("source", "")
    source = "".join(map(str, source)) if isinstance(source, list) else str(source)
    metadata = cell.get("metadata")
    options = {"source": source, "metadata": metadata if isinstance(metadata, dict) else {}}
    if isinstance(cell.get("id"), str):
        options["id"] = cell["id"]
    if cell.get("cell_type") != "code":
        return nbformat.v4.new_markdown_cell(**options)
    outputs = cell.get("outputs")
    outputs = outputs if isinstance(outputs, list) else []
    kept = [o for o in outputs if isinstance(o, dict) and len(json.dumps(o)) <= LARGEST_OUTPUT]
    made = nbformat.v4.new_code_cell(**options)
    made.outputs = [nbformat.from_dict(o) for o in kept if _is_output(o)]
    return made


def _make_ids_unique(cells: list[NotebookNode]) -> None:
    """The first cell keeps an id; nbformat gives those after it, and odd ones, a new one."""
    seen = set()
    for cell in cells:
        if cell.id in seen or not re.fullmatch(r"[\w-]{1,64}", cell.id, flags=re.ASCII):
            cell.id = nbformat.v4.new_markdown_cell().id
        seen.add(cell.id)


def _is_output(output: dict) -> bool:
    try:
        nbformat.validate(nbformat.from_dict(output), ref="output", version=4)
    except nbformat.ValidationError:
        return False
    return True


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
    if isinstance(own, dict) and own.get("assignment") in released:
        return own["assignment"]
    scores = {}
    for name, original in released.items():
        ids = {grade_id(cell) for cell in original.cells} - {None}
        cells = {cell.id for cell in original.cells}
        scores[name] = sum(
            grade_id(cell) in ids
            or cell.id in cells
            or any(re.search(rf"^\s*def {i}\(", cell.source, flags=re.M) for i in ids)
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
        if i in partner and place not in first:
            first[place] = cell
            if not is_answer(original.cells[place]) and _differs(cell, original.cells[place]):
                if original.cells[place].cell_type == "code":
                    result.remarks.append(f"a locked cell was changed: {_label(original, place)}")
                else:
                    added[place].append(cell)  # perhaps an answer, written in the wrong place
        else:
            if i in partner:
                result.remarks.append(f"a cell is there twice: {_label(original, place)}")
                if not is_answer(original.cells[place]):
                    continue
            added[place].append(cell)

    cells = [_own(cell) for cell in added[-1]]
    for place, cell in enumerate(result.notebook.cells):
        known = first.get(place)
        name = grade_id(cell)
        if known is not None and cell.cell_type == "code":
            cell.outputs = known.outputs
        if name and is_answer(cell):
            if known is None:
                result.lost.append(name)
                result.remarks.append(f"the cell of {name} is missing")
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


def _differs(cell: NotebookNode, original: NotebookNode) -> bool:
    return cell.source.strip() != original.source.strip()


def _label(original: NotebookNode, place: int) -> str:
    return grade_id(original.cells[place]) or f"text {place + 1}"
