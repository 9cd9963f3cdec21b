"""Give the classifier's weights shared values, without training: codebooks, products, hashes.

    python -m compresslab.recipes.sharing_oneshot

Linear layers of the encoder: codebooks of 2 to 8 bits from three starts, for a tensor, a row and a
group of 64, beside the affine quantizer with scales for the same; hashed matrices. The embedding
table: product quantization of several widths, beside the affine quantizer by row. Each by squared
error, bytes and accuracy on validation. Then both together: the scoreboard gets the smallest that
loses at most one point on validation. About 15 minutes on two cores.
"""

import json
from collections.abc import Callable
from operator import itemgetter

import torch
from torch import Tensor, nn

from ..corpora import load_reviews
from ..layers import find_linears
from ..measure import accuracy, bytes_on_disk, compare_accuracy, correct_answers, count_parameters
from ..models import load_classifier
from ..quantization.affine import quantize_tensor
from ..quantization.linear import PackedLinear
from ..scoreboard import row
from ..sharing.codebooks import CodebookLinear, cluster, cluster_linears_
from ..sharing.hashing import fit_vector, hashed_matrix
from ..sharing.product_quantization import (
    PQLinear,
    product_quantize,
    product_quantize_embedding_,
)
from . import in_parallel, launch, record
from .factorization_embeddings import NAME
from .tuning import SEED, smallest

BITS = (2, 3, 4, 5, 6, 8)
GRANULARITIES = ("tensor", "channel", 64)
CODEBOOKS = [
    *({"start": start, "granularity": "tensor"} for start in ("linear", "random", "density")),
    *({"start": "linear", "granularity": granularity} for granularity in GRANULARITIES[1:]),
]
FRACTIONS = (0.5, 0.25, 0.125, 0.0625)  # of the numbers that a hashed matrix keeps
WIDTHS = (2, 4, 8, 16)  # of the vectors, 8 bits each
TABLE_BITS = (8, 4, 3, 2)
FILES = [(bits, width) for bits in (5, 4, 3) for width in (2, 4, 8)]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(SEED)


def size_of(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in layer.state_dict().values())


def clustered(weight: Tensor, **options) -> tuple[Tensor, int]:
    """With a codebook, and the bytes of codes and codebook."""
    found = cluster(weight, generator=generator(), **options)
    return found.reconstruct(), size_of(CodebookLinear(found))


def rounded(weight: Tensor, **options) -> tuple[Tensor, int]:
    """By the affine quantizer, and the bytes of its codes, scales and zero points."""
    found = quantize_tensor(weight, **options)
    return found.dequantize(), size_of(PackedLinear(found))


def hashed(weight: Tensor, *, fraction: float) -> tuple[Tensor, int]:
    """Each entry one of a few numbers, and their bytes."""
    vector = fit_vector(weight, round(fraction * weight.numel()))
    return hashed_matrix(vector, tuple(weight.shape)), vector.nbytes


def product(weight: Tensor, *, width: int) -> tuple[Tensor, int]:
    """By vectors of a row, and the bytes of codes and codebooks."""
    found = product_quantize(weight, width=width, generator=generator())
    return found.reconstruct(), size_of(PQLinear(found))


KINDS: dict[str, Callable[..., tuple[Tensor, int]]] = {
    "codebook": clustered,
    "affine": rounded,
    "hashed": hashed,
    "product": product,
}


def run(kind: str, place: str, options: dict) -> dict:
    """One way for the matrices of one place, "encoder" or "table"."""
    model, tokenizer = load_classifier()
    found = find_linears(model.bert.encoder).values()
    modules = found if place == "encoder" else [model.get_submodule(NAME)]
    error = energy = size = 0
    for module in modules:
        weight = module.weight.detach()
        other, stored = KINDS[kind](weight, **options)
        error += (weight - other).square().sum().item()
        energy += weight.square().sum().item()
        size += stored
        module.weight.data = other
    hits = correct_answers(model, load_reviews()["validation"], tokenizer)
    return {"kind": kind, "place": place, "error": error / energy, "bytes": size} | (
        options | vars(accuracy(hits))
    )


def both(bits: int, width: int) -> nn.Module:
    """The classifier with codebooks in its encoder and products in its table, really stored so."""
    model, _ = load_classifier()
    cluster_linears_(model.bert, lambda _, w: cluster(w, bits=bits))
    product_quantize_embedding_(model, NAME, width=width, generator=generator())
    return model


def run_both(bits: int, width: int, correct: Tensor) -> dict:
    model, (_, tokenizer) = both(bits, width), load_classifier()
    hits = correct_answers(model, load_reviews()["validation"], tokenizer)
    lost = compare_accuracy(correct, hits).difference
    return {"bits": bits, "width": width, "bytes": bytes_on_disk(model), "difference": vars(lost)}


def tasks() -> list[dict]:
    encoder = [("codebook", {"bits": b} | options) for options in CODEBOOKS for b in BITS]
    encoder += [("affine", {"bits": b, "granularity": g}) for g in GRANULARITIES for b in BITS]
    encoder += [("hashed", {"fraction": fraction}) for fraction in FRACTIONS]
    table = [("product", {"width": width}) for width in WIDTHS]
    table += [("affine", {"bits": bits, "granularity": "channel"}) for bits in TABLE_BITS]
    return [
        {"kind": kind, "place": place, "options": options}
        for place, choices in (("encoder", encoder), ("table", table))
        for kind, options in choices
    ]


def main() -> None:
    reviews, (dense, tokenizer) = load_reviews(), load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    runs, files = [], []
    for result in in_parallel(run, tasks()):
        runs.append(result)
        print(json.dumps(result), flush=True)
    shared = {"correct": correct}
    for result in in_parallel(run_both, [{"bits": b, "width": w} | shared for b, w in FILES]):
        files.append(result)
        print(json.dumps(result), flush=True)
    best = smallest(files, of=itemgetter("difference"))
    result = row(
        f"codebooks of {best['bits']} bits, product-quantized table",
        lecture=6,
        model=both(best["bits"], best["width"]),
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        parameters=count_parameters(dense),
        note=f"no training; a byte for {best['width']} numbers of the table",
    )
    figures = {"dense": vars(accuracy(correct)), "runs": runs, "files": files, "best": best}
    print(record("sharing_oneshot", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
