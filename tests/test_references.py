"""The bibliography is complete, and every citation points to the paper that it names."""

import json
import re
import unicodedata

import pytest
from pybtex.database import parse_file

from compresslab.assets import DATA

ROOT = DATA.parent
BIBLIOGRAPHY = parse_file(ROOT / "docs/references.bib").entries  # a key twice is an error

# Why these have a plain address, and neither an arXiv id nor a DOI.
ADDRESS_ONLY = {
    "badri2023half": "a web page",
    "ggmlorg2023gguf": "the specification in its repository",
    "hassibi1992second": "the early volumes of NIPS have no DOIs",
    "itu2025measuring": "a web report",
    "meta2024llama": "a model card",
}

NAME = r"[A-Z][\w-]+"
CITATION = re.compile(
    rf"\b({NAME})(?:"
    r" et al\.(?:,? \(?(\d{4})\b)?"  # Han et al. (2015), Han et al., 2015, or later just Han et al.
    rf"|(?:(?:,| and|, and) {NAME})+,? \(?(\d{{4}})\b"  # Gu and Dao (2023)
    r"|(?:'s \w+)? \((\d{4})\b"  # Wilson (1927), McNemar's test (1947)
    r"|,? (\d{4})\b)"  # Wilson, 1927: see `citations`
)
LINK = re.compile(r"\[([^\[\]]+)\]\((https?://[^\s)]+)\)|<a href=['\"](.+?)['\"]>(.+?)</a>")
FURTHER_READING = re.compile(r"^- ([^*\n]+), \*.+?\*, \[[^\]]+\]\((https?://[^\s)]+)\)", re.M)
ARXIV = re.compile(r"(?:arXiv:|arxiv\.org/(?:abs|pdf)/)(\d{4}\.\d{4,5})", re.I)
DOI = re.compile(r"(?:doi:|doi\.org/)(10\.\d{4,9}/[^\s)\]}<>'\",;]+)", re.I)


def words(text):
    ascii_only = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.findall(r"[a-z0-9]+", ascii_only.lower())


def family_words(entry):
    return words(" ".join(entry.persons["author"][0].last_names))


def ids(entry):
    """Where the paper is, as far as the entry says: arXiv id, DOI, address."""
    fields = entry.fields
    return {fields[name].lower() for name in ("eprint", "doi", "url") if name in fields}


def named(text):
    """The arXiv ids and DOIs in a text."""
    return {found.rstrip(".").lower() for found in ARXIV.findall(text) + DOI.findall(text)}


def markdown(path):
    cells = json.loads(path.read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]


def text_of(path):
    if path.suffix != ".ipynb":
        return path.read_text()
    return "\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])


NOTEBOOKS = [
    path
    for folder in ("notebooks", "solutions", "exercises")
    for path in sorted((ROOT / folder).rglob("*.ipynb"))
    if ".ipynb_checkpoints" not in path.parts
]
PROSE = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "data/cards").glob("*.md")]
LIBRARY = sorted((ROOT / "lib/compresslab").rglob("*.py"))
TEXTS = {path: text_of(path) for path in [*NOTEBOOKS, *PROSE, *LIBRARY]}
FAMILIES = {family_words(entry)[-1] for entry in BIBLIOGRAPHY.values()}


def citations(text):
    """Name, year (or None) and span of each citation. A lone name before a bare year, as in "Since
    2020", is one only if it is that of an author, or follows a bracket: (Wilson, 1927)."""
    for match in CITATION.finditer(text):
        name, *years = match.groups()
        bare = years[-1] is not None
        opened = text[: match.start()].rstrip(" ").endswith(("(", ";"))
        if bare and words(name)[-1] not in FAMILIES and not opened:
            continue
        yield name, next((year for year in years if year), None), match.span()


def links(text):
    """Address and span of each link; in a list of further reading it stands behind the names."""
    for match in LINK.finditer(text):
        yield match[2] or match[3], match.span()
    for match in FURTHER_READING.finditer(text):
        yield match[2], match.span(1)


def is_of(name, year, entry):
    """Whether a citation means this paper: by the first author, or by what the title calls itself
    (PaLM)."""
    known = family_words(entry)[-1:] + words(entry.fields["title"])
    return words(name)[-1] in known and year in (None, entry.fields["year"])


def is_target(url, entry):
    return bool(named(url) & ids(entry)) or url == entry.fields.get("url")


@pytest.mark.parametrize("key", BIBLIOGRAPHY)
def test_an_entry_is_complete(key):
    entry = BIBLIOGRAPHY[key]
    assert entry.persons["author"]
    assert entry.fields["title"]
    assert re.fullmatch(r"1[89]\d\d|20\d\d", entry.fields["year"])
    if entry.type != "misc":
        assert "journal" in entry.fields or "booktitle" in entry.fields
    prefix = "".join(family_words(entry)) + entry.fields["year"]
    assert key.startswith(prefix)
    assert key.removeprefix(prefix) in words(entry.fields["title"])


@pytest.mark.parametrize("key", BIBLIOGRAPHY)
def test_an_entry_says_where_the_paper_is(key):
    fields = BIBLIOGRAPHY[key].fields
    if key in ADDRESS_ONLY:
        assert not {"eprint", "doi"} & set(fields)
        assert fields["url"].startswith("https://")
        return
    assert "eprint" in fields or "doi" in fields
    if "eprint" in fields:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", fields["eprint"])
        assert fields["archiveprefix"] == "arXiv"
        # arXiv ids begin with the month of the first version, the year that the course cites with.
        assert fields["year"] == f"20{fields['eprint'][:2]}"
    if "doi" in fields:
        assert re.fullmatch(r"10\.\d{4,9}/\S+", fields["doi"])


def test_entries_are_sorted_and_no_paper_is_there_twice():
    assert list(BIBLIOGRAPHY) == sorted(BIBLIOGRAPHY)
    everything = [name for entry in BIBLIOGRAPHY.values() for name in ids(entry)]
    assert len(everything) == len(set(everything))
    assert set(ADDRESS_ONLY) <= set(BIBLIOGRAPHY)


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_paper_named_is_in_the_bibliography(path):
    known = set().union(*(ids(entry) for entry in BIBLIOGRAPHY.values()))
    assert named(TEXTS[path]) <= known


@pytest.mark.parametrize("key", BIBLIOGRAPHY)
def test_every_entry_is_cited(key):
    entry = BIBLIOGRAPHY[key]
    everything = "\n".join(TEXTS.values())
    by_name = any(
        year and is_of(name, year, entry)
        for path in LIBRARY
        for name, year, _ in citations(" ".join(TEXTS[path].split()))
    )
    by_address = "url" in entry.fields and entry.fields["url"] in everything
    assert by_name or by_address or ids(entry) & named(everything)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_citation_links_to_the_paper_it_names(path):
    wrong = []
    for text in markdown(path):
        for name, year, (start, end) in citations(text):
            targets = [url for url, (a, b) in links(text) if a <= start and end <= b]
            papers = [e for e in BIBLIOGRAPHY.values() for url in targets if is_target(url, e)]
            if not any(is_of(name, year, entry) for entry in papers):
                wrong.append((text[start:end], targets))
    assert not wrong
