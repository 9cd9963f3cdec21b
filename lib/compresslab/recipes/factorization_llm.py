"""Cut SmolLM2's layers to low rank, without training: perplexity by four methods.

    python -m compresslab.recipes.factorization_llm

All linear layers of the decoder; the embedding, which is also the output layer, stays. Statistics
from 16 windows of 512 tokens of the calibration articles, perplexity on the first 16 windows of the
test articles. The weights lie on a 4-bit grid from the start (see the model's card), which factors
leave. About 15 minutes on two cores.
"""

import json
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..factorization.weighted_svd import collect_fisher
from ..layers import find_linears
from ..measure import bytes_on_disk, perplexity
from ..models import load_language_model
from ..pruning.sparsegpt import collect_hessians
from ..quantization.outliers import collect_means
from . import in_parallel, launch, record
from .factorization_oneshot import (
    METHODS,
    choose_ranks,
    low_rank_,
    numbers,
    whitened_spectra,
)
from .quantization_llm import articles

SEED = 0  # nothing here is random
CALIBRATION_WINDOWS, TEST_WINDOWS = 16, 16
LEFT = (0.8, 0.6)


def next_token_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean cross-entropy of every token but the first."""
    ids = batch["input_ids"]
    return F.cross_entropy(model(input_ids=ids).logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def collect(path: Path) -> None:
    """Save what the methods have to know of the decoder's layers."""
    model, _ = load_language_model()
    windows = articles("calibration", CALIBRATION_WINDOWS)
    names = [f"model.{name}" for name in find_linears(model.model)]
    fisher = collect_fisher(model, [{"input_ids": windows}], next_token_loss, names)
    found = {
        "fisher": {name.removeprefix("model."): values for name, values in fisher.items()},
        "means": collect_means(model.model, windows.split(4)),
        "hessians": collect_hessians(model.model, windows.split(4)),
    }
    found["spectra"] = whitened_spectra(model.model, found["hessians"])
    torch.save(found, path)


def run(path: Path, method: str, allocation: str, left: float) -> dict:
    model, _ = load_language_model()
    found, whole = torch.load(path, mmap=True), numbers(model.model)
    low_rank_(model.model, method, choose_ranks(model.model, left, allocation, found), found)
    return {
        "method": method,
        "allocation": allocation,
        "asked": left,
        "left": numbers(model.model) / whole,
        "bytes": bytes_on_disk(model.model.layers),
    } | vars(perplexity(model, articles("test", TEST_WINDOWS)))


def main() -> None:
    choices = [(method, "uniform", left) for method in METHODS for left in LEFT]
    choices += [("whitened", a, 0.8) for a in ("by budget", "by budget, relative")]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.pt"
        list(in_parallel(collect, [{"path": path}]))
        tasks = [
            {"path": path, "method": method, "allocation": allocation, "left": left}
            for method, allocation, left in choices
        ]
        for result in in_parallel(run, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
    model, _ = load_language_model()
    test = articles("test", TEST_WINDOWS)
    dense = {"bytes": bytes_on_disk(model.model.layers)} | vars(perplexity(model, test))
    figures = {
        "test_tokens": test.numel(),
        "calibration_tokens": articles("calibration", CALIBRATION_WINDOWS).numel(),
        "dense": dense,
        "runs": runs,
    }
    print(record("factorization_llm", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
