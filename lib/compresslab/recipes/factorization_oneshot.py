"""Cut the classifier's layers to low rank, without training: by four methods, at equal numbers.

    python -m compresslab.recipes.factorization_oneshot

All linear layers of the encoder. "Left" is the fraction of their weights that the factors have.
Statistics come from 512 training sentences, accuracies from validation. Ranks are the same fraction
for every layer, or given out by budget, after the singular values of the whitened weights: as they
are, divided by the size of the layer's output, or multiplied by what an error of the layer does to
the answers ("by damage"). The scoreboard gets the smallest model that loses at most one point on
validation. About 10 minutes on two cores.
"""

import json
import math
import tempfile
from collections.abc import Mapping
from operator import itemgetter
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..corpora import load_reviews
from ..factorization.allocation import allocate_ranks, uniform_ranks
from ..factorization.linear import factorize_linears_
from ..factorization.svd import Factors, singular_values, truncated_svd
from ..factorization.weighted_svd import (
    asvd,
    collect_fisher,
    fisher_weighted_svd,
    whitened_singular_values,
    whitened_svd,
)
from ..layers import find_linears
from ..measure import accuracy, compare_accuracy, correct_answers
from ..models import load_classifier
from ..pruning.sparsegpt import collect_hessians
from ..quantization.outliers import collect_means
from ..scoreboard import row
from ..training import TextBatches, classification_loss
from . import in_parallel, launch, record
from .tuning import smallest

SEED = 0  # nothing here is random
SENTENCES = 512
LEFT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
METHODS = ("SVD", "Fisher", "ASVD", "whitened")
ALLOCATIONS = ("uniform", "by budget", "by budget, relative", "by damage")

Statistics = dict[str, dict[str, Tensor | float]]


def classifier_statistics(model: nn.Module, tokenizer) -> Statistics:
    """Fisher information of the encoder's weights, and what its layers read, by layer."""
    data = load_reviews()["train"].select(range(SENTENCES))
    batches = TextBatches(data, tokenizer, batch_size=1)  # without padding
    names = [f"bert.encoder.{name}" for name in find_linears(model.bert.encoder)]
    ids = [batch["input_ids"] for batch in batches]
    found = {
        "fisher": collect_fisher(model, batches, classification_loss, names),
        "means": collect_means(model, ids),
        "hessians": collect_hessians(model, ids),
    }
    found = {
        kind: {name.removeprefix("bert.encoder."): values[name] for name in names}
        for kind, values in found.items()
    }
    found["spectra"] = whitened_spectra(model.bert.encoder, found["hessians"])
    found["damage"] = damage(model, list(TextBatches(data, tokenizer)), found)
    return found


@torch.no_grad()
def damage(model: nn.Module, batches: list, found: Statistics) -> dict[str, float]:
    """By layer, how far the answers move for one unit of squared error in the layer's outputs.

    Each layer in turn is cut to half of its numbers, the others left whole; how far is the mean
    Kullback-Leibler divergence of the whole model's answers from the cut one's.
    """

    def answers() -> Tensor:
        return torch.cat([model(**batch).logits for batch in batches]).log_softmax(-1)

    linears, moved = find_linears(model.bert.encoder), {}
    ranks, whole = choose_ranks(model.bert.encoder, 0.5, "uniform", found), answers()
    for name, linear in linears.items():
        weight = linear.weight.clone()
        linear.weight.copy_(factors("whitened", name, weight, ranks[name], found).product())
        far = F.kl_div(answers(), whole, reduction="batchmean", log_target=True)
        moved[name] = (far / found["spectra"][name][ranks[name] :].square().sum()).item()
        linear.weight.copy_(weight)
    return moved


def whitened_spectra(model: nn.Module, hessians: dict[str, Tensor]) -> dict[str, Tensor]:
    """Singular values of every layer's whitened weight: what ranks by budget go by."""
    return {
        name: whitened_singular_values(linear.weight.detach(), hessians[name])
        for name, linear in find_linears(model).items()
    }


def factors(method: str, name: str, weight: Tensor, rank: int, found: Statistics) -> Factors:
    """Of one layer, by one of METHODS."""
    if method == "SVD":
        return truncated_svd(weight, rank)
    if method == "Fisher":
        return fisher_weighted_svd(weight, found["fisher"][name], rank)
    if method == "ASVD":
        return asvd(weight, found["means"][name], rank)
    return whitened_svd(weight, found["hessians"][name], rank)


