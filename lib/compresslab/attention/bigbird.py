"""BigBird: blocks of tokens look at their neighbours, at the ends of the text, and at random ones.

Source: Zaheer et al. (2020), Big Bird: Transformers for Longer Sequences, arXiv:2007.14062,
section 2 and appendix D (block sparse, internal global tokens).

    code              paper
    block_size        b   tokens in a block; the pattern is of blocks
    window                3 blocks: one before, the block itself, one after
    global                2 blocks: the first and the last; they attend to all
    random_blocks     r   further blocks that a block attends to, other ones for each head

Any two tokens are joined by a path of few steps, through a global token in two. The random blocks
are drawn once and belong to the model, like a weight.

No matrix of time × time: for each block of queries the blocks of keys are gathered, at most 5 + r,
and multiplied. Time grows with time · (5 + r) · block_size · dim, memory with
time · (5 + r) · (block_size + dim).

Differs from the paper: random blocks come from the whole text at any length, also where causal,
though there those ahead are lost; the authors' code takes them from the beginning of long texts.
A block that is there twice counts once; the authors' code counts it twice where it draws none
anew, in evaluation. Not included: extra global tokens (ETC), full attention for short texts: with
fewer than 5 + r blocks there is nothing to draw from, and nothing to save.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from .common import attend, check_heads
from .full import full_attention


def draw_random_blocks(
    blocks: int, *, heads: int, count: int, generator: torch.Generator | None = None
) -> Tensor:
    """For each head and block, `count` different blocks outside its window that are not global:
    (heads, blocks, count) int64. Takes heads · blocks² random numbers, once.

    Raises:
        ValueError: count is negative, or above blocks - 5, where nothing is left to draw.
    """
    if not 0 <= count <= max(blocks - 5, 0):
        raise ValueError(f"count must be 0 to blocks - 5, not {count} of {blocks} blocks")
    position = torch.arange(blocks)
    taken = (position - position[:, None]).abs() <= 1
    taken[:, [0, -1]] = True
    chance = torch.rand(heads, blocks, blocks, generator=generator)
    return chance.masked_fill(taken, -1).topk(count, dim=-1).indices


def bigbird_pattern(
    time: int, random_blocks: Tensor, *, block_size: int, causal: bool = False
) -> Tensor:
    """Who attends to whom, bool (heads, time, time), rows to columns.

    Raises:
        ValueError: `random_blocks` is not (heads, blocks, count), or has a block that is not there.
    """
    table = _table(time, random_blocks, block_size)
    heads, blocks, _ = table.shape
    pattern = torch.zeros(heads, blocks, blocks + 1, dtype=torch.bool)
    pattern = pattern.scatter(2, table % (blocks + 1), True)[:, :, :blocks]  # -1: one too many
    pattern[:, [0, -1]] = True
    for axis in (1, 2):
        pattern = pattern.repeat_interleave(block_size, dim=axis)
    pattern = pattern[:, :time, :time]
    return pattern.tril() if causal else pattern


def bigbird_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    block_size: int = 64,
    random_blocks: Tensor,
) -> Tensor:
    """Attention within the pattern, in time and memory linear in time.

    Equal to full attention with `bigbird_pattern`.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        causal: cuts from the pattern what lies ahead.
        mask: (batch, time), not zero where a token is real.
        random_blocks: (heads, blocks, count) int64, time / block_size blocks, rounded up; those of
            the first and the last block have no effect.

    Returns:
        (batch, heads, time, dim_value) in the caller's dtype.

    Raises:
        ValueError: shapes do not fit together, block_size below 1, or a random block that is not
            there.
    """
    check_heads(query, key, value, mask)
    time, heads = query.shape[2], query.shape[1]
    table = _table(time, random_blocks, block_size).to(query.device)
    blocks = table.shape[1]
    if table.shape[0] != heads:
        raise ValueError(f"random_blocks must have {heads} heads, not {tuple(random_blocks.shape)}")
    if blocks < 3:
        return full_attention(query, key, value, causal=causal, mask=mask)

    table = table[:, 1:-1]  # (heads, blocks - 2, slots)
    place = torch.arange(block_size, device=query.device)
    position = (table[..., None] * block_size + place).flatten(2)  # of the keys; negative: none
    allowed = (position >= 0) & (position < time)
    position = position.clamp(0, time - 1)
    allowed = allowed[None] if mask is None else allowed & mask.bool()[:, position]
    allowed = allowed[:, :, :, None]
    start, end = block_size, (blocks - 1) * block_size
    if causal:
        rows = torch.arange(start, end, device=query.device).view(-1, block_size, 1)
        allowed = allowed & (position[:, :, None] <= rows)

    middle = attend(
        query[:, :, start:end].unflatten(2, (-1, block_size)),
        _gather(key, table, block_size),
        _gather(value, table, block_size),
        allowed,
    ).flatten(2, 3)
    first, last = (
        _rows(query, key, value, rows, causal, mask) for rows in (slice(start), slice(end, time))
    )
    return torch.cat([first, middle, last], dim=2)


def _table(time: int, random_blocks: Tensor, block_size: int) -> Tensor:
    # (heads, blocks, slots): the blocks each block attends to, none twice; -1 is no block
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1, not {block_size}")
    blocks = -(-time // block_size)
    if random_blocks.ndim != 3 or random_blocks.shape[1] != blocks:
        raise ValueError(
            f"random_blocks must be (heads, {blocks} blocks, count), "
            f"not {tuple(random_blocks.shape)}"
        )
    if ((random_blocks < 0) | (random_blocks >= blocks)).any():
        raise ValueError(f"random_blocks must be 0 to {blocks - 1}")
    position = torch.arange(blocks, device=random_blocks.device)[:, None]
    window = position + torch.tensor([-1, 0, 1], device=position.device)
    ends = torch.tensor([0, blocks - 1], device=position.device).expand(blocks, -1)
    fixed = torch.cat([ends, window], dim=1).expand(len(random_blocks), -1, -1)
    table = torch.cat([fixed, random_blocks], dim=2)
    same = table[..., :, None] == table[..., None, :]
    repeated = same.tril(diagonal=-1).any(dim=-1)
    return table.masked_fill(repeated | (table >= blocks) | (table < 0), -1)


def _gather(x: Tensor, table: Tensor, block_size: int) -> Tensor:
    # (batch, heads, time, dim) -> (batch, heads, blocks, slots · block_size, dim)
    x = F.pad(x, (0, 0, 0, -x.shape[2] % block_size)).unflatten(2, (-1, block_size))
    head = torch.arange(len(table), device=x.device)[:, None, None]
    return x[:, head, table.clamp(min=0)].flatten(3, 4)


def _rows(query, key, value, rows: slice, causal: bool, mask: Tensor | None) -> Tensor:
    # What the tokens of a global block see: everything.
    position = torch.arange(query.shape[2], device=query.device)
    allowed = None if mask is None else mask.bool()[:, None, None, :]
    if causal:
        past = position <= position[rows, None]
        allowed = past if allowed is None else past & allowed
    return attend(query[:, :, rows], key, value, allowed)
