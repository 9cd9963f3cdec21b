"""The interactive explorers of the lectures."""

import math
from collections.abc import Callable
from html import escape

import ipywidgets
import matplotlib
import pandas as pd
import torch
from torch import Tensor

from .assets import DATA
from .corpora import LABELS
from .costs import kv_cache_bytes, tokens_per_second, typical_shape, weight_bytes
from .distillation.soft_targets import soft_target_loss
from .explorer import Explorer, picture
from .factorization.svd import break_even_rank
from .measure import compare_accuracy, compare_latency
from .pruning.masks import keep_largest
from .quantization.affine import fake_quantize, quantize_tensor
from .quantization.llm_int8 import llm_int8_matmul
from .scoreboard import BATCH_SIZES, correct_of, needs_training, speedup_of
from .sharing.codebooks import Clustered, cluster, clustered_bytes
from .sharing.huffman import entropy


def explore_memory() -> Explorer:
    """Parameters, bits, context and batch -> memory, tokens a second, and which device will do."""
    devices = pd.read_csv(DATA / "devices.csv")
    sizes = (22.7e6, 135e6, 360e6, 1e9, 3e9, 8e9, 14e9, 32e9, 70e9, 123e9, 405e9, 671e9, 1.04e12)
    controls = {
        "parameters": _slider("parameters", [(_count(n), n) for n in sizes], value=8e9),
        "bits": _slider("bits a weight", [32, 16, 8, 4, 3, 2, 1], value=16),
        "context": _slider(
            "context", [(f"{n:,} tokens", n) for n in (2**k for k in range(7, 18))], value=4096
        ),
        "batch": _slider("sequences at once", [2**k for k in range(9)], value=1),
    }

    def answer(**choice) -> str:
        return memory_report(devices, **choice)

    return Explorer("Which device holds which model?", controls, answer)


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
            f"<tr><td>{'✔ fits' if fits else '✘'}<td>{escape(device.name)}"
            f'<td class="number">{_size(device.memory_bytes)}<td>{_bar(share)}'
            f'<td class="number">{_speed(speed) if fits else ""}'
        )
    return (
        f"<div><p><b>weights {_size(weights)} + KV cache {_size(cache)} = {_size(total)}</b> "
        f"({_count(parameters)} parameters at {bits} bits; {batch} × {context:,} tokens; "
        f"a decoder of {shape.layers} layers with {shape.kv_heads} key-value heads is assumed)</p>"
        "<table><tr><th><th>device<th>memory<th>share of it"
        f"<th>tokens/s at most{''.join(lines)}</table></div>"
    )


def explore_sparsity(weight: Tensor, runs: list[dict]) -> Explorer:
    """Sparsity -> which weights of a matrix stay, its bytes in three formats, and the accuracy.

    Args:
        weight: a matrix of the classifier's encoder (out_features, in_features).
        runs: recorded runs with `sparsity` and the accuracy's `value`, `low` and `high`.
    """
    options = [(f"{run['sparsity']:.0%}", i) for i, run in enumerate(runs)]

    def answer(run: int) -> str:
        return mask_picture(weight, runs[run]["sparsity"]) + sparsity_report(weight, runs[run])

    return Explorer("Which weights stay?", {"run": _slider("weights removed", options)}, answer)


def mask_picture(weight: Tensor, sparsity: float, *, size: int = 64) -> str:
    """The top left corner of |weight| as <img>: dark is small, and removed weights are white."""
    mask = keep_largest(weight.detach().abs(), sparsity)[:size, :size]
    corner = weight.detach().abs()[:size, :size]
    colours = matplotlib.colormaps["cividis"]((corner / corner.max()).numpy())
    colours[~mask.numpy()] = 1
    return picture(
        colours,
        alt=f"The magnitudes of {mask.shape[0]} rows and {mask.shape[1]} columns of the matrix: "
        f"{1 - mask.float().mean():.0%} of the weights are removed, and white.",
    )


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
        f'<tr><td>{name}<td class="number">{size / 1000:,.0f} kB<td>{_bar(size / (4 * n))}'
        for name, size in sizes.items()
    )
    accuracy = " to ".join(f"{100 * run[end]:.1f}" for end in ("low", "high"))
    return (
        f"<div><p>{run['sparsity']:.0%} removed: {kept:,} of {n:,} weights stay "
        f"(white: removed; yellow: large)</p><table>{lines}</table>"
        f"<p>the whole encoder pruned like this: accuracy <b>{100 * run['value']:.1f} %</b> "
        f"({accuracy})</p></div>"
    )


