"""Round what flows through a model, not its weights alone: activations in 8 bits, and the KV cache.

    python -m compresslab.recipes.quantization_activations

SmolLM2 with inputs and weights of all linear layers in 8 bits, calibrated on 8 windows of the
calibration articles: one range for a whole tensor, without and with SmoothQuant, a scale for each
token, and LLM.int8(). Then 3-bit weights: with 1 % of the input channels exact, the ablation behind
AWQ; and HQQ, with plain rounding in the two layers that read the largest numbers. Then its KV cache
in few bits: of every window the first 256 tokens are read at once, the others 32 at a time. All
by perplexity on test articles. Last the classifier in int8, with four ways of calibration, on
validation, and its row of the scoreboard. About 25 minutes on two cores.
"""

import copy
import json
import math
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from ..corpora import load_articles, load_reviews, token_windows
from ..layers import find_linears
from ..measure import accuracy, compare_accuracy, correct_answers, count_parameters, perplexity
from ..models import load_classifier, load_language_model
from ..quantization.affine import fake_quantize, min_max
from ..quantization.awq import keep_salient
from ..quantization.calibration import collect_ranges, kl, mse, percentile
from ..quantization.hqq import hqq
from ..quantization.int8 import fuse_bert_layers_, quantize_linears_int8_
from ..quantization.kv_cache import QuantizedCache
from ..quantization.llm_int8 import llm_int8_
from ..quantization.outliers import collect_absmax, collect_means
from ..quantization.smoothquant import smooth_
from ..scoreboard import row
from ..training import TextBatches
from . import launch, record
from .quantization_latency import SENTENCES, ours

SEED = 0  # of the random channels; nothing else is random
WINDOW = 512
CALIBRATION_WINDOWS, TEST_WINDOWS = 8, 16
EXTREME = ("layers.11.mlp.down_proj", "layers.28.mlp.down_proj")  # they read numbers above 1,000
PREFILL, CHUNK = 256, 32
CALIBRATIONS = {"min-max": min_max, "percentile": percentile, "MSE": mse, "KL": kl}


def language_model(test: Tensor, calibration: Tensor) -> tuple[list[dict], list[dict]]:
    """Perplexity in 8 bits throughout, and with 1 % of the channels kept."""
    dense, _ = load_language_model()
    batches = calibration.split(4)
    inputs = [{"input_ids": b, "attention_mask": torch.ones_like(b)} for b in batches]

    def measure(change_: Callable[[nn.Module], None], **what) -> dict:
        model = copy.deepcopy(dense)
        change_(model.model)
        run = what | vars(perplexity(model, test))
        print(json.dumps(run), flush=True)
        return run

    def static_(decoder: nn.Module) -> None:
        quantize_linears_int8_(decoder, collect_ranges(decoder, inputs))

    def smooth_static_(decoder: nn.Module, **options) -> None:
        smooth_(decoder, collect_absmax(decoder, batches), **options)
        static_(decoder)

    runs = [
        measure(lambda m: None, method="float32"),
        measure(static_, method="a range a tensor"),
        measure(smooth_static_, method="SmoothQuant"),
        measure(lambda m: smooth_static_(m, everywhere=True), method="SmoothQuant, all inputs"),
        measure(
            lambda m: quantize_linears_int8_(m, per_token=True, bits=8), method="a scale a token"
        ),
        measure(llm_int8_, method="LLM.int8()"),
    ]
    means = collect_means(dense.model, batches)
    generator = torch.Generator().manual_seed(SEED)
    scores = {
        "none": lambda name, w: w[0],
        "largest activations": lambda name, w: means[name],
        "largest weights": lambda name, w: w.norm(dim=0),
        "random": lambda name, w: torch.rand(w.shape[1], generator=generator),
    }
    kept = []
    for name, score in scores.items():
        fraction = 0.0 if name == "none" else 0.01

        def round_(decoder: nn.Module, score=score, fraction=fraction) -> None:
            for layer, linear in find_linears(decoder).items():
                weight = linear.weight.detach()
                linear.weight.data = keep_salient(
                    weight, score(layer, weight), fraction, bits=3, group_size=64
                )

        kept.append(measure(round_, kept=name))
    for name, left_out in (("HQQ", ()), ("HQQ, but rounding in two layers", EXTREME)):
        kept.append(measure(lambda m, out=left_out: round_with_hqq_(m, out), kept=name))
    return runs, kept


