"""Cut the classifier to low rank, then tune the factors with the whole classifier as teacher.

    python -m compresslab.recipes.factorization_tuned

Equal sentences, epochs and loss for every start: plain singular values, Fisher-weighted ones,
whitened ones, and factors that were never a matrix (random, as nn.Linear starts). The scoreboard
gets the smallest that loses at most one point on validation. About 30 minutes on two cores.
"""

import json
import math
import tempfile
from operator import itemgetter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews
from ..factorization.linear import factorize_linears_
from ..factorization.svd import Factors
from ..measure import bytes_on_disk, compare_accuracy, correct_answers, count_parameters
from ..models import load_classifier
from ..scoreboard import row
from . import in_parallel, launch, record
from .factorization_oneshot import choose_ranks, classifier_statistics, low_rank_, numbers
from .tuning import EPOCHS, LEARNING_RATE, SEED, distillation, smallest, teacher_logits, tune_

CHOICES = (
    *((method, "uniform", 0.5) for method in ("random", "SVD", "Fisher", "whitened")),
    *((method, "uniform", 0.3) for method in ("SVD", "Fisher", "whitened")),
    *(("whitened", "by damage", left) for left in (0.3, 0.2, 0.1)),
)


def random_factors(weight: Tensor, rank: int, generator: torch.Generator) -> Factors:
    """Both uniform, with the variance of a product that nn.Linear starts with."""
    out_features, in_features = weight.shape
    left = torch.empty(out_features, rank).uniform_(-1, 1, generator=generator)
    right = torch.empty(rank, in_features).uniform_(-1, 1, generator=generator)
    return Factors(left * math.sqrt(3 / rank), right / math.sqrt(3 * in_features))


def low_rank_start(method: str, allocation: str, left: float, path: Path) -> nn.Module:
    model, _ = load_classifier()
    encoder, found = model.bert.encoder, torch.load(path, mmap=True)
    ranks = choose_ranks(encoder, left, allocation, found)
    if method == "random":
        generator = torch.Generator().manual_seed(SEED)
        factorize_linears_(encoder, lambda name, w: random_factors(w, ranks[name], generator))
    else:
        low_rank_(encoder, method, ranks, found)
    return model


def run(choice: tuple, statistics: Path, teacher: Tensor, correct: Tensor, path: Path) -> dict:
    """Tune one start, save it whole to `path`, and say what it lost before and after."""
    validation, (dense, tokenizer) = load_reviews()["validation"], load_classifier()
    model = low_rank_start(*choice, statistics)
    model.bert.embeddings.requires_grad_(False)
    before = compare_accuracy(correct, correct_answers(model, validation, tokenizer)).difference
    tune_(model, tokenizer, distillation(teacher))
    save_file(model.state_dict(), path)
    after = compare_accuracy(correct, correct_answers(model, validation, tokenizer)).difference
    method, allocation, _ = choice
    return {
        "method": method,
        "allocation": allocation,
        "left": numbers(model.bert.encoder) / numbers(dense.bert.encoder),
        "parameters": count_parameters(model),
        "bytes": bytes_on_disk(model),
        "before": vars(before),
        "after": vars(after),
    }


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        statistics = Path(folder) / "statistics.pt"
        torch.save(classifier_statistics(dense, tokenizer), statistics)
        paths = [Path(folder) / f"{i}.safetensors" for i in range(len(CHOICES))]
        tasks = [
            {"choice": choice, "path": path, "statistics": statistics}
            | {"teacher": teacher, "correct": correct}
            for choice, path in zip(CHOICES, paths, strict=True)
        ]
        runs = []
        for result in in_parallel(run, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
        best = smallest(runs, of=itemgetter("after"))
        i = runs.index(best)
        model = low_rank_start(*CHOICES[i], statistics)
        model.load_state_dict(load_file(paths[i]))
        result = row(
            f"low rank, {best['left']:.0%} of the encoder left, tuned",
            lecture=4,
            model=model,
            dense=dense,
            data=reviews["test"],
            tokenizer=tokenizer,
            note=f"{best['method']}, {best['allocation']}",
        )
    figures = {"epochs": EPOCHS, "learning_rate": LEARNING_RATE, "runs": runs, "best": best}
    print(record("factorization_tuned", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
