"""Each lecture in JupyterLab: run, its explorers moved, and presented with jupyterlab-deck."""

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
HAS_RUN = f"""() => {NOTEBOOK}.widgets.filter((cell) => cell.model.type === "code")
  .every((cell) => cell.model.executionCount !== null && cell.model.executionState === "idle")"""

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
    """Address and folder of a JupyterLab with a copy of the lectures, never run, and no user's
    settings."""
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for path in LECTURES:
        notebook = nbformat.read(path, as_version=4)
        notebook.metadata.pop("widgets", None)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
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
def test_a_lecture_runs_explores_and_presents(lecture, lab, open_file):
    address, folder = lab
    page, seen = open_file(f"notebooks/{lecture.name}")
    execute(page, "notebook:run-all-cells")
    page.wait_for_function(HAS_RUN, timeout=5 * MINUTE)
    explorers = explorers_in(lecture)
    assert explorers
    for cell in explorers:
        move_by_keyboard(page, cell)
    execute(page, "docmanager:save")
    walk_the_deck(page, explorers=len(explorers))
    assert not seen.elsewhere(address)
    for cell in nbformat.read(folder / "notebooks" / lecture.name, as_version=4).cells:
        if cell.cell_type == "code":
            assert not [out for out in cell.outputs if out.output_type == "error"], cell.source


def explorers_in(lecture) -> list[int]:
    cells = nbformat.read(lecture, as_version=4).cells
    return [i for i, c in enumerate(cells) if c.cell_type == "code" and "\nexplore_" in c.source]


def move_by_keyboard(page, cell: int) -> None:
    """Every control once, and each time the answer changes."""
    go_to(page, cell)
    output = page.locator(f'.jp-Cell[data-windowed-list-index="{cell}"] .jp-OutputArea')
    answer = output.locator(".answer")
    answer.wait_for()
    sliders = output.locator(".noUi-handle").all()
    buttons = output.locator(".widget-toggle-button").all()
    assert sliders
    keys = [*((slider, "ArrowRight") for slider in sliders), *((b, "Enter") for b in buttons[1:])]
    for control, key in keys:
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
