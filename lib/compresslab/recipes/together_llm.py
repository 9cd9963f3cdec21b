"""SmolLM2 on a budget: the best perplexity in a file of 50, 35 and 25 MB, and tokens a second.

    python -m compresslab.recipes.together_llm

All candidates of one budget would have a file of just its size, by the entropy of their codes and
two bytes for each step and scale; in it, weights are whole numbers on grids (see `grids`), made by
GPTQ; one factor for all steps is searched for. They differ in

    steps    "even": the same for a matrix, in proportion to its weights, so that all get as many
             bits. "by inputs": columns get finer steps where errors cost more, by what the layer
             reads. "by both": rows, too, and with them layers and tokens of the table, by the
             squared gradients of what the layer gives: an error in each weight then costs the loss
             as much (the Hessian as a product of two, as Martens and Grosse, 2015,
             arXiv:1503.05671, but with the text's own next tokens). "by both, table even": the
             same, but for the rows of the table, which have one step. Their gradients come from the
             output alone, where a token that is not in the calibration text counts for nothing
    layers   all 30, or 24: those six go whose absence alone costs least on calibration text, and
             the rest, the table too, is taught by the whole model

Which steps is decided at 35 MB, and used for all else. Then, for every budget, both numbers of
layers are taught by the whole model: the codes stay, and steps and scales of the decoder and the
norms are trained; the better one wins. (Nothing could teach all 30 layers before they are rounded:
they say what the whole model says.) For comparison, GPTQ in groups of 96, the table rounded in such
groups without it, in codes of one length, whatever the size; it looks at inputs behind the layers
that are rounded already.

Calibration and training on the calibration articles, all choices on 16 windows of 512 tokens of the
validation articles, the three winners once on as many of the test articles. The weights lie on a
4-bit grid from the start (see the model's card), which nothing here makes use of.

Tokens a second, one text at a time, in three forms of the winners: every weight is made float32
when the file is read, so that nothing is gained but the file and what layers that went took; the
same, then the decoder in int8; and codes that stay packed in memory and are made float at every
token. About two and a half hours on two cores and 10 GB.
"""

import copy
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..layers import find_linears
from ..measure import bytes_on_disk, compare_latency, perplexity
from ..models import load_language_model
from ..pruning.depth import keep_layers, keep_layers_
from ..pruning.sparsegpt import collect_hessians
from ..quantization.affine import quantize_tensor
from ..quantization.gptq import gptq_model_
from ..quantization.int8 import quantize_linears_int8_
from ..quantization.linear import pack_embedding_
from ..sharing.tied import state_bytes
from ..training import train
from . import in_parallel, launch, record
from .distillation_llm import token_level
from .factorization_llm import next_token_loss
from .grids import (
    TABLE,
    ZERO,
    Grid,
    all_bytes,
    code_bytes,
    column_scales,
    half,
    matrices,
    nearest,
    pack_grids_,
    put_,
    read,
    round_to_grid,
    write,
)
from .quantization_llm import BEST, EVALUATION_WINDOWS, articles

SEED = 0  # nothing here is random
BUDGETS = (50_000_000, 35_000_000, 25_000_000)
TRIED = BUDGETS[1]
WAYS = ("even", "by inputs", "by both", "by both, table even")
LAYERS = (30, 24)
CALIBRATION_WINDOWS, FEW = 32, 4
ALL = 10_000  # more windows than the calibration articles have
WITHIN = (0.975, 0.99)  # of the budget: what is not codes takes a little, too
FLOOR = 0.1  # of the mean: the least that a row's squared gradient counts for
TEACHING_RATE = 2e-4  # of all weights
RATES = (1e-3, 3e-3, 1e-2)  # of steps, scales and norms
GROUPS = ({"bits": 3, "group_size": 96}, {"bits": 2, "group_size": 96})
FORMS = ("float32", "int8", "packed")
TOKENS = 4  # that are written in one measurement of speed


# ---------------------------------------------------------------- what candidates start from


