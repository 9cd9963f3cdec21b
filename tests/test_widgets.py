import math
import re
from base64 import b64decode
from io import BytesIO

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from compresslab.assets import DATA
from compresslab.quantization.affine import fake_quantize, quantize_tensor
from compresslab.quantization.floats import FLOAT8_E4M3
from compresslab.quantization.linear import PackedLinear
from compresslab.scoreboard import pack_bits
from compresslab.sharing.codebooks import CodebookLinear, cluster
from compresslab.storage import save
from compresslab.widgets import (
    attention_picture,
    attention_report,
    choice_report,
    codebook_picture,
    codebook_report,
    error_picture,
    explore_attention,
    explore_choice,
    explore_codebook,
    explore_memory,
    explore_outliers,
    explore_quantization,
    explore_rank,
    explore_rounding,
    explore_sparsity,
    explore_structure,
    explore_temperature,
    mask_picture,
    matrix_picture,
    memory_report,
    outlier_picture,
    quantization_report,
    rank_report,
    rank_speeds,
    rounding_report,
    sparsity_report,
    spectrum_picture,
    structure_picture,
    structure_report,
    temperature_report,
)

DEVICES = pd.read_csv(DATA / "devices.csv")


def pixels(img: str):
    """Colours of the picture in an <img>."""
    return matplotlib.image.imread(BytesIO(b64decode(re.search(r"base64,([^\"]+)", img)[1])))


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
    for line in memory_report(DEVICES, **BASE).split("<tr>")[2:]:
        speed = line.removesuffix("</table></div>").rpartition('<td class="number">')[2]
        assert bool(speed) == ("✔" in line), line


def test_the_memory_explorer_answers_every_control():
    explorer = explore_memory()
    for name, value, printed in [
        ("parameters", 70e9, "70 B parameters"),
        ("bits", 4, "at 4 bits"),
        ("context", 8192, "8,192 tokens"),
        ("batch", 16, "16 × "),
    ]:
        assert printed not in explorer.shown.value
        explorer.controls[name].value = value
        assert printed in explorer.shown.value


def run(sparsity: float) -> dict:
    return {"sparsity": sparsity, "value": 0.8, "low": 0.7, "high": 0.9}


