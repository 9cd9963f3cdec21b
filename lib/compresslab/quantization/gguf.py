"""GGUF: the file of llama.cpp, metadata and tensors in blocks of few bits, byte for byte.

    file = read_gguf("model.gguf")
    file.metadata["llama.block_count"].value        30
    file.tensors["token_embd.weight"].shape         (49152, 576)
    state = gguf_state(file)                        name -> float32
    write_gguf("copy.gguf", file.metadata, file.tensors)

Source: for the file, GGUF File Format Specification (2023), at
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; for the blocks, quantize_row_*_ref in
llama.cpp's ggml-quants.c; Q4_K is from its pull request 1684 (2023). A file, with every number in
it little-endian:

    header        magic "GGUF", version (uint32), how many tensors and how many entries of metadata
                  there are (uint64 each): 24 bytes
    metadata      key, type (uint32), value, one entry after another
    tensor infos  name, how many dimensions (uint32), each of them (uint64), type (uint32), offset
    data          tensor after tensor; this part, and in it each tensor, starts at a multiple of
                  the alignment; offsets (uint64) are counted from the start of this part

A string is its length in bytes (uint64) and UTF-8; an array is the type of its items (uint32), how
many there are (uint64), and the items. A block holds neighbours of a row, with q the code of one:

    format  numbers  bytes  bits    in a block, in this order                a number is
    F32           1      4  32      the number
    F16           1      2  16      the number
    Q4_0         32     18   4.5    d, codes                                 d · (q - 8)
    Q4_1         32     20   5      d, m, codes                              d · q + m
    Q8_0         32     34   8.5    d, codes (int8)                          d · q
    Q4_K        256    144   4.5    d, dmin, s and m of each 32, codes       d · s · q - dmin · m

d, dmin and the m of Q4_1 are float16, s and m of Q4_K 6 bits. Of a pair of 4-bit codes in one byte,
the low half is number i and the high half number i + 16, in Q4_K number i + 32 of 64.

On a CPU, decoding is bit for bit what llama.cpp's reference does, and so is coding, but for the
sign of an m that is 0 and the codes of numbers below 1e-36, which decode to 0. Not so coding to
Q4_K: here minimum and step of each 32 follow from the range, while llama.cpp tries 21 steps more,
fits both by least squares to the codes of each, and takes the best, with more weight on large
numbers. Not included: other formats, big-endian files, files in several parts.
"""

import math
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

# ---------------------------------------------------------------- blocks