def explore_structure(weight: Tensor, runs: dict[str, list[dict]]) -> Explorer:
    """The same number of weights removed one by one or as whole neurons: a layer's picture, bytes,
    operations, speed and accuracy.

    Args:
        weight: a feed-forward up matrix of the classifier (neurons, in_features).
        runs: shape of the holes, "single weights" or "neurons" -> recorded runs with `removed`, the
            fraction of the encoder's weights, the accuracy's `value`, `low` and `high`, and
            `speedup` over the dense model. Both shapes have the same `removed`.
    """
    options = [(f"{run['removed']:.0%}", i) for i, run in enumerate(runs["single weights"])]
    controls = {
        "shape": ipywidgets.ToggleButtons(options=list(runs), description="what goes"),
        "run": _slider("of the encoder", options),
    }

    def answer(shape: str, run: int) -> str:
        chosen, neurons = runs[shape][run], shape == "neurons"
        return structure_picture(weight, chosen, neurons=neurons) + structure_report(
            weight, chosen, neurons=neurons
        )

    return Explorer("Single weights or whole neurons?", controls, answer)


# Two thirds of an encoder's weights are feed-forward, so that neurons must go half as much again.
FEED_FORWARD = 2 / 3


def structure_picture(weight: Tensor, run: dict, *, neurons: bool, size: int = 64) -> str:
    """The first rows of |weight| as <img>, with holes, or fewer and as tall as it still is."""
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
        "removed": f"{removed:.0%} of the encoder, {'as neurons' if neurons else 'one by one'}",
        "this matrix": f"{left:,} × {columns}"
        + ("" if neurons else f", {1 - removed:.0%} of it not zero"),
        "bytes of the encoder": _bar(share),
        "operations": _bar(1 - removed if neurons else 1.0),
        "speed": f"{run['speedup']:.2f} times the dense model's",
        "accuracy": f"<b>{100 * run['value']:.1f} %</b> ({accuracy})",
    }
    cells = "".join(f"<tr><th>{name}<td>{value}" for name, value in lines.items())
    return f"<div><table>{cells}</table></div>"


def explore_rounding(weights: Tensor, formats: dict[str, Callable[[Tensor], Tensor]]) -> Explorer:
    """A weight and a format -> the nearest number that the format has, and how far it is off.

    Args:
        weights: a few real weights (n,).
        formats: name -> rounds a tensor to the format.
    """
    controls = {
        "weight": _slider("a weight", [(f"{w:.7g}", i) for i, w in enumerate(weights.tolist())]),
        "format": ipywidgets.ToggleButtons(options=list(formats), description="format"),
    }

    def answer(weight: int, format: str) -> str:
        return rounding_report(weights, weight, format, formats)

    return Explorer("What is left of a weight?", controls, answer)


def rounding_report(
    weights: Tensor, index: int, chosen: str, formats: dict[str, Callable[[Tensor], Tensor]]
) -> str:
    """The explorer's answer as HTML: the weight in every format, the chosen one marked."""
    weight = float(weights[index])
    nearest = {name: float(rounds(weights)[index]) for name, rounds in formats.items()}
    off = {name: abs(rounded - weight) / abs(weight) for name, rounded in nearest.items()}
    marks = {name: "▶ " if name == chosen else "" for name in formats}
    lines = "".join(
        f"<tr><th>{marks[name]}{name}<td>{nearest[name]:.7g}<td>{_bar(off[name])}"
        for name in formats
    )
    return (
        f"<div><p>{weight:.7g} becomes <b>{nearest[chosen]:.7g}</b> in {chosen}: off by "
        f"{_percent(off[chosen])}</p>"
        f"<table><tr><th>format<th>nearest number<th>off by{lines}</table></div>"
    )