def test_the_sparsity_explorer_prints_the_bytes_that_a_file_would_have(tmp_path):
    layer = nn.Linear(64, 96, bias=False)
    small = layer.weight.detach().abs().flatten().argsort()[: 96 * 64 // 2]
    layer.weight.data.view(-1)[small] = 0
    text = sparsity_report(layer.weight, run(0.5))
    assert "3,072 of 6,144 weights stay" in text
    for name in ("dense", "bitmap", "csr"):
        printed = int(re.search(rf"(?i)<td>{name}<td.*?([\d,]+) kB", text)[1])
        assert abs(save(layer, tmp_path / name, encoding=name) / 1000 - printed) < 0.8  # header


def test_the_picture_is_white_where_a_weight_is_removed():
    weight = torch.tensor([[1.0, 0.1], [0.2, 2.0]])
    white = (pixels(mask_picture(weight, 0.5, size=2))[..., :3] == 1).all(-1)
    assert white.tolist() == [[False, True], [True, False]]


def test_the_sparsity_explorer_answers_its_slider():
    explorer = explore_sparsity(torch.randn(8, 8), [run(0.1), run(0.5)])
    before = explorer.shown.value
    explorer.controls["run"].label = "50%"
    assert explorer.shown.value != before
    assert "50% removed: 32 of 64 weights stay" in explorer.shown.value


def removed(fraction: float) -> dict:
    return run(0.0) | {"removed": fraction, "speedup": 1.25}


def test_neurons_leave_a_shorter_matrix_and_single_weights_one_with_holes():
    weight = torch.arange(1.0, 49.0).view(12, 4)
    shorter = pixels(structure_picture(weight, removed(1 / 3), neurons=True, size=12))
    holes = pixels(structure_picture(weight, removed(1 / 3), neurons=False, size=12))
    assert shorter.shape[:2] == (6, 4)  # a third of the encoder is half of the neurons
    assert holes.shape[:2] == (12, 4)
    assert not (shorter[..., :3] == 1).all(-1).any()
    assert (holes[..., :3] == 1).all(-1).sum() == 16


@pytest.mark.parametrize(
    ("fraction", "neurons", "parts"),
    [
        (1 / 3, True, ["6 × 4", "67 %", "1.25 times"]),
        (1 / 3, False, ["12 × 4, 67% of it not zero", "70 %", "100 %"]),  # 2/3 + 1/32 by bitmap
        (0.99, False, ["1% of it", "1.5 %"]),  # 1.5 · 1 % by CSR
    ],
)
def test_the_structure_explorer_prints_shape_bytes_and_operations(fraction, neurons, parts):
    text = structure_report(torch.ones(12, 4), removed(fraction), neurons=neurons)
    assert all(part in text for part in parts), text


def test_the_structure_explorer_answers_both_controls():
    runs = {kind: [removed(0.1), removed(0.4)] for kind in ("single weights", "neurons")}
    explorer = explore_structure(torch.randn(12, 4), runs)
    seen = []
    for kind in runs:
        for position in (0, 1):
            explorer.controls["shape"].value = kind
            explorer.controls["run"].value = position
            seen.append(explorer.shown.value)
    assert len(set(seen)) == 4


MILD = {
    "text": "Mild <praise>, and more of it than fits a label.",
    "label": 1,
    "teacher": torch.tensor([0.0, 1.0]),
    "student": torch.tensor([2.0, 0.0]),
}
SURE = MILD | {"text": "Short.", "teacher": torch.tensor([0.0, 9.0])}


def test_the_temperature_explorer_prints_what_autograd_finds():
    student = MILD["student"].clone().requires_grad_()
    p, q = (MILD["teacher"] / 4).softmax(-1), (student / 4).softmax(-1)
    loss = 16 * (p * (p / q).log()).sum()
    loss.backward()
    text = temperature_report(**MILD, temperature=4)
    assert f"T² KL = {loss:.3f}" in text
    assert f"<th>gradient<td>{student.grad[1]:+.3f}; of the label alone -0.881" in text
    assert "56 % positive" in text
    assert "38 % positive" in text
    assert "Mild &lt;praise&gt;" in text
    assert "label: <b>positive</b>" in text


def test_the_temperature_explorer_answers_both_controls():
    explorer = explore_temperature([MILD, SURE])
    seen = {explorer.shown.value}
    explorer.controls["temperature"].value = 8
    seen.add(explorer.shown.value)
    explorer.controls["sentence"].value = 1
    assert len(seen | {explorer.shown.value}) == 3


@pytest.mark.parametrize("explorer", [
    explore_memory(),
    explore_sparsity(torch.randn(8, 8), [run(0.1), run(0.5)]),
    explore_structure(torch.randn(12, 4), {
        kind: [removed(0.1), removed(0.4)] for kind in ("single weights", "neurons")
    }),
    explore_quantization(torch.randn(8, 32)),
    explore_outliers(torch.randn(8, 32), torch.randn(4, 32)),
    explore_rank(torch.randn(12, 8)),
    explore_temperature([MILD, SURE]),
])  # fmt: skip
def test_every_picture_says_what_it_shows_and_every_control_has_a_name(explorer):
    assert all(control.description for control in explorer.controls.values())
    assert explorer.name
    for img in re.findall("<img[^>]*>", explorer.shown.value):
        assert len(re.search('alt="([^"]*)"', img)[1]) > 40


FORMATS = {"float8": FLOAT8_E4M3.round, "whole": torch.round}


def test_the_rounding_explorer_prints_the_nearest_number_and_how_far_it_is():
    weights = torch.tensor([3.3, -0.7])
    text = rounding_report(weights, 0, "whole", FORMATS)
    assert "3.3 becomes <b>3</b> in whole: off by 9.1 %" in text
    assert "<th>▶ whole<td>3<td>" in text
    assert re.search(r"<th>float8<td>3.25<td>.*1\.5 %", text)
    assert "becomes <b>0</b> in whole: off by 100 %" in rounding_report(
        torch.tensor([0.3]), 0, "whole", FORMATS
    )


def test_the_rounding_explorer_answers_every_control():
    explorer = explore_rounding(torch.tensor([3.3, -0.7]), FORMATS)
    for name, value, printed in [("format", "whole", "in whole"), ("weight", 1, "-0.7 becomes")]:
        assert printed not in explorer.shown.value
        explorer.controls[name].value = value
        assert printed in explorer.shown.value


WEIGHT = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))


def test_the_quantization_explorer_prints_the_bits_that_a_packed_layer_has():
    for granularity, groups in [("tensor", 1), ("channel", 16), (32, 32)]:
        text = quantization_report(WEIGHT, bits=4, granularity=granularity, symmetric=False)
        layer = PackedLinear(quantize_tensor(WEIGHT, bits=4, granularity=granularity))
        bits = 8 * (layer.codes.nbytes + layer.scale.nbytes) / WEIGHT.numel()
        bits += 4 * groups / WEIGHT.numel()
        assert float(re.search(r"<b>([\d.]+)</b>", text)[1]) == pytest.approx(bits, abs=0.005)
        assert f"{groups} for 1,024 weights" in text
    assert "3 of 3" in quantization_report(WEIGHT, bits=2, granularity=32, symmetric=True)


