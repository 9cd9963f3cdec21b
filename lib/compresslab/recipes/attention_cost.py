"""What attention costs, and where it overtakes the rest of SmolLM2; what tiling saves.

    python -m compresslab.recipes.attention_cost

SmolLM2 reads 128 to 4,096 tokens at once, as before it writes, and gives the logits of the last.
Its attention is replaced by a function with a clock, once with all scores held (the library's
`full_attention`), once by torch's own; projections, rotation and the rest are outside. Each length
is run six times with each, in a new order; times are medians. Operations are counted by arithmetic
(pairs above the diagonal too, as everywhere in this course), compared with `count_flops` at the
shortest length. Memory is the peak of live tensors, weights not counted.

Then attention alone, 4 heads of 64, causal, at the same lengths: all scores, tiles of 128 by 128
(`flash_attention`), torch's; the memory that a backward pass needs is measured too. And tiles of
several sizes at 4,096 tokens, and the cache of keys and values against context, by arithmetic,
compared with a real one. One thread, and a process for each length that keeps its memory, as in
`attention_scaling`. About 25 minutes; the machine must be idle, and have 6 GB of memory.
"""

import json
import math
import statistics
import time
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface
from transformers.cache_utils import DynamicCache

from ..attention.flash import flash_attention
from ..attention.full import full_attention
from ..costs import kv_cache_bytes, weight_bytes
from ..measure import (
    count_flops,
    count_parameters,
    median_interval,
    peak_memory,
    saved_for_backward,
)
from ..models import load_language_model
from ..sharing.heads import repeat_heads
from . import launch, record
from .attention_scaling import Calls, crossing, measured, timed

SEED = 0
LENGTHS = tuple(2**i for i in range(7, 13))
ROUNDS = 6
HEADS, DIM = 4, 64  # of attention alone
TILES, TILED_LENGTH = (16, 32, 64, 128, 256, 512, 1024), 4096
CONTEXTS = tuple(2**i for i in range(10, 18))
torch_attention = partial(F.scaled_dot_product_attention, is_causal=True)
FORMS = {"full": partial(full_attention, causal=True), "torch": torch_attention}
BARE = FORMS | {"flash": partial(flash_attention, causal=True)}


class Clock:
    """Puts a form of attention into a model of transformers, and adds up the seconds it takes."""

    def __init__(self, model: nn.Module):
        self.form, self.seconds = torch_attention, 0.0
        AttentionInterface.register("clock", self.attend)
        model.set_attn_implementation("clock")  # of a name it does not know: it makes no mask

    def attend(self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args, **kwargs):
        start = time.perf_counter()
        key, value = (repeat_heads(x, query.shape[1]) for x in (key, value))
        out = self.form(query, key, value).transpose(1, 2)
        self.seconds += time.perf_counter() - start
        return out, None


def operations(model: nn.Module, tokens: int) -> dict[str, int]:
    """Floating-point operations of one forward pass, in attention and in all linear layers, the
    last layer for one token.
    """
    config = model.config
    width = config.num_attention_heads * config.head_dim
    pairs = tokens**2 * width * config.num_hidden_layers
    layers = [m for m in model.model.layers.modules() if isinstance(m, nn.Linear)]
    weights = sum(layer.weight.numel() for layer in layers)
    return {
        "attention": 4 * pairs,  # scores, and the sum of values
        "rest": 2 * (tokens * weights + model.lm_head.weight.numel()),
    }


def read(model: nn.Module, ids: Tensor) -> Tensor:
    """The logits of the last token."""
    return model(input_ids=ids, use_cache=False, logits_to_keep=1).logits


@torch.no_grad()
def in_model(length: int, model: nn.Module | None = None) -> dict:
    """Of SmolLM2, or another of its kind, at one length: operations, bytes of the scores of a
    layer, and of each form seconds in attention and outside, and bytes.
    """
    model = model or load_language_model()[0]
    clock, generator = Clock(model), torch.Generator().manual_seed(SEED)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    inside: dict[str, list[float]] = {name: [] for name in FORMS}

    def run(name: str) -> None:
        clock.form, clock.seconds = FORMS[name], 0.0
        read(model, ids)
        inside[name].append(clock.seconds)

    calls: Calls = {name: partial(run, name) for name in FORMS}
    whole = timed(calls, rounds=ROUNDS, seconds=0)
    point = {"length": length, "operations": operations(model, length)}
    point["scores_bytes"] = 4 * model.config.num_attention_heads * length**2
    for name in FORMS:
        attention = inside[name][-ROUNDS:]  # the first call was none of the rounds
        pairs = list(zip(whole[name], attention, strict=True))
        point[name] = {
            "attention_seconds": statistics.median(attention),
            "rest_seconds": statistics.median(a - b for a, b in pairs),
            "share": vars(median_interval([b / a for a, b in pairs])),
            "bytes": peak_memory(calls[name]),
        }
    return point


