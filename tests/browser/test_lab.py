"""Each lecture in JupyterLab: its explorers run and moved, and presented with jupyterlab-deck.

What explorers do not need keeps its saved outputs: nbval runs all cells, in a kernel of the same
kind, and here it would take minutes more to see the same.
"""

import ast
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request

import nbformat
import pytest

from compresslab.assets import DATA, cache_folder

ROOT = DATA.parent
LECTURES = sorted((ROOT / "notebooks").glob("*.ipynb"))
SIZE = {"width": 1280, "height": 720}
MINUTE = 60_000

NOTEBOOK = "window.jupyterapp.shell.currentWidget.content"
READY = """async () => {  // what is run before that is lost
  const panel = window.jupyterapp.shell.currentWidget;
  await panel.context.ready;
  await panel.sessionContext.ready;
}"""
HAVE_RUN = f"""(cells) => cells.map((i) => {NOTEBOOK}.widgets[i].model)
  .every((cell) => cell.executionCount !== null && cell.executionState === "idle")"""

# Of the slide on the screen: its edges, whether another follows, and what it begins with.
SLIDE = """() => {
  const cells = [...document.querySelectorAll(".jp-Cell.jp-deck-mod-visible")];
  const boxes = cells.map((cell) => cell.getBoundingClientRect());
  const forward = document.querySelector(".jp-deck-mod-direction-forward");
  return {
    top: Math.min(...boxes.map((box) => box.top)),
    bottom: Math.max(...boxes.map((box) => box.bottom)),
    more: !forward.classList.contains("jp-mod-disabled"),
    text: cells[0].innerText.slice(0, 50),
  };
}"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address and folder of a JupyterLab with a copy of the lectures, what explorers need never
    run, and no user's settings."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in LECTURES:
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("widgets", None)
        for i in needed(notebook.cells, explorers_in(notebook.cells)):
            notebook.cells[i].outputs, notebook.cells[i].execution_count = [], None
        nbformat.write(notebook, folder / "notebooks" / path.name)
    shutil.copytree(ROOT / "docs", folder / "docs", ignore=shutil.ignore_patterns("_*"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"),
            *(f"--port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=test"),
            *(f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"),
        ],
        env=os.environ | own | {"HOME": str(folder), "COMPRESSLAB_CACHE": str(cache_folder())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    wait_for(f"{address}/api?token=test")
    yield address, folder
    process.terminate()
    process.wait(timeout=30)


def wait_for(address: str) -> None:
    for _ in range(240):
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            time.sleep(0.25)
    raise TimeoutError(address)


@pytest.fixture
def open_file(lab, browser, watch):
    address, _ = lab
    pages = []

    def open_(name: str):
        page = browser.new_page(viewport=SIZE)
        pages.append(page)
        seen = watch(page)
        page.goto(f"{address}/lab/tree/{name}?reset&token=test")
        page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=MINUTE)
        page.evaluate(READY)
        return page, seen

    yield open_
    for page in pages:
        page.close()


def execute(page, command: str) -> None:
    page.evaluate(f"() => {{ window.jupyterapp.commands.execute({command!r}) }}")


def go_to(page, cell: int) -> None:
    page.evaluate(f"{NOTEBOOK}.activeCellIndex = {cell}")
    page.evaluate(f"{NOTEBOOK}.scrollToItem({cell}, 'center')")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("lecture", LECTURES, ids=lambda path: path.stem)
def test_a_lecture_explores_and_presents(lecture, lab, open_file):
    address, folder = lab
    page, seen = open_file(f"notebooks/{lecture.name}")
    cells = nbformat.read(lecture, as_version=4).cells
    explorers = explorers_in(cells)
    assert explorers
    run = needed(cells, explorers)
    for i in run:
        go_to(page, i)
        execute(page, "notebook:run-cell")
    page.wait_for_function(HAVE_RUN, arg=run, timeout=5 * MINUTE)
    for cell in explorers:
        move_by_keyboard(page, cell)
    execute(page, "docmanager:save")
    walk_the_deck(page, explorers=len(explorers))
    assert not seen.elsewhere(address)
    saved = nbformat.read(folder / "notebooks" / lecture.name, as_version=4).cells
    for i in run:
        errors = [out for out in saved[i].outputs if out.output_type == "error"]
        assert not errors, saved[i].source


def explorers_in(cells) -> list[int]:
    return [i for i, c in enumerate(cells) if c.cell_type == "code" and "\nexplore_" in c.source]


def needed(cells, wanted: list[int]) -> list[int]:
    """The code cells that `wanted` ones rest on, and these: who binds a name that a later one of
    them reads. (What changes a value in place is not found: then an explorer fails here.)"""
    chosen, names = [], set()
    for i in reversed(range(len(cells))):
        if cells[i].cell_type == "code":
            reads, binds = uses(cells[i].source)
            if i in wanted or names & binds:
                chosen.insert(0, i)
                names = (names - binds) | reads
    return chosen


def uses(source: str) -> tuple[set[str], set[str]]:
    """The names that a cell reads from earlier ones, and those that it binds."""
    reads, binds = set(), set()
    for statement in ast.parse(source).body:
        loads, stores, inner = set(), set(), set()
        for node in ast.walk(statement):
            match node:
                case ast.Name(id=name, ctx=ast.Load()):
                    loads.add(name)
                case ast.Name(id=name) | ast.FunctionDef(name=name):
                    stores.add(name)
                case ast.alias(name=name, asname=other):
                    stores.add(other or name.partition(".")[0])
                case ast.arg(arg=name) | ast.comprehension(target=ast.Name(id=name)):
                    inner.add(name)
        assigned = isinstance(statement, ast.Assign | ast.AugAssign)  # x = f(x) reads x
        reads |= loads - binds - (inner if assigned else inner | stores)
        binds |= stores
    return reads, binds


def move_by_keyboard(page, cell: int) -> None:
    """Every control once, and each time the answer changes."""
    go_to(page, cell)
    output = page.locator(f'.jp-Cell[data-windowed-list-index="{cell}"] .jp-OutputArea')
    answer = output.locator(".answer")
    answer.wait_for()
    sliders = output.locator(".noUi-handle").all()
    buttons = output.locator(".widget-toggle-button").all()
    assert sliders
    keys = [*((slider, "ArrowRight") for slider in sliders), *((b, "Enter") for b in buttons)]
    for control, key in keys:
        if "mod-active" in control.get_attribute("class"):  # it is chosen already
            continue
        before = answer.inner_html()
        control.focus()
        began = time.perf_counter()
        page.keyboard.press(key)
        wait_for_change(answer, before)
        print(f"cell {cell}: a move takes {1000 * (time.perf_counter() - began):.0f} ms")


def walk_the_deck(page, *, explorers: int) -> None:
    """Every slide fits the screen, and each explorer answers the mouse."""
    go_to(page, 0)
    execute(page, "deck:start")
    page.wait_for_selector(".jp-Deck-Remote")
    too_tall, moved = [], set()
    while True:
        page.wait_for_timeout(60)
        slide = page.evaluate(SLIDE)
        if slide["top"] < 0 or slide["bottom"] > SIZE["height"]:
            too_tall.append(slide)
        for cell in page.locator(".jp-deck-mod-visible:has(.noUi-base)").all():
            number = cell.get_attribute("data-windowed-list-index")
            answer = cell.locator(".answer")
            before = answer.inner_html()
            if number not in moved:
                cell.locator(".noUi-base").first.click(position={"x": 5, "y": 2})
                wait_for_change(answer, before)
                moved.add(number)
        if not slide["more"]:
            break
        page.locator(".jp-deck-mod-direction-forward").click()
    assert not [(slide["text"], slide["bottom"] - slide["top"]) for slide in too_tall]
    assert len(moved) == explorers


def wait_for_change(answer, before: str) -> None:
    """The answer is a new element after a move."""
    for _ in range(600):
        if answer.inner_html() != before:
            return
        time.sleep(0.05)
    raise TimeoutError("the explorer did not answer")
