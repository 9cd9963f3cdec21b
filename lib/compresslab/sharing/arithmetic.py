"""Range coding with asymmetric numeral systems (rANS): symbols may take fractions of a bit.

Source: Duda (2013), Asymmetric numeral systems: entropy coding combining speed of Huffman coding
with compression rate of arithmetic coding, arXiv:1311.2540 (the range variant). A whole
number x holds all symbols so far, and a symbol of frequency f makes it about M / f times larger:

    push    x ← M ⌊x / f⌋ + b + (x mod f)
    pop     the symbol whose range has x mod M;    x ← f ⌊x / M⌋ + (x mod M) - b

    code         paper
    frequencies  f_s = l_s   share of each symbol, of M in all; 0 if it does not occur
    PRECISION    log₂ M
    begin        b_s         sum of the frequencies before it
    state        x           kept from 2¹⁶ to 2³² - 1: pushing first moves 16 bits out, if need be

What was pushed last is popped first, so encoding begins at the end. Many states work side by side,
in lanes: symbol i belongs to lane i mod lanes. A stream is the states at its end, 4 bytes a lane,
and the words of 16 bits in the order in which decoding needs them.

Differs from the paper, which has one state: lanes are what makes vectors of torch's operations.
"""

import torch
from torch import Tensor

PRECISION = 15
LOWEST = 2**16


def share_frequencies(counts: Tensor) -> Tensor:
    """Whole numbers in proportion to counts (symbols,), with the sum 2¹⁵: int64 (symbols,).

    Rounded down, but to 1 at least for what occurs; what is left goes to the most frequent symbol.
    They are stored in 2 bytes each.

    Raises:
        ValueError: no symbol occurs, or there are more than 256.
    """
    total = int(counts.sum())
    if total < 1 or len(counts) > 256:
        raise ValueError(f"counts must be of 1 to 256 symbols, not {len(counts)} with {total}")
    shares = (counts.long() * 2**PRECISION // total).clamp(min=1).where(counts > 0, 0)
    shares[counts.argmax()] += 2**PRECISION - shares.sum()
    return shares


def encode(symbols: Tensor, frequencies: Tensor, *, lanes: int = 256) -> Tensor:
    """A stream of all symbols: uint8 (bytes,).

    Args:
        symbols: uint8, any shape.
        frequencies: of `share_frequencies`.

    Raises:
        ValueError: a symbol of frequency 0.
    """
    flat = symbols.flatten().long()
    counts = torch.bincount(flat, minlength=len(frequencies))
    if len(counts) > len(frequencies) or (counts[frequencies == 0] > 0).any():
        raise ValueError("symbols must all have a frequency above 0")
    begin, state, words = _begins(frequencies), torch.full((lanes,), LOWEST), []
    for row in reversed(flat.split(lanes)):
        x, f = state[: len(row)], frequencies[row]
        full = x >= f << (32 - PRECISION)
        words.append((x & 0xFFFF)[full])
        x = torch.where(full, x >> 16, x)
        state[: len(row)] = (x // f << PRECISION) + begin[row] + x % f
    halves = torch.stack([state & 0xFFFF, state >> 16], 1).flatten()
    words = torch.cat([halves, *reversed(words)])
    return torch.stack([words & 255, words >> 8], 1).byte().flatten()


def decode(data: Tensor, frequencies: Tensor, count: int, *, lanes: int = 256) -> Tensor:
    """The symbols that were encoded: uint8 (count,).

    Raises:
        ValueError: `data` is not the stream of `count` symbols with these frequencies and lanes.
    """
    begin = _begins(frequencies)
    owner = torch.repeat_interleave(torch.arange(len(frequencies)), frequencies)
    if len(data) % 2 or len(data) < 4 * lanes or len(owner) != 2**PRECISION:
        raise ValueError(f"data of {len(data)} bytes is no stream of {lanes} lanes, or was altered")
    low, high = data.long().view(-1, 2).unbind(1)
    words = low | high << 8
    state, place, found = words[: 2 * lanes : 2] | words[1 : 2 * lanes : 2] << 16, 2 * lanes, []
    for left in range(count, 0, -lanes):
        x = state[: min(left, lanes)]
        slot = x & (2**PRECISION - 1)
        symbol = owner[slot]
        x = frequencies[symbol] * (x >> PRECISION) + slot - begin[symbol]
        empty = (x < LOWEST).nonzero().flatten()
        if place + len(empty) > len(words):
            raise ValueError(f"data of {len(data)} bytes ends before the last {left} symbols")
        x[empty] = x[empty] << 16 | words[place : place + len(empty)]
        state[: len(x)], place = x, place + len(empty)
        found.append(symbol)
    if place != len(words) or (state != LOWEST).any():
        raise ValueError(f"data does not end with the {count} symbols: it was altered")
    return torch.cat(found).byte() if found else torch.zeros(0, dtype=torch.uint8)


def _begins(frequencies: Tensor) -> Tensor:
    return frequencies.cumsum(0) - frequencies
