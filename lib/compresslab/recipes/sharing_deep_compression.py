"""Case study, Deep Compression: prune, cluster, tune, Huffman, on the whole classifier.

    python -m compresslab.recipes.sharing_deep_compression

As in Han et al. (2015), arXiv:1510.00149. The linear layers of the encoder lose small weights in
two rounds, each followed by tuning; what is left is clustered from a linear start, the centroids
are tuned, and codes and gaps are Huffman coded. The embedding table, which the paper's networks do
not have, loses small entries and is clustered, without tuning, since most of its rows are never
read in training. The classifier teaches. Which fractions and bits: the smallest file that loses at
most one point on validation. The file is read back, and test measured once on what was read.

Differs from the paper: two rounds of pruning; the loss is half the teacher's answer.
About 25 minutes on two cores.
"""

import copy
import itertools
import json
import tempfile
from operator import itemgetter
from pathlib import Path

from torch import Tensor, nn

from .. import storage
from ..corpora import load_reviews
from ..measure import correct_answers
from ..models import load_classifier
from ..pruning.magnitude import magnitude_masks
from ..pruning.masks import apply_masks_, hold_masks, keep_largest
from ..scoreboard import row
from ..sharing import deep_compression
from ..sharing.codebooks import Clustered, cluster, cluster_linears_
from . import in_parallel, launch, record
from .factorization_embeddings import NAME
from .tuning import SEED, distillation, lost, smallest, teacher_logits, tune_

ROUNDS = {0.5: (0.7, 0.5), 0.35: (0.6, 0.35)}  # kept in the end -> after each round
BITS = (5, 4, 3)
TABLE = tuple(itertools.product((1.0, 0.5, 0.35, 0.25), (4, 3, 2)))  # kept, bits
TABLE_NAME = f"{NAME}.weight"
GAP_BITS = 5  # as in the paper, for linear layers


def clustered(model: nn.Module, bits: int) -> nn.Module:
    """A copy whose encoder has codebooks, trainable; the weights that were removed stay zero."""
    model = copy.deepcopy(model)
    cluster_linears_(
        model.bert.encoder,
        lambda _, w: cluster(w, bits=bits, mask=w != 0),
        trained=True,
    )
    return model


def table(model: nn.Module, kept: float, bits: int) -> Clustered:
    """The embedding table without its small entries, clustered."""
    weight = model.get_parameter(TABLE_NAME).detach()
    mask = keep_largest(weight.abs(), 1 - kept) if kept < 1 else None
    return cluster(weight, bits=bits, mask=mask)


def uncoded(path: Path, sizes: dict[str, int]) -> int:
    """The bytes of a file before Huffman coding, where each entry has all bits of its code and its
    gap, and no table of code lengths is needed.
    """
    bits = 0
    for weight in deep_compression.read(path).values():
        if isinstance(weight, Clustered):
            gaps, _ = deep_compression.to_entries(weight, gap_bits=GAP_BITS)
            bits += len(gaps) * (weight.bits + (GAP_BITS if weight.zero else 0))
    return bits // 8 + sizes["head"] + sizes["codebooks"] + sizes["dense"] + sizes["file"]


def run(kept: float, teacher: Tensor, correct: Tensor, folder: Path) -> list[dict]:
    """Prune to `kept`, then cluster by each number of bits and tune; what each stage is worth."""
    model, tokenizer = load_classifier()
    model.bert.embeddings.requires_grad_(False)
    encoder, learn = model.bert.encoder, distillation(teacher)
    for fraction in ROUNDS[kept]:
        masks = magnitude_masks(encoder, 1 - fraction)
        apply_masks_(encoder, masks)
        tune_(model, tokenizer, learn, epochs=1, after_step=hold_masks(encoder, masks))
    size = storage.save(model, folder / f"{kept}.safetensors", encoding="smallest")
    pruned = {"kept": kept, "pruned bytes": size, "pruned": lost(model, tokenizer, correct)}
    results = []
    for bits in BITS:
        shared = clustered(model, bits)
        before = lost(shared, tokenizer, correct)
        shared.bert.embeddings.requires_grad_(False)
        tune_(shared, tokenizer, learn, epochs=1)
        path = path_of(folder, kept, bits)
        sizes = deep_compression.save(shared, path, gap_bits=GAP_BITS)
        results.append(
            pruned
            | {
                "bits": bits,
                "clustered": before,
                "clustered bytes": uncoded(path, sizes),
                "tuned": lost(shared, tokenizer, correct),
                "sections": sizes,
                "bytes": path.stat().st_size,
            }
        )
        print(json.dumps(results[-1]), flush=True)
    return results


def path_of(folder: Path, kept: float, bits: int) -> Path:
    return folder / f"{kept} {bits}.deep"


def load(path: Path) -> nn.Module:
    """The classifier with the weights of a file."""
    model, _ = load_classifier()
    model.load_state_dict(deep_compression.load(path))
    return model


def with_table(start: Path, kept: float, bits: int, path: Path, correct: Tensor) -> dict:
    """The file of a run with a clustered table, and what it loses, as read from the file."""
    parts = {n: w for n, w in deep_compression.read(start).items() if isinstance(w, Clustered)}
    (_, tokenizer), model = load_classifier(), load(start)
    parts[TABLE_NAME] = table(model, kept, bits)
    sizes = deep_compression.save(model, path, clustered=parts, gap_bits=GAP_BITS)
    return {
        "table kept": kept,
        "table bits": bits,
        "sections": sizes,
        "bytes": path.stat().st_size,
        "difference": lost(load(path), tokenizer, correct),
    }


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shared = {"teacher": teacher, "correct": correct, "folder": folder}
        found = in_parallel(run, [{"kept": kept} | shared for kept in ROUNDS])
        runs = [result for results in found for result in results]
        files = []
        best = smallest(runs, of=itemgetter("tuned"))
        start = path_of(folder, best["kept"], best["bits"])
        paths = [folder / f"table {i}.deep" for i in range(len(TABLE))]
        for (kept, bits), path in zip(TABLE, paths, strict=True):
            files.append(with_table(start, kept, bits, path, correct))
            print(json.dumps(files[-1]), flush=True)
        last = smallest(files, of=itemgetter("difference"))
        path = paths[files.index(last)]
        result = row(
            "Deep Compression",
            lecture=6,
            model=load(path),
            dense=dense,
            data=reviews["test"],
            tokenizer=tokenizer,
            note=f"{best['kept']:.0%} of the encoder's weights, tuned; whole in memory",
        ) | {"bytes": path.stat().st_size}
        original = storage.save(dense, folder / "dense.safetensors")
    figures = {"dense bytes": original, "runs": runs, "best": best, "files": files, "file": last}
    print(record("sharing_deep_compression", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
