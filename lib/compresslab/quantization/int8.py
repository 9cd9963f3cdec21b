"""Int8 inference: inputs and weights are 8-bit integers, and so is the arithmetic between them.

Source: Jacob et al. (2017), Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference, arXiv:1712.05877, sections 2.2 to 2.4:

    x = s_x · (u - z),  W_j = s_j · w_j        y_j = s_x · s_j · Σ_k (u_k - z) · w_jk + b_j
                                                   = s_x · s_j · (Σ_k u_k · w_jk - z · r_j) + b_j

    code          paper
    codes         u   uint8, the input
    zero_point    z   of the input; weights are symmetric and have none
    weight.codes  w   int8 (out_features, in_features), a scale s_j a row
    row_sums      r_j = Σ_k w_jk, known before any input is
    multiplier    M = s_x · s_j / s_y, in fixed point M₀ · 2⁻ⁿ

    dynamic       the range of x is measured at each call: no calibration, another pass over x
    static        the range is known from calibration, and what lies outside is clipped

Weights have 7 bits in their bytes, -63 to 63. Processors without VNNI instructions add the products
of two neighbours in 16 bits, and what does not fit is cut off without a word: 2 · 255 · 127 is
above 32,767, 2 · 255 · 63 is not. So a model computes the same everywhere.

`Int8Linear` calls the one operator of torch that does all of this at once (from the library
FBGEMM), where there is one: on x86, until torch drops it, as it has announced. With `fused=False`
it takes the steps written here, of which `int8_matmul` is fast with AVX-512 VNNI only.

Differs from the paper: a scale a row of the weight, and the output of a layer is float. The path of
integers alone is here as functions (`integer_linear`, `quantize_bias`, `requantize`), which round
once where the paper's code rounds twice. Not included: what lies between the layers, in integers.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import bert_layers, own_layers, replace_
from .affine import Quantized, affine_parameters, min_max, quantize, quantize_tensor

EXACT = 512  # products of 8-bit integers, whose sum float32 holds exactly: 255 · 128 · 512 < 2²⁴


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """a · b (m, n) in int32, exactly: `a.int() @ b.int()`, but fast.

    torch has a fast product of integers for processors with AVX-512 VNNI; elsewhere its `_int_mm`
    is some 30 times slower than floats, so the integers are multiplied as floats there, in pieces
    so short that every sum is exact.

    Args:
        a: int8 or uint8 (m, k), k at most 65,793, above which 255 · 128 · k overflows.
        b: int8 (k, n).

    Raises:
        ValueError: another dtype, shapes that do not fit, or k above 65,793.
    """
    if a.dtype not in (torch.int8, torch.uint8) or b.dtype != torch.int8:
        raise ValueError(f"a must be int8 or uint8 and b int8, not {a.dtype} and {b.dtype}")
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[0] or a.shape[1] > 65_793:
        raise ValueError(
            f"a must be (m, k) and b (k, n), k at most 65,793, not {tuple(a.shape)} and "
            f"{tuple(b.shape)}"
        )
    if torch.cpu._is_vnni_supported():
        return torch._int_mm(a, b)
    pieces = zip(a.split(EXACT, 1), b.split(EXACT), strict=True)
    sums = [(part.float() @ other.float()).int() for part, other in pieces]
    return sum(sums[1:], sums[0])


def integer_linear(
    codes: Tensor, zero_point: Tensor, weight: Tensor, row_sums: Tensor | None = None
) -> Tensor:
    """Σ_k (u_k - z) · w_jk for every row of `codes`: int32 (tokens, out_features).

    Args:
        codes: uint8 (tokens, in_features).
        zero_point: int32, broadcast against (tokens, 1).
        weight: int8 (out_features, in_features).
        row_sums: of the weight, int32 (out_features,); computed if left out.
    """
    if row_sums is None:
        row_sums = weight.sum(1, dtype=torch.int32)
    return int8_matmul(codes, weight.T).sub_(zero_point * row_sums)


def quantize_bias(bias: Tensor, input_scale: Tensor, weight_scale: Tensor) -> Tensor:
    """The bias in steps of s_x · s_j: int32 (out_features,), to be added to `integer_linear`."""
    steps = (bias.double() / (input_scale.double() * weight_scale.double().flatten())).round()
    return steps.clamp(-(2**31), 2**31 - 1).int()


def requantize(total: Tensor, multiplier: Tensor, zero_point: int) -> Tensor:
    """clamp(round(M · total) + z), uint8, by integers alone: a product and a shift to the right.

    Halves are rounded up.

    Args:
        total: int32 (tokens, out_features).
        multiplier: float, broadcast against `total`; an integer of 31 bits, and a shift, are made
            of it, which an integer-only model would store instead.
        zero_point: of the output.

    Raises:
        ValueError: a multiplier that is not at least 2⁻³² and below 2³⁰.
    """
    if not ((multiplier >= 2**-32) & (multiplier < 2**30)).all():
        raise ValueError(f"multiplier must be in [2⁻³², 2³⁰), not {multiplier.flatten().tolist()}")
    mantissa, exponent = torch.frexp(multiplier.double())
    fixed = (mantissa * 2**31).round().long()  # M₀ in [½, 1)
    shift = 31 - exponent.long()
    rounded = (total.long() * fixed + (1 << (shift - 1))) >> shift
    return (rounded + zero_point).clamp(0, 255).to(torch.uint8)


def has_operator() -> bool:
    """Whether this torch has FBGEMM's linear layer (pytorch issue 184982 announces its end)."""
    exists = hasattr(torch, "_make_per_channel_quantized_tensor")
    return exists and torch.backends.quantized.engine in ("x86", "fbgemm")


