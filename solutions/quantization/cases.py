"""Inputs of the exercises on quantization: SHOWN in instant checks, HIDDEN for grading.

function -> cases, each of a few words on what is special in it, and the keyword arguments.
"""

import torch
from torch import Tensor

random = torch.Generator().manual_seed(3)


def short(x: Tensor) -> Tensor:
    """Rounded to numbers that take few characters in a file, and none of them 0."""
    return ((256 * x).floor() + 0.5) / 256


def normal(*shape: int) -> Tensor:
    return short(torch.randn(*shape, generator=random))


def byte(*shape: int, low: int = 0, high: int = 256) -> Tensor:
    return torch.randint(low, high, shape, generator=random, dtype=torch.uint8)


def uniform(*shape: int) -> Tensor:
    return short(torch.rand(*shape, generator=random))


def row(n: int, seed: int, *, size: float = 1.0, spread: float = 0.0) -> dict[str, Tensor]:
    """A row of weights, and the Hessian of inputs that go together: 3 n tokens, mixed from half as
    many sources as inputs. The seeds were chosen so that several weights end up elsewhere than at
    their nearest number, and that no cost and no rounding is a close call.

    Args:
        size: of the weights.
        spread: how far apart the sizes of the inputs are, in powers of ten to either side.
    """
    own = torch.Generator().manual_seed(seed)
    x = torch.randn(3 * n, n // 2, generator=own) @ torch.randn(n // 2, n, generator=own)
    x = x + 0.3 * torch.randn(3 * n, n, generator=own)
    x = (x * 10 ** torch.linspace(-spread, spread, n)).double()
    return {"weight": size * torch.randn(n, generator=own), "hessian": x.T @ x}


def layer(tokens: int, inputs: int, outputs: int) -> dict[str, Tensor]:
    """Arguments of `asymmetric_linear`."""
    return {
        "codes": byte(tokens, inputs),
        "input_scale": uniform(tokens, 1) / 8,
        "input_zero_point": byte(tokens, 1, low=90, high=160).int(),
        "weight_codes": byte(outputs, inputs),
        "weight_scale": uniform(outputs, 1) / 16,
        "weight_zero_point": byte(outputs, 1, low=90, high=160).int(),
        "bias": normal(outputs),
    }


def balanced(tokens: int, inputs: int, outputs: int) -> dict[str, Tensor]:
    """Large codes and many inputs, whose products nearly cancel: each token has one input that is
    not its zero point."""
    given = layer(tokens, inputs, outputs)
    given["input_zero_point"] = byte(tokens, 1, low=240, high=250).int()
    given["codes"] = given["input_zero_point"].to(torch.uint8).repeat(1, inputs)
    given["codes"][:, 5] += 3
    given["weight_codes"] = byte(outputs, inputs, low=200)
    given["weight_zero_point"] = byte(outputs, 1, low=230, high=250).int()
    return given


def shared(kv_heads: int, sharing: int, head_dim: int, inputs: int, outputs: int) -> dict:
    """Arguments of `smooth_values`, without alpha; some features and some heads stand out."""
    width = kv_heads * sharing * head_dim
    return {
        "values": normal(kv_heads * head_dim, inputs),
        "output": short(normal(outputs, width) * (0.2 + uniform(width))),
        "absmax": short(0.1 + 5 * uniform(width) ** 3),
        "kv_heads": kv_heads,
    }


def without(given: dict, name: str, places: list[int]) -> dict:
    """With zeros at these places of the last dimension."""
    changed = given[name].clone()
    changed[..., places] = 0
    return {**given, name: changed}


STEP_ONE = torch.tensor([[-1.0, 0.4, 0.6, 2.0]])
POSITIVE = torch.tensor([[1.0, 2.0, 4.2, 7.5]])
HALVES = torch.tensor([[-1.5, 0.5, 2.5, 13.5], [-1.0, 0.5, 2.5, 14.0]])
HALF_STEPS = torch.tensor([[-0.75, 0.25, 3.25, 6.75], [-1.5, 0.25, 0.75, 6.0]])
WIDE = torch.randn(2, 130, generator=random)
ZEROS = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0, -2.0, 0.37, 0.12]])
# A large weight in column 0 of row 0 and in column 5 of row 1.
LARGE = torch.tensor([[4.0, -0.6, 0.8, 0.3, -0.2, 0.5], [0.3, -0.6, 0.8, 0.4, -0.2, 4.0]])
FACTORS = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3]
TWO = {
    "codes": torch.tensor([[3, 6]], dtype=torch.uint8),
    "input_scale": torch.tensor([[0.5]]),
    "input_zero_point": torch.tensor([[4]], dtype=torch.int32),
    "weight_codes": torch.tensor([[10, 7]], dtype=torch.uint8),
    "weight_scale": torch.tensor([[0.25]]),
    "weight_zero_point": torch.tensor([[8]], dtype=torch.int32),
    "bias": torch.tensor([0.5]),
}
PAIR = torch.tensor([[2.0, 1.5], [1.5, 2.0]], dtype=torch.float64)

