"""Deep Compression's file: kept weights as gaps and codes, both Huffman coded, and their codebooks.

Source: Han et al. (2015), Deep Compression, arXiv:1510.00149, sections 2 and 4, figure 2:

    cluster_linears_(model, lambda name, w: cluster(w, bits=4, mask=w != 0))
    save(model, "model.deep")                       bytes of the file by section
    dense.load_state_dict(load("model.deep"))       the model before layers were replaced

The weights of a matrix are read row by row, and for each that is kept there is an entry: its code,
and its gap, the number of zeros since the last entry (the paper's difference, less 1). A gap has at
most 2^gap_bits - 1 zeros. Where there are more, fillers divide them: entries with the largest gap
and the code 0, which stands for 0. Without Huffman coding an entry would take bits + gap_bits; the
paper has gap_bits 5 for linear layers. A matrix without zeros has gaps of 0 alone, which take none.

The file is one of `storage`, a safetensors file, in which `name:deep` stands for a matrix `name`:
uint8, these sections one after another, every number in them little-endian:

    head        24 bytes: bits, gap_bits, zero, dtype (uint8), and rows, columns, groups of weights,
                entries, bytes of the codes (uint32)
    codebooks   groups · (2^bits - zero) numbers of that dtype
    tables      2^bits + 2^gap_bits code lengths, int8
    codes, gaps the two streams of `huffman`

Beside them is `deep_compression`, int64 (2,): the version, 1, and the CRC-32 of the names, dtypes,
shapes and bytes of all other tensors by name. A file with another one is refused.

Differs from the paper: gaps run on from row to row, and the file is whole, with the dense rest.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from .. import storage
from . import huffman
from .codebooks import Clustered, CodebookLinear

VERSION = 1
CHECK, SUFFIX = "deep_compression", ":deep"
HEAD = struct.Struct("<4B5I")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
SECTIONS = ("head", "codebooks", "tables", "codes", "gaps")


def to_entries(weight: Clustered, *, gap_bits: int = 5) -> tuple[Tensor, Tensor]:
    """Gaps and codes of the entries of a matrix, fillers included: uint8 (entries,) each.

    Raises:
        ValueError: `gap_bits` is not 1 to 8.
    """
    if not 1 <= gap_bits <= 8:
        raise ValueError(f"gap_bits must be 1 to 8, not {gap_bits}")
    flat = weight.codes.cpu().flatten()
    place = flat.nonzero().flatten() if weight.zero else torch.arange(len(flat))
    zeros = place.diff(prepend=place.new_full((1,), -1)) - 1
    at = ((zeros >> gap_bits) + 1).cumsum(0) - 1  # of the entry, behind its fillers
    entries = int(at[-1]) + 1 if len(at) else 0
    gaps = torch.full((entries,), 2**gap_bits - 1, dtype=torch.uint8)
    gaps[at] = (zeros & (2**gap_bits - 1)).byte()
    return gaps, torch.zeros_like(gaps).index_copy_(0, at, flat[place])


def from_entries(gaps: Tensor, codes: Tensor, shape: tuple[int, int]) -> Tensor:
    """The codes of the whole matrix, uint8 of this shape, 0 where there is no entry.

    Raises:
        ValueError: the gaps lead out of the matrix.
    """
    flat = torch.zeros(shape, dtype=torch.uint8).flatten()
    place = (gaps.long() + 1).cumsum(0) - 1
    if len(place) and place[-1] >= len(flat):
        raise ValueError(f"gaps lead to entry {int(place[-1])} of a matrix {tuple(shape)}")
    return flat.index_copy_(0, place, codes).view(shape)


def to_sections(weight: Clustered, *, gap_bits: int = 5) -> dict[str, Tensor]:
    """A matrix as the sections of the file: uint8 (bytes,) each, by name.

    Raises:
        ValueError: it is no matrix, its codebook has another dtype than `DTYPES`, or `gap_bits` is
            not 1 to 8.
    """
    if weight.codes.ndim != 2 or weight.codebook.dtype not in DTYPES:
        raise ValueError(
            f"weight must be a matrix with codebooks in one of {DTYPES}, not of shape "
            f"{tuple(weight.codes.shape)} with {weight.codebook.dtype}"
        )
    gaps, codes = to_entries(weight, gap_bits=gap_bits)
    code_table = huffman.code_lengths(torch.bincount(codes, minlength=2**weight.bits))
    gap_table = huffman.code_lengths(torch.bincount(gaps, minlength=2**gap_bits))
    code_stream = huffman.encode(codes, code_table)
    kind, groups = DTYPES.index(weight.codebook.dtype), len(weight.codebook)
    head = HEAD.pack(
        *(weight.bits, gap_bits, weight.zero, kind),
        *(*weight.codes.shape, groups, len(codes), len(code_stream)),
    )
    return {
        "head": torch.frombuffer(bytearray(head), dtype=torch.uint8),
        "codebooks": _bytes(weight.codebook[:, int(weight.zero) :]),
        "tables": _bytes(torch.cat([code_table, gap_table])),
        "codes": code_stream,
        "gaps": huffman.encode(gaps, gap_table),
    }


def from_sections(data: Tensor) -> Clustered:
    """The matrix whose sections by `to_sections`, joined, are `data`, uint8 (bytes,)."""
    bits, gap_bits, zero, kind, *shape, groups, entries, code_bytes = HEAD.unpack(
        bytes(data[: HEAD.size].tolist())
    )
    dtype, tables = DTYPES[kind], 2**bits + 2**gap_bits
    book_bytes = groups * (2**bits - zero) * dtype.itemsize
    sizes = [HEAD.size, book_bytes, tables, code_bytes]
    _, book, table, codes, gaps = data.split([*sizes, len(data) - sum(sizes)])
    code_table, gap_table = table.view(torch.int8).split([2**bits, 2**gap_bits])
    codes = huffman.decode(codes, code_table, entries)
    gaps = huffman.decode(gaps, gap_table, entries)
    book = book.clone().view(dtype).view(groups, -1)  # without the rest
    book = F.pad(book, (1, 0)) if zero else book
    return Clustered(from_entries(gaps, codes, tuple(shape)), book, bits, bool(zero))


def save(
    model: nn.Module,
    path: Path,
    *,
    clustered: Mapping[str, Clustered] | None = None,
    gap_bits: int = 5,
) -> dict[str, int]:
    """Write a model to `path`, every `CodebookLinear` in sections; give back the bytes by section.

    Besides the five sections there are "dense", all other tensors, and "file", the header of the
    safetensors file and the check. The sum is the size of the file.

    Args:
        clustered: what other tensors are stored as, by name: an embedding table, say. Tensors that
            layers share are stored once if they are the same `Clustered`.

    Raises:
        ValueError: a name in `clustered` that the model has not or with another shape, a name that
            the file has for itself, and as `to_sections`.
    """
    tensors, weights = _take_apart(model, clustered or {})
    sections = {id(w): to_sections(w, gap_bits=gap_bits) for w in weights.values()}
    joined = {key: torch.cat(list(parts.values())) for key, parts in sections.items()}
    tensors |= {f"{name}{SUFFIX}": joined[id(weight)] for name, weight in weights.items()}
    tensors[CHECK] = torch.tensor([VERSION, _checksum(tensors)])
    size = storage.save(_State(tensors), path)
    sizes = {s: sum(len(parts[s]) for parts in sections.values()) for s in SECTIONS}
    with open(path, "rb") as file:
        (header,) = struct.unpack("<Q", file.read(8))
    sizes["file"] = 8 + header + tensors[CHECK].nbytes
    return sizes | {"dense": size - sum(sizes.values())}


def read(path: Path) -> dict[str, Tensor | Clustered]:
    """What a file holds, by name; linear layers have their weight, `name.weight`, clustered.

    Raises:
        ValueError: it is no such file, has another version, or was cut off or altered.
    """
    try:
        tensors = storage.load(path)
    except (SafetensorError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read, it was cut off or altered: {error}") from error
    check = tensors.pop(CHECK, torch.empty(0))
    if check.shape != (2,) or check.dtype != torch.int64:
        raise ValueError(f"{path} is no file of Deep Compression: it has no {CHECK}")
    version, checksum = check.tolist()
    if version != VERSION:
        raise ValueError(f"the version of {path} must be {VERSION}, not {version}")
    if (found := _checksum(tensors)) != checksum:
        raise ValueError(f"{path} was altered: its checksum is {found:08x}, not {checksum:08x}")
    return {
        name.removesuffix(SUFFIX): from_sections(t) if name.endswith(SUFFIX) else t
        for name, t in tensors.items()
    }


def load(path: Path) -> dict[str, Tensor]:
    """The state dictionary, every matrix whole again, bit for bit. Raises as `read`."""
    return {n: w.reconstruct() if isinstance(w, Clustered) else w for n, w in read(path).items()}


class _State:
    """Tensors in the place of a model, for `storage.save`."""

    def __init__(self, tensors: dict[str, Tensor]):
        self.tensors = tensors

    def state_dict(self) -> dict[str, Tensor]:
        return self.tensors


def _take_apart(
    model: nn.Module, clustered: Mapping[str, Clustered]
) -> tuple[dict[str, Tensor], dict[str, Clustered]]:
    """The tensors of a model that stay as they are, and those that are clustered."""
    state, weights, found = dict(model.state_dict()), dict(clustered), {}
    if own := [name for name in state if name.endswith(SUFFIX) or name == CHECK]:
        raise ValueError(f"{own[0]} is a name that the file has for itself")
    for name, weight in clustered.items():
        if name not in state or state[name].shape != weight.codes.shape:
            raise ValueError(f"clustered has {name} {tuple(weight.codes.shape)}: not in the model")
        del state[name]
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CodebookLinear):
            prefix = f"{name}." if name else ""
            if module not in found:
                found[module] = module.clustered()
            weights[f"{prefix}weight"] = found[module]
            del state[f"{prefix}codes"], state[f"{prefix}codebook"]
    return state, weights


def _checksum(tensors: Mapping[str, Tensor]) -> int:
    checksum = 0
    for name, tensor in sorted(tensors.items()):
        title = f"{name} {tensor.dtype} {tuple(tensor.shape)}"
        checksum = zlib.crc32(_bytes(tensor).numpy(), zlib.crc32(title.encode(), checksum))
    return checksum


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
