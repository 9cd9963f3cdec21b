"""Sliding window: a token looks at its neighbours, and a few global tokens at everything.

Source: Beltagy et al. (2020), Longformer: The Long-Document Transformer, arXiv:2004.05150,
section 3.1 and figure 2.

    code             paper
    window           w   its total width: w // 2 on each side, or, causal, the last w tokens
    dilation         d   gap from one neighbour to the next; `window_pattern` alone has it
    global_tokens        positions that attend to all, and that all attend to

The token itself is always seen: an odd window is as many tokens as it says, an even one, as in the
paper, is one more. A causal window counts the token itself, as a cache of keys and values does.
After n layers a token has heard of n · w / 2 others on each side.

No matrix of time × time: the text is cut into chunks as long as one side of the window, and the
queries of a chunk meet the keys of their own chunk, the one before and the one after. A third to a
half of these scores is thrown away, which is the price of plain matrix products. Time grows with
time · (window + global tokens) · dim, memory with time · (window + global tokens).

Differs from the paper: global tokens have the same projections as the others, and the same
positions in all texts of a batch. Dilation is drawn, not computed. Not included: another window for
each layer or head.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .common import attend, check_heads

CHUNK = 32  # the shortest chunk: products of smaller matrices take as long


def window_pattern(time: int, *, window: int, dilation: int = 1, causal: bool = False) -> Tensor:
    """Who attends to whom, bool (time, time), rows to columns.

    With a dilation the neighbours are as many, and reach dilation times as far.

    Raises:
        ValueError: window or dilation below 1.
    """
    if dilation < 1:
        raise ValueError(f"dilation must be at least 1, not {dilation}")
    before, after = _sides(window, causal)
    position = torch.arange(time)
    ahead = position - position[:, None]  # how far the column lies ahead of the row
    near = (ahead >= -before * dilation) & (ahead <= after * dilation)
    return near & (ahead % dilation == 0)


def global_pattern(time: int, tokens: Sequence[int], *, causal: bool = False) -> Tensor:
    """Rows and columns of the global tokens, bool (time, time).

    Raises:
        ValueError: a position outside 0 to time - 1.
    """
    tokens = _positions(tokens, time)
    pattern = torch.zeros(time, time, dtype=torch.bool)
    pattern[tokens] = True
    pattern[:, tokens] = True
    return pattern.tril() if causal else pattern


def window_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    window: int,
    global_tokens: Sequence[int] = (),
) -> Tensor:
    """Attention within the window and with the global tokens, in time and memory linear in time.

    Equal to full attention with `window_pattern` | `global_pattern`.

    Args:
        query, key: (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        mask: (batch, time), not zero where a token is real.
        window: total width, at least 1.
        global_tokens: positions, 0 to time - 1.

    Returns:
        (batch, heads, time, dim_value) in the caller's dtype.

    Raises:
        ValueError: shapes do not fit together, window below 1, or a position outside the text.
    """
    check_heads(query, key, value, mask)
    before, after = _sides(window, causal)
    time, device = query.shape[2], query.device
    tokens = _positions(global_tokens, time).to(device)
    real = torch.ones(1, time, dtype=torch.bool, device=device) if mask is None else mask.bool()

    size = min(max(before, CHUNK), time)
    allowed = _allowed(real, tokens, size, before, after, causal)
    keys, values = (_seen(x, tokens, size, both=after > 0) for x in (key, value))
    out = attend(_chunks(query, size), keys, values, allowed).flatten(2, 3)[:, :, :time]
    if not len(tokens):
        return out

    rows = real[:, None, None, :]
    if causal:
        rows = rows & (torch.arange(time, device=device) <= tokens[:, None])
    return out.index_copy(2, tokens, attend(query[:, :, tokens], key, value, rows))


def _sides(window: int, causal: bool) -> tuple[int, int]:
    if window < 1:
        raise ValueError(f"window must be at least 1, not {window}")
    return (window - 1, 0) if causal else (window // 2, window // 2)


def _positions(tokens: Sequence[int], time: int) -> Tensor:
    wrong = [token for token in tokens if not 0 <= token < time]
    if wrong:
        raise ValueError(f"global tokens must be 0 to {time - 1}, not {wrong[0]}")
    return torch.tensor(sorted(set(tokens)), dtype=torch.long)


def _chunks(x: Tensor, size: int) -> Tensor:
    # (…, time, dim) -> (…, chunks, size, dim), zeros at the end
    return F.pad(x, (0, 0, 0, -x.shape[-2] % size)).unflatten(-2, (-1, size))


def _near(x: Tensor, size: int, *, both: bool) -> Tensor:
    # (…, time, dim) -> (…, chunks, 2 or 3 · size, dim): each chunk with the ones beside it
    x = F.pad(x, (0, 0, size, both * size + -x.shape[-2] % size))
    return x.unfold(-2, (2 + both) * size, size).transpose(-1, -2)


def _seen(x: Tensor, tokens: Tensor, size: int, *, both: bool) -> Tensor:
    # The same, with the global tokens at the end of every chunk.
    near = _near(x, size, both=both)
    return torch.cat([near, x[:, :, None, tokens].expand(-1, -1, near.shape[2], -1, -1)], dim=-2)


def _allowed(
    real: Tensor, tokens: Tensor, size: int, before: int, after: int, causal: bool
) -> Tensor:
    # (batch, 1, chunks, size, keys of `_seen`), from real (batch, time)
    local = real.index_fill(1, tokens, False)  # global tokens have columns of their own
    local = _near(local[:, None, :, None], size, both=after > 0).transpose(-1, -2)
    place = torch.arange(size, device=real.device)[:, None]
    ahead = torch.arange(local.shape[-1], device=real.device) - size - place
    local = local & (ahead >= -before) & (ahead <= after)

    chunks = local.shape[2]
    distant = real[:, None, None, None, tokens].expand(-1, -1, chunks, size, -1)
    if causal:
        start = torch.arange(chunks, device=real.device)[:, None, None] * size
        distant = distant & (tokens <= start + place)
    return torch.cat([local, distant], dim=-1)
