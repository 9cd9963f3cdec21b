"""Two teachers for the capstone, and what they say of many sentences.

    python -m compresslab.recipes.together_teachers

The course's classifier, and SmolLM2, tuned with LoRA on the same labels as in
`distillation_teachers`. They answer the reviews, the sentences of the transfer sets, and copies of
both in which words are replaced; their logits go to data/answers.safetensors, in float16, in the
order of `sentences`. The mean of both is a third teacher: judged, like them, on validation.
About 90 minutes on two cores, most of it SmolLM2's answers; less on a GPU, which is used if there
is one.
"""

from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..assets import DATA
from ..corpora import load_reviews
from ..measure import predict
from ..models import load_classifier
from ..training import TextBatches, classification_loss
from . import launch, record
from .distillation_data import copies_of, transfer_texts
from .distillation_teachers import LARGE_EPOCHS, LORA_RATE, describe, large
from .tuning import DEVICE, SEED, tune_, unlabelled

COPIES, TRANSFER_COPIES = 7, 1
PATH = DATA / "answers.safetensors"


def sentences() -> Dataset:
    """What the capstone's students read."""
    texts = []
    for some, count in (
        (list(load_reviews()["train"]["text"]), COPIES),
        (transfer_texts(), TRANSFER_COPIES),
    ):
        texts += some + [copy for own in copies_of(some, count) for copy in own]
    return unlabelled(texts)


def answers(path: Path = PATH) -> dict[str, Tensor]:
    """Of each teacher, and of "both", their mean: logits on `sentences`, (sentences, labels).

    Raises:
        FileNotFoundError: nobody has asked the teachers yet.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run `python -m compresslab.recipes.together_teachers` to make it"
        )
    found = {name: logits.float() for name, logits in load_file(path).items()}
    return found | {"both": sum(found.values()) / len(found)}


def main() -> None:
    reviews, data = load_reviews(), sentences()
    smollm, words = large()
    tune_(
        smollm,
        words,
        classification_loss,
        epochs=LARGE_EPOCHS,
        learning_rate=LORA_RATE,
        device=DEVICE,
    )
    found, judged = {}, []
    for name, (model, tokenizer) in {
        "classifier": load_classifier(device=DEVICE),
        "SmolLM2": (smollm, words),
    }.items():
        found[name] = {
            split: predict(model, TextBatches(some, tokenizer), device=DEVICE)
            for split, some in {"validation": reviews["validation"], "sentences": data}.items()
        }
        own = found[name]["sentences"][: len(reviews["train"])]  # these come first
        judged.append(
            describe(name, model, {"train": own, "validation": found[name]["validation"]})
        )
        print(judged[-1], flush=True)
    both = {s: (found["classifier"][s] + found["SmolLM2"][s]) / 2 for s in found["SmolLM2"]}
    hits = both["validation"].argmax(-1) == torch.tensor(reviews["validation"]["label"])
    save_file({name: own["sentences"].half() for name, own in found.items()}, PATH)
    figures = {
        "sentences": len(data),
        "copies": COPIES,
        "copies of the transfer sets": TRANSFER_COPIES,
        "teachers": judged,
        "both on validation": hits.float().mean().item(),
    }
    print(record("together_teachers", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