SHOWN = {
    "round_groups": [
        ("four weights whose step is 1", {"weight": STEP_ONE, "bits": 2, "group_size": 4}),
        ("weights that are all positive", {"weight": POSITIVE, "bits": 4, "group_size": 4}),
        ("two rows of two groups each", {"weight": normal(2, 8), "bits": 3, "group_size": 4}),
        (
            "weights half-way between two numbers, with a step of 1",
            {"weight": HALVES, "bits": 4, "group_size": 4},
        ),
        ("a last group that is shorter", {"weight": normal(3, 10), "bits": 4, "group_size": 4}),
        ("a group of zeros", {"weight": ZEROS, "bits": 4, "group_size": 4}),
    ],
    "repack": [
        (
            "one block with the codes 0 to 7 in their order",
            {"blocks": torch.tensor([[0x40, 0x51, 0x62, 0x73]], dtype=torch.uint8), "count": 8},
        ),
        ("two blocks of 16 bytes", {"blocks": byte(2, 16), "count": 64}),
        ("an odd number of codes", {"blocks": byte(2, 4), "count": 15}),
        ("padding in the last block", {"blocks": byte(3, 4), "count": 18}),
    ],
    "clip_factors": [
        (
            "two rows, a large weight in an important column and in an unimportant one",
            {
                "weight": LARGE,
                "importance": torch.tensor([3.0, 1.0, 1.5, 0.5, 1.0, 0.002]),
                "bits": 3,
                "factors": FACTORS,
            },
        ),
        (
            "rows of twelve weights",
            {
                "weight": normal(4, 12),
                "importance": 4 * uniform(12) ** 3,
                "bits": 2,
                "factors": FACTORS,
            },
        ),
        (
            "factors in no order",
            {
                "weight": normal(5, 8) ** 3,
                "importance": uniform(8),
                "bits": 2,
                "factors": [0.5, 1.0, 0.35, 0.75],
            },
        ),
        (
            "a row of zeros, for which all factors are equally good",
            {
                "weight": torch.cat([torch.zeros(1, 6), LARGE]),
                "importance": torch.tensor([1.0, 2.0, 1.0, 0.5, 2.0, 0.01]),
                "bits": 4,
                "factors": [0.6, 0.4, 0.8],
            },
        ),
    ],
    "asymmetric_linear": [
        ("one token, two inputs, one output", TWO),
        ("three tokens and three outputs", layer(3, 6, 3)),
        ("twenty inputs", layer(2, 20, 3)),
        (
            "symmetric weights, whose zero point is 128",
            {**layer(2, 5, 4), "weight_zero_point": torch.full((4, 1), 128, dtype=torch.int32)},
        ),
    ],
    "smooth_values": [
        ("a query head for each value head", {**shared(2, 1, 2, 3, 2), "alpha": 0.5}),
        ("two query heads that share a value head", {**shared(2, 2, 2, 3, 8), "alpha": 0.5}),
        ("an alpha that is not a half", {**shared(2, 3, 2, 2, 3), "alpha": 0.8}),
        (
            "a feature that is zero in all its places",
            {**without(shared(2, 2, 2, 3, 4), "absmax", [1, 3]), "alpha": 0.5},
        ),
    ],
    "greedy_obq": [
        (
            "two weights",
            {
                "weight": torch.tensor([1.3, 2.4]),
                "hessian": PAIR,
                "scale": 1.0,
                "zero_point": 0,
                "bits": 2,
            },
        ),
        (
            "inputs that do not go together",
            {
                "weight": torch.tensor([0.3, -0.62, 0.87, -0.11]),
                "hessian": torch.tensor([1.0, 4.0, 9.0, 2.0]).double().diag(),
                "scale": 0.5,
                "zero_point": 2,
                "bits": 3,
            },
        ),
        ("six weights", {**row(6, 116), "scale": 0.55, "zero_point": 4, "bits": 3}),
        (
            "weights beyond the ends of the grid",
            {**row(8, 197, size=1.2), "scale": 0.4, "zero_point": 3, "bits": 3},
        ),
    ],
}

