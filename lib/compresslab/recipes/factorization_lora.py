"""Tune with LoRA of several ranks and in several places, and whole: how low is the rank of tuning?

    python -m compresslab.recipes.factorization_lora

Four epochs each, with the settings of the course's classifier; the whole model at a learning rate
of its own, picked for it in trial runs on validation. Of the whole tuning's update, W after minus W
before, the singular values are kept, and the accuracy when every layer's update is cut to a rank.
About 50 minutes on two cores.
"""

import json

import torch
from torch import Tensor, nn

from ..corpora import load_reviews
from ..factorization.lora import add_lora_
from ..factorization.svd import singular_values, truncated_svd
from ..layers import find_linears
from ..measure import accuracy, correct_answers
from ..models import load_classifier
from ..training import TextBatches, train
from . import in_parallel, launch, record, recorded
from .quantization_qlora import FULL_RATE
from .teacher import EPOCHS

SEED = 0
CHOICES = [
    {"kind": "whole"},
    *({"kind": "everywhere", "rank": rank} for rank in (1, 2, 4, 8, 16, 64)),
    {"kind": "attention", "rank": 8},
    {"kind": "feed-forward", "rank": 8},
    {"kind": "head alone"},
]
CUTS = (1, 2, 4, 8, 16, 32, 64, 128)


def prepare_(model: nn.Module, kind: str, rank: int | None = None) -> None:
    """Make the pretrained model ready: what trains, besides pooler and head."""
    generator = torch.Generator().manual_seed(SEED)
    if kind == "whole":
        return
    model.requires_grad_(False)
    for layer in model.bert.encoder.layer if rank is not None else ():
        if kind != "feed-forward":
            add_lora_(layer.attention, rank=rank, generator=generator)
        if kind != "attention":
            add_lora_(layer.intermediate, rank=rank, generator=generator)
            add_lora_(layer.output, rank=rank, generator=generator)
    model.bert.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)


def run(choice: dict) -> dict:
    reviews = load_reviews()
    model, tokenizer = load_classifier(adapter=None)
    prepare_(model, **choice)
    whole = choice["kind"] == "whole"
    rate = FULL_RATE if whole else recorded("teacher")["figures"]["learning_rate"]
    torch.manual_seed(SEED)  # dropout

    def validate(model: nn.Module) -> dict:
        hits = correct_answers(model, reviews["validation"], tokenizer)
        return {"validation": vars(accuracy(hits))}

    history = train(
        model,
        TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED),
        epochs=EPOCHS,
        learning_rate=rate,
        validate=validate,
        progress=False,
    )
    result = choice | {
        "learning_rate": rate,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "history": history,
        "test": vars(accuracy(correct_answers(model, reviews["test"], tokenizer))),
    }
    return result | ({"update": update(model, reviews, tokenizer)} if whole else {})


@torch.no_grad()
def update(tuned: nn.Module, reviews, tokenizer) -> dict:
    """Singular values of what tuning changed in each layer, and accuracy if it is cut to a rank."""
    before, _ = load_classifier(adapter=None)
    start = {name: linear.weight for name, linear in find_linears(before.bert.encoder).items()}
    after = find_linears(tuned.bert.encoder)
    change: dict[str, Tensor] = {name: after[name].weight - w for name, w in start.items()}
    spectra = {name: singular_values(c).tolist() for name, c in change.items()}
    cuts = []
    for rank in CUTS:
        for name, linear in after.items():
            linear.weight.copy_(start[name] + truncated_svd(change[name], rank).product())
        hits = correct_answers(tuned, reviews["validation"], tokenizer)
        cuts.append({"rank": rank} | vars(accuracy(hits)))
    return {"spectra": spectra, "cuts": cuts}


def main() -> None:
    runs = []
    for result in in_parallel(run, [{"choice": choice} for choice in CHOICES]):
        runs.append(result)
        print(json.dumps({k: v for k, v in result.items() if k != "update"}), flush=True)
    print(record("factorization_lora", seed=SEED, figures={"epochs": EPOCHS, "runs": runs}))


if __name__ == "__main__":
    launch(main)
