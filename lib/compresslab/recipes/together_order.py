"""The order of things: one method after another, in three orders, and what each step is worth.

    python -m compresslab.recipes.together_order

The classifier teaches what is left of it. Six steps, each followed by two epochs of tuning: three
layers of six, half of the heads and a quarter of the neurons, 8,000 tokens, a table of rank 128,
weights of 3 bits with learned steps (LSQ), and tables that share 16 numbers. After each there is a
file, which is read again and judged on validation; how many bytes it would have without entropy
coding is the last step's share. All files but the dense one have numbers of 2 bytes at most.

Four chains, with equal epochs:

    in order           what is left is cut first, then rounded, and training goes on through the
                       rounding
    product            the same, with a product-quantized table in place of the factorized one
    low bits first     whoever has a model of few bits already makes it smaller: it becomes float
                       again, is cut and tuned, and rounded once more without training
    cut last           layers, heads and neurons go from a model that has been rounded and clustered
                       because it is still too slow; its quantizers stay on. Most epochs are spent
                       on layers that do not stay

Of each last file it is said how many codes are those of the model that was rounded before any cut.
The last file of the first chain is measured once on test. About an hour and a half on two cores,
less on a GPU, which is used if there is one.
"""

import copy
import json
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedTokenizerBase

from .. import archive
from ..corpora import load_reviews
from ..distillation.students import first_layers
from ..export import export, load, round_to_half_, uncoded
from ..factorization.embedding import factorize_embedding_
from ..inference import fuse_bert_, trace
from ..layers import bert_layers, find_linears, own_layers, replace_
from ..measure import correct_answers
from ..models import load_classifier
from ..pruning.depth import keep_layers
from ..quantization.affine import Quantized, quantize_tensor
from ..quantization.calibration import mse
from ..quantization.int8 import Int8Linear
from ..quantization.qat import LSQ, add_quantizers_, finish_
from ..scoreboard import latencies, row
from ..sharing.codebooks import cluster
from ..sharing.product_quantization import (
    PQEmbedding,
    ProductQuantized,
    product_quantize_embedding_,
)
from ..training import TextBatches
from . import in_parallel, launch, record
from .factorization_embeddings import NAME, token_counts, trim_
from .pruning_structured import SENTENCES, without_heads, without_neurons
from .tuning import DEVICE, EPOCHS, LEARNING_RATE, SEED, distillation, lost, teacher_logits, tune_

LAYERS = 3
HEADS, NEURONS = 1 / 2, 3 / 4  # fractions that go
TOKENS, RANK = 8_000, 128
PRODUCT = {"width": 6, "bits": 8}  # a row takes 64 bytes, as at rank 128 with clusters
BITS, CLUSTER_BITS = 3, 4

CHAINS = {
    "in order": ("shallow", "narrow", "trimmed", "factorized", "low bits", "clustered"),
    "product": ("shallow", "narrow", "trimmed", "product", "low bits", "clustered"),
    "low bits first": (
        *("low bits", "float again", "shallow", "narrow", "trimmed", "factorized", "clustered"),
        "rounded",
    ),
    "cut last": ("trimmed", "factorized", "low bits", "clustered", "shallow", "narrow"),
}
UNTRAINED = ("float again", "rounded")

Pair = tuple[nn.Module, PreTrainedTokenizerBase]


# ---------------------------------------------------------------- the steps


