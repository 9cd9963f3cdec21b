"""One small training loop, and the batches that it and every measure run on.

batches = TextBatches(reviews["train"], tokenizer, shuffle=True)
history = train(model, batches, classification_loss, epochs=3, learning_rate=5e-4)
"""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import PreTrainedTokenizerBase

Batch = dict[str, Tensor]


class TextBatches:
    """Batches of sentences of similar length, so that little of a batch is padding.

    Iterating gives dictionaries of `input_ids` and `attention_mask` (batch, time) and `labels`
    (batch,), all int64, and `rows` (batch,), where in the dataset the sentences are, so that what
    was computed once for all of them can be looked up. Unshuffled, the order is by length, longest
    first; `index` maps it back: row i of the concatenated batches is row `index[i]` of the dataset.

    Args:
        data: a dataset with columns `text` and `label`.
        batch_size: sentences a batch; the last one may be smaller.
        shuffle: a new order at every pass, the same for the same seed.
        max_length: tokens a sentence is cut to.
    """

    def __init__(
        self,
        data: Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        batch_size: int = 32,
        shuffle: bool = False,
        seed: int = 0,
        max_length: int = 128,
    ):
        if len(data) == 0:
            raise ValueError("data has no rows")
        self.tokens = tokenizer(list(data["text"]), truncation=True, max_length=max_length)[
            "input_ids"
        ]
        self.labels = list(data["label"])
        self.pad = tokenizer.pad_token_id
        self.batch_size, self.shuffle = batch_size, shuffle
        self.index = sorted(range(len(self.tokens)), key=lambda i: -len(self.tokens[i]))
        self.random = random.Random(seed)

    def __len__(self) -> int:
        return math.ceil(len(self.tokens) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        index = list(range(len(self.tokens))) if self.shuffle else self.index
        if self.shuffle:
            # Sorted within pools of 16 batches: short padding, and still another mix every pass.
            self.random.shuffle(index)
            pool = 16 * self.batch_size
            index = [
                i
                for start in range(0, len(index), pool)
                for i in sorted(index[start : start + pool], key=lambda i: len(self.tokens[i]))
            ]
        batches = [index[i : i + self.batch_size] for i in range(0, len(index), self.batch_size)]
        if self.shuffle:
            self.random.shuffle(batches)
        return map(self._pad, batches)

    def _pad(self, rows: list[int]) -> Batch:
        length = max(len(self.tokens[i]) for i in rows)
        ids = torch.full((len(rows), length), self.pad)
        mask = torch.zeros((len(rows), length), dtype=torch.int64)
        for row, i in enumerate(rows):
            ids[row, : len(self.tokens[i])] = torch.tensor(self.tokens[i])
            mask[row, : len(self.tokens[i])] = 1
        labels = torch.tensor([self.labels[i] for i in rows])
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "labels": labels,
            "rows": torch.tensor(rows),
        }


def classification_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross-entropy of a classifier's logits against `batch["labels"]`."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(logits.float(), batch["labels"])


def train(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Callable[[nn.Module, Batch], Tensor] = classification_loss,
    *,
    epochs: int = 1,
    learning_rate: float = 5e-5,
    own_rates: Mapping[str, float] | None = None,
    weight_decay: float = 0.01,
    warmup: float = 0.1,
    clip: float = 1.0,
    after_step: Callable[[int, int], None] | None = None,
    validate: Callable[[nn.Module], dict] | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    progress: bool = True,
) -> list[dict]:
    """Train the parameters of `model` that require a gradient, in place; give back the history.

    AdamW; the learning rate rises linearly over the `warmup` fraction of the steps and falls
    linearly to zero; gradients are clipped to norm `clip`. The model is left on `device`, in
    evaluation mode.

    Args:
        batches: iterated once an epoch; has a length.
        own_rates: last part of a parameter's name -> a learning rate of its own, without weight
            decay, for what is no weight: {"scores": 1e-2} for movement pruning.
        after_step: called with (step, total steps), step counting from 1: the place for a mask
            or a schedule.
        validate: called with the model, in evaluation mode, after every epoch; its result joins
            that epoch's entry.
        dtype: of the forward pass, by autocast; weights and optimizer stay as they are.

    Returns:
        one dictionary an epoch, with `epoch`, `loss` (mean of its steps) and what `validate` gave.

    Raises:
        ValueError: nothing to train, `own_rates` names nothing that trains, or the loss is not a
            finite number any more.
    """
    model.to(device)
    device = torch.device(device)
    groups = _groups(model, own_rates or {})
    parameters = [p for group in groups for p in group["params"]]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, weight_decay=weight_decay)
    total = epochs * len(batches)
    rise = max(1, round(warmup * total))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (total - step) / max(1, total - rise + 1))
    )
    optimizer.zero_grad(set_to_none=True)  # what an earlier backward pass may have left
    history, step = [], 0
    with tqdm(total=total, disable=not progress, unit="step") as bar:
        for epoch in range(1, epochs + 1):
            model.train()
            losses = []
            for batch in batches:
                batch = {name: tensor.to(device) for name, tensor in batch.items()}
                with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                    value = loss(model, batch)
                if not torch.isfinite(value):
                    raise ValueError(
                        f"the loss is {value.item()} at step {step + 1}: lower the learning rate"
                    )
                value.backward()
                nn.utils.clip_grad_norm_(parameters, clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                schedule.step()
                step += 1
                losses.append(value.item())
                if after_step is not None:
                    after_step(step, total)
                bar.update()
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
            model.eval()
            entry = {"epoch": epoch, "loss": sum(losses) / len(losses)}
            if validate is not None:
                entry |= validate(model)
            history.append(entry)
    return history


def _groups(model: nn.Module, own_rates: Mapping[str, float]) -> list[dict]:
    """What trains, as the optimizer's groups: first the plain one, then one for each own rate."""
    plain = {"params": []}
    own = {
        last: {"params": [], "lr": rate, "weight_decay": 0.0} for last, rate in own_rates.items()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own.get(name.rpartition(".")[2], plain)["params"].append(parameter)
    for last, group in own.items():
        if not group["params"]:
            raise ValueError(f"own_rates names {last!r}, no parameter that requires a gradient")
    groups = [group for group in (plain, *own.values()) if group["params"]]
    if not groups:
        raise ValueError("model has no parameter that requires a gradient")
    return groups
