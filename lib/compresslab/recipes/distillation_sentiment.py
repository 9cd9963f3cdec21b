"""Case study: students to set beside DistilBERT and TinyBERT; distil, or train small.

    python -m compresslab.recipes.distillation_sentiment

Two students of the course's classifier, with a trimmed vocabulary and a factorized table: half of
its layers, and two layers of half the width. Both learn from the
teacher's answers to the reviews, to the sentences of the transfer sets, and to copies of the
reviews in which words are replaced. Which shape the small one has, and how long both train, was
decided on validation; test is measured once. Both go to the scoreboard.

"Small on labels" has the same models and the same compute as `train_large`, without a teacher.
About 90 minutes on two cores.
"""

import json
import tempfile
from pathlib import Path

from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews
from ..distillation.students import alternate_layers, build_student, first_layers
from ..factorization.embedding import factorize_embedding_
from ..factorization.vocabulary import count_tokens
from ..models import load_classifier
from ..scoreboard import row
from . import in_parallel, record, train_large
from .distillation_data import answer_loss, copies_of, transfer_texts
from .factorization_embeddings import NAME, smaller
from .tuning import SEED, judge, teacher_logits, transfer_accuracy, tune_, unlabelled

TOKENS = 16_000
COPIES = 10
STUDENTS = {  # name -> shape, and how it is trained
    "half the layers": (
        {"layers": first_layers(6, 3), "rank": 128},
        {"epochs": 2, "learning_rate": 3e-4},
    ),
    "two narrow layers": (
        {"layers": alternate_layers(6, 2), "rank": 96, "width": 192, "intermediate": 512},
        {"epochs": 6, "learning_rate": 1e-3},
    ),
}
SMALL = (3, 2, 1)  # layers, on labels


def new_student(layers: list[int], *, rank: int, **shape):
    """A student of the classifier, and the tokenizer that goes with it; nothing is frozen."""
    teacher, tokenizer = smaller(tokens=TOKENS)
    teacher.config.vocab_size = len(tokenizer)
    student = build_student(teacher, layers, **shape)
    ids = tokenizer(list(load_reviews()["train"]["text"]))["input_ids"]
    factorize_embedding_(student, NAME, rank, counts=count_tokens(ids, len(tokenizer)))
    return student, tokenizer


def material() -> tuple[Dataset, Tensor]:
    """What both learn from: sentences of three kinds, and the teacher's logits."""
    texts = list(load_reviews()["train"]["text"])
    copies = [copy for some in copies_of(texts, COPIES) for copy in some]
    data = unlabelled(texts + copies + transfer_texts())
    return data, teacher_logits(data)


def run(name: str, data: Dataset, answers: Tensor, teacher: Tensor, path: Path) -> dict:
    shape, training = STUDENTS[name]
    student, tokenizer = new_student(**shape)
    validation = load_reviews()["validation"]

    def validate(model: nn.Module) -> dict:
        return judge(model, tokenizer, validation, teacher)

    history = tune_(
        student, tokenizer, answer_loss(answers), data=data, validate=validate, **training
    )
    save_file(student.state_dict(), path)
    return {
        "name": name,
        "history": history,
        "transfer": transfer_accuracy(student, tokenizer),
    } | training


def main() -> None:
    reviews = load_reviews()
    teacher = teacher_logits(reviews["validation"])
    dense, _ = load_classifier()
    data, answers = material()
    print(len(data), "sentences", flush=True)
    runs, rows = [], []
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder) / f"{i}.safetensors" for i, name in enumerate(STUDENTS)}
        shared = {"data": data, "answers": answers, "teacher": teacher}
        tasks = [{"name": name, "path": path} | shared for name, path in paths.items()]
        for result in in_parallel(run, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
        for name, path in paths.items():
            student, own = new_student(**STUDENTS[name][0])
            student.load_state_dict(load_file(path))
            rows.append(
                row(
                    f"distilled, {name}",
                    lecture=5,
                    model=student,
                    dense=dense,
                    data=reviews["test"],
                    tokenizer=own,
                    note=f"{TOKENS:,} tokens; {len(data):,} sentences answered by the classifier",
                )
            )
    small = []
    for result in in_parallel(train_large.run, [{"layers": n, "teacher": None} for n in SMALL]):
        small.append(result)
        print(json.dumps(result), flush=True)
    figures = {"sentences": len(data), "copies": COPIES, "runs": runs, "small on labels": small}
    print(record("distillation_sentiment", seed=SEED, figures=figures, models=rows))


if __name__ == "__main__":
    main()