def explore_quantization(weight: Tensor) -> Explorer:
    """Bits, group and zero point -> a matrix's error map, its bytes, and the size of the error.

    Args:
        weight: a matrix (out_features, in_features).
    """
    groups = ["tensor", "channel", *(g for g in (128, 64, 32) if weight.shape[1] % g == 0)]
    controls = {
        "bits": _slider("bits", [8, 4, 3, 2], value=4),
        "granularity": _slider(
            "a scale for",
            [(_sharing(g), g) for g in groups],
            value="channel",
        ),
        "symmetric": ipywidgets.ToggleButtons(
            options=[("asymmetric", False), ("symmetric", True)], description="range"
        ),
    }

    def answer(**choice) -> str:
        return error_picture(weight, **choice) + quantization_report(weight, **choice)

    return Explorer("Where does the error go?", controls, answer)


def error_picture(weight: Tensor, *, size: int = 48, **options) -> str:
    """The top left corner of the rounding error as <img>; yellow is the step of 4 bits a row.

    In 16 shades: a page has a picture for every position of the controls.
    """
    step = quantize_tensor(weight, bits=4).scale.median()
    error = (weight.detach() - fake_quantize(weight.detach(), **options)).abs()[:size, :size]
    shades = ((error / step).clamp(max=1) * 15).round() / 15
    colours = matplotlib.colormaps["cividis"](shades.numpy())
    return picture(
        colours,
        alt=f"Rounding errors of {error.shape[0]} rows and {error.shape[1]} columns: dark is "
        f"small, yellow {step:.2g} or more; {error.mean() / step:.0%} of that on average.",
    )


def quantization_report(
    weight: Tensor, *, bits: int, granularity: str | int, symmetric: bool
) -> str:
    """The explorer's answer as HTML: bits a weight with scales, error of the weights."""
    quantized = quantize_tensor(weight, bits=bits, granularity=granularity, symmetric=symmetric)
    overhead = len(quantized.scale) * (16 + (0 if symmetric else bits)) / weight.numel()
    error = ((weight - quantized.dequantize()).norm() / weight.norm()).item()
    used = quantized.codes.unique().numel()
    kind = "symmetric" if symmetric else "asymmetric"
    lines = {
        "grid": f"{bits} bits, {kind}, a scale for {_sharing(granularity)}",
        "bits a weight": f"{bits} + {overhead:.3g} for the grids = <b>{bits + overhead:.3g}</b>",
        "bytes": _bar((bits + overhead) / 32) + " of float32's",
        "scales": f"{len(quantized.scale):,} for {weight.numel():,} weights",
        "codes used": f"{used} of {2**bits - symmetric}",
        "error": f"{_bar(error)} of the weights' size",
    }
    cells = "".join(f"<tr><th>{name}<td>{value}" for name, value in lines.items())
    return f"<div><table>{cells}</table></div>"


def _sharing(granularity: str | int) -> str:
    return f"a {granularity}" if isinstance(granularity, str) else f"{granularity} of a row"


def explore_outliers(x: Tensor, weight: Tensor) -> Explorer:
    """A threshold -> what of a layer's input stays float in LLM.int8(), and what that gains.

    Args:
        x: inputs of the layer (tokens, in_features).
        weight: its weight (out_features, in_features).
    """
    largest = x.abs().max().item()
    thresholds = [t for t in (96, 64, 48, 32, 24, 16, 12, 8, 6, 4, 3, 2, 1.5) if t < largest]
    options = [("none", math.inf), *((f"{t:g}", t) for t in thresholds)]
    controls = {"threshold": _slider("threshold", options)}
    codes = quantize_tensor(weight.detach(), bits=8, symmetric=True)
    exact = x @ weight.detach().T

    def answer(threshold: float) -> str:
        y = llm_int8_matmul(x, codes, threshold=threshold)
        error = ((y - exact).norm() / exact.norm()).item()
        return outlier_picture(x, threshold) + outlier_report(x, threshold, error)

    return Explorer("What has to stay in floating point?", controls, answer)


