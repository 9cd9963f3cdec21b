"""The rows that every compressed model is compared with, before any method of the course.

    python -m compresslab.recipes.baseline

Three models: the classifier in float32; the same in bfloat16, the least one can do; and a bag of
words, the small model that one would train from nothing. Also the perplexity of the language
model on the test articles. About 10 minutes on two cores.
"""

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from ..corpora import LABELS, load_articles, load_reviews, token_windows
from ..measure import accuracy, correct_answers, perplexity
from ..models import load_classifier, load_language_model
from ..scoreboard import DENSE, row
from ..training import TextBatches, train
from . import launch, record

SEED = 0
WEIGHT_DECAYS = (0.0, 0.1, 1.0, 3.0)


class BagOfWords(nn.Module):
    """Logistic regression on how often tokens occur: one weight for each token and label."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.weight = nn.Embedding(vocabulary, len(LABELS))
        self.bias = nn.Parameter(torch.zeros(len(LABELS)))
        nn.init.zeros_(self.weight.weight)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
        """Token numbers and mask (batch, time) -> logits (batch, labels)."""
        scores = self.weight(input_ids) * attention_mask[..., None]
        return SequenceClassifierOutput(logits=scores.sum(1) + self.bias)


def train_bag_of_words(reviews, tokenizer) -> tuple[BagOfWords, list[dict]]:
    """The best of four weight decays on validation, and the runs."""
    best, runs = None, []
    for decay in WEIGHT_DECAYS:
        torch.manual_seed(SEED)
        model = BagOfWords(len(tokenizer))
        batches = TextBatches(reviews["train"], tokenizer, shuffle=True, seed=SEED)
        train(model, batches, epochs=5, learning_rate=0.01, weight_decay=decay, progress=False)
        score = accuracy(correct_answers(model, reviews["validation"], tokenizer)).value
        runs.append({"weight_decay": decay, "validation": score})
        if best is None or score > best[0]:
            best = (score, model)
    return best[1], runs


def main() -> None:
    reviews = load_reviews()
    dense, tokenizer = load_classifier()
    half, _ = load_classifier(dtype=torch.bfloat16)
    words, runs = train_bag_of_words(reviews, tokenizer)
    shared = {"lecture": 1, "dense": dense, "data": reviews["test"], "tokenizer": tokenizer}
    models = [
        row(DENSE, model=dense, note="the classifier of the course", **shared),
        row("dense, bfloat16", model=half, note="stored and run in 16 bits", **shared),
        row("bag of words", model=words, note="trained from nothing", **shared),
    ]
    language_model, tokenizer = load_language_model()
    windows = token_windows(load_articles()["test"]["text"], tokenizer, length=512)
    figures = {
        "bag_of_words": runs,
        "perplexity": {
            "text": "test articles",
            "window": windows.shape[1],
            "tokens": windows.numel(),
        }
        | vars(perplexity(language_model, windows)),
    }
    print(record("baseline", seed=SEED, figures=figures, models=models))


if __name__ == "__main__":
    launch(main)
