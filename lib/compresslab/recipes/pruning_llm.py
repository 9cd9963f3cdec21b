"""Prune SmolLM2 without training: magnitude, Wanda and SparseGPT at 50 % and at 2:4.

    python -m compresslab.recipes.pruning_llm

Every linear layer of the decoder is pruned; the embedding, which is also the output layer, is not.
Calibration on 32 windows of 512 tokens of the calibration articles; perplexity on the test
articles, once for each variant. The weights lie on a 4-bit grid from the start (see the model's
card), which SparseGPT leaves and the others do not. About 15 minutes on two cores.
"""

import time
from collections.abc import Callable

from torch import nn

from ..corpora import load_articles, token_windows
from ..measure import perplexity
from ..models import load_language_model
from ..pruning.magnitude import magnitude_masks
from ..pruning.masks import apply_masks_, keep_n_of_m
from ..pruning.sparsegpt import collect_hessians, prune_sparsegpt_
from ..pruning.wanda import collect_norms, wanda_masks
from . import launch, record

SEED = 0  # nothing here is random
WINDOW = 512
CALIBRATION_WINDOWS = 32
PATTERN = (2, 4)


def main() -> None:
    articles = load_articles()
    model, tokenizer = load_language_model()
    test = token_windows(articles["test"]["text"], tokenizer, length=WINDOW)
    calibration = token_windows(articles["calibration"]["text"], tokenizer, length=WINDOW)
    calibration = calibration[:CALIBRATION_WINDOWS].split(4)
    runs = [{"method": "dense", "sparsity": "0 %"} | vars(perplexity(model, test))]

    def measure(method: str, sparsity: str, prune_: Callable[[nn.Module], None]) -> None:
        model, _ = load_language_model()
        start = time.perf_counter()
        prune_(model.model)
        seconds = time.perf_counter() - start
        zeros = (model.model.layers[0].mlp.gate_proj.weight == 0).float().mean().item()
        run = {"method": method, "sparsity": sparsity, "seconds": seconds, "zeros": zeros}
        runs.append(run | vars(perplexity(model, test)))
        print(runs[-1], flush=True)

    def magnitude_2_4_(decoder: nn.Module) -> None:
        scores = {n: decoder.get_submodule(n).weight.detach().abs() for n in norms}
        apply_masks_(decoder, {n: keep_n_of_m(s, *PATTERN) for n, s in scores.items()})

    norms = collect_norms(model.model, calibration)
    measure("magnitude", "50 %", lambda m: apply_masks_(m, magnitude_masks(m, 0.5)))
    measure("magnitude", "2:4", magnitude_2_4_)
    measure("Wanda", "50 %", lambda m: apply_masks_(m, wanda_masks(m, norms, 0.5)))
    measure("Wanda", "2:4", lambda m: apply_masks_(m, wanda_masks(m, norms, pattern=PATTERN)))
    hessians = collect_hessians(model.model, calibration)
    measure("SparseGPT", "50 %", lambda m: prune_sparsegpt_(m, hessians, sparsity=0.5))
    measure("SparseGPT", "2:4", lambda m: prune_sparsegpt_(m, hessians, pattern=PATTERN))
    figures = {
        "window": WINDOW,
        "test_tokens": test.numel(),
        "calibration_tokens": CALIBRATION_WINDOWS * WINDOW,
        "runs": runs,
    }
    print(record("pruning_llm", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