def choose_ranks(model: nn.Module, left: float, allocation: str, found: Statistics) -> dict:
    """The rank of every linear layer of `model`, so that factors have `left` of its weights."""
    shapes = {name: tuple(linear.weight.shape) for name, linear in find_linears(model).items()}
    if allocation == "uniform":
        return uniform_ranks(shapes, left)
    spectra = found["spectra"]
    if allocation == "by budget, relative":
        spectra = {name: s / s.norm() for name, s in spectra.items()}
    elif allocation == "by damage":
        spectra = {name: s * math.sqrt(found["damage"][name]) for name, s in spectra.items()}
    return allocate_ranks(spectra, shapes, int(left * numbers(model)))


def low_rank_(model: nn.Module, method: str, ranks: Mapping[str, int], found: Statistics) -> None:
    """Factorize the linear layers of `model`, in place."""
    factorize_linears_(model, lambda name, w: factors(method, name, w, ranks[name], found))


def low_rank_classifier(left: float, method: str, allocation: str, found: Statistics) -> nn.Module:
    model, _ = load_classifier()
    ranks = choose_ranks(model.bert.encoder, left, allocation, found)
    low_rank_(model.bert.encoder, method, ranks, found)
    return model


def numbers(model: nn.Module) -> int:
    """Of the weights of all linear layers."""
    return sum(linear.weight.numel() for linear in find_linears(model).values())


def run(path: Path, left: float, method: str, allocation: str, correct: Tensor) -> dict:
    """Validate one low-rank classifier; `path` has the statistics."""
    dense, tokenizer = load_classifier()
    found = torch.load(path, mmap=True)
    model = low_rank_classifier(left, method, allocation, found)
    hits = correct_answers(model, load_reviews()["validation"], tokenizer)
    return {
        "method": method,
        "allocation": allocation,
        "asked": left,
        "left": numbers(model.bert.encoder) / numbers(dense.bert.encoder),
        "difference": vars(compare_accuracy(correct, hits).difference),
    } | vars(accuracy(hits))


def by_layer(model: nn.Module, found: Statistics) -> list[dict]:
    """Of every layer: the fraction of its rank that holds 90 % of the sum of squares, what an error
    does, and its rank at half of all numbers.
    """

    def share(s: Tensor) -> float:
        return (s.square().cumsum(0) / s.square().sum() < 0.9).float().mean().item()

    ranks = {a: choose_ranks(model, 0.5, a, found) for a in ALLOCATIONS}
    lines = []
    for name, linear in find_linears(model).items():
        weight = linear.weight.detach()
        generator = torch.Generator().manual_seed(SEED)
        random = torch.randn(weight.shape, generator=generator)
        lines.append(
            {
                "layer": name,
                "trained": share(singular_values(weight)),
                "random": share(singular_values(random)),
                "whitened": share(found["spectra"][name]),
                "damage": found["damage"][name],
                "ranks": {allocation: chosen[name] for allocation, chosen in ranks.items()},
            }
        )
    return lines


def main() -> None:
    reviews = load_reviews()
    dense, tokenizer = load_classifier()
    found = classifier_statistics(dense, tokenizer)
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    choices = [(method, "uniform") for method in METHODS]
    choices += [("whitened", allocation) for allocation in ALLOCATIONS[1:]]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.pt"
        torch.save(found, path)
        tasks = [
            {"path": path, "left": left, "method": method, "allocation": a, "correct": correct}
            for method, a in choices
            for left in LEFT
        ]
        for result in in_parallel(run, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
    best = smallest(runs, of=itemgetter("difference"), size="left")
    model = low_rank_classifier(best["asked"], best["method"], best["allocation"], found)
    result = row(
        f"low rank, {best['left']:.0%} of the encoder left",
        lecture=4,
        model=model,
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        note=f"{best['method']}, {best['allocation']}; no training",
    )
    figures = {
        "sentences": SENTENCES,
        "dense": vars(accuracy(correct)),
        "layers": by_layer(dense.bert.encoder, found),
        "runs": runs,
        "best": best,
    }
    print(record("factorization_oneshot", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
