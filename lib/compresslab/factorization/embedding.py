"""An embedding as a narrow table and a projection: V × H numbers become V × E + E × H.

Source: Lan et al. (2019), ALBERT: A Lite BERT, arXiv:1909.11942, section 3.1, "factorized embedding
parameterization".

    code    paper
    tokens  V   rows of the table
    width   H   what the first layer reads
    rank    E   width of the narrow table

Differs from the paper: ALBERT is trained so from the start. There positions and token types have
width E, too, and the LayerNorm comes before the projection; here a trained table is cut to a
rank afterwards, and everything behind it stays as it is. The bias of ALBERT's projection is left
out, since a constant can as well be added to the positions.

Most tokens are rare. With `counts` the error of a row counts as often as the token occurs, which is
`weighted_svd` of rows in place of columns: the weighting of Chen et al. (2018), GroupReduce,
arXiv:1806.06950, without their blocks of tokens, each with a rank of its own.
"""

from torch import Tensor, nn

from ..layers import own_layers, replace_
from .svd import Factors, truncated_svd
from .weighted_svd import scaled_svd


class FactorizedEmbedding(nn.Module):
    """Looks up narrow rows and makes them wide.

    Args:
        factors: left (tokens, rank) is the table, right (rank, width) the projection.
        padding_idx: as in `nn.Embedding`.
    """

    def __init__(self, factors: Factors, *, padding_idx: int | None = None):
        super().__init__()
        tokens, rank = factors.left.shape
        self.table = nn.Embedding(
            tokens, rank, padding_idx=padding_idx, _weight=factors.left.detach().clone()
        )
        self.projection = nn.Parameter(factors.right.detach().clone())

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (...) -> (..., width)"""
        return self.table(ids) @ self.projection


def factorize_embedding(table: Tensor, rank: int, *, counts: Tensor | None = None) -> Factors:
    """A table (tokens, width) as (tokens, rank) and (rank, width).

    Args:
        counts: (tokens,), how often each occurs; one is added, so that none has no weight. Left
            out, all rows count the same.

    Raises:
        ValueError: counts of another shape, or a rank outside [1, min(tokens, width)].
    """
    if counts is None:
        return truncated_svd(table, rank)
    if counts.shape != table.shape[:1]:
        raise ValueError(
            f"there must be a count for each of {len(table)} tokens, not {tuple(counts.shape)}"
        )
    left, right = scaled_svd(table.T, (counts.to(table.device) + 1).float().sqrt(), rank)
    return Factors(right.T.contiguous(), left.T.contiguous())


def factorize_embedding_(
    model: nn.Module, name: str, rank: int, *, counts: Tensor | None = None
) -> None:
    """Replace the embedding called `name` by a factorized one, in place.

    Raises:
        ValueError: it is no embedding, another layer uses its weight, or as `factorize_embedding`.
    """
    embedding = own_layers(model, nn.Embedding, [name], what="embedding")[name]
    factors = factorize_embedding(embedding.weight.detach(), rank, counts=counts)
    new = FactorizedEmbedding(factors, padding_idx=embedding.padding_idx)
    replace_(model, name, new.train(embedding.training))
