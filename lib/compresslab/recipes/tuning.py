"""What recipes share that train with the course's classifier as teacher. No recipe itself."""

from collections.abc import Callable

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F

from ..corpora import load_reviews, load_transfer
from ..distillation.soft_targets import soft_target_loss
from ..measure import accuracy, compare_accuracy, correct_answers, predict
from ..models import load_classifier
from ..training import Batch, TextBatches, train

SEED = 0
EPOCHS = 2
LEARNING_RATE = 2e-4
TRANSFER = ("products", "tweets", "news")
# Where the capstone's recipes train; all others stay on the processor.
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Loss = Callable[[nn.Module, Batch], Tensor]


def teacher_logits(data: Dataset | None = None) -> Tensor:
    """Of the course's classifier, on the training sentences, or on other `data`."""
    model, tokenizer = load_classifier()
    data = load_reviews()["train"] if data is None else data
    return predict(model, TextBatches(data, tokenizer))


def answers_of(model: nn.Module, tokenizer) -> dict[str, Tensor]:
    """A model's logits on the training and the validation sentences, by the name of the split."""
    reviews = load_reviews()
    return {
        split: predict(model, TextBatches(reviews[split], tokenizer))
        for split in ("train", "validation")
    }


def teacher_answers() -> dict[str, Tensor]:
    """Those of the course's classifier."""
    return answers_of(*load_classifier())


def transfer_accuracy(model: nn.Module, tokenizer) -> dict[str, float]:
    """On the test half of each transfer set."""
    return {
        name: accuracy(correct_answers(model, load_transfer(name)["test"], tokenizer)).value
        for name in TRANSFER
    }


def unlabelled(texts: list[str]) -> Dataset:
    """A dataset of texts whose label, -1, no loss can take for one."""
    return Dataset.from_dict({"text": texts, "label": [-1] * len(texts)})


def logits_of(model: nn.Module, batch: Batch) -> Tensor:
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    return model(**inputs).logits.float()


def distillation(teacher: Tensor) -> Loss:
    """A loss: half the right label, half the teacher's logits, (sentences of the data, labels)."""

    def loss(model: nn.Module, batch: Batch) -> Tensor:
        logits = logits_of(model, batch)
        soft = soft_target_loss(logits, teacher[batch["rows"]])
        return (F.cross_entropy(logits, batch["labels"]) + soft) / 2

    return loss


def tune_(
    model: nn.Module,
    tokenizer,
    loss: Loss,
    *,
    data: Dataset | None = None,
    epochs: int = EPOCHS,
    learning_rate: float = LEARNING_RATE,
    seed: int = SEED,
    **options,
) -> list[dict]:
    """Train what requires a gradient, on the training sentences or other `data`; the history.
    Other options are those of `train`.
    """
    torch.manual_seed(seed)  # dropout
    data = load_reviews()["train"] if data is None else data
    return train(
        model,
        TextBatches(data, tokenizer, shuffle=True, seed=seed),
        loss,
        epochs=epochs,
        learning_rate=learning_rate,
        progress=False,
        **options,
    )


def smallest(runs: list[dict], *, of: Callable[[dict], dict], size: str = "bytes") -> dict:
    """The smallest that lost at most one point on validation, or if all did, the best one.

    Args:
        of: finds in a run the difference in accuracy to the classifier.
        size: name of what is to be small.
    """
    good = [run for run in runs if of(run)["value"] >= -0.01]
    if not good:
        return max(runs, key=lambda run: of(run)["value"])
    return min(good, key=lambda run: run[size])


def lost(model: nn.Module, tokenizer, correct: Tensor) -> dict:
    """The difference in accuracy on validation, with its interval, to the model whose answers were
    `correct`, bool by sentence.
    """
    hits = correct_answers(model.eval(), load_reviews()["validation"], tokenizer)
    return vars(compare_accuracy(correct, hits).difference)


def judge(
    model: nn.Module, tokenizer, data: Dataset, teacher: Tensor, *, device: str = "cpu"
) -> dict:
    """A student on labelled data: accuracy, and how near its answers are to the teacher's logits.

    Returns:
        `accuracy`; `agreement`, the fraction of sentences with the teacher's label; `divergence`,
        the mean KL from the teacher at temperature 1, nats; `surprise`, the mean cross-entropy with
        the labels, nats.
    """
    logits = predict(model, TextBatches(data, tokenizer), device=device)
    labels = torch.tensor(data["label"])
    answers = logits.argmax(-1)
    return {
        "accuracy": (answers == labels).float().mean().item(),
        "agreement": (answers == teacher.argmax(-1)).float().mean().item(),
        "divergence": soft_target_loss(logits, teacher, temperature=1.0).item(),
        "surprise": F.cross_entropy(logits, labels).item(),
    }
