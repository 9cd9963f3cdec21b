"""Arrays of numbers and a description of them as bytes: small, checked, and not trusted.

    data = pack({"name": "a"}, [torch.tensor([3, 1, 2]), torch.rand(2, 2)])
    archive = read(data, "what the data is called in messages")
    archive.description["name"], archive.tensors

All numbers in it are little-endian:

    offset   bytes   what
    0        8       MAGIC; its bytes beyond ASCII, \\r\\n and \\n show a file that was sent as text
    8        4       version, 1
    12       4       n, all bytes
    16       4       d, bytes of the description as it is stored
    20       4       bytes of the description as it is read
    24       d       the description, a JSON object in UTF-8, compressed by LZMA
    24 + d           the streams of the parts, one after another
    n - 4    4       CRC-32 of everything before

The description has, beside what the caller put there, "parts", with an entry for each array:

    [type, lowest, shape, [[method, bytes of the stream], ...]]
    number           of an earlier part, with which this one is equal; it is stored once

A part of type 1, 2, 4 or 8 has whole numbers: each less `lowest` is a code of so many bits, all in
one stream, by `quantization.packing`. One of type "float16" or "float32" has a stream for each byte
of a number, lowest first: the byte of sign and exponent is far from random, and others are not.
"float32" is for what float16 does not hold exactly, so that no number changes.

A stream is stored by method 0 as it is, 1 compressed by deflate, or 2 by LZMA, whichever is the
shortest. On weights both are mostly coders of single bytes, and within 2 % of the entropy, since a
byte holds two codes of 3 or 4 bits, or four of 2. `sharing.huffman` and `sharing.arithmetic` are
such coders to be read; a stream for each small matrix comes out as long there, and loads slower.

Nothing that is read is run. The checksum finds accidents; against intent, a length is checked
before so much is made: all numbers are at most MOST for each byte that was read, and so are the
bytes of the description for each of its own.
"""

import json
import lzma
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .quantization import packing

MAGIC = b"\x89CLAB\r\n\n"
VERSION = 1
HEAD = struct.Struct("<8s4I")
CHECK = 4
LOWEST = -128  # of whole numbers, that int8 and uint8 hold: up to 255
MOST = 64
DICTIONARY = 2**18  # bytes in which LZMA looks for repetitions
FLOATS = {"float16": torch.float16, "float32": torch.float32}


class Budget:
    """How many numbers may still be made."""

    def __init__(self, numbers: int):
        self.left = numbers

    def take(self, *shape: int) -> int:
        """How many numbers have this shape. Raises ValueError if none or too many have."""
        if not all(type(n) is int and n > 0 for n in shape):
            raise ValueError(f"a part cannot have the shape {shape}")
        count = math.prod(shape)
        if count > self.left:
            raise ValueError(f"{count:,} numbers are more than {MOST} for each byte of the file")
        self.left -= count
        return count


@dataclass(frozen=True)
class Archive:
    """What was read: the arrays, int16 or float32, equal ones the same tensor; the bytes of each,
    0 for one that is equal to another; and what is left of the budget of numbers."""

    description: dict
    tensors: list[Tensor]
    sizes: list[int]
    budget: Budget


def pack(description: dict, tensors: Sequence[Tensor]) -> bytes:
    """All bytes. Costs about a second for each MB.

    Args:
        description: of what JSON can hold, without "parts".
        tensors: float16, float32, or whole numbers from -128 to 255 that differ by at most 255;
            none is empty.

    Raises:
        ValueError: others.
    """
    parts, streams, found = [], [], {}
    for number, tensor in enumerate(tensors):
        entry, raw = _encode(tensor)
        key = json.dumps(entry), *raw
        if found.setdefault(key, number) != number:
            parts.append(found[key])
            continue
        stored = [_squeeze(data) for data in raw]
        streams += [data for _, data in stored]
        parts.append([*entry, [[method, len(data)] for method, data in stored]])
    whole = json.dumps(description | {"parts": parts}, ensure_ascii=False, separators=(",", ":"))
    short, body = _lzma(whole.encode(), 3), b"".join(streams)
    size = HEAD.size + len(short) + len(body) + CHECK
    data = HEAD.pack(MAGIC, VERSION, size, len(short), len(whole.encode())) + short + body
    return data + zlib.crc32(data).to_bytes(CHECK, "little")


def read(data: bytes, name: str) -> Archive:
    """What `pack` packed.

    Raises:
        ValueError: the bytes, called `name` in the message, are of another kind or version, were
            cut off or altered, or say what cannot be.
    """
    start, length = _check(data, name)
    try:
        if start > len(data) - CHECK:
            raise ValueError("the description does not fit in the file")
        if length > MOST * (start - HEAD.size):
            raise ValueError(f"{length:,} bytes of description are too many")
        description = json.loads(_expand(2, data[HEAD.size : start], length))
        end, budget = len(data) - CHECK, Budget(MOST * len(data))
        tensors, sizes = [], []
        for entry in description.pop("parts"):
            if type(entry) is int:
                tensors.append(tensors[entry])
                sizes.append(0)
            else:
                tensors.append(_decode(entry, data[:end], start, budget))
                sizes.append(sum(size for _, size in entry[3]))
                start += sizes[-1]
        if start != end:
            raise ValueError(f"{end - start} bytes belong to no part")
    except Exception as error:  # of json, lzma, zlib and torch
        raise ValueError(
            f"{name} is whole, but says what cannot be ({error}): do not use it"
        ) from error
    return Archive(description, tensors, sizes, budget)


