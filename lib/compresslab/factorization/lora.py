"""LoRA: train a low-rank update beside frozen weights.

Source: Hu et al. (2021), LoRA: Low-Rank Adaptation of Large Language Models, arXiv:2106.09685,
equation 3:

    h = W₀ x + (α/r) B A x

    code      paper   shape
    lora_a    A       (rank, in_features), uniform as nn.Linear starts
    lora_b    B       (out_features, rank), zero at the start, so the model starts unchanged
    rank      r
    alpha     α       the update is scaled by alpha / rank

Differs from the paper: every linear layer is adapted, not the attention projections alone, and A
starts uniform (as in the authors' code), not Gaussian. Not included: dropout on the adapter input.

On layers in NF4 this is QLoRA: Dettmers et al. (2023), arXiv:2305.14314.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import check_fits, new_linear, replace_
from ..quantization.nf4 import NF4Linear


def _weight(linear: nn.Linear | NF4Linear) -> Tensor:
    """Its weight; one in NF4 as float32."""
    return linear.dequantize() if isinstance(linear, NF4Linear) else linear.weight


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update.

    Raises:
        ValueError: rank outside [1, min(in_features, out_features)].
    """

    def __init__(
        self,
        linear: nn.Linear | NF4Linear,
        *,
        rank: int,
        alpha: float,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        weight = _weight(linear)
        out_features, in_features = weight.shape
        if not 1 <= rank <= min(in_features, out_features):
            raise ValueError(
                f"rank must be between 1 and {min(in_features, out_features)} for a weight of "
                f"shape {tuple(weight.shape)}, not {rank}"
            )
        self.linear = linear.requires_grad_(False)
        self.scale = alpha / rank
        bound = 1 / math.sqrt(in_features)
        a = torch.empty(rank, in_features).uniform_(-bound, bound, generator=generator)
        self.lora_a = nn.Parameter(a.to(weight))
        self.lora_b = nn.Parameter(weight.new_zeros(out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)"""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.lora_a), self.lora_b)

    def merged(self) -> nn.Linear:
        """A new plain linear layer that computes the same function: in float32 where the frozen
        weight was in NF4, as the sum would not fit its levels.
        """
        weight, bias = _weight(self.linear), self.linear.bias
        with torch.no_grad():
            dtype = torch.promote_types(weight.dtype, torch.float32)
            update = self.scale * self.lora_b.to(dtype) @ self.lora_a.to(dtype)
            merged = new_linear((weight.to(dtype) + update).to(weight.dtype), bias)
        return merged.train(self.training)


def add_lora_(
    model: nn.Module,
    *,
    rank: int,
    alpha: float | None = None,
    generator: torch.Generator | None = None,
) -> None:
    """Freeze `model` and put a LoRALinear in place of each of its linear layers, NF4 included.

    Args:
        rank: of every update.
        alpha: default 2 · rank, a scale of 2.

    Raises:
        ValueError: a layer is too small for the rank; the model is left without adapters.
    """
    model.requires_grad_(False)
    alpha = 2 * rank if alpha is None else alpha
    adapted = {
        name: LoRALinear(linear, rank=rank, alpha=alpha, generator=generator)
        for name, linear in model.named_modules()
        if isinstance(linear, nn.Linear | NF4Linear)
    }
    for name, layer in adapted.items():
        replace_(model, name, layer)


def merge_lora_(model: nn.Module) -> None:
    """Put a plain linear layer in place of every LoRALinear, and unfreeze the model."""
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            replace_(model, name, module.merged())
    model.requires_grad_(True)


def lora_state(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trained tensors by name: what an adapter file holds."""
    return {
        name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad
    }


def load_lora_(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Copy the tensors of `lora_state` into a model that was prepared in the same way.

    Raises:
        ValueError: a name or a shape of `state` does not fit the model, which is left as it was.
    """
    expected = {name: p for name, p in model.named_parameters() if p.requires_grad}
    check_fits(state, expected, what="adapter")
    with torch.no_grad():
        for name, tensor in state.items():
            expected[name].copy_(tensor)
