"""Mamba: a bank of fading memories whose rate, write and read depend on the token.

Source: Gu and Dao (2023), Mamba: Linear-Time Sequence Modeling with Selective State Spaces,
arXiv:2312.00752, equations 2 and 4, algorithm 2, section 3.4:

    h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t x_t,     y_t = C_t h_t          in each channel

    code             paper
    x                x     (batch, time, channels)
    step_size        Δ     (batch, time, channels), above 0: how much of the clock passes
    write, read      B, C  (batch, time, state_size), the same for all channels
    rate             A     (channels, state_size), below 0
    State.scan       h     (batch, channels, state_size)
    State.conv             (batch, conv_width - 1, channels), the last inputs of the convolution
    A_log, D, dt_proj …    called as in the authors' code and in transformers' `MambaMixer`

A large Δ forgets and takes in the token, one near 0 passes it over: `dt_proj` chooses for each
token, which S4D cannot.

    parallel    associative scan: (a₁, b₁) then (a₂, b₂) is (a₂ a₁, a₂ b₁ + b₂); log2(time) rounds
    chunked     all of a chunk at once, but for h itself: one multiply-add a token
    recurrent   token by token

On a processor the chunked form is the fastest: a multiply-add of the whole state keeps it busy, and
the scan needs log2(chunk) times as many. All are stable, as nothing is divided by a decay.

Differs from the paper: B is discretised by Euler's rule, Δ B, as in the authors' code, not by
zero-order hold. Not included: fused kernels, recomputation in the backward pass, the norm and
residual connection around the block, padding, Mamba-2.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import wide
from .recurrence import (
    all_wide,
    associative_scan,
    check_rate,
    check_shape,
    check_text,
    initial,
    over_chunks,
    over_tokens,
    random_linear,
    uniform,
)


class State(NamedTuple):
    """Of a `Mamba` block; of constant size whatever the length of the text."""

    conv: Tensor
    scan: Tensor


def chunked_scan(
    x: Tensor,
    step_size: Tensor,
    write: Tensor,
    read: Tensor,
    rate: Tensor,
    *,
    state: Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[Tensor, Tensor]:
    """The fast form: time · channels · state_size, memory for a chunk of it (for all in training).

    Args:
        x, step_size: (batch, time, channels).
        write, read: (batch, time, state_size).
        rate: (channels, state_size), 0 or below.
        state: (batch, channels, state_size), after the tokens before these.

    Returns:
        state in at least float32, and outputs like x.

    Raises:
        ValueError: shapes do not fit together, no token, a rate above 0, or chunk_size below 1.
    """
    state = _check(x, step_size, write, read, rate, state)
    form = partial(_chunk, rate=rate)
    return over_chunks(form, state, x, step_size, write, read, dim=1, chunk_size=chunk_size)


def parallel_scan(
    x: Tensor,
    step_size: Tensor,
    write: Tensor,
    read: Tensor,
    rate: Tensor,
    *,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """All tokens at once: time · log time · channels · state_size, memory for time · channels ·
    state_size. Arguments, results and errors as of `chunked_scan`.
    """
    state = _check(x, step_size, write, read, rate, state)
    fade, add = associative_scan(_merge, _discretize(x, step_size, write, rate))
    states = torch.addcmul(add, fade, state[:, None])
    return states[:, -1], _read(states, read).to(x.dtype)


def recurrent_scan(
    x: Tensor,
    step_size: Tensor,
    write: Tensor,
    read: Tensor,
    rate: Tensor,
    *,
    state: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The same token by token. Arguments, results and errors as of `chunked_scan`."""
    state = _check(x, step_size, write, read, rate, state)
    return over_tokens(partial(scan_step, rate=rate), state, x, step_size, write, read, dim=1)


def scan_step(
    state: Tensor | None, x: Tensor, step_size: Tensor, write: Tensor, read: Tensor, rate: Tensor
) -> tuple[Tensor, Tensor]:
    """One token: x, step_size (batch, channels), write, read (batch, state_size) -> the state after
    it, its output like x.

    Raises:
        ValueError: state has another shape.
    """
    fade, add = _discretize(x, step_size, write, rate)
    state = fade * initial(state, fade.shape, like=fade) + add
    return state, _read(state, read).to(x.dtype)


