"""SmolLM2 with a window and sinks, not trained for it: perplexity against window and position.

    python -m compresslab.recipes.attention_streaming

Two texts of 4,096 tokens, made of test articles one after the other. A cache of 64 to 512 tokens
holds 0, 1 or 4 of the first tokens (sinks) and else the last ones, so that caches of one size are
compared; beside them the whole text, and texts cut into pieces as long as the cache, each read
anew. Then two texts of 16,384 tokens, twice the model's largest position, with a cache of 256.
Nothing is chosen, so nothing is asked of validation articles.

The texts are read at once by `sink_attention`, not token by token as `SinkCache` does: the same
numbers, many times sooner, which is checked and timed on the beginning of a text. Intervals take
the stretches of text that losses are averaged over as independent. Differs from Xiao et al. (2023),
arXiv:2309.17453: a model of 135 M parameters, whose weights were on a 4-bit grid; articles in place
of books; no window whose keys are computed anew for every token. About 15 minutes on two
cores.
"""

import json
import math
import time
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

from ..attention.sinks import SinkCache, sink_attention
from ..corpora import load_articles, token_windows
from ..measure import Estimate, Z, perplexity
from ..models import load_language_model
from ..sharing.heads import repeat_heads
from . import in_parallel, launch, record

SEED = 0  # nothing here is random
CACHES, SINKS = (64, 128, 256, 512), (0, 1, 4)
TEXTS, LENGTH, SEGMENT = 2, 4096, 256
FAR_TEXTS, FAR_LENGTH, FAR_SEGMENT = 2, 16384, 1024
FAR_CACHE, FAR_SINKS = 256, (0, 4)
LATE = 1024  # from this position on, every cache has long forgotten tokens
CHECKED = 400  # tokens read one by one


def use_(model: nn.Module, *, sinks: int, window: int) -> None:
    """Make all layers of a model of the Llama kind attend to sinks and window, and read without a
    cache.
    """
    form = partial(
        sink_attention,
        sinks=sinks,
        window=window,
        frequencies=model.base_model.rotary_emb.inv_freq,
    )

    def attend(module, query, key, value, *args, **kwargs):
        key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
        return form(query, key, value).transpose(1, 2), None

    AttentionInterface.register("sinks", attend)
    model.set_attn_implementation("sinks")  # of a name it does not know: it makes no mask


@torch.inference_mode()
def losses(model: nn.Module, ids: Tensor) -> Tensor:
    """Of each token but the first, (texts, time - 1), nats; the logits never stand all at once."""
    found = []
    for text in ids:
        states = model.base_model(input_ids=text[None], use_cache=False).last_hidden_state[0, :-1]
        pieces = zip(states.split(512), text[1:].split(512), strict=True)
        found += [
            F.cross_entropy(model.lm_head(some), target, reduction="none")
            for some, target in pieces
        ]
    return torch.cat(found).view(len(ids), -1)


@torch.inference_mode()
def one_by_one(model: nn.Module, ids: Tensor, *, sinks: int, window: int) -> Tensor:
    """The same through a `SinkCache`, for one text (time,)."""
    cache = SinkCache(model, sinks=sinks, window=window)
    logits = [model(input_ids=t[None, None], past_key_values=cache).logits[0, 0] for t in ids[:-1]]
    return F.cross_entropy(torch.stack(logits), ids[1:], reduction="none")


def texts(count: int, length: int) -> Tensor:
    _, tokenizer = load_language_model()
    return token_windows(load_articles()["test"]["text"], tokenizer, length=length)[:count]


def segments_of(losses: Tensor, segment: int) -> Tensor:
    """Mean losses (texts, segments) of (texts, time - 1); the first segment lacks a token."""
    parts = [losses[:, : segment - 1], *losses[:, segment - 1 :].split(segment, dim=1)]
    return torch.stack([part.mean(1) for part in parts], dim=1)


def interval(means: Tensor) -> Estimate:
    """The mean of some, taken as independent."""
    mean, error = means.mean().item(), means.std().item() / means.numel() ** 0.5
    return Estimate(mean, mean - Z * error, mean + Z * error)


def run(name: str, count: int, length: int, segment: int, sinks: int = 0, cache: int = 0) -> dict:
    """One way to read the texts: through a "cache", "whole", or in "pieces" as long as the cache.

    Returns:
        the choice, and `segments`, mean losses in nats by text and position; of pieces `perplexity`
        alone.
    """
    model, _ = load_language_model()
    ids = texts(count, length)
    choice = {"name": name, "length": length, "sinks": sinks, "cache": cache}
    if name == "pieces":
        return choice | {"perplexity": vars(perplexity(model, ids.view(-1, cache)))}
    if name == "cache":
        use_(model, sinks=sinks, window=cache - sinks)
    return choice | {"segments": segments_of(losses(model, ids), segment).tolist()}


def judge_(runs: list[dict]) -> None:
    """Give those with segments their perplexity, that of late positions, and how much more nats a
    late token costs than in the whole text, segment by segment.
    """
    whole = {r["length"]: torch.tensor(r["segments"]) for r in runs if r["name"] == "whole"}
    for result in runs:
        if "segments" in result:
            found, other = torch.tensor(result["segments"]), whole[result["length"]]
            late = LATE * found.shape[1] // result["length"]
            estimates = interval(found), interval(found[:, late:])
            for name, e in zip(("perplexity", "late_perplexity"), estimates, strict=True):
                result[name] = {key: math.exp(value) for key, value in vars(e).items()}
            result["late_difference"] = vars(interval((found - other)[:, late:]))


def check() -> dict:
    """The beginning of a text, read at once and token by token, with a small cache and four sinks:
    the largest difference of a token's loss, and seconds of both.
    """
    model, _ = load_language_model()
    ids, sizes = texts(1, LENGTH)[0, :CHECKED], {"sinks": 4, "window": 60}
    start = time.perf_counter()
    slow = one_by_one(model, ids, **sizes)
    middle = time.perf_counter()
    use_(model, **sizes)
    fast = losses(model, ids[None])[0]
    return sizes | {
        "tokens": CHECKED,
        "difference": (slow - fast).abs().max().item(),
        "one_by_one_seconds": middle - start,
        "at_once_seconds": time.perf_counter() - middle,
    }


def main() -> None:
    short = {"count": TEXTS, "length": LENGTH, "segment": SEGMENT}
    far = {"count": FAR_TEXTS, "length": FAR_LENGTH, "segment": FAR_SEGMENT}
    tasks = [{"name": "whole", **far}, {"name": "whole", **short}]
    tasks += [{"name": "cache", **far, "cache": FAR_CACHE, "sinks": s} for s in FAR_SINKS]
    tasks += [{"name": "cache", **short, "cache": c, "sinks": s} for c in CACHES for s in SINKS]
    tasks += [{"name": "pieces", **short, "cache": c} for c in CACHES]
    runs = []
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(json.dumps(result), flush=True)
    judge_(runs)
    figures = {
        "texts": {str(LENGTH): TEXTS, str(FAR_LENGTH): FAR_TEXTS},
        "segment": {str(LENGTH): SEGMENT, str(FAR_LENGTH): FAR_SEGMENT},
        "late": LATE,
        "largest_position": load_language_model()[0].config.max_position_embeddings,
        "runs": runs,
        "check": check(),
    }
    print(record("attention_streaming", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
