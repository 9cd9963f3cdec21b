"""Round the classifier's weights to few bits, without training.

    python -m compresslab.recipes.quantization_oneshot

Accuracy on validation against bits, with a scale a tensor, a row and a group of 64. Then weights
and embeddings that are really packed: the scoreboard gets the smallest file that loses at most one
point on validation. About 6 minutes on two cores.
"""

import copy
from operator import itemgetter

from torch import nn

from ..corpora import load_reviews
from ..layers import find_linears
from ..measure import accuracy, bytes_on_disk, compare_accuracy, correct_answers, count_parameters
from ..models import load_classifier
from ..quantization.affine import fake_quantize, quantize_tensor
from ..quantization.linear import pack_embedding_, pack_linears_
from ..scoreboard import row
from . import launch, record
from .tuning import smallest

SEED = 0  # nothing here is random
BITS = (8, 6, 5, 4, 3, 2)
GRANULARITIES = ("tensor", "channel", 64)
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
    runs, files = [], []
    for granularity in GRANULARITIES:
        for bits in BITS:
            options = {"bits": bits, "granularity": granularity}
            hits = correct_answers(rounded(dense, **options), validation, tokenizer)
            runs.append(options | vars(accuracy(hits)))
            print(runs[-1], flush=True)
    for bits in (6, 5, 4):
        for embedding_bits in (8, 4, 3):
            options = {"bits": bits, "embedding_bits": embedding_bits}
            model = packed(dense, **options)
            hits = correct_answers(model, validation, tokenizer)
            lost = compare_accuracy(correct, hits).difference
            files.append(options | {"bytes": bytes_on_disk(model), "difference": vars(lost)})
            print(files[-1], flush=True)
    best = smallest(files, of=itemgetter("difference"))
    options = {name: best[name] for name in ("bits", "embedding_bits")}
    result = row(
        f"{best['bits']} bits, embeddings {best['embedding_bits']} bits",
        lecture=3,
        model=packed(dense, **options),
        dense=dense,
        data=reviews["test"],
        tokenizer=tokenizer,
        parameters=count_parameters(dense),
        note="no training; unpacked at every use",
    )
    figures = {"dense": vars(accuracy(correct)), "runs": runs, "files": files, "best": options}
    print(record("quantization_oneshot", seed=SEED, figures=figures, models=[result]))


if __name__ == "__main__":
    launch(main)
