"""A small causal model whose blocks differ in one thing: how tokens are mixed.

Each block is the same but for its mixer, one of `MIXERS`:

    x = x + mixer(conv(norm(x)))          conv: each channel over 4 tokens, the last one itself
    x = x + network(norm(x))              two linear layers with a GELU between

The network has as many neurons as make a block of 12 · width² numbers, the size of a transformer's
with four times as many neurons as channels: a mixer with more numbers has a smaller network.

    code            meaning
    state_size      numbers of state a channel: a layer keeps width · state_size numbers, whatever
                    the mixer, but for full attention (2 · width · time) and RWKV (4 · width)
    kept            how many numbers a mixer keeps of the tokens before a position, to go on

Mixers with heads have heads of state_size dimensions, so that heads · dim² = width · state_size; a
window is of state_size / 2 tokens, keys and values. So size and state are the same for all, and the
state can be varied. With it varies the number of heads, and with that the decays of retention: a
single head has the fastest alone.

The short convolution is the same in all blocks. What came just before is then no question of the
mixer (Mamba and delta rule have one in their papers, RWKV has its shift), and no positions are
needed: causality, decay and the neighbours tell tokens apart. Arora et al. (2024), Simple Linear
Attention Language Models Balance the Recall-Throughput Tradeoff, arXiv:2402.18668, compare mixers
by recall and size of state, as the recipe attention_quality does with this module.

Differs from the papers of the mixers: of each the core, with linear projections to queries, keys,
values and back. Retention and the delta rules normalise each head's output, but have no gate there,
and retention no rotation; linear attention and Performer have no norm, being means. The projection
of Performer is drawn once. Mamba and RWKV are the modules of this library. Not included: dropout,
rotary positions.
"""

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .delta import chunked_delta
from .full import full_attention
from .linear import linear_attention
from .mamba import Mamba
from .performer import draw_projection, performer_attention
from .recurrence import random_linear, uniform
from .retention import chunked_retention, head_norm, retention_decay
from .rwkv import TimeMix
from .s4d import S4D
from .sliding_window import window_attention

CONV_WIDTH = 4  # tokens that the short convolution sees, the present one included
BLOCK_SIZE = 12  # numbers of convolution, mixer and network, in width²


