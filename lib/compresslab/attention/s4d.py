"""S4D: each channel a bank of damped oscillations, the same at every token.

Source: Gu et al. (2022), On the Parameterization and Initialization of Diagonal State Space Models,
arXiv:2206.11893, sections 3 and 4:

    h'(t) = A h(t) + B x(t),     y(t) = 2 Re(C h(t)),     A diagonal

    h_t = Ā h_{t-1} + B̄ x_t,     Ā = exp(Δ A),  B̄ = (Ā - 1) / A,  B = 1     x held for a step Δ
    y = K * x,     K_l = 2 Re Σ_n C_n B̄_n Ā_nˡ                              a causal convolution

    code             paper
    x                u     (batch, time, channels)
    pairs            N/2   of conjugate modes; state_size is N
    rate             A     complex (channels, pairs), the real part below 0
    step_size        Δ     (channels,)
    System.decay     Ā     complex (channels, pairs), as the next two
    System.write     B̄
    System.read      C
    state            h     complex (batch, channels, pairs)

A real system has its modes in conjugate pairs. Only one of each is kept, and its part counts twice:
the other's is its conjugate. The convolution is by FFT of length 2 · time, where nothing wraps
around. Neither decay nor write nor read depends on the token: that is what Mamba adds.

Differs from the paper: B is 1, as only the product B · C matters; powers of Ā are products of √time
small and √time large ones, which needs no array (channels, N, time). Not included: the bilinear
discretisation, the initialisation LegS; activation and mixing of channels after the layer.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import wide
from .recurrence import check_shape, check_text, initial, over_tokens


class System(NamedTuple):
    """In steps of a token: h_t = decay · h_{t-1} + write · x_t, y_t = 2 Re Σ read · h_t."""

    decay: Tensor
    write: Tensor
    read: Tensor


def s4d_lin(state_size: int) -> Tensor:
    """A_n = -1/2 + iπn, evenly spaced frequencies: complex64 (pairs,).

    Raises:
        ValueError: state_size is not even.
    """
    return _rates(math.pi * torch.arange(_pairs(state_size)))


def s4d_inv(state_size: int) -> Tensor:
    """A_n = -1/2 + i N/π (N/(2n + 1) - 1), more low than high ones: complex64 (pairs,).

    Raises:
        ValueError: state_size is not even.
    """
    n = torch.arange(_pairs(state_size))
    return _rates(state_size / math.pi * (state_size / (2 * n + 1) - 1))


def discretize(rate: Tensor, step_size: Tensor, read: Tensor) -> System:
    """Zero-order hold: exact for an x that stays what it is for a step.

    Args:
        rate: complex (channels, pairs) or (pairs,), not 0.
        step_size: (channels,), above 0.
        read: complex (channels, pairs).

    Raises:
        ValueError: shapes do not fit together.
    """
    check_shape("step_size", step_size, read.shape[:1])
    if rate.shape not in (read.shape, read.shape[1:]):
        raise ValueError(
            f"rate must have shape {tuple(read.shape)} or its last axis, not {tuple(rate.shape)}"
        )
    exponent = step_size[:, None] * rate
    return System(exponent.exp(), exponent.expm1() / rate, read)


def s4d_kernel(system: System, length: int) -> Tensor:
    """What the output is after 0, 1, … steps if x is 1 once and then 0: (channels, length).

    channels · pairs · length operations, memory for channels · (length + pairs · √length) numbers.
    """
    return _waves(system.read * system.write, system.decay, length)


def s4d_convolution(
    x: Tensor, system: System, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """All tokens at once: time · log time for the convolution, pairs · time for kernel and state.

    Args:
        x: (batch, time, channels).
        state: complex (batch, channels, pairs), after the tokens before these.

    Returns:
        state, and outputs like x.

    Raises:
        ValueError: shapes do not fit together, or no token.
    """
    state = _check(x, system, state)
    u, time = wide(x).transpose(1, 2), x.shape[1]
    kernel = s4d_kernel(system, time)
    y = torch.fft.irfft(torch.fft.rfft(u, 2 * time) * torch.fft.rfft(kernel, 2 * time), 2 * time)
    y = y[..., :time] + _waves(system.read * system.decay * state, system.decay, time)
    state = system.decay**time * state + system.write * _sums(u.flip(-1), system.decay)
    return state, y.transpose(1, 2).to(x.dtype)


def s4d_recurrence(
    x: Tensor, system: System, *, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The same token by token. Arguments, results and errors as of `s4d_convolution`."""
    state = _check(x, system, state)
    return over_tokens(partial(s4d_step, system=system), state, x, dim=1)


