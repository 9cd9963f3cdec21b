"""Attention sinks: a cache of constant size, the first few tokens and the last ones.

Source: Xiao et al. (2023), Efficient Streaming Language Models with Attention Sinks,
arXiv:2309.17453, section 3.2 and figure 4. A language model puts much of its attention on the
first tokens, whatever they are: the weights must add up to one, and those tokens are always there.
A cache that forgets them breaks the model; one that keeps four of them does not.

    code      paper
    sinks     attention sinks: how many of the first tokens stay, 4
    window    rolling cache: how many of the last tokens a new one sees, itself included
    seen      how many tokens there were; seen - sinks - window of them are forgotten

    cache = SinkCache(model, sinks=4, window=252)
    model(input_ids=token, past_key_values=cache)     or model.generate(…, past_key_values=cache)

or, for a whole text at once, `sink_attention` in place of the model's attention.

Positions are counted inside the cache: when [0, 1, 2, 3, 6, 7, 8] are left and token 9 comes,
they are at 0 to 6 and it is at 7. The paper keeps keys as they are before the rotation, and
rotates all of them at every step. Here models of transformers rotate a key before it gets to the
cache. But attention between rotated vectors depends on the difference of their positions alone. The
last tokens are next to each other in the text and in the cache, so they keep the positions of the
text. The sinks alone have to come closer: each time they are rotated on by as many positions as
there are forgotten tokens. That is the same attention, for a few keys a step, and from the original
each time, so that no error grows.

Differs from the paper: tokens that arrive together attend to all of each other, and to the cache as
it was; the cache is cut afterwards. Not included: padded batches, beam search, taking tokens back,
rotations that change with the length of the text (dynamic NTK, LongRoPE).
"""

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from ..layers import wide
from .common import check_heads, masked_softmax

BLOCK = 256  # queries that `sink_attention` computes together


def sink_pattern(time: int, *, sinks: int, window: int) -> Tensor:
    """Which tokens a new one sees, bool (time, time), rows to columns.

    Raises:
        ValueError: sinks below 0 or window below 1.
    """
    _check(sinks, window)
    position = torch.arange(time)
    behind = position[:, None] - position
    return ((behind < window) | (position < sinks)) & (behind >= 0)


def rotate_on(keys: Tensor, steps: int | Tensor, frequencies: Tensor) -> Tensor:
    """Rotated keys as they would be `steps` positions later.

    Args:
        keys: (…, dim), rotated as in Llama: numbers i and i + dim / 2 are a pair.
        steps: for all, or (…, 1) for each.
        frequencies: (dim / 2,), angle of each pair for one position.

    Raises:
        ValueError: there are not dim / 2 frequencies.
    """
    if keys.shape[-1] != 2 * len(frequencies):
        raise ValueError(
            f"keys must have dim {2 * len(frequencies)}, twice the frequencies, "
            f"not {tuple(keys.shape)}"
        )
    angle = steps * wide(frequencies)
    x, y = wide(keys).chunk(2, dim=-1)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([x * cos - y * sin, y * cos + x * sin], dim=-1).to(keys.dtype)


def sink_attention(
    query: Tensor, key: Tensor, value: Tensor, *, sinks: int, window: int, frequencies: Tensor
) -> Tensor:
    """What a model with a `SinkCache` computes token by token, for a whole text at once.

    The cache turns its sinks on by as many positions as it has forgotten; here the query is turned
    back by as many, for the sinks alone, which is the same difference. Time grows with
    time · (sinks + window) · dim, memory with time.

    Args:
        query, key: rotated to their positions in the text, (batch, heads, time, dim).
        value: (batch, heads, time, dim_value).
        sinks, window: as of `SinkCache`.
        frequencies: of the rotation, (dim / 2,).

    Returns:
        (batch, heads, time, dim_value) in the caller's dtype.

    Raises:
        ValueError: shapes do not fit together, sinks below 0 or window below 1.
    """
    check_heads(query, key, value)
    _check(sinks, window)
    time, device, outputs = query.shape[2], query.device, []
    q, k, v = wide(query) * query.shape[-1] ** -0.5, wide(key), wide(value)
    first_keys, first_values = k[:, :, :sinks], v[:, :, :sinks]
    first = torch.arange(first_keys.shape[2], device=device)
    for start in range(0, time, BLOCK):
        end = min(start + BLOCK, time)
        near = slice(min(max(sinks, start - window + 1), end), end)  # empty among the sinks
        rows = torch.arange(start, end, device=device)[:, None]
        columns = torch.arange(near.start, end, device=device)
        forgotten = (rows + 1 - sinks - window).clamp(min=0)
        some = q[:, :, start:end]
        back = rotate_on(some, -forgotten, frequencies)
        scores = torch.cat([back @ first_keys.mT, some @ k[:, :, near].mT], dim=-1)
        last = (columns <= rows) & (columns > rows - window)
        weights = masked_softmax(scores, torch.cat([first <= rows, last], dim=-1))
        outputs.append(weights @ torch.cat([first_values, v[:, :, near]], dim=2))
    return torch.cat(outputs, dim=2).to(query.dtype)


