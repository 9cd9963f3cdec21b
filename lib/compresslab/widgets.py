"""Interactive explorers. Each is operated with the keyboard too, prints its values as text, and
keeps its last state in the notebook, so that it makes sense without a kernel.
"""

import math
from html import escape
from io import BytesIO

import ipywidgets
import matplotlib.image
import pandas as pd
from torch import Tensor

from .assets import DATA
from .costs import kv_cache_bytes, tokens_per_second, typical_shape, weight_bytes
from .pruning.masks import keep_largest

WIDE = {"description_width": "12em"}


def explore_memory() -> ipywidgets.Widget:
    """Parameters, bits, context and batch -> memory, tokens a second, and which device will do."""
    devices = pd.read_csv(DATA / "devices.csv")
    layout = ipywidgets.Layout(width="34em")
    controls = {
        "parameters": ipywidgets.SelectionSlider(
            options=[(_count(n), n) for n in (22.7e6, 135e6, 360e6, 1e9, 3e9, 8e9, 14e9, 32e9, 70e9,
                                              123e9, 405e9, 671e9, 1.04e12)],
            value=8e9, description="parameters", style=WIDE, layout=layout,
        ),
        "bits": ipywidgets.SelectionSlider(
            options=[32, 16, 8, 4, 3, 2, 1], value=16, description="bits a weight", style=WIDE,
            layout=layout,
        ),
        "context": ipywidgets.SelectionSlider(
            options=[(f"{n:,} tokens", n) for n in (2**k for k in range(7, 18))], value=4096,
            description="context", style=WIDE, layout=layout,
        ),
        "batch": ipywidgets.SelectionSlider(
            options=[2**k for k in range(9)], value=1, description="sequences at once",
            style=WIDE, layout=layout,
        ),
    }  # fmt: skip
    answer = ipywidgets.HTML()

    def update(_=None) -> None:
        answer.value = memory_report(devices, **{k: w.value for k, w in controls.items()})

    for control in controls.values():
        control.observe(update, "value")
    update()
    return ipywidgets.VBox([*controls.values(), answer])


def memory_report(
    devices: pd.DataFrame, *, parameters: float, bits: float, context: int, batch: int
) -> str:
    """The explorer's answer as HTML: two sums, and a row a device."""
    shape = typical_shape(parameters)
    weights = weight_bytes(parameters, bits=bits)
    cache = kv_cache_bytes(**vars(shape), tokens=context, batch=batch)
    total = weights + cache
    lines = []
    for device in devices.sort_values("memory_bytes").itertuples():
        share = total / device.memory_bytes
        fits = share <= 1
        speed = tokens_per_second(total, device.bandwidth_bytes_per_second, batch=batch)
        lines.append(
            f"<tr><td>{'✔ fits' if fits else '✘'}</td><td>{escape(device.name)}</td>"
            f"<td style='text-align:right'>{_size(device.memory_bytes)}</td>"
            f"<td>{_bar(share)}</td>"
            f"<td style='text-align:right'>{_speed(speed) if fits else ''}</td></tr>"
        )
    return (
        "<div style='line-height:1.25'>"
        f"<p><b>weights {_size(weights)} + KV cache {_size(cache)} = {_size(total)}</b> "
        f"({_count(parameters)} parameters at {bits} bits; {batch} × {context:,} tokens; "
        f"a decoder of {shape.layers} layers with {shape.kv_heads} key-value heads is assumed)</p>"
        "<table><tr><th></th><th>device</th><th>memory</th><th>share of it</th>"
        f"<th>tokens/s at most</th></tr>{''.join(lines)}</table></div>"
    )


def explore_sparsity(weight: Tensor, runs: list[dict]) -> ipywidgets.Widget:
    """Sparsity -> which weights of a matrix stay, its bytes in three formats, and the accuracy.

    Args:
        weight: a matrix of the classifier's encoder (out_features, in_features).
        runs: recorded runs with `sparsity` and the accuracy's `value`, `low` and `high`.
    """
    runs = {f"{run['sparsity']:.0%}": run for run in runs}
    slider = ipywidgets.SelectionSlider(
        options=list(runs), description="weights removed", style=WIDE,
        layout=ipywidgets.Layout(width="34em"),
    )  # fmt: skip
    picture = ipywidgets.Image(format="png", width=384, height=384)
    answer = ipywidgets.HTML()

    def update(_=None) -> None:
        run = runs[slider.value]
        picture.value = mask_picture(weight, run["sparsity"])
        answer.value = sparsity_report(weight, run)

    slider.observe(update, "value")
    update()
    return ipywidgets.VBox([slider, ipywidgets.HBox([picture, answer])])


def mask_picture(weight: Tensor, sparsity: float, *, size: int = 64) -> bytes:
    """PNG of the top left corner of |weight|, dark is small, with the removed weights white."""
    mask = keep_largest(weight.detach().abs(), sparsity)[:size, :size]
    corner = weight.detach().abs()[:size, :size]
    colours = matplotlib.colormaps["cividis"]((corner / corner.max()).numpy())
    colours[~mask.numpy()] = 1
    buffer = BytesIO()
    matplotlib.image.imsave(buffer, colours.repeat(6, 0).repeat(6, 1), format="png")
    return buffer.getvalue()


