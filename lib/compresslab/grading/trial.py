"""What runs inside the sandbox for the leaderboard: a submitted file is read, asked and timed.

    {"texts": [...], "timed": [...], "rounds": 15} as a line of JSON, then the file, on stdin
    a line of JSON for each of STEPS, or {"error": "..."} in its place, on stdout

A file has numbers and a tokenizer in it and no code, so what is measured is measured by this code.
Labels are not here: whether an answer is right is decided outside.

`classify` is what is asked and what is timed, from sentences to labels. The tokenizer counts: it
comes with the file, and could otherwise do the work of a model at no cost.
"""

import json
import os
import sys
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from ..export import read
from ..inference import Int8Bert, trace
from ..measure import Estimate, compare_latency
from ..models import load_classifier

STEPS = ("started", "read", "asked", "timed")
BATCH_SIZES = (1, 32)
LENGTH = 128  # tokens that a sentence is cut to, as everywhere in the course


def classify(
    model: nn.Module, tokenizer: PreTrainedTokenizerBase, texts: list[str], *, batch_size: int = 32
) -> list[int]:
    """The most likely label of each sentence, `batch_size` at a time, in the order given."""
    length, labels = min(LENGTH, tokenizer.model_max_length), []
    with torch.inference_mode():
        for i in range(0, len(texts), batch_size):
            inputs = tokenizer(
                texts[i : i + batch_size],
                padding=True,
                truncation=True,
                max_length=length,
                return_tensors="pt",
            )
            logits = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            labels += logits.argmax(-1).tolist()
    return labels


def compare_times(
    dense: tuple, small: tuple, texts: list[str], *, rounds: int = 15
) -> dict[int, Estimate]:
    """Batch size -> how many times as fast as `dense` `small` is, from sentences to labels.

    Args:
        dense, small: a model and its tokenizer. They take turns in one process, as many as `rounds`
            (`measure.compare_latency`). What `fuse_bert_` has fused is traced.
    """
    model, tokenizer = small
    if isinstance(model.base_model, Int8Bert):
        small = trace(model), tokenizer
    speedups = {}
    for size in BATCH_SIZES:
        calls = {
            "dense": partial(classify, *dense, texts, batch_size=size),
            "small": partial(classify, *small, texts, batch_size=size),
        }
        found = compare_latency(calls, baseline="dense", rounds=rounds)
        speedups[size] = found["small"].speedup
    return speedups


def try_out(job: dict, data: bytes, say: Callable[[object], None]) -> None:
    """Take the steps that come after the start, and `say` what comes of each."""
    try:
        small = read(data, "the file")
        say("read")
        say(classify(*small, job["texts"]))
        say(compare_times(load_classifier(), small, job["timed"], rounds=job["rounds"]))
    except BaseException as error:  # tokenizers raises what is no Exception
        cause = error.__cause__ or error
        if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
            line = "it needs more memory than there is"
        else:
            line = " ".join(str(error).split()) or type(error).__name__
        say({"error": line})


def main() -> None:
    # Libraries that print must not get between the lines: they have a channel of their own.
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread, as the models have

    def say(record: object) -> None:
        channel.write(json.dumps(record, default=vars) + "\n")
        channel.flush()

    job = json.loads(sys.stdin.buffer.readline())
    say("started")
    try_out(job, sys.stdin.buffer.read(), say)


if __name__ == "__main__":
    main()
