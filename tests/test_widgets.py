import re
from io import BytesIO

import matplotlib.image
import pandas as pd
import pytest
import torch
from torch import nn

from compresslab.assets import DATA
from compresslab.storage import save
from compresslab.widgets import (
    explore_memory,
    explore_sparsity,
    explore_structure,
    mask_picture,
    memory_report,
    sparsity_report,
    structure_picture,
    structure_report,
)

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


def run(sparsity: float) -> dict:
    return {"sparsity": sparsity, "value": 0.8, "low": 0.7, "high": 0.9}


def test_the_sparsity_explorer_prints_the_bytes_that_a_file_would_have(tmp_path):
    layer = nn.Linear(64, 96, bias=False)
    small = layer.weight.detach().abs().flatten().argsort()[: 96 * 64 // 2]
    layer.weight.data.view(-1)[small] = 0
    text = sparsity_report(layer.weight, run(0.5))
    assert "3,072 of 6,144 weights stay" in text
    for name in ("dense", "bitmap", "csr"):
        printed = int(re.search(rf"(?i){name}</td>.*?([\d,]+) kB", text)[1])
        assert abs(save(layer, tmp_path / name, encoding=name) / 1000 - printed) < 0.8  # header


def test_the_picture_is_white_where_a_weight_is_removed():
    weight = torch.tensor([[1.0, 0.1], [0.2, 2.0]])
    picture = matplotlib.image.imread(BytesIO(mask_picture(weight, 0.5, size=2)))
    white = (picture[::6, ::6, :3] == 1).all(-1)
    assert white.tolist() == [[False, True], [True, False]]


def test_moving_the_sparsity_changes_picture_and_text():
    explorer = explore_sparsity(torch.randn(8, 8), [run(0.1), run(0.5)])
    slider, (picture, answer) = explorer.children[0], explorer.children[1].children
    before = picture.value, answer.value
    slider.value = "50%"
    assert picture.value != before[0]
    assert answer.value != before[1]


def removed(fraction: float) -> dict:
    return run(0.0) | {"removed": fraction, "speedup": 1.25}


def test_neurons_leave_a_shorter_matrix_and_single_weights_one_with_holes():
    weight = torch.arange(1.0, 49.0).view(12, 4)
    shorter = matplotlib.image.imread(
        BytesIO(structure_picture(weight, removed(1 / 3), neurons=True, size=12))
    )
    holes = matplotlib.image.imread(
        BytesIO(structure_picture(weight, removed(1 / 3), neurons=False, size=12))
    )
    assert shorter.shape[:2] == (6 * 6, 4 * 6)  # a third of the encoder is half of the neurons
    assert holes.shape[:2] == (12 * 6, 4 * 6)
    assert not (shorter[..., :3] == 1).all(-1).any()
    assert (holes[::6, ::6, :3] == 1).all(-1).sum() == 16


@pytest.mark.parametrize(
    ("fraction", "neurons", "parts"),
    [
        (1 / 3, True, ["6 × 4", "67 %", "1.25 times"]),
        (1 / 3, False, ["12 × 4, 67% of it not zero", "70 %", "100 %"]),  # 2/3 + 1/32 by bitmap
        (0.99, False, ["1% of it", "2 %"]),  # 1.5 · 1 % by CSR
    ],
)
def test_the_structure_explorer_prints_shape_bytes_and_operations(fraction, neurons, parts):
    text = structure_report(torch.ones(12, 4), removed(fraction), neurons=neurons)
    assert all(part in text for part in parts), text


def test_the_structure_explorer_answers_both_controls():
    runs = {kind: [removed(0.1), removed(0.4)] for kind in ("single weights", "neurons")}
    explorer = explore_structure(torch.randn(12, 4), runs)
    shape, slider, box = explorer.children
    answer, seen = box.children[1], []
    for kind in runs:
        for fraction in ("10%", "40%"):
            shape.value, slider.value = kind, fraction
            seen.append(answer.value)
    assert len(set(seen)) == 4