def sparsity_report(weight: Tensor, run: dict) -> str:
    """The explorer's answer as HTML: counts and bytes of this matrix, accuracy of the model."""
    n = weight.numel()
    kept = n - round(run["sparsity"] * n)
    sizes = {
        "dense": 4 * n,
        "bitmap": 4 * kept + math.ceil(n / 8),
        "CSR": 6 * kept + 4 * (weight.shape[0] + 1),
    }
    lines = "".join(
        f"<tr><td>{name}</td><td style='text-align:right'>{size / 1000:,.0f} kB</td>"
        f"<td>{_bar(size / (4 * n))}</td></tr>"
        for name, size in sizes.items()
    )
    accuracy = " to ".join(f"{100 * run[end]:.1f}" for end in ("low", "high"))
    return (
        f"<div style='line-height:1.4;margin-left:1em'><p>{kept:,} of {n:,} weights stay "
        f"(white: removed; yellow: large)</p><table>{lines}</table>"
        f"<p>the whole encoder pruned like this: accuracy <b>{100 * run['value']:.1f} %</b> "
        f"({accuracy})</p></div>"
    )


def explore_structure(weight: Tensor, runs: dict[str, list[dict]]) -> ipywidgets.Widget:
    """The same number of weights removed one by one or as whole neurons: a layer's picture, bytes,
    operations, speed and accuracy.

    Args:
        weight: a feed-forward up matrix of the classifier (neurons, in_features).
        runs: shape of the holes, "single weights" or "neurons" -> recorded runs with `removed`, the
            fraction of the encoder's weights, the accuracy's `value`, `low` and `high`, and
            `speedup` over the dense model. Both shapes have the same `removed`.
    """
    shape = ipywidgets.ToggleButtons(
        options=list(runs), description="what goes", style=WIDE, tooltips=list(runs)
    )
    slider = ipywidgets.SelectionSlider(
        options=[f"{run['removed']:.0%}" for run in runs["single weights"]],
        description="of the encoder", style=WIDE, layout=ipywidgets.Layout(width="34em"),
    )  # fmt: skip
    picture = ipywidgets.Image(format="png", width=384)
    answer = ipywidgets.HTML()

    def update(_=None) -> None:
        run = next(r for r in runs[shape.value] if f"{r['removed']:.0%}" == slider.value)
        neurons = shape.value == "neurons"
        picture.value = structure_picture(weight, run, neurons=neurons)
        answer.value = structure_report(weight, run, neurons=neurons)

    for control in (shape, slider):
        control.observe(update, "value")
    update()
    return ipywidgets.VBox([shape, slider, ipywidgets.HBox([picture, answer])])


# Two thirds of an encoder's weights are feed-forward, so that neurons must go half as much again.
FEED_FORWARD = 2 / 3


def structure_picture(weight: Tensor, run: dict, *, neurons: bool, size: int = 64) -> bytes:
    """PNG of the first rows of |weight|: with holes, or with fewer rows, as tall as it still is."""
    if not neurons:
        return mask_picture(weight, run["removed"], size=size)
    rows = weight.detach()[:size]
    kept = keep_largest(rows.norm(dim=1), run["removed"] / FEED_FORWARD)
    return mask_picture(rows[kept], 0.0, size=size)


def structure_report(weight: Tensor, run: dict, *, neurons: bool) -> str:
    """The explorer's answer as HTML."""
    removed, (rows, columns) = run["removed"], weight.shape
    left = rows - round(removed / FEED_FORWARD * rows) if neurons else rows
    share = 1 - removed if neurons else min(1.0, 1 - removed + 1 / 32, 1.5 * (1 - removed))
    accuracy = " to ".join(f"{100 * run[end]:.1f}" for end in ("low", "high"))
    lines = {
        "this matrix": f"{left:,} × {columns}"
        + ("" if neurons else f", {1 - removed:.0%} of it not zero"),
        "bytes of the encoder": _bar(share),
        "operations": _bar(1 - removed if neurons else 1.0),
        "speed": f"{run['speedup']:.2f} times the dense model's",
        "accuracy": f"<b>{100 * run['value']:.1f} %</b> ({accuracy})",
    }
    cells = "".join(f"<tr><td>{name}</td><td>{value}</td></tr>" for name, value in lines.items())
    return f"<div style='line-height:1.5;margin-left:1em'><table>{cells}</table></div>"


def _bar(share: float) -> str:
    colour = "#0072B2" if share <= 1 else "#D55E00"
    width = min(share, 1) * 8
    label = f"{100 * share:.0f} %" if share < 10 else f"{share:,.0f} ×"
    return (
        f"<span style='display:inline-block;width:{width:.2f}em;height:0.8em;background:{colour}'>"
        f"</span> {label}"
    )


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000 or unit == "TB":
            return f"{count:,.3g} {unit}"
        count /= 1000
    raise AssertionError


def _speed(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"


def _count(parameters: float) -> str:
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if parameters >= size:
            return f"{parameters / size:.3g} {unit}"
    return f"{parameters:,.0f}"
