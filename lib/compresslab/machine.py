"""What this machine is, and how fast it computes and moves memory."""

import os
import platform
import re
import statistics
import time
from pathlib import Path

import psutil
import torch


def processor() -> str:
    """The processor's name, as far as the system tells."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        if match:
            return match[1]
    return platform.processor() or platform.machine()


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def resident_memory() -> int:
    """Bytes of RAM that this process holds now."""
    return psutil.Process().memory_info().rss


def memory_bandwidth(*, megabytes: int = 512, rounds: int = 9) -> float:
    """Bytes a second that this machine reads from memory: the median of summing a large vector.

    The vector has to be much larger than the processor's caches.
    """
    x = torch.ones(megabytes * 2**18)  # float32: 4 bytes an entry
    return _rate(lambda: x.sum(), x.nbytes, rounds)


def peak_flops(*, size: int = 2048, rounds: int = 9) -> float:
    """Floating-point operations a second of a square float32 matrix product: the median."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return _rate(lambda: a @ b, 2 * size**3, rounds)


def _rate(call, amount: float, rounds: int) -> float:
    call()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return amount / statistics.median(times)
