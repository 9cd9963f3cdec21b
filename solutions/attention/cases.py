"""Inputs of the exercises on attention: SHOWN in instant checks, HIDDEN for grading.

function -> cases, each of a few words on what is special in it, and the keyword arguments.
"""

import torch
from torch import Tensor

random = torch.Generator().manual_seed(7)
NOTHING = -torch.inf  # the log total of a part in which a query sees no key
STEP = 2**-28  # so small that its square is lost beside 1


def normal(*shape: int, steps: int = 4, spread: float = 1.0) -> Tensor:
    """Numbers that take few characters in a file: so many to a step of one."""
    x = spread * torch.randn(*shape, generator=random).double()
    return (steps * x).round() / steps


def numbers(*values: float) -> Tensor:
    return torch.tensor(values).double()


def parts(count: int, queries: int, dim: int, *, spread: float = 2.0) -> dict[str, Tensor]:
    """Arguments of `merge_parts`, with a key for every query in every part."""
    return {
        "outputs": normal(count, queries, dim),
        "log_totals": normal(count, queries, spread=spread),
    }


def unseen(arguments: dict[str, Tensor], *places: tuple[int, int]) -> dict[str, Tensor]:
    """The same, but in these parts these queries see no key: (part, query) each."""
    outputs, log_totals = (x.clone() for x in arguments.values())
    for place in places:
        outputs[place], log_totals[place] = torch.nan, NOTHING
    return {"outputs": outputs, "log_totals": log_totals}


def cache(heads: int, time: int, *, seed: int, spread: float = 2.0, **options: int) -> dict:
    """Arguments of `keep_heavy`; what stands above the diagonal means nothing. Small inputs have a
    seed with which many mistakes show."""
    generator = torch.Generator().manual_seed(seed)
    scores = (2 * spread * torch.randn(heads, time, time, generator=generator).double()).round() / 2
    return {"scores": scores, **options}


def rotary(dim: int) -> Tensor:
    """Frequencies as in Llama."""
    return 10_000.0 ** (-torch.arange(0, dim, 2) / dim)


def keys(positions: list[list[int]], dim: int) -> dict[str, Tensor]:
    """Arguments of `renumber`: random keys for these positions, a list for each head."""
    positions = torch.tensor(positions)
    return {
        "keys": normal(*positions.shape, dim).float(),
        "positions": positions,
        "frequencies": rotary(dim),
    }


def drawn(heads: int, kept: int, *, below: int) -> list[list[int]]:
    """Different positions for each head, in no order."""
    found = []
    while len(found) < heads:
        row = torch.randint(below, (kept,), generator=random).tolist()
        if len(set(row)) == kept:
            found.append(row)
    return found


def vectors(queries: int, keys: int, dim: int, *, spread: float = 0.5) -> dict[str, Tensor]:
    return {
        "query": normal(queries, dim, spread=spread),
        "key": normal(keys, dim, spread=spread),
    }


def memory(
    dim: int, dim_value: int, *, tokens: int, ridge: float, decay: float = 1.0
) -> dict[str, Tensor]:
    """State and inverse after some tokens, from their definition."""
    k, v = normal(tokens, dim), normal(tokens, dim_value)
    fade = decay ** torch.arange(tokens - 1, -1, -1).double()[:, None]
    ridge = decay**tokens * ridge * torch.eye(dim).double()
    inverse = torch.linalg.inv(k.T @ (fade * k) + ridge)
    return {"state": inverse @ k.T @ (fade * v), "inverse": (inverse + inverse.T) / 2}


def token(dim: int, dim_value: int) -> dict[str, Tensor]:
    return {"key": normal(dim), "value": normal(dim_value)}


def empty(dim: int, dim_value: int, *, ridge: float) -> dict[str, Tensor]:
    return {
        "state": torch.zeros(dim, dim_value).double(),
        "inverse": torch.eye(dim).double() / ridge,
    }


ALONE = 1000 * torch.eye(7).double()[None]  # the scores of tokens that see themselves alone
LONG = numbers(30, -40, 20)
STORED = {
    "state": numbers(2, -1, 0, 0, 0, 0).view(3, 2),
    "inverse": torch.diag(numbers(1 / 1.0625, 16, 16)),
}

