"""One layer at several depths: the classifier with shared layers, tuned.

    python -m compresslab.recipes.sharing_layers

Plans of six depths: one layer for all, pairs, a block of three twice; from a trained layer or from
the mean of those that it replaces; with norms of its own at each depth or not. The classifier
teaches; epochs and loss as in the other tuned recipes. Beside them the same number of different
layers, each used once. Every choice has the better of two learning rates on validation. The
scoreboard gets the smallest that loses at most one point on validation, with its speed.
About 30 minutes on two cores.
"""

import copy
import json
import tempfile
from operator import itemgetter
from pathlib import Path

from torch import Tensor, nn

from .. import storage
from ..corpora import load_reviews
from ..layers import bert_layers
from ..measure import correct_answers, count_flops, count_parameters
from ..models import load_classifier
from ..pruning.depth import keep_layers_
from ..scoreboard import row
from ..sharing.layers import relative_updates, share_layers_
from ..training import TextBatches
from . import in_parallel, launch, record
from .tuning import EPOCHS, LEARNING_RATE, SEED, distillation, lost, smallest, teacher_logits, tune_

RATES = (LEARNING_RATE, 2.5 * LEARNING_RATE)
CHOICES = (
    {"plan": [2, 2, 2, 2, 2, 2], "start": "layer"},
    {"plan": [2, 2, 2, 2, 2, 2], "start": "layer", "own_norms": True},
    {"plan": [0, 0, 2, 2, 4, 4], "start": "layer"},
    {"plan": [0, 0, 2, 2, 4, 4], "start": "mean"},
    {"plan": [0, 1, 2, 0, 1, 2], "start": "layer"},
    {"keep": [0, 1, 2]},
)


def new_model(choice: dict) -> nn.Module:
    """The classifier with shared layers, or only some of its layers; the table is frozen."""
    model, _ = load_classifier()
    if "keep" in choice:
        keep_layers_(model, choice["keep"])
    else:
        share_layers_(bert_layers(model), **choice)
    model.bert.embeddings.requires_grad_(False)
    return model


def run(choice: dict, learning_rate: float, teacher: Tensor, correct: Tensor, path: Path) -> dict:
    """Tune one, save it to `path`, and say what it lost before and after."""
    reviews, (dense, tokenizer) = load_reviews(), load_classifier()
    model = new_model(choice)
    batch = next(iter(TextBatches(reviews["validation"], tokenizer)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def updates(model: nn.Module) -> list[float]:
        return relative_updates(model, bert_layers(model), inputs).tolist()

    before = lost(model, tokenizer, correct)
    tune_(model, tokenizer, distillation(teacher), learning_rate=learning_rate)
    return choice | {
        "learning_rate": learning_rate,
        "parameters": count_parameters(model),
        "encoder": count_parameters(model.bert.encoder),
        "bytes": storage.save(model, path),
        "operations": count_flops(lambda: model(**inputs)) / count_flops(lambda: dense(**inputs)),
        "updates": updates(model),
        "updates of the classifier": updates(dense),
        "before": before,
        "after": lost(model, tokenizer, correct),
    }


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            {"choice": copy.deepcopy(choice), "learning_rate": rate, "teacher": teacher}
            | {"correct": correct, "path": Path(folder) / f"{i} {rate}.safetensors"}
            for i, choice in enumerate(CHOICES)
            for rate in RATES
        ]
        runs = []
        for result in in_parallel(run, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
        shared = [result for result in runs if "plan" in result]
        best = smallest(shared, of=itemgetter("after"))
        task = tasks[runs.index(best)]
        model = new_model(task["choice"])
        model.load_state_dict(storage.load(task["path"]))
        different = len(set(best["plan"]))
        result = row(
            f"{different} layers at six depths, tuned",
            lecture=6,
            model=model,
            dense=dense,
            data=reviews["test"],
            tokenizer=tokenizer,
            note="shared layers: as many operations as before",
        )
    figures = {"epochs": EPOCHS, "runs": runs, "best": best}
    print(record("sharing_layers", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
