"""Codes of 1 to 8 bits in as many bytes as they need, and no more.

A stream of bits, least significant first: code i lies in bits i·b to (i + 1)·b - 1. So 8 codes are
b bytes, whatever b is: with 4 bits two codes share a byte, with 3 bits a code may lie in two bytes.
"""

import torch
from torch import Tensor


def packed_size(count: int, bits: int) -> int:
    """Bytes that `pack` takes for `count` codes: whole octets of codes."""
    return -(-count // 8) * bits


def pack(codes: Tensor, bits: int) -> Tensor:
    """Codes of any shape as bytes, uint8 (packed_size,).

    Args:
        codes: uint8, each below 2^bits.

    Raises:
        ValueError: `codes` is not uint8, a code is too large, or `bits` is not 1 to 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be 1 to 8, not {bits}")
    if codes.dtype != torch.uint8:
        raise ValueError(f"codes must be uint8, not {codes.dtype}")
    if codes.numel() and (largest := int(codes.max())) >= 2**bits:
        raise ValueError(f"a code is {largest}: {bits} bits hold 0 to {2**bits - 1}")
    octets = torch.nn.functional.pad(codes.flatten(), (0, -codes.numel() % 8)).view(-1, 8)
    stream = torch.zeros(len(octets), dtype=torch.int64, device=codes.device)
    for i in range(8):
        stream |= octets[:, i].long() << (bits * i)  # 8 · 8 = 64 bits: the sign bit is used, too
    return torch.stack([(stream >> (8 * i)) & 255 for i in range(bits)], 1).byte().flatten()


def unpack(packed: Tensor, bits: int, shape: tuple[int, ...]) -> Tensor:
    """The codes that `pack` packed, uint8 of this shape.

    Raises:
        ValueError: `packed` has not the bytes that this shape needs.
    """
    count = torch.Size(shape).numel()
    if packed.numel() != packed_size(count, bits):
        raise ValueError(
            f"{tuple(shape)} codes of {bits} bits are {packed_size(count, bits)} bytes, "
            f"not {packed.numel()}"
        )
    octets = packed.view(-1, bits)
    stream = torch.zeros(len(octets), dtype=torch.int64, device=packed.device)
    for i in range(bits):
        stream |= octets[:, i].long() << (8 * i)
    codes = torch.stack([(stream >> (bits * i)) & (2**bits - 1) for i in range(8)], 1)
    return codes.byte().flatten()[:count].view(shape)
