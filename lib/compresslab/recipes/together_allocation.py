"""Bits and ranks by what they harm: a budget of bytes for all matrices of the classifier.

    python -m compresslab.recipes.together_allocation

Every linear layer, and the embedding table, is made smaller alone, in each of several ways: fewer
bits (in groups of 32), two factors (whitened; for the table, weighted by how often a token occurs),
or factors of few bits. Damage is how far the answers then move on some training sentences: the mean
Kullback-Leibler divergence from those of the classifier, in nats. Of all choices for the matrices
those are taken whose damages add up to the least within a budget, without training. They stand
beside the best single choice for all matrices in the same budget, on validation, for bits alone,
ranks alone and both; and the damage that was added up beside the one of the whole model.

Biases, norms, positions and the head stay as they are, and count in no budget. About 20 minutes on
two cores.
"""

import functools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from ..corpora import load_reviews
from ..distillation.soft_targets import soft_target_loss
from ..factorization.embedding import factorize_embedding
from ..factorization.svd import Factors
from ..factorization.weighted_svd import whitened_svd
from ..knapsack import Options, by_slope, least_damage
from ..layers import find_linears
from ..measure import correct_answers, predict
from ..models import load_classifier
from ..pruning.sparsegpt import collect_hessians
from ..quantization.affine import quantize_tensor
from ..quantization.linear import PackedLinear
from ..training import TextBatches
from . import in_parallel, launch, record
from .factorization_embeddings import NAME, token_counts
from .tuning import lost

SEED = 0  # nothing here is random
SENTENCES, STATISTICS = 128, 512  # of training: for damages, and for what layers read
GROUP, UNIT = 32, 256  # weights that share a scale; bytes in which a budget is spent
HALF = 16  # bits: float16
LEFT = (1 / 4, 1 / 2, 3 / 4)  # fractions of the numbers that two factors have, about
BITS, PAIR_BITS = (2, 3, 4, 5, 6, 7, 8), (3, 4, 5, 8)

Choice = tuple[float, int]  # fraction left, 1 for a matrix as it is; and bits of a number
KINDS: dict[str, tuple[Choice, ...]] = {
    "bits": tuple((1, bits) for bits in BITS),
    "ranks": (*((left, HALF) for left in LEFT), (1, HALF)),
    "both": (
        *((1, bits) for bits in BITS),
        *((left, bits) for left in LEFT for bits in PAIR_BITS),
    ),
}
# What all matrices together may take: as many bytes as with one choice for all.
BUDGETS: dict[str, tuple[Choice, ...]] = {
    "bits": tuple((1, bits) for bits in (3, 4, 5)),
    "ranks": tuple((left, HALF) for left in LEFT[1:]),
    "both": tuple((1, bits) for bits in (2, 3, 4, 5)),
}
EVERY = tuple(dict.fromkeys(choice for choices in KINDS.values() for choice in choices))

Table = dict[str, dict[Choice, tuple[int, float]]]  # matrix -> choice -> bytes, damage


# ---------------------------------------------------------------- one matrix


def matrices(model: nn.Module) -> dict[str, nn.Parameter]:
    """What is made smaller, by the name of its layer."""
    names = [NAME, *(f"bert.{name}" for name in find_linears(model.bert))]
    return {name: model.get_submodule(name).weight for name in names}


def statistics(model: nn.Module, tokenizer) -> dict:
    """What factors go by: inputs of linear layers, and how often each token occurs."""
    train = load_reviews()["train"]
    few = train.select(range(min(STATISTICS, len(train))))
    batches = TextBatches(few, tokenizer, batch_size=1)  # without padding
    return {
        "hessians": collect_hessians(model, [batch["input_ids"] for batch in batches]),
        "counts": token_counts(tokenizer),
    }


def factorizer(name: str, weight: Tensor, found: dict) -> Callable[[int], Factors]:
    """The factors of a matrix by their rank, each computed once."""
    weight = weight.detach().clone()

    @functools.cache
    def factors(rank: int) -> Factors:
        if name == NAME:
            return factorize_embedding(weight, rank, counts=found["counts"])
        return whitened_svd(weight, found["hessians"][name], rank)

    return factors


def rank_for(shape: tuple[int, int], left: float) -> int:
    """At which two factors have about `left` of the numbers; whole groups, and at least one."""
    rows, columns = shape
    return GROUP * max(1, round(left * rows * columns / (rows + columns) / GROUP))


def packed(weight: Tensor, bits: int) -> tuple[Tensor, int]:
    """A matrix as it comes back from few bits, or from float16, and the bytes that hold it."""
    if bits == HALF:
        stored = weight.half()
        return stored.float(), stored.nbytes
    layer = PackedLinear(quantize_tensor(weight, bits=bits, granularity=GROUP))
    return layer.dequantize(), sum(buffer.nbytes for buffer in layer.buffers())


