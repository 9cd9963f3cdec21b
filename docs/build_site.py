"""The course's website from README.md, docs/, the notebooks and the library (`make site`).

Files are gathered as they are, under the names that they have in the repository, so that the links
between them hold. Three kinds of pages are made from what stands elsewhere: the library's reference
and the table of methods (docstrings), and the instructor's page of each lecture (speaker notes).
"""

import ast
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import nbformat
from pybtex.database import parse_file

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "lib/compresslab"
MATHJAX = ROOT / "node_modules/mathjax/es5"
# Families of methods, in the order of the lectures from the second on.
FAMILIES = ("pruning", "quantization", "factorization", "distillation", "sharing", "attention")
AS_THEY_ARE = (
    "notebooks/*.ipynb", "exercises/*/*.ipynb", "docs/references.bib",
    "data/method_map.png", "CITATION.cff", "LICENSE", "LICENSE-TEXT",
)  # fmt: skip
PAGES = ("docs/*.md", "README.md", "CONTRIBUTING.md", "solutions/README.md", "data/**/*.md")


def main(target: Path = ROOT / "dist/site") -> int:
    if not MATHJAX.exists():
        sys.exit(f"{MATHJAX} is missing: run `npm ci`, or `make site`, which does.")
    os.environ["REPOSITORY"] = repository()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        source, built = Path(folder, "source"), Path(folder, "site")
        gather(source)
        # In one process (no -j): each of several would import torch and transformers again.
        options = ["-q", "-W", "--keep-going", "-c", ROOT / "docs"]
        done = subprocess.run([sys.executable, "-m", "sphinx", *options, source, built])
        if done.returncode == 0:
            scripts = built / "_static/mathjax"
            shutil.copytree(MATHJAX / "output/chtml", scripts / "output/chtml")
            shutil.copy(MATHJAX / "tex-chtml.js", scripts)
            shutil.rmtree(target, ignore_errors=True)
            built.rename(target)
            print(target / "index.html")
    return done.returncode


def repository() -> str:
    """Address of the repository on GitHub, or "" if nobody says it."""
    command = ["git", "-C", ROOT, "remote", "get-url", "origin"]
    origin = subprocess.run(command, capture_output=True, text=True).stdout
    address = os.environ.get("REPOSITORY") or origin
    found = re.search(r"github\.com[:/]([\w.-]+/[\w.-]+?)(?:\.git)?/?$", address.strip())
    return f"https://github.com/{found[1]}" if found else ""


def gather(source: Path) -> None:
    """Everything that Sphinx reads, in `source`."""
    copied = [path for pattern in AS_THEY_ARE for path in sorted(ROOT.glob(pattern))]
    pages = [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]
    for path in copied:
        put(source / path.relative_to(ROOT), path.read_bytes())
    for path in pages:
        text = with_links_that_hold(path.read_text(encoding="utf-8"), path, {*copied, *pages})
        put(source / path.relative_to(ROOT), text)
    for name, text in (*library_pages(), *instructor_pages(), ("docs/methods.md", methods_page())):
        put(source / name, text)
    (source / "README.md").rename(source / "index.md")
    with (source / "index.md").open("a", encoding="utf-8") as index:
        index.write(contents(source))


def put(place: Path, content: str | bytes) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(content.encode() if isinstance(content, str) else content)


def with_links_that_hold(text: str, path: Path, present: set[Path]) -> str:
    """What is not part of the site is linked in the repository, or nowhere if it has no address."""
    address = os.environ["REPOSITORY"]

    def settle(match: re.Match) -> str:
        label, link = match.groups()
        file = (path.parent / link.partition("#")[0]).resolve()
        if re.match(r"\w+:|#", link) or file in present:
            return match[0]
        return f"[{label}]({address}/blob/main/{file.relative_to(ROOT)})" if address else label

    return re.sub(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)", settle, text)