def round_with_hqq_(decoder: nn.Module, left_out: Collection[str]) -> None:
    """Every weight in 3 bits by HQQ, but some layers by plain rounding."""
    for name, linear in find_linears(decoder).items():
        weight = linear.weight.detach()
        if name in left_out:
            linear.weight.data = fake_quantize(weight, bits=3, granularity=64)
        else:
            linear.weight.data = hqq(weight, bits=3, group_size=64).dequantize()


@torch.inference_mode()
def cache_losses(model: nn.Module, windows: Tensor, make: Callable) -> tuple[Tensor, float]:
    """Mean loss of each window's later tokens, read through a cache; the cache's bytes a token."""
    losses = []
    for ids in windows.split(8):
        cache, logits = make(), []
        model.model(input_ids=ids[:, :PREFILL], past_key_values=cache)
        for part in ids[:, PREFILL:].split(CHUNK, 1):
            logits.append(model(input_ids=part, past_key_values=cache).logits)
        logits = torch.cat(logits, 1)[:, :-1].transpose(1, 2)
        losses.append(F.cross_entropy(logits, ids[:, PREFILL + 1 :], reduction="none").mean(1))
    if isinstance(cache, QuantizedCache):
        size = cache.nbytes
    else:
        size = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return torch.cat(losses), size / ids.numel()


def kv_cache(test: Tensor) -> list[dict]:
    """Perplexity against the bits of the cache, as a ratio to the exact one, window by window."""
    model, _ = load_language_model()
    exact, size = cache_losses(model, test, DynamicCache)
    runs = [{"bits": 32, "keys": None, "bytes": size, "value": math.exp(exact.mean())}]
    for bits in (8, 4, 3, 2):
        for keys in ("channel", "token"):
            make = lambda: QuantizedCache(bits=bits, keys=keys, window=CHUNK)  # noqa: B023, E731
            losses, size = cache_losses(model, test, make)
            more = losses - exact
            mean, error = more.mean().item(), more.std().item() / math.sqrt(len(more))
            ratio = [math.exp(mean + z * error) for z in (0, -1.96, 1.96)]
            run = {"bits": bits, "keys": keys, "bytes": size}
            runs.append(run | {"value": math.exp(losses.mean()), "ratio": ratio})
            print(json.dumps(runs[-1]), flush=True)
    return runs


def main() -> None:
    articles, (_, tokenizer) = load_articles(), load_language_model()
    test, calibration = (
        token_windows(articles[split]["text"], tokenizer, length=WINDOW)[:count]
        for split, count in (("test", TEST_WINDOWS), ("calibration", CALIBRATION_WINDOWS))
    )
    activations, kept = language_model(test, calibration)
    cache = kv_cache(test)

    reviews, (dense, tokenizer) = load_reviews(), load_classifier()
    batches = TextBatches(reviews["train"].select(range(SENTENCES)), tokenizer, batch_size=1)
    correct = correct_answers(dense, reviews["validation"], tokenizer)

    models = {
        "dynamic": ours(dense, joined=False),
        "dynamic, a scale a token": ours(dense, joined=False, per_token=True, bits=8),
    }
    for name, choose in CALIBRATIONS.items():
        ranges = collect_ranges(dense, batches, choose=choose)
        models[f"static, {name}"] = ours(dense, ranges, joined=False)
    classifier = []
    for name, model in models.items():
        hits = correct_answers(model, reviews["validation"], tokenizer)
        lost = compare_accuracy(correct, hits).difference
        classifier.append({"method": name, "difference": vars(lost)} | vars(accuracy(hits)))
        print(json.dumps(classifier[-1]), flush=True)
    fuse_bert_layers_(models["dynamic"])
    result = row(
        "int8, dynamic",
        lecture=3,
        model=models["dynamic"],
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        parameters=count_parameters(dense),
        note="no training; products of integers",
    )
    figures = {
        "window": WINDOW,
        "test_tokens": test.numel(),
        "calibration_tokens": calibration.numel(),
        "activations": activations,
        "kept": kept,
        "cache": cache,
        "prefill": PREFILL,
        "chunk": CHUNK,
        "classifier": classifier,
        "dense": vars(accuracy(correct)),
    }
    print(record("quantization_activations", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