def cheapest_layers(model: nn.Module, windows: Tensor, count: int) -> list[int]:
    """The layers that stay without those `count` each of which alone costs least."""
    layers = range(model.config.num_hidden_layers)
    costs = [
        perplexity(keep_layers(model, [j for j in layers if j != i]), windows).value for i in layers
    ]
    gone = sorted(layers, key=costs.__getitem__)[:count]
    return [i for i in layers if i not in gone]


def squared_gradients(model: nn.Module, windows: Tensor) -> dict[str, Tensor]:
    """For every output of every linear layer, the square of what one more of it would do to the sum
    of the losses of the tokens after it, summed over tokens: name -> (out_features,)."""
    found: dict[str, Tensor] = {}

    def hook(name: str) -> Callable:
        def observe(module, inputs, outputs):  # gives back None: anything else would replace them
            new = outputs[0].flatten(0, -2).square().sum(0)
            found[name] = found[name] + new if name in found else new

        return observe

    linears = find_linears(model)
    handles = [m.register_full_backward_hook(hook(name)) for name, m in linears.items()]
    required = {p: p.requires_grad for p in model.parameters()}
    table = model.get_input_embeddings().weight
    try:
        for p in required:
            p.requires_grad_(p is table)  # enough for gradients to reach every layer
        for window in windows.split(1):
            loss = next_token_loss(model, {"input_ids": window}) * (window.numel() - 1)
            loss.backward()
            table.grad = None
    finally:
        for handle in handles:
            handle.remove()
        for p, before in required.items():
            p.requires_grad_(before)
    return found


def prepare(path: Path, layers: int) -> dict:
    """Save a model of so many layers, with what the candidates have to know of it."""
    model, _ = load_language_model()
    windows, kept = articles("calibration", ALL), list(range(model.config.num_hidden_layers))
    if layers < len(kept):
        kept = cheapest_layers(model, windows[:FEW], len(kept) - layers)
        keep_layers_(model, kept)
        teach_(model, windows, TEACHING_RATE)
    few = windows[:CALIBRATION_WINDOWS]
    found = {
        "kept": kept,
        "state": model.state_dict(),
        "hessians": collect_hessians(model, few.split(4)),
        "gradients": squared_gradients(model, few),
    }
    torch.save(found, path)
    return {"layers": layers, "kept": kept, "validation": judge(model)}


def prepared(path: Path) -> tuple[nn.Module, dict]:
    model, _ = load_language_model()
    found = torch.load(path, mmap=True)
    keep_layers_(model, found["kept"])
    model.load_state_dict(found["state"])
    return model, found


def teach_(model: nn.Module, windows: Tensor, learning_rate: float) -> list[dict]:
    """Train what requires a gradient on what the whole model says, window by window."""
    teacher, _ = load_language_model()
    batches = [{"input_ids": window} for window in windows.split(1)]
    loss = token_level(teacher)
    return train(model, batches, loss, learning_rate=learning_rate, progress=False)


def judge(model: nn.Module, split: str = "validation") -> dict:
    return vars(perplexity(model, articles(split, EVALUATION_WINDOWS)))


# ---------------------------------------------------------------- candidates


def steps_and_scales(
    weight: Tensor, hessian: Tensor, gradient: Tensor, way: str, *, table: bool
) -> tuple[Tensor, Tensor]:
    """Steps (rows,) but for a factor that all matrices share, and scales (columns,) whose
    geometric mean is 1. Columns of the table have none."""
    scales = column_scales(hessian)
    mean = scales.square().mean().sqrt() if table else scales.log().mean().exp()
    scales = torch.ones_like(scales) if table or way == "even" else scales / mean
    if way.startswith("by both"):
        gradient = gradient.clamp(min=FLOOR * gradient.mean())
        if table and way != "by both":
            gradient = gradient.mean().expand(len(weight))
        return 1 / gradient.sqrt() / mean, scales
    return (weight * scales).square().mean().sqrt().expand(len(weight)), scales


