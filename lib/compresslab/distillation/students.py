"""Students: a smaller BERT, made from its teacher or from nothing.

Source: Sanh et al. (2019), DistilBERT, arXiv:1910.01108, section 3 (a student of half the depth
starts from every other layer); Xu et al. (2023), Initializing Models with Larger Ones,
arXiv:2311.18823 (a narrower one starts from evenly spaced elements of every weight).

    student = build_student(teacher, alternate_layers(6, 3))
    student = build_student(teacher, first_layers(6, 4), width=192)
    student = build_student(teacher, first_layers(6, 4), width=192, start="random")

    code           meaning
    layers         which of the teacher's stay, numbered from 0
    width          hidden_size
    heads          num_attention_heads; a head has width / heads dimensions
    intermediate   intermediate_size, the neurons of a feed-forward layer

Narrower: of hidden dimensions, of heads, of dimensions within a head and of neurons, number
⌊i · old / new⌋ stays, the same numbers wherever a dimension is read or written. They have no order
of importance, so evenly spaced is as good as random. The result computes nothing like its teacher:
it is where training starts, and worth what it saves of that. Not included: choosing
by importance, for which there is `pruning.width` (neurons) and `pruning.heads`.

Differs from the papers: Xu et al. take the first layers, which is up to `layers` here, space by
rounding where sizes do not divide, cut through heads, and start with a new head of the task.
DistilBERT has no token types and no pooler; here both stay.
"""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..layers import bert_layers, check_fits
from ..pruning.depth import drop_bottom, drop_top, keep_layers

# End of a module's name -> what the axes of its weight count; a bias has the first of them.
_AXES = {
    "self.query": ("attention", "hidden"),
    "self.key": ("attention", "hidden"),
    "self.value": ("attention", "hidden"),
    "attention.output.dense": ("hidden", "attention"),
    "intermediate.dense": ("neurons", "hidden"),
    "output.dense": ("hidden", "neurons"),
    "pooler.dense": ("hidden", "hidden"),
    "classifier": (None, "hidden"),
    "_embeddings": (None, "hidden"),
    "LayerNorm": ("hidden",),
}


def first_layers(total: int, keep: int) -> list[int]:
    """The `keep` layers next to the input. Raises ValueError unless 1 <= keep <= total."""
    return drop_top(total, _dropped(total, keep))


def last_layers(total: int, keep: int) -> list[int]:
    """The `keep` layers next to the output. Raises ValueError unless 1 <= keep <= total."""
    return drop_bottom(total, _dropped(total, keep))


def alternate_layers(total: int, keep: int) -> list[int]:
    """Layers at equal distances, the first and the last among them; halves round to even. A single
    one is the first.

    6 of 12 are 0, 2, 4, 7, 9, 11, those of DistilBERT's code; 3 of 6 are 0, 2, 5.

    Raises:
        ValueError: unless 1 <= keep <= total.
    """
    _dropped(total, keep)
    return [round(i * (total - 1) / max(1, keep - 1)) for i in range(keep)]


