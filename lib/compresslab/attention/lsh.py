"""Reformer: a token looks only at tokens that a random hash puts into its bucket.

Source: Kitaev et al. (2020), Reformer: The Efficient Transformer, arXiv:2001.04451, section 2 and
appendix A:

    h(x) = argmax [x R; -x R]     after a random rotation R, the nearest axis or its opposite
    o_i = Σ_j softmax(q_i · k_j) v_j,     k_j = q_j / ‖q_j‖,     j in P_i
    P_i: tokens of the same bucket, in the same chunk or the one before, in any of the rounds

    code                paper
    buckets             n_buckets   even; or 1, everything
    rounds              n_rounds    independent hashes
    chunk_size          m
    order               s           tokens sorted by bucket, and by position within a bucket
    _meetings           N_ij        in how many rounds a pair meets; its weight is divided by that
    log_total           z           logarithm of the softmax's denominator, in one round

Softmax cares for the largest products, and near vectors have those, so that little is lost if far
ones are never multiplied. Near vectors share a bucket often, not always: rounds add to the odds.
Buckets differ in size, so the sorted text is cut into chunks of one size, and each attends to
itself and to the one before. Queries and keys are the same vectors, up to length: else the keys
nearest to a query might all be in other buckets.

A token is always nearest to itself, so that it may attend to itself only if it meets nobody else.

Time grows with rounds · time · (2 · chunk_size + buckets / 2) · dim, besides the sort and, in
several rounds, the count of meetings (rounds² · time · 2 · chunk_size); memory with
rounds · time · (2 · chunk_size + buckets). The usual number of buckets is 2 · time / chunk_size and
grows with time, so that the hash of very long texts is not free; the paper then joins two hashes
with few buckets each.

Causal, a token never attends to a later one. But later ones have a place in the sorted text, and
move the borders of chunks: they decide, a little, which of the earlier ones meet.

Differs from the paper: no division by √dim, as in the authors' code, where unit keys are multiplied
by it first. A pair that meets in two rounds counts once, as the appendix says, and not twice. The
first chunk has none before it; in that code it has the last. Not included: reversible layers, joint
hashes.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..layers import wide
from .common import check_heads

ITSELF = -1e5  # score of a token with itself: less than any other, more than none


def lsh_buckets(
    x: Tensor, *, buckets: int, rounds: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """The bucket of each vector in each round, by an angular hash: its length does not matter.

    Args:
        x: (batch, heads, time, dim).
        buckets: even, or 1. Each head has rotations of its own.

    Returns:
        (batch, heads, rounds, time) int64, 0 to buckets - 1; of axes equally near, the first.

    Raises:
        ValueError: buckets is neither, or rounds below 1.
    """
    if buckets < 1 or (buckets % 2 and buckets > 1) or rounds < 1:
        raise ValueError(
            f"buckets must be even or 1, and rounds at least 1, not {buckets} and {rounds}"
        )
    batch, heads, time, dim = x.shape
    if buckets == 1:
        return torch.zeros(batch, heads, rounds, time, dtype=torch.long, device=x.device)
    rotation = torch.randn(heads, rounds, dim, buckets // 2, generator=generator)
    rotated = wide(x.detach())[:, :, None] @ rotation.to(wide(x))
    return torch.cat([rotated, -rotated], dim=-1).argmax(dim=-1)


def lsh_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    mask: Tensor | None = None,
    buckets: int,
    rounds: int = 1,
    chunk_size: int = 64,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Attention among tokens of a bucket; with one bucket and one chunk, among all.

    Args:
        query: (batch, heads, time, dim).
        key: the same tensor; it is brought to length 1 here.
        value: (batch, heads, time, dim_value).
        mask: (batch, time), not zero where a token is real.
        buckets: even, or 1; the paper has 2 · time / chunk_size.
        chunk_size: need not divide time.

    Returns:
        (batch, heads, time, dim_value) in the caller's dtype.

    Raises:
        ValueError: shapes do not fit together, key is another tensor than query, buckets is odd, or
            rounds or chunk_size below 1.
    """
    check_heads(query, key, value, mask)
    if key is not query:
        raise ValueError("key must be query itself: the hash brings together vectors of one kind")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    time, size = query.shape[2], min(chunk_size, query.shape[2])
    bucket = lsh_buckets(query, buckets=buckets, rounds=rounds, generator=generator)
    if mask is not None:
        bucket = bucket.masked_fill(~mask.bool()[:, None, None], buckets)
    # Padding, also that to whole chunks, has one bucket more, and is never attended to.
    bucket = F.pad(bucket, (0, -time % size), value=buckets)
    order = bucket.argsort(dim=-1, stable=True)
    token = order.unflatten(-1, (-1, size))  # (batch, heads, rounds, chunks, size)

    q, v = (_take(wide(x), token) for x in (query, value))
    k, v = _look_back(F.normalize(q, dim=-1)), _look_back(v)
    allowed = _allowed(bucket, token, buckets, causal)
    scores = q @ k.transpose(-1, -2)
    scores = scores - _meetings(bucket, order, token).to(scores.dtype).log()
    scores = scores.masked_fill(token[..., :, None] == _look_back(token)[..., None, :], ITSELF)
    scores = scores.masked_fill(~allowed, torch.finfo(scores.dtype).min)
    log_total = scores.logsumexp(dim=-1, keepdim=True)
    out = (scores - log_total).exp().masked_fill(~allowed, 0) @ v

    back = order.argsort(dim=-1)[..., :time, None]  # to the order of the text
    out, log_total = (x.flatten(3, 4).take_along_dim(back, dim=3) for x in (out, log_total))
    return (log_total.softmax(dim=2) * out).sum(dim=2).to(query.dtype)


