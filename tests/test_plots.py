import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import pyplot as plt

from compresslab import plots
from compresslab.assets import DATA
from compresslab.reliability import reliability
from compresslab.scoreboard import load_rows


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_every_axis_of_every_figure_has_a_label():
    models = pd.read_csv(DATA / "model_sizes.csv", parse_dates=["date"])
    dates = pd.date_range("2017", "2026", periods=3)
    generator = np.random.default_rng(0)
    figures = [
        plots.model_sizes(models, {"trend": (dates, np.array([1e8, 1e9, 1e10]))}),
        plots.roofline({"a": (1.0, 1e9)}, peak_flops=1e11, bandwidth=1e10),
        plots.redundancy(
            {"w": generator.normal(size=100)}, {"s": np.array([3.0, 2.0, 1.0])}, np.eye(4)
        ),
        plots.pareto(load_rows()),
        plots.number_formats({"float8": (2**-9, 448, 8)}, {"int4": [-1, 0, 1]}),
        plots.rounding_errors({"4 bits": [(0.5, 20), (1, 12)]}),
        plots.lines(
            {"a": [(50, 80), (3, 60)], "b": [(50, 80, 78, 82)]},
            xlabel="left",
            ylabel="accuracy",
            band=("dense", 84, 88),
            log=True,
        ),
        plots.reliability_diagram({"a": reliability(torch.tensor([0.6, 0.9]), torch.ones(2) > 0)}),
        plots.group_changes({"3 bits": [GROUP], "int8": [GROUP]}, {"3 bits": 0.0, "int8": -0.01}),
        plots.patterns({"window": np.eye(3, dtype=bool), "full": np.ones((3, 3), dtype=bool)}),
        plots.scaling({"full": [{"length": 256, "seconds": 0.5, "bytes": 3e6}]}),
        plots.peers([candidate("ours, int8"), candidate("torch, float32")], threads=2),
    ]
    for figure in figures:
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert all(axes.get_xlabel() for axes in panels)
        assert panels[0].get_ylabel()


def candidate(name, source="student", *, size=2e6, right=0.8, speed=2.0):
    latency = {"2": {str(n): {"speedup": {"value": speed * n}} for n in (1, 32)}}
    found = {"name": name, "source": source, "bytes": size, "latency": latency}
    return found | {"test": {"accuracy": {"value": right}}}


def test_peers_show_whose_model_of_what_and_the_front_on_every_axis():
    figure = plots.peers(
        [
            candidate("torch, float32", "classifier", size=9e7, right=0.86, speed=1.0),
            {"name": "torchao, int8 dynamic", "source": "classifier", "reason": "not installed"},
            candidate("ours, int8"),
            candidate("torch, int8 dynamic", size=3e6, right=0.79, speed=1.5),
        ],
        threads=2,
    )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["torch", "ours"]
    for axes, xs in zip(figure.axes, ([2, 90], [1, 2], [32, 64]), strict=True):
        front, *marks = axes.lines
        assert sorted(front.get_xdata()) == xs
        assert [mark.get_fillstyle() for mark in marks] == ["none", "full", "full"]


GROUP = {
    "group": "mild",
    "sentences": 157,
    "difference": {"value": -0.05, "low": -0.1, "high": 0.01},
    "corrected": 0.01,
}


def test_a_group_is_marked_only_if_it_stands_after_correction():
    figure = plots.group_changes({"3 bits": [GROUP, GROUP | {"corrected": 0.2}]}, {"3 bits": -0.02})
    marks = [line for line in figure.axes[0].lines if line.get_marker() in plots.MARKERS]
    assert [mark.get_fillstyle() for mark in marks] == ["full", "none"]
    assert [float(mark.get_xdata()[0]) for mark in marks] == [-5, -5]


def test_a_reliability_diagram_shows_the_bins_that_have_answers():
    bins = reliability(torch.tensor([0.6, 0.9, 0.95]), torch.tensor([True, True, False]), bins=10)
    axes = plots.reliability_diagram({"dense": bins}).axes[0]
    assert axes.collections[-1].get_offsets().tolist() == [
        pytest.approx([60, 100]), pytest.approx([90, 100]), pytest.approx([95, 0])
    ]  # fmt: skip
    assert f"{100 * (0.4 + 0.1 + 0.95) / 3:.1f} %" in axes.get_title()


