"""Case study: prune while tuning for sentiment, by magnitude, movement and soft movement.

    python -m compresslab.recipes.pruning_sentiment

As in Sanh et al. (2020), arXiv:2005.07683: tuning starts from the pretrained model, the linear
layers of the encoder lose weights on a cubic schedule while they learn, and the tuned classifier
teaches. Every run has the same sentences, steps and loss; soft movement adds its penalty.

Magnitude and movement keep a given fraction of every layer. Soft movement cannot be asked for a
fraction: λ decides, and what is left is counted. Two controls: "at once" removes by magnitude, all
in the same step; "random" keeps weights at random places.

Differs from the paper: 2 epochs of 221 steps instead of 10 of some 5,500, so that both learning
rates are higher; masks computed every 5 steps, not every step; bfloat16 in the forward pass. About
55 minutes on two cores.
"""

import copy
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews
from ..measure import accuracy, bytes_on_disk, correct_answers
from ..models import load_classifier
from ..pruning.masks import keep_largest, sparsity_of
from ..pruning.movement import (
    add_masks_,
    kept,
    merge_masks_,
    regularization,
    set_kept_,
    set_threshold_,
)
from ..pruning.schedule import cubic_sparsity
from ..scoreboard import pack_bits, row
from ..training import Batch, TextBatches, train
from . import in_parallel, launch, record
from .tuning import EPOCHS, LEARNING_RATE, SEED, distillation, teacher_logits

EVERY = 5  # steps from mask to mask
START, END = 0.1, 0.7  # of the steps: pruning begins and ends; the rest is recovery
SCORES_RATE = 3e-2
FRACTIONS = (0.5, 0.3, 0.15, 0.1, 0.05, 0.03)
THRESHOLD = 0.1  # τ
STRENGTHS = (560, 1220, 2320, 2600, 4000, 4600)  # λ, found by trial, to leave about as much


def tune_(
    model: nn.Module,
    tokenizer,
    method: str,
    amount: float,
    *,
    teacher: Tensor,
) -> tuple[list[dict], dict[str, Tensor]]:
    """Tune a classifier and prune its encoder on the way; give back the history and the masks.

    Args:
        method: "none", "magnitude", "at once", "random", "movement" or "soft movement".
        amount: fraction of the weights kept, or λ for soft movement.
    """
    reviews, encoder = load_reviews(), model.bert.encoder
    model.bert.embeddings.requires_grad_(False)
    if method != "none":
        trained = method in ("movement", "soft movement", "random")
        add_masks_(encoder, scores="movement" if trained else "magnitude")
    if method == "random":
        generator = torch.Generator().manual_seed(SEED)
        for name, scores in encoder.named_parameters():
            if name.endswith(".scores"):
                scores.requires_grad_(False).uniform_(generator=generator)
    progress = 0.0

    def prune(step: int, total: int) -> None:
        nonlocal progress
        start, end = round(START * total), round(END * total)
        progress = cubic_sparsity(step, start=start, end=end, final=1.0)
        if method == "none" or step % EVERY:
            return
        if method == "soft movement":
            set_threshold_(encoder, THRESHOLD * progress)
        else:
            share = float(progress > 0) if method == "at once" else progress
            set_kept_(encoder, 1 - (1 - amount) * share)

    learn = distillation(teacher)

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        value = learn(model, batch)
        if method == "soft movement":
            value = value + amount * progress * regularization(model)
        return value

    def validate(model: nn.Module) -> dict:
        hits = correct_answers(model, reviews["validation"], tokenizer)
        left = 1.0 if method == "none" else kept(encoder)
        return {"validation": accuracy(hits).value, "kept": left}

    torch.manual_seed(SEED)  # dropout
    history = train(
        model,
        TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED),
        loss,
        epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        own_rates={"scores": SCORES_RATE} if "movement" in method else None,
        after_step=prune,
        validate=validate,
        dtype=torch.bfloat16,
        progress=False,
    )
    return history, merge_masks_(encoder)


def run(method: str, amount: float, teacher: Tensor, path: Path) -> dict:
    """One run from the pretrained model; its weights go to `path`.

    `layers` of the result is what is left of each layer, and `largest` the fraction of the weights
    left that are among as many largest pretrained ones of their layer.
    """
    reviews = load_reviews()
    model, tokenizer = load_classifier(adapter=None)
    pretrained = copy.deepcopy(model.bert.encoder)
    history, masks = tune_(model, tokenizer, method, amount, teacher=teacher)
    save_file(model.state_dict(), path)
    layers = {name: 1 - sparsity_of({name: mask}) for name, mask in masks.items()}
    largest = {
        name: keep_largest(pretrained.get_submodule(name).weight.detach().abs(), 1 - layers[name])
        for name in masks
    }
    shared = sum(int((mask & largest[name]).sum()) for name, mask in masks.items())
    test = correct_answers(model, reviews["test"], tokenizer)
    return {
        "method": method,
        "amount": amount,
        "kept": history[-1]["kept"],
        "bytes": bytes_on_disk(model, encoding="smallest"),
        "validation": history[-1]["validation"],
        "test": vars(accuracy(test)),
        "correct": pack_bits(test),
        "history": history,
        "layers": layers,
        "largest": shared / max(1, sum(int(mask.sum()) for mask in masks.values())),
    }


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    cases = [("none", 1.0)]
    cases += [(method, f) for f in FRACTIONS for method in ("magnitude", "movement")]
    cases += [("soft movement", strength) for strength in STRENGTHS]
    cases += [("at once", 0.15), ("random", 0.5)]
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.safetensors" for i in range(len(cases))]
        tasks = [
            {"method": method, "amount": amount, "teacher": teacher, "path": file}
            for (method, amount), file in zip(cases, files, strict=True)
        ]
        runs = []
        for result in in_parallel(run, tasks):
            runs.append(result)
            print({k: v for k, v in result.items() if k not in ("correct", "layers")}, flush=True)
        before = accuracy(correct_answers(dense, reviews["validation"], tokenizer)).value
        good = [result for result in runs if result["validation"] >= before - 0.01]
        best = min(good or runs[:1], key=lambda result: result["bytes"])
        model, _ = load_classifier(adapter=None)
        model.load_state_dict(load_file(files[runs.index(best)]))
    result = row(
        f"{best['method']}, tuned",
        lecture=2,
        model=model,
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        encoding="smallest",
        note=f"{best['kept']:.0%} of the encoder's weights left",
    )
    figures = {
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "scores_rate": SCORES_RATE,
        "threshold": THRESHOLD,
        "dense": before,
        "best": {name: best[name] for name in ("method", "amount", "kept", "validation")},
        "runs": runs,
    }
    print(record("pruning_sentiment", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
