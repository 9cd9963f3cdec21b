"""Each term and symbol of a lecture is defined in docs/, and a link where it is first used.

- The forms of a term are its heading in docs/glossary.md and what follows "Also:", and those with
  an -s. A form in lower case matches whatever the case; of overlapping forms the longest counts.
- Running text is the Markdown of a lecture without speaker notes, cells of role "skip", headings,
  code, mathematics, other links and <summary> (no link works there). A term's first use is a link.
- Bold marks a term: up to four bold words that start in lower case are one, or are in EMPHASIS.
  A name with capitals inside is one, or is in KNOWN.
- A symbol is a letter with its subscript, unless that has only digits and letters listed under
  "Indices". It has a row in docs/notation.md, and is in the text of a link to there in the Markdown
  cell that first uses it or in one beside it. Indices need no link.
"""

import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
LECTURES = sorted((ROOT / "notebooks").glob("*.ipynb"))
EXERCISES = sorted((ROOT / "exercises").glob("*/*.ipynb"))

EMPHASIS = {
    # stress, and no term
    "training", "typical", "nothing", "larger", "slower", "the same sentences", "which",
    "in what shape", "four", "two", "for each example", "make up", "learned", "within each row",
    # parts of the exercise sheets, and words that one exercise defines and uses for itself alone
    "instant check", "hints", "entries", "drops", "grows", "global", "local",
}  # fmt: skip
KNOWN = {
    "NVIDIA", "DeepSeek-AI", "ITU",  # who made or said it
    "PyTorch", "GPU", "AI", "US", "UTF-8", "arXiv",  # everybody knows them
    "kB", "MB", "GB", "pJ", "Wh", "kWh", "MWh",  # units
}  # fmt: skip

