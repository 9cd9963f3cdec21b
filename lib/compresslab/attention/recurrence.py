"""What the recurrent methods share: a state, a decay, a write, a read.

A state of constant size stands for the text so far. Each token makes it fade, adds to it, and reads
from it:

    S_t = decay_t · S_{t-1} + write_t,     output_t = read_t(S_t)

    method            state                    decay                     write        read
    linear attention  dim × dim and dim        none                      φ(k) vᵀ      φ(q), quotient
    retention         dim × dim                γ, fixed for each head    k vᵀ         q
    delta rule        dim × dim                I - β k kᵀ                β k vᵀ       q
    gated delta rule  dim × dim                α (I - β k kᵀ)            β k vᵀ       q
    S4D               N/2 complex a channel    exp(Δ A), learned         B̄ x          2 Re C
    Mamba             N a channel              exp(Δ A), Δ of the token  Δ B x        C of the token
    RWKV-4            2 a channel, 1 exponent  exp(-w), learned          eᵏ v and eᵏ  quotient

All are causal. Every form takes the state before its tokens (None at the beginning of a text) and
gives back the state after them and then the outputs, so that a text can be read in pieces:

    step       one token, in constant time and memory
    recurrent  the step, token by token
    parallel   all tokens at once, in more operations or more memory
    chunked    all tokens of a chunk at once, and the state from chunk to chunk

States are kept in at least float32, outputs have the caller's dtype. There is no mask: padding at
the end of a text changes no output before it, but the state has seen it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import new_linear, wide

Form = Callable[..., tuple[Any, Tensor]]
Merge = Callable[[Sequence[Tensor], Sequence[Tensor]], Sequence[Tensor]]


def over_tokens(step: Form, state: Any, *tensors: Tensor, dim: int) -> tuple[Any, Tensor]:
    """The recurrent form: `step(state, *tokens) -> (state, output)` for each index of `dim`.

    Args:
        tensors: of one length along `dim`, at least 1; a step gets them without that dimension.

    Returns:
        The last state, and the outputs stacked along `dim`.
    """
    outputs = []
    for tokens in zip(*(x.unbind(dim) for x in tensors), strict=True):
        state, output = step(state, *tokens)
        outputs.append(output)
    return state, torch.stack(outputs, dim)


def over_chunks(
    form: Form, state: Any, *tensors: Tensor, dim: int, chunk_size: int
) -> tuple[Any, Tensor]:
    """The chunked form: `form(state, *chunks) -> (state, outputs)` for each piece of `dim`.

    Args:
        tensors: of one length along `dim`, at least 1; the last chunk may be shorter.

    Returns:
        The last state, and the outputs joined along `dim`.

    Raises:
        ValueError: chunk_size below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, not {chunk_size}")
    outputs = []
    for chunks in zip(*(x.split(chunk_size, dim) for x in tensors), strict=True):
        state, output = form(state, *chunks)
        outputs.append(output)
    return state, torch.cat(outputs, dim)


def associative_scan(merge: Merge, elements: Sequence[Tensor]) -> Sequence[Tensor]:
    """What merging all tokens up to each one gives, in ⌈log2(time)⌉ rounds, none over tokens.

    After the first round each element stands for 2 tokens, after the second for 4: time · log time
    merges, where a loop needs time, but all of a round at once.

    Args:
        merge: (earlier, later) -> merged, each as many tensors as `elements`; associative.
        elements: tensors (batch, time, …), a token each.

    Returns:
        As many, of the same shapes.
    """
    time, span = elements[0].shape[1], 1
    while span < time:
        merged = merge([x[:, :-span] for x in elements], [x[:, span:] for x in elements])
        pairs = zip(elements, merged, strict=True)
        elements = [torch.cat([x[:, :span], new], dim=1) for x, new in pairs]
        span *= 2
    return elements


def initial(state: Tensor | None, shape: tuple[int, ...], *, like: Tensor) -> Tensor:
    """The state to begin with, in the dtype of `like`: zeros of this shape for None.

    Raises:
        ValueError: the state has another shape.
    """
    if state is None:
        return like.new_zeros(shape)
    check_shape("state", state, shape)
    return state.to(like.dtype)


def check_shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Refuse a `tensor`, called `name` in the message, of another shape.

    Raises:
        ValueError: its shape is another.
    """
    if tensor.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)}, not {tuple(tensor.shape)}")


def check_text(name: str, x: Tensor, axes: str, width: int | None = None) -> None:
    """Refuse an `x`, called `name` in the message, with other axes or without tokens.

    Args:
        axes: what the shape is, in words, time second to last.
        width: the size of the last, where there is one that it must have.

    Raises:
        ValueError: x has not as many axes, time is 0, or the last axis has another size.
    """
    if x.ndim != 1 + axes.count(",") or not x.shape[-2] or width not in (None, x.shape[-1]):
        width = "" if width is None else f" and the last axis {width}"
        raise ValueError(f"{name} must be {axes}, time at least 1{width}, not {tuple(x.shape)}")


def check_rate(name: str, rate: Tensor) -> None:
    """Refuse what makes a state grow: a `rate`, the logarithm of a decay, above 0.

    Raises:
        ValueError: it is, somewhere.
    """
    if (rate > 0).any():
        raise ValueError(f"{name} must be at most 0, being a logarithm, not {rate.max().item():g}")


def all_wide(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All in float32, or in float64 if the first is."""
    dtype = wide(tensors[0]).dtype
    return tuple(x.to(dtype) for x in tensors)


def uniform(*shape: int, bound: float, generator: torch.Generator | None) -> Tensor:
    """Numbers between -bound and bound, float32."""
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)


def random_linear(inputs: int, outputs: int, *, generator: torch.Generator | None) -> nn.Linear:
    """A linear layer without bias, as nn.Linear starts it, from a generator."""
    return new_linear(uniform(outputs, inputs, bound=inputs**-0.5, generator=generator))
