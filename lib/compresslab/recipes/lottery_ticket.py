"""Lottery tickets in the encoder of MiniLM: found by training, against chance and haste.

    python -m compresslab.recipes.lottery_ticket

Iterative magnitude pruning with rewinding to an early step (Frankle et al. 2019, arXiv:1912.05671):
three rounds, each trains and then takes half of the encoder weights that are left. The tickets are
trained alone from the early weights, beside two controls with as many weights in every layer:
random places, and the largest early weights, which need no training to find. About 12
minutes on two cores.
"""

import copy

import torch
from torch import nn

from ..corpora import load_reviews
from ..layers import find_linears
from ..measure import accuracy, correct_answers
from ..models import load_classifier
from ..pruning.lottery import find_ticket, random_ticket, rewind_
from ..pruning.magnitude import magnitude_masks
from ..pruning.masks import hold_masks
from ..training import TextBatches, train
from . import in_parallel, launch, record
from .tuning import LEARNING_RATE

SEED = 0
ROUNDS = 3
FRACTION = 0.5  # of what is left, removed in a round
EPOCHS = 1
EARLY = 22  # steps to the checkpoint, a tenth of an epoch
CONTROLS = ("random", "largest early")


class Case:
    """The model, its early weights, and one way to train: the same for tickets and controls."""

    def __init__(self):
        self.reviews = load_reviews()
        self.model, self.tokenizer = load_classifier(adapter=None)
        self.model.bert.embeddings.requires_grad_(False)
        self.layers = [f"bert.encoder.{name}" for name in find_linears(self.model.bert.encoder)]
        self.histories = []
        early = list(self.batches())[:EARLY]
        self._train(self.model, early, epochs=1)
        self.checkpoint = copy.deepcopy(self.model.state_dict())

    def batches(self) -> TextBatches:
        return TextBatches(self.reviews["train"], self.tokenizer, shuffle=True, seed=SEED)

    def train(self, model: nn.Module, after_step) -> None:
        history = self._train(
            model, self.batches(), epochs=EPOCHS, after_step=after_step, validate=self.validate
        )
        self.histories.append([entry["validation"] for entry in history])

    def _train(self, model: nn.Module, batches, **options) -> list[dict]:
        torch.manual_seed(SEED)  # dropout
        return train(
            model,
            batches,
            learning_rate=LEARNING_RATE,
            dtype=torch.bfloat16,
            progress=False,
            **options,
        )

    def validate(self, model: nn.Module) -> dict:
        hits = correct_answers(model, self.reviews["validation"], self.tokenizer)
        return {"validation": accuracy(hits).value}

    def early_masks(self, sparsity: float) -> dict:
        self.model.load_state_dict(self.checkpoint)
        masks = magnitude_masks(self.model.bert.encoder, sparsity)
        return {f"bert.encoder.{name}": mask for name, mask in masks.items()}


def run(kind: str, rounds: int) -> list[dict]:
    """Validation after every epoch: of the tickets of all rounds, or of a control."""
    case = Case()
    if kind == "ticket":
        ticket, masks = find_ticket(
            case.model,
            case.train,
            case.checkpoint,
            rounds=rounds,
            fraction=FRACTION,
            layers=case.layers,
        )
        case.train(ticket, hold_masks(ticket, masks[-1]))
        # The training of round r + 1 is that of the ticket of round r; the first one is dense.
        return [
            {"kind": kind, "kept": (1 - FRACTION) ** done, "validation": history}
            for done, history in enumerate(case.histories)
        ]
    masks = case.early_masks(1 - (1 - FRACTION) ** rounds)
    if kind == "random":
        masks = random_ticket(masks, generator=torch.Generator().manual_seed(SEED))
    rewind_(case.model, case.checkpoint, masks)
    case.train(case.model, hold_masks(case.model, masks))
    return [{"kind": kind, "kept": (1 - FRACTION) ** rounds, "validation": case.histories[0]}]


def main() -> None:
    tasks = [{"kind": "ticket", "rounds": ROUNDS}]
    tasks += [{"kind": kind, "rounds": r} for r in range(1, ROUNDS + 1) for kind in CONTROLS]
    runs = []
    for result in in_parallel(run, tasks):
        runs += result
        print(result, flush=True)
    figures = {"epochs": EPOCHS, "early_steps": EARLY, "fraction": FRACTION, "runs": runs}
    print(record("lottery_ticket", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
