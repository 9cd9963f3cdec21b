"""What each way to mix tokens can do: small models of one size and one budget on five tasks.

    python -m compresslab.recipes.attention_quality

All are `attention.mixers.SmallModel`, two layers of width 64 with as many weights, and differ in
the mixer alone, which keeps 16 numbers a channel (full attention all tokens, RWKV 4). Each task has
as many steps for all, and for each mixer the better of two learning rates, by mean accuracy on
validation with the first seed; another seed follows. Recall is repeated with more and with less
state, at the same rate and with the first seed alone; not by RetNet, whose decays would change with
the number of heads.

    recall      keys with values, then all keys in another order: the value of each. Arora et al.
                (2023), Zoology, arXiv:2312.04927; trained on 4 to 32 pairs, asked about as many
    copying     letters, a sign, the same letters. Jelassi et al. (2024), arXiv:2402.01032; trained
                on 8 to 32 letters, asked about up to 64
    induction   random tokens, among them once a sign; it comes again at the end: which token was
                behind it? Olsson et al. (2022), arXiv:2209.11895, as in the Mamba paper; trained on
                32 to 96 tokens, asked about up to 256
    characters  the next of 128 characters of newspaper articles
    documents   11 reviews, 8 of one kind and 3 of the other: of which kind are most? Asked at the
                end, and in training after each review as well, of those so far. The documents of
                validation and test are drawn from the sentences of those splits, which come again
                in several. Tokens start from the classifier's table, since 44,000 sentences do not
                teach what words mean

Made-up tasks have new examples at every step; those of validation and test are drawn once, the same
for all. Differs from the papers: far smaller models and budgets, so that a mixer that fails here
may do well with more; 64 keys and 64 values, not 8,192 tokens, all asked one after the other;
copies are judged letter by letter with the right letters before them. About 40 minutes on two
cores.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..attention.mixers import MIXERS, SmallModel
from ..corpora import load_articles, load_reviews
from ..measure import count_parameters
from ..models import load_classifier
from ..training import Batch, train
from . import in_parallel, launch, record

SEEDS = (0, 1)
RATES = (3e-3, 1e-2)
WIDTH = 64
STATE_SIZE, OTHER_SIZES = 16, (4, 64)
SWEPT = ("sliding window", "linear attention", "S4D", "Mamba", "gated delta rule")
TASKS = ("recall", "copying", "induction", "characters", "documents")
SPLITS = ("validation", "test")
EXAMPLES, DOCUMENTS = 256, 512  # of each exam; texts of characters count as the former
IGNORE = -100  # no answer is asked for at this position
KEYS, VALUES = 64, 64
LETTERS, TOKENS = 26, 16
CHARACTERS = 128
REVIEWS, AGREE, WORDS = 11, 8, 24

Example = tuple[Tensor, Tensor]  # token numbers and right answers, (batch, time) int64 each
Exams = dict[str, list[Example]]  # batches, by what is asked


@dataclass
class Task:
    """`draw` makes a batch for training; `exams` are by split; `table` (vocabulary, WIDTH) is what
    tokens start from in place of random numbers.
    """

    vocabulary: int
    outputs: int
    steps: int
    draw: Callable[[torch.Generator], Example]
    exams: dict[str, Exams]
    table: Tensor | None = None


def recall(pairs: int, batch: int, generator: torch.Generator) -> Example:
    """k1 v1 k2 v2 … and all keys in another order; different keys, any values."""
    keys = torch.rand(batch, KEYS, generator=generator).topk(pairs).indices
    values = KEYS + torch.randint(VALUES, (batch, pairs), generator=generator)
    order = torch.rand(batch, pairs, generator=generator).argsort(dim=-1)
    told = torch.stack([keys, values], dim=-1).flatten(1)
    ids = torch.cat([told, keys.gather(1, order)], dim=1)
    answers = torch.cat([torch.full_like(told, IGNORE), values.gather(1, order)], dim=1)
    return ids, answers


def copying(length: int, batch: int, generator: torch.Generator) -> Example:
    """Letters, a sign, and the letters but the last: from the sign on, the next letter."""
    letters = torch.randint(LETTERS, (batch, length), generator=generator)
    sign = torch.full((batch, 1), LETTERS)
    ids = torch.cat([letters, sign, letters[:, :-1]], dim=1)
    return ids, torch.cat([torch.full_like(letters, IGNORE), letters], dim=1)


def induction(length: int, batch: int, generator: torch.Generator) -> Example:
    """Tokens, a sign somewhere and at the end, where the token behind the first is asked for."""
    ids = torch.randint(TOKENS, (batch, length), generator=generator)
    place = torch.randint(length - 2, (batch, 1), generator=generator)
    answers = torch.full_like(ids, IGNORE)
    answers[:, -1:] = ids.gather(1, place + 1)
    ids.scatter_(1, place, TOKENS)[:, -1] = TOKENS
    return ids, answers


def made_up(make: Callable, sizes: tuple[int, ...], asked: tuple[int, ...], **options) -> Task:
    """A task whose batches have one of `sizes` each, and whose exams are `asked`."""

    def draw(generator: torch.Generator) -> Example:
        size = sizes[torch.randint(len(sizes), (1,), generator=generator).item()]
        return make(size, 32, generator)

    def exam(split: str, generator: torch.Generator) -> Exams:
        return {
            str(size): [make(size, 32, generator) for _ in range(EXAMPLES // 32)] for size in asked
        }

    return Task(draw=draw, exams=by_split(exam), **options)


def by_split(exam: Callable[[str, torch.Generator], Exams]) -> dict[str, Exams]:
    return {split: exam(split, torch.Generator().manual_seed(i)) for i, split in enumerate(SPLITS)}


def characters() -> Task:
    """Stretches of articles, and the same one character later; 0 stands for those that are new."""
    texts = {name: "\n".join(part["text"]) for name, part in load_articles().items()}
    known = {c: i + 1 for i, c in enumerate(sorted(set(texts["calibration"])))}
    numbers = {name: torch.tensor([known.get(c, 0) for c in t]) for name, t in texts.items()}

    def draw(generator: torch.Generator) -> Example:
        ids = numbers["calibration"]
        starts = torch.randint(len(ids) - CHARACTERS, (16, 1), generator=generator)
        some = ids[starts + torch.arange(CHARACTERS + 1)]
        return some[:, :-1], some[:, 1:]

    def exam(split: str, generator: torch.Generator) -> Exams:
        windows = numbers[split].unfold(0, CHARACTERS + 1, CHARACTERS + 1)[:EXAMPLES]
        return {"next": [(some[:, :-1], some[:, 1:]) for some in windows.split(32)]}

    size = len(known) + 1
    return Task(vocabulary=size, outputs=size, steps=400, draw=draw, exams=by_split(exam))


def documents() -> Task:
    """Sentences, each cut or padded to WORDS tokens, one after the other. Tokens that fewer than
    three training sentences have are one.
    """
    reviews, (model, tokenizer) = load_reviews(), load_classifier()
    read = {
        name: tokenizer(list(part["text"]), add_special_tokens=False)["input_ids"]
        for name, part in reviews.items()
    }
    counts = torch.zeros(len(tokenizer), dtype=torch.long)
    for sentence in read["train"]:
        counts[list(set(sentence))] += 1
    common = counts >= 3
    number = torch.zeros_like(counts)  # 0: rare, 1: padding
    number[common] = torch.arange(int(common.sum())) + 2

    def table(name: str) -> list[Tensor]:
        """The sentences of each label, (sentences, WORDS)."""
        rows = torch.ones(len(read[name]), WORDS, dtype=torch.long)
        for row, sentence in zip(rows, read[name], strict=True):
            row[: len(sentence)] = number[sentence[:WORDS]]
        labels = torch.tensor(reviews[name]["label"])
        return [rows[labels == label] for label in (0, 1)]

    known = table("train")

    def exam(split: str, generator: torch.Generator) -> Exams:
        asked = table(split)
        return {"label": [document(asked, 32, generator) for _ in range(DOCUMENTS // 32)]}

    # The directions in which the classifier's tokens differ most, and none for rare and padding.
    vectors = model.get_input_embeddings().weight.detach()[common]
    vectors = principal_components(vectors, WIDTH)
    return Task(
        vocabulary=len(vectors) + 2,
        outputs=2,
        steps=250,
        draw=lambda generator: document(known, 16, generator, often=True),
        exams=by_split(exam),
        table=torch.cat([torch.zeros(2, WIDTH), vectors / vectors.std()]),
    )


def principal_components(x: Tensor, count: int) -> Tensor:
    """Of the rows of x (rows, features), coordinates along the `count` largest, (rows, count)."""
    x = x - x.mean(0)
    return x @ torch.linalg.svd(x, full_matrices=False).Vh[:count].T


def document(
    sentences: list[Tensor], batch: int, generator: torch.Generator, *, often: bool = False
) -> Example:
    """Documents from the sentences of each label, (…, words): AGREE of one, the rest of the other,
    in any order. Asked for is the label of most: at the end, or, `often`, after each sentence, of
    those so far, if there is one.
    """
    labels = torch.randint(2, (batch, 1), generator=generator)
    order = torch.rand(batch, REVIEWS, generator=generator).argsort(dim=-1)
    each = torch.where(order < AGREE, labels, 1 - labels)
    chosen = [of[torch.randint(len(of), (batch, REVIEWS), generator=generator)] for of in sentences]
    ids = torch.where(each[..., None] == 1, chosen[1], chosen[0]).flatten(1)
    lead = (2 * each - 1).cumsum(dim=-1)
    most = torch.where(lead == 0, IGNORE, (lead > 0).long())
    answers = torch.full_like(ids, IGNORE)
    if often:
        step = sentences[0].shape[1]
        answers[:, step - 1 :: step] = most
    else:
        answers[:, -1] = most[:, -1]
    return ids, answers


def build_task(name: str) -> Task:
    if name == "recall":
        sizes, size = (4, 8, 16, 32), KEYS + VALUES
        return made_up(recall, sizes, sizes, vocabulary=size, outputs=size, steps=600)
    if name == "copying":
        size = {"vocabulary": LETTERS + 1, "outputs": LETTERS, "steps": 400}
        return made_up(copying, (8, 16, 24, 32), (8, 16, 32, 64), **size)
    if name == "induction":
        size = {"vocabulary": TOKENS + 1, "outputs": TOKENS, "steps": 400}
        return made_up(induction, (32, 64, 96), (32, 64, 128, 256), **size)
    return characters() if name == "characters" else documents()


class Steps:
    """As many batches as a task has steps; `train` iterates over them once."""

    def __init__(self, task: Task, seed: int):
        self.task, self.generator = task, torch.Generator().manual_seed(100 + seed)

    def __len__(self) -> int:
        return self.task.steps

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(len(self)):
            ids, answers = self.task.draw(self.generator)
            yield {"ids": ids, "answers": answers}


def answer_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy where an answer is asked for, nats."""
    logits = model(batch["ids"])
    return F.cross_entropy(logits.flatten(0, 1), batch["answers"].flatten(), ignore_index=IGNORE)