def test_the_error_picture_is_brighter_with_fewer_bits():
    def brightness(bits: int) -> float:
        picture = error_picture(WEIGHT, bits=bits, granularity="channel", symmetric=False)
        return pixels(picture)[..., :3].mean()

    assert brightness(8) < brightness(4) < brightness(2)
    error = (WEIGHT - fake_quantize(WEIGHT, bits=2)).abs() / quantize_tensor(
        WEIGHT, bits=4
    ).scale.median()
    share = error[:, :48].mean()
    assert f"{share:.0%} of that" in error_picture(
        WEIGHT, bits=2, granularity="channel", symmetric=False
    )


def test_the_quantization_explorer_answers_every_control():
    explorer = explore_quantization(WEIGHT)
    for name, value in [("bits", 2), ("granularity", 32), ("symmetric", True)]:
        before = explorer.shown.value
        explorer.controls[name].value = value
        assert explorer.shown.value != before


def outliers():
    x = torch.randn(20, 96, generator=torch.Generator().manual_seed(0)).clamp(-2.5, 2.5)
    x[3, 7], x[5, 40] = 50.0, -20.0
    return x


def test_the_outlier_explorer_counts_what_stays_float_and_the_error_falls():
    explorer = explore_outliers(outliers(), torch.randn(32, 96))
    errors = []
    for threshold, columns in [(math.inf, 0), (48, 1), (12, 2)]:
        explorer.controls["threshold"].value = threshold
        assert f"<b>{columns}</b> of 96" in explorer.shown.value
        errors.append(float(re.search(r"<b>([\d.e-]+) %</b>", explorer.shown.value)[1]))
    assert errors[0] > errors[1] > errors[2] > 0
    assert [t for _, t in explorer.controls["threshold"].options][:2] == [math.inf, 48]


def test_the_outlier_picture_marks_the_columns_that_stay_float():
    image = pixels(outlier_picture(outliers(), 12, size=32))
    red = (image[..., 0] > 0.8) & (image[..., 2] < 0.05) & (image[..., 1] < 0.5)
    assert image.shape[:2] == (3, 32)
    assert list(zip(*red.nonzero(), strict=True)) == [(0, 7), (1, 8)]
    assert "2 of them" in outlier_picture(outliers(), 12)


def test_the_rank_explorer_prints_bytes_error_and_break_even():
    weight = torch.randn(12, 8, generator=torch.Generator().manual_seed(0))
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    text = rank_report(weight, s, 2, 1.5)
    error = (weight - u[:, :2] * s[:2] @ vh[:2]).norm() / weight.norm()
    assert "<b>2</b> of 8; factors have fewer numbers up to 4" in text
    assert " 42 % of the matrix's 384 B" in text
    assert f" {100 * error:.0f} % of the weights' size" in text
    assert "1.5 times the matrix's" in text


def test_the_rank_explorer_answers_both_controls_and_is_exact_at_the_end():
    explorer = explore_rank(torch.randn(12, 8))
    assert [rank for _, rank in explorer.controls["rank"]._options_full] == [1, 2, 4, 8]
    seen = []
    for rank in (1, 8):
        for missing in (False, True):
            explorer.controls["rank"].value = rank
            explorer.controls["missing"].value = missing
            seen.append(explorer.shown.value)
    assert len(set(seen)) == 4
    assert " 0 % of the weights' size" in seen[-1]


def test_rank_speeds_have_every_rank():
    assert all(speed > 0 for speed in rank_speeds(torch.randn(12, 8), [1, 8]).values())


def test_the_matrix_picture_is_brighter_where_weights_are_positive():
    weight = torch.tensor([[1.0, -1.0], [0.0, 5.0]])
    image = pixels(matrix_picture(weight, scale=1.0))
    assert image[0, 0, 0] > image[1, 0, 0] > image[0, 1, 0]
    assert (image[1, 1] == image[0, 0]).all()  # beyond the scale


def test_the_spectrum_has_as_many_blue_bars_as_are_kept():
    s = torch.linspace(10, 1, 40)
    image = pixels(spectrum_picture(s, 10, width=40, height=20))
    blue = (image[..., 2] > 0.6) & (image[..., 0] < 0.1)
    grey = (image[..., 0] > 0.5) & (image[..., 0] < 0.7)
    assert blue.any(axis=0).sum() == 10
    assert grey.any(axis=0).sum() == 30
    assert blue[:, 0].sum() == 20 > grey[:, -1].sum() == 2