class Mamba(nn.Module):
    """The block of the paper's figure 3: convolution, selective scan, gate.

    Args:
        width: of what goes in and comes out.
        expand: channels inside, as a multiple of width.
        conv_width: tokens that the convolution sees, the present one included.
        rank: of Δ before `dt_proj`; ⌈width / 16⌉ if left out.
        generator: for the parameters, which start as in the paper.
    """

    def __init__(
        self,
        width: int,
        *,
        expand: int = 2,
        state_size: int = 16,
        conv_width: int = 4,
        rank: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        channels, rank = expand * width, rank or math.ceil(width / 16)
        self.sizes = [rank, state_size, state_size]
        self.in_proj = random_linear(width, 2 * channels, generator=generator)
        self.conv1d = nn.utils.skip_init(nn.Conv1d, channels, channels, conv_width, groups=channels)
        self.x_proj = random_linear(channels, sum(self.sizes), generator=generator)
        self.dt_proj = nn.utils.skip_init(nn.Linear, rank, channels)
        self.A_log = nn.Parameter(torch.arange(1.0, state_size + 1).log().repeat(channels, 1))
        self.D = nn.Parameter(torch.ones(channels))
        self.out_proj = random_linear(channels, width, generator=generator)
        low, high = math.log(0.001), math.log(0.1)
        step = torch.empty(channels).uniform_(low, high, generator=generator).exp()
        with torch.no_grad():
            for conv in (self.conv1d.weight, self.conv1d.bias):
                conv.copy_(uniform(*conv.shape, bound=conv_width**-0.5, generator=generator))
            weight = uniform(channels, rank, bound=rank**-0.5, generator=generator)
            self.dt_proj.weight.copy_(weight)
            self.dt_proj.bias.copy_(step.expm1().log())  # softplus of it is the step

    def forward(
        self, x: Tensor, state: State | None = None, *, chunk_size: int = 64
    ) -> tuple[State, Tensor]:
        """(batch, time, width) and the state before -> the state after, outputs like x.

        Raises:
            ValueError: x or state of another shape, no token, or chunk_size below 1.
        """
        check_text("x", x, "(batch, time, width)", self.in_proj.in_features)
        inside, gate = self.in_proj(x).chunk(2, dim=-1)
        conv, inside = self._convolve(inside, None if state is None else state.conv)
        step, write, read = self.x_proj(inside).split(self.sizes, dim=-1)
        scan, y = chunked_scan(
            inside,
            F.softplus(self.dt_proj(step)),
            write,
            read,
            -wide(self.A_log).exp(),
            state=None if state is None else state.scan,
            chunk_size=chunk_size,
        )
        y = (y + self.D * inside) * F.silu(gate)
        return State(conv, scan), self.out_proj(y)

    def step(self, state: State | None, x: Tensor) -> tuple[State, Tensor]:
        """(batch, width), one token -> the state after it, its output like x."""
        state, y = self(x[:, None], state)
        return state, y[:, 0]

    def _convolve(self, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
        """Each channel by itself, over a token and those before it: what is to be kept, outputs."""
        kept = self.conv1d.kernel_size[0] - 1
        past = initial(past, (len(x), kept, x.shape[-1]), like=x)
        x = torch.cat([past, x], dim=1)
        y = F.silu(self.conv1d(x.transpose(1, 2))).transpose(1, 2)
        return x[:, x.shape[1] - kept :], y


def _discretize(x, step_size, write, rate) -> tuple[Tensor, Tensor]:
    """What fades and what is added, (…, channels, state_size) each."""
    x, step_size, write, rate = all_wide(x, step_size, write, rate)
    fade = (step_size[..., None] * rate).exp()
    return fade, (step_size * x)[..., None] * write[..., None, :]


def _chunk(state, x, step_size, write, read, rate) -> tuple[Tensor, Tensor]:
    fade, add = _discretize(x, step_size, write, rate)
    states = []
    for fade_t, add_t in zip(fade.unbind(1), add.unbind(1), strict=True):
        state = torch.addcmul(add_t, fade_t, state)
        states.append(state)
    return state, _read(torch.stack(states, dim=1), read).to(x.dtype)


def _merge(earlier, later) -> tuple[Tensor, Tensor]:
    return later[0] * earlier[0], torch.addcmul(later[1], later[0], earlier[1])


def _read(state: Tensor, read: Tensor) -> Tensor:
    return (state @ read.to(state.dtype)[..., None]).squeeze(-1)


def _check(x, step_size, write, read, rate, state) -> Tensor:
    check_text("x", x, "(batch, time, channels)")
    check_shape("step_size", step_size, x.shape)
    check_shape("rate", rate, (x.shape[2], rate.shape[-1]))
    check_shape("write", write, (*x.shape[:2], rate.shape[1]))
    check_shape("read", read, write.shape)
    check_rate("rate", rate)
    return initial(state, (len(x), *rate.shape), like=wide(x))
