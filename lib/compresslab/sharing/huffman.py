"""Huffman coding: frequent symbols get short codes, and no code is the beginning of another.

Source: Huffman (1952), A Method for the Construction of Minimum-Redundancy Codes,
doi:10.1109/JRPROC.1952.273898; the entropy H: Shannon (1948), A Mathematical Theory of
Communication, doi:10.1002/j.1538-7305.1948.tb01338.x.

    H = -Σ p log₂ p ≤ Σ p L < H + 1

    code     papers
    counts   n p   how often each symbol occurs
    lengths  L     bits of its code; -1 for a symbol that does not occur

The two rarest sets of symbols are joined, again and again, and each time the codes of all their
symbols get a bit longer. Of equally rare ones single symbols come first, in their order, then sets
in the order in which they were joined. Only the lengths are kept, a byte a symbol: the codes are
canonical, which means counted upwards from 0, short ones first, and equally long ones by symbol.

A lone symbol has a code of 0 bits: the lengths tell everything. Codes lie one after another, their
first bit in the highest free bit of a byte; zeros fill the last byte.

Where a code begins is known only when the one before has been read. For vectors instead of loops,
`decode` looks up at every bit how long a code would be that began there, and then doubles the
jumps: from each code to the next, to the 2nd, 4th, 8th after it. Each bit costs some 20 operations.

Not included: more than 256 symbols; codes above 48 bits, which take 10¹⁰ symbols to occur.
"""

import heapq
import math

import torch
from torch import Tensor
from torch.nn import functional as F

LONGEST = 48
WORD = 56  # bits: a code of 48, and before it up to 7 of a byte that is not full
TABLE = 12  # bits that are looked up; longer codes, which are rare, are searched
SEGMENT = 2**13  # bytes decoded at once
CHUNK = 2**20  # symbols encoded at once


def entropy(counts: Tensor) -> float:
    """Bits a symbol, below which the mean length of no code lies; 0 for no symbols."""
    p = counts.double() / max(1, int(counts.sum()))
    return torch.special.entr(p).sum().item() / math.log(2)


def code_lengths(counts: Tensor) -> Tensor:
    """The lengths of the best codes: int8 (symbols,).

    Args:
        counts: whole numbers (symbols,), 0 or more.

    Raises:
        ValueError: a count below 0, more than 256 symbols, or a code of more than 48 bits.
    """
    numbers = counts.tolist()
    if len(numbers) > 256 or min(numbers, default=0) < 0:
        raise ValueError(
            f"counts must be 0 or more, for at most 256 symbols, not {min(numbers)} or more "
            f"for {len(numbers)}"
        )
    sets = [(n, i, [i]) for i, n in enumerate(numbers) if n]
    lengths = [0 if n else -1 for n in numbers]
    heapq.heapify(sets)
    for order in range(256, 255 + len(sets)):
        (n, _, first), (m, _, second) = heapq.heappop(sets), heapq.heappop(sets)
        heapq.heappush(sets, (n + m, order, first + second))
        for symbol in first + second:
            lengths[symbol] += 1
    if max(lengths, default=0) > LONGEST:
        raise ValueError(f"counts need a code of {max(lengths)} bits, more than {LONGEST}")
    return torch.tensor(lengths, dtype=torch.int8)


def canonical_codes(lengths: Tensor) -> Tensor:
    """The code of each symbol as a number: int64 (symbols,), 0 for what does not occur.

    Raises:
        ValueError: no complete set of codes has these lengths.
    """
    symbols, starts = _starts(lengths)
    codes = torch.zeros(len(lengths), dtype=torch.int64)
    codes[symbols] = starts >> (WORD - lengths[symbols].long())
    return codes