def s4d_step(state: Tensor | None, x: Tensor, system: System) -> tuple[Tensor, Tensor]:
    """One token, x (batch, channels) -> the state after it, its output like x.

    Raises:
        ValueError: state has another shape.
    """
    u = wide(x)
    state = initial(state, (len(x), *system.decay.shape), like=system.decay)
    state = system.decay * state + system.write * u[..., None]
    return state, 2 * (system.read * state).sum(-1).real.to(x.dtype)


class S4D(nn.Module):
    """A bank of oscillations for each channel, and x itself: y + D x.

    Args:
        state_size: N, even.
        initialization: "lin" or "inv".
        generator: for Δ, log-uniform from 0.001 to 0.1, and C, complex normal of variance 1.

    Raises:
        ValueError: state_size is not even, or the initialization another.
    """

    def __init__(
        self,
        channels: int,
        *,
        state_size: int = 64,
        initialization: str = "lin",
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if initialization not in ("lin", "inv"):
            raise ValueError(f"initialization must be 'lin' or 'inv', not {initialization!r}")
        rate = s4d_lin(state_size) if initialization == "lin" else s4d_inv(state_size)
        rate = rate.expand(channels, -1)
        low, high = math.log(0.001), math.log(0.1)
        log_step = torch.empty(channels).uniform_(low, high, generator=generator)
        self.log_step = nn.Parameter(log_step)
        self.log_damping = nn.Parameter((-rate.real).log())  # the real part stays below 0
        self.frequency = nn.Parameter(rate.imag.clone())
        read = torch.randn(*rate.shape, 2, generator=generator) / 2**0.5
        self.read = nn.Parameter(read)  # real and imaginary part
        self.skip = nn.Parameter(torch.randn(channels, generator=generator))

    def system(self) -> System:
        """At the present parameters."""
        rate = torch.complex(-wide(self.log_damping).exp(), wide(self.frequency))
        return discretize(rate, wide(self.log_step).exp(), torch.view_as_complex(wide(self.read)))

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch, time, channels) and the state before -> the state after, outputs like x."""
        state, y = s4d_convolution(x, self.system(), state=state)
        return state, y + self.skip * x

    def step(self, state: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        """(batch, channels), one token -> the state after it, its output like x."""
        state, y = s4d_step(state, x, self.system())
        return state, y + self.skip * x


def _pairs(state_size: int) -> int:
    if state_size < 2 or state_size % 2:
        raise ValueError(f"state_size must be even and at least 2, not {state_size}")
    return state_size // 2


def _rates(frequency: Tensor) -> Tensor:
    return torch.complex(torch.full_like(frequency, -0.5), frequency)


def _powers(base: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """base^(r + c · k) = small[r] · large[c], with k about √length: (…, k, pairs), and as many as
    reach length.
    """
    k = math.isqrt(length)
    small = _geometric(base, k)
    return small, _geometric(small[..., -1, :] * base, -(-length // k))


def _geometric(base: Tensor, count: int) -> Tensor:
    ones = torch.ones_like(base)[..., None, :]
    steps = base[..., None, :].expand(*base.shape[:-1], count - 1, -1)
    return torch.cat([ones, steps], dim=-2).cumprod(-2)


def _waves(amplitude: Tensor, decay: Tensor, length: int) -> Tensor:
    """2 Re Σ_n amplitude_n decay_nˡ for l = 0, 1, …: (…, channels, length)."""
    small, large = _powers(decay, length)
    waves = (amplitude[..., None, :] * large) @ small.transpose(-1, -2)
    return 2 * waves.real.flatten(-2)[..., :length]


def _sums(u: Tensor, decay: Tensor) -> Tensor:
    """Σ_l decay_nˡ u_l: (batch, channels, time) -> (batch, channels, pairs)."""
    small, large = _powers(decay, u.shape[-1])
    padding = small.shape[-2] * large.shape[-2] - u.shape[-1]
    blocks = nn.functional.pad(u, (0, padding)).unflatten(-1, (large.shape[-2], -1))
    return ((blocks.to(decay.dtype) @ small) * large).sum(-2)


def _check(x: Tensor, system: System, state: Tensor | None) -> Tensor:
    check_text("x", x, "(batch, time, channels)", len(system.decay))
    return initial(state, (len(x), *system.decay.shape), like=system.decay)