LINK = re.compile(r"\[([^\[\]]*)\]\(([^()\s]*)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.DOTALL)
MATH = re.compile(r"\$\$.+?\$\$|(?<!\\)\$(?!\s)[^$\n]+?(?<![\s\\])\$(?!\d)", re.DOTALL)
SUMMARY = re.compile(r"<summary>.*?</summary>", re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


def slug(heading):
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(name):
    return [slug(h) for h in HEADING.findall((ROOT / "docs" / name).read_text("utf-8"))]


def entries():
    """The glossary: heading to definition."""
    text = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    parts = re.split(r"^## ", text, flags=re.MULTILINE)[1:]
    return [tuple(s.strip() for s in part.partition("\n")[::2]) for part in parts]


def forms():
    """Pairs of a form and the anchor of its term."""
    found = []
    for heading, definition in entries():
        also = re.search(r"\bAlso: ([^.]*)\.", definition)
        names = [heading, *(also[1].split(", ") if also else [])]
        found += [(name, slug(heading)) for name in names]
    return found


def pattern(form):
    words = r"\s+".join(re.escape(word) for word in form.split())
    return rf"(?i:{words})" if form == form.lower() else words


def terms():
    """One pattern that finds any term, and a function from its match to the anchor."""
    known = sorted(forms(), key=lambda pair: len(pair[0]), reverse=True)
    groups = "|".join(f"({pattern(form)})" for form, _ in known)
    return re.compile(rf"(?<![\w-])(?:{groups})s?(?![\w-])"), lambda m: known[m.lastindex - 1][1]


def blank(expression, text):
    """The text with spaces in place of the matches, so that what is left stays where it was."""
    return expression.sub(lambda m: " " * len(m[0]), text)


def cells(path, roles_left_out=()):
    notebook = nbformat.read(path, as_version=4)
    return [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        and cell.metadata.get("slideshow", {}).get("slide_type") not in roles_left_out
    ]


def running_text(source):
    for expression in (CODE, LINK, MATH, SUMMARY, HEADING):
        source = blank(expression, source)
    return source


def first_uses(path):
    """For each term the cell, place and text of its first use; the text is None if it is a link."""
    expression, anchor = terms()
    found = {}
    for number, source in enumerate(cells(path, ("notes", "skip"))):
        uses = [(m.start(), anchor(m), m[0]) for m in expression.finditer(running_text(source))]
        for m in LINK.finditer(source):
            if "docs/glossary.md#" in m[2]:
                uses.append((m.start(), m[2].partition("#")[2], None))
        for place, term, written in sorted(uses, key=lambda use: use[0]):
            found.setdefault(term, (number, place, written))
    return found


# --- symbols ---

BRACES = r"\{(?:[^{}]|\{[^{}]*\})*\}"
GREEK = (
    "alpha|beta|gamma|Gamma|delta|Delta|epsilon|varepsilon|zeta|eta|theta|Theta|kappa|lambda|Lambda|mu|nu"
    "|xi|pi|rho|sigma|Sigma|tau|phi|varphi|Phi|chi|psi|omega|Omega"
)
SYMBOL = re.compile(
    rf"(?P<base>\\(?:hat|bar|tilde)\s*\{{?[A-Za-z]\}}?|\\(?:{GREEK})(?![A-Za-z])|(?<!\\)[A-Za-z])"
    rf"(?:\^(?:{BRACES}|\\[a-z]+|\w))?(?:_(?P<sub>\\text\{{[^{{}}]*\}}|{BRACES}|\w))?"
)
WORDS = re.compile(r"(?<!_)(?<!_\{)\\(?:text|mathrm|mathbb|operatorname)\{[^{}]*\}")
COMMAND = re.compile(rf"\\(?!(?:text|hat|bar|tilde|{GREEK})(?![A-Za-z]))[A-Za-z]+")


def symbols(mathematics, indices=()):
    """The symbols in a formula, as "d_ff"."""
    found = []
    for m in SYMBOL.finditer(COMMAND.sub(" ", WORDS.sub(" ", mathematics))):
        base, sub = (re.sub(r"\\text|[{}\\\s]", "", m[part] or "") for part in ("base", "sub"))
        plain = all(letter in indices for letter in re.findall(r"[^\W\d_]", sub))
        found.append(base if plain else f"{base}_{sub}")
    return found


def rows():
    """The symbols under "Indices", and the symbols of all rows of docs/notation.md."""
    text = (ROOT / "docs" / "notation.md").read_text("utf-8")
    section = re.search(r"^## Indices$(.*?)^## ", text, re.MULTILINE | re.DOTALL)[1]

    def first_column(text, indices=()):
        columns = [line.split("|")[1] for line in text.splitlines() if line.startswith("| $")]
        return {s for column in columns for m in MATH.findall(column) for s in symbols(m, indices)}

    indices = first_column(section)
    return indices, first_column(text, indices)


def mathematics(source):
    return MATH.findall(blank(CODE, source))


# --- tests ---


@pytest.fixture(params=LECTURES, ids=lambda path: path.stem)
def lecture(request):
    return request.param


@pytest.fixture(params=LECTURES + EXERCISES, ids=lambda path: path.stem)
def notebook(request):
    return request.param


def test_the_glossary_is_sorted_and_complete():
    headings = [heading for heading, _ in entries()]
    assert headings == sorted(headings, key=str.casefold)
    assert len(set(anchors("glossary.md"))) == len(anchors("glossary.md"))
    for heading, definition in entries():
        assert re.search(r"\w{2,} .*(Lecture|Exercises) \d\.$", definition, re.DOTALL), heading
        for _, target in LINK.findall(definition):
            assert target[1:] in anchors("glossary.md"), (heading, target)


def test_no_form_belongs_to_two_terms():
    names = [form for form, _ in forms()]
    assert sorted(names) == sorted(set(names))


def test_every_link_leads_to_a_heading(notebook):
    for source in cells(notebook):
        for text, target in LINK.findall(source):
            page, _, anchor = target.partition("#")
            if page.endswith(("docs/glossary.md", "docs/notation.md")):
                assert (notebook.parent / page).resolve().parent == ROOT / "docs", target
                assert anchor in anchors(page.rpartition("/")[2]), (text, target)


def test_every_term_is_linked_where_it_is_first_used(lecture):
    missing = {term: written for term, (_, _, written) in first_uses(lecture).items() if written}
    assert not missing, missing


def test_every_term_is_defined(notebook):
    expression, _ = terms()
    unknown = set()
    for source in cells(notebook, ("skip",)):
        text = blank(MATH, blank(CODE, source))
        text = LINK.sub(lambda m: m[1] if "docs/glossary.md" in m[2] else " ", text)
        for bold in re.findall(r"\*\*([^*\n]+)\*\*", text):
            candidate = bold[0].islower() and len(bold.split()) <= 4 and bold not in EMPHASIS
            if candidate and not expression.fullmatch(bold):
                unknown.add(bold)
        for name in re.findall(r"\b[A-Za-z]\w*(?:-\w+)*", text):
            names = {name, name.removesuffix("s"), name.partition("-")[0]}
            candidate = re.search(r"\w[A-Z]", name.partition("-")[0]) and not names & KNOWN
            if candidate and not any(expression.fullmatch(n) for n in names):
                unknown.add(name)
    assert not unknown, unknown


def test_every_symbol_has_its_row(notebook):
    indices, known = rows()
    for source in cells(notebook):
        for formula in mathematics(source):
            assert set(symbols(formula, indices)) <= known, formula


def test_every_symbol_is_linked_where_it_is_first_used(lecture):
    indices, _ = rows()
    used, linked = [], []
    for source in cells(lecture, ("notes", "skip")):
        links = [text for text, target in LINK.findall(source) if "docs/notation.md" in target]
        linked.append({s for m in mathematics(" ".join(links)) for s in symbols(m, indices)})
        used.append({s for m in mathematics(source) for s in symbols(m, indices)} - indices)
    seen, missing = set(), []
    for number, here in enumerate(used):
        near = set().union(*linked[max(0, number - 1) : number + 2])
        missing += sorted(here - seen - near)
        seen |= here
    assert not missing, missing
