"""SmolLM2 with every other layer, taught by the whole one; and the same model from nothing.

    python -m compresslab.recipes.distillation_llm

Three things to learn from: the next token of articles, the teacher's distribution over it (token
level), and texts that the teacher wrote (sequence level: it goes on from the first 32 tokens of
each window, drawn from its own distribution). Every student reads the 200 calibration articles, or
what was made from them, as often and in windows as long. The learning rate is the best of three for
the next token on validation articles, after a quarter of the text, for each start. Perplexity on
128 windows of test articles, as long. About 45 minutes on two cores.
"""

import copy
import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from ..corpora import load_articles, token_windows
from ..distillation.sequence import continue_texts, sequence_loss, token_loss
from ..distillation.students import alternate_layers
from ..measure import bytes_on_disk, count_parameters, perplexity
from ..models import load_language_model
from ..pruning.depth import keep_layers_
from ..training import train
from . import in_parallel, launch, record
from .factorization_llm import next_token_loss
from .tuning import SEED, Loss

WINDOW, PROMPT, BATCH = 128, 32, 8
LAYERS = 15
EPOCHS = 1
RATES = (2e-4, 5e-4, 1e-3)
STARTS = ("every other layer", "nothing")
JUDGED = {"validation": 64, "test": 128}  # windows of these articles
TARGETS = ("next token", "token level", "sequence level")


def windows(split: str) -> Tensor:
    """All of the calibration articles, and the first of the others."""
    _, tokenizer = load_language_model()
    found = token_windows(load_articles()[split]["text"], tokenizer, length=WINDOW)
    return found[: JUDGED.get(split)]


def new_student(start: str) -> nn.Module:
    student, _ = load_language_model()
    layers = student.config.num_hidden_layers
    keep_layers_(student, alternate_layers(layers, LAYERS))
    if start == "nothing":
        torch.manual_seed(SEED)
        student = AutoModelForCausalLM.from_config(copy.deepcopy(student.config)).float()
    return student


def token_level(teacher: nn.Module) -> Loss:
    def loss(student: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        ids = batch["input_ids"]
        with torch.no_grad():
            answers = teacher(input_ids=ids).logits
        mask = torch.ones_like(ids)
        mask[:, -1] = 0  # what comes after the window is no target of the other losses
        return token_loss(student(input_ids=ids).logits, answers, mask)

    return loss


def sequence_level(student: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    ids = batch["input_ids"]
    return sequence_loss(student(input_ids=ids).logits, ids, batch["mask"])


def write(path: Path) -> None:
    """What the teacher writes after the beginning of each window, saved as batches."""
    teacher, _ = load_language_model()
    generator = torch.Generator().manual_seed(SEED)
    batches = []
    for some in windows("calibration").split(4 * BATCH):  # a step costs little more for 32 texts
        found = continue_texts(
            teacher,
            some[:, :PROMPT],
            new_tokens=WINDOW - PROMPT,
            sample=True,
            generator=generator,
        )
        parts = found.ids.split(BATCH), found.mask.split(BATCH)
        batches += [{"input_ids": ids, "mask": mask} for ids, mask in zip(*parts, strict=True)]
    torch.save(batches, path)


def teach(start: str, target: str, learning_rate: float, path: Path, *, part: float = 1.0) -> dict:
    """One student; `part` of the articles only, where the rate is tried."""
    student = new_student(start)
    if target == "sequence level":
        batches = torch.load(path)
    else:
        batches = [{"input_ids": some} for some in windows("calibration").split(BATCH)]
    batches = batches[: round(part * len(batches))]
    if target == "token level":
        loss = token_level(load_language_model()[0])
    else:
        loss = next_token_loss if target == "next token" else sequence_level
    history = train(
        student, batches, loss, epochs=EPOCHS, learning_rate=learning_rate, progress=False
    )
    return {
        "start": start,
        "target": target,
        "learning_rate": learning_rate,
        "loss": [entry["loss"] for entry in history],
        "parameters": count_parameters(student),
        "bytes": bytes_on_disk(student),
        "validation": perplexity(student, windows("validation")).value,
    } | ({"test": vars(perplexity(student, windows("test")))} if part == 1.0 else {})


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "written.pt"
        trials = [
            {"start": start, "target": "next token", "learning_rate": rate, "path": path}
            | {"part": 0.25}
            for start in STARTS
            for rate in RATES
        ]
        tried = []
        for result in in_parallel(teach, trials):
            tried.append(result)
            print(json.dumps(result), flush=True)
        rates = {
            start: min(
                (trial for trial in tried if trial["start"] == start),
                key=lambda trial: trial["validation"],
            )["learning_rate"]
            for start in STARTS
        }
        list(in_parallel(write, [{"path": path}]))
        tasks = [
            {"start": start, "target": target, "learning_rate": rates[start], "path": path}
            for start in STARTS
            for target in TARGETS
        ]
        runs = []
        for result in in_parallel(teach, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
    teacher, _ = load_language_model()
    test = windows("test")
    untrained = new_student("every other layer")
    figures = {
        "epochs": EPOCHS,
        "tokens": windows("calibration").numel(),
        "window": WINDOW,
        "layers": LAYERS,
        "teacher": {"parameters": count_parameters(teacher), "bytes": bytes_on_disk(teacher)}
        | vars(perplexity(teacher, test)),
        "untrained": vars(perplexity(untrained, test)),
        "trials": tried,
        "runs": runs,
    }
    print(record("distillation_llm", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
