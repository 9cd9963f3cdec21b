"""The library's training loop and losses beside transformers' Trainer and torch: `make bench`.

Ratios are medians within rounds, with their 95 % interval: above 1 the library is faster. Both
loops get the same batches in the same order, from memory, and the same optimizer, learning rate,
clipping and number of steps; the Trainer neither logs, saves nor evaluates. The losses get the same
logits, and run forward and backward.
"""

import copy
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PrinterCallback, Trainer, TrainingArguments

from compresslab.corpora import load_reviews
from compresslab.distillation.attention import attention_loss
from compresslab.distillation.decoupled import decoupled_loss
from compresslab.distillation.hidden import cosine_loss, hidden_loss
from compresslab.distillation.labels import smoothed_loss
from compresslab.distillation.minilm import relation_loss
from compresslab.distillation.sequence import sequence_loss, token_loss
from compresslab.distillation.soft_targets import soft_target_loss
from compresslab.distillation.students import build_student, first_layers
from compresslab.machine import processor
from compresslab.measure import compare_latency
from compresslab.models import load_classifier
from compresslab.training import TextBatches, train

STEPS, ROUNDS = 12, 7
RATE, DECAY = 2e-4, 0.01
T = 2.0


def show(what: str, ours: Callable[[], object], theirs: Callable[[], object]) -> None:
    calls = {"theirs": theirs, "ours": ours}
    # The clock's own mode is for inference; both sides train.
    calls = {name: torch.inference_mode(False)(call) for name, call in calls.items()}
    found = compare_latency(calls, baseline="theirs", rounds=ROUNDS)["ours"]
    ratio = found.speedup
    print(
        f"  {what:64} {ratio.value:6.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        f" {found.milliseconds:9.1f} ms",
        flush=True,
    )


# ---------------------------------------------------------------- the loop


class Ready(torch.utils.data.Dataset):
    """Batches as the items of a dataset, for a loader that takes one at a time."""

    def __init__(self, batches: list[dict[str, Tensor]]):
        self.batches = [{k: v for k, v in batch.items() if k != "rows"} for batch in batches]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return self.batches[i]


class InOrder(Trainer):
    """A Trainer that does not shuffle, and takes its items as they are."""

    def _get_train_sampler(self, *args) -> torch.utils.data.Sampler:
        return torch.utils.data.SequentialSampler(self.train_dataset)


def with_trainer(model: nn.Module, batches: list, folder: str) -> float:
    arguments = TrainingArguments(
        folder,
        per_device_train_batch_size=1,  # of ready batches
        max_steps=len(batches),
        learning_rate=RATE,
        weight_decay=DECAY,
        warmup_steps=max(1, round(0.1 * len(batches))),
        max_grad_norm=1.0,
        optim="adamw_torch",
        use_cpu=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = InOrder(
        model, arguments, data_collator=lambda items: items[0], train_dataset=Ready(batches)
    )
    trainer.remove_callback(PrinterCallback)
    return trainer.train().training_loss


def with_ours(model: nn.Module, batches: list) -> float:
    history = train(model, batches, learning_rate=RATE, weight_decay=DECAY, progress=False)
    return history[-1]["loss"]


def bench_loop(layers: int) -> None:
    pretrained, tokenizer = load_classifier(adapter=None)
    data = load_reviews()["train"].select(range(32 * STEPS))
    batches = list(TextBatches(data, tokenizer, shuffle=True))
    model = build_student(pretrained, first_layers(6, layers))
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> float:
            return with_ours(copy.deepcopy(model), batches)

        def theirs() -> float:
            return with_trainer(copy.deepcopy(model), batches, folder)

        show(f"{STEPS} steps of 32 sentences, {layers} layers", ours, theirs)
        losses = []
        for call in (ours, theirs):
            torch.manual_seed(0)  # dropout
            losses.append(call())
    print(f"    mean loss {losses[0]:.4f}, theirs {losses[1]:.4f}")


# ---------------------------------------------------------------- the losses


def step(loss: Callable[..., Tensor], *tensors: Tensor) -> Callable[[], None]:
    """Forward and backward, with respect to the first of the tensors."""
    student = tensors[0].clone().requires_grad_()

    def run() -> None:
        student.grad = None
        loss(student, *tensors[1:]).backward()

    return run


def soft_torch(student: Tensor, teacher: Tensor) -> Tensor:
    log_q, log_p = ((x / T).log_softmax(-1) for x in (student, teacher))
    return T**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def bench_losses() -> None:
    print("\nLosses, forward and backward, against torch's")
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    for classes in (2, 1000):
        pair, labels = (normal(32, classes), normal(32, classes)), torch.arange(32) % classes
        show(
            f"soft targets, 32 × {classes:,}: kl_div",
            step(lambda s, t: soft_target_loss(s, t, temperature=T), *pair),
            step(soft_torch, *pair),
        )
        show(
            f"smoothed labels, 32 × {classes:,}: cross_entropy(label_smoothing=0.1)",
            step(lambda s, y: smoothed_loss(s, y, smoothing=0.1), pair[0], labels),
            step(lambda s, y: F.cross_entropy(s, y, label_smoothing=0.1), pair[0], labels),
        )
        show(
            f"decoupled, 32 × {classes:,}: plain soft targets by kl_div",
            step(lambda s, t, y: decoupled_loss(s, t, y, temperature=T), *pair, labels),
            step(soft_torch, *pair),
        )
    states, mask = (normal(32, 32, 384), normal(32, 32, 384)), torch.ones(32, 32)
    show(
        "hidden states, 32 × 32 × 384: mse_loss",
        step(lambda s, t: hidden_loss(s, t, mask), *states),
        step(F.mse_loss, *states),
    )
    ones = torch.ones(32 * 32)
    show(
        "their cosine: cosine_embedding_loss",
        step(lambda s, t: cosine_loss(s, t, mask), *states),
        step(lambda s, t: F.cosine_embedding_loss(s.flatten(0, 1), t.flatten(0, 1), ones), *states),
    )
    scores = normal(32, 12, 32, 32), normal(32, 12, 32, 32)
    show(
        "attention scores, 32 × 12 × 32 × 32: mse_loss",
        step(lambda s, t: attention_loss(s, t, mask), *scores),
        step(F.mse_loss, *scores),
    )
    show(
        "relations of the same shape: kl_div",
        step(lambda s, t: relation_loss(s, t, mask), *scores),
        step(
            lambda s, t: F.kl_div(
                s.log_softmax(-1).flatten(0, 2), t.log_softmax(-1).flatten(0, 2),
                reduction="batchmean", log_target=True,
            ),
            *scores,
        ),
    )  # fmt: skip
    ids, mask = torch.randint(49_152, (1, 128), generator=generator), torch.ones(1, 128)
    tokens = normal(1, 128, 49_152), normal(1, 128, 49_152)
    show(
        "token level, 128 × 49,152: kl_div",
        step(lambda s, t: token_loss(s, t, mask, temperature=T), *tokens),
        step(lambda s, t: soft_torch(s.flatten(0, 1), t.flatten(0, 1)), *tokens),
    )
    show(
        "sequence level, 128 × 49,152: cross_entropy",
        step(lambda s: sequence_loss(s, ids, mask), tokens[0]),
        step(lambda s: F.cross_entropy(s[0, :-1], ids[0, 1:]), tokens[0]),
    )


def main() -> None:
    torch.manual_seed(0)
    print(f"{processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print("\nThe training loop, against transformers' Trainer")
    for layers in (6, 2):
        bench_loop(layers)
    bench_losses()


if __name__ == "__main__":
    main()