SHOWN = {
    "merge_parts": [
        (
            "two parts that count the same",
            {
                "outputs": numbers(1, 2, 3, 0).view(2, 1, 2),
                "log_totals": numbers(0.5, 0.5).view(2, 1),
            },
        ),
        ("three parts that count differently", parts(3, 2, 2)),
        ("one part", parts(1, 2, 3)),
        (
            "log totals that are very large, and others far below zero",
            {
                "outputs": normal(2, 3, 2),
                "log_totals": numbers(1000, -1000, 3, 1001, -1002, 1.5).view(2, 3),
            },
        ),
        ("a part without any key for a query", unseen(parts(3, 2, 2), (0, 1))),
        ("a query that sees no key at all", unseen(parts(2, 2, 2), (0, 0), (1, 0))),
    ],
    "plan_tiles": [
        ("a window, and no sinks", {"time": 10, "sinks": 0, "window": 3, "tile": 2}),
        ("sinks that fill a tile", {"time": 12, "sinks": 2, "window": 3, "tile": 2}),
        ("a sink that fills a part of a tile", {"time": 12, "sinks": 1, "window": 4, "tile": 3}),
        ("a last block that is shorter", {"time": 14, "sinks": 0, "window": 6, "tile": 4}),
        (
            "a tile with sinks and with keys of the window",
            {"time": 12, "sinks": 2, "window": 6, "tile": 4},
        ),
        ("tiles of one token", {"time": 5, "sinks": 1, "window": 2, "tile": 1}),
        ("a window longer than the text", {"time": 7, "sinks": 0, "window": 20, "tile": 2}),
    ],
    "keep_heavy": [
        ("one head", cache(1, 9, seed=117, kv_heads=1, budget=4, recent=1)),
        ("two heads that share a cache", cache(2, 9, seed=304, kv_heads=1, budget=4, recent=2)),
        ("four heads and two caches", cache(4, 9, seed=207, kv_heads=2, budget=4, recent=1)),
        ("no token that is safe", cache(1, 8, seed=0, kv_heads=1, budget=3, recent=0)),
        (
            "tokens that look at themselves alone",
            {"scores": ALONE, "kv_heads": 1, "budget": 4, "recent": 1},
        ),
        ("a cache that is never full", cache(1, 4, seed=1, kv_heads=1, budget=6, recent=2)),
        ("room for one key", cache(1, 4, seed=2, kv_heads=1, budget=1, recent=0)),
    ],
    "renumber": [
        ("a key that comes nearer by four positions", keys([[0, 5]], 2)),
        ("two heads that hold other tokens", keys([[0, 3, 4, 9], [2, 5, 7, 9]], 4)),
        ("keys in another order than in the text", keys([[7, 2, 9, 4, 12]], 4)),
        (
            "a text of millions of tokens",
            keys([[1, 5_000_000, 5_000_003], [4_000_000, 4_700_001, 5_000_003]], 6),
        ),
        ("keys that are at their places already", keys([[0, 1, 2]], 4)),
    ],
    "features_needed": [
        (
            "one query and one key",
            {"query": numbers(1, 0.5)[None], "key": numbers(0.5, -0.25)[None], "error": 0.1},
        ),
        ("two queries and three keys", {**vectors(2, 3, 4), "error": 0.1}),
        ("another error", {**vectors(2, 2, 3), "error": 0.01}),
        (
            "a key that is the opposite of the query, and one that is the same",
            {
                "query": numbers(1, 0.5)[None],
                "key": numbers(-1, -0.5, 1, 0.5).view(2, 2),
                "error": 0.5,
            },
        ),
        ("long vectors", {**vectors(1, 3, 4, spread=15), "error": 0.1}),
        (
            "a key that is nearly the query, and one that is nearly its opposite",
            {
                "query": LONG[None],
                "key": torch.stack([LONG, -LONG]) + STEP * numbers(1, 2, -1),
                "error": 0.1,
            },
        ),
    ],
    "least_squares_step": [
        (
            "the first token",
            {**empty(3, 2, ridge=1.0), "key": numbers(1, -0.5, 2), "value": numbers(3, 1)}
            | {"decay": 1.0},
        ),
        (
            "one token more",
            {**memory(3, 2, tokens=4, ridge=0.5), **token(3, 2), "decay": 1.0},
        ),
        (
            "a decay",
            {**memory(3, 2, tokens=5, ridge=0.5, decay=0.75), **token(3, 2), "decay": 0.75},
        ),
        (
            "another value for a key that was stored",
            {**STORED, "key": numbers(1, 0, 0), "value": numbers(-1, 3), "decay": 0.5},
        ),
        (
            "a key of zeros",
            {**memory(2, 3, tokens=3, ridge=0.5), "key": numbers(0, 0), "value": normal(3)}
            | {"decay": 0.5},
        ),
    ],
}