# ---------------------------------------------------------------- codebooks


def test_the_codebook_report_says_what_is_stored_and_lost():
    weight = torch.randn(24, 32, generator=torch.Generator().manual_seed(0))
    found = cluster(weight, bits=2)
    text = codebook_report(weight, found, "linear")
    stored = sum(tensor.nbytes for tensor in CodebookLinear(found).state_dict().values())
    assert f" {100 * stored / weight.nbytes:.2g} % of float32's" in text
    shares = torch.bincount(found.codes.flatten().long()) / 768
    coded = -(shares * shares.log2()).sum() * 768 / 8 + 4 * 4
    assert f"at the entropy {100 * coded / weight.nbytes:.2g} %" in text
    for values in (found.reconstruct(), fake_quantize(weight, bits=2, granularity="tensor")):
        assert f"{100 * (weight - values).norm() / weight.norm():.0f} %" in text
    worst = (weight - found.reconstruct()).abs().max() / weight.std()
    assert f"{worst:.2g} standard deviations" in text
    assert f"{int(768 * shares.min() + 0.5)} of 768 weights" in text


def test_the_codebook_picture_has_a_line_for_each_centroid_where_it_is():
    weight = torch.linspace(-1, 1, 200).repeat(50)
    image = pixels(codebook_picture(weight, torch.tensor([-0.5, 0.5]), width=40, height=20))
    blue = (image[..., 2] > 0.6) & (image[..., 0] < 0.1)
    assert blue.all(axis=0).nonzero()[0].tolist() == [10, 30]
    grey = (image[..., 0] > 0.5) & (image[..., 0] < 0.7)
    assert grey.all(axis=0).sum() > 30  # as many weights of each size


def test_the_codebook_explorer_answers_both_controls():
    explorer = explore_codebook(torch.randn(16, 64, generator=torch.Generator().manual_seed(1)))
    seen = set()
    for bits in (1, 3, 8):
        for start in ("linear", "density", "random"):
            explorer.controls["bits"].value = bits
            explorer.controls["start"].value = start
            seen.add(explorer.shown.value)
    assert len(seen) == 9


def scaling_figures() -> dict:
    def points(seconds):
        return [{"length": n, "seconds": seconds * n / 256, "bytes": 1000 * n} for n in (256, 2048)]

    names = ("torch", "full", "flash", "linear attention", "sliding window")
    names += ("sliding window, 64", "sliding window, 1024")
    methods = [{"name": name, "points": points(0.01 * (i + 1))} for i, name in enumerate(names)]
    methods[1]["points"].pop()  # all scores: not for the longest text
    return {"methods": methods, "lengths": [256, 2048], "options": {"window": 256}}


def test_the_attention_explorer_has_another_answer_at_every_position():
    explorer = explore_attention(scaling_figures())
    seen, count = set(), 0
    for method in explorer.controls["method"].options:
        for window in (64, 256, 1024):
            for tokens in (256, 2048):
                explorer.controls["method"].value = method
                explorer.controls["window"].value = window
                explorer.controls["tokens"].value = tokens
                seen.add(explorer.shown.value)
                count += 1
    assert len(seen) == count


def test_the_attention_report_counts_pairs_and_compares_with_torch():
    point, other = {"seconds": 0.02, "bytes": 3e6}, {"seconds": 0.05, "bytes": 1e6}
    text = attention_report("window", 3, 10, point, other)
    counted = sum(j <= i < j + 3 for i in range(10) for j in range(10))
    assert f"{counted} of 100 pairs" in text
    assert "20 ms" in text
    assert "3 MB" in text
    assert "50 ms: 2.5 times it" in text
    assert "55 of 100 pairs" in attention_report("tiles", 3, 10, point, other)
    assert "not run" in attention_report("all scores", 3, 10, None, other)


def test_the_attention_picture_shows_the_pattern():
    for method, window in (("window", 5), ("tiles", 5), ("linear attention", 5)):
        image = pixels(attention_picture(method, window, 16, size=16))
        blue = image[..., 2] - image[..., 0] > 0.1
        expected = np.tri(16, dtype=bool)
        if method == "window":
            expected &= ~np.tri(16, k=-5, dtype=bool)
        np.testing.assert_array_equal(blue, expected)
    # A pixel of several tokens is coloured if one pair in it is.
    image = pixels(attention_picture("window", 1, 64, size=16))
    np.testing.assert_array_equal(image[..., 2] - image[..., 0] > 0.1, np.eye(16, dtype=bool))


