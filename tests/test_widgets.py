import re

import pandas as pd
import pytest

from compresslab.assets import DATA
from compresslab.widgets import explore_memory, memory_report

DEVICES = pd.read_csv(DATA / "devices.csv")


def fitting(**choice) -> int:
    return memory_report(DEVICES, **choice).count("✔")


BASE = {"parameters": 8e9, "bits": 16, "context": 4096, "batch": 1}


@pytest.mark.parametrize(("name", "less", "more"), [
    ("parameters", 1e9, 70e9), ("bits", 4, 32), ("context", 128, 131072), ("batch", 1, 256),
])  # fmt: skip
def test_more_of_anything_never_fits_on_more_devices(name, less, more):
    assert fitting(**BASE | {name: less}) >= fitting(**BASE | {name: more})


def test_it_prints_the_sum_it_draws():
    text = memory_report(DEVICES, **BASE)
    # 8 · 10⁹ · 2 bytes, and 2 · 34 layers · 8 heads · 128 · 4096 tokens · 2 bytes
    assert "weights 16 GB + KV cache 570 MB = 16.6 GB" in text
    assert text.count("<tr>") == len(DEVICES) + 1


def test_only_a_device_that_holds_the_model_has_a_speed():
    for line in re.findall(r"<tr>.*?</tr>", memory_report(DEVICES, **BASE))[1:]:
        speed = re.search(r"text-align:right'>([^<]*)</td></tr>", line)[1]
        assert bool(speed) == ("✔" in line)


def test_moving_a_slider_changes_the_answer():
    explorer = explore_memory()
    _, bits, *_, answer = explorer.children
    before = answer.value
    bits.value = 4
    assert answer.value != before
    assert "at 4 bits" in answer.value


def test_every_control_has_a_name():
    *controls, _ = explore_memory().children
    assert [c.description for c in controls] == [
        "parameters", "bits a weight", "context", "sequences at once",
    ]  # fmt: skip
