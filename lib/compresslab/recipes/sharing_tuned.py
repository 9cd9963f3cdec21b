"""Train shared weights: centroids through their codes, and hashed vectors.

    python -m compresslab.recipes.sharing_tuned

All start from the course's classifier, which also teaches, and have the same sentences, epochs and
loss. The linear layers of the encoder get codebooks, one a layer (from a linear start; two numbers
from the density), whose numbers then train while the codes stay; or hashed matrices with as many
numbers as one layer of six has, or as many bytes as codes of 2 bits. Each has two learning rates;
the better on validation counts. The scoreboard gets the smallest that loses at most one point on
validation. About 35 minutes on two cores.
"""

import json
import tempfile
from operator import itemgetter
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews
from ..measure import bytes_on_disk, correct_answers, count_parameters
from ..models import load_classifier
from ..scoreboard import row
from ..sharing.codebooks import cluster, cluster_linears_
from ..sharing.hashing import hash_linears_
from . import in_parallel, launch, record
from .tuning import EPOCHS, LEARNING_RATE, SEED, distillation, lost, smallest, teacher_logits, tune_

RATES = (LEARNING_RATE, 5 * LEARNING_RATE)
CHOICES = (
    *({"kind": "codebook", "bits": bits} for bits in (1, 2, 3)),
    *({"kind": "hashed", "fraction": fraction} for fraction in (1 / 6, 1 / 16)),
)


def shared(choice: dict) -> nn.Module:
    """The classifier, the linear layers of its encoder with shared numbers that can train."""
    model, _ = load_classifier()
    encoder = model.bert.encoder
    if choice["kind"] == "codebook":
        options = {"bits": choice["bits"], "start": "density" if choice["bits"] == 1 else "linear"}
        cluster_linears_(encoder, lambda _, w: cluster(w, **options), trained=True)
    else:
        hash_linears_(encoder, choice["fraction"], seed=SEED)
    model.bert.embeddings.requires_grad_(False)
    return model


def run(choice: dict, learning_rate: float, teacher: Tensor, correct: Tensor, path: Path) -> dict:
    """Train one, save it whole to `path`, and say what it lost before and after."""
    _, tokenizer = load_classifier()
    model = shared(choice)

    before = lost(model, tokenizer, correct)
    history = tune_(model, tokenizer, distillation(teacher), learning_rate=learning_rate)
    save_file(model.state_dict(), path)
    return choice | {
        "learning_rate": learning_rate,
        "numbers": count_parameters(model.bert.encoder),
        "bytes": bytes_on_disk(model),
        "loss": [entry["loss"] for entry in history],
        "before": before,
        "after": lost(model, tokenizer, correct),
    }


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        tasks = [
            {"choice": choice, "learning_rate": rate, "teacher": teacher, "correct": correct}
            | {"path": Path(folder) / f"{i} {rate}.safetensors"}
            for i, choice in enumerate(CHOICES)
            for rate in RATES
        ]
        runs = []
        for result in in_parallel(run, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
        best = smallest(runs, of=itemgetter("after"))
        i = runs.index(best)
        model = shared(tasks[i]["choice"])
        model.load_state_dict(load_file(tasks[i]["path"]))
        what = f"{best['bits']}-bit codebooks" if best["kind"] == "codebook" else "hashed weights"
        result = row(
            f"{what}, trained",
            lecture=6,
            model=model,
            dense=dense,
            data=reviews["test"],
            tokenizer=tokenizer,
            parameters=count_parameters(dense),
            note="the encoder's weights; made whole at every use",
        )
    figures = {"epochs": EPOCHS, "runs": runs, "best": best}
    print(record("sharing_tuned", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