def outlier_picture(x: Tensor, threshold: float, *, size: int = 64) -> str:
    """The largest |x| of each column, the columns in order from the top left, as <img>: from dark
    to yellow on a logarithmic scale up to the largest of all, outliers in red."""
    peaks = x.abs().amax(0)
    share = (peaks.clamp(min=0.1) / 0.1).log() / (peaks.max().clamp(min=0.2) / 0.1).log()
    colours = torch.from_numpy(matplotlib.colormaps["cividis"](share.numpy()))
    colours[peaks >= threshold] = torch.tensor([0.84, 0.37, 0.0, 1.0], dtype=colours.dtype)
    colours = torch.cat([colours, torch.ones(-len(colours) % size, 4, dtype=colours.dtype)])
    return picture(
        colours.view(-1, size, 4).numpy(),
        alt=f"{peaks.numel()} columns, each as bright as its largest number, up to "
        f"{peaks.max():.3g}; {int((peaks >= threshold).sum())} of them are marked as outliers.",
    )


def outlier_report(x: Tensor, threshold: float, error: float) -> str:
    """The explorer's answer as HTML: columns that stay float, the step of the others, the error."""
    outliers = (x.abs() >= threshold).any(0)
    inside = x.masked_fill(outliers, 0).abs().amax(1)
    share = outliers.float().mean().item()
    lines = {
        "threshold": "none: all in int8" if math.isinf(threshold) else f"{threshold:g}",
        "columns in float": f"<b>{int(outliers.sum())}</b> of {outliers.numel():,} ({share:.1%})",
        "largest in int8": f"{inside.max():.3g}, step {inside.max() / 127:.2g}",
        "error": f"<b>{100 * error:.2g} %</b> of the output's size",
    }
    cells = "".join(f"<tr><th>{name}<td>{value}" for name, value in lines.items())
    return f"<div><table>{cells}</table></div>"


def explore_rank(weight: Tensor) -> Explorer:
    """A rank -> the matrix that is left, its spectrum, bytes, error and speed.

    Args:
        weight: a matrix (out_features, in_features).
    """
    weight = weight.detach()
    u, s, vh = torch.linalg.svd(weight, full_matrices=False)
    steps = (1, 2, 4, 8, 16, 32, 64, 96, 128, 160, 192, 256, 320, 384, 512, 768)
    ranks = [rank for rank in steps if rank < len(s)] + [len(s)]
    controls = {
        "rank": _slider("rank", ranks),
        "missing": ipywidgets.ToggleButtons(
            options=[("what is left", False), ("what is missing", True)], description="picture"
        ),
    }
    speed = rank_speeds(weight, ranks)

    def answer(rank: int, missing: bool) -> str:
        left = u[:, :rank] * s[:rank] @ vh[:rank]
        shown = weight - left if missing else left
        return (
            matrix_picture(shown, scale=3 * weight.std().item())
            + spectrum_picture(s, rank)
            + rank_report(weight, s, rank, speed[rank])
        )

    return Explorer("How much of a matrix is its first few directions?", controls, answer)


def rank_speeds(weight: Tensor, ranks: list[int], *, tokens: int = 32) -> dict[int, float]:
    """How many times as fast as the matrix two factors are, for `tokens` at once, by rank."""
    out_features, in_features = weight.shape
    x = torch.randn(tokens, in_features)

    def product(rank: int) -> Callable[[], Tensor]:
        right, left = torch.randn(rank, in_features), torch.randn(out_features, rank)
        return lambda: x @ right.T @ left.T

    candidates = {"dense": lambda: x @ weight.T} | {rank: product(rank) for rank in ranks}
    times = compare_latency(candidates, baseline="dense", rounds=7, seconds=0.005)
    return {rank: times[rank].speedup.value for rank in ranks}


