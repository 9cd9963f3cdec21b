"""What runs inside the sandbox: the cells of a submission, then the calls that are to be graded.

    {"cells": [...], "calls": [[function, arguments], ...], ...} on stdin
    a line of JSON for each thing that happens, on stdout

Nothing that this process says is believed: it shares its memory with a student's code. It only
hands over values, which the grader compares (`checks.verdict`) with its own.
"""

import contextlib
import json
import os
import signal
import sys

LONGEST = 20_000  # characters of an output that are shown


class TooLong(KeyboardInterrupt):
    """A cell or a call that ran out of time; IPython takes it as an interrupt."""


def main() -> None:
    job = json.load(sys.stdin)
    # What a student prints must not get between the lines: they have a channel of their own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)

    def say(**record) -> None:
        channel.write(json.dumps(record) + "\n")
        channel.flush()

    signal.signal(signal.SIGALRM, _stop)
    space = _run_cells(job["cells"], job["seconds"], say)
    _make_calls(space, job["calls"], job["seconds"], say)
    say(end=True)
    os._exit(0)  # threads and handlers that a student left behind do not keep us


def _stop(*_) -> None:
    raise TooLong


@contextlib.contextmanager
def _limit(seconds: float):
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _run_cells(cells: list[dict], seconds: float, say) -> dict:
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    # No history: it would be a file, and a full disk would end us.
    shell = InteractiveShell.instance(
        colors="nocolor", config=Config({"HistoryManager": {"enabled": False}})
    )
    for cell in cells:
        say(cell=cell["index"])
        with capture_output() as captured, _limit(seconds):
            result = shell.run_cell(cell["source"], store_history=True)
        problem = result.error_before_exec or result.error_in_exec
        say(
            cell=cell["index"],
            stdout=captured.stdout[:LONGEST],
            shown=[_text(output) for output in captured.outputs[:20]],
            late=isinstance(problem, TooLong),
        )
    return shell.user_ns


def _text(output) -> str:
    return str(output.data.get("text/plain", ""))[:LONGEST]


def _make_calls(space: dict, calls: list, seconds: float, say) -> None:
    from compresslab.grading.checks import outcome

    late = set()  # functions that ran out of time: their other inputs would most likely, too
    for index, name, arguments in calls:
        say(call=index)
        if name in late:
            say(call=index, outcome={"late": True})
            continue
        function = space.get(name)
        if not callable(function):
            say(call=index, outcome={"missing": True})
            continue
        try:
            with _limit(seconds):
                found = outcome(function, arguments)
        except TooLong:
            found = {"late": True}
            late.add(name)
        say(call=index, outcome=found)


if __name__ == "__main__":
    main()
