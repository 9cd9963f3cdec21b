"""`make lab` as a student types it, on an installed machine, with the network unplugged."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from compresslab.assets import DATA, cache_folder

ROOT = DATA.parent
UNPLUG = ["unshare", "--user", "--map-root-user", "--net"]


def can_unplug() -> bool:
    return bool(shutil.which("unshare")) and not subprocess.run([*UNPLUG, "true"]).returncode


def jupyter_environment(folder: Path) -> dict[str, str]:
    """The environment, with Jupyter's own folders in `folder` and no browser to open."""
    own = {
        f"JUPYTER_{name}": str(folder / name) for name in ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
    }
    return os.environ | own | {"BROWSER": "no-browser-here", "HOME": str(folder), "MAKEFLAGS": ""}


@pytest.fixture
def lab(tmp_path):
    """The running `make lab` and the address it prints."""
    process = subprocess.Popen(
        ["make", "lab"],
        cwd=ROOT,
        env=jupyter_environment(tmp_path) | {"COMPRESSLAB_CACHE": str(cache_folder())},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    address, seen = None, []
    for line in process.stdout:
        seen.append(line)
        match = re.search(r"http://127\.0\.0\.1:\d+/lab\S*", line)
        if match:
            address = match[0]
            break
    yield address, "".join(seen)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=30)


def read(address: str) -> bytes:
    """The page at `address`; the server prints the address a moment before it answers."""
    for _ in range(60):
        try:
            with urllib.request.urlopen(address, timeout=30) as page:
                return page.read()
        except urllib.error.URLError:
            time.sleep(0.5)
    raise TimeoutError(address)


@pytest.mark.skipif(not (ROOT / ".venv" / "lab").exists(), reason="make lab has not been run")
def test_make_lab_prints_the_address_of_the_first_lecture(lab):
    address, output = lab
    assert address, output
    assert "01_motivation.ipynb" in address
    page = read(address)
    assert b"JupyterLab" in page


@pytest.mark.skipif(not can_unplug(), reason="this system lets nobody unplug the network")
def test_everything_loads_with_the_network_unplugged():
    program = (
        "from compresslab import assets, corpora, models\n"
        "assert assets.main() == 0\n"
        "corpora.load_reviews(), corpora.load_transfer('news'), corpora.load_articles()\n"
        "models.load_classifier(), models.load_language_model()\n"
        "import socket\n"
        "try: socket.create_connection(('1.1.1.1', 53), timeout=2)\n"
        "except OSError: print('unplugged')\n"
    )
    command = [*UNPLUG, sys.executable, "-c", program]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "unplugged"


def test_make_grade_asks_what_to_grade():
    done = subprocess.run(["make", "--dry-run", "grade"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "What is to be graded? make grade FROM=" in done.stderr
