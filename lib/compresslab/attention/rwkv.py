"""RWKV-4: attention without queries, a weighted mean of past values in every channel.

Source: Peng et al. (2023), RWKV: Reinventing RNNs for the Transformer Era, arXiv:2305.13048,
section 3 (time mixing, channel mixing, token shift) and the appendix on its form as a RNN:

             Σ_{i<t} e^(-(t-1-i) w + k_i) v_i + e^(u + k_t) v_t
    wkv_t =  ──────────────────────────────────────────────────
             Σ_{i<t} e^(-(t-1-i) w + k_i)     + e^(u + k_t)

    code             paper
    key, value       k, v    (batch, time, channels)
    log_decay        -w      (channels,), 0 or below
    bonus            u       (channels,), how much more the token itself counts
    State.values     a'      the sum above, / eᵖ: (batch, channels), as the next two
    State.weights    b'      the sum below, / eᵖ
    State.exponent   p       the largest exponent so far
    mix              μ       (1, 1, channels): how much of this token, the rest of the one before

Sums are kept together with their largest exponent, which is taken out of them, so that no eᵏ can
overflow. Two stretches of text, each with its three numbers and its decay, merge into one:

    p = max(p₁ - w₂, p₂),     a' = e^(p₁ - w₂ - p) a'₁ + e^(p₂ - p) a'₂,     b' likewise

    recurrent   the state merges with a token: the paper's form for generating
    chunked     associative scan in log2(chunk) rounds, whose first stretch is the state

Modules and parameters are called as in transformers' `RwkvSelfAttention` and `RwkvFeedForward`,
whose weights `load_state_dict` takes; `time_decay` is log w, `time_first` u.

Differs from the paper: nothing in the results. A sum that is empty has the exponent -10³⁸, as in
the authors' code. Not included: layer norms and residual connections of a block; RWKV-5 to 7.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..layers import wide
from .recurrence import (
    all_wide,
    associative_scan,
    check_rate,
    check_shape,
    check_text,
    over_chunks,
    over_tokens,
    random_linear,
)


class State(NamedTuple):
    """Of the sums; each (batch, channels), in at least float32."""

    values: Tensor
    weights: Tensor
    exponent: Tensor


class MixState(NamedTuple):
    """Of `TimeMix`: the last token that it saw, (batch, channels), and its sums."""

    last: Tensor
    sums: State


def chunked_wkv(
    key: Tensor,
    value: Tensor,
    log_decay: Tensor,
    bonus: Tensor,
    *,
    state: State | None = None,
    chunk_size: int = 127,
) -> tuple[State, Tensor]:
    """All tokens, chunk by chunk: time · log chunk_size · channels. With chunk_size = time it is
    the parallel form; 127 tokens and the state make 128.

    Args:
        key, value: (batch, time, channels).
        log_decay: (channels,), 0 or below; -inf leaves the token itself and the one before.
        bonus: (channels,).
        state: after the tokens before these.

    Returns:
        state, and outputs like `value`.

    Raises:
        ValueError: shapes do not fit, no token, a log_decay above 0, or chunk_size below 1.
    """
    state = _check(key, value, log_decay, bonus, state)
    form = partial(_all_at_once, log_decay=log_decay, bonus=bonus)
    return over_chunks(form, state, key, value, dim=1, chunk_size=chunk_size)


def recurrent_wkv(
    key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor, *, state: State | None = None
) -> tuple[State, Tensor]:
    """The same token by token. Arguments, results and errors as of `chunked_wkv`."""
    state = _check(key, value, log_decay, bonus, state)
    step = partial(wkv_step, log_decay=log_decay, bonus=bonus)
    return over_tokens(step, state, key, value, dim=1)


def wkv_step(
    state: State | None, key: Tensor, value: Tensor, log_decay: Tensor, bonus: Tensor
) -> tuple[State, Tensor]:
    """One token: key and value (batch, channels) -> the state after it, its output like `value`.

    Raises:
        ValueError: state has another shape.
    """
    v, k, log_decay, bonus = all_wide(value, key, log_decay, bonus)
    state = _initial(state, v)
    output = _read(state, k, v, bonus)
    *state, _ = _merge((*state, log_decay), (v, torch.ones_like(v), k, log_decay))
    return State(*state), output.to(value.dtype)


def token_shift(x: Tensor, last: Tensor | None) -> Tensor:
    """Each token's predecessor: (batch, time, channels), `last` (batch, channels) before the first,
    zeros if it is None.

    Raises:
        ValueError: `last` has another shape.
    """
    last = x.new_zeros(len(x), x.shape[2]) if last is None else last
    check_shape("last", last, (len(x), x.shape[2]))
    return torch.cat([last[:, None].to(x.dtype), x[:, :-1]], dim=1)


class TimeMix(nn.Module):
    """In place of attention: every channel's mean of its past, gated by the token.

    Parameters start as the authors' code starts those of the first layer.
    """

    def __init__(self, width: int, *, generator: torch.Generator | None = None):
        super().__init__()
        channel = torch.arange(width)
        ramp = (channel / width).view(1, 1, -1)
        self.time_decay = nn.Parameter(8 * (channel / max(width - 1, 1)) ** 0.7 - 5)
        self.time_first = nn.Parameter(math.log(0.3) + ((channel + 1) % 3 - 1) / 2)
        self.time_mix_key = nn.Parameter(ramp.clone())
        self.time_mix_value = nn.Parameter(ramp.clone())
        self.time_mix_receptance = nn.Parameter(ramp.sqrt())
        for name in ("key", "value", "receptance", "output"):
            setattr(self, name, random_linear(width, width, generator=generator))

    def forward(
        self, x: Tensor, state: MixState | None = None, *, chunk_size: int = 127
    ) -> tuple[MixState, Tensor]:
        """(batch, time, width) and the state before -> the state after, outputs like x.

        Raises:
            ValueError: x or state of another shape, no token, or chunk_size below 1.
        """
        check_text("x", x, "(batch, time, width)", self.key.in_features)
        before = token_shift(x, None if state is None else state.last)
        key = self.key(before.lerp(x, self.time_mix_key))
        value = self.value(before.lerp(x, self.time_mix_value))
        gate = self.receptance(before.lerp(x, self.time_mix_receptance)).sigmoid()
        sums, mean = chunked_wkv(
            key,
            value,
            -wide(self.time_decay).exp(),
            self.time_first,
            state=None if state is None else state.sums,
            chunk_size=chunk_size,
        )
        return MixState(x[:, -1], sums), self.output(gate * mean)

    def step(self, state: MixState | None, x: Tensor) -> tuple[MixState, Tensor]:
        """(batch, width), one token -> the state after it, its output like x."""
        state, y = self(x[:, None], state)
        return state, y[:, 0]


class ChannelMix(nn.Module):
    """In place of the feed-forward network: σ(r) ⊙ W_v max(k, 0)². The state is the last token.

    Args:
        inside: neurons; 4 · width if left out.
    """

    def __init__(
        self, width: int, *, inside: int | None = None, generator: torch.Generator | None = None
    ):
        super().__init__()
        inside = inside or 4 * width
        ramp = (torch.arange(width) / width).view(1, 1, -1)
        self.time_mix_key = nn.Parameter(ramp.clone())
        self.time_mix_receptance = nn.Parameter(ramp.clone())
        self.key = random_linear(width, inside, generator=generator)
        self.receptance = random_linear(width, width, generator=generator)
        self.value = random_linear(inside, width, generator=generator)

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(batch, time, width) and the token before, (batch, width) -> the last token, outputs.

        Raises:
            ValueError: x or state of another shape, or no token.
        """
        check_text("x", x, "(batch, time, width)", self.key.in_features)
        before = token_shift(x, state)
        key = self.key(before.lerp(x, self.time_mix_key)).relu().square()
        gate = self.receptance(before.lerp(x, self.time_mix_receptance)).sigmoid()
        return x[:, -1], gate * self.value(key)


