"""What every lecture keeps to. That it runs, and prints what it printed, is nbval's part."""

import json
import re
import statistics

import nbformat
import pytest

from compresslab.assets import DATA

NOTEBOOKS = sorted((DATA.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_valid(notebook):
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"


def test_every_code_cell_was_executed_from_top_to_bottom(notebook):
    # nbval passes a cell that has never been executed.
    assert [cell.execution_count for cell in code(notebook)] == list(
        range(1, len(code(notebook)) + 1)
    )


def test_no_output_is_an_error_or_noise(notebook):
    for cell in code(notebook):
        for output in cell.outputs:
            assert output.output_type != "error"
            assert output.get("name") != "stderr", output.get("text")


def test_a_checked_cell_has_an_output_to_check(notebook):
    checked = [c for c in code(notebook) if "nbval-check-output" in c.metadata.get("tags", [])]
    assert checked
    for cell in checked:
        assert cell.outputs, cell.source


def test_no_path_of_a_machine_is_in_it(notebook):
    for cell in code(notebook):
        assert not re.search(r"(/home/|/root/|/tmp/|/Users/|C:\\\\)", json.dumps(cell))


def test_code_cells_are_short(notebook):
    lengths = [len(cell.source.splitlines()) for cell in code(notebook)]
    assert statistics.median(lengths) <= 8
    assert max(lengths) <= 25


def role(cell) -> str | None:
    return cell.metadata.get("slideshow", {}).get("slide_type")


def test_every_cell_has_its_role_in_the_slides(notebook):
    # Not "-" and not "subslide": jupyterlab-deck 0.2 does not show the first, and leaves out a
    # subslide of a single cell. Without a role, a cell continues the slide before.
    for cell in notebook.cells:
        assert role(cell) in {"slide", "fragment", "skip", "notes", None}, cell.source[:60]
    assert role(notebook.cells[0]) == "slide"


def test_every_lecture_is_presented_in_the_same_size():
    styles = [nbformat.read(n, 4).metadata["@deathbeds/jupyterlab-fonts"] for n in NOTEBOOKS]
    assert all(style == styles[0] for style in styles)


def test_speaker_notes_are_for_presenting_only(notebook):
    for cell in notebook.cells:
        assert (role(cell) == "notes") == ("remove-cell" in cell.metadata.get("tags", []))


def test_the_plan_fills_two_times_forty_five_minutes(notebook):
    plan = next(cell.source for cell in notebook.cells if role(cell) == "notes")
    first, second = plan.split("Second half:")
    for half in (first.partition("First half:")[2], second.partition(". ")[0]):
        assert sum(map(int, re.findall(r"\((\d+)\)", half))) == 45


def test_it_has_speaker_notes_that_say_what_to_ask_and_how_long(notebook):
    notes = [cell.source for cell in notebook.cells if role(cell) == "notes"]
    assert len(notes) >= 5
    for note in notes:
        assert "*Ask" in note
    for note in notes[1:]:
        assert re.search(r"\*Time\*: \d+ minutes", note), note
        assert "ommon wrong answer" in note, note


def test_a_figure_hides_its_code(notebook):
    # The code that calls `plots.show` is mostly alt text.
    for cell in code(notebook):
        if "plots.show(" in cell.source:
            assert "hide-input" in cell.metadata.tags
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden", False)
        assert hidden == ("hide-input" in cell.metadata.get("tags", []))


def test_every_picture_has_an_alt_text(notebook):
    pictures = [
        output
        for cell in code(notebook)
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert pictures
    for output in pictures:
        assert len(output.metadata.get("image/png", {}).get("alt", "")) > 40


def test_it_has_the_parts_of_a_lecture(notebook):
    text = "\n".join(c.source for c in notebook.cells if c.cell_type == "markdown")
    for part in ("After this lecture you can", "**Time**", "**Memory**", "## Check yourself",
                 "## Summary", "Further reading", "References", "Predict"):  # fmt: skip
        assert part.lower() in text.lower(), part


def test_widgets_keep_their_state(notebook):
    shown = [
        output.data["application/vnd.jupyter.widget-view+json"]["model_id"]
        for cell in code(notebook)
        for output in cell.outputs
        if "application/vnd.jupyter.widget-view+json" in output.get("data", {})
    ]
    state = (
        notebook.metadata.get("widgets", {})
        .get("application/vnd.jupyter.widget-state+json", {})
        .get("state", {})
    )
    assert set(shown) <= set(state)


def test_there_is_a_notebook():
    assert NOTEBOOKS
