"""The website as `make site` builds it."""

import functools
import http.server
import os
import re
import subprocess
import sys
import threading
from urllib.parse import unquote, urljoin, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from compresslab.assets import DATA

ROOT = DATA.parent
NODE_MODULES = ROOT / "node_modules"
AXE = NODE_MODULES / "axe-core/axe.min.js"
LECTURES = sorted((ROOT / "notebooks").glob("*.ipynb"))
REPOSITORY = "https://github.com/someone/course"
PAGES = [  # one of each kind
    "index.html",
    *(f"notebooks/{path.stem}.html" for path in LECTURES),
    "exercises/pruning/pruning.html",
    "docs/methods.html",
    "docs/glossary.html",
    "docs/notation.html",
    "docs/references.html",
    "docs/api/index.html",
    "docs/api/compresslab.pruning.movement.html",
    "docs/instructors.html",
    "docs/instructors/02_pruning.html",
    "solutions/README.html",
    "search.html",
]

if not AXE.exists():
    pytest.skip("no node_modules: install npm", allow_module_level=True)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site") / "html"
    command = [sys.executable, ROOT / "docs/build_site.py", folder]
    setting = os.environ | {"REPOSITORY": f"{REPOSITORY}.git"}
    done = subprocess.run(command, env=setting, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # a warning of Sphinx is an error
    assert not done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site):
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


@pytest.fixture(scope="module")
def pages(site):
    """Path in the site -> parsed page, without what colours its code: that is half of all tags."""
    coloured = re.compile(r'<span class="\w+">([^<]*)</span>')
    texts = {path: path.read_text("utf-8") for path in sorted(site.rglob("*.html"))}
    return {
        path.relative_to(site).as_posix(): BeautifulSoup(coloured.sub(r"\1", text), "html.parser")
        for path, text in texts.items()
    }


# ---------------------------------------------------------------- what is in it


@pytest.mark.parametrize("page", PAGES)
def test_the_page_is_there(site, page):
    assert (site / page).exists()


def test_every_link_and_anchor_leads_somewhere(site, pages):
    anchors = {
        name: {tag.get("id") or tag.get("name") for tag in page.select("[id], a[name]")}
        for name, page in pages.items()
    }
    dead = []
    for name, page in pages.items():
        for link in {a["href"] for a in page.select("a[href]")}:
            if urlsplit(link).scheme or link == "#":
                continue
            path, fragment = urlsplit(urljoin(name, link)).path, urlsplit(link).fragment
            path = unquote(path) or name
            known = anchors.get(path, set()) | {""}
            if not (site / path).exists() or (path in anchors and unquote(fragment) not in known):
                dead.append((name, link))
    assert not dead


def test_no_page_loads_anything_from_elsewhere(pages):
    loaded = "script[src], img[src], iframe[src], link[rel=stylesheet], link[rel=preload]"
    for name, page in pages.items():
        for tag in page.select(loaded):
            assert not urlsplit(tag.get("src") or tag["href"]).netloc, (name, tag)


def test_the_page_of_an_exercise_says_where_to_work_on_it(pages):
    exercises = {name: page for name, page in pages.items() if name.startswith("exercises/")}
    assert exercises
    for name, page in exercises.items():
        file = page.select_one(".admonition.note code").text
        assert file == name.replace(".html", ".ipynb")
        assert (ROOT / file).exists()


def test_exercises_are_in_the_order_of_the_lectures(pages):
    links = pages["index.html"].select("nav a[href^='exercises/']")
    names = [link.get_text(strip=True) for link in links]
    assert names
    assert names == sorted(names)  # each begins with its number


def test_solutions_and_speaker_notes_are_not_on_the_students_pages(site, pages):
    assert not [path for path in site.rglob("*.ipynb") if "solutions" in path.parts]
    for name in ("cases.py", "mutants.py", "alternatives.py"):
        assert not list(site.rglob(name))
    for lecture in LECTURES:
        text = pages[f"notebooks/{lecture.stem}.html"].get_text()
        assert "For the instructor" not in text
        assert "Plan for 2 × 45" in pages[f"docs/instructors/{lecture.stem}.html"].get_text()


def test_every_module_has_its_page_with_sources(pages):
    index = pages["docs/api/index.html"].get_text()
    for path in (ROOT / "lib/compresslab").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "lib").with_suffix("").parts)
        if path.name == "__init__.py" and not path.read_text().strip():
            continue
        name = name.removesuffix(".__init__")
        assert name in index
        assert pages[f"docs/api/{name}.html"].h1
    assert pages["docs/api/compresslab.pruning.wanda.html"].select_one(".viewcode-link")


def test_no_docstring_is_read_as_a_type(pages):
    """Napoleon takes what stands before a colon in "Returns" for the type."""
    types = {
        (name, field.get_text())
        for name, page in pages.items()
        for field in page.select("dt")
        if field.get_text().startswith("Return type")
    }
    assert not types


def test_every_method_is_listed_with_the_paper_that_its_module_names(pages):
    rows = {
        row.td.get_text(): row.get_text() for row in pages["docs/methods.html"].select("tbody tr")
    }
    assert "Sun" in rows["wanda"]
    assert "2023" in rows["wanda"]
    families = (ROOT / "lib/compresslab").glob("*/__init__.py")
    outside = {"recipes", "grading"}
    for folder in (path.parent for path in families if path.parent.name not in outside):
        for path in folder.glob("[a-z]*.py"):
            assert path.stem in rows