def uncoded_size(tensor: Tensor) -> int:
    """Bytes of an array before its streams are compressed, were whole numbers packed in as few bits
    as their range needs. Raises ValueError as `pack`.
    """
    _, streams = _encode(tensor)
    if tensor.is_floating_point():
        return sum(map(len, streams))
    span = int(tensor.max()) - int(tensor.min())
    return packing.packed_size(tensor.numel(), max(1, span.bit_length()))


def _check(data: bytes, name: str) -> tuple[int, int]:
    """Where the description ends, and how long it is when it is read."""
    if data[: len(MAGIC)] != MAGIC:
        raise ValueError(f"{name} is no file of compresslab: it begins with {data[:8]!r}")
    version, size, stored, length = HEAD.unpack(data[: HEAD.size].ljust(HEAD.size, b"\0"))[1:]
    if len(data) >= HEAD.size and version != VERSION:
        raise ValueError(
            f"{name} has version {version}, and this library reads {VERSION}: "
            "load it with the library that wrote it, or export the model again"
        )
    if len(data) != max(size, HEAD.size + CHECK):
        raise ValueError(
            f"{name} was cut off, or something was added: it has {len(data):,} bytes of {size:,}; "
            "copy it again"
        )
    found, expected = zlib.crc32(data[:-CHECK]), int.from_bytes(data[-CHECK:], "little")
    if found != expected:
        raise ValueError(
            f"{name} was altered: its checksum is {found:08x}, not {expected:08x}; copy it again"
        )
    return HEAD.size + stored, length


def _encode(tensor: Tensor) -> tuple[list, list[bytes]]:
    """Type, lowest and shape of a part, and its streams before compression."""
    flat, lowest = tensor.detach().cpu().contiguous().flatten(), 0
    if not flat.is_floating_point():
        lowest, highest = int(flat.min()), int(flat.max())
        if highest - lowest > 255 or lowest < LOWEST or highest > 255:
            raise ValueError(f"whole numbers from {lowest} to {highest} do not fit in a byte each")
        kind = next(bits for bits in (1, 2, 4, 8) if highest - lowest < 2**bits)
        planes = [packing.pack((flat.int() - lowest).byte(), kind)]
    elif flat.dtype in FLOATS.values():
        half = flat.half()
        if torch.equal(half.float().view(torch.int32), flat.float().view(torch.int32)):
            flat = half
        kind = str(flat.dtype).removeprefix("torch.")
        planes = flat.view(torch.uint8).view(-1, flat.itemsize).T
    else:
        raise ValueError(f"numbers must be float32 or float16, not {flat.dtype}")
    return [kind, lowest, list(tensor.shape)], [p.contiguous().numpy().tobytes() for p in planes]


def _decode(entry: list, data: bytes, start: int, budget: Budget) -> Tensor:
    """A part whose streams begin at `start`, int16 or float32."""
    kind, lowest, shape, stored = entry
    count, whole = budget.take(*shape), kind in (1, 2, 4, 8)
    dtype = torch.uint8 if whole else FLOATS[kind]
    if len(stored) != dtype.itemsize or not LOWEST <= lowest <= 255:
        raise ValueError(f"a part of type {kind} from {lowest} on has {len(stored)} streams")
    planes = []
    for method, size in stored:
        if type(size) is not int or not 0 <= size <= len(data) - start:
            raise ValueError(f"a stream of {size} bytes has no place in the file")
        length = packing.packed_size(count, kind) if whole else count
        planes.append(_expand(method, data[start : start + size], length))
        start += size
    joined = torch.frombuffer(bytearray(b"".join(planes)), dtype=torch.uint8)
    if whole:
        return packing.unpack(joined, kind, tuple(shape)).short() + lowest
    return joined.view(len(planes), -1).T.flatten().view(dtype).view(shape).float()


def _squeeze(data: bytes) -> tuple[int, bytes]:
    """The method that makes a stream shortest, the first of equally good ones, and the stream."""
    ways = [(0, data)]
    for strategy in (zlib.Z_HUFFMAN_ONLY, zlib.Z_DEFAULT_STRATEGY):
        deflate = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
        ways.append((1, deflate.compress(data) + deflate.flush()))
    if len(data) > 1024:  # it takes its time, and learns nothing from less
        ways += [(2, _lzma(data, context)) for context in (0, 3)]
    return min(ways, key=lambda way: len(way[1]))


def _expand(method: int, data: bytes, size: int) -> bytes:
    """What was stored, in exactly this many bytes; at most one more is ever made."""
    if method == 1:
        data = zlib.decompressobj(-15).decompress(data, size + 1)
    elif method == 2:
        decoder = lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=_filters(0))
        data = decoder.decompress(data, size + 1)
    elif method != 0:
        raise ValueError(f"there is no method {method!r}")
    if len(data) != size:
        raise ValueError(f"a stream does not have {size:,} bytes")
    return data


def _lzma(data: bytes, context: int) -> bytes:
    """LZMA that guesses a byte by as many bits of the one before; reading needs no `context`."""
    return lzma.compress(data, lzma.FORMAT_RAW, filters=_filters(context))


def _filters(context: int) -> list[dict]:
    shared = {"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": DICTIONARY}
    return [shared | {"lc": context, "lp": 0, "pb": 0}]
