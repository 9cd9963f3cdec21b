"""Prune the classifier's encoder by magnitude, without training: how much can go, and where.

    python -m compresslab.recipes.pruning_oneshot

Accuracy on validation against sparsity, layer by layer and globally; then one layer at a time (the
sensitivity scan). The scoreboard gets the sparsest model that loses at most one point on
validation. About 10 minutes on two cores.
"""

import copy

from torch import nn

from ..corpora import load_reviews
from ..measure import accuracy, compare_accuracy, correct_answers
from ..models import load_classifier
from ..pruning.magnitude import magnitude_masks, sensitivity
from ..pruning.masks import apply_masks_
from ..scoreboard import row
from . import launch, record

SEED = 0  # nothing here is random
SPARSITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)
SCAN_SPARSITIES = (0.5, 0.7, 0.9)
SCAN_SENTENCES = 400


def pruned(dense: nn.Module, sparsity: float, *, globally: bool) -> nn.Module:
    """A copy of the classifier whose encoder has lost its smallest weights."""
    model = copy.deepcopy(dense)
    masks = magnitude_masks(model.bert.encoder, sparsity, globally=globally)
    apply_masks_(model.bert.encoder, masks)
    return model


def main() -> None:
    reviews = load_reviews()
    validation = reviews["validation"]
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, validation, tokenizer)
    runs, best = [], None
    for globally in (False, True):
        for sparsity in SPARSITIES:
            hits = correct_answers(
                pruned(dense, sparsity, globally=globally), validation, tokenizer
            )
            lost = compare_accuracy(correct, hits).difference
            runs.append({"globally": globally, "sparsity": sparsity} | vars(accuracy(hits)))
            print(runs[-1], flush=True)
            if lost.value >= -0.01 and (best is None or sparsity > best[0]):
                best = (sparsity, globally)

    few = validation.select(range(SCAN_SENTENCES))
    model = copy.deepcopy(dense)

    def quality(encoder: nn.Module) -> float:
        return accuracy(correct_answers(model, few, tokenizer)).value

    scan = sensitivity(model.bert.encoder, SCAN_SPARSITIES, quality)
    sparsity, globally = best
    figures = {
        "dense": vars(accuracy(correct)),
        "runs": runs,
        "scan": {
            "sentences": SCAN_SENTENCES,
            "sparsities": SCAN_SPARSITIES,
            "dense": quality(model.bert.encoder),
            "layers": scan,
        },
        "best": {"sparsity": sparsity, "globally": globally},
    }
    result = row(
        f"magnitude, {100 * sparsity:.0f} % of the encoder removed",
        lecture=2,
        model=pruned(dense, sparsity, globally=globally),
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        encoding="smallest",
        note="no training; zeros in a dense model",
    )
    print(record("pruning_oneshot", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
