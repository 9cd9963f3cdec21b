import os
from types import SimpleNamespace

import pytest
import torch

from compresslab import machine


def test_processor_is_read_from_cpuinfo(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("vendor\t: X\nmodel name\t: Fast CPU @ 3 GHz\nmodel name\t: Other\n")
    monkeypatch.setattr(machine, "Path", lambda path: cpuinfo)
    assert machine.processor() == "Fast CPU @ 3 GHz"


@pytest.mark.parametrize("text", [None, "Hardware\t: a board without a model name\n"])
def test_processor_falls_back_to_the_platform(monkeypatch, tmp_path, text):
    cpuinfo = tmp_path / "cpuinfo"
    if text is not None:
        cpuinfo.write_text(text)
    monkeypatch.setattr(machine, "Path", lambda path: cpuinfo)
    monkeypatch.setattr(machine.platform, "processor", lambda: "")
    monkeypatch.setattr(machine.platform, "machine", lambda: "riscv64")
    assert machine.processor() == "riscv64"


def test_processor_of_this_machine_has_a_name():
    assert isinstance(machine.processor(), str)
    assert machine.processor().strip()


def test_cores_are_those_that_the_process_may_use(monkeypatch):
    assert 1 <= machine.cores() <= os.cpu_count()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    assert machine.cores() == 3
    monkeypatch.delattr(os, "sched_getaffinity")
    assert machine.cores() == os.cpu_count()


def test_resident_memory_grows_with_what_is_held():
    before = machine.resident_memory()
    held = torch.ones(2**25)
    assert 0.9 * held.nbytes < machine.resident_memory() - before < 1.5 * held.nbytes


@pytest.mark.parametrize(
    ("measure", "amount"),
    [
        (lambda: machine.memory_bandwidth(megabytes=2, rounds=3), 2 * 2**20),
        (lambda: machine.peak_flops(size=16, rounds=3), 2 * 16**3),
    ],
    ids=["bandwidth", "flops"],
)
def test_rate_is_the_amount_over_the_median_time(monkeypatch, measure, amount):
    ticks = iter([0.0, 1.0, 1.0, 5.0, 5.0, 7.0])  # three calls of 1, 4 and 2 seconds
    monkeypatch.setattr(machine, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert measure() == amount / 2


def test_rates_of_this_machine_are_positive():
    for rate in (
        machine.memory_bandwidth(megabytes=4, rounds=3),
        machine.peak_flops(size=64, rounds=3),
    ):
        assert isinstance(rate, float)
        assert 0 < rate < float("inf")
