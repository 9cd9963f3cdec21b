"""What a student learns from: labels, smoothed labels, or the teacher's answers, softened or not.

    python -m compresslab.recipes.distillation_targets

The student is the lower two layers of the pretrained model, so that nothing of the teacher but its
answers is in it. Same sentences, steps and learning rate for every target, three seeds (of dropout
and of the order) each. Judged on validation. About 35 minutes on two cores.
"""

import json

from torch import Tensor, nn
from torch.nn import functional as F

from ..corpora import load_reviews
from ..distillation.labels import smoothed_loss
from ..distillation.soft_targets import soft_target_loss
from ..distillation.students import build_student, first_layers
from ..models import load_classifier
from ..training import Batch
from . import in_parallel, launch, record
from .tuning import LEARNING_RATE, Loss, judge, logits_of, teacher_answers, tune_

SEEDS = (0, 1, 2)
LAYERS = 2
EPOCHS = 3
TEMPERATURES = (1, 2, 4, 8)
TARGETS = (
    "labels",
    "smoothed labels",
    *(f"teacher, T = {t}" for t in TEMPERATURES),
    "labels and teacher",
)


def loss_for(target: str, teacher: Tensor) -> Loss:
    """`teacher` are its logits on the training sentences, by row."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits, labels, answers = logits_of(model, batch), batch["labels"], teacher[batch["rows"]]
        if target == "labels":
            return F.cross_entropy(logits, labels)
        if target == "smoothed labels":
            return smoothed_loss(logits, labels)
        if target == "labels and teacher":
            return (F.cross_entropy(logits, labels) + soft_target_loss(logits, answers)) / 2
        temperature = float(target.rpartition(" ")[2])
        return soft_target_loss(logits, answers, temperature=temperature)

    return loss


def run(target: str, seed: int, teacher: dict[str, Tensor]) -> dict:
    pretrained, tokenizer = load_classifier(adapter=None)
    student = build_student(pretrained, first_layers(6, LAYERS))
    student.bert.embeddings.requires_grad_(False)
    loss = loss_for(target, teacher["train"])
    history = tune_(student, tokenizer, loss, epochs=EPOCHS, seed=seed)
    found = judge(student, tokenizer, load_reviews()["validation"], teacher["validation"])
    return {"target": target, "seed": seed, "loss": history[-1]["loss"]} | found


def main() -> None:
    teacher = teacher_answers()
    tasks = [{"target": t, "seed": s, "teacher": teacher} for t in TARGETS for s in SEEDS]
    runs = []
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(json.dumps(result), flush=True)
    figures = {"layers": LAYERS, "epochs": EPOCHS, "learning_rate": LEARNING_RATE, "runs": runs}
    print(record("distillation_targets", seed=SEEDS[0], figures=figures))


if __name__ == "__main__":
    launch(main)