HIDDEN = {
    "merge_parts": [
        ("many parts", parts(9, 12, 5)),
        (
            "log totals that are far apart",
            {
                "outputs": normal(3, 4, 2),
                "log_totals": normal(3, 4, spread=400),
            },
        ),
        (
            "log totals that are all far below zero",
            {"outputs": normal(2, 4, 3), "log_totals": normal(2, 4) - 5000},
        ),
        ("a part that nobody sees", unseen(parts(3, 3, 2), (1, 0), (1, 1), (1, 2))),
        ("one key only", unseen(parts(3, 2, 2), (0, 0), (2, 0), (0, 1), (1, 1))),
        ("no key for anybody", unseen(parts(1, 2, 2), (0, 0), (0, 1))),
        (
            "large log totals, and a query without keys",
            unseen(
                {"outputs": normal(2, 3, 2), "log_totals": 800 + normal(2, 3)},
                (0, 0),
                (1, 0),
                (1, 2),
            ),
        ),
    ],
    "plan_tiles": [
        (
            "millions of tokens",
            {"time": 3_000_000, "sinks": 4, "window": 900_000, "tile": 400_000},
        ),
        ("many blocks", {"time": 640, "sinks": 5, "window": 61, "tile": 16}),
        ("more sinks than a tile has", {"time": 41, "sinks": 9, "window": 7, "tile": 4}),
        ("more sinks than tokens", {"time": 11, "sinks": 30, "window": 1, "tile": 3}),
        ("a window of one token", {"time": 17, "sinks": 0, "window": 1, "tile": 4}),
        ("a tile larger than the text", {"time": 5, "sinks": 1, "window": 2, "tile": 8}),
        ("one token", {"time": 1, "sinks": 0, "window": 1, "tile": 1}),
        ("a window as long as a tile", {"time": 32, "sinks": 0, "window": 8, "tile": 8}),
        ("sinks next to the window", {"time": 33, "sinks": 6, "window": 13, "tile": 5}),
        ("a last block of one token", {"time": 25, "sinks": 3, "window": 9, "tile": 6}),
    ],
    "keep_heavy": [
        ("nine heads and three caches", cache(9, 24, seed=3, kv_heads=3, budget=8, recent=4)),
        ("a cache for each head", cache(3, 20, seed=4, kv_heads=3, budget=5, recent=1)),
        ("six heads that share a cache", cache(6, 20, seed=5, kv_heads=1, budget=6, recent=0)),
        (
            "all but one place for the last tokens",
            cache(4, 16, seed=6, kv_heads=2, budget=5, recent=4),
        ),
        ("sharp attention", cache(4, 24, seed=7, kv_heads=2, budget=8, recent=2, spread=12)),
        (
            "scores in float32, with large ones for later keys",
            cache(2, 12, seed=8, kv_heads=1, budget=4, recent=1)
            | {"scores": normal(2, 12, 12).float() + 500 * torch.ones(12, 12).triu(1)},
        ),
        (
            "two tokens that look at themselves alone, again and again",
            {"scores": ALONE.repeat(2, 1, 1), "kv_heads": 2, "budget": 3, "recent": 0},
        ),
    ],
    "renumber": [
        ("many heads", keys(drawn(6, 12, below=600), 8)),
        ("one key that is far away", keys([[123_456], [7]], 4)),
        ("billions of positions", keys(drawn(2, 5, below=2_000_000_000), 8)),
        ("the text from behind", keys([[19, 14, 11, 3, 2, 0]], 6)),
        ("pairs alone", keys(drawn(3, 4, below=50), 2)),
        ("the same tokens in all heads", keys([[8, 1, 30, 15]] * 3, 6)),
    ],
    "features_needed": [
        ("many vectors", {**vectors(6, 9, 16), "error": 0.05}),
        ("very long vectors", {**vectors(3, 4, 8, spread=60), "error": 0.1}),
        (
            "queries of zeros",
            {"query": torch.zeros(2, 3).double(), "key": normal(3, 3), "error": 0.2},
        ),
        ("an error above one", {**vectors(3, 2, 4, spread=1), "error": 2.0}),
        (
            "short vectors",
            {"query": normal(2, 3) * STEP, "key": normal(3, 3) * STEP, "error": 0.1},
        ),
        (
            "keys that are the queries, or nearly",
            {
                "query": torch.stack([LONG, -LONG]),
                "key": torch.stack([LONG, -LONG, LONG + 4 * STEP]),
                "error": 0.001,
            },
        ),
        ("a query of one number", {"query": normal(3, 1), "key": normal(2, 1) + 5, "error": 0.1}),
    ],
    "least_squares_step": [
        ("a large memory", {**memory(12, 6, tokens=30, ridge=1.0), **token(12, 6), "decay": 1.0}),
        (
            "a small ridge, and a key in a new direction",
            {**memory(6, 3, tokens=3, ridge=1e-5), **token(6, 3), "decay": 1.0},
        ),
        (
            "a fast decay",
            {**memory(4, 4, tokens=9, ridge=1.0, decay=0.5), **token(4, 4), "decay": 0.5},
        ),
        (
            "a long key",
            {**memory(5, 2, tokens=7, ridge=0.1), "key": 50 * normal(5), "value": normal(2)}
            | {"decay": 0.9},
        ),
        (
            "values of one number",
            {**memory(5, 1, tokens=8, ridge=0.5, decay=0.9), **token(5, 1), "decay": 0.9},
        ),
        (
            "a key of zeros in a memory that forgets",
            {**memory(4, 2, tokens=6, ridge=0.5), "key": torch.zeros(4).double()}
            | {"value": normal(2), "decay": 0.25},
        ),
        ("one number", {**memory(1, 1, tokens=2, ridge=0.5), **token(1, 1), "decay": 0.75}),
    ],
}
