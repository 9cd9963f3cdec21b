"""Weights as whole numbers whose steps differ by row and column, and a file of them in as many bits
as the numbers are surprising. No recipe itself.

    weight (rows, columns) ≈ (codes - ZERO) · step of the row / scale of the column

Nothing is clipped: a finer step makes larger numbers, and an entropy coder charges for each what it
is worth, fractions of a bit too. At equal error that takes fewer bits than codes of one length
(Gish and Pierce, 1968, doi:10.1109/TIT.1968.1054193).

The coder (`sharing.arithmetic`) has frequencies for each of CLASSES of numbers, which differ in how
large they are expected to be: root · scale / step, where root is the root mean square of the
matrix. The reader knows all three, so it knows the class of each number before it has the number.

The file is one of `archive`; its description has the model's config, and its parts are

    roots, steps, scales    float16, of all matrices one after another: the linear layers of the
                            decoder in their order, then the table, which is also the output layer
    others                  float16, all other weights (norms) in the order of the model's state
    frequencies, streams    of each class that occurs; a stream has at most CHUNK numbers

The tokenizer is not in it.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from .. import archive
from ..layers import find_linears
from ..quantization.affine import Quantized
from ..quantization.gptq import gptq
from ..quantization.linear import pack_embedding_, pack_linears_
from ..sharing.arithmetic import decode, encode, share_frequencies

ZERO = 127  # the code of 0
CLASSES = 16  # half an octave of expected size each, in the middle from 1/√2 to 1
LANES, CHUNK = 1024, 2**24
DAMPING = 0.01
TABLE = "model.embed_tokens"


class Grid(NamedTuple):
    """A matrix; step, scale and root are float32 that float16 holds, 0 < all."""

    codes: Tensor  # (rows, columns) uint8
    step: Tensor  # (rows,)
    scale: Tensor  # (columns,)
    root: Tensor  # ()

    def weight(self) -> Tensor:
        """The matrix in float32."""
        return (self.codes.float() - ZERO) * self.step[:, None] / self.scale


def matrices(model: nn.Module) -> dict[str, nn.Module]:
    """What a file has as grids: the linear layers of a Llama's decoder by name, then the table.

    Raises:
        ValueError: the output layer has a weight of its own.
    """
    table = model.get_submodule(TABLE)
    if model.lm_head.weight is not table.weight:
        raise ValueError("the output layer must share the weight of the embedding")
    return {f"model.{name}": m for name, m in find_linears(model.model).items()} | {TABLE: table}


def column_scales(hessian: Tensor) -> Tensor:
    """Roots of what an error costs in each column, once the columns after it have made up for it.

    Scaled by them all columns cost the same. That is best where many bits are spent: bits depend on
    the product of the steps, the error on a sum, which is least where its terms are equal. Columns
    come by decreasing diagonal.

    Args:
        hessian: (columns, columns), XᵀX.
    """
    order, h = _ordered(hessian)
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(h)), upper=True)
    return torch.empty_like(inverse[0]).scatter_(0, order, 1 / inverse.diagonal())


def round_to_grid(weight: Tensor, hessian: Tensor, step: Tensor, scale: Tensor) -> Grid:
    """GPTQ on a grid with these steps (rows,) and scales (columns,), columns as in
    `column_scales`."""
    step, scale, root = half(step), half(scale), half(weight.float().square().mean().sqrt())
    ends = -ZERO * step[:, None], (255 - ZERO) * step[:, None]
    order, h = _ordered(hessian)
    found = gptq(
        (weight * scale)[:, order],
        h / scale[order, None] / scale[order],
        bits=8,
        choose=lambda groups, **_: ends,
        block=math.gcd(weight.shape[1], 96),
        damping=0.0,
    )
    codes = torch.empty_like(found.codes)
    codes[:, order] = found.codes
    return Grid(codes, step, scale, root)


def nearest(weight: Tensor, step: Tensor, scale: Tensor) -> Grid:
    """The nearest numbers of a grid with these steps (rows,) and scales (columns,)."""
    codes = (weight * scale / step[:, None]).round().clamp(-ZERO, 255 - ZERO) + ZERO
    return Grid(codes.byte(), step, scale, weight.float().square().mean().sqrt())


def half(x: Tensor) -> Tensor:
    """The nearest float16 numbers, in float32, above 0 if `x` is."""
    return x.clamp(min=2.0**-24).half().float()


def put_(model: nn.Module, grids: dict[str, Grid]) -> None:
    """Give a model the weights that its grids stand for, and all others in float16, in place."""
    with torch.no_grad():
        for name, module in matrices(model).items():
            module.weight.copy_(grids[name].weight())
        for weight in _others(model):
            weight.copy_(weight.half())


def pack_grids_(model: nn.Module, grids: dict[str, Grid]) -> None:
    """Replace the layers by packed ones, which are made float at every use, in place.

    All codes of a matrix take the bits of its largest one.
    """

    def quantized(grid: Grid) -> Quantized:
        low, high = min(int(grid.codes.min()), ZERO), max(int(grid.codes.max()), ZERO)
        bits = max(1, (high - low).bit_length())
        zero = torch.full((len(grid.step), 1), ZERO - low, dtype=torch.int32)
        return Quantized(grid.codes - low, grid.step[:, None], zero, bits)

    for name, grid in grids.items():
        if name == TABLE:
            pack_embedding_(model, TABLE, lambda _, w, grid=grid: quantized(grid), head="lm_head")
        else:
            pack_linears_(model, lambda _, w, grid=grid: quantized(grid), [name])
            model.get_submodule(name).input_scale = grid.scale.half()


def classes(grid: Grid) -> Tensor:
    """Which class each number of a matrix is in: uint8, the shape of its codes.

    Quotient, product and exponent are exact or rounded in one way on every machine.
    """
    expected = grid.root * grid.scale / grid.step[:, None]
    return (torch.frexp(expected * expected)[1] + CLASSES // 2).clamp(0, CLASSES - 1).byte()


def all_bytes(grids: dict[str, Grid]) -> float:
    """Bytes of all codes, steps and scales."""
    numbers = sum(len(grid.step) + len(grid.scale) for grid in grids.values())
    return code_bytes(grids) + 2 * numbers


def code_bytes(grids: dict[str, Grid]) -> float:
    """Bytes of all codes, by the entropy of each class."""
    counts = torch.zeros(CLASSES * 256, dtype=torch.int64)
    for grid in grids.values():
        index = 256 * classes(grid).int() + grid.codes
        counts += torch.bincount(index.flatten(), minlength=CLASSES * 256)
    counts = counts.view(CLASSES, 256).double()
    shares = counts / counts.sum(1, keepdim=True).clamp(min=1)
    return -(counts * shares.clamp(min=1e-30).log2()).sum().item() / 8


def write(model: nn.Module, grids: dict[str, Grid], path: Path) -> int:
    """Write a model that `put_` gave its weights; give back the size of the file in bytes."""
    ordered = [grids[name] for name in matrices(model)]
    tensors = [torch.stack([g.root for g in ordered])]
    tensors += [torch.cat([getattr(g, of) for g in ordered]) for of in ("step", "scale")]
    tensors.append(torch.cat([w.detach().flatten() for w in _others(model)]))
    for members in _by_class(ordered):
        symbols = torch.cat([g.codes[m] for g, m in zip(ordered, members, strict=True)])
        if not len(symbols):
            continue
        frequencies = share_frequencies(torch.bincount(symbols, minlength=256))
        tensors.append(frequencies.float())
        tensors += [encode(some, frequencies, lanes=LANES) for some in symbols.split(CHUNK)]
    data = archive.pack({"config": model.config.to_diff_dict()}, tensors)
    return Path(path).write_bytes(data)


def read(path: Path) -> tuple[nn.Module, dict[str, Grid]]:
    """The model in float32, in evaluation mode, and the grids from which its weights were made."""
    found = archive.read(Path(path).read_bytes(), str(path))
    with torch.random.fork_rng(devices=[]):
        model = LlamaForCausalLM(LlamaConfig.from_dict(found.description["config"])).eval()
    roots, steps, scales, others, *coded = found.tensors
    shapes = {name: module.weight.shape for name, module in matrices(model).items()}
    empty = [torch.empty(shape, dtype=torch.uint8) for shape in shapes.values()]
    rows, columns = zip(*shapes.values(), strict=True)
    parts = zip(empty, steps.split(rows), scales.split(columns), roots, strict=True)
    grids = [Grid(*some) for some in parts]
    coded = iter(coded)
    for members in _by_class(grids):
        counts = [int(m.sum()) for m in members]
        if not (count := sum(counts)):
            continue
        frequencies, symbols = next(coded).long(), []
        for start in range(0, count, CHUNK):
            size = min(CHUNK, count - start)
            symbols.append(decode(next(coded).byte(), frequencies, size, lanes=LANES))
        for grid, m, own in zip(grids, members, torch.cat(symbols).split(counts), strict=True):
            grid.codes[m] = own
    with torch.no_grad():
        own = _others(model)
        for weight, values in zip(own, others.split([w.numel() for w in own]), strict=True):
            weight.copy_(values.view(weight.shape))
    grids = dict(zip(shapes, grids, strict=True))
    put_(model, grids)
    return model, grids


def _others(model: nn.Module) -> list[Tensor]:
    """All parameters but those of the matrices."""
    taken = {id(module.weight) for module in matrices(model).values()}
    return [p for p in model.parameters() if id(p) not in taken]


def _by_class(grids: list[Grid]) -> Iterator[list[Tensor]]:
    """For each class, where its members are in each matrix: bool, the shape of its codes."""
    found = [classes(grid) for grid in grids]
    for i in range(CLASSES):
        yield [c == i for c in found]


def _ordered(hessian: Tensor) -> tuple[Tensor, Tensor]:
    """Columns by decreasing diagonal, and the Hessian in this order with damping."""
    h = hessian.float().clone()
    h.diagonal().add_(DAMPING * h.diagonal().mean())
    order = h.diagonal().argsort(descending=True, stable=True)
    return order, h[order][:, order]
