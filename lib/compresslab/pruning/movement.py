"""Movement pruning: a weight matters if tuning moves it away from zero.

Source: Sanh et al. (2020), Movement Pruning: Adaptive Sparsity by Fine-Tuning, arXiv:2005.07683,
section 4 and table 1. Every weight has a score S that trains along with it:

    a = (W ⊙ M) x
    ∂L/∂W_ij = ∂L/∂a_i · x_j · M_ij
    ∂L/∂S_ij = ∂L/∂a_i · x_j · W_ij    straight through: as if M were S, so pruned ones get it too

A step that moves a weight towards zero lowers its score, one that moves it away raises it.

    pruning     S         M                      driven by
    movement    trained   the v largest of S     set_kept_
    soft        trained   σ(S) > τ               set_threshold_, and λ · regularization in the loss
    magnitude   |W|       the v largest of |W|   set_kept_, after add_masks_(scores="magnitude")

    code       paper
    weight     W      (out_features, in_features)
    scores     S      as weight, zero at the start
    mask       M      as weight, bool
    fraction   v      kept, not removed
    threshold  τ

The masks are computed when set_kept_ or set_threshold_ is called, best in the `after_step` of
`training.train`, at every step or every few, since the scores move at every step:

    add_masks_(model.bert.encoder)
    train(..., own_rates={"scores": 1e-2}, after_step=lambda step, total: set_kept_(
        model.bert.encoder, 1 - cubic_sparsity(step, start=total // 10, end=total, final=0.9)))
    merge_masks_(model.bert.encoder)

Start pruning only after some steps: scores that are all zero tie, and the last rows would go. With
Adam the rate of the scores hardly touches a ranking, but σ(S) has to come from 0.5 down to τ within
the training, so soft movement needs one of about 10 / steps.

Differs from the authors' code: that computes the masks in every forward pass, has no global top v,
breaks no ties in the order of the weights, and never prunes more than 99.5 % of a layer by
threshold. The paper writes λ Σ σ(S); its code, and `regularization`, average. Not included: L0
regularization, distillation, blocks of weights that share a score.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import find_linears, replace_
from .masks import keep_largest, keep_largest_globally


class _StraightThrough(torch.autograd.Function):
    """W ⊙ M, with a gradient for S."""

    @staticmethod
    def forward(ctx, weight: Tensor, scores: Tensor, mask: Tensor) -> Tensor:
        ctx.save_for_backward(weight, mask)
        return weight * mask

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        weight, mask = ctx.saved_tensors
        return gradient * mask, gradient * weight, None


class MaskedLinear(nn.Module):
    """A linear layer that uses only the weights in `mask`; all at the start. The bias stays.

    Args:
        linear: its parameters are used, not copied.
        scores: "movement" to train them, "magnitude" to take |weight|.

    Raises:
        ValueError: unknown scores.
    """

    def __init__(self, linear: nn.Linear, *, scores: str = "movement"):
        super().__init__()
        if scores not in ("movement", "magnitude"):
            raise ValueError(f"scores must be 'movement' or 'magnitude', not {scores!r}")
        self.weight, self.bias = linear.weight, linear.bias
        trained = scores == "movement"
        self.scores = nn.Parameter(torch.zeros_like(linear.weight)) if trained else None
        self.register_buffer("mask", torch.ones_like(linear.weight, dtype=torch.bool))
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        if self.scores is None:
            return F.linear(x, self.weight * self.mask, self.bias)
        return F.linear(x, _StraightThrough.apply(self.weight, self.scores, self.mask), self.bias)

    def ranking(self) -> Tensor:
        """What the weights are ranked by, the shape of `weight`, without gradient."""
        return self.weight.detach().abs() if self.scores is None else self.scores.detach()

    def merged(self) -> nn.Linear:
        """A new plain linear layer that computes the same function, with zeros in its weight."""
        out_features, in_features = self.weight.shape
        merged = nn.utils.skip_init(  # draws no random numbers
            nn.Linear,
            in_features,
            out_features,
            bias=self.bias is not None,
            device=self.weight.device,
            dtype=self.weight.dtype,
        )
        with torch.no_grad():
            merged.weight.copy_(self.weight.masked_fill(~self.mask, 0))
            merged.weight.requires_grad_(self.weight.requires_grad)
            if self.bias is not None:
                merged.bias.copy_(self.bias)
                merged.bias.requires_grad_(self.bias.requires_grad)
        return merged.train(self.training)


def add_masks_(model: nn.Module, *, scores: str = "movement") -> None:
    """Put a MaskedLinear in place of every linear layer of `model`, which still computes the same.

    Args:
        model: what to prune; of a BERT classifier its encoder, as in the paper.
        scores: as for MaskedLinear.

    Raises:
        ValueError: no linear layer, or unknown scores.
    """
    linears = find_linears(model)
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layer")
    for name, linear in linears.items():
        replace_(model, name, MaskedLinear(linear, scores=scores))


def set_kept_(model: nn.Module, fraction: float, *, globally: bool = False) -> None:
    """Compute all masks anew, to keep the weights that rank highest now.

    The same weights as `masks.keep_largest` keeps at sparsity 1 − fraction: of n exactly
    n − round((1 − fraction) · n), of equal ones those that come first.

    Args:
        fraction: kept, 0 to 1.
        globally: one ranking of all layers together; by default each layer keeps the same fraction.

    Raises:
        ValueError: fraction outside [0, 1], a score is not a number, or the model has no masks.
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, not {fraction}")
    layers = _find_masked(model)
    rankings = {str(i): layer.ranking().flatten() for i, layer in enumerate(layers)}
    if globally:
        masks = keep_largest_globally(rankings, 1 - fraction)
    else:
        masks = {i: keep_largest(ranking, 1 - fraction) for i, ranking in rankings.items()}
    for layer, mask in zip(layers, masks.values(), strict=True):
        layer.mask.copy_(mask.view_as(layer.mask))


