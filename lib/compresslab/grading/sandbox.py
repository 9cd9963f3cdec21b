"""Run a submission where it can do no harm: bubblewrap, and a watch over what it takes.

    why_not()                  None if the sandbox works on this machine, else the reason
    run(cells, calls)          what the cells print and what the calls give, as plain data
    talk(module, given, take)  a module in there: what it is given, its lines, its limits

Inside there is no network, no process but its own, the Python that runs it, the library, the
exercises and models, read-only, and a small /tmp in memory; no solutions, no hidden expectations,
no gradebook, no other submission. Time, memory, processes and output are limited from outside: what
exceeds a limit is killed with everything that it started, since it is alone in its process space.

A run that hangs or dies is begun anew without the cell in which it happened, or without the
function that was called, so that the other exercises are still graded.
"""

import contextlib
import json
import math
import os
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from ..assets import cache_folder
from .checks import EXERCISES

ROOT = EXERCISES.parent
LIBRARY = Path(__file__).parents[2]
GRACE = 3.0  # seconds in which a process may still stop by itself
FILES = 400_000_000  # bytes, at most, of a process that are a file's, such as torch's own code


@dataclass(frozen=True)
class Limits:
    """What one submission may take."""

    cell: float = 20.0  # seconds, of a cell, and of a call
    submission: float = 120.0  # seconds, all in all, second tries included
    memory: int = 3_000_000_000  # bytes, of all its processes together
    processes: int = 32  # threads are not counted
    disk: int = 50_000_000  # bytes in /tmp, which lie in memory
    output: int = 20_000_000  # bytes that it hands out


@dataclass(frozen=True)
class Failure:
    """Where a run stopped: `kind` is "cell", "call", or "start" for before the first cell."""

    kind: str
    index: int
    late: bool
    why: str


@dataclass
class Run:
    """What came of a submission.

    `printed` maps the index of a cell to the text that it printed and showed; `outcomes` a call's
    index to its outcome (`checks.outcome`, not to be believed but for its values); `failures` is
    what was left out, and `odd` what came over the channel without being asked for.
    """

    printed: dict[int, str] = field(default_factory=dict)
    outcomes: dict[int, dict] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    seconds: float = 0.0


def why_not() -> str | None:
    """None if submissions can be run safely here; else what is missing, and what to do."""
    if sys.platform != "linux":
        return "the sandbox needs Linux: grade in a virtual machine or a container with Linux"
    if not shutil.which("bwrap"):
        return "bubblewrap is not installed: apt install bubblewrap (or your system's way)"
    # All that a submission needs before its first cell, and the same library as out here.
    look = "import torch, IPython, compresslab.grading.runner as r; print(r.__file__)"
    tried = subprocess.run(
        [*_command(Limits()), sys.executable, "-I", "-c", look],
        capture_output=True,
        text=True,
        env=_environment(),
    )
    if tried.returncode:
        return f"nothing can be run in the sandbox: {tried.stderr.strip()[-300:]}"
    if tried.stdout.strip() != str(Path(__file__).with_name("runner.py")):
        return f"the sandbox runs another copy of the library: {tried.stdout.strip()}"
    return None


def run(
    cells: Sequence[tuple[int, str]],
    calls: Sequence[tuple[str, object]],
    *,
    limits: Limits,
    sandboxed: bool = True,
) -> Run:
    """Run the cells of a submission in order, then call its functions.

    Args:
        cells: index and source of each cell.
        calls: name of a function, and its encoded arguments.
        sandboxed: False runs the submission with all the rights of whoever grades.
    """
    result, start = Run(), time.monotonic()
    cells, left = list(cells), dict(enumerate(calls))
    while True:
        job = {
            "cells": [{"index": index, "source": source} for index, source in cells],
            "calls": [[i, *call] for i, call in left.items()],
            "seconds": limits.cell,
        }
        end = _once(job, result, limits, start + limits.submission, sandboxed)
        result.seconds = time.monotonic() - start
        if end.done:
            if len(result.outcomes) < len(calls):
                result.odd.append("the end, before every call was made")
            return result
        result.failures.append(Failure(*end.at, late=end.late, why=end.why))
        kind, index = end.at
        if kind == "start" or result.seconds >= limits.submission:
            return result
        if kind == "call":  # its other inputs would most likely do the same
            for i, (name, _) in left.items():
                if name == left[index][0]:
                    result.outcomes.setdefault(i, {"late": True} if end.late else {"died": True})
        failed = {failure.index for failure in result.failures if failure.kind == "cell"}
        cells = [(i, source) for i, source in cells if i not in failed]
        left = {i: call for i, call in left.items() if i not in result.outcomes}


