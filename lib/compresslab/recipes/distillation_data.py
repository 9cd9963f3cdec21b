"""More data for free: sentences without labels, which the teacher answers.

    python -m compresslab.recipes.distillation_data

Every student sees as many sentences: those it has, over and over, until there are `SEEN`. Without
labels there are the sentences of the transfer sets (their training halves), and copies of the
reviews in which words are replaced by neighbours (`distillation.augmentation`). The control gives
the copies the label of their original. Judged on validation, and on the transfer sets' test halves.
The student is that of `distillation_targets`. About 35 minutes on two cores.
"""

import json
import random

import torch
from datasets import Dataset
from torch import Tensor

from ..corpora import load_reviews, load_transfer
from ..distillation.augmentation import augment, nearest_words, split_words
from ..distillation.soft_targets import soft_target_loss
from ..distillation.students import build_student, first_layers
from ..models import load_classifier
from ..training import classification_loss
from . import in_parallel, launch, record
from .distillation_targets import LAYERS
from .tuning import (
    SEED,
    TRANSFER,
    Loss,
    judge,
    logits_of,
    teacher_logits,
    transfer_accuracy,
    tune_,
    unlabelled,
)

FEW = 1_000  # labels, where most of the reviews have none
COPIES, CANDIDATES, PROBABILITY = 5, 15, 0.4
SEEN = 42_000
# What the student reads -> the parts of the pool, and whether labels or the teacher's answers.
CHOICES = {
    "1,000 labels": (("few",), "labels"),
    "1,000 answers": (("few",), "answers"),
    "1,000 and their copies": (("few", "few copies"), "answers"),
    "all labels": (("few", "rest"), "labels"),
    "all answers": (("few", "rest"), "answers"),
    "and transfer sets": (("few", "rest", "transfer"), "answers"),
    "and copies": (("few", "rest", "few copies", "rest copies"), "answers"),
    "and both": (("few", "rest", "few copies", "rest copies", "transfer"), "answers"),
    "all labels, copies too": (("few", "rest", "few copies", "rest copies"), "labels"),
}


def copies_of(texts: list[str], count: int) -> list[list[str]]:
    """Copies of each text, in which words are replaced by those nearest in the token table."""
    model, tokenizer = load_classifier()
    words = {word for text in texts for word in split_words(text)}
    table = model.get_input_embeddings().weight
    near = nearest_words(words, tokenizer.get_vocab(), table, candidates=CANDIDATES)
    generator = torch.Generator().manual_seed(SEED)
    return augment(texts, near, copies=count, probability=PROBABILITY, generator=generator)


def transfer_texts() -> list[str]:
    return [text for name in TRANSFER for text in load_transfer(name)["train"]["text"]]


def pool() -> dict[str, Dataset]:
    """The sentences by part: text, and the label, -1 where there is none."""
    train = load_reviews()["train"]
    copies = copies_of(train["text"], COPIES)
    parts = {"transfer": unlabelled(transfer_texts())}
    for name, rows in (("few", range(FEW)), ("rest", range(FEW, len(train)))):
        parts[name] = train.select(rows)
        parts[f"{name} copies"] = Dataset.from_dict(
            {
                "text": [copy for i in rows for copy in copies[i]],
                "label": [train["label"][i] for i in rows for _ in range(COPIES)],
            }
        )
    return parts


def answered(names: tuple[str, ...], parts: dict[str, Dataset], answers: dict[str, Tensor]):
    """`SEEN` sentences of these parts, each as often as any other, and the teacher's logits."""
    texts = [text for name in names for text in parts[name]["text"]]
    labels = [label for name in names for label in parts[name]["label"]]
    rows = list(range(len(texts)))
    random.Random(SEED).shuffle(rows)
    rows = (rows * -(-SEEN // len(rows)))[:SEEN]
    data = Dataset.from_dict({"text": [texts[i] for i in rows], "label": [labels[i] for i in rows]})
    return data, torch.cat([answers[name] for name in names])[rows]


def answer_loss(answers: Tensor) -> Loss:
    return lambda model, batch: soft_target_loss(logits_of(model, batch), answers[batch["rows"]])


def run(
    name: str,
    parts: dict[str, Dataset],
    answers: dict[str, Tensor],
    teacher: Tensor,
) -> dict:
    names, kind = CHOICES[name]
    data, logits = answered(names, parts, answers)
    pretrained, tokenizer = load_classifier(adapter=None)
    student = build_student(pretrained, first_layers(6, LAYERS))
    student.bert.embeddings.requires_grad_(False)
    loss = classification_loss if kind == "labels" else answer_loss(logits)
    tune_(student, tokenizer, loss, data=data, epochs=1)
    found = judge(student, tokenizer, load_reviews()["validation"], teacher)
    return {
        "name": name,
        "kind": kind,
        "sentences": sum(len(parts[part]) for part in names),
        "transfer": transfer_accuracy(student, tokenizer),
    } | found


def main() -> None:
    teacher, parts = teacher_logits(load_reviews()["validation"]), pool()
    answers = {name: teacher_logits(data) for name, data in parts.items()}
    copies, kept = answers["rest copies"].argmax(-1), torch.tensor(parts["rest copies"]["label"])
    own = answers["rest"].argmax(-1).repeat_interleave(COPIES)
    tasks = [
        {"name": name, "parts": parts, "answers": answers, "teacher": teacher} for name in CHOICES
    ]
    runs = []
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(json.dumps(result), flush=True)
    figures = {
        "seen": SEEN,
        "copies": COPIES,
        # How often the teacher says another thing to a copy than to its original, or its label.
        "turned": (copies != own).float().mean().item(),
        "other than the label": (copies != kept).float().mean().item(),
        "original other than the label": (own != kept).float().mean().item(),
        "runs": runs,
    }
    print(record("distillation_data", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