def test_a_notebook_can_be_downloaded_as_it_is_and_opened_on_binder_and_colab(site, pages):
    for path in LECTURES:
        place = path.relative_to(ROOT).as_posix()
        assert (site / "_sources" / place).read_bytes() == path.read_bytes()
        links = {a["href"] for a in pages[place.replace(".ipynb", ".html")].select("a[href]")}
        assert f"../_sources/{place}" in links
        assert f"https://colab.research.google.com/github/someone/course/blob/main/{place}" in links
        binder = next(link for link in links if link.startswith("https://mybinder.org/"))
        assert "/v2/gh/someone/course/main?" in binder
        assert place in unquote(binder)


def test_figures_have_their_alt_texts(pages):
    for path in LECTURES:
        alts = [img.get("alt", "") for img in pages[f"notebooks/{path.stem}.html"].select(
            ".cell_output img")]  # fmt: skip
        cells = nbformat.read(path, as_version=4).cells
        figures = sum("plots.show(" in c.source for c in cells if c.cell_type == "code")
        assert len(alts) >= figures > 0
        assert min(map(len, alts)) > 40


# ---------------------------------------------------------------- in a browser


@pytest.fixture
def open_page(browser, watch):
    opened = []

    def open_(url: str, **options):
        page = browser.new_page(**options)
        opened.append(page)
        seen = watch(page)
        page.goto(url, wait_until="networkidle")
        return page, seen

    yield open_
    for page in opened:
        page.close()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_on_a_phone_does_not_scroll_sideways(name, address, open_page):
    page, seen = open_page(address + name, viewport={"width": 390, "height": 844})
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert not seen.complaints
    assert not seen.elsewhere(address)


# Colours are those of the theme and of the shared styles: in the dark one lecture stands for all.
DARK = [
    name for name in PAGES if name not in {f"notebooks/{path.stem}.html" for path in LECTURES[1:]}
]

# Nor does code have more colours than kinds of tokens: to look at each of six thousand tokens takes
# longer than all the rest, so that one of each kind stays, in what went in and in what came out.
ONE_TOKEN_OF_A_KIND = """() => {
  const seen = new Set();
  for (const token of document.querySelectorAll(".highlight span[class]")) {
    const cell = token.closest(".cell_input, .cell_output");
    const block = token.closest(".highlight").parentElement;
    const kind = [cell?.className, block.className, token.className].join();
    if (seen.has(kind)) token.replaceWith(token.textContent);
    else seen.add(kind);
  }
}"""

# What scrolls becomes a tab stop by a script of the theme, 0.3 s after the page last changed.
HAS_TAB_STOPS = """() => [...document.querySelectorAll("pre")].every(
  (pre) => pre.scrollWidth <= pre.clientWidth || pre.tabIndex === 0
)"""


@pytest.mark.parametrize(
    ("name", "scheme"),
    [(name, "light") for name in PAGES] + [(name, "dark") for name in DARK],
)
def test_axe_finds_no_serious_violation(name, scheme, address, open_page):
    page, _ = open_page(address + name, color_scheme=scheme)
    page.evaluate(ONE_TOKEN_OF_A_KIND)
    page.wait_for_function(HAS_TAB_STOPS)
    page.add_script_tag(path=AXE)
    rules = "['color-contrast']" if scheme == "dark" else "['wcag2a', 'wcag2aa', 'best-practice']"
    found = page.evaluate(f"axe.run({{runOnly: {rules}, resultTypes: ['violations']}})")
    assert not [
        (violation["id"], [node["html"][:120] for node in violation["nodes"]][:5])
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("query", ["SparseGPT", "movement pruning", "perplexity"])
def test_search_finds_a_method_and_a_term(query, address, open_page):
    page, seen = open_page(f"{address}search.html?q={query.replace(' ', '+')}")
    # The page adds what it finds one by one: the first hit need not be the lecture.
    found = "#search-results li a[href*='notebooks/02_pruning.html']"
    page.wait_for_selector(found, timeout=30_000)
    assert not seen.elsewhere(address)


@pytest.mark.parametrize("lecture", LECTURES, ids=lambda path: path.stem)
def test_an_explorer_moves_by_keyboard(lecture, address, open_page):
    page, _ = open_page(f"{address}notebooks/{lecture.stem}.html")
    controls = page.locator(".explorer input[type=range]:enabled")
    assert controls.count() > 0
    for control in controls.all():
        answer = control.locator("xpath=ancestor::div[@class='explorer']").locator(".answer")
        before = answer.inner_html()
        control.focus()
        page.keyboard.press("ArrowRight")
        assert answer.inner_html() != before


@pytest.mark.parametrize("lecture", LECTURES, ids=lambda path: path.stem)
def test_a_page_is_light(lecture, address, browser):
    """Under 2 MB without its fonts, Font Awesome's icons among them, and mathematics."""
    page = browser.new_page()
    sizes = {}
    page.on("response", lambda answer: sizes.update({answer.url: len(answer.body())}))
    page.goto(f"{address}notebooks/{lecture.stem}.html", wait_until="networkidle")
    page.close()
    weights = {
        url: size
        for url, size in sizes.items()
        if not re.search(r"/mathjax/|/fontawesome\.js|\.woff2?(\?|$)", url)
    }
    assert len(weights) > 5
    assert sum(weights.values()) < 2e6, sorted(weights.items(), key=lambda item: -item[1])[:5]


def test_mathematics_is_set(address, open_page):
    page, seen = open_page(f"{address}notebooks/02_pruning.html")
    page.wait_for_selector("mjx-container", timeout=30_000)
    assert page.locator("mjx-container").count() > 20
    assert page.locator("mjx-merror").count() == 0
    assert not seen.complaints