def pack_for_operator(codes: Tensor, scale: Tensor, bias: Tensor | None) -> torch.ScriptObject:
    """The weight as FBGEMM's layer wants it: an object that no state dictionary can hold."""
    zeros = torch.zeros(len(codes), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the end of what is used here
        weight = torch._make_per_channel_quantized_tensor(codes, scale.double(), zeros, 0)
    return torch.ops.quantized.linear_prepack(weight, bias)


def check_rows(weight: Quantized) -> None:
    """Refuse a weight (out_features, in_features) that is not int8 with a scale a row.

    Raises:
        ValueError: it is not.
    """
    rows = len(weight.codes)
    if weight.codes.dtype != torch.int8 or weight.scale.shape != (rows, 1):
        raise ValueError(
            f"weight must have int8 codes and {rows} scales, one a row, not "
            f"{weight.codes.dtype} and {len(weight.scale)}"
        )


class Int8Linear(nn.Module):
    """y = x · Ŵᵀ + bias, with Ŵ in int8 and x rounded to uint8.

    Args:
        weight: (out_features, in_features), symmetric, a scale a row.
        bias: (out_features,) or None; it stays float.
        input_range: low and high of x for static quantization; measured at each call if left out.
        per_token: measure a range for each row of x, not one for all.
        fused: use torch's one operator where it computes the same: on x86, with one range for all
            of x, and with weights of 7 bits, or 8 where there are VNNI instructions.

    Raises:
        ValueError: the weight is of another kind, or both a range and `per_token` are given.
    """

    def __init__(
        self,
        weight: Quantized,
        bias: Tensor | None = None,
        *,
        input_range: tuple[float, float] | None = None,
        per_token: bool = False,
        fused: bool = True,
    ):
        super().__init__()
        check_rows(weight)
        if per_token and input_range is not None:
            raise ValueError("per_token measures ranges: leave out input_range")
        self.out_features, self.in_features = weight.codes.shape
        self.per_token, self.static = per_token, input_range is not None
        exact = weight.bits < 8 or torch.cpu._is_vnni_supported()
        self.fused = fused and exact and not per_token and has_operator()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale.flatten())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        if self.static:
            low, high = torch.tensor(input_range)
            scale, zero_point = affine_parameters(low, high, bits=8)
            self.register_buffer("input_scale", scale)
            self.register_buffer("input_zero_point", zero_point)
        self.register_load_state_dict_post_hook(Int8Linear._prepare)
        self._prepare()

    def _prepare(self, _=None) -> None:
        """What is made of the state once, and not stored."""
        self.row_sums = self.codes.sum(1, dtype=torch.int32)
        self.input_parameters = self.packed = None
        if self.static:
            self.input_parameters = self.input_scale.item(), self.input_zero_point.item()
        if self.fused:
            self.packed = pack_for_operator(self.codes, self.scale, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(…, in_features) to (…, out_features), in the dtype of `x`."""
        if not self.fused:
            y = self._steps(x.reshape(-1, self.in_features))
            y = y.view(*x.shape[:-1], self.out_features)
        elif self.static:
            y = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default(
                x.float(), *self.input_parameters, self.packed
            )
        else:
            y = torch.ops.quantized.linear_dynamic.default(x.float(), self.packed, False)
        return y.to(x.dtype)

    def _steps(self, x: Tensor) -> Tensor:
        if self.static:
            scale, zero_point = self.input_scale, self.input_zero_point
        else:
            groups = x if self.per_token else x.reshape(1, -1)
            ends = min_max(groups, bits=8, symmetric=False)
            scale, zero_point = affine_parameters(*ends, bits=8)
        codes = quantize(x, scale, zero_point, bits=8)
        total = integer_linear(codes, zero_point, self.codes, self.row_sums)
        y = total * (scale * self.scale)
        return y if self.bias is None else y.add_(self.bias)

    def extra_repr(self) -> str:
        kind = "static" if self.static else "per token" if self.per_token else "dynamic"
        return f"{self.in_features}, {self.out_features}, {kind}, fused={self.fused}"


class Int8Embedding(nn.Module):
    """Rows of a table in int8, a scale each: a row is made float when it is looked up.

    Args:
        weight: (rows, dim), symmetric, a scale a row.
    """

    def __init__(self, weight: Quantized):
        super().__init__()
        self.register_buffer("codes", weight.codes)
        self.register_buffer("scale", weight.scale)

    def forward(self, index: Tensor) -> Tensor:
        """(…) to (…, dim)."""
        return F.embedding(index, self.codes) * F.embedding(index, self.scale)


def quantize_linears_int8_(
    model: nn.Module,
    ranges: Mapping[str, tuple[float, float]] | None = None,
    names: Iterable[str] | None = None,
    *,
    bits: int = 7,
    per_token: bool = False,
    fused: bool = True,
) -> None:
    """Replace linear layers by Int8Linear, in place.

    Args:
        ranges: name of a layer -> low and high of its input (`collect_ranges`), for static
            quantization; dynamic if left out.
        names: of the layers; all linear layers if left out.
        bits: of the weights, at most 8.
        per_token, fused: as in Int8Linear.

    Raises:
        ValueError: `names` has what is no linear layer, has no range, or shares its weight.
    """

    def make(name: str, linear: nn.Linear) -> Int8Linear:
        if ranges is not None and name not in ranges:
            raise ValueError(f"ranges has none for {name}")
        weight = quantize_tensor(linear.weight, bits=bits, symmetric=True)
        return Int8Linear(
            weight,
            linear.bias,
            input_range=None if ranges is None else ranges[name],
            per_token=per_token,
            fused=fused,
        )

    _replace_all_(model, nn.Linear, names, make)


def quantize_embeddings_int8_(
    model: nn.Module, names: Iterable[str] | None = None, *, bits: int = 8
) -> None:
    """Replace embeddings by Int8Embedding, in place.

    Args:
        names: of the embeddings; all if left out.
        bits: of the entries, at most 8.

    Raises:
        ValueError: `names` has what is no embedding, or one whose weight others share.
    """
    _replace_all_(
        model,
        nn.Embedding,
        names,
        lambda name, e: Int8Embedding(quantize_tensor(e.weight, bits=bits, symmetric=True)),
    )


class Int8BertLayer(nn.Module):
    """A layer of BERT with as few calls as it takes, and query, key and value as one product.

    With one sentence a time, a call in Python costs as much as the arithmetic of a small layer. It
    computes what the layer did, but gives back no attention weights and no hidden states.

    Args:
        layer: of transformers' BERT, its linear layers in int8; heads may have been removed.
    """

    def __init__(self, layer: nn.Module):
        super().__init__()
        attention, after = layer.attention.self, layer.attention.output
        self.heads = attention.num_attention_heads
        self.query_key_value = _join([attention.query, attention.key, attention.value])
        self.project, self.norm = after.dense, after.LayerNorm
        self.activation = layer.intermediate.intermediate_act_fn
        self.up, self.down = layer.intermediate.dense, layer.output.dense
        self.output_norm = layer.output.LayerNorm

    def forward(self, x: Tensor, mask: Tensor | None = None, *_, **__) -> Tensor:
        """(batch, time, dim) to the same; `mask` (batch, 1, 1 or time, time) or None."""
        return self.finish(x, self.attend(self.query_key_value(x), mask))

    def attend(self, joined: Tensor, mask: Tensor | None, queries: int | None = None) -> Tensor:
        """From query, key and value of every token, one after the other (batch, time, 3 · heads ·
        size), what the first `queries` tokens of each sentence read (batch, queries or time, …).
        """
        query, key, value = joined.unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        query = query[:, :, :queries]  # (batch, heads, queries, size)
        return (
            F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            .transpose(1, 2)
            .flatten(2)
        )

    def finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What follows attention, token by token: (…, dim) and (…, heads · size) to (…, dim)."""
        x = self.norm(x + self.project(mixed))
        return self.output_norm(x + self.down(self.activation(self.up(x))))


def fuse_bert_layers_(model: nn.Module) -> None:
    """Replace the layers of a BERT by Int8BertLayer, in place, after `quantize_linears_int8_`.

    Raises:
        ValueError: not a BERT, a linear layer of its encoder is not in int8, or query, key and
            value have not the same range.
    """
    layers = bert_layers(model)
    for name, module in layers.named_modules():
        if isinstance(module, nn.Linear):
            raise ValueError(f"layer {name} is not in int8")
    for i, layer in enumerate([Int8BertLayer(layer) for layer in layers]):
        layers[i] = layer


def _join(layers: list[Int8Linear]) -> Int8Linear:
    """One layer with the outputs of all, which read the same input."""
    if len({layer.input_parameters for layer in layers}) > 1:
        raise ValueError("query, key and value read one input: their ranges must be the same")
    joined = copy.deepcopy(layers[0])
    for part in ("codes", "scale", "bias"):
        setattr(joined, part, torch.cat([getattr(layer, part) for layer in layers]))
    joined.out_features = len(joined.codes)
    joined._prepare()
    return joined


def _replace_all_(
    model: nn.Module,
    kind: type[nn.Module],
    names: Iterable[str] | None,
    make: Callable[[str, nn.Module], nn.Module],
) -> None:
    """Make all before any is put in place: a model is changed as a whole or not at all."""
    layers = own_layers(model, kind, names)
    for name, layer in [(name, make(name, old)) for name, old in layers.items()]:
        replace_(model, name, layer)
