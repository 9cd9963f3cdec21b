"""Tied embeddings: one table for the words that are read and the words that are predicted.

Source: Press and Wolf (2016), Using the Output Embedding to Improve Language Models,
arXiv:1608.05859:

    S = U = V        ∂L/∂S = ∂L/∂U + ∂L/∂V

    code     paper
    input    U   (tokens, width), the embedding: the gradient reaches the rows of tokens that occur
    output   V   (tokens, width), the weight of the output layer: it reaches all rows
             S   the tied one

Tied means the same `nn.Parameter` under two names. `parameters()` lists it once, so it is counted,
decayed and stepped once, and `storage.save` writes it once. Two parameters that only lie in the
same memory take as little of it, but an optimizer would step them twice.

    untie_embeddings_(model)
    tie_embeddings_(model, start="mean")
    shared_tensors(model)                [("model.embed_tokens.weight", "lm_head.weight")]

Differs from the paper, which ties before training: here two tables that may be trained become one.
Not included: the projection of the paper between the output layer and what is before it.
"""

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..layers import wide


def shared_tensors(model: nn.Module) -> list[tuple[str, ...]]:
    """The names of each tensor of the state that has several, in the order of the model."""
    return [names for names in _by_memory(model) if len(names) > 1]


def state_bytes(model: nn.Module, *, once: bool = True) -> int:
    """Bytes of all tensors of the state: a shared one once, or else once for each of its names."""
    return sum(t.nbytes * (1 if once else len(names)) for names, t in _by_memory(model).items())


def tie_embeddings_(model: PreTrainedModel, *, start: str = "input") -> None:
    """Make the weight of the output layer that of the embedding, which keeps its parameter.

    The configuration says so, too: `from_pretrained` ties what `save_pretrained` stores once. A
    bias of the output layer stays.

    Args:
        model: a language model of transformers, tied or not.
        start: what the table starts from, "input", "output" or their "mean".

    Raises:
        ValueError: another `start`, no embedding and linear output layer, or weights that differ
            in shape.
    """
    table, output = _ends(model)
    starts = {"input": [table], "output": [output], "mean": [table, output]}
    if start not in starts:
        raise ValueError(f"start must be {', '.join(starts)}, not {start!r}")
    if table.weight.shape != output.weight.shape:
        raise ValueError(
            f"embedding and output layer must have weights of the same shape, "
            f"not {tuple(table.weight.shape)} and {tuple(output.weight.shape)}"
        )
    with torch.no_grad():
        table.weight.copy_(torch.stack([wide(m.weight) for m in starts[start]]).mean(0))
    output.weight = table.weight
    model.config.tie_word_embeddings = True


def untie_embeddings_(model: PreTrainedModel) -> None:
    """Give the output layer a copy of its weight for its own, and say so in the configuration.

    Raises:
        ValueError: no embedding and linear output layer.
    """
    _, output = _ends(model)
    weight = output.weight
    output.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
    model.config.tie_word_embeddings = False


def _by_memory(model: nn.Module) -> dict[tuple[str, ...], Tensor]:
    """The tensors of the state by all their names: those that `storage.save` writes once."""
    groups: dict[tuple, tuple[list[str], Tensor]] = {}
    for name, t in model.state_dict().items():
        place = (t.device, t.data_ptr(), t.shape, t.stride(), t.dtype) if t.numel() else name
        groups.setdefault(place, ([], t))[0].append(name)
    return {tuple(names): tensor for names, tensor in groups.values()}


def _ends(model: PreTrainedModel) -> tuple[nn.Embedding, nn.Linear]:
    table, output = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(table, nn.Embedding) or not isinstance(output, nn.Linear):
        raise ValueError(
            f"{type(model).__name__} must have an nn.Embedding and an nn.Linear as its ends, "
            f"not {type(table).__name__} and {type(output).__name__}"
        )
    return table, output
