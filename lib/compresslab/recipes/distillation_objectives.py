"""What to match: answers, hidden states, attention, relations; each objective, and each term of it.

    python -m compresslab.recipes.distillation_objectives

One student of three layers, half as wide as the classifier, so that every objective has something
to do; its token table starts from the teacher's (`start="teacher"`), or everything starts from
nothing. Every objective has the same epochs. Those that match the inside of the teacher do that in
the first half, and learn its answers in the second, as TinyBERT and MiniLM do; DistilBERT has all
its terms at once. Learning rate as in `distillation_students` for narrow students.

Differs from the papers: no general distillation on a large corpus comes before, for which there is
no corpus here; DistilBERT's cosine is between states of one width, here behind a projection; its
label is the next word's, here the sentence's. About 45 minutes on two cores.
"""

import json
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..corpora import load_reviews
from ..distillation.attention import attention_loss, attention_scores, observe_heads
from ..distillation.hidden import (
    cosine_loss,
    embedding_loss,
    hidden_states_loss,
    uniform_layers,
    width_projection,
)
from ..distillation.minilm import minilm_loss, minilm_v2_loss
from ..distillation.soft_targets import soft_target_loss
from ..distillation.students import alternate_layers, build_student
from ..models import load_classifier
from ..training import Batch
from . import in_parallel, launch, record
from .distillation_students import HIGH
from .tuning import SEED, Loss, judge, logits_of, teacher_answers, tune_

LAYERS, WIDTH = 3, 192
EPOCHS = 2  # of each half
RELATION_HEADS = 12
ANSWERS = ("soft",)
DISTILBERT = ("soft", "hard", "cosine")
TINYBERT = ("embedding", "hidden", "attention")
OUTSIDE = {"soft", "hard"}  # terms that need no more of the teacher than its answers


def without(terms: tuple[str, ...], term: str) -> tuple[str, ...]:
    return tuple(t for t in terms if t != term)


# Name -> the terms of the first half and of the second.
OBJECTIVES = {
    "labels": (("hard",), ("hard",)),
    "answers": (ANSWERS, ANSWERS),
    "DistilBERT": (DISTILBERT, DISTILBERT),
    **{f"DistilBERT without {t}": (without(DISTILBERT, t),) * 2 for t in DISTILBERT},
    "TinyBERT": (TINYBERT, ANSWERS),
    **{f"TinyBERT without {t}": (without(TINYBERT, t), ANSWERS) for t in TINYBERT},
    "MiniLM": (("minilm",), ANSWERS),
    "MiniLMv2": (("minilm v2",), ANSWERS),
}
FROM_NOTHING = ("labels", "answers", "TinyBERT", "MiniLM")


def loss_for(terms: tuple[str, ...], teacher: nn.Module, answers: Tensor) -> Loss:
    """The sum of the terms, each with weight 1; the student has a module `projection`.
    `answers` are the teacher's logits by row.
    """
    layers = uniform_layers(LAYERS, teacher.config.num_hidden_layers)
    last = layers[-1]

    def outside(logits: Tensor, batch: Batch) -> dict[str, Callable[[], Tensor]]:
        return {
            "soft": lambda: soft_target_loss(logits, answers[batch["rows"]]),
            "hard": lambda: F.cross_entropy(logits, batch["labels"]),
        }

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        if OUTSIDE.issuperset(terms):
            values = outside(logits_of(student, batch), batch)
            return sum(values[term]() for term in terms)
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        mask = batch["attention_mask"]
        with torch.no_grad(), observe_heads(teacher) as theirs:
            hidden = teacher(**inputs, output_hidden_states=True).hidden_states
        with observe_heads(student) as ours:
            own = student(**inputs, output_hidden_states=True)
        states = own.hidden_states, hidden
        project = {"projection": student.projection}

        def attention(i: int, layer: int) -> Tensor:
            scores = [attention_scores(h.query, h.key) for h in (ours[i], theirs[layer])]
            return attention_loss(*scores, mask)

        values = outside(own.logits, batch) | {
            "cosine": lambda: cosine_loss(student.projection(states[0][-1]), states[1][-1], mask),
            "embedding": lambda: embedding_loss(*states, mask, **project),
            "hidden": lambda: hidden_states_loss(*states, layers, mask, **project),
            "attention": lambda: sum(attention(i, layer) for i, layer in enumerate(layers)),
            "minilm": lambda: minilm_loss(ours[LAYERS - 1], theirs[last], mask),
            "minilm v2": lambda: minilm_v2_loss(
                ours[LAYERS - 1], theirs[last], mask, relation_heads=RELATION_HEADS
            ),
        }
        return sum(values[term]() for term in terms)

    return loss


def run(name: str, start: str, teacher: dict[str, Tensor]) -> dict:
    reviews, (classifier, tokenizer) = load_reviews(), load_classifier()
    generator = torch.Generator().manual_seed(SEED)
    student = build_student(
        classifier, alternate_layers(6, LAYERS), width=WIDTH, start=start, generator=generator
    )
    width = classifier.config.hidden_size
    student.projection = width_projection(WIDTH, width, generator=generator)
    halves = []
    for terms in OBJECTIVES[name]:
        loss = loss_for(terms, classifier, teacher["train"])
        history = tune_(student, tokenizer, loss, epochs=EPOCHS, learning_rate=HIGH)
        found = judge(student, tokenizer, reviews["validation"], teacher["validation"])
        halves.append({"losses": [entry["loss"] for entry in history]} | found)
    return {"name": name, "start": start, "terms": OBJECTIVES[name], "halves": halves}


def main() -> None:
    teacher = teacher_answers()
    tasks = [{"name": n, "start": "teacher", "teacher": teacher} for n in OBJECTIVES]
    tasks += [{"name": n, "start": "random", "teacher": teacher} for n in FROM_NOTHING]
    runs = []
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(json.dumps(result), flush=True)
    figures = {"epochs": 2 * EPOCHS, "learning_rate": HIGH, "layers": LAYERS, "width": WIDTH}
    print(record("distillation_objectives", seed=SEED, figures=figures | {"runs": runs}))


if __name__ == "__main__":
    launch(main)