def unclipped(weight: Tensor, step: Tensor, scale: Tensor, *, table: bool) -> tuple[Tensor, Tensor]:
    """Steps and scales with which no code is too large: columns (of the table, rows) that would
    have such ones get a coarser grid, with a tenth to spare for what GPTQ adds."""
    excess = weight.abs() * scale / step[:, None] / (0.9 * ZERO)
    if table:
        return step * excess.amax(1).clamp(min=1), scale
    return step, scale / excess.amax(0).clamp(min=1)


def candidate(model: nn.Module, found: dict, way: str, budget: int) -> dict[str, Grid]:
    """The grids of a model whose file is just below the budget.

    Raises:
        ValueError: after eight tries no file was small enough.
    """
    weights = {name: module.weight.detach() for name, module in matrices(model).items()}
    of = {name: "lm_head" if name == TABLE else name for name in weights}  # where it was observed
    shapes = {
        name: steps_and_scales(
            w, found["hessians"][of[name]], found["gradients"][of[name]], way, table=name == TABLE
        )
        for name, w in weights.items()
    }
    aim = middle = sum(WITHIN) / 2 * budget
    largest = 0, {}
    for _ in range(8):
        factor = factor_for(aim, weights, shapes)
        grids = {}
        for name, w in weights.items():
            step, scale = shapes[name]
            grid = unclipped(w, factor * step, scale, table=name == TABLE)
            grids[name] = round_to_grid(w, found["hessians"][of[name]], *grid)
        size = all_bytes(grids)
        if size <= WITHIN[1] * budget:
            largest = max(largest, (size, grids), key=lambda pair: pair[0])
        if largest[0] >= WITHIN[0] * budget:
            break
        aim *= middle / size  # GPTQ changes weights before it rounds them
    if not largest[1]:
        raise ValueError(f"the file would have {size:,.0f} bytes, not {budget:,}")
    return largest[1]


def factor_for(aim: float, weights: dict[str, Tensor], shapes: dict, *, every: int = 16) -> float:
    """The factor of all steps by which plain rounding would take `aim` bytes, to a thousandth; one
    in `every` rows of each matrix tells."""
    count = sum(w.numel() for w in weights.values())
    aim -= 2 * sum(len(step) + len(scale) for step, scale in shapes.values())

    def size(factor: float) -> float:
        some = {}
        for name, w in weights.items():
            step, scale = shapes[name]
            w, step = w[::every], factor * step[::every]
            some[name] = nearest(w, *unclipped(w, step, scale, table=name == TABLE))
        return code_bytes(some) * count / sum(grid.codes.numel() for grid in some.values())

    low, high = 1e-9, 1e9
    while high / low > 1.001:
        middle = (low * high) ** 0.5
        low, high = (middle, high) if size(middle) > aim else (low, middle)
    return high


def run(paths: dict[int, Path], folder: Path, budget: int, way: str, layers: int) -> dict:
    """Make and judge one candidate, and save its grids."""
    model, found = prepared(paths[layers])
    grids = candidate(model, found, way, budget)
    put_(model, grids)
    choice = {"budget": budget, "way": way, "layers": layers}
    torch.save({name: tuple(grid) for name, grid in grids.items()}, saved(folder, **choice))
    size = round(all_bytes(grids))
    return choice | {"bytes": size, "bits": bits(grids), "validation": judge(model)}


def saved(folder: Path, *, budget: int, way: str, layers: int) -> Path:
    return folder / f"{budget} {way} {layers}.pt"


def bits(grids: dict[str, Grid]) -> dict[str, float]:
    """Bits a weight, of the decoder and of the table."""
    decoder = {name: grid for name, grid in grids.items() if name != TABLE}
    return {
        part: 8 * all_bytes(some) / sum(grid.codes.numel() for grid in some.values())
        for part, some in (("decoder", decoder), ("table", {TABLE: grids[TABLE]}))
    }


