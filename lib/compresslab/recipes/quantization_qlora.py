"""Tune the pretrained model for sentiment: whole, with LoRA, and with LoRA on NF4 weights (QLoRA).

    python -m compresslab.recipes.quantization_qlora

The same sentences, steps and loss for all. LoRA has the settings of the course's classifier, whose
learning rate was picked in float32. Memory is that of one step with 16 sentences of 64 tokens:
weights, optimizer state, and what is alive at most during forward and backward pass, gradients
included. About 30 minutes on two cores.
"""

import torch
from torch import nn

from ..corpora import load_reviews
from ..measure import accuracy, bytes_on_disk, correct_answers, peak_memory
from ..models import add_adapter_, load_classifier
from ..quantization.nf4 import quantize_linears_nf4_
from ..training import TextBatches, classification_loss, train
from . import in_parallel, launch, record, recorded
from .teacher import EPOCHS, RANK

SEED = 0
FULL_RATE = 1e-4
BATCH, TOKENS = 16, 64
KINDS = ("all weights", "LoRA", "LoRA on NF4")


def build(kind: str) -> nn.Module:
    """The pretrained model, ready to be tuned in this way."""
    model, _ = load_classifier(adapter=None)
    if kind == "LoRA on NF4":
        quantize_linears_nf4_(model.bert.encoder)
    if kind != "all weights":
        add_adapter_(model, rank=RANK, generator=torch.Generator().manual_seed(SEED))
    return model


def memory(kind: str) -> dict:
    """Bytes of a training step, by what they are for."""
    model = build(kind).train()
    generator = torch.Generator().manual_seed(SEED)
    batch = {
        "input_ids": torch.randint(1000, 30_000, (BATCH, TOKENS), generator=generator),
        "attention_mask": torch.ones(BATCH, TOKENS, dtype=torch.int64),
        "labels": torch.randint(2, (BATCH,), generator=generator),
    }
    weights = {t.data_ptr(): t.nbytes for t in model.state_dict(keep_vars=True).values()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    step = peak_memory(lambda: classification_loss(model, batch).backward())
    optimizer.step()
    state = sum(t.nbytes for s in optimizer.state.values() for t in s.values())
    return {"weights": sum(weights.values()), "step": step, "optimizer": state} | {
        "trained": sum(p.numel() for p in trained)
    }


def run(kind: str) -> dict:
    """Tune one kind and measure it on validation and test."""
    reviews, (_, tokenizer) = load_reviews(), load_classifier(adapter=None)
    model = build(kind)
    rate = recorded("teacher")["figures"]["learning_rate"] if "LoRA" in kind else FULL_RATE
    torch.manual_seed(SEED)  # dropout
    batches = TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED)
    history = train(model, batches, epochs=EPOCHS, learning_rate=rate, progress=False)
    found = {s: vars(accuracy(correct_answers(model, reviews[s], tokenizer)))
             for s in ("validation", "test")}  # fmt: skip
    parts = memory(kind)
    return {
        "kind": kind,
        "learning_rate": rate,
        "loss": history[-1]["loss"],
        "bytes": bytes_on_disk(model),
        "memory": parts["weights"] + parts["step"] + parts["optimizer"],
    } | parts | found  # fmt: skip


def main() -> None:
    runs = []
    for result in in_parallel(run, [{"kind": kind} for kind in reversed(KINDS)]):
        runs.append(result)
        print(result, flush=True)
    figures = {"epochs": EPOCHS, "batch": BATCH, "tokens": TOKENS, "runs": runs[::-1]}
    print(record("quantization_qlora", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
