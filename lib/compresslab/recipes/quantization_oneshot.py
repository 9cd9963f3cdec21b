"""Round the classifier's weights to few bits, without training: how few, and where it hurts.

    python -m compresslab.recipes.quantization_oneshot

Accuracy on validation against bits, for a scale a tensor, a row and a group of 64, symmetric and
not; the embeddings alone; then one layer at a time (the sensitivity scan). The scoreboard gets the
smallest file, encoder and embeddings in few bits, that loses at most one point on validation. About
10 minutes on two cores.
"""

import copy

from torch import nn

from ..corpora import load_reviews
from ..layers import find_linears
from ..measure import accuracy, bytes_on_disk, compare_accuracy, correct_answers
from ..models import load_classifier
from ..quantization.affine import fake_quantize, quantize_tensor
from ..quantization.linear import pack_embedding_, pack_linears_
from ..scoreboard import row
from . import record

SEED = 0  # nothing here is random
BITS = (8, 6, 5, 4, 3, 2)
GRANULARITIES = ("tensor", "channel", 64)
SCAN_BITS = 2
SCAN_SENTENCES = 400
EMBEDDING = "embeddings.word_embeddings"


def rounded(dense: nn.Module, **options) -> nn.Module:
    """A copy of the classifier, the weights of its encoder rounded; options of `fake_quantize`."""
    model = copy.deepcopy(dense)
    for linear in find_linears(model.bert.encoder).values():
        linear.weight.data = fake_quantize(linear.weight, **options)
    return model


def packed(dense: nn.Module, *, bits: int, embedding_bits: int) -> nn.Module:
    """A copy of the classifier that really has few bits, in groups of 64; a row of the embedding
    has one scale. The position embeddings, norms, biases and the head stay as they are."""
    model = copy.deepcopy(dense)
    pack_linears_(model.bert, lambda _, w: quantize_tensor(w, bits=bits, granularity=64))
    pack_embedding_(model.bert, EMBEDDING, lambda _, w: quantize_tensor(w, bits=embedding_bits))
    return model


def main() -> None:
    reviews = load_reviews()
    validation = reviews["validation"]
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, validation, tokenizer)
    runs, embedding, both, best = [], [], [], None
    for granularity in GRANULARITIES:
        for symmetric in (False, True):
            for bits in BITS:
                options = {"bits": bits, "granularity": granularity, "symmetric": symmetric}
                hits = correct_answers(rounded(dense, **options), validation, tokenizer)
                runs.append(options | vars(accuracy(hits)))
                print(runs[-1], flush=True)
    for bits in BITS:
        model = copy.deepcopy(dense)
        table = model.bert.get_submodule(EMBEDDING)
        table.weight.data = fake_quantize(table.weight, bits=bits)
        embedding.append(
            {"bits": bits} | vars(accuracy(correct_answers(model, validation, tokenizer)))
        )
        print(embedding[-1], flush=True)
    for bits in (4, 3, 2):
        for embedding_bits in (4, 3, 2):
            options = {"bits": bits, "embedding_bits": embedding_bits}
            model = packed(dense, **options)
            hits, size = correct_answers(model, validation, tokenizer), bytes_on_disk(model)
            both.append(options | {"bytes": size} | vars(accuracy(hits)))
            print(both[-1], flush=True)
            lost = compare_accuracy(correct, hits).difference.value
            if lost >= -0.01 and (best is None or size < best["bytes"]):
                best = both[-1]

    few = validation.select(range(SCAN_SENTENCES))
    scan = {}
    for name in find_linears(dense.bert.encoder):
        model = copy.deepcopy(dense)
        linear = model.bert.encoder.get_submodule(name)
        linear.weight.data = fake_quantize(linear.weight, bits=SCAN_BITS, granularity=64)
        scan[name] = accuracy(correct_answers(model, few, tokenizer)).value
    figures = {
        "dense": vars(accuracy(correct)),
        "runs": runs,
        "embedding": embedding,
        "both": both,
        "scan": {
            "sentences": SCAN_SENTENCES,
            "bits": SCAN_BITS,
            "dense": accuracy(correct_answers(dense, few, tokenizer)).value,
            "layers": scan,
        },
        "best": best,
    }
    result = row(
        f"rounded to {best['bits']} bits, embeddings {best['embedding_bits']}",
        lecture=3,
        model=packed(dense, bits=best["bits"], embedding_bits=best["embedding_bits"]),
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        note="no training; packed, made float at every use",
    )
    print(record("quantization_oneshot", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    main()