@torch.no_grad()
def examine(model: nn.Module, batches: list[Example]) -> dict[str, float]:
    """Accuracy and mean cross-entropy in bits, over all answers asked for."""
    right, bits, count = 0, 0.0, 0
    for ids, answers in batches:
        asked = answers != IGNORE
        logits, answers = model(ids)[asked], answers[asked]
        right += (logits.argmax(-1) == answers).sum().item()
        bits += F.cross_entropy(logits, answers, reduction="sum").item() / math.log(2)
        count += len(answers)
    return {"accuracy": right / count, "bits": bits / count, "answers": count}


def run(
    task: str, mixer: str, learning_rate: float, seed: int, state_size: int = STATE_SIZE
) -> dict:
    """Train one model, and examine it on both splits; `accuracy` is the mean over the exams of
    validation.
    """
    what = build_task(task)
    generator = torch.Generator().manual_seed(seed)
    size = {"width": WIDTH, "state_size": state_size, "outputs": what.outputs}
    model = SmallModel(what.vocabulary, mixer, **size, generator=generator)
    if what.table is not None:
        model.embedding.weight.data.copy_(what.table)
    history = train(
        model, Steps(what, seed), answer_loss, learning_rate=learning_rate, progress=False
    )
    found = {
        split: {name: examine(model, batches) for name, batches in exams.items()}
        for split, exams in what.exams.items()
    }
    judged = [exam["accuracy"] for exam in found["validation"].values()]
    tokens = {name: batches[0][0].shape[1] for name, batches in what.exams["test"].items()}
    return {
        "task": task,
        "mixer": mixer,
        "state_size": state_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "steps": what.steps,
        "parameters": count_parameters(model),
        "kept": {name: model.kept(time) for name, time in tokens.items()},
        "loss": history[-1]["loss"],
        "accuracy": sum(judged) / len(judged),
    } | found


