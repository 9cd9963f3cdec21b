"""A person grades in nbgrader's formgrader, on the gradebook that grading leaves."""

import csv
import json
import os
import re
import secrets
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import nbformat
import pytest
from synthetic_class import NAME, Submission, changed, place, write
from test_hub import free_port

from compresslab.grading import sandbox
from compresslab.grading.grade import grade_class

pytestmark = pytest.mark.skipif(sandbox.why_not() is not None, reason="no sandbox")


class Formgrader:
    """JupyterLab in the folder of results, as the instructor's page says, without a browser."""

    def __init__(self, folder: Path, home: Path):
        self.port, self.token = free_port(), secrets.token_hex()
        command = [sys.executable, "-m", "jupyterlab", "--no-browser", f"--port={self.port}"]
        command += [f"--IdentityProvider.token={self.token}"]
        command += ["--allow-root"] if os.getuid() == 0 else []
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = os.environ | {"HOME": str(home), "PATH": path}
        self.log = (home / "lab.log").open("w")
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=self.log, stderr=subprocess.STDOUT
        )

    def ask(self, path: str, data: dict | None = None):
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/formgrader/{path}",
            data=None if data is None else json.dumps(data).encode(),
            headers={"Authorization": f"token {self.token}", "Content-Type": "application/json"},
            method="GET" if data is None else "PUT",
        )
        for _ in range(120):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:
                    body = answer.read().decode()
                return json.loads(body) if path.startswith("api/") else body
            except (urllib.error.URLError, ConnectionError) as error:
                if isinstance(error, urllib.error.HTTPError):
                    raise
                time.sleep(0.5)
        raise AssertionError(Path(self.log.name).read_text())

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(timeout=30)
        self.log.close()


def test_points_and_comments_of_a_person_come_into_the_table_and_the_page(tmp_path):
    def attack(notebook):
        script = "<script>window.bad = 1</script><img src=x onerror=bad()> [x](javascript:bad())"
        script += " [y](java&#115;cript:bad()) [z][1] [w](https://example.org)"
        script += "\n\n[1]: javascript:bad()"
        notebook.cells[place(notebook, "question_1")].source += script
        notebook.cells.append(nbformat.v4.new_markdown_cell(script))
        html = nbformat.v4.new_output("display_data", data={"text/html": script})
        notebook.cells[place(notebook, "profile_run")].outputs = [html]

    one = Submission("Ada Right", changed(attack))
    source, target = write(tmp_path / "in", [one]), tmp_path / "out"
    grade_class(source, target)
    formgrader = Formgrader(target, tmp_path)
    try:
        (notebook,) = formgrader.ask(f"api/submitted_notebooks/{NAME}/{NAME}")
        assert notebook["needs_manual_grade"]
        page = formgrader.ask(f"submissions/{notebook['id']}/")
        assert "Attention, since its share is the larger one." in page
        assert "instant check: all right" in page
        # A student's script would have the rights of whoever grades.
        assert "window.bad = 1" in page
        assert "<script>window.bad" not in page
        assert "<img src=x" not in page
        assert not re.search(r'href="java', page)
        assert 'href="https://example.org"' in page

        grades = formgrader.ask(f"api/grades?submission_id={notebook['id']}")
        points = {"question_1": (1.5, 0), "question_2": (2, 0.5), "check_amdahl": (1, 0)}
        for grade in grades:
            if grade["name"] in points:
                manual, extra = points[grade["name"]]
                data = {"manual_score": manual, "extra_credit": extra}
                formgrader.ask(f"api/grade/{grade['id']}", data)
        for comment in formgrader.ask(f"api/comments?submission_id={notebook['id']}"):
            says = {"question_1": "On which machine?", "amdahl": "Nice and short."}
            if comment["name"] in says:
                data = {"manual_comment": says[comment["name"]]}
                formgrader.ask(f"api/comment/{comment['id']}", data)
    finally:
        formgrader.stop()

    grade_class(source, target)
    (row,) = csv.DictReader((target / "grades.csv").open(encoding="utf-8"))
    assert (row["automatic"], row["written"], row["waiting"]) == ("15.0", "4.0", "0")
    assert row["total"] == "19.0"
    page = (target / "feedback" / NAME / "1001.html").read_text(encoding="utf-8")
    assert "On which machine?" in page
    assert "Nice and short." in page
    assert "A person has set the points." in page
