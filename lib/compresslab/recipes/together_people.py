"""What compression costs people: where compressed classifiers lose, and what their "80 %" is worth.

    python -m compresslab.recipes.together_people

The classifier, compressed without training in ways of lectures 2, 3, 4 and 6, some of them further
than one would go, and the capstone in its file. Of each: accuracy on test and its paired difference
to the classifier, for all sentences and by groups, with p-values that are corrected for all that
are looked at, and the groups of validation, too, so that a question can be found there and asked on
test; accuracy and calibration as it is, and after the repairs that need no training: one
temperature, one shift, or both, found on validation. The same on the transfer sets. No model is
chosen here, so none is chosen on test. About six minutes on two cores.
"""

import base64
import copy
import json
from collections.abc import Callable

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from .. import export
from ..corpora import LABELS, load_reviews, load_transfer
from ..factorization.allocation import uniform_ranks
from ..factorization.linear import factorize_linears_
from ..factorization.weighted_svd import whitened_svd
from ..layers import find_linears
from ..measure import accuracy, compare_accuracy, predict
from ..models import load_classifier
from ..pruning.sparsegpt import collect_hessians
from ..reliability import chance_error, fit_temperature, judge, matching_shift, reliability
from ..scoreboard import DENSE
from ..sharing.codebooks import cluster
from ..subgroups import compare_groups, holm, pooled_change, sentence_groups
from ..training import TextBatches
from . import in_parallel, launch, record, together_capstone
from .pruning_oneshot import pruned
from .quantization_latency import ours
from .quantization_oneshot import rounded
from .tuning import TRANSFER

SEED = 0
BINS = 15
SENTENCES = 256  # that the low-rank layers are fitted to


def shared(dense: nn.Module, bits: int) -> nn.Module:
    """A copy whose encoder has a codebook for each row of a matrix."""
    model = copy.deepcopy(dense)
    for linear in find_linears(model.bert.encoder).values():
        linear.weight.data = cluster(linear.weight, bits=bits, granularity="channel").reconstruct()
    return model


def low_rank(dense: nn.Module, left: float) -> nn.Module:
    """A copy whose encoder has `left` of its numbers, in factors that fit training sentences."""
    model, (_, tokenizer) = copy.deepcopy(dense), load_classifier()
    data = load_reviews()["train"].select(range(SENTENCES))
    ids = [batch["input_ids"] for batch in TextBatches(data, tokenizer, batch_size=1)]
    hessians, encoder = collect_hessians(model, ids), model.bert.encoder
    shapes = {name: tuple(linear.weight.shape) for name, linear in find_linears(encoder).items()}
    ranks = uniform_ranks(shapes, left)
    factorize_linears_(
        encoder, lambda name, w: whitened_svd(w, hessians[f"bert.encoder.{name}"], ranks[name])
    )
    return model


MODELS: dict[str, Callable[[nn.Module], nn.Module]] = {
    DENSE: lambda dense: dense,
    "int8, dynamic": ours,
    "4 bits": lambda dense: rounded(dense, bits=4, granularity=64),
    "3 bits": lambda dense: rounded(dense, bits=3, granularity=64),
    "2 bits": lambda dense: rounded(dense, bits=2, granularity=64),
    "codebooks, 3 bits": lambda dense: shared(dense, 3),
    "codebooks, 2 bits": lambda dense: shared(dense, 2),
    "magnitude, 40 % removed": lambda dense: pruned(dense, 0.4, globally=True),
    "magnitude, 50 % removed": lambda dense: pruned(dense, 0.5, globally=True),
    "magnitude, 60 % removed": lambda dense: pruned(dense, 0.6, globally=True),
    "low rank, half left": lambda dense: low_rank(dense, 0.5),
}
CAPSTONE = "capstone"


def texts() -> dict[str, Dataset]:
    """What every model reads."""
    reviews = load_reviews()
    return {"validation": reviews["validation"], "test": reviews["test"]} | {
        name: load_transfer(name)["test"] for name in TRANSFER
    }


def run(name: str) -> dict[str, Tensor]:
    """The logits of one model on all texts."""
    if name == CAPSTONE:
        model, tokenizer = export.load(together_capstone.PATH)
    else:
        dense, tokenizer = load_classifier()
        model = MODELS[name](dense)
    return {text: predict(model, TextBatches(data, tokenizer)) for text, data in texts().items()}


def pack_margins(logits: Tensor) -> str:
    """The second logit minus the first, (sentences,), as text: all that two labels' probabilities
    depend on. In float16, to a thousandth of itself."""
    margins = (logits[:, 1] - logits[:, 0]).numpy().astype("<f2")
    return base64.b64encode(margins.tobytes()).decode()


def recorded_logits(model: dict, text: str) -> Tensor:
    """Logits (sentences, 2) of a recorded model on a text, the first one 0: what
    `pack_margins` wrote."""
    margins = np.frombuffer(base64.b64decode(model["margins"][text]), dtype="<f2")
    return F.pad(torch.from_numpy(margins.astype(np.float32))[:, None], (1, 0))


