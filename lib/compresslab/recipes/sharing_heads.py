"""Fewer key-value heads in trained models: the mean or the first of each group, then tuned.

    python -m compresslab.recipes.sharing_heads

SmolLM2 has nine query heads and three key-value heads; they become one. As in Ainslie et al.
(2023), arXiv:2305.13245, a short training follows, here on 47,000 tokens of articles, with the
whole model as teacher; perplexity on test articles. The classifier has twelve heads and no cache;
it shows what groups of 4 and 12 cost, before and after tuning, on validation.

Differs from the paper: its training goes on for 5 % of the tokens of pretraining.
About 45 minutes on two cores.
"""

import json

from torch import Tensor, nn

from ..corpora import load_reviews
from ..costs import kv_cache_bytes
from ..measure import correct_answers, count_parameters, perplexity
from ..models import load_classifier, load_language_model
from ..sharing.heads import share_kv_heads_
from ..training import train
from . import in_parallel, launch, record
from .distillation_llm import BATCH, token_level, windows
from .tuning import EPOCHS, LEARNING_RATE, SEED, distillation, lost, teacher_logits, tune_

KV_HEADS = (3, 1)  # of the classifier's 12
STARTS = ("mean", "first")
LLM_RATE = 2e-4
CONTEXT = 8192  # tokens, for the bytes of the cache


def run(kv_heads: int, start: str, teacher: Tensor, correct: Tensor) -> dict:
    """The classifier with fewer key-value heads: what it lost before and after tuning."""
    model, tokenizer = load_classifier()
    share_kv_heads_(model.bert, kv_heads, start=start)
    model.bert.embeddings.requires_grad_(False)

    before = lost(model, tokenizer, correct)
    tune_(model, tokenizer, distillation(teacher))
    return {
        "kv_heads": kv_heads,
        "start": start,
        "encoder": count_parameters(model.bert.encoder),
        "before": before,
        "after": lost(model, tokenizer, correct),
    }


def test_perplexity(model: nn.Module) -> dict:
    return vars(perplexity(model, windows("test")))


def run_llm(start: str) -> dict:
    """SmolLM2 with one key-value head, taught by the whole one."""
    model, _ = load_language_model()
    share_kv_heads_(model, 1, start=start)
    before = test_perplexity(model)
    teacher, _ = load_language_model()
    batches = [{"input_ids": some} for some in windows("calibration").split(BATCH)]
    model.requires_grad_(True)
    model.get_input_embeddings().requires_grad_(False)
    train(model, batches, token_level(teacher), learning_rate=LLM_RATE, progress=False)
    return {"start": start, "before": before, "after": test_perplexity(model)}


def main() -> None:
    reviews, teacher = load_reviews(), teacher_logits()
    dense, tokenizer = load_classifier()
    correct = correct_answers(dense, reviews["validation"], tokenizer)
    shared = {"teacher": teacher, "correct": correct}
    tasks = [{"kv_heads": n, "start": start} | shared for n in KV_HEADS for start in STARTS]
    runs, llm = [], []
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(json.dumps(result), flush=True)
    for result in in_parallel(run_llm, [{"start": start} for start in STARTS]):
        llm.append(result)
        print(json.dumps(result), flush=True)
    whole, _ = load_language_model()
    config = whole.config
    cache = {
        str(n): kv_cache_bytes(
            layers=config.num_hidden_layers, kv_heads=n, head_dim=config.head_dim, tokens=CONTEXT
        )
        for n in (config.num_attention_heads, config.num_key_value_heads, 1)
    }
    figures = {
        "epochs": EPOCHS,
        "learning_rate": LEARNING_RATE,
        "encoder": count_parameters(dense.bert.encoder),
        "runs": runs,
        "whole": test_perplexity(whole),
        "one head": llm,
        "context": CONTEXT,
        "cache": cache,
    }
    print(record("sharing_heads", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