def encoded_bytes(counts: Tensor, lengths: Tensor) -> int:
    """Bytes that `encode` takes for symbols of these counts, the lengths not included."""
    return -(-int((counts * lengths.long()).sum()) // 8)


def encode(symbols: Tensor, lengths: Tensor) -> Tensor:
    """The codes of the symbols, one after another: uint8 (bytes,).

    Args:
        symbols: uint8, any shape.
        lengths: int8, of `code_lengths`.

    Raises:
        ValueError: a symbol without a code, symbols that are not uint8, or as `canonical_codes`.
    """
    if symbols.dtype != torch.uint8:
        raise ValueError(f"symbols must be uint8, not {symbols.dtype}")
    counts = torch.bincount(symbols.flatten(), minlength=len(lengths))
    known = F.pad(lengths, (0, len(counts) - len(lengths)), value=-1) >= 0
    if (counts[~known] > 0).any():
        raise ValueError(f"symbol {int((counts * ~known).argmax())} has no code")
    used, starts = _starts(lengths)
    codes = torch.zeros(len(lengths), dtype=torch.int64).index_copy_(0, used, starts)
    data = torch.zeros(encoded_bytes(counts, lengths) + WORD // 8, dtype=torch.uint8)
    begin, longest = 0, max(lengths.tolist(), default=0)
    for chunk in symbols.flatten().int().split(CHUNK):
        size = lengths.index_select(0, chunk).long()
        first = begin + size.cumsum(0) - size
        code = codes.index_select(0, chunk) >> (first & 7)
        for i in range((longest + 14) // 8):  # bytes that a code may touch
            data.index_add_(0, (first >> 3) + i, (code >> (WORD - 8 - 8 * i) & 255).byte())
        begin += int(size.sum())
    return data[: len(data) - WORD // 8]


def decode(data: Tensor, lengths: Tensor, count: int) -> Tensor:
    """The symbols that were encoded: uint8 (count,).

    Args:
        data: uint8, of `encode`.
        lengths: int8, with which it was encoded.

    Raises:
        ValueError: `data` is not the codes of exactly `count` symbols, filled up with zeros; or as
            `canonical_codes`.
    """
    used, starts = _starts(lengths)
    found, begin, left = [], 0, count
    if len(used) == 1:
        found, left = [torch.zeros(count, dtype=torch.int64)], 0
    elif len(used):
        size = lengths[used].long()
        table, words = _table(starts, size), _words(data)
    while left:
        if begin >= 8 * len(data):
            raise ValueError(f"data of {len(data)} bytes ends before the last {left} symbols")
        first = begin // 8
        rank = _ranks(words[first : first + SEGMENT], table, starts)
        place, after = _follow(size.index_select(0, rank), begin % 8, left)
        found.append(rank.index_select(0, place))
        begin, left = 8 * first + after, left - len(place)
    if -(-begin // 8) != len(data) or (begin % 8 and int(data[-1]) << begin % 8 & 255):
        raise ValueError(f"data has {8 * len(data)} bits, and {count} symbols end after {begin}")
    return used[torch.cat(found)].byte() if count else torch.zeros(0, dtype=torch.uint8)


def _starts(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The symbols that have a code, in its order, and the codes at the upper end of a word."""
    used = (lengths >= 0).nonzero().flatten()
    used = used[lengths[used].sort(stable=True).indices]
    size = lengths[used].long()
    if (len(used) and torch.exp2(-size.double()).sum() != 1) or (size > LONGEST).any():
        raise ValueError(f"lengths are not those of a complete set of codes: {size.tolist()}")
    share = 1 << (WORD - size)
    return used, share.cumsum(0) - share


def _table(starts: Tensor, size: Tensor) -> Tensor:
    """For each beginning of a word, which code it has: its rank; -1 if it is too short to tell."""
    rank = torch.bucketize(torch.arange(2**TABLE) << (WORD - TABLE), starts, right=True) - 1
    return torch.where(size[rank] <= TABLE, rank, -1)


def _words(data: Tensor) -> Tensor:
    """From each byte on, the word that begins there, int64 (bytes,); zeros follow the data."""
    padded = F.pad(data, (0, WORD // 8 - 1)).long()
    return sum(padded[i : i + len(data)] << (WORD - 8 - 8 * i) for i in range(WORD // 8))


def _ranks(words: Tensor, table: Tensor, starts: Tensor) -> Tensor:
    """The rank of the code that would begin at each bit of these words' first bytes."""
    at = ((words[:, None] << torch.arange(8)) & (2**WORD - 1)).flatten()
    rank = table.index_select(0, at >> (WORD - TABLE))
    long = (rank < 0).nonzero().flatten()
    rank[long] = torch.bucketize(at[long], starts, right=True) - 1
    return rank


def _follow(size: Tensor, begin: int, most: int) -> tuple[Tensor, int]:
    """Where codes begin, if one does at bit `begin` and the one at bit i has `size[i]` bits; at
    most this many, and the bit after the last of them."""
    end = len(size)
    jump = torch.arange(end) + size
    leap = F.pad(jump.clamp(max=end), (0, 1), value=end)
    place = torch.tensor([begin])
    while place[-1] < end and len(place) < most:
        place = torch.cat([place, leap.index_select(0, place)])
        leap = leap.index_select(0, leap)
    place = place[place < end][:most]
    return place, int(jump[place[-1]])
