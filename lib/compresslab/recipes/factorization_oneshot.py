"""Cut the classifier's layers to low rank, without training: by four methods, at equal numbers.

    python -m compresslab.recipes.factorization_oneshot

All linear layers of the encoder. "Left" is the fraction of their weights that the factors have.
Statistics come from 512 training sentences, accuracies from validation. Ranks are the same fraction
for every layer, or given out by budget, after the singular values of the whitened weights: as they
are, or divided by the size of the layer's output. The scoreboard gets the smallest model that loses
at most one point on validation. About 10 minutes on two cores.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

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
from . import in_parallel, record

SEED = 0  # nothing here is random
SENTENCES = 512
LEFT = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
METHODS = ("SVD", "Fisher", "ASVD", "whitened")
ALLOCATIONS = ("uniform", "by budget", "by budget, relative")

Statistics = dict[str, dict[str, Tensor]]


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
    return found | {"spectra": whitened_spectra(model.bert.encoder, found["hessians"])}


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


def spectra(model: nn.Module, found: Statistics) -> list[dict]:
    """Of every layer: the fraction of its rank that holds 90 % of the sum of squares."""

    def share(s: Tensor) -> float:
        return (s.square().cumsum(0) / s.square().sum() < 0.9).float().mean().item()

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
            }
        )
    return lines


def main() -> None:
    reviews = load_reviews()
    dense, tokenizer = load_classifier()
    found = classifier_statistics(dense, tokenizer)
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    choices = [(method, "uniform") for method in METHODS]
    choices += [(method, a) for a in ALLOCATIONS[1:] for method in ("SVD", "whitened")]
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
    good = [r for r in runs if r["difference"]["value"] >= -0.01]
    best = min(good, key=lambda r: r["left"])
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
        "spectra": spectra(dense.bert.encoder, found),
        "runs": runs,
        "best": best,
    }
    print(record("factorization_oneshot", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    main()