def smaller(
    weight: Tensor, choice: Choice, factors: Callable[[int], Factors]
) -> tuple[Tensor, int]:
    """What a choice makes of a matrix, and its bytes."""
    left, bits = choice
    if left == 1:
        return packed(weight.detach(), bits)
    (a, of_a), (b, of_b) = (packed(x, bits) for x in factors(rank_for(weight.shape, left)))
    return a @ b, of_a + of_b


@torch.no_grad()
def run(name: str, path: Path) -> list[tuple[int, float]]:
    """Bytes and damage of every choice for one matrix, the others left whole; `path` has the
    statistics.
    """
    (model, tokenizer), found = load_classifier(), torch.load(path, mmap=True)
    answers = answering(tokenizer)
    parameter, whole, results = matrices(model)[name], answers(model), []
    weight = parameter.detach().clone()
    factors = factorizer(name, weight, found)
    for choice in EVERY:
        new, size = smaller(weight, choice, factors)
        parameter.copy_(new)
        results.append((size, soft_target_loss(answers(model), whole, temperature=1.0).item()))
    return results


def answering(tokenizer) -> Callable[[nn.Module], Tensor]:
    """A function that gives a model's logits on the sentences of which damages are the mean."""
    batches = TextBatches(load_reviews()["train"].select(range(SENTENCES)), tokenizer)
    return lambda model: predict(model, batches)


# ---------------------------------------------------------------- all of them


def allocations(table: Table) -> Iterator[dict]:
    """For each kind and budget: what is chosen, by each way to choose; its bytes and the sum of its
    damages.
    """
    for kind, choices in KINDS.items():
        options: Options = {n: [own[choice] for choice in choices] for n, own in table.items()}
        for like in BUDGETS[kind]:
            budget = sum(own[like][0] for own in table.values())
            for way, chosen in (
                ("uniform", uniform(options, budget)),
                ("slope", by_slope(options, budget)),
                ("exact", least_damage(options, budget, unit=UNIT)),
            ):
                taken = [options[name][i] for name, i in chosen.items()]
                yield {
                    "kind": kind,
                    "budget": budget,
                    "way": way,
                    "bytes": sum(size for size, _ in taken),
                    "added": sum(damage for _, damage in taken),
                    "chosen": {name: choices[i] for name, i in chosen.items()},
                }


def uniform(options: Options, budget: int) -> dict[str, int]:
    """The same choice for all: the one of least damage that fits."""

    def total(i: int) -> tuple[int, float]:
        return tuple(map(sum, zip(*(own[i] for own in options.values()), strict=True)))

    every = [total(i) for i in range(len(next(iter(options.values()))))]
    fits = [i for i, (size, _) in enumerate(every) if size <= budget]
    return dict.fromkeys(options, min(fits, key=lambda i: every[i][1]))


@torch.no_grad()
def evaluate(chosen: dict[str, Choice], path: Path, correct: Tensor) -> dict:
    """Make a choice of all matrices at once: the damage, and what is lost on validation."""
    (model, tokenizer), found = load_classifier(), torch.load(path, mmap=True)
    answers = answering(tokenizer)
    whole = answers(model)
    for name, weight in matrices(model).items():
        weight.copy_(smaller(weight, chosen[name], factorizer(name, weight, found))[0])
    return {
        "damage": soft_target_loss(answers(model), whole, temperature=1.0).item(),
        "difference": lost(model, tokenizer, correct),
    }


def main() -> None:
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, load_reviews()["validation"], tokenizer)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.pt"
        torch.save(statistics(dense, tokenizer), path)
        names, table = list(matrices(dense)), {}
        tasks = [{"name": name, "path": path} for name in names]
        for name, results in zip(names, in_parallel(run, tasks), strict=True):
            table[name] = dict(zip(EVERY, results, strict=True))
            print(name, json.dumps(results), flush=True)
        runs = list(allocations(table))
        shown = [r for r in runs if r["way"] != "slope"]  # whose choices are all but the exact ones
        shared = {"path": path, "correct": correct}
        tasks = [{"chosen": r["chosen"]} | shared for r in shown]
        for result, found in zip(shown, in_parallel(evaluate, tasks), strict=True):
            result |= found
            print(json.dumps({k: v for k, v in result.items() if k != "chosen"}), flush=True)
    figures = {
        "sentences": SENTENCES,
        "group": GROUP,
        "choices": EVERY,
        "matrices": {name: list(own.values()) for name, own in table.items()},
        "runs": runs,
    }
    print(record("together_allocation", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
