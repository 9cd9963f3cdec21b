"""Case study: students to set beside DistilBERT and TinyBERT; distil, or train small.

    python -m compresslab.recipes.distillation_sentiment

Students of the course's classifier, with a trimmed vocabulary and a factorized table: half of its
layers, and two thin ones, of three and four layers as wide as the classifier's, from which first
the heads and neurons went that matter least (lecture 2). All learn from the teacher's answers to
the reviews, to the sentences of the transfer sets, and to copies of the reviews in which words are
replaced. The shapes were chosen by size and speed, the better thin one by validation; test is
measured once. It and the half go to the scoreboard.

"Small on labels" has the same models and the same compute as `train_large`, without a teacher, and
in float32, since the processor at hand has no instructions for bfloat16.
About 75 minutes on two cores.
"""

import json
import tempfile
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews
from ..distillation.students import first_layers
from ..factorization.embedding import factorize_embedding_
from ..models import load_classifier
from ..pruning.depth import keep_layers
from ..scoreboard import row
from ..training import TextBatches
from . import in_parallel, launch, record, train_large
from .distillation_data import answer_loss, copies_of, transfer_texts
from .factorization_embeddings import NAME, smaller, token_counts
from .pruning_structured import SENTENCES, without_heads, without_neurons
from .tuning import SEED, judge, teacher_logits, transfer_accuracy, tune_, unlabelled

TOKENS = 16_000
COPIES = 5
LONG = {"epochs": 6, "learning_rate": 5e-4}
STUDENTS = {  # name -> shape, and how it is trained
    "half of the layers": (
        {"layers": 3, "rank": 128},
        {"epochs": 2, "learning_rate": 3e-4},
    ),
    "thin, three layers": ({"layers": 3, "rank": 96, "heads": 9 / 12, "neurons": 0.9}, LONG),
    "thin, four layers": ({"layers": 4, "rank": 96, "heads": 10 / 12, "neurons": 15 / 16}, LONG),
}
SMALL = (3, 2, 1)  # layers, on labels


def new_student(
    *, layers: int, rank: int, heads: float = 0.0, neurons: float = 0.0, tokens: int = TOKENS
):
    """A student of the classifier, without fractions of its heads and neurons, and the tokenizer
    that goes with it; nothing is frozen.
    """
    model, tokenizer = smaller(tokens=tokens)
    reviews = load_reviews()["train"]
    batches = TextBatches(reviews.select(range(SENTENCES)), tokenizer)
    if heads:
        model = without_heads(model, heads, batches)
    if neurons:
        model = without_neurons(model, neurons, batches)
    model = keep_layers(model, first_layers(6, layers))
    model.requires_grad_(True)
    factorize_embedding_(model, NAME, rank, counts=token_counts(tokenizer))
    return model, tokenizer


def material() -> tuple[Dataset, Tensor]:
    """What all learn from: sentences of three kinds, and the teacher's logits."""
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
        half, *thin = runs
        for chosen in (half, max(thin, key=lambda run: run["history"][-1]["accuracy"])):
            student, own = new_student(**STUDENTS[chosen["name"]][0])
            student.load_state_dict(load_file(paths[chosen["name"]]))
            rows.append(
                row(
                    f"distilled, {chosen['name']}",
                    lecture=5,
                    model=student,
                    dense=dense,
                    data=reviews["test"],
                    tokenizer=own,
                    note=f"{TOKENS:,} tokens; {len(data):,} sentences answered by the classifier",
                )
            )
    small = []
    labels = {"teacher": None, "dtype": torch.float32}
    for result in in_parallel(train_large.run, [{"layers": n} | labels for n in SMALL]):
        small.append(result)
        print(json.dumps(result), flush=True)
    figures = {"sentences": len(data), "copies": COPIES, "runs": runs, "small on labels": small}
    print(record("distillation_sentiment", seed=SEED, figures=figures, models=rows))


if __name__ == "__main__":
    launch(main)
