import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt

from compresslab import plots
from compresslab.assets import DATA
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
    ]
    for figure in figures:
        panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
        assert all(axes.get_xlabel() for axes in panels)
        assert panels[0].get_ylabel()


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