@dataclass
class _End:
    """How far one process came, and why it ended there."""

    step: int = 0  # of `_steps`
    done: bool = False
    at: tuple[str, int] = ("start", 0)
    late: bool = False
    why: str = ""


def _once(job: dict, result: Run, limits: Limits, deadline: float, sandboxed: bool) -> _End:
    end, steps = _End(), _steps(job)
    end.late, end.why = talk(
        "compresslab.grading.runner",
        json.dumps(job).encode(),
        lambda line: _take(line, steps, job, result, end),
        limits=limits,
        deadline=deadline,
        sandboxed=sandboxed,
    )
    if not end.done and not end.why:
        end.why = "the process ended"
    if end.why:
        end.done = False
    return end


def talk(
    module: str,
    given: bytes,
    take: Callable[[bytes], bool],
    *,
    limits: Limits,
    deadline: float,
    sandboxed: bool = True,
) -> tuple[bool, str]:
    """Run a module in a process, write `given` to it, and pass on each line that it writes.

    Args:
        take: gets a line, and tells whether it was waited for: then the time of a cell begins anew.
        deadline: at which all ends, by `time.monotonic`.
        sandboxed: False runs the module with all the rights of whoever calls.

    Returns:
        Whether time was over, and which limit ended the process; or (False, "").
    """
    process = subprocess.Popen(
        [*(_command(limits) if sandboxed else []), sys.executable, "-I", "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=lambda: _limit_process(limits),
        # Not even bubblewrap itself may have ours: a submission can read it in /proc/1.
        env=_environment() if sandboxed else os.environ | _environment(),
    )
    threading.Thread(target=_feed, args=(process, given), daemon=True).start()
    # That Python starts slowly, on a machine that does much else, is nobody's fault.
    watch, began, patience = _Watch(process, limits), time.monotonic(), math.inf
    late, why, received, buffer = False, "", 0, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not why:
            ready = selector.select(timeout=0.1)
            now = time.monotonic()
            chunk = os.read(process.stdout.fileno(), 1 << 16) if ready else None
            if chunk == b"":
                break
            if chunk:
                received += len(chunk)
                *lines, buffer = (buffer + chunk).split(b"\n")
                for line in lines:
                    if take(line):
                        began, patience = now, limits.cell + GRACE
            why = watch.exceeded()
            if received > limits.output:
                why = f"it hands out more than {limits.output / 1e6:.0f} MB"
            if now > deadline:
                late, why = True, f"{limits.submission:.0f} seconds for all are over"
            elif now > began + patience:
                late, why = True, f"it runs for more than {limits.cell:.0f} seconds"
    _kill(process)
    return late, why


def _steps(job: dict) -> list[tuple[str, int, bool]]:
    """What the runner says, in order: each cell or call when it begins, and when it is done."""
    places = [("cell", cell["index"]) for cell in job["cells"]]
    places += [("call", call[0]) for call in job["calls"]]
    return [(*place, done) for place in places for done in (False, True)] + [("end", 0, True)]


def _take(line: bytes, steps: list, job: dict, result: Run, end: _End) -> bool:
    """Write what the runner says next into `result`, and move on. Anything else is odd, and moves
    nothing: neither the place nor the clock."""
    kind, index, done = steps[min(end.step, len(steps) - 1)]
    try:
        record = json.loads(line)
        if end.done or not _is_next(record, kind, index, done):
            raise ValueError("nobody asked for it")
    except (ValueError, RecursionError):
        if len(result.odd) < 5:
            result.odd.append(line[:80].decode("utf-8", errors="replace"))
        return False
    end.step += 1
    if kind == "end":
        end.done = True
        return True
    end.at = (kind, index)
    late = f"it runs for more than {job['seconds']:.0f} seconds"
    if kind == "cell" and done:
        result.printed[index] = "\n".join(filter(None, [record["stdout"], *record["shown"]]))
        if record["late"]:
            result.failures.append(Failure(kind, index, late=True, why=late))
    elif done:
        result.outcomes[index] = record["outcome"]
        if record["outcome"] == {"late": True}:
            result.failures.append(Failure(kind, index, late=True, why=late))
    return True


def _is_next(record: object, kind: str, index: int, done: bool) -> bool:
    if kind == "end" or not done:
        return record == ({"end": True} if kind == "end" else {kind: index})
    if not isinstance(record, dict) or record.get(kind) != index:
        return False
    if kind == "call":
        return record.keys() == {"call", "outcome"} and _is_outcome(record["outcome"])
    return (
        record.keys() == {"cell", "stdout", "shown", "late"}
        and isinstance(record["late"], bool)
        and isinstance(record["shown"], list)
        and all(isinstance(text, str) for text in [record["stdout"], *record["shown"]])
    )


def _is_outcome(found: object) -> bool:
    """Whether it is what `checks.outcome` or the runner says of a call, with nothing missing."""
    if not isinstance(found, dict):
        return False
    if found.keys() == {"raises", "message"} or found.keys() == {"refused"}:
        return all(isinstance(text, str) for text in found.values())
    return found.keys() == {"value", "arguments"} or found in ({"late": True}, {"missing": True})


def _feed(process: subprocess.Popen, data: bytes) -> None:
    with contextlib.suppress(OSError):
        process.stdin.write(data)
        process.stdin.close()


class _Watch:
    """Looks at the processes of a submission now and then."""

    def __init__(self, process: subprocess.Popen, limits: Limits):
        self.process, self.limits, self.last = process, limits, 0.0

    def exceeded(self) -> str:
        """Which limit is exceeded, or nothing."""
        if time.monotonic() < self.last + 0.1:
            return ""
        self.last = time.monotonic()
        try:
            family = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.Error:
            return ""
        if len(family) > self.limits.processes:
            return f"it starts more than {self.limits.processes} processes"
        memory = 0
        for process in family:
            with contextlib.suppress(psutil.Error):
                memory += process.memory_info().rss
        if memory > self.limits.memory:
            return f"it takes more than {self.limits.memory / 1e9:.1f} GB of memory"
        return ""


def _kill(process: subprocess.Popen) -> None:
    """End the sandbox; the kernel ends all that lives in it."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.stdout.close()
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.wait()


def _limit_process(limits: Limits) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    # Below what the grader looks for from outside, so that a cell that takes too much gets Python's
    # MemoryError at once: seen from outside it would be a little later, and the next answer blamed.
    resource.setrlimit(resource.RLIMIT_DATA, (limits.memory - FILES,) * 2)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limits.disk, limits.disk))
    resource.setrlimit(resource.RLIMIT_CPU, (int(limits.submission) + 5,) * 2)


def _environment() -> dict[str, str]:
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": "/tmp",
        "LANG": "C.UTF-8",
        "MPLBACKEND": "agg",
        "OMP_NUM_THREADS": "1",
        "IPYTHONDIR": "/tmp/ipython",
        "COMPRESSLAB_CACHE": str(cache_folder()),
    }


def _command(limits: Limits) -> list[str]:
    """bubblewrap's command line, before what is to be run."""
    command = [shutil.which("bwrap") or "bwrap", "--unshare-all", "--unshare-user"]
    command += ["--disable-userns", "--die-with-parent", "--new-session", "--clearenv"]
    command += ["--cap-drop", "ALL", "--uid", "65534", "--gid", "65534", "--hostname", "sandbox"]
    for name, value in _environment().items():
        command += ["--setenv", name, value]
    for path in ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/lib32"):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    command += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    command += ["--proc", "/proc", "--dev", "/dev"]
    for path in ("/tmp", "/dev/shm"):
        command += ["--size", str(limits.disk), "--tmpfs", path]
    command += ["--remount-ro", "/dev"]
    readable = {Path(sys.prefix), Path(sys.base_prefix), LIBRARY, EXERCISES, ROOT / "data"}
    readable |= {cache_folder()}
    for path in sorted(readable):
        if path.exists() and not path.is_relative_to("/usr"):
            command += ["--ro-bind", str(path), str(path)]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]
