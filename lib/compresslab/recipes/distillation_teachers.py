"""Is a larger teacher a better one? Three sizes, and students as large as their teacher.

    python -m compresslab.recipes.distillation_teachers

Teachers: the lower three layers of MiniLM, tuned on labels; the course's classifier of six; and
SmolLM2, six times as large, tuned with LoRA on the same labels, read once (it reads the sentence,
and a head on its last token answers). Each teaches the student of `distillation_targets`, the same
way, with three seeds; for the classifier that was done there. Born again: all six layers from the
pretrained model, taught by the classifier, and again, taught by those; beside them, the same on
labels. About 75 minutes on two cores.
"""

import json

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from ..corpora import LABELS, load_reviews
from ..distillation.students import build_student, first_layers
from ..factorization.lora import add_lora_
from ..measure import count_parameters
from ..models import language_model_folder, load_classifier
from ..training import classification_loss
from . import in_parallel, launch, record
from .distillation_targets import SEEDS, loss_for
from .distillation_targets import run as teach
from .tuning import EPOCHS, LEARNING_RATE, SEED, answers_of, judge, teacher_answers, tune_

TARGET = "teacher, T = 2"
SMALL = 3  # layers of the small teacher
LORA_RANK, LORA_RATE = 8, 5e-4  # as for the course's classifier
LARGE_EPOCHS = 1  # 30 minutes


def large() -> tuple[nn.Module, object]:
    """SmolLM2 with a head for the two labels, ready to be tuned."""
    folder = language_model_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(SEED)  # the head
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(LABELS))
    model.config.pad_token_id = tokenizer.pad_token_id  # the last token is the one before these
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(SEED)
    add_lora_(model.model, rank=LORA_RANK, generator=generator)
    model.score.requires_grad_(True)
    return model, tokenizer


def tuned(kind: str) -> tuple[dict, dict[str, Tensor]]:
    """A teacher that learned from labels: what it is, and its logits."""
    epochs, rate = EPOCHS, LEARNING_RATE
    if kind == "SmolLM2":
        (model, tokenizer), epochs, rate = large(), LARGE_EPOCHS, LORA_RATE
    else:
        pretrained, tokenizer = load_classifier(adapter=None)
        model = build_student(pretrained, first_layers(6, SMALL))
        model.bert.embeddings.requires_grad_(False)
    tune_(model, tokenizer, classification_loss, epochs=epochs, learning_rate=rate)
    answers = answers_of(model, tokenizer)
    return describe(kind, model, answers), answers


def describe(name: str, model: nn.Module, answers: dict[str, Tensor]) -> dict:
    """Accuracy on both splits, and how sure the teacher is on the sentences it teaches with."""
    reviews, found = load_reviews(), {"name": name, "parameters": count_parameters(model)}
    for split, logits in answers.items():
        labels = torch.tensor(reviews[split]["label"])
        found[split] = (logits.argmax(-1) == labels).float().mean().item()
        found[f"surprise on {split}"] = F.cross_entropy(logits, labels).item()
    sure = answers["train"].softmax(-1).amax(-1)
    return found | {
        "confidence": sure.mean().item(),
        "above 99 %": (sure > 0.99).float().mean().item(),
    }


def reborn(
    teacher: dict[str, Tensor] | None, classifier: dict[str, Tensor]
) -> tuple[dict, dict[str, Tensor]]:
    """All six layers, from the pretrained model, taught, or without a teacher; and their logits.
    They are judged beside the classifier, whose logits come second.
    """
    reviews, (model, tokenizer) = load_reviews(), load_classifier(adapter=None)
    model.bert.embeddings.requires_grad_(False)
    loss = classification_loss if teacher is None else loss_for(TARGET, teacher["train"])
    tune_(model, tokenizer, loss)
    found = judge(model, tokenizer, reviews["validation"], classifier["validation"])
    return found, answers_of(model, tokenizer)


def main() -> None:
    classifier, _ = load_classifier()
    own = teacher_answers()
    answers, teachers, students = {}, [describe("classifier", classifier, own)], []
    for kind in ("3 layers", "SmolLM2"):  # one after the other, with all threads
        found, answers[kind] = tuned(kind)
        teachers.append(found)
        print(json.dumps(found), flush=True)
    pairs = [(kind, seed) for kind in answers for seed in SEEDS]
    tasks = [{"target": TARGET, "seed": s, "teacher": answers[kind]} for kind, s in pairs]
    for (kind, _), result in zip(pairs, in_parallel(teach, tasks), strict=True):
        students.append({"teacher": kind} | result)
        print(json.dumps(students[-1]), flush=True)
    tasks = [{"teacher": teacher, "classifier": own} for teacher in (None, own)]
    (labels, _), (first, logits) = in_parallel(reborn, tasks)
    [(second, _)] = in_parallel(reborn, [{"teacher": logits, "classifier": own}])
    figures = {
        "epochs": EPOCHS,
        "epochs of SmolLM2": LARGE_EPOCHS,
        "teachers": teachers,
        "students": students,
        "born again": {"labels": labels, "first": first, "second": second},
    }
    print(record("distillation_teachers", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