def heading(notebook: Path) -> str:
    """Its first one, which begins with its number: Exercises 3 · Quantization."""
    cells = nbformat.read(notebook, as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    return re.search(r"^# (.+)", text, re.M)[1]


def contents(source: Path) -> str:
    """The site's table of contents, for the end of the landing page."""
    parts = {
        "Lectures": [n.relative_to(source) for n in sorted(source.glob("notebooks/*.ipynb"))],
        "Exercises": [
            n.relative_to(source) for n in sorted(source.glob("exercises/*/*.ipynb"), key=heading)
        ],
        "Reference": [
            Path(f"docs/{name}.md")
            for name in (
                "methods",
                "glossary",
                "notation",
                "references",
                "outgrowing",
                "api/index",
            )
        ],
        "Models and data": [
            n.relative_to(source) for n in sorted(source.glob("data/**/*.md"), reverse=True)
        ],
        "For instructors": [
            Path("docs/instructors.md"),
            *(n.relative_to(source) for n in sorted(source.glob("docs/instructors/*.md"))),
            Path("solutions/README.md"),
            Path("CONTRIBUTING.md"),
        ],
    }
    return "".join(
        "\n```{toctree}\n:hidden:\n"
        + f":caption: {caption}\n\n"
        + "\n".join(str(page.with_suffix("")) for page in pages)
        + "\n```\n"
        for caption, pages in parts.items()
    )


# ---------------------------------------------------------------- from docstrings


def modules() -> dict[str, str]:
    """Dotted name -> docstring, of every module that has one."""
    found = {}
    for path in sorted(LIBRARY.rglob("*.py")):
        name = ".".join(path.relative_to(LIBRARY.parent).with_suffix("").parts)
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if docstring:
            found[name.removesuffix(".__init__")] = docstring
    return found


def library_pages() -> list[tuple[str, str]]:
    """A page for each module, and one that lists them."""
    pages, groups = [], {}
    for name, docstring in modules().items():
        group = name.split(".")[1] if name.count(".") > 1 else "what every lecture uses"
        groups.setdefault(group, []).append((name, docstring.splitlines()[0]))
        title = name.removeprefix("compresslab.")
        body = f"```{{eval-rst}}\n.. automodule:: {name}\n```\n"
        pages.append((f"docs/api/{name}.md", f"# {title}\n\n{body}"))
    index = "# The library\n\nEvery module, with its source behind the links *[source]*.\n"
    for group in sorted(groups, key=lambda g: (g.islower() and g not in FAMILIES, g)):
        index += f"\n## {group[0].upper() + group[1:]}\n\n"
        index += "".join(f"- [{name}]({name}.md): {first}\n" for name, first in groups[group])
        names = "\n".join(name for name, _ in groups[group])
        index += f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    return [*pages, ("docs/api/index.md", index)]


def methods_page() -> str:
    """The methods of the library with their papers, by lecture."""
    keys = {
        entry.fields["eprint"]: key
        for key, entry in parse_file(ROOT / "docs/references.bib").entries.items()
        if "eprint" in entry.fields
    }
    every = modules()
    page = (
        "# Methods and their papers\n\nWhat the library has, a module each. The module's page says "
        "where the formulas stand in the paper, and what differs from it.\n"
    )
    for lecture, family in enumerate(FAMILIES, start=2):
        rows = [
            f"| [{name.rpartition('.')[2]}](api/{name}.md) | {docstring.splitlines()[0]} "
            f"| {papers(docstring, keys)} |\n"
            for name, docstring in every.items()
            if name.startswith(f"compresslab.{family}.")
        ]
        if rows:
            page += f"\n## {family.capitalize()} (lecture {lecture})\n\n"
            page += "| module | what it does | papers |\n|---|---|---|\n" + "".join(rows)
    return page


def papers(docstring: str, keys: dict[str, str]) -> str:
    found = dict.fromkeys(re.findall(r"arXiv:(\d{4}\.\d{4,5})", docstring))
    return ", ".join(f"{{cite:t}}`{keys[number]}`" for number in found)


# ---------------------------------------------------------------- from speaker notes


def instructor_pages() -> list[tuple[str, str]]:
    """The speaker notes of each lecture, each under the heading of the slides it belongs to."""
    pages = []
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        title, section, page = "", "", ""
        for cell in notebook.cells:
            if cell.metadata.get("slideshow", {}).get("slide_type") == "notes":
                page += f"\n## {section or 'Before you begin'}\n\n" if section != title else ""
                page += cell.source.removeprefix("**For the instructor.**").strip() + "\n\n"
                title = section
            elif found := re.findall(r"^## (.+)", cell.source, re.MULTILINE):
                section = found[-1]
        heading = re.findall(r"^# (.+)", notebook.cells[0].source)[0]
        page = (
            f"# {heading}: speaker notes\n\n[The lecture](../../{path.relative_to(ROOT)})\n" + page
        )
        pages.append((f"docs/instructors/{path.stem}.md", page))
    return pages


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