# ---------------------------------------------------------------- choosing


def candidate(name, points, megabytes, speed, *, training=False) -> dict:
    return {
        "name": name,
        "points": [points, points - 1, points + 1],
        "megabytes": megabytes,
        "speedup": {1: speed, 32: speed / 2},
        "training": training,
    }


CANDIDATES = [
    candidate("dense", 0.0, 90.9, 1.0),
    candidate("int8", -0.1, 23.0, 4.0),
    candidate("student", -1.5, 8.0, 8.0, training=True),
    candidate("words <few>", -6.0, 0.2, 300.0, training=True),
]
ANY = {"megabytes": math.inf, "speedup": 0, "lost": math.inf, "training": True, "batch": 1}


def left(**limits) -> list[str]:
    text = choice_report(CANDIDATES, **ANY | limits)
    return re.findall(r"<tr><td>([^<]+)<td", text)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({}, ["dense", "int8", "student", "words &lt;few&gt;"]),
        ({"megabytes": 23}, ["int8", "student", "words &lt;few&gt;"]),
        ({"speedup": 4}, ["int8", "student", "words &lt;few&gt;"]),
        ({"speedup": 4, "batch": 32}, ["student", "words &lt;few&gt;"]),
        ({"lost": 1.5}, ["dense", "int8", "student"]),
        ({"training": False}, ["dense", "int8"]),
        ({"training": False, "megabytes": 10}, []),
    ],
)
def test_the_models_within_all_limits_are_left_the_most_accurate_first(limits, expected):
    assert left(**limits) == expected


def test_it_says_which_limit_alone_rules_out_how_many():
    text = choice_report(CANDIDATES, **ANY | {"megabytes": 10, "speedup": 2, "lost": 2})
    assert "<b>1 of 4</b>" in text
    # Dense is too large and too slow: neither alone. int8 is only too large, words only lose.
    assert "ruled out by one limit alone: file 1, loss 1<" in text
    nothing = choice_report(CANDIDATES, **ANY | {"megabytes": 10, "training": False})
    assert "<b>0 of 4</b>" in nothing
    assert "<table>" not in nothing
    # Dense and int8 are too large alone; the student and the words need training alone.
    assert "ruled out by one limit alone: file 2, training 2<" in nothing
    assert "alone: none<" in choice_report(CANDIDATES, **ANY)


def test_it_prints_the_measures_and_the_interval():
    text = choice_report(CANDIDATES, **ANY | {"batch": 32})
    assert "<td>student" in text
    assert ">-1.5 (-2.5 to -0.5)<" in text
    assert ">8 MB<" in text
    assert ">4 ×<" in text
    assert ">25 %<" in text  # of the energy, as of the time


def recorded_row(name, right, note="", bytes=4e6, speed=2.0) -> dict:
    estimate = {"value": speed, "low": speed, "high": speed}
    latency = {"speedup": estimate, "milliseconds": 1.0, "threads": 2}
    return {
        "name": name, "lecture": 1, "correct": pack_bits(torch.arange(200) < right),
        "sentences": 200, "parameters": 1, "bytes": bytes, "note": note,
        "latency": {"1": latency, "32": latency},
    }  # fmt: skip


ROWS = [
    recorded_row("dense, float32", 180, bytes=9e7, speed=1.0),
    recorded_row("rounded", 178, "no training"),
    recorded_row("tuned", 175),
    recorded_row("distilled", 179, bytes=8e6, speed=8.0),
]


def test_the_choice_explorer_answers_every_control():
    explorer = explore_choice(ROWS)
    assert "3 of 4" in explorer.shown.value  # tuned loses 2.5 points
    for name, value, printed in [
        ("lost", math.inf, "loss any"),
        ("training", False, "training none: <b>2 of 4"),
        ("megabytes", 10, "at most 10 MB; speed any with 1 at once; loss any; training none: <b>1"),
        ("speedup", 4, "<b>0 of 4"),
        ("batch", 32, "with 32 at once"),
    ]:
        assert printed not in explorer.shown.value
        explorer.controls[name].value = value
        assert printed in explorer.shown.value
    assert all(control.description for control in explorer.controls.values())


def test_more_than_a_few_models_are_counted():
    text = choice_report([candidate(f"model {i}", -i, 1, 1) for i in range(9)], **ANY)
    assert text.count("<td>model") == 6
    assert "and 3 more" in text