def repairs(logits: Tensor, labels: Tensor) -> dict[str, tuple[float, float]]:
    """Shift of the second logit and temperature of each repair, from validation."""
    shift = matching_shift(logits, labels)
    return {
        "as it is": (0.0, 1.0),
        "temperature": (0.0, fit_temperature(logits, labels)),
        "shift": (shift, 1.0),
        "both": (shift, fit_temperature(shifted(logits, shift), labels)),
    }


def shifted(logits: Tensor, shift: float) -> Tensor:
    return logits.double() + torch.tensor([0.0, shift])


def assess(logits: Tensor, labels: Tensor, before: Tensor) -> dict:
    """A model's logits on one text, beside what the dense model has right there, `before`.

    Returns:
        accuracy with interval; `difference` to the dense model, also by label, and `changed`, the
        fraction that only one of them has right; `error`, the expected calibration error; `chance`,
        what that would be if the probabilities were true, its mean and what 95 % of samples stay
        below; `too_sure`, mean confidence minus accuracy; `surprise`, mean cross-entropy in nats.
    """
    confidence, correct = judge(logits, labels)
    compared = compare_accuracy(before, correct)
    generator = torch.Generator().manual_seed(SEED)
    chance = chance_error(confidence, draws=100, bins=BINS, generator=generator)
    return vars(accuracy(correct)) | {
        "difference": vars(compared.difference),
        "by_label": [
            vars(compare_accuracy(before[labels == i], correct[labels == i]).difference)
            for i in range(len(LABELS))
        ],
        "changed": (compared.only_first + compared.only_second) / len(labels),
        "error": reliability(confidence, correct, bins=BINS).error,
        "chance": {"mean": chance.mean().item(), "high": chance.quantile(0.95).item()},
        "too_sure": (confidence.mean() - correct.double().mean()).item(),
        "surprise": F.cross_entropy(logits.double(), labels).item(),
    }


def compare(name: str, logits: dict[str, Tensor], dense: dict[str, Tensor], data: dict) -> dict:
    """One model beside the dense one, on every text but validation, with every repair."""
    labels = {text: torch.tensor(list(part["label"])) for text, part in data.items()}
    found = repairs(logits["validation"], labels["validation"])
    return {
        "name": name,
        "repairs": {repair: {"shift": s, "temperature": t} for repair, (s, t) in found.items()},
        "texts": {
            text: {
                repair: assess(shifted(logits[text], s) / t, own, dense[text].argmax(-1) == own)
                for repair, (s, t) in found.items()
            }
            for text, own in labels.items()
            if text != "validation"
        },
        "margins": {text: pack_margins(logits[text]) for text in ("validation", "test")},
    }


def by_group(
    logits: dict[str, dict[str, Tensor]], text: str, data: dict[str, Dataset], train: Dataset
) -> dict[str, list[dict]]:
    """Changes against the dense model on groups of the sentences of a text.

    Returns:
        `each`, of every model and group, and `pooled`, of the mean of all models; the p-values of
        each list are corrected for all of the list.
    """
    labels, groups = torch.tensor(list(data[text]["label"])), sentence_groups(data[text], train)
    hits = {name: answers[text].argmax(-1) == labels for name, answers in logits.items()}
    lines = [
        {"model": name, "group": group}
        | vars(change)
        | {end: vars(getattr(change, end)) for end in ("difference", "beyond")}
        for name in logits
        if name != DENSE
        for group, change in compare_groups(hits[DENSE], hits[name], groups).items()
    ]
    others = torch.stack([hits[name] for name in logits if name != DENSE])
    generator = torch.Generator().manual_seed(SEED)
    pooled = [
        {"group": group, "beyond": {"value": beyond}, "p_value": p_value}
        for group, (beyond, p_value) in pooled_change(
            hits[DENSE], others, groups, generator=generator
        ).items()
    ]
    return {"each": _corrected(lines), "pooled": _corrected(pooled)}


def _corrected(lines: list[dict]) -> list[dict]:
    corrected = holm([line["p_value"] for line in lines])
    return [line | {"corrected": p} for line, p in zip(lines, corrected, strict=True)]


def main() -> None:
    names = [*MODELS, CAPSTONE]
    logits = dict(zip(names, in_parallel(run, [{"name": name} for name in names]), strict=True))
    data = texts()
    models = []
    for name in names:
        models.append(compare(name, logits[name], logits[DENSE], data))
        print(name, json.dumps(models[-1]["texts"]["test"]["as it is"]), flush=True)
    train = load_reviews()["train"]
    groups = {text: by_group(logits, text, data, train) for text in ("validation", "test")}
    print(
        record(
            "together_people", seed=SEED, figures={"bins": BINS, "models": models, "groups": groups}
        )
    )


if __name__ == "__main__":
    launch(main)