class SinkLayer(DynamicLayer):
    """The cache of one attention layer: `keys` and `values` hold the sinks and what came last."""

    is_croppable = False

    def __init__(self, *, sinks: int, window: int, frequencies: Tensor):
        super().__init__()
        self.sinks, self.window, self.frequencies = sinks, window, frequencies
        self.seen = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs):
        """Add tokens; give back keys and values of all they see, (batch, heads, time, dim) each."""
        keys, values = super().update(key_states, value_states)
        self.seen += key_states.shape[2]
        forgotten = self.seen - keys.shape[2]
        self.keys, self.values = self._cut(keys), self._cut(values)
        if forgotten:
            near = rotate_on(keys[:, :, : self.sinks], forgotten, self.frequencies)
            keys = torch.cat([near, keys[:, :, self.sinks :]], dim=2)
        return keys, values

    def _cut(self, x: Tensor) -> Tensor:
        # What the next token will see beside itself.
        leave = x.shape[2] - self.sinks - (self.window - 1)
        if leave <= 0:
            return x
        return torch.cat([x[:, :, : self.sinks], x[:, :, self.sinks + leave :]], dim=2)

    def get_seq_length(self) -> int:
        """The number of tokens there were, the position of the next."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """How many keys new tokens will get, and the position at which these begin."""
        held = 0 if self.keys is None else self.keys.shape[2]
        return held + query_length, self.seen - held

    def reset(self) -> None:
        """Forget all tokens."""
        super().reset()
        self.seen = 0

    @property
    def nbytes(self) -> int:
        return sum(x.untyped_storage().nbytes() for x in (self.keys, self.values) if x is not None)

    def _refuse(self, *args) -> None:
        raise NotImplementedError("forgotten tokens are neither taken back nor reordered")

    crop = reorder_cache = batch_repeat_interleave = batch_select_indices = _refuse


class SinkCache(Cache):
    """What a model of transformers takes as `past_key_values`; one for each text.

    Args:
        model: with rotary positions as in Llama: its frequencies are read.
        sinks: how many of the first tokens stay.
        window: how many of the last tokens a new one sees, itself included.

    Raises:
        ValueError: the model has no such rotation, or one that changes with the length of the text;
            sinks below 0 or window below 1.
    """

    def __init__(self, model: PreTrainedModel, *, sinks: int = 4, window: int = 252):
        _check(sinks, window)
        options = {"sinks": sinks, "window": window, "frequencies": _frequencies(model)}
        super().__init__(layer_class_to_replicate=partial(SinkLayer, **options))

    @property
    def nbytes(self) -> int:
        """Bytes of all layers, in the model's own dtype."""
        return sum(layer.nbytes for layer in self.layers)


def _frequencies(model: PreTrainedModel) -> Tensor:
    rotary = getattr(model.base_model, "rotary_emb", None)
    if not hasattr(rotary, "inv_freq"):
        raise ValueError(f"{type(model).__name__} has no rotary positions as in Llama")
    if rotary.rope_type in ("dynamic", "longrope"):
        raise ValueError(f"the rotation ({rotary.rope_type}) changes with the length of the text")
    return rotary.inv_freq


def _check(sinks: int, window: int) -> None:
    if sinks < 0 or window < 1:
        raise ValueError(f"sinks must be at least 0 and window at least 1, not {sinks}, {window}")