def best_rates(runs: list[dict]) -> dict[tuple[str, str], float]:
    """The learning rate with the best accuracy on validation, of equal ones the last; by task and
    mixer.
    """
    ordered = sorted(runs, key=lambda run: run["accuracy"])
    return {(run["task"], run["mixer"]): run["learning_rate"] for run in ordered}


def main() -> None:
    def runs_of(choices: list[dict]) -> list[dict]:
        found = []
        for result in in_parallel(run, choices):
            found.append(result)
            print(json.dumps(result), flush=True)
        return found

    pairs = [{"task": task, "mixer": mixer} for task in TASKS for mixer in MIXERS]
    trials = runs_of([p | {"learning_rate": r, "seed": SEEDS[0]} for p in pairs for r in RATES])
    best = best_rates(trials)
    pairs = [p | {"learning_rate": best[p["task"], p["mixer"]]} for p in pairs]
    runs = runs_of([pair | {"seed": seed} for pair in pairs for seed in SEEDS[1:]])
    sizes = runs_of(
        [
            pair | {"seed": SEEDS[0], "state_size": size}
            for pair in pairs
            if pair["task"] == "recall" and pair["mixer"] in SWEPT
            for size in OTHER_SIZES
        ]
    )
    runs += [t for t in trials if t["learning_rate"] == best[t["task"], t["mixer"]]]
    figures = {"rates": RATES, "trials": trials, "runs": runs, "state_sizes": sizes}
    print(record("attention_quality", seed=SEEDS[0], figures=figures))


if __name__ == "__main__":
    launch(main)
