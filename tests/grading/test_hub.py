"""A class on JupyterHub, on this machine: release, fetch, submit, collect, grade."""

import getpass
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from synthetic_class import NAME, solved

from compresslab.grading import sandbox
from compresslab.grading.checks import EXERCISES
from compresslab.grading.grade import grade_class
from compresslab.grading.release import ROOT, SOLUTIONS

BIN = Path(sys.executable).parent
PROXY = shutil.which("configurable-http-proxy") or shutil.which(
    "configurable-http-proxy", path=ROOT / "node_modules" / ".bin"
)
WHY_NOT = sandbox.why_not() or (None if PROXY else "no configurable-http-proxy: install npm")
pytestmark = pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT))


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Hub:
    def __init__(self, folder: Path):
        self.folder, self.port, self.token = folder, free_port(), secrets.token_hex()
        self.exchange, self.course, self.home = (folder / n for n in ("exchange", "course", "home"))
        for path in (self.exchange, self.home, folder / "etc"):
            path.mkdir()
        self.exchange.chmod(0o777)
        shutil.copytree(EXERCISES, self.course / "exercises")
        # The configuration as it is shipped, and after it what a test has otherwise: its own
        # folders, and nobody's real account.
        (folder / "etc" / "nbgrader_config.py").write_text(
            (SOLUTIONS / "hub" / "nbgrader_config.py").read_text()
            + f"c.Exchange.root = {str(self.exchange)!r}\n"
            + f"c.CourseDirectory.root = {str(self.course)!r}\n"
        )
        (folder / "jupyterhub_config.py").write_text(
            f"load_subconfig({str(SOLUTIONS / 'hub' / 'jupyterhub_config.py')!r})\n"
            f"c.JupyterHub.bind_url = 'http://127.0.0.1:{self.port}'\n"
            f"c.JupyterHub.hub_port = {free_port()}\n"
            f"c.ConfigurableHTTPProxy.api_url = 'http://127.0.0.1:{free_port()}'\n"
            f"c.ConfigurableHTTPProxy.command = {PROXY!r}\n"
            "c.JupyterHub.authenticator_class = 'dummy'\n"
            "c.JupyterHub.spawner_class = 'simple'\n"
            f"c.Spawner.environment = {{'JUPYTER_CONFIG_PATH': {str(folder / 'etc')!r}}}\n"
            f"c.SimpleLocalProcessSpawner.home_dir_template = {str(self.home)!r}\n"
            f"c.Spawner.args += {['--allow-root'] if os.getuid() == 0 else []}\n"
            f"c.JupyterHub.services = [dict(name='test', api_token={self.token!r})]\n"
            "c.JupyterHub.load_roles = [dict(name='test', services=['test'],"
            " scopes=['admin:users', 'admin:servers', 'access:servers'])]\n"
        )
        self.environment = os.environ | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "HOME": str(folder),
            "JUPYTER_CONFIG_PATH": str(folder / "etc"),
        }
        self.log = (folder / "hub.log").open("w")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "jupyterhub", "-f", str(folder / "jupyterhub_config.py")],
            cwd=folder,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def ask(self, path: str, data: dict | None = None, *, method: str | None = None):
        """The JSON that the hub, or a server behind it, answers."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/{path}",
            data=None if data is None else json.dumps(data).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
            method=method,
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def wait_for(self, path: str, ready, *, seconds: float = 90):
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            try:
                answer = self.ask(path)
                if ready(answer):
                    return answer
            except (urllib.error.URLError, ConnectionError):
                pass
            time.sleep(0.3)
        raise AssertionError(f"{path} does not answer:\n{(self.folder / 'hub.log').read_text()}")

    def instructor(self, *command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "nbgrader", *command],
            cwd=self.course,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stderr

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=60)
        self.log.close()


@pytest.fixture
def hub(tmp_path):
    hub = Hub(tmp_path)
    try:
        yield hub
    finally:
        hub.stop()


def test_an_assignment_goes_out_and_comes_back_graded(hub):
    hub.wait_for("hub/api/", lambda answer: "version" in answer)
    hub.instructor("release_assignment", NAME)

    # A student logs in, and finds the assignment in the list.
    hub.ask("hub/api/users/ada", {}, method="POST")
    hub.ask("hub/api/users/ada/server", {}, method="POST")
    hub.wait_for("hub/api/users/ada", lambda user: user["servers"].get("", {}).get("ready"))
    listed = hub.ask("user/ada/assignments?course_id=compression")
    assert listed["success"], listed["value"]
    assert [entry["assignment_id"] for entry in listed["value"]] == [NAME]

    own = {"course_id": "compression", "assignment_id": NAME}
    assert hub.ask("user/ada/assignments/fetch", own)["success"]
    notebook = hub.home / NAME / f"{NAME}.ipynb"
    assert (hub.home / NAME / "checks.json").exists()
    nbformat.write(solved(), notebook)
    assert hub.ask("user/ada/assignments/submit", own)["success"]

    hub.instructor("collect", NAME)
    records = grade_class(hub.course / "grading" / "submitted", hub.course / "grading")
    (record,) = records
    assert record["student"] == getpass.getuser()  # the exchange goes by the system's account
    assert record["state"] == "graded"
    assert sum(entry["points"] for entry in record["exercises"].values()) == 16
