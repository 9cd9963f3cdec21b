"""Tune MiniLM-L6 for sentiment: the classifier that every lecture compresses.

    python -m compresslab.recipes.teacher

LoRA of rank 8 on every linear layer of the encoder, with the pooler and the head. The learning
rate is picked on validation; test is measured once, at the end. The adapter goes to
`data/classifier/adapter.safetensors`. About 20 minutes on two cores.
"""

import torch
from safetensors.torch import save_file

from ..corpora import load_reviews
from ..factorization.lora import lora_state
from ..measure import accuracy, correct_answers
from ..models import ADAPTER, add_adapter_, load_classifier
from ..training import TextBatches, train
from . import launch, record
from .tuning import transfer_accuracy

SEED = 0
RANK = 8
EPOCHS = 4
LEARNING_RATES = (5e-4, 1e-3, 2e-3)


def main() -> None:
    reviews = load_reviews()
    _, tokenizer = load_classifier(adapter=None)

    def validate(model) -> dict:
        correct = correct_answers(model, reviews["validation"], tokenizer)
        return {"validation": accuracy(correct).value}

    best, runs = None, []
    for learning_rate in LEARNING_RATES:
        torch.manual_seed(SEED)  # dropout
        model, _ = load_classifier(adapter=None)
        add_adapter_(model, rank=RANK, generator=torch.Generator().manual_seed(SEED))
        batches = TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED)
        history = train(
            model, batches, epochs=EPOCHS, learning_rate=learning_rate, validate=validate
        )
        runs.append({"learning_rate": learning_rate, "history": history})
        print(learning_rate, history)
        if best is None or history[-1]["validation"] > best[0]:
            best = (history[-1]["validation"], learning_rate, lora_state(model))

    ADAPTER.parent.mkdir(exist_ok=True)
    save_file(best[2], ADAPTER)
    model, _ = load_classifier()
    test = accuracy(correct_answers(model, reviews["test"], tokenizer))
    figures = {
        "rank": RANK,
        "learning_rate": best[1],
        "runs": runs,
        "validation": best[0],
        "test": vars(test),
        "transfer": transfer_accuracy(model, tokenizer),
    }
    print(record("teacher", seed=SEED, figures=figures), test)


if __name__ == "__main__":
    launch(main)
