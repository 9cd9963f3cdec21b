"""Product quantization: a row is cut into short vectors, and each is stored as the code of another.

Source: Jégou et al. (2011), Product Quantization for Nearest Neighbor Search,
doi:10.1109/TPAMI.2010.57, section 2; for layers, Stock et al. (2019), And the Bit Goes Down,
arXiv:1907.05686, section 3.1:

    row = (u₁, ..., u_m) ≈ (q₁(u₁), ..., q_m(u_m))        q_j(u) the nearest of k centroids
    min Σ ‖u - q(u)‖², or with inputs x: min Σ ‖x̃ᵀ(u - q(u))‖²

    code       papers
    width      D*, d   numbers of a vector u_j; columns / width = m vectors a row
    bits               log₂ k
    codebooks  C_j     (m, k, width): Jégou et al. have a codebook for each place in the row
    shared             Stock et al. have one for all places: (1, k, width)
    gram       x̃ x̃ᵀ    Σ x xᵀ of the layer's inputs, of which the blocks on the diagonal are used

One code stands for `width` numbers: 8 bits a vector of 8 are 1 bit a weight. The codebooks come on
top, k · columns numbers, or k · width if shared, whatever the number of rows: a bargain for an
embedding table, not for a layer with as many rows as centroids.

k-means starts at vectors drawn without replacement. Of two centroids equally near the first counts;
a cluster without members keeps its centroid.

Differs from Stock et al.: a cluster that has become empty is not filled by splitting another. Their
least squares for a centroid are here the mean of its members, for they are all measured by the same
inputs (with `shared`, by the sum of the blocks). Not included: training the codebooks; products by
tables (Jégou et al., section 3).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import own_layers, replace_, wide
from ..quantization.affine import code_range
from ..quantization.packing import pack, packed_size, unpack

CHUNK = 16384  # vectors whose distances are held at once


@dataclass(frozen=True)
class ProductQuantized:
    """A matrix (rows, m · width): codes (rows, m) uint8, codebooks (m, k, width), or (1, k, width)
    if all places share one."""

    codes: Tensor
    codebooks: Tensor
    bits: int

    def reconstruct(self) -> Tensor:
        """The matrix, in the dtype of the codebooks."""
        return _look_up(self.codes, self.codebooks)


def k_means(
    points: Tensor, centroids: Tensor, *, root: Tensor | None = None, iterations: int = 25
) -> tuple[Tensor, Tensor]:
    """K-means of vectors (points, width) from `centroids` (clusters, width).

    Args:
        root: L (width, width); what is made small is the length of (point - centroid) · L.
        iterations: at most; it ends when no point goes to another centroid. Each costs
            points · clusters · width multiplications.

    Returns:
        for each point the nearest of the centroids, int64 (points,), and the centroids.
    """
    codes = None
    for _ in range(iterations):
        before, codes = codes, _nearest(points, centroids, root)
        if before is not None and torch.equal(before, codes):
            return codes, centroids
        sums = torch.zeros_like(centroids).index_add_(0, codes, points)
        count = torch.bincount(codes, minlength=len(centroids))[:, None]
        centroids = torch.where(count > 0, sums / count.clamp(min=1), centroids)
    return _nearest(points, centroids, root), centroids


def product_quantize(
    weight: Tensor,
    *,
    width: int,
    bits: int = 8,
    shared: bool = False,
    gram: Tensor | None = None,
    damping: float = 0.01,
    iterations: int = 25,
    generator: torch.Generator | None = None,
) -> ProductQuantized:
    """Rows as codes for their parts, with codebooks in float32 (float64 for float64).

    Args:
        weight: (rows, columns).
        width: columns of a part.
        shared: one codebook for all parts of a row.
        gram: (columns, columns), XᵀX of inputs X (tokens, columns): not the error of the weight
            is made small but that of the output, as far as it comes from one part alone.
        damping: added to the diagonal of `gram`, as a fraction of its mean.

    Raises:
        ValueError: `width` does not divide the columns, `bits` is not 1 to 8, there are more
            centroids than vectors, or `gram` has another shape.
    """
    if weight.ndim != 2 or width < 1 or weight.shape[1] % width:
        raise ValueError(f"width must divide the columns of {tuple(weight.shape)}, not {width}")
    clusters = code_range(bits)[1] + 1
    parts = wide(weight.detach()).unflatten(1, (-1, width)).transpose(0, 1)  # (m, rows, width)
    roots = [None] * len(parts) if gram is None else _roots(gram, parts, damping, shared)
    if shared:
        parts, roots = parts.transpose(0, 1).reshape(1, -1, width), roots[:1]
    if clusters > parts.shape[1]:
        raise ValueError(f"{bits} bits are {clusters} centroids, for {parts.shape[1]} vectors")
    codes, codebooks = [], []
    for points, root in zip(parts, roots, strict=True):
        order = torch.randperm(len(points), generator=generator)[:clusters].to(points.device)
        found = k_means(points, points[order], root=root, iterations=iterations)
        codes.append(found[0].byte())
        codebooks.append(found[1])
    codes = torch.stack(codes, 1).view(len(weight), -1)
    return ProductQuantized(codes, torch.stack(codebooks), bits)


def product_bytes(
    rows: int, columns: int, *, width: int, bits: int = 8, shared: bool = False
) -> int:
    """Bytes of a packed matrix with codebooks in float32."""
    numbers = 2**bits * (width if shared else columns)
    return packed_size(rows * columns // width, bits) + 4 * numbers


class _Product(nn.Module):
    """A matrix (rows, columns) whose codes are packed."""

    def __init__(self, weight: ProductQuantized):
        super().__init__()
        (self.rows, self.parts), self.bits = weight.codes.shape, weight.bits
        self.columns = self.parts * weight.codebooks.shape[2]
        self.register_buffer("codes", pack(weight.codes, weight.bits))
        self.register_buffer("codebooks", weight.codebooks.clone())

    def reconstruct(self) -> Tensor:
        """The matrix, in the dtype of the codebooks."""
        return _look_up(unpack(self.codes, self.bits, (self.rows, self.parts)), self.codebooks)

    def extra_repr(self) -> str:
        return f"{self.rows}, {self.columns}, parts={self.parts}, bits={self.bits}"


class PQLinear(_Product):
    """y = x · Ŵᵀ + bias, with Ŵ (out_features, in_features) made anew in every forward pass.

    Args:
        bias: (out_features,) or None.
    """

    def __init__(self, weight: ProductQuantized, bias: Tensor | None = None):
        super().__init__(weight)
        self.out_features, self.in_features = self.rows, self.columns
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features)."""
        return F.linear(x, self.reconstruct().to(x.dtype), self.bias)