def set_threshold_(model: nn.Module, threshold: float) -> None:
    """Soft movement: compute all masks anew, to keep the weights whose σ(score) > threshold.

    Args:
        threshold: 0 to 1; 0 keeps everything, and 0.5 what has moved away from zero.

    Raises:
        ValueError: threshold outside [0, 1], or the model has no trained scores.
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be between 0 and 1, not {threshold}")
    for layer in _find_trained(model):
        layer.mask.copy_(layer.scores.detach().sigmoid() > threshold)


def regularization(model: nn.Module) -> Tensor:
    """Mean of σ(scores) of a layer, averaged over the layers: a scalar to add, times λ, to the
    loss of soft movement. It lowers all scores that the loss does not hold up.

    Raises:
        ValueError: the model has no trained scores.
    """
    return torch.stack([layer.scores.sigmoid().mean() for layer in _find_trained(model)]).mean()


def kept(model: nn.Module) -> float:
    """The fraction of the weights that the masks keep together.

    Raises:
        ValueError: the model has no masks.
    """
    layers = _find_masked(model)
    total = sum(layer.mask.numel() for layer in layers)
    return sum(int(layer.mask.sum()) for layer in layers) / total


def merge_masks_(model: nn.Module) -> dict[str, Tensor]:
    """Put a plain linear layer in place of every MaskedLinear.

    Returns:
        the masks by name, as `masks.hold_masks` takes them, should tuning go on.
    """
    masks = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, MaskedLinear):
            replace_(model, name, module.merged())
            masks[name] = module.mask
    return masks


def _find_masked(model: nn.Module) -> list[MaskedLinear]:
    layers = [m for m in model.modules() if isinstance(m, MaskedLinear)]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no masked layer; add_masks_ makes them")
    return layers


def _find_trained(model: nn.Module) -> list[MaskedLinear]:
    layers = [layer for layer in _find_masked(model) if layer.scores is not None]
    if not layers:
        raise ValueError(f"{type(model).__name__} has no trained scores, but those of magnitude")
    return layers