def matrix_picture(weight: Tensor, *, scale: float, size: int = 48) -> str:
    """The top left corner as <img>: blue below zero, yellow above, up to `scale`, in 16 shades."""
    corner = weight[:size, :size]
    shades = ((corner / scale).clamp(-1, 1) * 7.5 + 7.5).round() / 15
    return picture(
        matplotlib.colormaps["cividis"](shades.numpy()),
        alt=f"The first {corner.shape[0]} rows and {corner.shape[1]} columns: blue numbers are "
        f"negative, yellow ones positive; their mean size is {corner.abs().mean():.2g}.",
    )


def spectrum_picture(s: Tensor, rank: int, *, width: int = 96, height: int = 32) -> str:
    """Singular values as bars, in order, the kept ones in blue, as <img>."""
    columns = torch.linspace(0, len(s) - 1, width).round().long()
    tall = (s[columns] / s[0] * height).ceil()
    rows = torch.arange(height, 0, -1)[:, None]
    colours = torch.ones(height, width, 4)
    colours[rows <= tall] = torch.tensor([0.6, 0.6, 0.6, 1.0])
    colours[(rows <= tall) & (columns < rank)] = torch.tensor([0.0, 0.45, 0.7, 1.0])
    return picture(
        colours.numpy(),
        alt=f"Bars of the {len(s)} singular values from {s[0]:.2g} down to {s[-1]:.2g}; "
        f"the first {rank} are blue, as they are kept.",
    )


def rank_report(weight: Tensor, s: Tensor, rank: int, speed: float) -> str:
    """The explorer's answer as HTML: numbers, bytes, error and speed of two factors."""
    out_features, in_features = weight.shape
    numbers = rank * (out_features + in_features)
    error = (s[rank:].square().sum() / s.square().sum()).sqrt().item()
    lines = {
        "rank": f"<b>{rank}</b> of {len(s)}; factors have fewer numbers up to "
        f"{break_even_rank(out_features, in_features)}",
        "bytes": f"{_bar(numbers / weight.numel())} of the matrix's {_size(4 * weight.numel())}",
        "error": f"{_bar(error)} of the weights' size",
        "speed": f"{speed:.2g} times the matrix's, 32 tokens at once",
    }
    cells = "".join(f"<tr><th>{name}<td>{value}" for name, value in lines.items())
    return f"<div><table>{cells}</table></div>"


def explore_temperature(sentences: list[dict]) -> Explorer:
    """A sentence and a temperature -> teacher's and student's softened answers, and what the loss
    does to the student.

    Args:
        sentences: each with `text`, `label` (0 or 1), and logits `teacher` and `student` (2,).
    """
    numbers = [f"{i + 1} of {len(sentences)}" for i in range(len(sentences))]
    controls = {
        "temperature": _slider("temperature", [0.5, 1, 2, 4, 8, 16], value=1),
        "sentence": _slider("sentence", list(zip(numbers, range(len(sentences)), strict=True))),
    }

    def answer(temperature: float, sentence: int) -> str:
        shown = dict(sentences[sentence])
        shown["text"] = f"{numbers[sentence]}: {shown['text']}"
        return temperature_report(**shown, temperature=temperature)

    return Explorer("What does the teacher say, and how strongly does it pull?", controls, answer)


def temperature_report(
    text: str, label: int, teacher: Tensor, student: Tensor, *, temperature: float
) -> str:
    """The explorer's answer as HTML: both answers, the loss, and its gradient beside the label's.

    The gradient is that of the student's logit for "positive": T (q - p), and q - y at T = 1.
    """
    p, q = (float((logits / temperature).softmax(-1)[1]) for logits in (teacher, student))
    loss = soft_target_loss(student[None], teacher[None], temperature=temperature).item()
    hard = float(student.softmax(-1)[1]) - label
    lines = {
        "teacher": f"{_bar(p)} positive",
        "student": f"{_bar(q)} positive",
        "loss": f"T² KL = {loss:.3f}",
        "gradient": f"{temperature * (q - p):+.3f}; of the label alone {hard:+.3f}",
    }
    cells = "".join(f"<tr><th>{name}<td>{value}" for name, value in lines.items())
    return (
        f"<div><p>{escape(text)}<br>label: <b>{LABELS[label]}</b>; T = {temperature:g}</p>"
        f"<table>{cells}</table></div>"
    )