def shallow(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    return keep_layers(model, first_layers(len(bert_layers(model)), LAYERS)), tokenizer


def narrow(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """A layer of another shape needs another quantizer: it starts anew from the rounded weights."""
    quantized = take_quantizers_off_(model)
    batches = TextBatches(load_reviews()["train"].select(range(SENTENCES)), tokenizer)
    model = without_neurons(without_heads(model, HEADS, batches), NEURONS, batches)
    return low_bits(model, tokenizer) if quantized else (model, tokenizer)


def trimmed(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    tokenizer, _ = trim_(model, tokenizer, token_counts(tokenizer), TOKENS)
    return model, tokenizer


def factorized(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    factorize_embedding_(model, NAME, RANK, counts=token_counts(tokenizer))
    return model, tokenizer


def product(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """Codes and codebooks stay what they are, and the rest of the model is tuned to them."""
    generator = torch.Generator().manual_seed(SEED)
    product_quantize_embedding_(model, NAME, generator=generator, **PRODUCT)
    return model, tokenizer


def low_bits(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    add_quantizers_(model.bert, lambda weight: LSQ(weight, bits=BITS))
    return model, tokenizer


def clustered(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """All tables, each with one codebook, which is a product quantization of single numbers."""
    for name, table in own_layers(model, nn.Embedding).items():
        found = cluster(table.weight, bits=CLUSTER_BITS)
        weight = ProductQuantized(found.codes, found.codebook[..., None], CLUSTER_BITS)
        replace_(model, name, PQEmbedding(weight))
    return model, tokenizer


def float_again(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    take_quantizers_off_(model)
    return model, tokenizer


def rounded(model: nn.Module, tokenizer: PreTrainedTokenizerBase) -> Pair:
    """To a grid of as many bits, by the least squared error of each row: nothing is learned."""
    for name, linear in find_linears(model.bert).items():
        weight = quantize_tensor(linear.weight, bits=BITS, symmetric=True, choose=mse)
        replace_(model.bert, name, Int8Linear(weight, linear.bias))
    return model, tokenizer


STEPS = {
    step.__name__.replace("_", " "): step
    for step in (
        *(shallow, narrow, trimmed, factorized, product, low_bits, clustered, float_again),
        rounded,
    )
}


def take_quantizers_off_(model: nn.Module) -> bool:
    """The weights become floats with the rounded values. Whether there was a quantizer."""
    linears = [m for m in find_linears(model).values() if parametrize.is_parametrized(m)]
    for linear in linears:
        parametrize.remove_parametrizations(linear, "weight")
    return bool(linears)


# ---------------------------------------------------------------- a chain


def stored(model: nn.Module) -> nn.Module:
    """A copy for a file: weights that have a quantizer as integers, which compute with 8-bit
    inputs; all other numbers as float16 holds them.
    """
    model = copy.deepcopy(model).eval()
    if any(parametrize.is_parametrized(m) for m in find_linears(model).values()):
        finish_(model.bert, integers)
    if isinstance(bert_layers(model)[0].output.dense, Int8Linear):
        fuse_bert_(model)
    round_to_half_(model)
    return model


def integers(weight: Quantized, bias: Tensor | None) -> Int8Linear:
    """A layer from the codes of LSQ, which count from its zero point."""
    codes = (weight.codes.int() - weight.zero_point).to(torch.int8)
    zero = torch.zeros_like(weight.zero_point)
    return Int8Linear(Quantized(codes, weight.scale, zero, weight.bits), bias)


def run(chain: str, teacher: Tensor, correct: Tensor, folder: Path) -> list[dict]:
    """Go through a chain, and write a file after each step.

    Returns:
        for each step, the difference in accuracy "before" tuning, the "seconds" of the processor
        for step and tuning, and what `judged` finds in the file.
    """
    (model, tokenizer), found = load_classifier(), []
    for step in CHAINS[chain]:
        start, epochs = time.process_time(), 0
        model, tokenizer = STEPS[step](model, tokenizer)
        seconds = time.process_time() - start
        before = lost(stored(model), tokenizer, correct)
        if step not in UNTRAINED:
            start, epochs = time.process_time(), EPOCHS
            tune(model, tokenizer, teacher)
            seconds += time.process_time() - start
        path = path_of(folder, chain, step)
        export(stored(model), tokenizer, path)
        about = {"chain": chain, "step": step, "epochs": epochs, "seconds": seconds}
        found.append(about | {"before": before} | judged(path, correct))
        print(json.dumps(found[-1]), flush=True)
    return found


def tune(model: nn.Module, tokenizer: PreTrainedTokenizerBase, teacher: Tensor) -> None:
    """Train all weights, and the steps of quantizers if there are any, by the teacher's logits."""
    model.requires_grad_(True)
    quantized = any(parametrize.is_parametrized(m) for m in find_linears(model).values())
    tune_(
        model,
        tokenizer,
        distillation(teacher.to(DEVICE)),
        epochs=EPOCHS,
        own_rates={"step": LEARNING_RATE} if quantized else None,
        device=DEVICE,
    )
    model.cpu()


def judged(path: Path, correct: Tensor) -> dict:
    """A file: its "bytes", and "uncoded"; how many "numbers" it has, codes and scales among them;
    and the difference in accuracy to the classifier, as read from it.
    """
    whole = archive.read(path.read_bytes(), str(path))
    parts = zip(whole.tensors[1:], whole.sizes[1:], strict=True)  # the first one is text
    return {
        "bytes": path.stat().st_size,
        "uncoded": uncoded(path),
        "numbers": sum(tensor.numel() for tensor, size in parts if size),
        "difference": lost(*load(path), correct),
    }


def path_of(folder: Path, chain: str, step: str) -> Path:
    return folder / f"{chain}, {step}.clab"


def codes_kept(before: Path, after: Path) -> float:
    """The share of the codes of `after`, in linear layers, that are what they are in `before`,
    which has more layers, heads and neurons. Each row (or column, if those are fewer) is compared
    with the one of the same layer that it has most codes in common with.
    """
    old, new = (layers_of_codes(path) for path in (before, after))
    equal = count = 0
    for i, layer in zip(first_layers(len(old), len(new)), new, strict=True):
        for name, codes in layer.items():
            larger = old[i][name]
            if codes.shape[1] != larger.shape[1]:
                codes, larger = codes.T, larger.T
            equal += sum(int((larger == row).sum(1).max()) for row in codes)
            count += codes.numel()
    return equal / count


def layers_of_codes(path: Path) -> list[dict[str, Tensor]]:
    model, _ = load(path)
    return [
        {name: m.codes for name, m in layer.named_modules() if isinstance(m, Int8Linear)}
        for layer in bert_layers(model)
    ]


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, words = load_classifier()
    correct = correct_answers(dense, reviews["validation"], words)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = {"teacher": teacher, "correct": correct, "folder": folder}
        tasks = [{"chain": chain} | shared for chain in reversed(CHAINS)]  # the longest first
        runs, starts = [step for chain in in_parallel(run, tasks) for step in chain], []
        for start, model in (("dense", dense), ("half", stored(dense))):
            path = path_of(folder, "in order", start)
            export(model, words, path)
            starts.append({"chain": "in order", "step": start} | judged(path, correct))
        runs = starts + runs
        for step in runs:  # when nothing else runs
            if step["chain"] == "in order" or step["step"] == CHAINS[step["chain"]][-1]:
                model, tokenizer = load(path_of(folder, step["chain"], step["step"]))
                step["latency"] = latencies(
                    model, dense, reviews["validation"], tokenizer, dense_tokenizer=words
                )
        first = path_of(folder, "low bits first", "low bits")
        for chain, steps in CHAINS.items():
            (last,) = (s for s in runs if (s["chain"], s["step"]) == (chain, steps[-1]))
            last["codes_kept"] = codes_kept(first, path_of(folder, chain, steps[-1]))
        (best,) = (s for s in runs if (s["chain"], s["step"]) == ("in order", "clustered"))
        model, tokenizer = load(path_of(folder, "in order", "clustered"))
        result = row(
            "step by step",
            lecture=8,
            model=model,
            dense=dense,
            data=reviews["test"],
            tokenizer=tokenizer,
            parameters=best["numbers"],
            note=f"cut, then {BITS} bits; everything in one file",
            dense_tokenizer=words,
            timed=trace(model),
        ) | {"bytes": best["bytes"]}
    figures = {"epochs": EPOCHS, "learning_rate": LEARNING_RATE, "runs": runs}
    print(record("together_order", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