def overtakes(points: list[dict]) -> dict[str, float | None]:
    """From how many tokens on attention is more than the rest: by operations, and in time."""
    lengths = [p["length"] for p in points]
    work = points[0]["operations"]
    found = {"operations": lengths[0] * work["rest"] / work["attention"]}  # linear, and square
    for name in FORMS:
        ratios = [p[name]["attention_seconds"] / p[name]["rest_seconds"] for p in points]
        found[name] = crossing(lengths, ratios)
    return found


def heads(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(SEED)
    return [torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(3)]


@torch.no_grad()
def alone(length: int) -> dict:
    """Attention alone at one length, of each form: seconds, bytes, bytes for a backward pass, and
    the largest difference to holding all scores.
    """
    inputs = heads(length)
    calls: Calls = {name: partial(form, *inputs) for name, form in BARE.items()}
    times, exact = timed(calls, rounds=ROUNDS), calls["full"]()
    leaves = [x.clone().requires_grad_() for x in inputs]
    point = {"length": length, "operations": count_flops(calls["full"])}
    point["scores_bytes"] = 4 * HEADS * length**2
    for name, call in calls.items():
        point[name] = {
            "seconds": vars(median_interval(times[name])),
            "bytes": peak_memory(call),
            "saved_bytes": saved_for_backward(nn.Module(), partial(BARE[name], *leaves)),
            "difference": (call() - exact).abs().max().item(),
        }
    return point


@torch.no_grad()
def tiled(length: int) -> list[dict]:
    """Tiles of several sizes at one length: seconds and bytes."""
    inputs = heads(length)
    calls: Calls = {
        str(size): partial(BARE["flash"], *inputs, query_block=size, key_block=size)
        for size in TILES
    }
    times = timed(calls, rounds=ROUNDS)
    return [
        {
            "tile": int(size),
            "seconds": vars(median_interval(times[size])),
            "bytes": peak_memory(call),
        }
        for size, call in calls.items()
    ]


@torch.no_grad()
def cache(model: nn.Module) -> dict:
    """Bytes of keys and values in float32, and where they are as much as the weights; a real cache
    beside the arithmetic.
    """
    config = model.config
    of = partial(
        kv_cache_bytes,
        layers=config.num_hidden_layers,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        bits=32,
    )
    real = DynamicCache()
    tokens = LENGTHS[0]
    model(input_ids=torch.zeros(1, tokens, dtype=torch.long), past_key_values=real)
    weights = weight_bytes(count_parameters(model))
    return {
        "contexts": [{"tokens": n, "bytes": of(tokens=n)} for n in CONTEXTS],
        "heads_per_kv_head": config.num_attention_heads // config.num_key_value_heads,
        "weights": weights,
        "as_much_as_weights": math.ceil(weights / of(tokens=1)),
        "real": {
            "tokens": tokens,
            "bytes": sum(x.nbytes for layer in real.layers for x in (layer.keys, layer.values)),
            "arithmetic": of(tokens=tokens),
        },
    }


def main() -> None:
    points, bare = [], []
    for length in LENGTHS:
        for run, found in ((in_model, points), (alone, bare)):
            found.append(measured(run, length=length))
            print(json.dumps(found[-1]), flush=True)
    tiles = measured(tiled, length=TILED_LENGTH)
    model, _ = load_language_model()
    ids = torch.zeros(1, LENGTHS[0], dtype=torch.long)
    figures = {
        "threads": 1,
        "rounds": ROUNDS,
        "model": points,
        "counted": {"length": LENGTHS[0], "operations": count_flops(lambda: read(model, ids))},
        "overtakes": overtakes(points),
        "cache": cache(model),
        "heads": HEADS,
        "dim": DIM,
        "alone": bare,
        "tile_length": TILED_LENGTH,
        "tiles": tiles,
    }
    print(record("attention_cost", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