def _allowed(bucket: Tensor, token: Tensor, buckets: int, causal: bool) -> Tensor:
    # (batch, heads, rounds, chunks, size, 2 · size): same bucket, and no padding
    here = bucket.take_along_dim(token.flatten(3), dim=-1).view_as(token)
    there = _look_back(here, fill=buckets)[..., None, :]
    allowed = (here[..., :, None] == there) & (there < buckets)
    if causal:
        allowed = allowed & (_look_back(token)[..., None, :] <= token[..., :, None])
    return allowed


def _meetings(bucket: Tensor, order: Tensor, token: Tensor) -> Tensor:
    # In how many rounds a pair has one bucket and chunks that see each other; at least 1.
    rounds, chunks, size = token.shape[2:]
    if rounds == 1:
        return torch.ones((), device=token.device)
    # One number for both: 0 or 1 more than the key's, if the key's chunk is the same or before.
    place = bucket * 2 * chunks + order.argsort(dim=-1) // size
    count = torch.zeros((), dtype=torch.int8, device=token.device)
    for r in range(rounds):
        p = place[:, :, r].take_along_dim(token.flatten(2), dim=-1).view_as(token)
        more = p[..., :, None] - _look_back(p)[..., None, :]
        count = count + ((more == 0) | (more == 1))
    return count.clamp(min=1)


def _take(x: Tensor, token: Tensor) -> Tensor:
    # (batch, heads, time, dim) -> (*token's shape, dim); zeros for tokens after the last
    x = F.pad(x, (0, 0, 0, token[0, 0, 0].numel() - x.shape[2]))
    return x.take_along_dim(token.flatten(2)[..., None], dim=2).unflatten(2, token.shape[2:])


def _look_back(x: Tensor, fill: int = 0) -> Tensor:
    # (…, chunks, size, …) -> (…, chunks, 2 · size, …): each chunk after the one before it
    before = torch.cat([torch.full_like(x[:, :, :, :1], fill), x[:, :, :, :-1]], dim=3)
    return torch.cat([before, x], dim=4)
