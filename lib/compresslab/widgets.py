"""Interactive explorers. Each is operated with the keyboard too, prints its values as text, and
keeps its last state in the notebook, so that it makes sense without a kernel.
"""

from html import escape

import ipywidgets
import pandas as pd

from .assets import DATA
from .costs import kv_cache_bytes, tokens_per_second, typical_shape, weight_bytes

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
        f"<p><b>weights {_size(weights)} + KV cache {_size(cache)} = {_size(total)}</b> "
        f"({_count(parameters)} parameters at {bits} bits; {batch} × {context:,} tokens; "
        f"a decoder of {shape.layers} layers with {shape.kv_heads} key-value heads is assumed)</p>"
        "<table><tr><th></th><th>device</th><th>memory</th><th>share of it</th>"
        f"<th>tokens/s at most</th></tr>{''.join(lines)}</table>"
    )


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
