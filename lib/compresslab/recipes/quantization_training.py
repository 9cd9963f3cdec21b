"""Train the classifier with weights of 2 bits, and of three values, through the rounding.

    python -m compresslab.recipes.quantization_training

Every run starts from the course's classifier, which also teaches, and has the same sentences, steps
and loss; its embeddings stay as they are. The linear layers are rounded in the forward pass by a
quantizer, with the straight-through estimator behind it. The same quantizers without training are
the controls, and so is float32 trained on. About 35 minutes on two cores.

At a learning rate of 5e-4 LSQ came to 79.7 % on validation, and had fallen to 70 % after the first
epoch: so large a rate moves the float weights over too many boundaries at once.
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews
from ..measure import accuracy, bytes_on_disk, correct_answers, count_parameters
from ..models import load_classifier
from ..quantization.linear import PackedLinear
from ..quantization.qat import LSQ, MinMax, add_quantizers_, finish_
from ..quantization.ternary import Ternary, TernaryLinear
from ..scoreboard import pack_bits, row
from ..training import TextBatches, train
from . import in_parallel, launch, record
from .tuning import distillation, teacher_logits

SEED = 0
EPOCHS = 3
LEARNING_RATE, FLOAT_RATE = 2e-4, 1e-4
# Name -> the quantizer of a weight, the layer that stores its codes, whether its steps train too.
KINDS = {
    "2 bits, LSQ": (lambda w: LSQ(w, bits=2), PackedLinear, True),
    "ternary, a scale a row": (
        lambda w: Ternary(granularity="channel", threshold=0.75),
        TernaryLinear,
        False,
    ),
    "2 bits, min-max": (lambda w: MinMax(bits=2), PackedLinear, False),
}


def with_quantizers(kind: str) -> nn.Module:
    """The classifier, its linear layers rounded when they run; "float32" is left as it is."""
    model, _ = load_classifier()
    if kind in KINDS:
        add_quantizers_(model.bert, KINDS[kind][0])
    return model


def stored(kind: str, weights: dict[str, Tensor]) -> nn.Module:
    """The model of a run, with its codes packed, from the weights that were trained."""
    model = with_quantizers(kind)
    model.load_state_dict(weights)
    if kind in KINDS:
        finish_(model.bert, KINDS[kind][1])
    return model.eval()


def run(kind: str, teacher: Tensor, path: Path) -> dict:
    """Train one kind; its float weights, which the codes are made of, go to `path`."""
    reviews, (_, tokenizer) = load_reviews(), load_classifier()
    model = with_quantizers(kind)
    model.bert.embeddings.requires_grad_(False)
    before = accuracy(correct_answers(model.eval(), reviews["validation"], tokenizer))
    rate = LEARNING_RATE if kind in KINDS else FLOAT_RATE

    def validate(model: nn.Module) -> dict:
        return {"validation": accuracy(correct_answers(model, reviews["validation"], tokenizer))}

    torch.manual_seed(SEED)  # dropout
    history = train(
        model,
        TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED),
        distillation(teacher),
        epochs=EPOCHS,
        learning_rate=rate,
        own_rates={"step": rate} if kind in KINDS and KINDS[kind][2] else None,
        validate=validate,
        progress=False,
    )
    save_file(model.state_dict(), path)
    model = stored(kind, model.state_dict())
    hits = {s: correct_answers(model, reviews[s], tokenizer) for s in ("validation", "test")}
    for entry in history:
        entry["validation"] = entry["validation"].value
    return {
        "kind": kind,
        "learning_rate": rate,
        "untrained": vars(before),
        "history": history,
        "bytes": bytes_on_disk(model),
        "correct": {split: pack_bits(bits) for split, bits in hits.items()},
    } | {split: vars(accuracy(bits)) for split, bits in hits.items()}


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    kinds = [*KINDS, "float32"]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.safetensors" for i in range(len(kinds))]
        tasks = [
            {"kind": kind, "teacher": teacher, "path": file}
            for kind, file in zip(kinds, files, strict=True)
        ]
        runs = []
        for result in in_parallel(run, tasks):
            runs.append(result)
            print({k: v for k, v in result.items() if k != "correct"}, flush=True)
        models = []
        for start in ("2 bits", "ternary"):
            of = [result for result in runs if result["kind"].startswith(start)]
            best = max(of, key=lambda result: result["validation"]["value"])
            models.append(
                row(
                    f"{best['kind']}, trained",
                    lecture=3,
                    model=stored(best["kind"], load_file(files[runs.index(best)])),
                    dense=dense,
                    data=reviews["test"],
                    tokenizer=tokenizer,
                    parameters=count_parameters(dense),
                    note="packed, made float at every use",
                )
            )
    figures = {"epochs": EPOCHS, "dense": vars(accuracy(correct)), "runs": runs}
    print(record("quantization_training", seed=SEED, figures=figures, models=models))


if __name__ == "__main__":
    launch(main)
