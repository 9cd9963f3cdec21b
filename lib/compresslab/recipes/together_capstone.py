"""The capstone: the student in as few bits as it bears, in one file, measured once on test.

    python -m compresslab.recipes.together_capstone

The student of `together_student`. Its linear layers become integers of 7 to 3 bits, its tables of
8 to 3, which compute with 8-bit inputs; nothing is trained. Chosen is the best on validation of
those whose file has at most `LARGEST` bytes, of equal ones the smallest. What int8, fewer calls, no
padding and no Python are each worth is timed with validation sentences. The model is written to
data/capstone.clab, read again, and what was read is measured on test. About five minutes on two
cores, which must be idle.
"""

import copy
import itertools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from torch import nn

from ..assets import DATA
from ..corpora import load_reviews
from ..export import export, load, round_to_half_, sections
from ..inference import fuse_bert_, trace
from ..measure import correct_answers, count_parameters
from ..models import load_classifier
from ..quantization.int8 import (
    fuse_bert_layers_,
    quantize_embeddings_int8_,
    quantize_linears_int8_,
)
from ..scoreboard import latencies, row
from . import launch, record
from .together_student import PATH as STUDENT
from .tuning import SEED, lost, transfer_accuracy

BITS, TABLE_BITS = (7, 6, 5, 4, 3), (8, 6, 4, 3)
LARGEST = 1_800_000  # bytes: a fiftieth of the float32 classifier
PATH = DATA / "capstone.clab"


def compressed(student: nn.Module, bits: int, table_bits: int) -> nn.Module:
    model = in_int8(student, bits, table_bits)
    fuse_bert_(model)
    round_to_half_(model)
    return model


def in_int8(student: nn.Module, bits: int, table_bits: int) -> nn.Module:
    model = copy.deepcopy(student)
    quantize_linears_int8_(model, bits=bits)
    quantize_embeddings_int8_(model, bits=table_bits)
    return model


def one_by_one(student: nn.Module, bits: int, table_bits: int) -> dict[str, Callable]:
    """The student as it is, and with one more thing done for speed each time."""
    layers = in_int8(student, bits, table_bits)
    fuse_bert_layers_(layers)
    whole = compressed(student, bits, table_bits)
    return {
        "float32": student,
        "int8": in_int8(student, bits, table_bits),
        "fewer calls": layers,
        "no padding, one token at the end": whole,
        "no Python": trace(whole),
    }


def main() -> None:
    reviews, (dense, words) = load_reviews(), load_classifier()
    correct = correct_answers(dense, reviews["validation"], words)
    student, tokenizer = load(STUDENT)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for bits, table_bits in itertools.product(BITS, TABLE_BITS):
            model = compressed(student, bits, table_bits)
            found = {"bits": bits, "table bits": table_bits}
            found["bytes"] = export(model, tokenizer, Path(folder) / "model.clab")
            runs.append(found | {"difference": lost(model, tokenizer, correct)})
            print(json.dumps(runs[-1]), flush=True)
    small = [run for run in runs if run["bytes"] <= LARGEST]
    best = max(small, key=lambda run: (run["difference"]["value"], -run["bytes"]))
    size = export(compressed(student, best["bits"], best["table bits"]), tokenizer, PATH)
    model, tokenizer = load(PATH)
    rows = [
        row(
            name,
            lecture=8,
            model=one,
            dense=dense,
            data=reviews["test"],
            tokenizer=tokenizer,
            parameters=count_parameters(student),
            note=note,
            dense_tokenizer=words,
            timed=timed,
        )
        | {"bytes": path.stat().st_size}
        for name, one, timed, path, note in (
            ("student of two teachers", student, None, STUDENT, "in float16 on disk"),
            (
                *("capstone", model, trace(model), PATH),
                f"that student, {best['bits']} bits; everything in one file",
            ),
        )
    ]
    figures = {
        "student": lost(student, tokenizer, correct),
        "runs": runs,
        "best": best,
        "latency": {
            name: latencies(one, dense, reviews["validation"], tokenizer, dense_tokenizer=words)
            for name, one in one_by_one(student, best["bits"], best["table bits"]).items()
        },
        "sections": sections(PATH),
        "bytes": size,
        "transfer": transfer_accuracy(model, tokenizer),
        "transfer of the classifier": transfer_accuracy(dense, words),
    }
    print(record("together_capstone", seed=SEED, figures=figures, models=rows))


if __name__ == "__main__":
    launch(main)