class Heads(nn.Module):
    """Queries, keys and values of each head, and a linear layer after them; `mix` is to be filled.

    Args:
        dim: of a head; divides width.

    Raises:
        ValueError: it does not.
    """

    def __init__(self, width: int, dim: int, generator: torch.Generator | None):
        super().__init__()
        if width % dim:
            raise ValueError(f"state_size must divide the width {width}, not be {dim}")
        self.width, self.dim = width, dim
        self.inputs = random_linear(width, 3 * width, generator=generator)
        self.output = random_linear(width, width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        query, key, value = self.inputs(x).unflatten(-1, (3, -1, self.dim)).unbind(-3)
        heads = (y.transpose(1, 2) for y in (query, key, value))  # (batch, heads, time, dim)
        return self.output(self.mix(x, *heads).transpose(1, 2).flatten(2))

    def kept(self, time: int) -> int:
        """Numbers kept of `time` tokens."""
        return self.width * self.dim  # a matrix dim × dim in each of width / dim heads


class Full(Heads):
    def mix(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return full_attention(query, key, value, causal=True)

    def kept(self, time: int) -> int:
        return 2 * self.width * time


class Window(Heads):
    def __init__(self, width: int, dim: int, generator: torch.Generator | None):
        super().__init__(width, dim, generator)
        self.window = max(dim // 2, 1)

    def mix(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return window_attention(query, key, value, causal=True, window=self.window)

    def kept(self, time: int) -> int:
        return 2 * self.width * min(time, self.window)


class Linear(Heads):
    def mix(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return linear_attention(query, key, value, causal=True)

    def kept(self, time: int) -> int:
        return self.width * (self.dim + 1)  # and the sum below the line


class Performer(Linear):
    """As many random features as dimensions, the same in all heads."""

    def __init__(self, width: int, dim: int, generator: torch.Generator | None):
        super().__init__(width, dim, generator)
        self.register_buffer("projection", draw_projection(dim, dim, generator=generator))

    def mix(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return performer_attention(query, key, value, causal=True, projection=self.projection)


class Retention(Heads):
    def __init__(self, width: int, dim: int, generator: torch.Generator | None):
        super().__init__(width, dim, generator)
        self.register_buffer("decay", retention_decay(width // dim))

    def mix(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return head_norm(chunked_retention(query, key, value, self.decay)[1])


class Delta(Heads):
    """The delta rule; `gated`, with a decay chosen for each token and head, 0.98 to begin with."""

    def __init__(
        self, width: int, dim: int, generator: torch.Generator | None, *, gated: bool = False
    ):
        super().__init__(width, dim, generator)
        self.rate = random_linear(width, width // dim, generator=generator)
        self.gate = random_linear(width, width // dim, generator=generator) if gated else None

    def mix(self, x: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        beta, log_decay = self.rate(x).sigmoid().transpose(1, 2), None
        if self.gate is not None:
            log_decay = F.logsigmoid(self.gate(x) + 4).transpose(1, 2)
        _, out = chunked_delta(query, key, value, beta, log_decay=log_decay)
        return head_norm(out)


class Oscillations(nn.Module):
    """S4D, then a GELU and a gated linear layer, which mixes channels."""

    def __init__(self, width: int, state_size: int, generator: torch.Generator | None):
        super().__init__()
        self.numbers = width * state_size  # real and imaginary part of one of each pair
        self.core = S4D(width, state_size=state_size, generator=generator)
        self.output = random_linear(width, 2 * width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        return F.glu(self.output(F.gelu(self.core(x)[1])))

    def kept(self, time: int) -> int:
        """Numbers kept of `time` tokens."""
        return self.numbers


class Selective(nn.Module):
    """Mamba, with twice the channels and half the state size."""

    def __init__(self, width: int, state_size: int, generator: torch.Generator | None):
        super().__init__()
        self.core = Mamba(width, state_size=max(state_size // 2, 1), generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        return self.core(x)[1]

    def kept(self, time: int) -> int:
        """Numbers kept of `time` tokens, those of its own convolution included."""
        return self.core.A_log.numel() + self.core.D.numel() * (self.core.conv1d.kernel_size[0] - 1)


class Means(nn.Module):
    """The time mixing of RWKV-4, whose state has one size."""

    def __init__(self, width: int, state_size: int, generator: torch.Generator | None):
        super().__init__()
        self.numbers = 4 * width
        self.core = TimeMix(width, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        return self.core(x)[1]

    def kept(self, time: int) -> int:
        """Numbers kept of `time` tokens."""
        return self.numbers


MIXERS = {
    "full attention": Full,
    "sliding window": Window,
    "linear attention": Linear,
    "Performer": Performer,
    "RetNet": Retention,
    "S4D": Oscillations,
    "Mamba": Selective,
    "RWKV": Means,
    "delta rule": Delta,
    "gated delta rule": partial(Delta, gated=True),
}


class ShortConvolution(nn.Module):
    """Each channel by itself: a token and a weighted sum of it and those before."""

    def __init__(self, width: int, generator: torch.Generator | None):
        super().__init__()
        bound = CONV_WIDTH**-0.5
        self.weight = nn.Parameter(uniform(width, 1, CONV_WIDTH, bound=bound, generator=generator))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        past = F.pad(x.transpose(1, 2), (CONV_WIDTH - 1, 0))
        return x + F.conv1d(past, self.weight, groups=len(self.weight)).transpose(1, 2)


class Block(nn.Module):
    """Short convolution and mixer, then the network; both after a norm, and added to x.

    Raises:
        ValueError: the mixer alone has more numbers than a block.
    """

    def __init__(self, width: int, mixer: str, state_size: int, generator: torch.Generator | None):
        super().__init__()
        self.mixer_norm, self.network_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.conv = ShortConvolution(width, generator)
        self.mixer = MIXERS[mixer](width, state_size, generator)
        used = sum(p.numel() for part in (self.conv, self.mixer) for p in part.parameters())
        neurons = (BLOCK_SIZE * width**2 - used) // (2 * width)
        if neurons < 1:
            raise ValueError(f"state_size {state_size} is too large for a width of {width}")
        self.network = nn.Sequential(
            random_linear(width, neurons, generator=generator),
            nn.GELU(),
            random_linear(neurons, width, generator=generator),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(batch, time, width) -> the same."""
        x = x + self.mixer(self.conv(self.mixer_norm(x)))
        return x + self.network(self.network_norm(x))


class SmallModel(nn.Module):
    """Embedding, blocks, norm, and a linear layer to `outputs` numbers for each token.

    Args:
        vocabulary: token numbers are below it.
        mixer: one of `MIXERS`.
        width: channels of a token.
        state_size: numbers of state a channel; divides width where the mixer has heads.
        outputs: as many as `vocabulary` if left out.
        generator: for all parameters.

    Raises:
        ValueError: another mixer, or a state_size that it cannot have.
    """

    def __init__(
        self,
        vocabulary: int,
        mixer: str,
        *,
        width: int = 64,
        layers: int = 2,
        state_size: int = 32,
        outputs: int | None = None,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        if mixer not in MIXERS:
            raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, not {mixer!r}")
        self.embedding = nn.utils.skip_init(nn.Embedding, vocabulary, width)
        nn.init.normal_(self.embedding.weight, generator=generator)
        self.blocks = nn.Sequential(
            *(Block(width, mixer, state_size, generator) for _ in range(layers))
        )
        self.norm = nn.LayerNorm(width)
        self.output = random_linear(width, outputs or vocabulary, generator=generator)

    def forward(self, ids: Tensor) -> Tensor:
        """(batch, time) int64 -> (batch, time, outputs); each position sees itself and the past."""
        return self.output(self.norm(self.blocks(self.embedding(ids))))

    def kept(self, time: int) -> int:
        """Numbers that the mixers of all layers keep of `time` tokens. The short convolutions keep
        the last three tokens of a layer besides, the same for all mixers.
        """
        return sum(block.mixer.kept(time) for block in self.blocks)
