"""Queries, keys and values, masks, and the oracle: what tests of several forms share."""

import torch
from small import randn
from torch.nn import functional as F


def heads(time=13, *, batch=2, count=3, dim=4, dim_value=5, seed=0):
    """Queries, keys and values in float64, always the same ones for the same sizes."""
    dims = (dim, dim, dim_value)
    return [randn(batch, count, time, d, seed=10 * seed + i) for i, d in enumerate(dims)]


def padded(time, *, left=2, right=3):
    """(2, time): the first text is whole, the second has padding at both ends."""
    position = torch.arange(time)
    return torch.stack([position >= 0, (position >= left) & (position < time - right)]).long()


def oracle(query, key, value, *, causal=False, mask=None, pattern=None, scale=None):
    """The attention of torch among the allowed pairs; it too gives zero where there are none."""
    time = query.shape[2]
    allowed = torch.ones(time, time, dtype=torch.bool) if pattern is None else pattern
    if causal:
        allowed = allowed.tril()
    if mask is not None:
        allowed = allowed & mask.bool()[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, scale=scale)


def with_gradients(method, *tensors, **options):
    """The result, and the gradients of a sum of it in which every number has another weight."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    out = method(*tensors, **options)
    weights = randn(*out.shape, seed=99).to(out.dtype)
    loss = (out * weights).sum()
    gradients = torch.autograd.grad(loss, tensors, allow_unused=True, materialize_grads=True)
    return out.detach(), *gradients


def assert_same(first, second):
    """Two tuples of tensors are close, one by one."""
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)