def in_groups(bits: int, group_size: int) -> dict:
    """GPTQ in groups with codes of one length, layer after layer, and the table rounded."""
    model, _ = load_language_model()
    options = {"bits": bits, "group_size": group_size}
    windows = articles("calibration", CALIBRATION_WINDOWS)
    gptq_model_(model, windows, block=group_size, **BEST, **options)
    choose = BEST["choose"]
    pack_embedding_(
        model,
        TABLE,
        lambda _, w: quantize_tensor(w, bits=bits, granularity=group_size, choose=choose),
        head="lm_head",
    )
    return options | {"bytes": bytes_on_disk(model), "validation": judge(model)}


# ---------------------------------------------------------------- training what the codes mean


class Rescaled(nn.Module):
    """A weight whose rows and columns are multiplied by what is trained: at first, by 1."""

    def __init__(self, rows: int, columns: int):
        super().__init__()
        self.rows = nn.Parameter(torch.zeros(rows, 1))
        self.columns = nn.Parameter(torch.zeros(columns))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.rows.exp() * self.columns.exp()


def tune_(
    model: nn.Module, grids: dict[str, Grid], windows: Tensor, rate: float
) -> tuple[dict[str, Grid], list[float]]:
    """Train steps and scales of the decoder, and its norms; the table stays. The model is changed
    in place.

    Returns:
        the grids with new steps and scales, and the loss.
    """
    linears = find_linears(model.model)
    for p in model.parameters():
        p.requires_grad_(p.ndim == 1)  # norms
    for linear in linears.values():
        parametrize.register_parametrization(linear, "weight", Rescaled(*linear.weight.shape))
    history = teach_(model, windows, rate)
    tuned = dict(grids)
    for name, linear in linears.items():
        trained, grid = linear.parametrizations.weight[0], grids[f"model.{name}"]
        rows, columns = trained.rows.detach()[:, 0].exp(), trained.columns.detach().exp()
        step, scale = half(grid.step * rows), half(grid.scale / columns)
        tuned[f"model.{name}"] = grid._replace(step=step, scale=scale)
        parametrize.remove_parametrizations(linear, "weight")
    model.requires_grad_(False)
    put_(model, tuned)
    return tuned, [entry["loss"] for entry in history]


def tune(paths: dict[int, Path], folder: Path, choice: dict, rate: float, part: float) -> dict:
    """Train a candidate with a part of the text; with all of it, write what is better, the
    candidate as it was or as it is then, to a file, and give the perplexity of that."""
    model, _ = prepared(paths[choice["layers"]])
    stored = torch.load(saved(folder, **choice))
    grids = {name: Grid(*parts) for name, parts in stored.items()}
    put_(model, grids)
    before = judge(model)
    windows = articles("calibration", ALL)
    tuned, loss = tune_(model, grids, windows[: round(part * len(windows))], rate)
    after = judge(model)
    result = choice | {"learning_rate": rate, "loss": loss, "before": before, "validation": after}
    if part < 1:
        return result
    path = saved(folder, **choice).with_suffix(".clab")
    # Codes are coded by classes of steps and scales: for others they may take more bytes.
    tuned_fits = after["value"] < before["value"] and write(model, tuned, path) <= choice["budget"]
    if not tuned_fits:
        model, _ = prepared(paths[choice["layers"]])
        put_(model, grids)
        write(model, grids, path)
        result["validation"] = before
    return result | {"kept": "tuned" if tuned_fits else "before", "bytes": path.stat().st_size}


# ---------------------------------------------------------------- the winners


def form(model: nn.Module, grids: dict[str, Grid], kind: str, **options) -> nn.Module:
    """A copy of what a file has, in one of FORMS; options of int8."""
    model = copy.deepcopy(model).requires_grad_(False)
    if kind == "int8":
        quantize_linears_int8_(model.model, **options)
    elif kind == "packed":
        pack_grids_(model, grids)
    return model