def explore_codebook(weight: Tensor) -> Explorer:
    """Bits and start -> the centroids among a matrix's weights, bytes, and the size of the error.

    Args:
        weight: a matrix (out_features, in_features).
    """
    controls = {
        "bits": _slider("bits", [1, 2, 3, 4, 5, 6, 8], value=3),
        "start": ipywidgets.ToggleButtons(
            options=["linear", "density", "random"], description="start"
        ),
    }

    def answer(bits: int, start: str) -> str:
        generator = torch.Generator().manual_seed(0)
        found = cluster(weight, bits=bits, start=start, generator=generator)
        return codebook_picture(weight, found.codebook[0]) + codebook_report(weight, found, start)

    return Explorer("Where do the centroids end?", controls, answer)


def codebook_picture(
    weight: Tensor, codebook: Tensor, *, width: int = 192, height: int = 40
) -> str:
    """How many weights there are of each size, up to the largest, as bars on a scale of
    logarithms, and the centroids (clusters,) as blue lines, as <img>.
    """
    reach = weight.abs().max().item()
    counts = torch.histc(weight.detach().float(), width, min=-reach, max=reach)
    tall = (counts + 1).log() / (counts.max() + 1).log() * height
    colours = torch.ones(height, width, 4)
    colours[torch.arange(height, 0, -1)[:, None] <= tall] = torch.tensor([0.6, 0.6, 0.6, 1.0])
    places = ((codebook + reach) / (2 * reach) * width).long().clamp(0, width - 1)
    colours[:, places] = torch.tensor([0.0, 0.45, 0.7, 1.0])
    return picture(
        colours.numpy(),
        alt=f"How many weights there are from {-reach:.2g} to {reach:.2g}, most near 0, and the "
        f"{len(codebook)} centroids from {codebook.min():.2g} to {codebook.max():.2g}.",
    )


def codebook_report(weight: Tensor, found: Clustered, start: str) -> str:
    """The explorer's answer as HTML: bytes, both errors, and what entropy coding would leave."""
    counts = torch.bincount(found.codes.flatten().long(), minlength=2**found.bits)
    packed = clustered_bytes(weight.numel(), bits=found.bits)
    coded = entropy(counts) * weight.numel() / 8 + packed - found.bits * weight.numel() / 8
    off = (weight - found.reconstruct()).abs()
    grid = fake_quantize(weight, bits=found.bits, granularity="tensor")
    lines = {
        "codebook": f"<b>{2**found.bits}</b> numbers from a {start} start",
        "bytes": f"{_bar(packed / (4 * weight.numel()))} of float32's, "
        f"at the entropy {_percent(coded / (4 * weight.numel()))}",
        "error": f"{_bar((off.norm() / weight.norm()).item())} of the weights' size; an even grid "
        f"{_percent(((weight - grid).norm() / weight.norm()).item())}",
        "largest error": f"{off.max() / weight.std():.2g} standard deviations",
        "smallest cluster": f"{counts.min():,} of {weight.numel():,} weights",
    }
    cells = "".join(f"<tr><th>{name}<td>{value}" for name, value in lines.items())
    return f"<div><table>{cells}</table></div>"