def _merge(earlier, later) -> tuple[Tensor, ...]:
    """Two stretches, each of values, weights, exponent and the logarithm of all its decays."""
    a1, b1, p1, fade1 = earlier
    a2, b2, p2, fade2 = later
    top = torch.maximum(p1 + fade2, p2)
    old, new = (p1 + fade2 - top).exp(), (p2 - top).exp()
    return old * a1 + new * a2, old * b1 + new * b2, top, fade1 + fade2


def _read(state: State, key: Tensor, value: Tensor, bonus: Tensor) -> Tensor:
    a, b, p = state
    top = torch.maximum(p, bonus + key)
    old, new = (p - top).exp(), (bonus + key - top).exp()
    return (old * a + new * value) / (old * b + new)


def _all_at_once(state: State, key, value, log_decay, bonus) -> tuple[State, Tensor]:
    v, k, log_decay, bonus = all_wide(value, key, log_decay, bonus)
    tokens = (v, torch.ones_like(v), k)
    stretches = [torch.cat([s[:, None], x], dim=1) for s, x in zip(state, tokens, strict=True)]
    fade = log_decay.expand(1, v.shape[1] + 1, -1)
    *sums, _ = associative_scan(_merge, [*stretches, fade])
    before = State(*(x[:, :-1] for x in sums))
    return State(*(x[:, -1] for x in sums)), _read(before, k, v, bonus).to(value.dtype)


def _initial(state: State | None, like: Tensor) -> State:
    """`like` is (batch, channels) and wide."""
    if state is None:
        return State(*(torch.full_like(like, fill) for fill in (0, 0, -1e38)))
    for name, x in zip(State._fields, state, strict=True):
        check_shape(f"state.{name}", x, like.shape)
    return State(*(x.to(like.dtype) for x in state))


def _check(key, value, log_decay, bonus, state) -> State:
    check_text("key", key, "(batch, time, channels)")
    check_shape("value", value, key.shape)
    check_shape("log_decay", log_decay, key.shape[2:])
    check_shape("bonus", bonus, key.shape[2:])
    check_rate("log_decay", log_decay)
    return _initial(state, wide(value)[:, 0])