class PQEmbedding(_Product):
    """Rows of a matrix; only the codes of the rows that are asked for are looked at.

    Args:
        weight: (tokens, width of the model); at less than 8 bits the parts of a row are a multiple
            of 8, so that it has whole bytes.

    Raises:
        ValueError: they are not.
    """

    def __init__(self, weight: ProductQuantized):
        super().__init__(weight)
        if self.bits < 8 and self.parts % 8:
            raise ValueError(f"{self.parts} codes of {self.bits} bits a row are not whole octets")

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (…) to (…, columns)."""
        size = self.parts * self.bits // 8
        codes = self.codes[: self.rows * size].view(-1, size)[ids.flatten()]
        if self.bits < 8:
            codes = unpack(codes.flatten(), self.bits, (ids.numel(), self.parts))
        return _look_up(codes, self.codebooks).view(*ids.shape, self.columns)


def product_quantize_embedding_(model: nn.Module, name: str, **options) -> None:
    """Put a `PQEmbedding` in the place of an embedding; options as in `product_quantize`.

    Raises:
        ValueError: it is no embedding, another layer uses its weight, or as `product_quantize`.
    """
    embedding = own_layers(model, nn.Embedding, [name], what="embedding")[name]
    new = PQEmbedding(product_quantize(embedding.weight, **options))
    replace_(model, name, new.train(embedding.training))


def _look_up(codes: Tensor, codebooks: Tensor) -> Tensor:
    """(rows, m) codes as (rows, m · width) numbers."""
    place = torch.arange(codes.shape[1], device=codes.device) % len(codebooks)  # 0 if shared
    return codebooks[place, codes.long()].flatten(1)


def _nearest(points: Tensor, centroids: Tensor, root: Tensor | None) -> Tensor:
    """‖p - c‖² = ‖p‖² - 2 p·c + ‖c‖², without the first term, which is the same for all c."""
    if root is not None:
        points, centroids = points @ root, centroids @ root
    square = centroids.square().sum(1)
    return torch.cat(
        [torch.addmm(square, p, centroids.T, alpha=-2).argmin(1) for p in points.split(CHUNK)]
    )


def _roots(gram: Tensor, parts: Tensor, damping: float, shared: bool) -> list[Tensor]:
    """L with L Lᵀ the block of `gram` for each part; if shared, for their sum."""
    m, _, width = parts.shape
    if gram.shape != (m * width, m * width):
        raise ValueError(f"gram must be ({m * width}, {m * width}), not {tuple(gram.shape)}")
    blocks = gram.to(parts.dtype).view(m, width, m, width)
    more = damping * gram.diagonal().mean() * torch.eye(width, device=gram.device)
    blocks = torch.stack([blocks[j, :, j] + more.to(parts.dtype) for j in range(m)])
    return list(torch.linalg.cholesky(blocks.sum(0, keepdim=True) if shared else blocks))