def explore_attention(scaling: dict) -> Explorer:
    """Method, window and length -> who attends to whom, how many pairs, time and memory.

    Args:
        scaling: figures of the recipe attention_scaling.
    """
    points = {method["name"]: method["points"] for method in scaling["methods"]}
    usual = scaling["options"]["window"]
    windows = [usual // 4, usual, 4 * usual]
    forms = {"all scores": "full", "tiles": "flash", "linear attention": "linear attention"}
    forms |= {w: "sliding window" if w == usual else f"sliding window, {w}" for w in windows}
    controls = {
        "method": ipywidgets.ToggleButtons(
            options=["all scores", "tiles", "window", "linear attention"],
            value="window",
            description="method",
        ),
        "window": _slider("window, tokens", [(f"{w:,}", w) for w in windows], value=usual),
        "tokens": _slider("text, tokens", [(f"{n:,}", n) for n in scaling["lengths"]], value=2048),
    }

    def answer(method: str, window: int, tokens: int) -> str:
        name = forms[window if method == "window" else method]
        ours, torchs = (
            next((p for p in points[form] if p["length"] == tokens), None)
            for form in (name, "torch")
        )
        return attention_picture(method, window, tokens) + attention_report(
            method, window, tokens, ours, torchs
        )

    return Explorer("What does it cost to read a text?", controls, answer)


def attention_picture(method: str, window: int, tokens: int, *, size: int = 64) -> str:
    """Queries from top to bottom, keys from left to right, as <img>: blue where scores are
    computed, light where what a token left is read from a state.
    """
    edges = torch.arange(size + 1) * tokens // size
    first, last = edges[:-1], edges[1:] - 1  # tokens of each pixel
    seen = last[:, None] >= first
    if method == "window":
        seen &= first[:, None] - last < window
    blue = [0.75, 0.87, 0.95, 1] if method == "linear attention" else [0.0, 0.45, 0.7, 1]
    colours = torch.tensor([0.93, 0.93, 0.93, 1]).repeat(size, size, 1)
    colours[seen] = torch.tensor(blue)
    share = seen.float().mean().item()
    how = "through a state" if method == "linear attention" else "by a score"
    return picture(
        colours.numpy(),
        alt=f"{tokens:,} tokens, {method}: {_percent(share)} of the square are reached {how}.",
    )


def attention_report(
    method: str, window: int, tokens: int, ours: dict | None, torchs: dict | None
) -> str:
    """The explorer's answer as HTML: pairs, time and memory of the point `ours`, and its speed
    beside torch's own attention; a point is None where the recipe did not go so far.
    """
    pairs = tokens * (tokens + 1) // 2
    if method == "window":
        near = min(window, tokens)
        pairs = near * (near + 1) // 2 + (tokens - near) * near
    if method == "linear attention":
        kept = "no scores but within chunks; a state of constant size"
    else:
        kept = f"{_count(pairs)} of {_count(tokens**2)} pairs"
    of = f"{method}, {window:,} tokens wide" if method == "window" else method
    lines = {"method": f"<b>{of}</b>, {tokens:,} tokens", "scores": kept}
    if ours is None:
        lines["time"] = "not run: too long, or too much memory"
    else:
        lines |= {
            "time": f"{1000 * ours['seconds']:,.3g} ms",
            "memory": _size(ours["bytes"]),
        }
        if torchs is not None:
            ratio = torchs["seconds"] / ours["seconds"]
            lines["torch's attention"] = f"{1000 * torchs['seconds']:,.3g} ms: {ratio:.2g} times it"
    if method != "window":
        lines["window"] = f"{window:,} tokens, not used"
    cells = "".join(f"<tr><th>{name}<td>{value}" for name, value in lines.items())
    return f"<div><table>{cells}</table></div>"


CHOICES_SHOWN = 6


def explore_choice(rows: list[dict]) -> Explorer:
    """Limits on file, speed, loss and training -> the recorded models within all of them, the most
    accurate first, and which limit rules out how many others alone.

    Args:
        rows: of the scoreboard, the dense model first.
    """
    models = [_candidate(row, rows[0]) for row in rows]
    points = [("any", math.inf), ("5", 5), ("2", 2), ("1", 1)]
    controls = {
        "megabytes": _slider(
            "file, at most", [("any size", math.inf), *((f"{m} MB", m) for m in (25, 10, 2))]
        ),
        "speedup": _slider("speed, at least", [("any", 0), *((f"{s} ×", s) for s in (2, 4, 10))]),
        "lost": _slider("points lost, at most", points, value=2),
        "training": ipywidgets.ToggleButtons(
            options=[("allowed", True), ("none", False)], description="training"
        ),
        "batch": ipywidgets.ToggleButtons(
            options=[("one by one", 1), ("32 at once", 32)], description="sentences"
        ),
    }

    def answer(**choice) -> str:
        return choice_report(models, **choice)

    return Explorer("Which model would you ship?", controls, answer)


def _candidate(row: dict, dense: dict) -> dict:
    """What a choice depends on: points against the dense model, with interval, size, speed."""
    difference = compare_accuracy(correct_of(dense), correct_of(row)).difference
    return {
        "name": row["name"],
        "points": [100 * d for d in (difference.value, difference.low, difference.high)],
        "megabytes": row["bytes"] / 1e6,
        "speedup": {size: speedup_of(row, size).value for size in BATCH_SIZES},
        "training": needs_training(row),
    }


def choice_report(
    models: list[dict],
    *,
    megabytes: float,
    speedup: float,
    lost: float,
    training: bool,
    batch: int,
) -> str:
    """The explorer's answer as HTML: the limits, a row for each of the best models within them, and
    how many models each limit rules out that all others would let pass.

    A limit on points is for the measured difference; its interval may reach beyond.
    """
    limits = {
        "file": lambda m: m["megabytes"] <= megabytes,
        "speed": lambda m: m["speedup"][batch] >= speedup,
        "loss": lambda m: m["points"][0] >= -lost - 1e-9,
        "training": lambda m: training or not m["training"],
    }
    broken = [{name for name, within in limits.items() if not within(m)} for m in models]
    left = [m for m, out in zip(models, broken, strict=True) if not out]
    left.sort(key=lambda m: (-m["points"][0], m["megabytes"]))
    alone = {name: sum(out == {name} for out in broken) for name in limits}
    lines = "".join(
        f"<tr><td>{escape(m['name'])}"
        f'<td class="number">{m["points"][0]:+.1f} ({m["points"][1]:+.1f} to {m["points"][2]:+.1f})'
        f'<td class="number">{m["megabytes"]:.3g} MB'
        f'<td class="number">{m["speedup"][batch]:.2g} ×'
        f'<td class="number">{_percent(1 / m["speedup"][batch])}'
        for m in left[:CHOICES_SHOWN]
    )
    head = "<tr><th>model<th>points (95 %)<th>file<th>speed<th>energy, about"
    more = len(left) - CHOICES_SHOWN
    table = f"<table>{head}{lines}</table>" if left else ""
    reasons = ", ".join(f"{name} {count}" for name, count in alone.items() if count)
    return (
        f"<div><p>file {_at_most(megabytes, 'MB')}; speed {_at_least(speedup)} with {batch} at "
        f"once; loss {_at_most(lost, 'points')}; training {'allowed' if training else 'none'}: "
        f"<b>{len(left)} of {len(models)}</b> models</p>{table}"
        + (f"<p>and {more} more</p>" if more > 0 else "")
        + f"<p>ruled out by one limit alone: {reasons or 'none'}</p></div>"
    )


def _at_most(limit: float, unit: str) -> str:
    return "any" if math.isinf(limit) else f"at most {limit:g} {unit}"


def _at_least(limit: float) -> str:
    return f"at least {limit:g} ×" if limit else "any"


def _slider(name: str, options: list, **settings) -> ipywidgets.SelectionSlider:
    return ipywidgets.SelectionSlider(options=options, description=name, **settings)


def _bar(share: float) -> str:
    over = "" if share <= 1 else " over"
    label = _percent(share) if share < 10 else f"{share:,.0f} ×"
    return f'<span class="bar{over}" style="width:{min(share, 1) * 8:.2f}em"></span> {label}'


def _percent(share: float) -> str:
    """Two digits of what is below ten percent, and whole numbers above."""
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"


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
