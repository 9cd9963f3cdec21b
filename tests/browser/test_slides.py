"""Each deck as `make slides` builds it, walked through in a browser that has the file alone."""

import importlib.util
import itertools
import re

import nbformat
import pytest
from test_glossary import mathematics

from compresslab.assets import DATA

ROOT = DATA.parent
LECTURES = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIZE = {"width": 1280, "height": 720}

if not (ROOT / "node_modules").exists():
    pytest.skip("no node_modules: install npm", allow_module_level=True)

spec = importlib.util.spec_from_file_location("build_slides", ROOT / "docs/slides/build.py")
build = importlib.util.module_from_spec(spec)
spec.loader.exec_module(build)

# Right and lower edge of what is seen of the present slide.
EDGES = """() => {
  const slide = Reveal.getCurrentSlide();
  const boxes = [...slide.querySelectorAll("*")]
    .filter((element) => !element.closest("aside, mjx-assistive-mml"))
    .map((element) => element.getBoundingClientRect())
    .filter((box) => box.width && box.height);
  return [Math.max(...boxes.map((b) => b.right)), Math.max(...boxes.map((b) => b.bottom))];
}"""


@pytest.fixture(scope="module")
def decks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slides")
    assert build.main(folder) == 0
    return folder


@pytest.fixture(scope="module", params=LECTURES, ids=lambda path: path.stem)
def lecture(request):
    return request.param


@pytest.fixture(scope="module")
def opened(lecture, decks, browser, watch):
    """The page of a deck, ready, and what it does. To load it takes longer than most tests."""
    page = browser.new_page(viewport=SIZE)
    seen = watch(page)
    page.goto((decks / f"{lecture.stem}.html").as_uri())
    page.wait_for_function("window.Reveal?.isReady()", timeout=60_000)
    yield page, seen
    page.close()


@pytest.fixture
def deck(opened):
    """The same on its first slide."""
    page, seen = opened
    page.evaluate("document.activeElement.blur(), Reveal.slide(0)")
    return page, seen


def slides_of(lecture) -> list[list]:
    """The cells of each slide, without those that no slide shows."""
    slides = []
    for cell in nbformat.read(lecture, as_version=4).cells:
        role = build.role(cell)
        if role == "slide":
            slides.append([])
        if role not in ("skip", "notes"):
            slides[-1].append(cell)
    return slides


def walk(page):
    """Every slide in turn, and on it what comes with another press of a key."""
    while True:
        yield
        if page.evaluate("Reveal.isLastSlide() && !Reveal.availableFragments().next"):
            return
        page.keyboard.press("Space")


def test_every_slide_fits_its_screen_and_nothing_is_fetched(deck, decks, lecture):
    page, seen = deck
    too_large, walked = [], set()
    for _ in walk(page):
        number = page.evaluate("Reveal.getIndices().h")
        walked.add(number)
        right, bottom = page.evaluate(EDGES)
        if right > SIZE["width"] or bottom > SIZE["height"]:
            text = page.evaluate("Reveal.getCurrentSlide().innerText.trim().slice(0, 50)")
            too_large.append((number, round(right), round(bottom), text))
    assert not too_large
    assert walked == set(range(len(slides_of(lecture))))
    assert not seen.complaints
    assert not seen.elsewhere(decks.as_uri())


def test_mathematics_is_set_and_every_picture_has_its_alt_text(deck, lecture):
    page, _ = deck
    formulas = [
        formula
        for slide in slides_of(lecture)
        for cell in slide
        if cell.cell_type == "markdown"
        for formula in mathematics(cell.source)
    ]
    assert formulas
    assert page.locator(".slides mjx-container:not(aside *)").count() == len(formulas)
    assert page.locator("[data-mjx-error], mjx-merror").count() == 0
    alts = page.eval_on_selector_all(".slides img", "images => images.map(i => i.alt)")
    figures = sum("plots.show(" in c.source for slide in slides_of(lecture) for c in slide)
    assert len(alts) >= figures
    assert min(map(len, alts)) > 40


def test_explorers_move_without_a_kernel(deck):
    page, _ = deck
    explorers = page.locator(".explorer")
    assert explorers.count() > 0
    for _ in walk(page):
        for explorer in page.locator("section.present .explorer").all():
            answer = explorer.locator(".answer")
            controls = explorer.locator("input[type=range]:enabled")
            assert controls.count() > 0
            for control in controls.all():
                before, value = answer.inner_html(), control.input_value()
                control.focus()
                page.keyboard.press("ArrowRight")
                assert control.input_value() == str(int(value) + 1)
                assert answer.inner_html() != before
                label = control.locator("xpath=following-sibling::output").inner_text()
                assert label in answer.inner_text()  # an explorer prints the values it was given


def test_a_prediction_comes_before_its_result(deck, lecture):
    page, _ = deck
    asked = [
        slide
        for slide in slides_of(lecture)
        for cell, following in itertools.pairwise(slide)
        if cell.cell_type == "markdown" and "*Predict" in cell.source
        if following.cell_type == "code"
    ]
    assert asked
    assert page.locator(".fragment").count() >= len(asked)


def test_the_presenter_sees_the_notes_and_the_class_does_not(deck, lecture):
    page, _ = deck
    assert not page.locator("aside.notes").first.is_visible()
    with page.expect_popup() as opened:
        page.keyboard.press("s")
    presenter = opened.value
    presenter.wait_for_selector(".speaker-controls-notes:not(.hidden)", timeout=30_000)
    assert "Plan for 2 × 45 minutes" in presenter.locator(".speaker-controls-notes").inner_text()
    presenter.close()


def test_it_prints_a_page_for_each_slide(lecture, decks, browser):
    page = browser.new_page()
    page.goto((decks / f"{lecture.stem}.html").as_uri() + "?view=print")
    page.wait_for_function("window.Reveal?.isReady()", timeout=60_000)
    page.wait_for_timeout(2000)  # pages are made one after the other
    slide = page.locator(".pdf-page section:not(.stack)").first
    assert slide.evaluate("slide => getComputedStyle(slide).paddingLeft") == "56px"
    pdf = page.pdf(prefer_css_page_size=True)
    page.close()
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == len(slides_of(lecture))


def test_every_slide_of_a_section_has_its_notes_and_no_other():
    def cell(source, role=None):
        metadata = {"slideshow": {"slide_type": role}} if role else {}
        return nbformat.v4.new_markdown_cell(source, metadata=metadata)

    title, a, more = cell("# Title", "slide"), cell("## A", "slide"), cell("more of it")
    second, of_a = cell("second", "slide"), cell("of A", "notes")
    b, read, of_b = cell("## B", "slide"), cell("read", "skip"), cell("of B", "notes")
    given = build.with_notes_on_every_slide([title, a, more, second, of_a, b, read, of_b])
    sources = [cell.source for cell in given]
    assert sources == [
        "# Title",
        "## A",
        "more of it",
        "of A",
        "second",
        "of A",
        "## B",
        "read",
        "of B",
    ]


def test_a_link_to_another_file_of_the_course_is_left_as_its_text():
    text = "a [**term**](../docs/glossary.md#term), [$N$](../docs/notation.md#x), [Li](https://x.y)"
    assert build.without_links_to_files(text) == "a **term**, $N$, [Li](https://x.y)"
    image = "![a map](../data/map.png)"
    assert build.without_links_to_files(image) == image