@dataclass(frozen=True)
class Format:
    """Blocks of `block_size` numbers in `block_bytes` bytes; `number` is the type in a file.

    `decode` takes uint8 (blocks, block_bytes) to float32 (blocks, block_size), `encode` back.
    """

    name: str
    number: int
    block_size: int
    block_bytes: int
    decode: Callable[[Tensor], Tensor] = field(repr=False)
    encode: Callable[[Tensor], Tensor] = field(repr=False)

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block_size

    def shape(self, data: Tensor) -> tuple[int, ...]:
        """The shape of the numbers in `data`, uint8 (..., bytes of a row).

        Raises:
            ValueError: `data` is not uint8, or a row is not whole blocks.
        """
        if data.dtype != torch.uint8 or not data.ndim or data.shape[-1] % self.block_bytes:
            raise ValueError(
                f"data must be uint8 in rows of a multiple of {self.block_bytes} bytes for "
                f"{self.name}, not {data.dtype} of shape {tuple(data.shape)}"
            )
        return (*data.shape[:-1], data.shape[-1] // self.block_bytes * self.block_size)

    def dequantize(self, data: Tensor) -> Tensor:
        """uint8 (..., bytes of a row) to float32 (..., numbers of a row). Raises as `shape`."""
        shape = self.shape(data)
        return self.decode(data.reshape(-1, self.block_bytes)).view(shape)

    def quantize(self, values: Tensor) -> Tensor:
        """(..., numbers of a row) to uint8 (..., bytes of a row).

        Halves are rounded up in Q4_0 and Q4_1, away from 0 in Q8_0, to even in Q4_K and float16.

        Raises:
            ValueError: a row is not whole blocks; or, but for F32, a number is not finite, or so
                large that float16 cannot hold it or its scale.
        """
        if not values.ndim or values.shape[-1] % self.block_size:
            raise ValueError(
                f"values must have rows of a multiple of {self.block_size} numbers for "
                f"{self.name}, not the shape {tuple(values.shape)}"
            )
        blocks = self.encode(values.detach().float().reshape(-1, self.block_size))
        row_bytes = values.shape[-1] // self.block_size * self.block_bytes
        return blocks.view(*values.shape[:-1], row_bytes)


def _decode_q4_0(blocks: Tensor) -> Tensor:
    return _float(blocks[:, :2]) * (_unpack(blocks[:, 2:]).float() - 8)


def _encode_q4_0(values: Tensor) -> Tensor:
    # The code 0 is for the number farthest from 0, of either sign: -8 has no counterpart +8.
    d = values.gather(1, values.abs().argmax(1, keepdim=True)) / -8
    codes = (values * _inverse(d) + 8.5).clamp(0, 15).byte()
    return torch.cat([_half(d), _pack(codes)], 1)


def _decode_q4_1(blocks: Tensor) -> Tensor:
    return _float(blocks[:, :2]) * _unpack(blocks[:, 4:]) + _float(blocks[:, 2:4])


def _encode_q4_1(values: Tensor) -> Tensor:
    m = values.amin(1, keepdim=True)
    d = (values.amax(1, keepdim=True) - m) / 15
    codes = ((values - m) * _inverse(d) + 0.5).clamp(0, 15).byte()
    return torch.cat([_half(d), _half(m), _pack(codes)], 1)


def _decode_q8_0(blocks: Tensor) -> Tensor:
    return _float(blocks[:, :2]) * blocks[:, 2:].view(torch.int8)


def _encode_q8_0(values: Tensor) -> Tensor:
    d = values.abs().amax(1, keepdim=True) / 127
    q = values * _inverse(d)
    codes = q.trunc() + (2 * q.frac()).trunc()
    return torch.cat([_half(d), codes.to(torch.int8).view(torch.uint8)], 1)


def _decode_q4_k(blocks: Tensor) -> Tensor:
    d, dmin = _float(blocks[:, :2]), _float(blocks[:, 2:4])
    # Four bytes with s of the first four groups, four with m, and four with the low halves of s
    # and m of the last four groups, whose upper two bits are those of the first eight bytes.
    s, m, low = blocks[:, 4:16].reshape(-1, 3, 4).unbind(1)
    s = torch.cat([s & 63, (low & 15) | (s >> 6 << 4)], 1)
    m = torch.cat([m & 63, (low >> 4) | (m >> 6 << 4)], 1)
    codes = _unpack(blocks[:, 16:].reshape(-1, 4, 32)).view(-1, 8, 32)
    return ((d * s)[:, :, None] * codes - (dmin * m)[:, :, None]).flatten(1)


def _encode_q4_k(values: Tensor) -> Tensor:
    groups = values.view(-1, 8, 32)
    dmin, m = _six_bits((-groups.amin(2)).clamp(min=0))
    low = _float(dmin) * m  # known before the step is chosen, which has to reach the maximum
    d, s = _six_bits((groups.amax(2) + low).clamp(min=0) / 15)
    inverse = _inverse(_float(d) * s)
    codes = ((groups + low[:, :, None]) * inverse[:, :, None]).round().clamp(0, 15).byte()
    first_s, last_s, first_m, last_m = *s.chunk(2, 1), *m.chunk(2, 1)
    scales = [first_s | (last_s >> 4 << 6), first_m | (last_m >> 4 << 6)]
    scales.append((last_s & 15) | (last_m << 4))
    return torch.cat([d, dmin, *scales, _pack(codes.view(-1, 4, 64)).flatten(1)], 1)


def _six_bits(x: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers ≥ 0, (blocks, 8), as a float16, (blocks, 2 bytes), times codes, uint8."""
    d = _half(x.amax(1, keepdim=True) / 63)
    return d, (x * _inverse(_float(d))).round().clamp(0, 63).byte()


def _unpack(data: Tensor) -> Tensor:
    """(..., k) bytes as (..., 2k) codes: all low halves, then all high halves."""
    return torch.cat([data & 15, data >> 4], -1)


def _pack(codes: Tensor) -> Tensor:
    low, high = codes.chunk(2, -1)
    return low | (high << 4)


def _inverse(d: Tensor) -> Tensor:
    """1 / d, or 0 where that is infinite: what d is 0 for has one code."""
    return (1 / d).nan_to_num(posinf=0, neginf=0)


def _half(x: Tensor) -> Tensor:
    half = x.half()
    if not half.isfinite().all():
        raise ValueError("values must be finite, and small enough for float16")
    return half.view(torch.uint8)


def _float(data: Tensor) -> Tensor:
    return _view(data, torch.float16).float()


def _view(data: Tensor, dtype: torch.dtype) -> Tensor:
    # A copy starts where numbers of this dtype may start; bytes may lie anywhere.
    return data.clone(memory_format=torch.contiguous_format).view(dtype)


F32 = Format("F32", 0, 1, 4, lambda b: _view(b, torch.float32), lambda x: _view(x, torch.uint8))
F16 = Format("F16", 1, 1, 2, _float, _half)
Q4_0 = Format("Q4_0", 2, 32, 18, _decode_q4_0, _encode_q4_0)
Q4_1 = Format("Q4_1", 3, 32, 20, _decode_q4_1, _encode_q4_1)
Q8_0 = Format("Q8_0", 8, 32, 34, _decode_q8_0, _encode_q8_0)
Q4_K = Format("Q4_K", 12, 256, 144, _decode_q4_k, _encode_q4_k)
FORMATS = {f.number: f for f in (F32, F16, Q4_0, Q4_1, Q8_0, Q4_K)}

# ---------------------------------------------------------------- the file

HEADER = struct.Struct("<4sIQQ")
# The types of metadata in the order of their numbers, each with its letter in `struct`.
LETTERS = {
    **{"uint8": "B", "int8": "b", "uint16": "H", "int16": "h", "uint32": "I", "int32": "i"},
    **{"float32": "f", "bool": "?", "string": "", "array": ""},
    **{"uint64": "Q", "int64": "q", "float64": "d"},
}
KINDS = list(LETTERS)


class Value(NamedTuple):
    """A value of the metadata with its type: Value("uint32", 30), Value("string[]", ["a", "b"]).

    The items of an "array[]" are such values, each an array; they may differ in type.
    """

    kind: str
    value: Any


@dataclass(frozen=True, eq=False)
class GGUFTensor:
    """A tensor as a file has it: `data` is uint8 (..., bytes of a row).

    Read from a file, `data` is mapped: a page is read when it is first used. Then
    `data.storage_offset()` is the place in the file.
    """

    format: Format
    data: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """As in torch; the file has the same numbers in reverse: 576, 49152 for (49152, 576)."""
        return self.format.shape(self.data)

    def dequantize(self) -> Tensor:
        """The numbers in float32, in memory of their own."""
        return self.format.dequantize(self.data)


@dataclass(frozen=True, eq=False)
class GGUF:
    """What a file holds, in its order."""

    version: int
    metadata: dict[str, Value]
    tensors: dict[str, GGUFTensor]


def read_gguf(path: Path) -> GGUF:
    """Map a file of version 2 or 3 (the same, but that those of version 3 may be big-endian).

    Raises:
        ValueError: it is no such file, it is cut off or damaged, or the type of a tensor is not in
            `FORMATS`.
    """
    with open(path, "rb") as file:
        if (size := os.fstat(file.fileno()).st_size) < HEADER.size:
            raise ValueError(f"{path} is no GGUF file: it has {size} bytes")
        # Copy on write: what is written to the tensors does not reach the file.
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    magic, version, tensor_count, metadata_count = HEADER.unpack(data.read(HEADER.size))
    if magic != b"GGUF":
        raise ValueError(f"{path} is no GGUF file: it starts with {magic}")
    if version not in (2, 3):
        raise ValueError(f"the version of {path} must be 2 or 3, not {version}")
    try:
        metadata = _read_entries(data, metadata_count, lambda: _read_value(data))
        infos = _read_entries(data, tensor_count, lambda: _read_info(data))
        alignment = _alignment(metadata)
        start = data.tell() + -data.tell() % alignment
        mapped = torch.frombuffer(data, dtype=torch.uint8)[start:]
        tensors = {n: _tensor(n, *info, mapped, alignment) for n, info in infos.items()}
    except (ValueError, RecursionError) as error:  # recursion: array in array in array ...
        raise ValueError(f"{path} cannot be read: {error}") from error
    return GGUF(version, metadata, tensors)


def write_gguf(path: Path, metadata: Mapping[str, Value], tensors: Mapping[str, GGUFTensor]) -> int:
    """Write a file of version 3; give back its size in bytes.

    What `read_gguf` gave becomes the same file, byte for byte, if that was of version 3 and its
    tensors lay one after another. `path` may be the file from which they are mapped.

    Raises:
        ValueError: a value that does not fit its type, or data that are not whole blocks, or none.
    """
    alignment = _alignment(metadata)
    header = bytearray(HEADER.pack(b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        try:
            header += _pack_items("string", [key]) + _pack_value(value)
        except (ValueError, TypeError, AttributeError, OverflowError, struct.error) as error:
            raise ValueError(f"{key} does not fit its type, {value!s:.80}: {error}") from error
    offset = 0
    for name, tensor in tensors.items():
        dims = tensor.shape[::-1]
        if 0 in dims:
            raise ValueError(f"tensor {name} of shape {tensor.shape} is empty")
        header += _pack_items("string", [name]) + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        header += struct.pack("<IQ", tensor.format.number, offset)
        offset += tensor.data.nbytes + -tensor.data.nbytes % alignment
    part = Path(f"{path}.part")  # whoever has the old file mapped keeps it
    with part.open("wb") as file:
        file.write(header + bytes(-len(header) % alignment))
        for tensor in tensors.values():
            file.write(tensor.data.cpu().contiguous().numpy())
            file.write(bytes(-tensor.data.nbytes % alignment))
    os.replace(part, path)
    return Path(path).stat().st_size


def gguf_state(file: GGUF) -> dict[str, Tensor]:
    """Every tensor of a file in float32, under its name in llama.cpp.

    The rows of attn_q and attn_k of a Llama are in another order than in transformers: rows 0, 1,
    2, 3, ... of a head of n rows are there its rows 0, n/2, 1, n/2 + 1, ...
    """
    return {name: tensor.dequantize() for name, tensor in file.tensors.items()}


def _alignment(metadata: Mapping[str, Value]) -> int:
    kind, number = metadata.get("general.alignment", Value("uint32", 32))
    # The specification wants a multiple of 8, llama.cpp a power of two.
    if kind != "uint32" or number < 8 or number & (number - 1):
        raise ValueError(
            f"general.alignment must be 8, 16, 32, ... (uint32), not {number} ({kind})"
        )
    return number


def _tensor(
    name: str, dims: list[int], number: int, offset: int, mapped: Tensor, alignment: int
) -> GGUFTensor:
    if number not in FORMATS:
        known = ", ".join(f"{n} {f.name}" for n, f in FORMATS.items())
        raise ValueError(f"tensor {name} has type {number}, not one of {known}")
    form = FORMATS[number]
    if not dims or 0 in dims or dims[0] % form.block_size:
        raise ValueError(f"tensor {name} of type {form.name} has dimensions {dims}")
    shape = [*dims[:0:-1], dims[0] // form.block_size * form.block_bytes]
    end = offset + math.prod(shape)
    if offset % alignment or end > len(mapped):
        raise ValueError(
            f"tensor {name} is at {offset} to {end} in {len(mapped)} bytes of data aligned to "
            f"{alignment}"
        )
    return GGUFTensor(form, mapped[offset:end].view(shape))


def _read_entries(data: mmap.mmap, count: int, read: Callable[[], Any]) -> dict[str, Any]:
    entries = {}
    for _ in range(count):
        name = _read(data, "string")
        if name in entries:
            raise ValueError(f"{name} is there twice")
        entries[name] = read()
    return entries


def _read_info(data: mmap.mmap) -> tuple[list[int], int, int]:
    dims = _read_items(data, "uint64", _read(data, "uint32"))
    return dims, _read(data, "uint32"), _read(data, "uint64")


def _read_value(data: mmap.mmap) -> Value:
    kind = _read_kind(data)
    value = _read(data, kind)
    return value if kind == "array" else Value(kind, value)


def _read_kind(data: mmap.mmap) -> str:
    number = _read(data, "uint32")
    if number >= len(KINDS):
        raise ValueError(f"there is no type {number}")
    return KINDS[number]


def _read(data: mmap.mmap, kind: str) -> Any:
    return _read_items(data, kind, 1)[0]


def _read_items(data: mmap.mmap, kind: str, count: int) -> list:
    if kind == "string":
        return [_take(data, _read(data, "uint64")).decode() for _ in range(count)]
    if kind == "array":
        return [_read_array(data) for _ in range(count)]
    form = f"<{count}{LETTERS[kind]}"
    return list(struct.unpack(form, _take(data, count * struct.calcsize(f"<{LETTERS[kind]}"))))


def _read_array(data: mmap.mmap) -> Value:
    kind = _read_kind(data)
    return Value(f"{kind}[]", _read_items(data, kind, _read(data, "uint64")))


def _take(data: mmap.mmap, size: int) -> bytes:
    left = len(data) - data.tell()
    if size > left:  # said before anything of this size is made
        raise ValueError(f"{size} bytes are to follow byte {data.tell()}, and {left} are left")
    return data.read(size)


def _pack_value(value: Value) -> bytes:
    kind = "array" if value.kind.endswith("[]") else value.kind
    items = [value if kind == "array" else value.value]
    return struct.pack("<I", KINDS.index(kind)) + _pack_items(kind, items)


def _pack_items(kind: str, items: list) -> bytes:
    if kind == "string":
        raw = [item.encode() for item in items]
        return b"".join(struct.pack("<Q", len(text)) + text for text in raw)
    if kind == "array":
        return b"".join(_pack_array(item) for item in items)
    return struct.pack(f"<{len(items)}{LETTERS[kind]}", *items)


def _pack_array(value: Value) -> bytes:
    kind = value.kind[:-2]
    return struct.pack("<IQ", KINDS.index(kind), len(value.value)) + _pack_items(kind, value.value)
