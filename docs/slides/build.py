"""Every lecture as one HTML file with everything in it: dist/slides/NAME.html (`make slides`)."""

import copy
import re
import sys
from pathlib import Path

import nbformat
from nbconvert.exporters import SlidesExporter
from nbformat.v4 import new_markdown_cell
from traitlets.config import Config

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
NODE_MODULES = ROOT / "node_modules"
PARTS = {
    "reveal_css": NODE_MODULES / "reveal.js/dist/reveal.css",
    "reveal_js": NODE_MODULES / "reveal.js/dist/reveal.js",
    "notes_js": NODE_MODULES / "reveal.js/plugin/notes/notes.js",
    "mathjax_js": NODE_MODULES / "mathjax/es5/tex-svg.js",
    "deck_css": HERE / "deck.css",
}
CONFIG = Config(
    SlidesExporter={
        "extra_template_basedirs": [str(HERE)],
        "template_name": "template",
        "exclude_input_prompt": True,
        "exclude_output_prompt": True,
    },
    # An explorer is shown as the HTML that it saved, which moves without a kernel.
    NbConvertBase={"display_data_priority": ["text/html", "image/png", "text/plain"]},
    CSSHTMLHeaderPreprocessor={"style": "a11y-light"},
    TagRemovePreprocessor={"enabled": True, "remove_input_tags": {"hide-input"}},
)


def deck(notebook: nbformat.NotebookNode, name: str) -> str:
    """The notebook as a reveal.js presentation, one page of HTML."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = without_links_to_files(cell.source)
    notebook.cells = with_notes_on_every_slide(notebook.cells)
    parts = {part: path.read_text(encoding="utf-8") for part, path in PARTS.items()}
    title = next(re.findall(r"^# (.+)", cell.source)[0] for cell in notebook.cells)
    resources = {"deck": parts | {"title": title}, "metadata": {"name": name}}
    html, _ = SlidesExporter(config=CONFIG).from_notebook_node(notebook, resources)
    return html


def role(cell: nbformat.NotebookNode) -> str | None:
    return cell.metadata.get("slideshow", {}).get("slide_type")


def with_notes_on_every_slide(cells: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """The notes at the end of a section say what to ask on the way: each of its slides has them."""
    given, notes = [], None
    for i, cell in enumerate(reversed(cells)):
        if role(cell) == "notes":
            notes = cell
            continue
        ends_slide = i == 0 or role(cells[-i]) in ("slide", "notes")
        if ends_slide and notes is not None:
            given.append(new_markdown_cell(notes.source, metadata=copy.deepcopy(notes.metadata)))
        given.append(cell)
        if cell.cell_type == "markdown" and re.search("^##? ", cell.source, re.MULTILINE):
            notes = None
    return given[::-1]


def without_links_to_files(markdown: str) -> str:
    """A deck travels alone: of a link to another file of the course only its text is left."""
    return re.sub(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])+)\]\(\.\./[^)\s]*\)", r"\1", markdown)


def main(target: Path = ROOT / "dist/slides") -> int:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        html = deck(nbformat.read(path, as_version=4), path.stem)
        (target / f"{path.stem}.html").write_text(html, encoding="utf-8")
        print(f"{target / path.stem}.html, {len(html.encode()) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
