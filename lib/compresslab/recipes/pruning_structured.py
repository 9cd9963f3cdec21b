"""Take heads, neurons and layers out of the classifier, without training: what can go.

    python -m compresslab.recipes.pruning_structured

Scores come from 512 labelled training sentences, accuracies from validation. The scoreboard gets
the smallest model that loses at most one point on validation. About 5 minutes on two cores.
"""

import copy

from datasets import Dataset
from torch import nn

from ..corpora import load_reviews
from ..measure import accuracy, compare_accuracy, compare_latency, correct_answers, count_parameters
from ..models import load_classifier
from ..pruning import depth, heads, width
from ..scoreboard import row
from ..training import TextBatches, classification_loss
from . import launch, record

SEED = 0  # nothing here is random
SENTENCES = 512
HEADS = (0.25, 0.5, 0.75)
NEURONS = (0.15, 0.3, 0.45, 0.6, 0.75, 0.9)  # two thirds of that of the encoder
COMBINED = ((0.25, 0.25), (0.25, 0.5), (0.5, 0.25), (0.5, 0.5), (0.5, 0.6))
STRATEGIES = (depth.drop_top, depth.drop_alternate, depth.drop_middle, depth.drop_bottom)


def without_heads(model: nn.Module, fraction: float, batches: TextBatches) -> nn.Module:
    model = copy.deepcopy(model)
    scores = heads.head_importance(model, batches, classification_loss, normalize=True)
    heads.remove_heads_(model, heads.choose_heads(scores, fraction))
    return model


def without_neurons(
    model: nn.Module, fraction: float, batches: TextBatches, *, globally: bool = False
) -> nn.Module:
    model = copy.deepcopy(model)
    gradients = width.collect_gradients(model, batches, classification_loss)
    scores = width.taylor_scores(model, gradients)
    width.remove_neurons_(model, width.choose_neurons(scores, fraction, globally=globally))
    return model


def speedups(models: dict, data: Dataset, tokenizer) -> dict:
    """Speed of each model over that called "dense", on 32 sentences at once."""
    batch = next(iter(TextBatches(data.select(range(32)), tokenizer)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    times = compare_latency(
        {name: lambda model=model: model(**inputs) for name, model in models.items()},
        baseline="dense",
    )
    return {name: latency.speedup for name, latency in times.items()}


def main() -> None:
    reviews = load_reviews()
    dense, tokenizer = load_classifier()
    batches = TextBatches(reviews["train"].select(range(SENTENCES)), tokenizer)
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    runs, best = [], None

    def measure(kind: str, model: nn.Module, **choice) -> None:
        nonlocal best
        hits = correct_answers(model, reviews["validation"], tokenizer)
        lost = compare_accuracy(correct, hits).difference
        runs.append({"kind": kind, "parameters": count_parameters(model)} | choice | vars(lost))
        runs[-1]["accuracy"] = vars(accuracy(hits))
        print(runs[-1], flush=True)
        if lost.value >= -0.01 and (best is None or runs[-1]["parameters"] < best[0]["parameters"]):
            best = (runs[-1], model)

    for fraction in HEADS:
        measure("heads", without_heads(dense, fraction, batches), fraction=fraction)
    narrower = {"dense": dense}
    for globally in (False, True):
        for fraction in NEURONS:
            narrower[fraction] = without_neurons(dense, fraction, batches, globally=globally)
            measure("neurons", narrower[fraction], fraction=fraction, globally=globally)
    speed = speedups(narrower, reviews["validation"], tokenizer)
    for run in runs:
        if run.get("globally"):
            run["speedup"] = vars(speed[run["fraction"]])
    for drop in STRATEGIES:
        layers = drop(6, 2)
        measure("layers", depth.keep_layers(dense, layers), strategy=drop.__name__, layers=layers)
    for head_fraction, neuron_fraction in COMBINED:
        fewer = without_heads(dense, head_fraction, batches)
        model = without_neurons(fewer, neuron_fraction, batches, globally=True)
        measure("heads and neurons", model, heads=head_fraction, neurons=neuron_fraction)

    run, model = best
    result = row(
        "fewer heads and neurons" if "heads" in run["kind"] else f"fewer {run['kind']}",
        lecture=2,
        model=model,
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        note="structured, no training; really smaller",
    )
    figures = {"sentences": SENTENCES, "runs": runs, "best": run}
    print(record("pruning_structured", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
