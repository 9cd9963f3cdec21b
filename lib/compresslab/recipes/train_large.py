"""Train large and then compress, or train small: the same compute, the same size in the end.

    python -m compresslab.recipes.train_large

After Li et al. (2020), arXiv:2002.11794. The small models are the lowest 3, 2 and 1 of MiniLM's 6
layers, tuned for as many operations as the whole model gets in `pruning_sentiment`, with the same
loss and a choice of the same learning rates. Beside them the notebook puts the whole model pruned
there to as many weights. All start from pretrained weights, so that this is the paper's case of
tuning, not that of pretraining.
"""

import torch
from torch import nn

from ..corpora import load_reviews
from ..measure import accuracy, correct_answers, count_flops
from ..models import load_classifier
from ..pruning.depth import keep_layers_
from ..training import TextBatches, train
from . import in_parallel, record
from .pruning_sentiment import EPOCHS, LEARNING_RATES, SEED, distillation, teacher_logits

LAYERS = (6, 3, 2, 1)
POINTS = 9  # of a learning curve


def run(layers: int, learning_rate: float, teacher: torch.Tensor) -> dict:
    """The learning curve of the lowest `layers` layers, for the compute of all six."""
    reviews = load_reviews()
    torch.manual_seed(SEED)  # dropout
    model, tokenizer = load_classifier(adapter=None)
    model.bert.embeddings.requires_grad_(False)
    batches = TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED)
    batch = next(iter(TextBatches(reviews["train"], tokenizer)))

    def operations() -> int:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        return count_flops(lambda: model(**inputs))

    whole = operations()
    keep_layers_(model, range(layers))
    epochs = round(EPOCHS * whole / operations())
    curve = []

    def look(step: int, total: int) -> None:
        if step * POINTS // total > (step - 1) * POINTS // total:
            curve.append([step / total, validation(model.eval())])
            model.train()

    def validation(model: nn.Module) -> float:
        return accuracy(correct_answers(model, reviews["validation"], tokenizer)).value

    train(
        model,
        batches,
        distillation(teacher),
        epochs=epochs,
        learning_rate=learning_rate,
        after_step=look,
        dtype=torch.bfloat16,
        progress=False,
    )
    return {
        "layers": layers,
        "kept": layers / LAYERS[0],
        "learning_rate": learning_rate,
        "epochs": epochs,
        "compute": epochs * operations() / (EPOCHS * whole),
        "validation": curve[-1][1],
        "test": accuracy(correct_answers(model, reviews["test"], tokenizer)).value,
        "curve": curve,
    }


def main() -> None:
    teacher = teacher_logits()
    runs = []
    tasks = [
        {"layers": layers, "learning_rate": rate, "teacher": teacher}
        for layers in LAYERS
        for rate in LEARNING_RATES
    ]
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(result, flush=True)
    print(record("train_large", seed=SEED, figures={"epochs": EPOCHS, "runs": runs}))


if __name__ == "__main__":
    main()