@torch.inference_mode()
def write_tokens(model: nn.Module, count: int = TOKENS) -> None:
    """One text, from one token on, always the likeliest."""
    ids, cache = torch.zeros(1, 1, dtype=torch.int64), None
    for _ in range(count):
        out = model(input_ids=ids, past_key_values=cache, use_cache=True)
        ids, cache = out.logits[:, -1:].argmax(-1), out.past_key_values


def speeds(models: dict[str, nn.Module], dense: nn.Module) -> dict:
    """Tokens a second of each, and how many times as fast as the whole model in float32."""
    candidates = {"dense": dense} | models
    calls = {name: (lambda m=model: write_tokens(m)) for name, model in candidates.items()}
    return {
        name: {"tokens": 1000 * TOKENS / found.milliseconds, "speedup": vars(found.speedup)}
        for name, found in compare_latency(calls, baseline="dense", rounds=7).items()
    }


def measure(path: Path) -> dict:
    """A file, once and for all: perplexity on test articles, and its forms side by side."""
    dense, _ = load_language_model()
    stored = read(path)
    models = {kind: form(*stored, kind) for kind in FORMS}
    found = speeds(models, dense)
    for kind, model in models.items():
        found[kind] |= {"memory": state_bytes(model)}
    # In a call with one token, a range a call is one a token; `judge` has many tokens in a call.
    found["int8"] |= {"validation": judge(form(*stored, "int8", per_token=True))}
    return {
        "bytes": path.stat().st_size,
        "test": judge(models["float32"], "test"),
        "forms": found,
    }


def best(runs: list[dict], budget: int) -> dict:
    """What distinguishes the best candidate of this budget."""
    of = [run for run in runs if run["budget"] == budget]
    first = min(of, key=lambda run: run["validation"]["value"])
    return {name: first[name] for name in ("budget", "way", "layers")}


def main() -> None:
    def all_of(function: Callable, tasks: list[dict]) -> list[dict]:
        results = []
        for result in in_parallel(function, tasks):
            results.append(result)
            print(json.dumps(result), flush=True)
        return results

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {layers: folder / f"{layers} layers.pt" for layers in LAYERS}
        tasks = [{"path": path, "layers": layers} for layers, path in paths.items()]
        starts = all_of(prepare, tasks[::-1])  # the longer one first
        shared = {"paths": paths, "folder": folder}
        groups = all_of(in_groups, list(GROUPS))
        tasks = [{"budget": TRIED, "way": way, "layers": LAYERS[0]} for way in WAYS]
        runs = all_of(run, [shared | task for task in tasks])
        made = best(runs, TRIED)
        way = made["way"]
        choices = [{"budget": b, "way": way, "layers": n} for b in BUDGETS for n in LAYERS]
        runs += all_of(run, [shared | choice for choice in choices if choice != made])
        first = shared | {"choice": best(runs, TRIED)}
        trials = all_of(tune, [first | {"rate": rate, "part": 0.25} for rate in RATES])
        rate = min(trials, key=lambda trial: trial["validation"]["value"])["learning_rate"]
        every = {"rate": rate, "part": 1.0}
        tuned = all_of(tune, [shared | {"choice": choice} | every for choice in choices])
        winners = []
        for budget in BUDGETS:
            won = best(tuned, budget)
            winners.append(won | measure(saved(folder, **won).with_suffix(".clab")))
            print(json.dumps(winners[-1]), flush=True)
    dense, _ = load_language_model()
    figures = {
        "windows": EVALUATION_WINDOWS,
        "calibration_tokens": articles("calibration", CALIBRATION_WINDOWS).numel(),
        "training_tokens": articles("calibration", ALL).numel(),
        "dense": {
            "bytes": bytes_on_disk(dense),
            "validation": judge(dense),
            "test": judge(dense, "test"),
        },
        "starts": starts,
        "groups": groups,
        "runs": runs,
        "trials": trials,
        "tuned": tuned,
        "winners": winners,
    }
    print(record("together_llm", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
