"""Structured matrices with a fast product: block-diagonal, Monarch and butterfly.

Source: Dao et al. (2022), Monarch: Expressive Structured Matrices for Efficient and Accurate
Training, arXiv:2204.00595, theorem 1 and algorithm 1 for the projection; Dao et al. (2019),
Learning Fast Algorithms for Linear Transforms Using Butterfly Factorizations, arXiv:1903.05895.

    Monarch     M = P L Pᵀ R       M[ℓ, j, k, i] = Σ_r L[j, ℓ, (k, r)] R[k, (r, j), i]
    butterfly   M = B_n ... B_4 B_2

    code     paper
    right    R     (k, rank · j, i), k blocks on the diagonal; the input is numbered (k, i)
    left     L     (j, ℓ, k · rank), j blocks;                 the output is numbered (ℓ, j)
    blocks         number of blocks, of both: j = k = blocks
    P              reads a matrix column by column: a transpose
    factors  B_2, B_4, ..., B_n    log₂ n of (n/2, 2, 2): B_2s mixes pairs of entries s apart

Rows j, j + blocks, j + 2 · blocks, ... and run k of the columns make a block (ℓ, i) of M, and M is
Monarch if each of these blocks² has at most this rank. So the nearest one comes from an SVD of
each, and error² is the sum of the σ² dropped in all of them. It has rank · blocks · (in + out)
numbers, as many as two low-rank factors of rank · blocks have; with one block it is just these. A
butterfly has 2 n log₂ n.

Differs from the papers: a block may have any rank, as in the authors' code, where the Monarch paper
has rank 1 and n = blocks²; a rectangular matrix has as many blocks in L as in R. The butterfly
has no permutation before it, which the paper learns. Not included: fitting a butterfly to a matrix
(it takes gradient descent), more than two factors, sparse training that is then made dense.
"""

import torch
from torch import Tensor, nn

from ..layers import wide


def block_diagonal(x: Tensor, blocks: Tensor) -> Tensor:
    """diag(blocks) x: each run of the input goes through a matrix of its own.

    Args:
        x: (..., k · in), in the dtype of the blocks.
        blocks: (k, out, in).

    Returns:
        Tensor (..., k · out).

    Raises:
        ValueError: `blocks` has not three dimensions, or `x` another last dimension.
    """
    _check_blocks("blocks", blocks)
    k, _, size = blocks.shape
    if x.shape[-1:] != (k * size,):
        raise ValueError(
            f"x must have {k * size} as its last dimension for blocks of shape "
            f"{tuple(blocks.shape)}, not {tuple(x.shape)}"
        )
    return torch.einsum("...ki,koi->...ko", x.unflatten(-1, (k, size)), blocks).flatten(-2)


def project_monarch(weight: Tensor, *, blocks: int, rank: int = 1) -> tuple[Tensor, Tensor]:
    """The Monarch matrix nearest to `weight` by the sum of squares.

    Args:
        weight: (out_features, in_features).
        blocks: divides both. With one, this is the truncated SVD.
        rank: of a block (out_features / blocks, in_features / blocks).

    Returns:
        Tensors left (blocks, out_features / blocks, blocks · rank) and
        right (blocks, rank · blocks, in_features / blocks) in the dtype of `weight`; computed in
        float32, or in float64 for a weight in float64. √σ goes to both.

    Raises:
        ValueError: `weight` is not a matrix, `blocks` does not divide it, or the rank does not fit.
    """
    if weight.dim() != 2:
        raise ValueError(f"weight must be a matrix, not of shape {tuple(weight.shape)}")
    if blocks < 1 or any(size % blocks for size in weight.shape):
        raise ValueError(f"blocks must divide both of {tuple(weight.shape)}, not {blocks}")
    rows, columns = (size // blocks for size in weight.shape)
    if not 1 <= rank <= min(rows, columns):
        raise ValueError(
            f"rank must be 1 to {min(rows, columns)} for blocks of shape {(rows, columns)}, "
            f"not {rank}"
        )
    w = wide(weight.detach()).reshape(rows, blocks, blocks, columns).permute(2, 1, 0, 3)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)  # (k, j, ℓ, r), (k, j, r), (k, j, r, i)
    root = s[..., :rank].sqrt()
    left = (u[..., :rank] * root[..., None, :]).permute(1, 2, 0, 3).flatten(2)
    right = (root[..., None] * vh[..., :rank, :]).permute(0, 2, 1, 3).flatten(1, 2)
    return left.to(weight.dtype), right.to(weight.dtype)


