"""Train large and then compress, or train small: the same compute, the same size in the end.

    python -m compresslab.recipes.train_large

After Li et al. (2020), arXiv:2002.11794. The small models are the lowest 3, 2 and 1 of MiniLM's 6
layers, tuned for as many operations as the whole model gets in `pruning_sentiment`, with the same
loss and learning rate. Beside them the notebook puts the whole model pruned there to as many
weights.

Differs from the paper: all start from pretrained weights, so that models are compared in tuning
alone; there they differ from pretraining on. About 10 minutes on two cores.
"""

import torch
from torch import nn

from ..corpora import load_reviews
from ..measure import accuracy, correct_answers, count_flops
from ..models import load_classifier
from ..pruning.depth import keep_layers_
from ..training import TextBatches, classification_loss, train
from . import in_parallel, launch, record
from .tuning import EPOCHS, LEARNING_RATE, SEED, distillation, teacher_logits

LAYERS = (6, 3, 2, 1)
POINTS = 8  # of a learning curve


def run(layers: int, teacher: torch.Tensor | None, dtype: torch.dtype = torch.bfloat16) -> dict:
    """The learning curve of the lowest `layers` layers, for the compute of all six; from labels
    alone, if there is no teacher. `dtype` is that of the forward pass.
    """
    reviews = load_reviews()
    model, tokenizer = load_classifier(adapter=None)
    torch.manual_seed(SEED)  # dropout
    model.bert.embeddings.requires_grad_(False)
    batch = next(iter(TextBatches(reviews["train"], tokenizer)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    whole = count_flops(lambda: model(**inputs))
    keep_layers_(model, range(layers))
    part = count_flops(lambda: model(**inputs))
    epochs = round(EPOCHS * whole / part)
    curve = []

    def validation(model: nn.Module) -> float:
        return accuracy(correct_answers(model, reviews["validation"], tokenizer)).value

    def look(step: int, total: int) -> None:
        if step * POINTS // total > (step - 1) * POINTS // total:
            curve.append([step / total, validation(model.eval())])
            model.train()

    train(
        model,
        TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED),
        classification_loss if teacher is None else distillation(teacher),
        epochs=epochs,
        learning_rate=LEARNING_RATE,
        after_step=look,
        dtype=dtype,
        progress=False,
    )
    return {
        "layers": layers,
        "kept": layers / LAYERS[0],
        "epochs": epochs,
        "compute": epochs * part / (EPOCHS * whole),
        "validation": curve[-1][1],
        "test": vars(accuracy(correct_answers(model, reviews["test"], tokenizer))),
        "curve": curve,
    }


def main() -> None:
    teacher = teacher_logits()
    runs = []
    for result in in_parallel(run, [{"layers": n, "teacher": teacher} for n in LAYERS]):
        runs.append(result)
        print(result, flush=True)
    figures = {"epochs": EPOCHS, "learning_rate": LEARNING_RATE, "runs": runs}
    print(record("train_large", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
