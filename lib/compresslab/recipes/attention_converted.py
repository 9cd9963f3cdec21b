"""The classifier with another form of attention in every layer: what is lost, what comes back.

    python -m compresslab.recipes.attention_converted

Projections stay, and what is between them is replaced: by linear attention with elu + 1, with a
feature map that was learned (`attention.hedgehog`), with the random features of Performer, or by a
window of 4 tokens on each side and a global first token. The map is first taught to give the
weights that softmax gives, all else frozen, by their cross-entropy; its learning rate is the better
of two on validation. Then every model learns the classifier's answers (half labels, half teacher),
all layers converted at once; linear attention with two learning rates, the others with the better
one. Judged on validation; the best goes to the scoreboard.

As in Zhang et al. (2024), arXiv:2402.04347, but for the model, a small one, and its task, short
sentences: what is measured is what is lost, since below some hundred tokens nothing gets faster
(`latency`, random tokens). About 40 minutes on two cores.
"""

import json
import tempfile
from collections.abc import Callable
from functools import partial
from operator import itemgetter
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..attention.common import masked_softmax
from ..attention.full import full_attention
from ..attention.hedgehog import LearnedMap
from ..attention.linear import linear_attention
from ..attention.performer import draw_projection, performer_attention
from ..attention.sliding_window import window_attention
from ..corpora import load_reviews
from ..distillation.attention import attention_scores, observe_heads
from ..distillation.masking import masked_mean
from ..layers import bert_layers
from ..measure import compare_latency, correct_answers, count_parameters
from ..models import load_classifier
from ..scoreboard import row
from ..training import Batch, TextBatches, train
from . import in_parallel, launch, record
from .tuning import EPOCHS, SEED, Loss, distillation, lost, teacher_logits, tune_

RATES = (5e-5, 2e-4)
MATCHING_RATES, MATCHING_EPOCHS = (1e-3, 1e-2), 1
FEATURES, WINDOW = 64, 8
LENGTHS = (32, 128, 512)
TITLES = {
    "linear": "linear attention, tuned",
    "learned": "linear attention, learned map, tuned",
    "Performer": "Performer, tuned",
    "window": "sliding window, tuned",
}
FORMS = tuple(TITLES)


class Converted(nn.Module):
    """A layer's attention with its projections and another `form` between them, while it is `on`;
    else with softmax as before. No weight is dropped in training.
    """

    def __init__(self, old: nn.Module, form: Callable):
        super().__init__()
        self.query, self.key, self.value = old.query, old.key, old.value
        self.attention_head_size = old.attention_head_size
        self.form, self.on = form, True

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **options):
        """What the layer expects: outputs (batch, time, width), and no weights.

        Args:
            attention_mask: bool, or numbers to be added, (batch, 1, time, time), as transformers
                makes it for an encoder: all rows are alike.
        """
        mask = None if attention_mask is None else attention_mask[:, 0, 0]
        if mask is not None and mask.dtype != torch.bool:
            mask = mask == 0
        parts = (project(hidden_states) for project in (self.query, self.key, self.value))
        heads = (x.unflatten(-1, (-1, self.attention_head_size)).transpose(1, 2) for x in parts)
        form = self.form if self.on else full_attention
        return form(*heads, mask=mask).transpose(1, 2).flatten(2), None


def attentions(model: nn.Module) -> list[nn.Module]:
    return [layer.attention.self for layer in bert_layers(model)]