HIDDEN = {
    "round_groups": [
        ("a group of 128 and one of 2", {"weight": WIDE, "bits": 4, "group_size": 128}),
        ("groups larger than a row", {"weight": normal(2, 5), "bits": 3, "group_size": 64}),
        (
            "weights that are all negative",
            {"weight": -0.5 - normal(2, 6).abs(), "bits": 3, "group_size": 3},
        ),
        ("groups of one weight", {"weight": normal(3, 4), "bits": 8, "group_size": 1}),
        (
            "one bit",
            {"weight": torch.tensor([[-0.6, 0.9, 0.2, -0.1]]), "bits": 1, "group_size": 4},
        ),
        (
            "groups of equal weights",
            {
                "weight": torch.tensor([[0.3, 0.3, 0.3, -2.0, -2.0, -2.0, -2.0]]),
                "bits": 4,
                "group_size": 3,
            },
        ),
        (
            "weights half-way between two numbers, with a step of a half",
            {"weight": HALF_STEPS, "bits": 4, "group_size": 8},
        ),
        (
            "a large weight among small ones",
            {
                "weight": torch.cat([normal(2, 5), torch.tensor([[60.0], [-60.0]])], 1),
                "bits": 6,
                "group_size": 4,
            },
        ),
    ],
    "repack": [
        ("many blocks", {"blocks": byte(9, 16), "count": 288}),
        ("an odd number, in the middle of a block", {"blocks": byte(3, 16), "count": 77}),
        ("one code", {"blocks": byte(1, 8, low=16), "count": 1}),
        ("blocks of one byte", {"blocks": byte(5, 1), "count": 10}),
        ("the largest codes", {"blocks": byte(2, 4, low=255), "count": 13}),
        ("a whole block of padding", {"blocks": byte(4, 4), "count": 22}),
    ],
    "clip_factors": [
        (
            "many rows",
            {
                "weight": normal(12, 32),
                "importance": 9 * uniform(32) ** 4,
                "bits": 3,
                "factors": [1.0, 0.85, 0.7, 0.55, 0.4],
            },
        ),
        (
            "columns that do not matter at all",
            {
                "weight": LARGE.flip(0),
                "importance": torch.tensor([0.0, 1.0, 2.0, 1.0, 0.5, 0.0]),
                "bits": 4,
                "factors": FACTORS,
            },
        ),
        (
            "no column that matters",
            {
                "weight": normal(3, 5),
                "importance": torch.zeros(5),
                "bits": 3,
                "factors": [0.3, 0.9, 0.6],
            },
        ),
        (
            "one factor",
            {"weight": normal(2, 6), "importance": uniform(6), "bits": 2, "factors": [0.7]},
        ),
        (
            "rows of one sign",
            {
                "weight": normal(4, 9).abs() ** 2 * torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]),
                "importance": uniform(9),
                "bits": 2,
                "factors": FACTORS,
            },
        ),
        (
            "a factor above 1",
            {
                "weight": normal(5, 7),
                "importance": uniform(7),
                "bits": 3,
                "factors": [0.6, 1.2, 0.8, 1.0],
            },
        ),
    ],
    "asymmetric_linear": [
        ("many tokens", layer(7, 16, 5)),
        ("as many tokens as inputs and outputs", layer(4, 4, 4)),
        ("thousands of inputs whose products nearly cancel", balanced(3, 4000, 2)),
        (
            "zero points that are 0",
            {
                **layer(3, 9, 2),
                "input_zero_point": torch.zeros(3, 1, dtype=torch.int32),
                "weight_zero_point": torch.zeros(2, 1, dtype=torch.int32),
            },
        ),
        (
            "zero points at the other end",
            {
                **layer(2, 9, 3),
                "input_zero_point": torch.full((2, 1), 255, dtype=torch.int32),
                "weight_zero_point": torch.full((3, 1), 255, dtype=torch.int32),
            },
        ),
        ("one token and one output", layer(1, 300, 1)),
    ],
    "smooth_values": [
        ("three query heads for each of three", {**shared(3, 3, 4, 5, 6), "alpha": 0.5}),
        ("one value head for all", {**shared(1, 4, 3, 2, 12), "alpha": 0.6}),
        ("alpha of 0", {**shared(2, 2, 3, 4, 5), "alpha": 0.0}),
        ("alpha of 1", {**shared(2, 2, 3, 4, 5), "alpha": 1.0}),
        (
            "a feature that is zero in one of its places",
            {**without(shared(2, 2, 2, 3, 4), "absmax", [1]), "alpha": 0.5},
        ),
        (
            "a feature that no weight reads",
            {**without(shared(2, 2, 2, 3, 4), "output", [0, 2, 5]), "alpha": 0.7},
        ),
    ],
    "greedy_obq": [
        ("twelve weights", {**row(12, 14), "scale": 0.3, "zero_point": 7, "bits": 4}),
        ("two bits", {**row(9, 160), "scale": 1.2, "zero_point": 1, "bits": 2}),
        (
            "one weight",
            {
                "weight": torch.tensor([0.83]),
                "hessian": torch.tensor([[3.0]], dtype=torch.float64),
                "scale": 0.25,
                "zero_point": 3,
                "bits": 3,
            },
        ),
        (
            "inputs of very different sizes",
            {**row(10, 149, spread=0.5), "scale": 0.8, "zero_point": 3, "bits": 3},
        ),
        (
            "weights far beyond the grid",
            {**row(9, 99, size=2.0), "scale": 1.0, "zero_point": 2, "bits": 2},
        ),
    ],
}