def test_the_guide_has_a_line_for_every_limit_and_no_text_over_another():
    figure = plots.choice_guide()
    figure.draw_without_rendering()
    texts = figure.axes[0].texts
    boxes = [t.get_window_extent() for t in texts if t.get_text()]
    assert len(boxes) == 5 * (len(plots.GUIDE) + 1)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert box.x1 < figure.bbox.x1


def test_a_model_far_from_all_others_is_told_in_words():
    rows = load_rows()
    far = next(i for i, row in enumerate(rows) if row["name"] == "bag of words")
    for whole in (False, True):
        figure = plots.pareto(rows, whole=whole)
        legend = [text.get_text() for text in figure.legends[0].get_texts()]
        numbers = {text.get_text() for text in figure.axes[0].texts}
        assert (str(far + 1) in numbers) == whole
        assert any("bag of words, not shown: 79.8 %, 0.24 MB" in line for line in legend) != whole
        assert len(legend) == len(rows)
        plt.close(figure)


def test_a_shown_figure_carries_its_alt_text_and_is_closed(monkeypatch):
    shown = []
    monkeypatch.setattr(plots, "display", shown.append)
    figure, _ = plots.new()
    plots.show(figure, alt="a description", caption="see this")
    _, metadata = shown[0]._repr_mimebundle_()
    assert metadata["image/png"]["alt"] == "a description"
    assert "see this" in shown[1].data
    assert not plt.fignum_exists(figure.number)


def test_the_front_has_exactly_the_points_that_no_other_beats():
    size, quality = [1, 2, 2, 3, 4], [70, 80, 75, 79, 90]
    assert plots._front(size, quality, smaller=True) == [0, 1, 4]
    assert plots._front(size, quality, smaller=False) == [4]


def test_drawing_leaves_the_global_style_alone():
    before = plt.rcParams["font.size"]
    plots.new()
    assert plt.rcParams["font.size"] == before


def test_lines_draw_every_point_and_interval_and_name_every_series():
    figure = plots.lines(
        {"a": [(1, 80), (2, 60)], "b": [(1, 70, 65, 72)]}, xlabel="x", ylabel="y", log=True
    )
    (axes,) = figure.axes
    drawn = {c.get_label(): c.lines[0].get_xydata().tolist() for c in axes.containers}
    assert drawn == {"a": [[1, 80], [2, 60]], "b": [[1, 70]]}
    (bar,) = axes.containers[1].lines[2]
    assert bar.get_segments()[0].tolist() == [[1, 65], [1, 72]]
    assert {"1", "2"} <= {label.get_text() for label in axes.get_xticklabels()}
    tall = plots.lines({"a": [(1, 3), (2, 300)]}, xlabel="x", ylabel="y", logy=True).axes[0]
    assert {"5", "200"} <= {label.get_text() for label in tall.get_yticklabels()}
    assert tall.get_xscale() == "linear"


def test_a_number_for_every_layer_stands_where_the_layer_is():
    kinds = [
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
        "intermediate.dense",
        "output.dense",
    ]
    values = {f"layer.{d}.{kind}": 10 * i + d for d in range(2) for i, kind in enumerate(kinds)}
    axes = plots.by_layer(values, label="number", form=".0f", vmin=0, vmax=100).axes[0]
    printed = {t.get_position(): t.get_text() for t in axes.texts}
    assert printed == {(d, i): str(10 * i + d) for d in range(2) for i in range(6)}


def test_a_pattern_is_drawn_query_by_query_with_the_share_of_pairs_in_its_title():
    grids = {"past": np.tri(4, dtype=bool), "first": np.array([[1, 0, 0, 0]] * 4, dtype=bool)}
    figure = plots.patterns(grids)
    for axes, (title, grid), share in zip(figure.axes, grids.items(), ("62%", "25%"), strict=True):
        assert axes.get_title() == f"{title}\n{share}"
        np.testing.assert_array_equal(axes.images[0].get_array(), grid)


def test_scaling_is_in_milliseconds_and_megabytes():
    points = [{"length": n, "seconds": n / 1e3, "bytes": n * 1e6} for n in (256, 512)]
    panels = plots.scaling({"linear": points}).axes
    for axes in panels:
        assert axes.get_xscale() == axes.get_yscale() == "log"
        np.testing.assert_allclose(axes.lines[0].get_xydata(), [(256, 256), (512, 512)])
    assert [axes.get_ylabel() for axes in panels] == ["time, ms", "memory, MB"]