def apply_monarch(x: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """P L Pᵀ R x: two block-diagonal products, and a transpose after each.

    Costs as many multiplications for each x as the factors have numbers. Differentiable in all.

    Args:
        x: (..., k · i), in the dtype of the factors, which is that of the computation.
        left: (j, ℓ, k · rank).
        right: (k, rank · j, i).

    Returns:
        Tensor (..., ℓ · j).

    Raises:
        ValueError: the factors do not fit each other, or `x` has another last dimension.
    """
    _check_monarch(left, right)
    x = block_diagonal(x, right)
    x = x.unflatten(-1, (-1, len(left))).mT.flatten(-2)  # (k, rank, j) to (j, k, rank)
    x = block_diagonal(x, left)
    return x.unflatten(-1, (len(left), -1)).mT.flatten(-2)  # (j, ℓ) to (ℓ, j)


def monarch_to_dense(left: Tensor, right: Tensor) -> Tensor:
    """The matrix that the two factors stand for.

    Args:
        left: (j, ℓ, k · rank).
        right: (k, rank · j, i).

    Returns:
        Tensor (ℓ · j, k · i), added up in float32 or float64, in the dtype of `left`.

    Raises:
        ValueError: the factors do not fit each other.
    """
    _check_monarch(left, right)
    l4 = wide(left).unflatten(2, (len(right), -1))  # (j, ℓ, k, r)
    r4 = wide(right).unflatten(1, (-1, len(left)))  # (k, r, j, i)
    return torch.einsum("jlkr,krji->ljki", l4, r4).flatten(2).flatten(0, 1).to(left.dtype)


def apply_butterfly(x: Tensor, factors: Tensor) -> Tensor:
    """B_n ... B_4 B_2 x, in 2 n log₂ n multiplications. Differentiable in both.

    Args:
        x: (..., n), n a power of two, in the dtype of the factors; complex works, too.
        factors: (log₂ n, n/2, 2, 2). Factor number p mixes entries a and a + s, s = 2ᵖ: with pairs
            counted in the order of a, pair q becomes factors[p, q] @ (x_a, x_{a+s}).

    Returns:
        Tensor (..., n).

    Raises:
        ValueError: factors of another shape, or `x` of another last dimension.
    """
    levels = factors.shape[0] if factors.dim() == 4 else 0
    if levels < 1 or factors.shape != (levels, 2 ** (levels - 1), 2, 2):
        raise ValueError(f"factors must be (log2 n, n/2, 2, 2), not {tuple(factors.shape)}")
    if x.shape[-1:] != (2**levels,):
        raise ValueError(f"x must have {2**levels} as its last dimension, not {tuple(x.shape)}")
    for level, factor in enumerate(factors):
        pairs = x.unflatten(-1, (-1, 1, 2, 2**level))  # (..., runs, 1, input, s)
        factor = factor.unflatten(0, (-1, 2**level)).permute(0, 2, 3, 1)  # (runs, output, input, s)
        x = (factor * pairs).sum(-2).flatten(-3)
    return x


def hadamard_factors(n: int) -> Tensor:
    """The butterfly of the Hadamard matrix of ±1 (Sylvester's order): (log₂ n, n/2, 2, 2) float32.

    Every pair becomes its sum and its difference. Divide by √2 for the orthogonal matrix.

    Raises:
        ValueError: `n` is not a power of two from 2 on.
    """
    if n < 2 or n & (n - 1):
        raise ValueError(f"n must be a power of two from 2 on, not {n}")
    return torch.tensor([[1.0, 1.0], [1.0, -1.0]]).repeat(n.bit_length() - 1, n // 2, 1, 1)


class MonarchLinear(nn.Module):
    """y = M x + bias, with the Monarch matrix nearest to a weight. All three can be trained.

    Args:
        weight: (out_features, in_features).
        bias: (out_features,) or None; copied.
        blocks, rank: as for `project_monarch`, and so are the errors.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, blocks: int, rank: int = 1):
        super().__init__()
        left, right = project_monarch(weight, blocks=blocks, rank=rank)
        self.out_features, self.in_features = weight.shape
        self.left, self.right = nn.Parameter(left), nn.Parameter(right)
        self.bias = None if bias is None else nn.Parameter(bias.detach().clone())

    @classmethod
    def from_linear(cls, linear: nn.Linear, *, blocks: int, rank: int = 1) -> "MonarchLinear":
        """In place of a linear layer, in its mode."""
        return cls(linear.weight, linear.bias, blocks=blocks, rank=rank).train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        y = apply_monarch(x, self.left, self.right)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        rank = self.left.shape[2] // len(self.right)
        return f"{self.in_features}, {self.out_features}, blocks={len(self.left)}, rank={rank}"


def _check_blocks(name: str, blocks: Tensor) -> None:
    if blocks.dim() != 3:
        raise ValueError(
            f"{name} must have three dimensions (k, out, in), not shape {tuple(blocks.shape)}"
        )


def _check_monarch(left: Tensor, right: Tensor) -> None:
    _check_blocks("left", left)
    _check_blocks("right", right)
    (j, _, inner), (k, middle, _) = left.shape, right.shape
    if inner % k or middle % j or inner // k != middle // j:
        raise ValueError(
            "left and right must be (j, l, k · rank) and (k, rank · j, i), "
            f"not {tuple(left.shape)} and {tuple(right.shape)}"
        )
