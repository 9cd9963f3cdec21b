"""The course's figures: one style, colours that colour-blind readers can tell apart (Okabe and
Ito), and an alt text and a caption with every picture. Importing this module sets the style.

    figure = pareto(load_rows())
    show(figure, alt="…", caption="…")
"""

import math
from collections.abc import Sequence
from io import BytesIO

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML, Image, display
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from .assets import DATA
from .measure import accuracy
from .reliability import Bins
from .scoreboard import correct_of, speedup_of

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"),
    "#882255",  # of Paul Tol's palettes: there is a lecture more than Okabe and Ito have colours
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":", "-.")
plt.rcParams |= {
    "figure.dpi": 110,
    "figure.constrained_layout.use": True,
    "font.size": 13,
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "axes.axisbelow": True,
    "lines.linewidth": 2,
    "legend.frameon": False,
}


def new(width: float = 9, height: float = 4.5, *, columns: int = 1, **options):
    """A figure and its axes, `columns` beside each other."""
    return plt.subplots(1, columns, figsize=(width, height), **options)


def show(figure: Figure, *, alt: str, caption: str = "") -> None:
    """Display a figure with an alt text, and a caption that says what to see."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png")
    plt.close(figure)
    display(Image(buffer.getvalue(), alt=alt, width=figure.get_figwidth() * 80))
    if caption:
        display(HTML(f"<p><em>{caption}</em></p>"))


# ---------------------------------------------------------------- lecture 1


def model_sizes(models: pd.DataFrame, lines: dict[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """Parameters of published models against time; dense and sparse told apart.

    Args:
        models: columns name, date, parameters, active_parameters, kind.
        lines: label -> (dates, parameters) of a fitted trend.
    """
    figure, axes = new(10, 5.5)
    for i, (kind, part) in enumerate(models.groupby("kind")):
        axes.scatter(part.date, part.parameters, color=COLOURS[i], marker=MARKERS[i], label=kind)
        if kind == "sparse":
            axes.vlines(
                part.date, part.active_parameters, part.parameters, color=COLOURS[i], lw=0.8
            )
            axes.scatter(
                part.date, part.active_parameters, edgecolor=COLOURS[i], facecolor="white",
                marker=MARKERS[i], s=22, label="sparse: used for a token",
            )  # fmt: skip
    for i, (label, (dates, values)) in enumerate(lines.items()):
        axes.plot(dates, values, color=COLOURS[6], ls=("-", "--", ":")[i], lw=1.6, label=label)
    labels = {
        "BERT-Large": (-72, 2), "GPT-2": (-42, 0), "GPT-3": (-40, 4), "Switch-C": (7, -4),
        "DistilBERT": (7, -4), "PaLM 540B": (7, -2), "DeepSeek-V3": (-78, 2), "Kimi K2": (-52, 2),
        "SmolLM2-135M": (-36, -15),
    }  # fmt: skip
    for _, model in models[models.name.isin(labels)].iterrows():
        axes.annotate(
            model["name"], (model.date, model.parameters), textcoords="offset points",
            xytext=labels[model["name"]], fontsize=10,
        )  # fmt: skip
    axes.set(yscale="log", xlabel="published", ylabel="parameters")
    axes.legend(fontsize=10, loc="lower right", ncols=2)
    return figure


def roofline(
    points: dict[str, tuple[float, float]], *, peak_flops: float, bandwidth: float
) -> Figure:
    """Operations a second against operations a byte, under this machine's roof.

    Args:
        points: label -> (operations a byte, operations a second as measured).
    """
    figure, axes = new(9, 4.8)
    x = np.geomspace(0.1, 1000, 200)
    axes.plot(x, np.minimum(peak_flops, x * bandwidth) / 1e9, color=COLOURS[6], label="roof")
    axes.axvline(peak_flops / bandwidth, color="#888888", lw=1, ls=":")
    for i, (label, (intensity, rate)) in enumerate(points.items()):
        axes.plot(intensity, rate / 1e9, MARKERS[i], ms=10, color=COLOURS[i], label=label)
    axes.set(
        xscale="log", yscale="log", xlabel="operations for each byte moved",
        ylabel="10⁹ operations a second",
    )  # fmt: skip
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_formatter("")
    axes.set_ylim(0.06 * bandwidth / 1e9, 2 * peak_flops / 1e9)
    axes.text(0.11, 2.2 * bandwidth / 1e9, "bound by memory", fontsize=11)
    axes.text(
        1.3 * peak_flops / bandwidth, 1.12 * peak_flops / 1e9, "bound by arithmetic", fontsize=11
    )
    axes.legend(fontsize=11, loc="lower right")
    return figure


def redundancy(
    weights: dict[str, np.ndarray], spectra: dict[str, np.ndarray], similarity: np.ndarray
) -> Figure:
    """Three looks at one model: weight histogram, singular values, similarity of heads.

    Args:
        weights: label -> a sample of weights.
        spectra: label -> singular values, largest first.
        similarity: (heads, heads), 1 for heads that attend alike.
    """
    figure, (left, middle, right) = new(13, 4.4, columns=3)
    for i, (label, values) in enumerate(weights.items()):
        left.hist(
            values, bins=np.linspace(-0.25, 0.25, 101), density=True, log=True, histtype="step",
            color=COLOURS[i], ls=("-", "--")[i % 2], lw=1.8, label=label,
        )  # fmt: skip
    left.set(xlabel="weight", ylabel="density", title="weights")
    for i, (label, values) in enumerate(spectra.items()):
        energy = np.cumsum(values**2) / np.sum(values**2)
        rank = np.arange(1, len(values) + 1) / len(values)
        middle.plot(rank, energy, color=COLOURS[i], ls=("-", "--")[i % 2], label=label)
    middle.set(xlabel="rank kept / full rank", ylabel="energy kept", title="directions")
    image = right.imshow(similarity, vmin=0.3, vmax=1, cmap="cividis")
    right.set(xlabel="head", ylabel="head", title="heads")
    right.grid(False)
    figure.colorbar(image, ax=right, label="cosine similarity", shrink=0.8)
    left.margins(y=0.3)
    left.legend(fontsize=10, loc="upper left")
    middle.legend(fontsize=10, loc="lower right")
    return figure


def method_map() -> Figure:
    """The six families: an icon of what each changes, what it saves, and what it needs."""
    generator = np.random.default_rng(0)
    matrix = np.abs(generator.normal(size=(8, 8)))
    low_rank = np.outer(np.abs(generator.normal(size=8)), np.abs(generator.normal(size=8)))
    distance = np.abs(np.subtract.outer(np.arange(8), np.arange(8)))
    icons = (
        np.where(matrix > np.median(matrix), matrix, np.nan),
        np.round(matrix * 1.2) / 1.2,
        low_rank,
        np.where(np.pad(np.ones((5, 5)), ((0, 3), (0, 3))) > 0, matrix, np.nan),
        np.tile(matrix[:2], (4, 1)),
        np.where((distance <= 1) & (np.tri(8) > 0), 1.0, np.nan),
    )
    families = (
        "2  pruning", "3  quantization", "4  factorization", "5  distillation",
        "6  weight sharing", "7  sub-quadratic\n    attention",
    )  # fmt: skip
    changes = (
        "removes weights,\nheads, layers", "fewer bits\na weight", "two thin matrices\nfor one",
        "a smaller model\nlearns from a larger", "one weight\nused many times",
        "how tokens look\nat each other",
    )  # fmt: skip
    columns = (
        "bytes",
        "operations",
        "latency",
        "memory\nat run time",
        "data",
        "training",
        "kernels or\nhardware",
    )
    # 2: yes, 1: in part or only in some forms, 0: no. The lectures measure every one of these.
    saves = (
        (1, 1, 1, 1, 1, 1, 1),
        (2, 0, 1, 2, 1, 1, 2),
        (2, 2, 1, 2, 1, 1, 0),
        (2, 2, 2, 2, 2, 2, 0),
        (2, 0, 1, 1, 1, 1, 0),
        (0, 1, 1, 1, 2, 2, 1),
    )
    figure, axes = new(12.5, 6.8)
    axes.set(xlim=(0, 14.6), ylim=(-0.6, 7.8))
    axes.axis("off")
    for j, column in enumerate(columns):
        x = 7.2 + j + (0.4 if j > 3 else 0)
        axes.text(x, 6.15, column, ha="left", va="bottom", fontsize=12, rotation=35)
        for i, values in enumerate(saves):
            _dot(axes, x, 5.5 - i, values[j], COLOURS[0] if j < 4 else COLOURS[1])
    for x, text, colour in ((8.7, "saves", COLOURS[0]), (12.6, "needs", COLOURS[1])):
        axes.text(x, 7.4, text, ha="center", fontsize=14, color=colour, weight="bold")
    axes.text(
        0.2, -0.45, "full: yes   half: in some forms, or at long lengths   empty: no", fontsize=11
    )
    for i, (icon, family, change) in enumerate(zip(icons, families, changes, strict=True)):
        y = 5.5 - i
        axes.imshow(
            icon, extent=(0.2, 1.0, y - 0.4, y + 0.4), cmap="cividis", aspect="auto", vmin=0, vmax=2
        )
        axes.add_patch(plt.Rectangle((0.2, y - 0.4), 0.8, 0.8, fill=False, lw=0.8))
        axes.text(1.25, y, family, va="center", fontsize=13, weight="bold")
        axes.text(4.1, y, change, va="center", fontsize=11)
    return figure


def _dot(axes, x: float, y: float, value: int, colour: str) -> None:
    fill = {0: "none", 1: "left", 2: "full"}[value]
    axes.plot(
        x, y, "o", ms=15, color=colour, fillstyle=fill, markerfacecoloralt="white", mew=1.5
    )  # fmt: skip


# ---------------------------------------------------------------- lecture 2


def sparsity_curves(curves: dict[str, list[dict]], *, dense: dict) -> Figure:
    """Accuracy against sparsity, with intervals, and the dense model's as a band.

    Args:
        curves: label -> runs with `sparsity`, and `value`, `low`, `high` of the accuracy.
        dense: `value`, `low`, `high` of the dense model.
    """
    return lines(
        {
            label: [(100 * run["sparsity"], *percent(run)) for run in runs]
            for label, runs in curves.items()
        },
        xlabel="weights removed, %",
        ylabel="accuracy on validation, %",
        band=("dense", *percent(dense)[1:]),
    )


def layer_scan(scan: dict, *, sparsity: float) -> Figure:
    """What is left of the accuracy when one linear layer of the encoder alone is pruned.

    Args:
        scan: `sparsities`, `dense` accuracy, and `layers`: name -> accuracy at each sparsity.
    """
    column = list(scan["sparsities"]).index(sparsity)
    drop = {name: 100 * (values[column] - scan["dense"]) for name, values in scan["layers"].items()}
    return by_layer(drop, label="points against the dense model", form="+.1f", vmin=-5, vmax=0)


def by_layer(values: dict[str, float], *, label: str, form: str, vmin: float, vmax: float):
    """A heat map of one number for each linear layer of a BERT's encoder: kinds by depth.

    Args:
        values: dotted name in the encoder -> number.
        label: what the number is, for the colour bar.
        form: how it is printed.
        vmin, vmax: ends of the colours, wider where a value needs it.
    """
    kinds = {
        "attention.self.query": "query", "attention.self.key": "key",
        "attention.self.value": "value", "attention.output.dense": "attention output",
        "intermediate.dense": "feed-forward up", "output.dense": "feed-forward down",
    }  # fmt: skip
    depth = 1 + max(int(name.split(".")[1]) for name in values)
    grid = np.array([[values[f"layer.{d}.{kind}"] for d in range(depth)] for kind in kinds])
    vmin, vmax = min(vmin, grid.min()), max(vmax, grid.max())
    figure, axes = new(9, 4.6)
    image = axes.imshow(grid, cmap="cividis", vmin=vmin, vmax=vmax, aspect="auto")
    for i, row in enumerate(grid):
        for d, value in enumerate(row):
            dark = value < (vmin + vmax) / 2
            axes.text(d, i, f"{value:{form}}", ha="center", va="center", color="w" if dark else "k")
    axes.set(xlabel="layer", xticks=range(depth), xticklabels=range(1, depth + 1))
    axes.set_yticks(range(len(kinds)), kinds.values())
    axes.grid(False)
    figure.colorbar(image, ax=axes, label=label)
    return figure


# ---------------------------------------------------------------- lecture 3


def number_formats(
    ranges: dict[str, tuple[float, float, int]], grids: dict[str, Sequence[float]]
) -> Figure:
    """What formats can represent: their ranges in powers of ten, and every number near zero.

    Args:
        ranges: format -> smallest and largest number above zero, and numbers for each doubling.
        grids: format -> all its numbers, scaled to [-1, 1].
    """
    figure, (left, right) = new(12.5, 4.6, columns=2, width_ratios=(1, 1.25))
    for i, (low, high, steps) in enumerate(ranges.values()):
        left.barh(-i, math.log10(high / low), left=math.log10(low), height=0.5, color=COLOURS[i])
        left.text(math.log10(high) + 2, -i, f"{steps:,}", va="center")
    left.set_yticks([-i for i in range(len(ranges))], ranges)
    left.set(xlabel="smallest to largest number, power of ten", xlim=(-48, 60), ylabel="format")
    left.set_title("range, and how many numbers in each doubling", fontsize=13)
    for i, values in enumerate(grids.values()):
        right.vlines(
            values, -i - 0.32, -i + 0.32, color=COLOURS[i], lw=1.3 if len(values) < 99 else 0.6
        )
    right.set_yticks([-i for i in range(len(grids))], grids)
    right.set(xlabel="every number, the largest scaled to 1", xlim=(-1.04, 1.04))
    for axes in (left, right):
        axes.grid(axis="y", visible=False)
    return figure


def rounding_errors(curves: dict[str, list[tuple[float, float]]]) -> Figure:
    """Error of a tensor against where its range is clipped.

    Args:
        curves: label -> points (where it is clipped as a fraction of the largest, error in % of
            the tensor's size).
    """
    figure, axes = new(9, 4.3)
    for i, (label, points) in enumerate(curves.items()):
        axes.plot(*zip(*points, strict=True), ("-", "--", ":")[i % 3], label=label)
    axes.set(xlabel="range, as a fraction of the largest weight", ylabel="error, % of the weights")
    axes.set(yscale="log")
    _plain_numbers(axes.yaxis, 1, 3)
    axes.legend(fontsize=12)
    return figure


# ---------------------------------------------------------------- lecture 8


def reliability_diagram(models: dict[str, Bins]) -> Figure:
    """Accuracy against confidence, a panel a model, with intervals; the larger a mark, the more
    answers it stands for. On the dashed line a model is right as often as it says.

    Args:
        models: title -> answers by confidence, see `reliability.reliability`.
    """
    figure, panels = new(4.3 * len(models), 4.6, columns=len(models), sharey=True, squeeze=False)
    for i, (axes, (title, bins)) in enumerate(zip(panels[0], models.items(), strict=True)):
        full = bins.counts > 0
        counts, x, y = (v[full].numpy() for v in (bins.counts, bins.confidence, bins.accuracy))
        ends = [_wilson(right, count) for right, count in zip(counts * y, counts, strict=True)]
        axes.plot([50, 100], [50, 100], color="#888888", ls="--", lw=1.2)
        axes.vlines(100 * x, *(100 * np.array(ends).T), color=COLOURS[i], lw=1.5)
        axes.scatter(
            100 * x, 100 * y, s=25 + 500 * counts / counts.sum(), marker=MARKERS[i],
            color=COLOURS[i], alpha=0.8,
        )  # fmt: skip
        axes.set(xlabel="confidence, %", xlim=(48, 103))
        axes.set_title(f"{title}\ncalibration error {100 * bins.error:.1f} %", fontsize=13)
    panels[0][0].set_ylabel("right, %")
    return figure


def _wilson(right: float, count: float) -> tuple[float, float]:
    hits = torch.arange(round(count)) < round(right)
    estimate = accuracy(hits)
    return estimate.low, estimate.high


def group_changes(models: dict[str, list[dict]], overall: dict[str, float]) -> Figure:
    """What each group of sentences lost, a panel a model, with intervals. A filled mark: more or
    less than the rest lost, after correction for all that were looked at.

    Args:
        models: title -> groups with `group`, `sentences`, `difference` (value, low, high) and
            `corrected`, a p-value; the same groups for all.
        overall: title -> the difference over all sentences.
    """
    figure, panels = new(
        2.2 + 3.3 * len(models), 4.8, columns=len(models), sharey=True, sharex=True, squeeze=False
    )
    for i, (axes, (title, groups)) in enumerate(zip(panels[0], models.items(), strict=True)):
        axes.axvline(0, color="#888888", lw=1)
        axes.axvline(100 * overall[title], color=COLOURS[i], lw=1.2, ls="--")
        for y, group in enumerate(groups):
            value, low, high = percent(group["difference"])
            axes.hlines(-y, low, high, color=COLOURS[i])
            axes.plot(
                value, -y, MARKERS[i], ms=8, color=COLOURS[i],
                fillstyle="full" if group["corrected"] < 0.05 else "none",
            )  # fmt: skip
        axes.set_title(title, fontsize=13)
        axes.set(xlabel="points against the dense model")
        axes.xaxis.label.set_fontsize(11)
    names = [f"{group['group']} ({group['sentences']:,})" for group in groups]
    panels[0][0].set_yticks([-y for y in range(len(names))], names)
    panels[0][0].set_ylabel("group (test sentences)")
    return figure


# limit; what to measure; first; then; what does not help. The lectures measure every one of these.
GUIDE = (
    (
        "disk, download",
        "bytes of the file",
        "fewer bits a weight,\nembeddings first",
        "a student, then bits;\nentropy coding last",
        "zeros stored\nas numbers",
    ),
    (
        "memory at run time",
        "peak bytes while it runs",
        "fewer layers,\nheads, neurons",
        "int8 products,\npacked embeddings",
        "packed weights made\nfloat all at once",
    ),
    (
        "latency of one",
        "median time, batch 1",
        "int8 products",
        "a thin student,\nthen int8",
        "single zeros;\nfew bits unpacked at use",
    ),
    (
        "throughput",
        "sentences a second, batch 32",
        "int8 products, sorted\nby length",
        "fewer layers, heads,\nneurons; a student",
        "smaller files of\nthe same arithmetic",
    ),
    (
        "energy",
        "joules, at the socket",
        "whatever is faster;\nsmall enough for the cache",
        "int8 products: less\nfor each, too",
        "counting operations\nand not bytes",
    ),
    (
        "no training",
        "minutes, sentences",
        "int8; 4 to 5 bits",
        "GPTQ, low rank: some\nsentences, no labels",
        "2 bits; half of\nthe weights gone",
    ),
    (
        "training for an hour",
        "minutes, sentences",
        "prune or cut the rank,\nthen tune",
        "distil into\na thin student",
        "pretraining\nyour own",
    ),
)


def choice_guide() -> Figure:
    """A table: what is short, what to measure, what to try first and then, what does not help."""
    columns = ("your limit", "measure", "first", "then", "does not help")
    places = (0.0, 2.6, 5.5, 8.5, 11.4)
    figure, axes = new(14, 7.2)
    axes.set(xlim=(-0.1, 14.2), ylim=(-len(GUIDE) + 0.4, 1.1))
    axes.axis("off")
    for j, (x, column) in enumerate(zip(places, columns, strict=True)):
        colour = COLOURS[1] if j == 4 else COLOURS[0] if j in (2, 3) else "#000000"
        axes.text(x, 0.75, column, fontsize=14, weight="bold", color=colour, va="center")
        for y, line in enumerate(GUIDE):
            weight = "bold" if j == 0 else "normal"
            axes.text(x, -y, line[j], fontsize=12, va="center", weight=weight)
    for y in range(len(GUIDE)):
        axes.axhline(0.5 - y, color="#cccccc", lw=0.8)
    arrow = {"arrowstyle": "->", "color": COLOURS[0]}
    axes.annotate("", (places[3] - 0.2, 0.75), (places[2] + 0.9, 0.75), arrowprops=arrow)
    return figure


def peers(candidates: Sequence[dict], *, threads: int) -> Figure:
    """What the recipe `together_peers` measured: accuracy on test against megabytes, and against
    the speed-up at batch 1 and 32 with so many threads. Full marks are made of the student, hollow
    ones of the classifier. The line joins the models that no other one beats on both axes.
    """
    measured = [each for each in candidates if "reason" not in each]
    tools = list(dict.fromkeys(each["name"].split(",")[0] for each in measured))
    quality = [100 * each["test"]["accuracy"]["value"] for each in measured]
    speeds = {
        size: [each["latency"][str(threads)][size]["speedup"]["value"] for each in measured]
        for size in measured[0]["latency"][str(threads)]
    }
    sizes = [each["bytes"] / 1e6 for each in measured]
    every = [("megabytes, without the vocabulary (better to the left)", sizes, True)]
    every += [(f"speed-up at batch {s} (better to the right)", v, False) for s, v in speeds.items()]
    figure, panels = new(16, 5.4, columns=len(every), sharey=True)
    for axes, (label, values, smaller) in zip(panels, every, strict=True):
        front = _front(values, quality, smaller=smaller)
        axes.plot([values[i] for i in front], [quality[i] for i in front], color="#999999", lw=1)
        for each, x, y in zip(measured, values, quality, strict=True):
            k = tools.index(each["name"].split(",")[0])
            fill = "full" if each["source"] == "student" else "none"
            axes.plot(x, y, MARKERS[k], ms=9, color=COLOURS[k], fillstyle=fill, mew=1.5)
            if each["name"] == "ours, capstone" and axes is panels[0]:  # no room in the others
                axes.annotate("capstone", (x, y), (0, 9), textcoords="offset points", ha="center")
        axes.set(xlabel=label, xscale="log")
        axes.margins(x=0.12)
        _plain_numbers(axes.xaxis, 1, 2, 5)
    panels[0].set_ylabel("accuracy on test, %")
    handles = [
        Line2D([], [], ls="", marker=MARKERS[k], color=COLOURS[k], label=tool)
        for k, tool in enumerate(tools)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(tools))
    return figure


# ---------------------------------------------------------------- every lecture


def lines(
    series: dict[str, list[tuple]],
    *,
    xlabel: str,
    ylabel: str,
    band: tuple[str, float, float] | None = None,
    log: bool = False,
    logy: bool = False,
) -> Figure:
    """Points joined by lines, one marker, line and colour a series.

    Args:
        series: label -> points (x, y), or (x, y, low, high) with an interval.
        band: label, low and high of something to compare with, drawn behind.
        log, logy: the horizontal axis, and the vertical one, in powers.
    """
    figure, axes = new(9, 4.5)
    if band is not None:
        axes.axhspan(*band[1:], color="#dddddd", label=band[0])
    for i, (label, points) in enumerate(series.items()):
        x, y, *ends = np.array(points, dtype=float).T
        axes.errorbar(
            x, y, yerr=np.abs(np.array(ends) - y) if ends else None, capsize=3, label=label,
            fmt=MARKERS[i] + DASHES[i % 4], color=COLOURS[i],
        )  # fmt: skip
    if log:
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis, 1, 2, 5)
    if logy:
        axes.set_yscale("log")
        _plain_numbers(axes.yaxis, 1, 2, 5)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.legend(fontsize=11)
    return figure


def scaling(methods: dict[str, list[dict]]) -> Figure:
    """Time and memory against the length of a text, beside each other, in powers.

    Args:
        methods: label -> points with `length`, `seconds` and `bytes`, as the recipe
            attention_scaling records them.
    """
    figure, panels = new(11, 4.5, columns=2)
    for i, (label, points) in enumerate(methods.items()):
        style = {"label": label, "marker": MARKERS[i], "color": COLOURS[i]}
        lengths = [p["length"] for p in points]
        for axes, key, scale in zip(panels, ("seconds", "bytes"), (1e3, 1e-6), strict=True):
            values = [scale * p[key] for p in points]
            axes.plot(lengths, values, ls=DASHES[i % 4], **style)
    for axes, label in zip(panels, ("time, ms", "memory, MB"), strict=True):
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        _plain_numbers(axes.xaxis, 1, 3)
        _plain_numbers(axes.yaxis, 1)
    panels[0].legend(fontsize=11)
    return figure


def _plain_numbers(axis: Axis, *steps: int) -> None:
    """Ticks of a logarithmic axis at these steps of each power of ten, written out."""
    axis.set_major_locator(LogLocator(subs=steps))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_locator(NullLocator())


def patterns(grids: dict[str, np.ndarray]) -> Figure:
    """Which token attends to which, beside each other: a row for each query, coloured at its keys.

    Args:
        grids: title -> bool (queries, keys).
    """
    figure, panels = new(2.4 * len(grids), 3.3, columns=len(grids), sharey=True, squeeze=False)
    for axes, (title, grid) in zip(panels[0], grids.items(), strict=True):
        axes.imshow(grid, cmap=ListedColormap(["#eeeeee", COLOURS[0]]), vmin=0, vmax=1)
        axes.set(xlabel="key", title=f"{title}\n{np.mean(grid):.0%}")
        axes.title.set_fontsize(12)
        axes.grid(False)
    panels[0][0].set_ylabel("query")
    return figure


def percent(estimate: dict) -> tuple[float, float, float]:
    return tuple(100 * estimate[end] for end in ("value", "low", "high"))


FAR = 30  # times smaller, or faster, than the dense model: further away, it is only told in words


def pareto(rows: Sequence[dict], *, batch_size: int = 32, whole: bool = False) -> Figure:
    """The scoreboard as a picture: accuracy against megabytes, and against speed-up.

    The line joins the models that no other one beats on both axes.

    Args:
        whole: show every model; otherwise those far away, which would press all others together,
            are told in words below.
    """
    estimates = [accuracy(correct_of(row)) for row in rows]
    sizes = [row["bytes"] / 1e6 for row in rows]
    speeds = [speedup_of(row, batch_size).value for row in rows]
    near = [i for i in range(len(rows)) if whole or (sizes[i] * FAR > sizes[0] and speeds[i] < FAR)]
    figure, panels = new(12, 4.6 + 0.24 * math.ceil(len(rows) / 2), columns=2, sharey=True)
    lectures = sorted({row["lecture"] for row in rows})
    for axes, values, smaller in ((panels[0], sizes, True), (panels[1], speeds, False)):
        xy = [(values[i], 100 * estimates[i].value) for i in near]
        front = _front(*zip(*xy, strict=True), smaller=smaller)
        axes.plot(*zip(*(xy[i] for i in front), strict=True), color="#999999", lw=1)
        for i, (x, y) in zip(near, xy, strict=True):
            k, ends = lectures.index(rows[i]["lecture"]), estimates[i]
            axes.vlines(x, 100 * ends.low, 100 * ends.high, color=COLOURS[k], lw=1, alpha=0.4)
            axes.plot(x, y, MARKERS[k], ms=9, color=COLOURS[k], label=f"{i + 1}  {rows[i]['name']}")
        axes.set_xscale("log")
        axes.margins(x=0.12)
        _plain_numbers(axes.xaxis, *((1,) if whole else (1, 2, 3, 5)))
        _number(axes, xy, [str(i + 1) for i in near])
    panels[0].set(xlabel="megabytes on disk (better to the left)", ylabel="accuracy on test, %")
    panels[1].set(xlabel=f"speed-up at batch {batch_size} (better to the right)")
    handles, labels = panels[0].get_legend_handles_labels()
    for i in sorted(set(range(len(rows))) - set(near)):
        handles.append(Line2D([], [], ls=""))
        labels.append(
            f"{i + 1}  {rows[i]['name']}, not shown: {100 * estimates[i].value:.1f} %, "
            f"{sizes[i]:.2f} MB, {speeds[i]:.0f}×"
        )
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=12)
    return figure


def _number(axes: Axes, points: Sequence[tuple[float, float]], labels: Sequence[str]) -> None:
    """Write each label beside its point, on the side where the other points and labels are
    furthest away."""
    axes.figure.draw_without_rendering()
    places = axes.transData.transform(points)
    sides = np.array([(13, 9), (13, -9), (-13, 9), (-13, -9)]) * axes.figure.dpi / 72
    written: list[np.ndarray] = []
    for i, (place, point, label) in enumerate(zip(places, points, labels, strict=True)):
        # One of them far away, for a point that is alone.
        others = np.array([*places[:i], *places[i + 1 :], *written, place + 1e4])
        side = max(sides, key=lambda side: np.hypot(*(place + side - others).T).min())
        written.append(place + side)
        axes.annotate(
            label, point, xytext=side * 72 / axes.figure.dpi, textcoords="offset points",
            ha="center", va="center", fontsize=13,
        )  # fmt: skip


def _front(values: Sequence[float], quality: Sequence[float], *, smaller: bool) -> list[int]:
    """Indices of the points that no other point beats, in the order of `values`."""
    sign = 1 if smaller else -1
    order = sorted(range(len(values)), key=lambda i: (sign * values[i], -quality[i]))
    front, best = [], -np.inf
    for i in order:
        if quality[i] > best:
            front.append(i)
            best = quality[i]
    return front


if __name__ == "__main__":  # the picture of README.md
    method_map().savefig(DATA / "method_map.png", dpi=80)
