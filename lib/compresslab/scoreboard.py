"""The scoreboard: one row a compressed model, from every recipe that recorded one.

    rows = load_rows()          from data/results/*.json, in the order of the lectures
    table(rows)                 a pandas table, ready to show
    plots.pareto(rows)          accuracy against bytes and against speed

A row holds which test sentences the model gets right, so that any two rows can be compared as a
pair, and its accuracy is computed, never typed in.
"""

import json
from collections.abc import Callable
from dataclasses import asdict

import pandas as pd
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from . import storage
from .measure import (
    Estimate,
    Latency,
    accuracy,
    bytes_on_disk,
    compare_accuracy,
    compare_latency,
    correct_answers,
    count_parameters,
    points,
)
from .recipes import RESULTS
from .training import TextBatches

DENSE = "dense, float32"
BATCH_SIZES = (1, 32)


def row(
    name: str,
    *,
    lecture: int,
    model: nn.Module,
    dense: nn.Module,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    encoding: storage.Encoding = "dense",
    parameters: int | None = None,
    note: str = "",
    dense_tokenizer: PreTrainedTokenizerBase | None = None,
    timed: Callable | None = None,
) -> dict:
    """Measure `model` for the scoreboard: quality on `data`, size, and speed against `dense`.

    Args:
        lecture: number of the lecture that made the model.
        dense: the float32 classifier, timed in the same rounds.
        data: the test split; the latency is measured on its first 32 sentences.
        encoding: how the file is stored, see `storage.save`.
        parameters: how many there are; counted if left out. Codes of weights count as none.
        note: a few words that a reader of the table needs.
        dense_tokenizer: of the float32 classifier, where sentences are longer in the tokens of
            `tokenizer`, which would make it slower than it is.
        timed: what the latency is of, the trace of `model` for instance; `model` if left out.
    """
    correct = correct_answers(model, data, tokenizer)
    latency = latencies(timed or model, dense, data, tokenizer, dense_tokenizer=dense_tokenizer)
    return {
        "name": name,
        "lecture": lecture,
        "correct": pack_bits(correct),
        "sentences": correct.numel(),
        "parameters": parameters or count_parameters(model),
        "bytes": bytes_on_disk(model, encoding=encoding),
        "latency": latency,
        "note": note,
    }


def latencies(
    model: Callable,
    dense: nn.Module,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    dense_tokenizer: PreTrainedTokenizerBase | None = None,
) -> dict[str, dict]:
    """What `compare_latency` finds for `model` against `dense`, by batch size, on the first 32
    sentences of `data`. Arguments as in `row`.
    """
    timed, found = data.select(range(32)), {}
    for size in BATCH_SIZES:
        batches = [
            list(TextBatches(timed, words, batch_size=size))
            for words in (dense_tokenizer or tokenizer, tokenizer)
        ]
        times = compare_latency(
            {"dense": runner(dense, batches[0]), "model": runner(model, batches[1])},
            baseline="dense",
        )
        found[str(size)] = asdict(times["model"])
    return found


def runner(model: Callable, batches: list) -> Callable[[], None]:
    """What `compare_latency` times: all batches through the model, one after another."""

    def run() -> None:
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])

    return run


def pack_bits(correct: Tensor) -> str:
    """A bool vector as hexadecimal text, four sentences a digit, the first one in front."""
    bits = "".join("1" if bit else "0" for bit in correct.tolist())
    return f"{int(bits.ljust(-(-len(bits) // 4) * 4, '0'), 2):0{-(-len(bits) // 4)}x}"


def unpack_bits(text: str, count: int) -> Tensor:
    """The bool vector (count,) that `pack_bits` wrote."""
    bits = f"{int(text, 16):0{4 * len(text)}b}"[:count]
    return torch.tensor([bit == "1" for bit in bits])


def correct_of(row: dict) -> Tensor:
    """Which test sentences the model of `row` gets right: bool (sentences,)."""
    return unpack_bits(row["correct"], row["sentences"])


def speedup_of(row: dict, batch_size: int) -> Estimate:
    """Speed-up of the row's model over the dense one at this batch size."""
    latency = row["latency"][str(batch_size)]
    return Latency(**latency | {"speedup": Estimate(**latency["speedup"])}).speedup


def needs_training(row: dict) -> bool:
    """Whether weights were trained after the classifier was: all but the first rows, which are it,
    and those that say "no training" in their note.
    """
    return not (row["name"].startswith("dense, ") or "no training" in row["note"])


def load_rows() -> list[dict]:
    """Every recorded row, by lecture; the dense model comes first."""
    rows = []
    for path in sorted(RESULTS.glob("*.json")):
        rows += json.loads(path.read_text(encoding="utf-8"))["models"]
    return sorted(rows, key=lambda row: (row["lecture"], row["name"] != DENSE))


def table(rows: list[dict]) -> pd.DataFrame:
    """The scoreboard as a table: one line a model, with intervals.

    "vs dense" is the paired difference in accuracy, in points, to the first row.
    """
    lines = []
    for row in rows:
        a, millions = accuracy(correct_of(row)), row["parameters"] / 1e6
        line = {
            "model": row["name"],
            "accuracy %": f"{100 * a.value:.1f} ({100 * a.low:.1f}–{100 * a.high:.1f})",
            "vs dense": "",
            "parameters": f"{millions:.{1 if millions >= 1 else 2}f} M",
            "on disk": f"{row['bytes'] / 1e6:.3g} MB",
        }
        if row is not rows[0]:
            paired = compare_accuracy(correct_of(rows[0]), correct_of(row))
            line["vs dense"] = points(paired.difference)
        for size in BATCH_SIZES:
            s = speedup_of(row, size)
            low, high = _times(s.low), _times(s.high)
            line[f"speed, batch {size}"] = f"{_times(s.value)}× ({low}–{high})"
        lines.append(line | {"note": row["note"]})
    return pd.DataFrame(lines).set_index("model")


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 100 else f"{ratio:.2f}"
