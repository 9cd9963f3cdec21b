"""Codebooks: all weights of a cluster share one number, and each is stored as its cluster's code.

Source: Han et al. (2015), Deep Compression, arXiv:1510.00149, section 3:

    r = n b / (n log₂ k + k b)                  equation 1
    ∂L/∂C_k = Σᵢⱼ ∂L/∂Wᵢⱼ · 1(Iᵢⱼ = k)          equation 3

    code      paper
    codes     I    cluster of each weight
    codebook  C    a number for each cluster, found by k-means and then trained
    bits           log₂ k
    number         b, the size of a number: here in bytes, not bits

Weights that share a codebook are a group: a tensor, a channel or `group_size` neighbours, as in
`quantization.affine`. Equation 1 leaves the codebook its share: 64 bytes at 4 bits for a layer, and
as many for each 32 bytes of codes in groups of 64.

A pruned weight stays pruned: with a mask the code 0 is for the weights that it removes, and means
0. It is neither found by k-means, nor trained, nor stored; the other k - 1 are for kept weights.

    cluster_linears_(model, lambda name, w: cluster(w, bits=4, mask=w != 0), trained=True)

Differs from the paper: the zero takes one of the k codes. Not included: gradients of the codes.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import own_linears, replace_, wide
from ..quantization.affine import Granularity, code_range, to_groups
from ..quantization.packing import pack, packed_size, unpack
from .kmeans import assign, lloyd, start_centroids


@dataclass(frozen=True)
class Clustered:
    """A tensor as codes into the codebook of its group.

    codes (the tensor's shape) uint8; codebook (groups, clusters) float32 or float64. `zero` says
    that the code 0 is for pruned weights; then codebook[:, 0] is 0.
    """

    codes: Tensor
    codebook: Tensor
    bits: int
    zero: bool = False

    def reconstruct(self) -> Tensor:
        """The tensor, in the dtype of the codebook, to which its gradient leads."""
        groups = self.codes.reshape(len(self.codebook), -1)
        return self.codebook.gather(1, groups.long()).view(self.codes.shape)


def cluster(
    weight: Tensor,
    *,
    bits: int,
    granularity: Granularity = "tensor",
    start: str = "linear",
    mask: Tensor | None = None,
    iterations: int = 1000,
    generator: torch.Generator | None = None,
) -> Clustered:
    """Weights as codes into codebooks of 2^bits numbers, float32 (float64 for float64).

    Args:
        start: of k-means, "linear", "random" (from `generator`) or "density".
        mask: bool, the shape of `weight`, True where a weight is kept; None for no zero.
        iterations: of k-means, at most.

    Raises:
        ValueError: `bits` is not 1 to 8, a mask of another shape, a weight that is not finite, or
            another granularity or start than there are.
    """
    clusters, zero = code_range(bits)[1] + 1, mask is not None
    groups, kept = to_groups(wide(weight.detach()), granularity), None
    if zero:
        if mask.shape != weight.shape:
            raise ValueError(
                f"mask must have the shape {tuple(weight.shape)}, not {tuple(mask.shape)}"
            )
        kept = to_groups(mask, granularity)
    codebook = start_centroids(groups, clusters - zero, start, mask=kept, generator=generator)
    codebook = lloyd(groups, codebook, mask=kept, iterations=iterations)
    codes = assign(groups, codebook)
    if zero:
        codes, codebook = (codes + 1).where(kept, 0), F.pad(codebook, (1, 0))
    return Clustered(codes.byte().view(weight.shape), codebook, bits, zero)


def centroid_gradient(gradient: Tensor, weight: Clustered) -> Tensor:
    """Equation 3: for each centroid, the sum of the gradients of its members.

    Args:
        gradient: of the loss with respect to the reconstructed weight, in its shape.

    Returns:
        (groups, clusters) in the dtype of `gradient`; what autograd finds for the codebook.
    """
    groups = weight.codes.reshape(len(weight.codebook), -1).long()
    sums = gradient.new_zeros(weight.codebook.shape)
    return sums.scatter_add_(1, groups, gradient.reshape(groups.shape))


def clustered_bytes(
    count: int, *, bits: int, groups: int = 1, zero: bool = False, number: int = 4
) -> int:
    """Bytes of `count` codes with their codebooks, whose numbers have `number` bytes each."""
    return packed_size(count, bits) + groups * (2**bits - zero) * number


class CodebookLinear(nn.Module):
    """y = x · Ŵᵀ + bias, with Ŵ = codebook[codes].

    Args:
        weight: (out_features, in_features).
        bias: (out_features,) or None.
        trained: codebook and bias are parameters; the codes stay what they are.

    The state has, trained or not, `codes` (packed), `codebook` without the zero, and `bias`.
    """

    def __init__(self, weight: Clustered, bias: Tensor | None = None, *, trained: bool = False):
        super().__init__()
        self.out_features, self.in_features = weight.codes.shape
        self.bits, self.zero = weight.bits, weight.zero
        self.register_buffer("codes", pack(weight.codes, weight.bits))
        for name, tensor in (("codebook", weight.codebook[:, int(weight.zero) :]), ("bias", bias)):
            tensor = None if tensor is None else tensor.detach().clone()
            if trained and tensor is not None:
                self.register_parameter(name, nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def clustered(self) -> Clustered:
        """The weight as codes and codebook, such as training has made it."""
        codes = unpack(self.codes, self.bits, (self.out_features, self.in_features))
        codebook = F.pad(self.codebook, (1, 0)) if self.zero else self.codebook
        return Clustered(codes, codebook, self.bits, self.zero)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return F.linear(x, self.clustered().reconstruct().to(x.dtype), self.bias)

    def extra_repr(self) -> str:
        groups = len(self.codebook)
        return f"{self.in_features}, {self.out_features}, bits={self.bits}, groups={groups}"


def cluster_linears_(
    model: nn.Module,
    cluster: Callable[[str, Tensor], Clustered],
    names: Iterable[str] | None = None,
    *,
    trained: bool = False,
) -> None:
    """Replace linear layers by layers with a codebook, in place.

    Args:
        cluster: from the name and the weight of a layer.
        names: of the layers; all linear layers if left out.
        trained: as in `CodebookLinear`.

    Raises:
        ValueError: `names` has what is no linear layer, or one whose weight others share.
    """
    for name, linear in own_linears(model, names).items():
        weight = cluster(name, linear.weight.detach())
        new = CodebookLinear(weight, linear.bias, trained=trained)
        replace_(model, name, new.train(linear.training))
