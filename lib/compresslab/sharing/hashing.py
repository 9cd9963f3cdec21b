"""Hashed weights: every entry of a matrix is one of a few numbers, and a hash function says which.

Source: Chen et al. (2015), Compressing Neural Networks with the Hashing Trick, arXiv:1504.04788,
section 4 (HashedNets):

    Vᵢⱼ = w_{h(i, j)} · ξ(i, j)        ∂L/∂w_k = Σ_{h(i, j) = k} ξ(i, j) · ∂L/∂Vᵢⱼ

    code     paper
    vector   w     (buckets,) all that is stored and trained
    buckets  K
    bucket   h     a number below K for each entry
    sign     ξ     1 or -1, without which what shares a number would be alike on average: with it,
                   the product of two rows is right on average (feature hashing)

The entry (i, j) of a matrix with n columns has the position p = i·n + j, and

    x = mix(p xor mix(seed)),    ξ = 1 - 2·(x mod 2),    h = ⌊⌊x / 2⌋ · K / 2³¹⌋

where mix is the last step of MurmurHash3 for 32 bits: x ^= x >> 16, x *= 0x85ebca6b, x ^= x >> 13,
x *= 0xc2b2ae35, x ^= x >> 16, all modulo 2³². It is a bijection, so no two entries have the same x,
and all is in integers, so it is the same on every machine.

Nothing is stored for the codes, and nothing is chosen either: of a trained matrix, the best vector
keeps about K of its n parts of the sum of squares. Hashing is for training from the start.

Differs from the paper: one hash gives bucket and sign, where the paper has two of xxHash; the bias
is not hashed. The matrix is made anew in every forward pass. Not included: products without it.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import own_linears, replace_, wide

WORD = 0xFFFFFFFF


def mix(x: Tensor) -> Tensor:
    """MurmurHash3's last step, of whole numbers below 2³² in int64, any shape."""
    x = _times(x ^ x >> 16, 0x85EBCA6B)
    x = _times(x ^ x >> 13, 0xC2B2AE35)
    return x ^ x >> 16


def hash_entries(
    shape: tuple[int, int], buckets: int, *, seed: int = 0, device: torch.device | None = None
) -> tuple[Tensor, Tensor]:
    """Bucket, int64, and sign, 1 or -1 in int64, of every entry of a matrix of this shape.

    Raises:
        ValueError: no buckets or more than 2³¹, 2³² entries or more, a seed outside [0, 2³²).
    """
    count = shape[0] * shape[1]
    if not 1 <= buckets <= 2**31:
        raise ValueError(f"buckets must be 1 to 2³¹, not {buckets}")
    if count > WORD:
        raise ValueError(f"a matrix must have fewer than 2³² entries, not {tuple(shape)}")
    if not 0 <= seed <= WORD:
        raise ValueError(f"seed must be 0 to 2³² - 1, not {seed}")
    position = torch.arange(count, device=device).view(shape)
    x = mix(position ^ mix(torch.tensor(seed, device=device)))
    return (x >> 1) * buckets >> 31, 1 - 2 * (x & 1)


def hashed_matrix(vector: Tensor, shape: tuple[int, int], *, seed: int = 0) -> Tensor:
    """The matrix V of this shape, in the dtype of `vector` (buckets,); its gradient leads there."""
    bucket, sign = hash_entries(shape, len(vector), seed=seed, device=vector.device)
    return vector[bucket] * sign.to(vector.dtype)


def fit_vector(weight: Tensor, buckets: int, *, seed: int = 0) -> Tensor:
    """The vector (buckets,) whose matrix is nearest to `weight` by the sum of squares.

    That is the mean of sign · weight over a bucket, in the dtype of `weight`; 0 for an empty one.
    """
    bucket, sign = hash_entries(weight.shape, buckets, seed=seed, device=weight.device)
    signed = wide(weight.detach()) * sign
    sums = signed.new_zeros(buckets).index_add_(0, bucket.flatten(), signed.flatten())
    count = torch.bincount(bucket.flatten(), minlength=buckets)
    return (sums / count.clamp(min=1)).to(weight.dtype)


def collisions(shape: tuple[int, int], buckets: int, *, seed: int = 0) -> tuple[int, int]:
    """How many pairs of entries share a bucket, and how many buckets are empty.

    For n entries and K buckets chance would give n (n - 1) / 2K and K (1 - 1/K)ⁿ.
    """
    bucket, _ = hash_entries(shape, buckets, seed=seed)
    count = torch.bincount(bucket.flatten(), minlength=buckets)
    return int((count * (count - 1)).sum()) // 2, int((count == 0).sum())


class HashedLinear(nn.Module):
    """y = x · Vᵀ + bias, with V (out_features, in_features) hashed from a vector.

    Args:
        vector: (buckets,).
        bias: (out_features,) or None.

    The state is `vector`, `bias` and, so that it fits no other matrix, `seed` (8 bytes).
    """

    def __init__(
        self,
        vector: Tensor,
        out_features: int,
        in_features: int,
        bias: Tensor | None = None,
        *,
        seed: int = 0,
    ):
        super().__init__()
        self.out_features, self.in_features = out_features, in_features
        self.vector = nn.Parameter(vector.detach().clone())
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())
        self.register_buffer("seed", torch.tensor(seed))

    def matrix(self) -> Tensor:
        """V, in the dtype of the vector."""
        shape = (self.out_features, self.in_features)
        return hashed_matrix(self.vector, shape, seed=int(self.seed))

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return F.linear(x, self.matrix().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, buckets={len(self.vector)}"


def hash_linears_(
    model: nn.Module, fraction: float, names: Iterable[str] | None = None, *, seed: int = 0
) -> None:
    """Replace linear layers by hashed ones that come nearest to them, in place.

    Args:
        fraction: numbers of a vector to entries of its matrix, rounded, at least one number.
        names: of the layers; all linear layers if left out.
        seed: of the first layer; each next one has the next.

    Raises:
        ValueError: `fraction` is not in (0, 1], `names` has what is no linear layer, or one whose
            weight others share.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction must be above 0 and at most 1, not {fraction}")
    for own, (name, linear) in enumerate(own_linears(model, names).items(), start=seed):
        buckets = max(1, round(fraction * linear.weight.numel()))
        vector = fit_vector(linear.weight, buckets, seed=own)
        new = HashedLinear(vector, *linear.weight.shape, linear.bias, seed=own)
        replace_(model, name, new.train(linear.training))


def _times(x: Tensor, factor: int) -> Tensor:
    """x · factor modulo 2³², in halves of x, so that no product needs more than 48 bits."""
    return ((x & 0xFFFF) * factor + (((x >> 16) * factor & 0xFFFF) << 16)) & WORD
