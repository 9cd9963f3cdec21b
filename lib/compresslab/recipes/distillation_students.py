"""Which student: whose layers it starts from, how many, how wide.

    python -m compresslab.recipes.distillation_students

Every student learns the classifier's answers on the training sentences for the same number of
steps. Layers "by ablation" are the three of six whose answers, untrained, are nearest to those of
all, on some training sentences, of all twenty choices. Narrow students have five times the learning
rate: with the low one they do not get far. Those from nothing have each of three, since none suits
all shapes; which is best is decided on validation. About 35 minutes on two cores.
"""

import itertools
import json

import torch
from torch import Tensor

from ..corpora import load_reviews
from ..distillation.soft_targets import soft_target_loss
from ..distillation.students import (
    alternate_layers,
    build_student,
    first_layers,
    last_layers,
)
from ..measure import bytes_on_disk, count_flops, count_parameters, predict
from ..models import load_classifier
from ..pruning.depth import keep_layers
from ..training import TextBatches
from . import in_parallel, launch, record
from .distillation_targets import EPOCHS, loss_for
from .tuning import LEARNING_RATE, SEED, judge, teacher_answers, tune_

HIGH = 5 * LEARNING_RATE  # for narrow students
RATES = (LEARNING_RATE, 5e-4, HIGH)  # for those from nothing
SENTENCES = 256  # that the choice by ablation looks at
TARGET = "teacher, T = 2"


def by_ablation(keep: int) -> list[int]:
    """The layers that answer most like all of them, without training, of all choices."""
    teacher, tokenizer = load_classifier()
    batches = TextBatches(load_reviews()["train"].select(range(SENTENCES)), tokenizer)
    answers = predict(teacher, batches)

    def moved(layers: tuple[int, ...]) -> float:
        return soft_target_loss(predict(keep_layers(teacher, layers), batches), answers).item()

    return list(min(itertools.combinations(range(6), keep), key=moved))


def choices() -> list[dict]:
    half = {
        "first": first_layers(6, 3),
        "last": last_layers(6, 3),
        "alternate": alternate_layers(6, 3),
        "by ablation": by_ablation(3),
    }
    found = [{"name": name, "layers": layers} for name, layers in half.items()]
    found += [{"name": f"{n} layers", "layers": first_layers(6, n)} for n in (5, 4, 2, 1)]
    for layers, width in ((3, 384), (6, 192), (3, 192)):
        shape = {"layers": alternate_layers(6, layers), "width": width}
        found += [{"name": "narrow", **shape}] if width < 384 else []
        shape |= {"start": "random"}
        found += [{"name": "from nothing", **shape, "learning_rate": rate} for rate in RATES]
    return found


def run(choice: dict, teacher: dict[str, Tensor]) -> dict:
    plain = choice.keys() == {"name", "layers"}  # all of it is the teacher's
    learning_rate = choice.get("learning_rate", LEARNING_RATE if plain else HIGH)
    reviews, (classifier, tokenizer) = load_reviews(), load_classifier()
    options = {key: choice[key] for key in ("width", "start") if key in choice}
    generator = torch.Generator().manual_seed(SEED)
    student = build_student(classifier, choice["layers"], generator=generator, **options)
    student.bert.embeddings.requires_grad_(not plain)
    batch = next(iter(TextBatches(reviews["train"], tokenizer)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    before = judge(student, tokenizer, reviews["validation"], teacher["validation"])
    loss = loss_for(TARGET, teacher["train"])
    history = tune_(student, tokenizer, loss, epochs=EPOCHS, learning_rate=learning_rate)
    return (
        choice
        | {
            "learning_rate": learning_rate,
            "parameters": count_parameters(student),
            "bytes": bytes_on_disk(student),
            "operations": count_flops(lambda: student(**inputs))
            / count_flops(lambda: classifier(**inputs)),
            "before": before["accuracy"],
            "loss": history[-1]["loss"],
        }
        | judge(student, tokenizer, reviews["validation"], teacher["validation"])
    )


def main() -> None:
    teacher = teacher_answers()
    tasks = [{"choice": choice, "teacher": teacher} for choice in choices()]
    runs = []
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(json.dumps(result), flush=True)
    print(record("distillation_students", seed=SEED, figures={"epochs": EPOCHS, "runs": runs}))


if __name__ == "__main__":
    launch(main)
