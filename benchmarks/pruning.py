"""The library's pruning beside torch.nn.utils.prune and torch-pruning: `make bench`.

In one process. Ratios are medians over pairs timed one after the other, with their 95 % interval;
the library first, so 0.5 is twice as fast. Both sides get fresh copies of the same weights, made
outside the clock.
"""

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn.utils import prune

from compresslab.corpora import load_reviews
from compresslab.layers import find_linears
from compresslab.machine import processor
from compresslab.measure import (
    Estimate,
    accuracy,
    compare_accuracy,
    compare_latency,
    correct_answers,
    count_flops,
    median_interval,
)
from compresslab.models import load_classifier
from compresslab.pruning import width
from compresslab.pruning.heads import choose_heads, head_importance, remove_heads_
from compresslab.pruning.magnitude import magnitude_masks
from compresslab.pruning.masks import apply_masks_
from compresslab.recipes.together_pruned import prune_ as prune_theirs_
from compresslab.training import TextBatches, classification_loss

SIZES = ((384, 384), (1536, 384), (1024, 1024), (2048, 2048), (4096, 4096))
FRACTIONS = (0.25, 0.5, 0.75)
SENTENCES = 256  # labelled ones that the importances come from


def paired(
    ours: Callable, theirs: Callable, prepare: Callable[[], object], *, rounds: int = 15
) -> tuple[Estimate, float]:
    """Time of ours over theirs, and ours in milliseconds; each gets what prepare() gives."""
    ratios, own = [], []
    for round_ in range(rounds + 1):
        seconds = {}
        for call in (ours, theirs) if round_ % 2 else (theirs, ours):
            argument = prepare()
            start = time.perf_counter()
            call(argument)
            seconds[call] = time.perf_counter() - start
        if round_:  # the first one warms up
            ratios.append(seconds[ours] / seconds[theirs])
            own.append(1000 * seconds[ours])
    return median_interval(ratios), sorted(own)[rounds // 2]


def show(what: str, ratio: Estimate, milliseconds: float) -> None:
    print(
        f"{what:44} {ratio.value:5.2f} ({ratio.low:.2f}–{ratio.high:.2f}) of the peer's time,"
        f" {milliseconds:8.1f} ms",
        flush=True,
    )


# ---------------------------------------------------------------- single weights


def bench_magnitude() -> None:
    def ours(layer: nn.Module) -> None:
        apply_masks_(layer, magnitude_masks(layer, 0.5))

    def theirs(layer: nn.Module) -> None:
        prune.l1_unstructured(layer[0], "weight", 0.5)
        prune.remove(layer[0], "weight")

    print("Half of a layer by magnitude, against torch.nn.utils.prune.l1_unstructured")
    for rows, columns in SIZES:
        layer = nn.Sequential(nn.Linear(columns, rows))
        both = [copy.deepcopy(layer) for _ in range(2)]
        ours(both[0]), theirs(both[1])
        left = [layer[0].weight.abs().flatten().sort().values for layer in both]
        assert torch.equal(*left)  # of two equal weights, each side may take another
        ratio = paired(ours, theirs, lambda layer=layer: copy.deepcopy(layer))
        show(f"  {rows} × {columns}", *ratio)


def bench_global(classifier: nn.Module) -> None:
    def ours(encoder: nn.Module) -> None:
        apply_masks_(encoder, magnitude_masks(encoder, 0.5, globally=True))

    def theirs(encoder: nn.Module) -> None:
        weights = [(layer, "weight") for layer in find_linears(encoder).values()]
        prune.global_unstructured(weights, prune.L1Unstructured, amount=0.5)
        for weight in weights:
            prune.remove(*weight)

    both = [copy.deepcopy(classifier.bert.encoder) for _ in range(2)]
    ours(both[0]), theirs(both[1])
    zeros = [sum(int((p == 0).sum()) for p in encoder.parameters()) for encoder in both]
    assert zeros[0] == zeros[1]
    print("\nHalf of the encoder in one ranking, against global_unstructured")
    show(
        "  36 layers, 10.6 million weights",
        *paired(ours, theirs, lambda: copy.deepcopy(classifier.bert.encoder), rounds=7),
    )


# ---------------------------------------------------------------- neurons and heads


def prune_ours_(
    model: nn.Module, batches: list, *, neurons: float, heads: float, globally: bool
) -> None:
    if heads:
        scores = head_importance(model, batches, classification_loss, normalize=True)
        remove_heads_(model, choose_heads(scores, heads))
    scores = width.taylor_scores(
        model, width.collect_gradients(model, batches, classification_loss)
    )
    width.remove_neurons_(model, width.choose_neurons(scores, neurons, globally=globally))


def bench_structured(classifier: nn.Module, tokenizer, reviews) -> None:
    batches = list(TextBatches(reviews["train"].select(range(SENTENCES)), tokenizer))
    example = next(iter(TextBatches(reviews["validation"].select(range(32)), tokenizer)))
    inputs = {name: example[name] for name in ("input_ids", "attention_mask")}
    correct = correct_answers(classifier, reviews["validation"], tokenizer)
    print("\nNeurons and heads, against torch-pruning's GroupTaylorImportance")
    print(f"  dense: {accuracy(correct).value:.1%} of 1,000 validation sentences")
    cases = [(f, 0.0, g) for f in FRACTIONS for g in (False, True)] + [(0.5, 0.25, False)]
    for neurons, head_fraction, globally in cases:
        models = {}
        for name, method in (("ours", prune_ours_), ("peer", prune_theirs_)):
            models[name] = copy.deepcopy(classifier)
            method(models[name], batches, neurons=neurons, heads=head_fraction, globally=globally)
        where = "one ranking" if globally else "each layer"
        print(f"  {neurons:.0%} of the neurons, {head_fraction:.0%} of the heads, {where}")
        times = compare_latency(
            {name: lambda m=model: m(**inputs) for name, model in models.items()}, baseline="peer"
        )
        hits = {n: correct_answers(m, reviews["validation"], tokenizer) for n, m in models.items()}
        for name, model in models.items():
            print(
                f"    {name}: {count_flops(lambda m=model: m(**inputs)) / 1e9:.2f} GFLOP, "
                f"{accuracy(hits[name]).value:.1%}"
            )
        d = compare_accuracy(hits["peer"], hits["ours"]).difference
        ends = f"{100 * d.low:+.1f} to {100 * d.high:+.1f}"
        print(f"    ours − peer: {100 * d.value:+.1f} points ({ends})")
        s = times["ours"].speedup
        print(f"    ours runs {s.value:.2f} ({s.low:.2f}–{s.high:.2f}) times as fast as the peer's")
    for neurons, head_fraction in ((0.5, 0.0), (0.5, 0.25)):
        options = {"batches": batches, "neurons": neurons, "heads": head_fraction}
        ratio = paired(
            partial(prune_ours_, globally=False, **options),
            partial(prune_theirs_, globally=False, **options),
            lambda: copy.deepcopy(classifier),
            rounds=7,
        )
        show(f"  {neurons:.0%} of the neurons, {head_fraction:.0%} of the heads", *ratio)


def main() -> None:
    torch.manual_seed(0)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    reviews = load_reviews()
    classifier, tokenizer = load_classifier()
    bench_magnitude()
    bench_global(classifier)
    bench_structured(classifier, tokenizer, reviews)


if __name__ == "__main__":
    main()
