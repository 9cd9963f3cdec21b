"""Remove layers, heads and neurons from the classifier, then tune what is left.

    python -m compresslab.recipes.pruning_tuned

What goes is chosen as in `pruning_structured`, in one step; then the smaller model is tuned with
the whole one as its teacher. The smallest that loses at most one point on validation then loses
single weights too, while it is tuned once more, and is stored in 16 bits: the combined model.
About 15 minutes on two cores.
"""

import copy
import tempfile
from operator import itemgetter
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews
from ..measure import bytes_on_disk, compare_accuracy, correct_answers, count_parameters
from ..models import load_classifier
from ..pruning import depth
from ..scoreboard import row
from ..training import TextBatches
from . import in_parallel, launch, record
from .pruning_sentiment import tune_
from .pruning_structured import SENTENCES, without_heads, without_neurons
from .tuning import EPOCHS, LEARNING_RATE, SEED, smallest, teacher_logits

DROPPED = 2  # layers of 6
STRATEGIES = (depth.drop_top, depth.drop_middle)  # the worst and the best without tuning
WIDTHS = ((0.5, 0.5), (0.5, 0.75), (0.75, 0.75), (0.75, 0.9))  # of heads, of neurons
FRACTIONS = (0.5, 0.3)  # of the single weights, kept in the combined model


def smaller(kind: str, *, heads: float = 0.0, neurons: float = 0.0) -> nn.Module:
    """The classifier without heads and neurons, or without what a strategy of `depth` drops."""
    model, tokenizer = load_classifier()
    for drop in STRATEGIES:
        if drop.__name__ == kind:
            return depth.keep_layers(model, drop(6, DROPPED))
    batches = TextBatches(load_reviews()["train"].select(range(SENTENCES)), tokenizer)
    if heads:
        model = without_heads(model, heads, batches)
    if neurons:
        model = without_neurons(model, neurons, batches, globally=True)
    return model


def run(
    choice: dict, teacher: Tensor, correct: Tensor, path: Path, start: Path | None = None
) -> dict:
    """Tune one smaller model and save it whole to `path`; with `start`, go on from that file.

    `choice` may have `fraction`, of the single weights that are kept; `correct` says which
    sentences of validation the classifier gets right.
    """
    validation, (_, tokenizer) = load_reviews()["validation"], load_classifier()
    fraction = choice.get("fraction", 1.0)
    shape = {name: value for name, value in choice.items() if name != "fraction"}
    model = smaller(**shape)
    if start is not None:
        model.load_state_dict(load_file(start))
    before = compare_accuracy(correct, correct_answers(model, validation, tokenizer)).difference
    method = "magnitude" if fraction < 1 else "none"
    tune_(model, tokenizer, method, fraction, teacher=teacher)
    save_file(model.state_dict(), path)
    after = compare_accuracy(correct, correct_answers(model, validation, tokenizer)).difference
    return choice | {
        "parameters": count_parameters(model),
        "bytes": bytes_on_disk(copy.deepcopy(model).bfloat16(), encoding="smallest"),
        "before": vars(before),
        "after": vars(after),
    }


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    choices = [{"kind": drop.__name__} for drop in STRATEGIES]
    choices += [{"kind": "width", "heads": h, "neurons": n} for h, n in WIDTHS]
    with tempfile.TemporaryDirectory() as folder:

        def paths(name: str, choices: list[dict]) -> list[Path]:
            return [Path(folder) / f"{name}{i}.safetensors" for i in range(len(choices))]

        def tuned(choices: list[dict], files: list[Path], **options) -> list[dict]:
            tasks = [
                {"choice": choice, "teacher": teacher, "correct": correct, "path": path} | options
                for choice, path in zip(choices, files, strict=True)
            ]
            runs = []
            for result in in_parallel(run, tasks):
                runs.append(result)
                print(result, flush=True)
            return runs

        files = paths("structured", choices)
        structured = tuned(choices, files)
        best = smallest(structured, of=itemgetter("after"))
        best_file = files[structured.index(best)]
        shape = choices[structured.index(best)]
        what = "heads and neurons" if shape["kind"] == "width" else "layers"
        both = [shape | {"fraction": fraction} for fraction in FRACTIONS]
        both_files = paths("combined", both)
        combined = tuned(both, both_files, start=best_file)
        best_both = smallest(combined, of=itemgetter("after"))

        def load(path: Path) -> nn.Module:
            model = smaller(**shape)
            model.load_state_dict(load_file(path))
            return model

        shared = {"lecture": 2, "dense": dense, "data": reviews["test"], "tokenizer": tokenizer}
        models = [
            row(
                f"fewer {what}, tuned",
                model=load(best_file),
                note="structured; really smaller",
                **shared,
            ),
            row(
                f"fewer {what}, sparse, bfloat16",
                model=load(both_files[combined.index(best_both)]).bfloat16(),
                encoding="smallest",
                note=f"{best_both['fraction']:.0%} of its encoder's weights left",
                **shared,
            ),
        ]
    figures = {
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "structured": structured,
        "combined": combined,
    }
    print(record("pruning_tuned", seed=SEED, figures=figures, models=models))


if __name__ == "__main__":
    launch(main)