def build_student(
    teacher: PreTrainedModel,
    layers: Sequence[int],
    *,
    width: int | None = None,
    heads: int | None = None,
    intermediate: int | None = None,
    start: str = "teacher",
    share_embeddings: bool = False,
    generator: torch.Generator | None = None,
) -> PreTrainedModel:
    """A new, smaller model of the teacher's kind, with a configuration that fits it.

    All its weights train, whatever was frozen in the teacher, which does not change. Device, dtype
    and mode (training or evaluation) are the teacher's.

    Args:
        teacher: a BERT with or without a head, no layer of it replaced.
        layers: numbers of the layers to keep, ascending; for start="random", only how many counts.
        width: the teacher's if left out.
        heads: as many as the teacher has if left out, each narrower then.
        intermediate: in the teacher's proportion to the width if left out, rounded down.
        start: "teacher" for weights of the teacher, or "random" for new ones, drawn as
            transformers does.
        share_embeddings: the student's token table is the teacher's, in the same memory, and
            frozen; needs the same width. A file of the student still holds a copy.
        generator: for start="random".

    Raises:
        ValueError: not a BERT, a teacher with other layers than its configuration says, bad
            `layers`, a `width` that `heads` does not divide, a size that is larger than the
            teacher's (start="teacher") or below 1, unknown `start`, or a table of another width.
    """
    if start not in ("teacher", "random"):
        raise ValueError(f"start must be 'teacher' or 'random', not {start!r}")
    bert_layers(teacher)
    shallow = keep_layers(teacher, layers)
    old, config = teacher.config, copy.deepcopy(shallow.config)
    config.hidden_size = old.hidden_size if width is None else width
    config.num_attention_heads = old.num_attention_heads if heads is None else heads
    if intermediate is None:
        intermediate = old.intermediate_size * config.hidden_size // old.hidden_size
    config.intermediate_size = intermediate
    _check_sizes(config, old, smaller=start == "teacher")
    if share_embeddings and config.hidden_size != old.hidden_size:
        raise ValueError(
            f"share_embeddings needs the teacher's width {old.hidden_size}, not {width}"
        )
    seed = int(torch.randint(2**62, (), generator=generator)) if start == "random" else 0
    student = _new(type(teacher), config, seed)
    if start == "teacher":
        state = _select(shallow.state_dict(), _indices(old, config))
        check_fits(state, student.state_dict(), what="teacher")
        student.load_state_dict(state)
    student = student.to(teacher.device, teacher.dtype).train(teacher.training)
    if share_embeddings:
        table = teacher.get_input_embeddings().weight.detach()
        student.get_input_embeddings().weight = nn.Parameter(table, requires_grad=False)
    return student


def _new(kind: type, config, seed: int) -> PreTrainedModel:
    """A model with random weights, which transformers draws from the global generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return kind(config)


def _check_sizes(config, old, *, smaller: bool) -> None:
    width, heads = config.hidden_size, config.num_attention_heads
    if heads < 1 or width < 1 or width % heads:
        raise ValueError(f"width {width} must be a multiple of heads {heads}")
    if config.intermediate_size < 1:
        raise ValueError(f"intermediate must be at least 1, not {config.intermediate_size}")
    sizes = {  # what it is -> the student's, the teacher's
        "width": (width, old.hidden_size),
        "heads": (heads, old.num_attention_heads),
        "dimensions of a head": (width // heads, old.hidden_size // old.num_attention_heads),
        "intermediate": (config.intermediate_size, old.intermediate_size),
    }
    for what, (new, most) in sizes.items():
        if smaller and new > most:
            raise ValueError(f"{what} must be at most {most}, the teacher's, not {new}")


def _indices(old, new) -> dict[str, Tensor]:
    """What stays, for every kind of axis."""
    old_dim, dim = (c.hidden_size // c.num_attention_heads for c in (old, new))
    heads = _evenly(old.num_attention_heads, new.num_attention_heads)
    return {
        "hidden": _evenly(old.hidden_size, new.hidden_size),
        "attention": (heads[:, None] * old_dim + _evenly(old_dim, dim)).flatten(),
        "neurons": _evenly(old.intermediate_size, new.intermediate_size),
    }


def _evenly(total: int, count: int) -> Tensor:
    return torch.arange(count) * total // count


def _select(state: dict[str, Tensor], indices: dict[str, Tensor]) -> dict[str, Tensor]:
    """The elements of every tensor that stay; a tensor that is not in the table stays whole."""
    selected = {}
    for name, tensor in state.items():
        module = name.rpartition(".")[0]
        axes = next((axes for end, axes in _AXES.items() if module.endswith(end)), ())
        for dim, axis in enumerate(axes[: tensor.ndim]):
            if axis is not None:
                tensor = tensor.index_select(dim, indices[axis].to(tensor.device))
        selected[name] = tensor
    return selected


def _dropped(total: int, keep: int) -> int:
    if not 1 <= keep <= total:
        raise ValueError(f"keep must be from 1 to {total} layers, not {keep}")
    return total - keep
