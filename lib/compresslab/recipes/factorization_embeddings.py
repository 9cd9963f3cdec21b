"""Make the embedding table smaller: factors, as in ALBERT, and fewer tokens.

    python -m compresslab.recipes.factorization_embeddings

Half of the classifier's parameters are rows of its table. Factors of several ranks, with all tokens
alike or by how often they occur; vocabularies of several sizes, chosen by the training sentences.
Each by accuracy on validation and on the transfer sets, before tuning; two are tuned, too, with the
classifier as teacher, and the smallest that loses at most one point on validation, or if both lose
more, the better one, goes to the scoreboard. About 15 minutes on two cores.
"""

import json
import tempfile
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..corpora import load_reviews, load_transfer
from ..factorization.embedding import factorize_embedding_
from ..factorization.vocabulary import (
    choose_tokens,
    count_tokens,
    trim_embedding_,
    trim_wordpiece,
)
from ..measure import accuracy, bytes_on_disk, compare_accuracy, correct_answers, count_parameters
from ..models import load_classifier, rebuild_tokenizer
from ..scoreboard import row
from . import in_parallel, launch, record
from .tuning import (
    EPOCHS,
    LEARNING_RATE,
    SEED,
    TRANSFER,
    distillation,
    smallest,
    teacher_logits,
    tune_,
)

NAME = "bert.embeddings.word_embeddings"
CHOICES = [
    *(
        {"rank": rank, "weighted": weighted}
        for weighted in (False, True)
        for rank in (256, 128, 64)
    ),
    *({"tokens": tokens} for tokens in (16_000, 8_000, 4_000)),
    {"tokens": 8_000, "rank": 128, "weighted": True},
]
TUNED = [{"tokens": 4_000}, {"tokens": 8_000, "rank": 128, "weighted": True}]


def smaller(*, tokens: int | None = None, rank: int | None = None, weighted: bool = False):
    """The classifier with another embedding table, and the tokenizer that goes with it."""
    model, tokenizer = load_classifier()
    counts = token_counts(tokenizer)
    if tokens is not None:
        tokenizer, index = trim_(model, tokenizer, counts, tokens)
        counts = counts[index]
    if rank is not None:
        factorize_embedding_(model, NAME, rank, counts=counts if weighted else None)
    return model, tokenizer


def token_counts(tokenizer) -> Tensor:
    """How often each token occurs in the training sentences, (tokens,)."""
    ids = tokenizer(list(load_reviews()["train"]["text"]))["input_ids"]
    return count_tokens(ids, len(tokenizer))


def trim_(model: nn.Module, tokenizer, counts: Tensor, tokens: int) -> tuple:
    """Leave a model the special tokens and those that occur most; the new tokenizer, and which of
    the old tokens each of the new ones is.
    """
    special = tokenizer.all_special_tokens
    kept = choose_tokens(tokenizer.get_vocab(), counts, tokens, special=special)
    definition, index = trim_wordpiece(tokenizer.backend_tokenizer.to_str(), kept)
    trim_embedding_(model, NAME, index)
    return rebuild_tokenizer(tokenizer, definition), index


def measure(model: nn.Module, tokenizer, correct: dict[str, Tensor]) -> dict:
    """What it loses on validation and on each transfer set."""
    lost = {}
    for name, data in evaluation_sets().items():
        hits = correct_answers(model, data, tokenizer)
        lost[name] = vars(compare_accuracy(correct[name], hits).difference)
    return lost


def evaluation_sets() -> dict:
    sets = {name: load_transfer(name)["test"] for name in TRANSFER}
    return {"validation": load_reviews()["validation"]} | sets


def run(choice: dict, correct: dict[str, Tensor]) -> dict:
    model, tokenizer = smaller(**choice)
    texts = {name: list(data["text"]) for name, data in evaluation_sets().items()}
    length = {
        name: sum(map(len, tokenizer(part)["input_ids"])) / len(part)
        for name, part in texts.items()
    }
    return choice | {
        "parameters": count_parameters(model),
        "bytes": bytes_on_disk(model),
        "length": length,  # tokens a text
        "lost": measure(model, tokenizer, correct),
    }


def tune(choice: dict, teacher: Tensor, correct: dict[str, Tensor], path: Path) -> dict:
    """Tune all weights of one smaller model and save it to `path`."""
    model, tokenizer = smaller(**choice)
    tune_(model, tokenizer, distillation(teacher))
    save_file(model.state_dict(), path)
    return choice | {
        "parameters": count_parameters(model),
        "bytes": bytes_on_disk(model),
        "lost": measure(model, tokenizer, correct),
    }


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = {
        name: correct_answers(dense, data, tokenizer) for name, data in evaluation_sets().items()
    }
    runs, tuned = [], []
    for result in in_parallel(run, [{"choice": c, "correct": correct} for c in CHOICES]):
        runs.append(result)
        print(json.dumps(result), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.safetensors" for i in range(len(TUNED))]
        shared = {"teacher": teacher, "correct": correct}
        tasks = [{"choice": c, "path": p} | shared for c, p in zip(TUNED, paths, strict=True)]
        for result in in_parallel(tune, tasks):
            tuned.append(result)
            print(json.dumps(result), flush=True)
        best = smallest(tuned, of=lambda run: run["lost"]["validation"])
        i = tuned.index(best)
        model, own = smaller(**TUNED[i])
        model.load_state_dict(load_file(paths[i]))
        result = row(
            "smaller embeddings, tuned",
            lecture=4,
            model=model,
            dense=dense,
            data=reviews["test"],
            tokenizer=own,
            note=", ".join(f"{name} {value:,}" for name, value in TUNED[i].items() if value > 1),
        )
    figures = {
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "dense": {name: vars(accuracy(hits)) for name, hits in correct.items()},
        "runs": runs,
        "tuned": tuned,
    }
    print(record("factorization_embeddings", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
