"""FlashAttention: exact attention without the matrix of scores, tile by tile.

Source: Milakov and Gimelshein (2018), Online normalizer calculation for softmax, arXiv:1805.02867,
algorithm 3; Dao et al. (2022), FlashAttention: Fast and Memory-Efficient Exact Attention with
IO-Awareness, arXiv:2205.14135, algorithms 1 and 4. A softmax needs the largest score and the sum of
the exponentials. Both can be kept up to date while scores arrive, and so can the output: when a
larger score comes, what was summed up so far is multiplied by e^(old - new).

    m_new = max(m, max S_ij)     ℓ_new = e^(m - m_new) ℓ + Σ e^(S_ij - m_new)
    O_new = e^(m - m_new) O + e^(S_ij - m_new) V_j,     at the end O / ℓ

    code                        papers
    top, total                  m, ℓ (d)   one each for a query
    out                         O
    log_total                   L          m + log ℓ, all that the backward pass needs of a softmax
    scores, weights             S_ij, P_ij
    query_block, key_block      B_r, B_c

The backward pass computes the weights anew, e^(S - L), so that only inputs, outputs and L are kept:
memory grows with time, operations still with time². On a GPU the tiles live in fast memory, and
that is where the speed comes from; here they show the algorithm, and save memory.

Differs from the paper: the loop over queries is the outer one, and the output is divided at the
end, as in FlashAttention-2. Tiles above the diagonal are skipped if causal. Not included: dropout,
second derivatives.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..layers import wide
from .common import check_heads


def online_softmax(scores: Tensor, *, block_size: int = 128) -> Tensor:
    """Softmax over the last axis that finds maximum and sum in one pass: any shape -> the same, in
    the caller's dtype. A score may be -∞, if not all of a row are.

    Raises:
        ValueError: block_size below 1.
    """
    _check_blocks(block_size=block_size)
    x = wide(scores)
    # Not from -∞: while there is nothing else, -∞ - -∞ would not be a number.
    top = torch.full_like(x[..., :1], torch.finfo(x.dtype).min)
    total = torch.zeros_like(top)
    for block in x.split(block_size, dim=-1):
        new_top = torch.maximum(top, block.amax(dim=-1, keepdim=True))
        weights = (block - new_top).exp()
        total = total * (top - new_top).exp() + weights.sum(dim=-1, keepdim=True)
        top = new_top
    return ((x - top).exp() / total).to(scores.dtype)


def flash_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    scale: float | None = None,
    query_block: int = 128,
    key_block: int = 128,
) -> Tensor:
    """What `full_attention` gives, (batch, heads, time, dim_value), in memory linear in time.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        mask: (batch, time), not zero where a token is real.
        scale: of the scores; 1 / √dim if left out.
        query_block, key_block: size of a tile; need not divide time.

    Raises:
        ValueError: shapes do not fit together, or a block below 1.
    """
    check_heads(query, key, value, mask)
    _check_blocks(query_block=query_block, key_block=key_block)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mask = None if mask is None else mask.bool()
    tiles = _tiles(query.shape[2], query_block, key_block, causal)
    out = _Flash.apply(wide(query), wide(key), wide(value), mask, causal, scale, tiles)
    return out.to(query.dtype)


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(ctx, query, key, value, mask, causal, scale, tiles):
        out = torch.empty_like(value)
        log_total = query.new_empty(*query.shape[:-1], 1)
        for rows, all_columns in tiles:
            out[:, :, rows], log_total[:, :, rows] = _forward_rows(
                query[:, :, rows] * scale, key, value, mask, causal, rows, all_columns
            )
        ctx.save_for_backward(query, key, value, mask, out, log_total)
        ctx.causal, ctx.scale, ctx.tiles = causal, scale, tiles
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        query, key, value, mask, out, log_total = ctx.saved_tensors
        d_query, d_key, d_value = (torch.zeros_like(x) for x in (query, key, value))
        along = (grad * out).sum(dim=-1, keepdim=True)  # Σ_j P_ij ∂L/∂P_ij, a number for each row
        for rows, all_columns in ctx.tiles:
            q, d_out = query[:, :, rows] * ctx.scale, grad[:, :, rows]
            for columns in all_columns:
                k, v = key[:, :, columns], value[:, :, columns]
                allowed = _allowed(rows, columns, ctx.causal, mask, q.device)
                weights = _exp(q @ k.transpose(-1, -2) - log_total[:, :, rows], allowed)
                d_scores = weights * (d_out @ v.transpose(-1, -2) - along[:, :, rows])
                d_value[:, :, columns] += weights.transpose(-1, -2) @ d_out
                d_query[:, :, rows] += d_scores @ k * ctx.scale
                d_key[:, :, columns] += d_scores.transpose(-1, -2) @ q
        return d_query, d_key, d_value, None, None, None, None


def _forward_rows(query, key, value, mask, causal, rows, all_columns) -> tuple[Tensor, Tensor]:
    lowest = torch.finfo(query.dtype).min
    top = query.new_full((*query.shape[:-1], 1), lowest)
    total, out = torch.zeros_like(top), query.new_zeros(*query.shape[:-1], value.shape[-1])
    for columns in all_columns:
        allowed = _allowed(rows, columns, causal, mask, query.device)
        scores = query @ key[:, :, columns].transpose(-1, -2)
        if allowed is not None:
            scores = scores.masked_fill(~allowed, lowest)
        new_top = torch.maximum(top, scores.amax(dim=-1, keepdim=True))
        weights, shrink = _exp(scores - new_top, allowed), (top - new_top).exp()
        total = total * shrink + weights.sum(dim=-1, keepdim=True)
        out = out * shrink + weights @ value[:, :, columns]
        top = new_top
    nothing = total == 0  # no key is allowed: zero, and no logarithm of zero
    total = total.masked_fill(nothing, 1)
    return out / total, (top + total.log()).masked_fill(nothing, 0)


def _exp(x: Tensor, allowed: Tensor | None) -> Tensor:
    return x.exp() if allowed is None else x.exp().masked_fill(~allowed, 0)


def _tiles(time: int, query_block: int, key_block: int, causal: bool):
    # Each block of queries with the blocks of keys that any of them may see.
    tiles = []
    for start in range(0, time, query_block):
        end = min(start + query_block, time)
        seen = end if causal else time
        columns = [slice(i, min(i + key_block, time)) for i in range(0, seen, key_block)]
        tiles.append((slice(start, end), columns))
    return tiles


def _allowed(rows: slice, columns: slice, causal: bool, mask, device) -> Tensor | None:
    allowed = None if mask is None else mask[:, None, None, columns]
    if causal and columns.stop > rows.start + 1:  # below the diagonal everything is in the past
        query = torch.arange(rows.start, rows.stop, device=device)
        past = torch.arange(columns.start, columns.stop, device=device) <= query[:, None]
        allowed = past if allowed is None else past & allowed
    return allowed


def _check_blocks(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, not {size}")