def new_maps(model: nn.Module) -> nn.ModuleList:
    """A learned map for each layer of a BERT."""
    heads, layers = model.config.num_attention_heads, bert_layers(model)
    return nn.ModuleList(LearnedMap(heads, model.config.hidden_size // heads) for _ in layers)


def convert_(model: nn.Module, form: str, maps: nn.ModuleList | None = None) -> None:
    """Replace the attention of all layers of a BERT by one of `FORMS`; "learned" takes maps."""
    dim = model.config.hidden_size // model.config.num_attention_heads
    # Always the same projections, since they are not saved with the weights.
    generator = torch.Generator().manual_seed(SEED)
    for i, layer in enumerate(bert_layers(model)):
        new_form = linear_attention
        if form == "learned":
            new_form = maps[i]
        elif form == "Performer":
            projection = draw_projection(FEATURES, dim, generator=generator)
            new_form = partial(performer_attention, projection=projection)
        elif form == "window":
            new_form = partial(window_attention, window=WINDOW, global_tokens=(0,))
        layer.attention.self = Converted(layer.attention.self, new_form)


def converted(form: str, folder: Path) -> tuple[nn.Module, object]:
    """The classifier with one of `FORMS`; maps are those in `folder`."""
    model, tokenizer = load_classifier()
    maps = None
    if form == "learned":
        maps = new_maps(model)
        maps.load_state_dict(load_file(folder / "maps.safetensors"))
    convert_(model, form, maps)
    return model.eval(), tokenizer


def matching_loss(teacher: nn.Module) -> Loss:
    """Mean cross-entropy of maps' weights with those of the teacher's softmax, nats; over layers,
    heads and real tokens.
    """

    def loss(maps: nn.ModuleList, batch: Batch) -> Tensor:
        mask = batch["attention_mask"]
        with torch.no_grad(), observe_heads(teacher) as seen:
            teacher(input_ids=batch["input_ids"], attention_mask=mask)
        total, rows = 0.0, mask.bool()[:, None]
        for i, own in enumerate(maps):
            query, key = seen[i].query, seen[i].key
            right = masked_softmax(attention_scores(query, key), rows[:, :, None])
            log_weights = own.weights(query, key, mask).clamp(min=1e-12).log()
            total = total + masked_mean(-(right * log_weights).sum(-1), rows)
        return total / len(maps)

    return loss


def match(learning_rate: float, path: Path) -> dict:
    """Teach the maps of all layers at once, and save them."""
    teacher, tokenizer = load_classifier()
    reviews, loss = load_reviews(), matching_loss(teacher)
    validation = list(TextBatches(reviews["validation"], tokenizer))
    maps = new_maps(teacher)

    @torch.no_grad()
    def surprise() -> float:
        return sum(loss(maps, batch).item() for batch in validation) / len(validation)

    before = surprise()
    train(
        maps,
        TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED),
        loss,
        epochs=MATCHING_EPOCHS,
        learning_rate=learning_rate,
        progress=False,
    )
    save_file(maps.state_dict(), path)
    return {
        "learning_rate": learning_rate,
        "parameters": count_parameters(maps),
        "before": before,
        "after": surprise(),
    }


def untrained(form: str, folder: Path, correct: Tensor) -> list[dict]:
    """With the last layers converted, one to all."""
    model, tokenizer = converted(form, folder)
    layers, found = attentions(model), []
    for count in range(1, len(layers) + 1):
        for i, attention in enumerate(layers):
            attention.on = i >= len(layers) - count
        found.append({"form": form, "layers": count} | lost(model, tokenizer, correct))
    return found


def path_of(folder: Path, form: str, learning_rate: float) -> Path:
    return folder / f"{form} {learning_rate}.safetensors"


def run(form: str, learning_rate: float, folder: Path, teacher: Tensor, correct: Tensor) -> dict:
    """Tune one of `FORMS`, and save it: see `path_of`."""
    model, tokenizer = converted(form, folder)
    model.bert.embeddings.requires_grad_(False)
    history = tune_(model, tokenizer, distillation(teacher), learning_rate=learning_rate)
    save_file(model.state_dict(), path_of(folder, form, learning_rate))
    return {
        "form": form,
        "learning_rate": learning_rate,
        "loss": [entry["loss"] for entry in history],
        "after": lost(model, tokenizer, correct),
    }


def best(runs: list[dict]) -> dict:
    return max(runs, key=lambda run: run["after"]["value"])


def latency(folder: Path) -> list[dict]:
    """Speed of the converted models against the classifier, one text of random tokens."""
    dense, _ = load_classifier()
    models = {"dense": dense} | {name: converted(name, folder)[0] for name in FORMS}
    generator, found = torch.Generator().manual_seed(SEED), []
    for length in LENGTHS:
        ids = torch.randint(1000, 20000, (1, length), generator=generator)
        calls = {name: partial(model, input_ids=ids) for name, model in models.items()}
        for name, times in compare_latency(calls, baseline="dense").items():
            speed = {"milliseconds": times.milliseconds, "speedup": vars(times.speedup)}
            found.append({"form": name, "length": length} | speed)
    return found


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = [{"learning_rate": r, "path": folder / f"{r}.safetensors"} for r in MATCHING_RATES]
        matched = list(in_parallel(match, tasks))
        maps = tasks[matched.index(min(matched, key=itemgetter("after")))]["path"]
        maps.rename(folder / "maps.safetensors")
        print(json.dumps(matched), flush=True)
        tasks = [{"form": form, "folder": folder, "correct": correct} for form in FORMS]
        before = [one for found in in_parallel(untrained, tasks) for one in found]
        print(json.dumps(before), flush=True)
        shared, runs = {"folder": folder, "teacher": teacher, "correct": correct}, []

        def tune_all(choices: list[dict]) -> None:
            for result in in_parallel(run, [choice | shared for choice in choices]):
                runs.append(result)
                print(json.dumps(result), flush=True)

        tune_all([{"form": FORMS[0], "learning_rate": rate} for rate in RATES])
        rate = best(runs)["learning_rate"]
        tune_all([{"form": form, "learning_rate": rate} for form in FORMS[1:]])
        chosen = best(runs)
        model, _ = converted(chosen["form"], folder)
        weights = path_of(folder, chosen["form"], chosen["learning_rate"])
        model.load_state_dict(load_file(weights))
        result = row(
            TITLES[chosen["form"]],
            lecture=7,
            model=model,
            dense=dense,
            data=reviews["test"],
            tokenizer=tokenizer,
            note="all six layers; for long texts, which sentences are not",
        )
        figures = {
            "epochs": EPOCHS,
            "matching_epochs": MATCHING_EPOCHS,
            "features": FEATURES,
            "window": WINDOW,
            "matched": matched,
            "untrained": before,
            "runs": runs,
            "best": chosen,
            "latency": latency(folder),
        }
    print(record("attention_converted", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
