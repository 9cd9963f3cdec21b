"""The lottery ticket: the small network that, trained alone from early on, would have done.

Source: Frankle and Carbin (2018), The Lottery Ticket Hypothesis, arXiv:1803.03635, section 2 and
appendix B (iterative pruning with resetting); Frankle et al. (2019), Linear Mode Connectivity and
the Lottery Ticket Hypothesis, arXiv:1912.05671, section 4 (rewinding to step k, not to step 0):

    W_k   early weights, reached by k steps from W_0
    m     all ones
    n times:  W_T = train(m ⊙ W_k);  m = what is left without the p smallest of |m ⊙ W_T|
    the ticket:  m ⊙ W_k

    code        paper
    checkpoint  W_k, k = 0 in the first paper     the whole state of the model, by name
    masks       m                                 name of a layer -> bool, as its weight
    fraction    p                                 of what the round before left, mostly 0.2
    rounds      n

After r rounds a fraction (1 − p)^r is left. No optimizer state is carried over: `train` builds its
optimizer anew, every round. Whether it goes on at step k of the schedule of the learning rate, with
the moments of step k, or starts both afresh as `training.train` does, is up to that callable; the
second paper trains from step k to step T.

Differs from the papers: the output layer is pruned like every other unless `layers` leaves it out
(the first paper prunes it at half the rate). Not included: convolutions, a ticket with weights
drawn anew, and the test of stability to the order of the data.
"""

import copy
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from ..layers import check_fits, find_linears
from .masks import apply_masks_, hold_masks, keep_largest, keep_largest_globally

AfterStep = Callable[[int, int], None]


def find_ticket(
    model: nn.Module,
    train: Callable[[nn.Module, AfterStep], object],
    checkpoint: Mapping[str, Tensor],
    *,
    rounds: int,
    fraction: float = 0.2,
    globally: bool = False,
    layers: Collection[str] | None = None,
) -> tuple[nn.Module, list[dict[str, Tensor]]]:
    """Iterative magnitude pruning with rewinding. Costs `rounds` trainings.

    Args:
        model: not changed; a copy of it is trained.
        train: trains the model it is given in place, with an optimizer of its own, and calls the
            second argument after every step, which keeps pruned weights at zero:
            `lambda model, after_step: training.train(model, batches, after_step=after_step)`.
        checkpoint: the early weights, a copy of the `state_dict` at step k.
        fraction: removed in a round, of the weights left, 0 to 1.
        globally: one ranking of all layers together (deep networks in the papers); by default
            each layer loses the same fraction.
        layers: dotted names of the linear layers to prune; by default all.

    Returns:
        the model with the early weights, zero where the last masks remove; and the masks after
        each round, those of a later round within those of an earlier. Of n weights, round r
        leaves n − round((1 − (1 − fraction)^r) · n), in each layer or globally.

    Raises:
        ValueError: rounds < 1, fraction outside [0, 1], a name that is no linear layer, a
            checkpoint that does not fit, or no linear layer.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, not {rounds}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction must be between 0 and 1, not {fraction}")
    names = _names(model, layers)
    ticket = copy.deepcopy(model)
    masks: dict[str, Tensor] = {}
    found = []
    for done in range(1, rounds + 1):
        rewind_(ticket, checkpoint, masks)
        train(ticket, hold_masks(ticket, masks))
        scores = {name: ticket.get_submodule(name).weight.detach().abs() for name in names}
        for name, mask in masks.items():
            scores[name].masked_fill_(~mask, -1)  # below every weight: what is gone stays gone
        sparsity = 1 - (1 - fraction) ** done
        if globally:
            masks = keep_largest_globally(scores, sparsity)
        else:
            masks = {name: keep_largest(s, sparsity) for name, s in scores.items()}
        found.append(masks)
    rewind_(ticket, checkpoint, masks)
    return ticket, found


def rewind_(
    model: nn.Module, checkpoint: Mapping[str, Tensor], masks: Mapping[str, Tensor]
) -> None:
    """Give `model` the weights of the checkpoint where the masks keep them, zeros elsewhere.

    Raises:
        ValueError: a name or a shape of `checkpoint` does not fit the model, which is left as it
            was; or a mask has not the shape of its weight.
    """
    check_fits(checkpoint, model.state_dict(), what="checkpoint")
    model.load_state_dict(checkpoint)
    apply_masks_(model, masks)


def random_ticket(
    masks: Mapping[str, Tensor], *, generator: torch.Generator | None = None
) -> dict[str, Tensor]:
    """The control: masks that keep as many weights of every layer as `masks`, at random places.

    Args:
        generator: on the CPU, wherever the masks are.
    """
    drawn = {}
    for name, mask in masks.items():
        order = torch.randperm(mask.numel(), generator=generator).to(mask.device)
        drawn[name] = mask.flatten()[order].view(mask.shape)
    return drawn


def _names(model: nn.Module, layers: Collection[str] | None) -> list[str]:
    linears = find_linears(model)
    if not linears:
        raise ValueError(f"{type(model).__name__} has no linear layer")
    if layers is None:
        return list(linears)
    for name in layers:
        if name not in linears:
            raise ValueError(f"layers names {name!r}, no linear layer of {type(model).__name__}")
    return list(layers)
