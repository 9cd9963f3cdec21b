"""Typical mistakes in the exercises on quantization, and what the instant check says of each.

A function is called after its exercise and its mistake; its docstring is the sentence for the
student, which names the mistake and never tells the answer. Those without a docstring are caught
by hidden inputs only, or by a shape or type: there is nothing to say about them on SHOWN inputs.
"""

import math

import torch

from compresslab.quantization.affine import affine_parameters, dequantize, quantize

# ---------------------------------------------------------------- round_groups


def _with_zero(group):
    return group.amin(1, keepdim=True).clamp(max=0), group.amax(1, keepdim=True).clamp(min=0)


def _round(group, bits, *, ends=_with_zero, levels=None, nearest=torch.round, clamp=True):
    low, high = ends(group)
    scale = (high - low) / ((2**bits - 1) if levels is None else levels)
    scale = torch.where(scale > 0, scale, 1)
    zero_point = -nearest(low / scale)
    codes = nearest(group / scale) + zero_point
    if clamp:
        codes = codes.clamp(0, 2**bits - 1)
    return (codes - zero_point) * scale


def _each(weight, bits, size, round_one):
    return torch.cat([round_one(part, bits) for part in weight.split(size, 1)], 1)


def _stored(weight, bits, size, overhead=None):
    groups = len(weight) * math.ceil(weight.shape[1] / size)
    return bits + groups * (16 + bits if overhead is None else overhead) / weight.numel()


def _groups(weight, bits, size, **options):
    rounded = _each(weight, bits, size, lambda part, b: _round(part, b, **options))
    return rounded, _stored(weight, bits, size)


def round_groups__zero_left_out(weight, *, bits, group_size):
    """The range here goes from the smallest to the largest weight, wherever zero is: then zero is
    no number of the grid, and the zero point no code."""

    def ends(group):
        return group.amin(1, keepdim=True), group.amax(1, keepdim=True)

    return _groups(weight, bits, group_size, ends=ends)


def round_groups__offset_instead(weight, *, bits, group_size):
    """Your codes start at the lowest weight, which you add again afterwards: an offset in float.
    Here a zero point is wanted, a whole number of steps, so that zero itself stays exact."""

    def round_one(part, bits):
        low, high = _with_zero(part)
        scale = torch.where(high > low, (high - low) / (2**bits - 1), 1)
        return ((part - low) / scale).round() * scale + low

    return _each(weight, bits, group_size, round_one), _stored(weight, bits, group_size)


def round_groups__too_many_steps(weight, *, bits, group_size):
    """The number of steps is wrong: between n codes there are n − 1."""
    return _groups(weight, bits, group_size, levels=2**bits)


def round_groups__symmetric(weight, *, bits, group_size):
    """That is a symmetric grid, with as much room on either side of zero, whatever the weights
    are."""

    def round_one(part, bits):
        scale = part.abs().amax(1, keepdim=True) / max(1, 2 ** (bits - 1) - 1)
        scale = torch.where(scale > 0, scale, 1)
        return (part / scale).round() * scale

    return _each(weight, bits, group_size, round_one), _stored(weight, bits, group_size)


def round_groups__floor(weight, *, bits, group_size):
    """You round down, as a conversion to integers or `//` does; the nearest number is wanted."""
    return _groups(weight, bits, group_size, nearest=torch.floor)


def round_groups__halves_up(weight, *, bits, group_size):
    """Halves are rounded up here. They go to the even neighbour."""
    return _groups(weight, bits, group_size, nearest=lambda x: (x + 0.5).floor())


def round_groups__no_clamp(weight, *, bits, group_size):
    """A code is larger than the largest that there is. When both the zero point and a code are
    rounded, their sum may come out one too large."""
    return _groups(weight, bits, group_size, clamp=False)


def round_groups__added_before(weight, *, bits, group_size):
    """You add the zero point before you round. For a weight half-way between two numbers that may
    go the other way."""

    def round_one(part, bits):
        low, high = _with_zero(part)
        scale = torch.where(high > low, (high - low) / (2**bits - 1), 1)
        zero_point = -(low / scale).round()
        codes = (part / scale + zero_point).round().clamp(0, 2**bits - 1)
        return (codes - zero_point) * scale

    return _each(weight, bits, group_size, round_one), _stored(weight, bits, group_size)


def round_groups__whole_rows(weight, *, bits, group_size):
    """You have one scale for each row, as if it were a single group."""
    rounded = _round(weight, bits)
    return rounded, _stored(weight, bits, group_size)


def round_groups__whole_matrix(weight, *, bits, group_size):
    """You have one scale for all the weights together."""
    rounded = _round(weight.reshape(1, -1), bits).view_as(weight)
    return rounded, _stored(weight, bits, group_size)


def round_groups__one_scale_for_all_rows(weight, *, bits, group_size):
    """The rows share a scale here. A group lies within one row."""

    def round_one(part, bits):
        return _round(part.reshape(1, -1), bits).view_as(part)

    return _each(weight, bits, group_size, round_one), _stored(weight, bits, group_size)


def round_groups__down_columns(weight, *, bits, group_size):
    """Your groups lie in columns. Neighbours in a *row* share a scale."""
    rounded = _each(weight.T, bits, group_size, _round).T
    return rounded, _stored(weight, bits, group_size)


def round_groups__across_rows(weight, *, bits, group_size):
    """Here a group goes on into the next row. Groups begin anew in each row."""
    parts = weight.flatten().split(group_size)
    rounded = torch.cat([_round(part[None], bits)[0] for part in parts]).view_as(weight)
    return rounded, _stored(weight, bits, group_size)


def round_groups__joins_the_rest(weight, *, bits, group_size):
    """The weights that are left over at the end of a row are a group of their own; here they belong
    to the one before."""
    whole = max(group_size, weight.shape[1] // group_size * group_size)
    first = list(weight[:, : whole - group_size].split(group_size, 1)) if whole > group_size else []
    rounded = torch.cat([_round(p, bits) for p in [*first, weight[:, whole - group_size :]]], 1)
    return rounded, _stored(weight, bits, group_size)


def round_groups__divides_by_zero(weight, *, bits, group_size):
    """A group of zeros has a range of no width, and you divide by it."""

    def round_one(part, bits):
        low, high = _with_zero(part)
        scale = (high - low) / (2**bits - 1)
        zero_point = -(low / scale).round()
        codes = ((part / scale).round() + zero_point).clamp(0, 2**bits - 1)
        return (codes - zero_point) * scale

    return _each(weight, bits, group_size, round_one), _stored(weight, bits, group_size)


def round_groups__zero_points_for_nothing(weight, *, bits, group_size):
    """The zero points are stored, too: they are missing from the bits."""
    return _groups(weight, bits, group_size)[0], _stored(weight, bits, group_size, 16)


def round_groups__scales_for_nothing(weight, *, bits, group_size):
    """You count the codes alone. Each group stores more than that."""
    return _groups(weight, bits, group_size)[0], float(bits)


def round_groups__bits_of_a_group(weight, *, bits, group_size):
    """These are the bits of all weights together, not of one."""
    rounded, stored = _groups(weight, bits, group_size)
    return rounded, stored * weight.numel()


def round_groups__fractions_of_groups(weight, *, bits, group_size):
    """The weights are right. For the bits you count a short group as a fraction of one: it stores a
    scale like any other."""
    return _groups(weight, bits, group_size)[0], bits + (16 + bits) / group_size


def round_groups__scale_in_float16(weight, *, bits, group_size):
    """You round the scale to 16 bits. It is counted with 16 bits, and used as it is."""

    def round_one(part, bits):
        low, high = _with_zero(part)
        scale = torch.where(high > low, (high - low) / (2**bits - 1), 1).half().float()
        zero_point = -(low / scale).round()
        codes = ((part / scale).round() + zero_point).clamp(0, 2**bits - 1)
        return (codes - zero_point) * scale

    return _each(weight, bits, group_size, round_one), _stored(weight, bits, group_size)


def round_groups__codes(weight, *, bits, group_size):
    """These are the codes. The numbers that they stand for are wanted."""

    def round_one(part, bits):
        low, high = _with_zero(part)
        scale = torch.where(high > low, (high - low) / (2**bits - 1), 1)
        return ((part / scale).round() - (low / scale).round()).clamp(0, 2**bits - 1)

    return _each(weight, bits, group_size, round_one), _stored(weight, bits, group_size)


# ---------------------------------------------------------------- repack


def _low_high(blocks):
    return blocks & 15, blocks >> 4


def _pairs(codes, count):
    codes = codes.flatten()[:count]
    codes = torch.cat([codes, codes.new_zeros(count % 2)])
    return codes[::2] | codes[1::2] << 4


def repack__as_it_is(blocks, count):
    """These bytes are as they were: code i and code i + k still share one."""
    return blocks.flatten()[: math.ceil(count / 2)].clone()


def repack__high_first(blocks, count):
    """You take the high four bits of a byte for the earlier code. The low ones come first."""
    low, high = _low_high(blocks)
    return _pairs(torch.cat([high, low], 1), count)


def repack__high_half_first(blocks, count):
    """The first of two neighbours goes into the *low* four bits. You put it into the high ones."""
    codes = torch.cat(_low_high(blocks), 1).flatten()[:count]
    codes = torch.cat([codes, codes.new_zeros(count % 2)])
    return codes[::2] << 4 | codes[1::2]


def repack__all_blocks_at_once(blocks, count):
    """You take the low halves of all blocks before the first high half. The order is within each
    block: first all of its own codes, then the next block."""
    return _pairs(torch.cat([half.flatten() for half in _low_high(blocks)]), count)


def repack__halves_exchanged(blocks, count):
    """The two codes of a byte change places, and still share it. In the result each shares its byte
    with its neighbour in the block."""
    low, high = _low_high(blocks)
    return _pairs(torch.stack([high, low], 2), count)


def repack__keeps_the_padding(blocks, count):
    """You give back all bytes of all blocks. `count` says how many codes are wanted."""
    return _pairs(torch.cat(_low_high(blocks), 1), 2 * blocks.numel())


def repack__drops_the_last(blocks, count):
    """The last code is missing when their number is odd: it has a byte to itself."""
    return _pairs(torch.cat(_low_high(blocks), 1), count // 2 * 2)


def repack__padding_in_the_last_byte(blocks, count):
    """The last byte has a code too many, from what is padding. Its high four bits should be
    zero."""
    return _pairs(torch.cat(_low_high(blocks), 1), 2 * blocks.numel())[: math.ceil(count / 2)]


def repack__one_code_a_byte(blocks, count):
    """These are the codes, one in a byte. Put two of them into each."""
    return torch.cat(_low_high(blocks), 1).flatten()[:count]


def repack__not_masked(blocks, count):
    """The low code still has the high one in it: take four bits of the byte only."""
    return _pairs(torch.cat([blocks, blocks >> 4], 1), count)


def repack__not_shifted(blocks, count):
    """The high codes have not been moved down by four bits: a code is below 16."""
    return _pairs(torch.cat([blocks & 15, blocks & 240], 1), count)


def repack__shifted_by_three(blocks, count):
    """The second code of a byte is in the wrong bits: they overlap those of the first."""
    codes = torch.cat(_low_high(blocks), 1).flatten()[:count]
    codes = torch.cat([codes, codes.new_zeros(count % 2)])
    return codes[::2] | codes[1::2] << 3


# ---------------------------------------------------------------- clip_factors


def _losses(weight, importance, bits, factors, *, error=torch.square):
    """(factors, rows)."""
    found = []
    for factor in factors:
        low, high = (factor * end[:, None] for end in weight.aminmax(dim=1))
        grid = affine_parameters(low, high, bits=bits)
        rounded = dequantize(quantize(weight, *grid, bits=bits), *grid)
        found.append((importance * error(rounded - weight)).sum(1))
    return torch.stack(found)


def _best(losses, factors):
    return torch.tensor(factors)[losses.argmin(0)]


def clip_factors__unweighted(weight, importance, *, bits, factors):
    """Every column counts the same here, as in the library's `mse`: the importance is not used."""
    factors = sorted(factors, reverse=True)
    return _best(_losses(weight, torch.ones_like(importance), bits, factors), factors)


def clip_factors__importance_squared(weight, importance, *, bits, factors):
    """The importance is squared as well. It is a mean of squares already: only the error has to
    be."""
    factors = sorted(factors, reverse=True)
    return _best(_losses(weight, importance**2, bits, factors), factors)


def clip_factors__scaled_weights(weight, importance, *, bits, factors):
    """You multiply the weights by the importance before you round. It is the errors that are
    weighed; the weights and their grid stay what they are."""
    factors = sorted(factors, reverse=True)
    scaled = weight * importance
    return _best(_losses(scaled, torch.ones_like(importance), bits, factors), factors)


def clip_factors__absolute(weight, importance, *, bits, factors):
    """You add up absolute errors. Squared ones are wanted."""
    factors = sorted(factors, reverse=True)
    return _best(_losses(weight, importance, bits, factors, error=torch.abs), factors)


def clip_factors__signed(weight, importance, *, bits, factors):
    """Errors of either sign cancel here: square them before you add."""
    factors = sorted(factors, reverse=True)
    return _best(_losses(weight, importance, bits, factors, error=lambda e: e).abs(), factors)


def clip_factors__not_clipped_counts_alone(weight, importance, *, bits, factors):
    """The errors of the weights that were clipped do not count here, and so clipping costs
    nothing."""
    factors = sorted(factors, reverse=True)
    found = []
    for factor in factors:
        low, high = (factor * end[:, None] for end in weight.aminmax(dim=1))
        grid = affine_parameters(low, high, bits=bits)
        error = dequantize(quantize(weight, *grid, bits=bits), *grid) - weight
        inside = (weight >= low) & (weight <= high)
        found.append((importance * error**2 * inside).sum(1))
    return _best(torch.stack(found), factors)


def clip_factors__one_for_all_rows(weight, importance, *, bits, factors):
    """One factor for all rows. Each row has its own."""
    factors = sorted(factors, reverse=True)
    losses = _losses(weight, importance, bits, factors).sum(1)
    return torch.full((len(weight),), factors[int(losses.argmin())])


def clip_factors__largest_loss(weight, importance, *, bits, factors):
    """You take the factor with the largest loss."""
    factors = sorted(factors, reverse=True)
    return torch.tensor(factors)[_losses(weight, importance, bits, factors).argmax(0)]


def clip_factors__index(weight, importance, *, bits, factors):
    """These are positions in a list of factors, not factors."""
    return _losses(weight, importance, bits, factors).argmin(0)


def clip_factors__index_of_sorted(weight, importance, *, bits, factors):
    """You sort the factors for the losses, and look up the best one in the list as it was given."""
    losses = _losses(weight, importance, bits, sorted(factors, reverse=True))
    return _best(losses, factors)


def clip_factors__smallest_of_equals(weight, importance, *, bits, factors):
    """Of factors that are equally good you take the smallest: there is no need to clip then."""
    factors = sorted(factors)
    return _best(_losses(weight, importance, bits, factors), factors)


def clip_factors__first_of_equals(weight, importance, *, bits, factors):
    """Of factors that are equally good you take the one that comes first in the list."""
    return _best(_losses(weight, importance, bits, factors), factors)


def clip_factors__only_the_upper_end(weight, importance, *, bits, factors):
    """Only the upper end moves with the factor here. Both do."""
    factors, found = sorted(factors, reverse=True), []
    for factor in factors:
        low, high = (end[:, None] for end in weight.aminmax(dim=1))
        grid = affine_parameters(low, factor * high, bits=bits)
        error = dequantize(quantize(weight, *grid, bits=bits), *grid) - weight
        found.append((importance * error**2).sum(1))
    return _best(torch.stack(found), factors)


def clip_factors__up_to_one(weight, importance, *, bits, factors):
    factors = sorted([f for f in factors if f <= 1] or factors, reverse=True)
    return _best(_losses(weight, importance, bits, factors), factors)


# ---------------------------------------------------------------- asymmetric_linear


def _linear(given, *, parts="pabn", count=None, input_axis=1):
    """The sum of four parts: products, a Σ v, b Σ u, n a b."""
    u, v = given["codes"].int(), given["weight_codes"].int()
    a, b = given["input_zero_point"], given["weight_zero_point"].T
    total = u @ v.T
    if "a" in parts:
        total = total - a * v.sum(1)
    if "b" in parts:
        total = total - u.sum(1, keepdim=True) * b
    if "n" in parts:
        total = total + (u.shape[1] if count is None else count) * a * b
    return total


def _to_float(total, given):
    return total * given["input_scale"] * given["weight_scale"].T + given["bias"]


def asymmetric_linear__no_zero_points(**given):
    """You multiply the codes as if they were the numbers: both zero points are missing."""
    return _to_float(_linear(given, parts="p"), given)


def asymmetric_linear__symmetric_weights(**given):
    """The zero point of the weights is missing: this is right for symmetric weights only."""
    return _to_float(_linear(given, parts="pa"), given)


def asymmetric_linear__symmetric_inputs(**given):
    """The zero point of the input is missing."""
    return _to_float(_linear(given, parts="pb"), given)


def asymmetric_linear__no_constant(**given):
    """One of the four parts is missing: the product of the two zero points."""
    return _to_float(_linear(given, parts="pab"), given)


def asymmetric_linear__constant_once(**given):
    """The product of the two zero points is added once. It belongs to every summand of the sum."""
    return _to_float(_linear(given, count=1), given)


def asymmetric_linear__constant_subtracted(**given):
    """A sign is wrong: minus times minus."""
    return _to_float(_linear(given, count=-given["codes"].shape[1]), given)


def asymmetric_linear__outputs_for_inputs(**given):
    """You count the product of the zero points as often as there are outputs. Over what does the
    sum go?"""
    return _to_float(_linear(given, count=len(given["weight_codes"])), given)


def asymmetric_linear__zero_points_added(**given):
    """You add the zero points to the codes. A code stands for scale · (code − zero point)."""
    u = given["codes"].int() + given["input_zero_point"]
    v = given["weight_codes"].int() + given["weight_zero_point"]
    return _to_float(u @ v.T, given)


def asymmetric_linear__wraps_around(**given):
    """You subtract in uint8, which has no negative numbers: 3 − 5 becomes 254."""
    u = given["codes"] - given["input_zero_point"].to(torch.uint8)
    v = given["weight_codes"] - given["weight_zero_point"].to(torch.uint8)
    return _to_float(u.int() @ v.int().T, given)


def asymmetric_linear__int8(**given):
    """Codes above 127 become negative in int8."""
    given = {**given, "codes": given["codes"].to(torch.int8)}
    return _to_float(
        _linear({**given, "weight_codes": given["weight_codes"].to(torch.int8)}), given
    )


def asymmetric_linear__eight_bit_sums(**given):
    """The product of codes is a sum in 8 bits, and runs over: it needs 32."""
    small = (given["codes"] @ given["weight_codes"].T).int()
    total = small - (_linear(given, parts="p") - _linear(given))
    return _to_float(total, given)


def asymmetric_linear__scale_not_turned(**given):
    """The scales of the weights belong to outputs, and are along the wrong dimension. With as many
    tokens as outputs nothing complains."""
    return _linear(given) * given["input_scale"] * given["weight_scale"] + given["bias"]


def asymmetric_linear__bias_scaled(**given):
    """The bias is multiplied by the scales, too. It is in float already."""
    total = _linear(given) + given["bias"]
    return total * given["input_scale"] * given["weight_scale"].T


def asymmetric_linear__no_bias(**given):
    """The bias is missing."""
    return _to_float(_linear(given), {**given, "bias": 0})


def asymmetric_linear__no_weight_scale(**given):
    """The scales of the weights are missing."""
    return _linear(given) * given["input_scale"] + given["bias"]


def asymmetric_linear__in_float32(**given):
    u, v = given["codes"].float(), given["weight_codes"].float()
    a, b = given["input_zero_point"].float(), given["weight_zero_point"].float().T
    total = u @ v.T - a * v.sum(1) - u.sum(1, keepdim=True) * b + u.shape[1] * a * b
    return _to_float(total, given)


# ---------------------------------------------------------------- smooth_values


def _by_head(x, kv_heads, sharing):
    return x.view(kv_heads, sharing, -1)


def _smooth(values, output, absmax, kv_heads, alpha, *, over=torch.amax, dead=True):
    """The scale of each value feature, and of each place of the input of `o_proj`."""
    sharing = output.shape[1] // len(values)
    a = over(_by_head(absmax, kv_heads, sharing), 1)
    b = over(_by_head(output.abs().amax(0), kv_heads, sharing), 1)
    scale = a**alpha / b ** (1 - alpha)
    if dead:
        scale = torch.where((a > 0) & (b > 0), scale, 1)
    return scale.flatten(), scale[:, None].expand(-1, sharing, -1).flatten()


def smooth_values__the_other_way(values, output, absmax, *, kv_heads, alpha):
    """You make the values larger and the weights that read them smaller: the wrong way round."""
    scale, places = _smooth(values, output, absmax, kv_heads, alpha)
    return values * scale[:, None], output / places


def smooth_values__alpha_exchanged(values, output, absmax, *, kv_heads, alpha):
    """`alpha` belongs to the inputs, and what it lacks to 1 to the weights: you have it the other
    way round."""
    a, _ = _smooth(values, output, absmax, kv_heads, 1.0)
    _, b = _smooth(values, output, absmax, kv_heads, 0.0)
    sharing = output.shape[1] // len(values)
    b = b.view(kv_heads, sharing, -1)[:, 0].flatten()
    scale = a ** (1 - alpha) * b**alpha
    places = scale.view(kv_heads, 1, -1).expand(-1, sharing, -1).flatten()
    return values / scale[:, None], output * places


def smooth_values__always_a_half(values, output, absmax, *, kv_heads, alpha):
    """You take the square root, whatever `alpha` is."""
    scale, places = _smooth(values, output, absmax, kv_heads, 0.5)
    return values / scale[:, None], output * places


def smooth_values__multiplied(values, output, absmax, *, kv_heads, alpha):
    """You multiply by the magnitude of the weights instead of dividing by it."""
    a, places_a = _smooth(values, output, absmax, kv_heads, 1.0)
    b, places_b = _smooth(values, output, absmax, kv_heads, 0.0)
    scale, places = a**alpha / b ** (1 - alpha), places_a**alpha / places_b ** (1 - alpha)
    return values / scale[:, None], output * places


def smooth_values__tiled(values, output, absmax, *, kv_heads, alpha):
    """You take the query heads in turn: first value head, second, first, second. Those that share
    one are neighbours."""
    sharing = output.shape[1] // len(values)
    a = absmax.view(sharing, -1).amax(0)
    b = output.abs().amax(0).view(sharing, -1).amax(0)
    scale = torch.where((a > 0) & (b > 0), a**alpha / b ** (1 - alpha), 1)
    return values / scale[:, None], output * scale.repeat(sharing)


def smooth_values__repeated_wrongly(values, output, absmax, *, kv_heads, alpha):
    """You repeat single features. In the input of `o_proj` it is whole heads that are repeated."""
    scale, _ = _smooth(values, output, absmax, kv_heads, alpha)
    sharing = output.shape[1] // len(values)
    return values / scale[:, None], output * scale.repeat_interleave(sharing)


def smooth_values__first_head_decides(values, output, absmax, *, kv_heads, alpha):
    """The scale comes from the first query head alone, and the others that read the same feature
    have no say."""
    scale, places = _smooth(
        values, output, absmax, kv_heads, alpha, over=lambda x, dim: x.select(dim, 0)
    )
    return values / scale[:, None], output * places


def smooth_values__mean_of_heads(values, output, absmax, *, kv_heads, alpha):
    """You take the mean over the query heads that share a feature. The largest counts."""
    scale, places = _smooth(values, output, absmax, kv_heads, alpha, over=torch.mean)
    return values / scale[:, None], output * places


def smooth_values__each_its_own(values, output, absmax, *, kv_heads, alpha):
    """Each place of the input has a scale of its own in `output`. Those that read the same feature
    must have the same: the feature can be divided only once."""
    scale, _ = _smooth(values, output, absmax, kv_heads, alpha)
    largest = output.abs().amax(0)
    own = torch.where((absmax > 0) & (largest > 0), absmax**alpha / largest ** (1 - alpha), 1)
    return values / scale[:, None], output * own


def smooth_values__weights_of_the_values(values, output, absmax, *, kv_heads, alpha):
    """You look at the weights that *make* a feature, the rows of `values`. Those that *read* it
    count: columns of `output`."""
    sharing = output.shape[1] // len(values)
    a = _by_head(absmax, kv_heads, sharing).amax(1).flatten()
    b = values.abs().amax(1)
    scale = torch.where((a > 0) & (b > 0), a**alpha / b ** (1 - alpha), 1)
    places = scale.view(kv_heads, 1, -1).expand(-1, sharing, -1).flatten()
    return values / scale[:, None], output * places


def smooth_values__rows_of_the_output(values, output, absmax, *, kv_heads, alpha):
    sharing = output.shape[1] // len(values)
    a = _by_head(absmax, kv_heads, sharing).amax(1).flatten()
    b = _by_head(output.abs().amax(1), kv_heads, sharing).amax(1).flatten()
    scale = torch.where((a > 0) & (b > 0), a**alpha / b ** (1 - alpha), 1)
    places = scale.view(kv_heads, 1, -1).expand(-1, sharing, -1).flatten()
    return values / scale[:, None], output * places


def smooth_values__signed_weights(values, output, absmax, *, kv_heads, alpha):
    """You take the largest weight, not the largest *magnitude*."""
    sharing = output.shape[1] // len(values)
    a = _by_head(absmax, kv_heads, sharing).amax(1).flatten()
    b = _by_head(output.amax(0), kv_heads, sharing).amax(1).flatten()
    scale = torch.where((a > 0) & (b > 0), a**alpha / b ** (1 - alpha), 1)
    places = scale.view(kv_heads, 1, -1).expand(-1, sharing, -1).flatten()
    return values / scale[:, None], output * places


def smooth_values__only_the_values(values, output, absmax, *, kv_heads, alpha):
    """`output` is as it was. What is divided on one side has to be multiplied on the other."""
    scale, _ = _smooth(values, output, absmax, kv_heads, alpha)
    return values / scale[:, None], output.clone()


def smooth_values__dead_features(values, output, absmax, *, kv_heads, alpha):
    """You divide by a scale of 0, or of infinity, where a feature is always zero or never read."""
    scale, places = _smooth(values, output, absmax, kv_heads, alpha, dead=False)
    return values / scale[:, None], output * places


def smooth_values__scale_of_a_head(values, output, absmax, *, kv_heads, alpha):
    """One scale for a whole head. Each feature has its own."""
    scale, _ = _smooth(values, output, absmax, kv_heads, alpha)
    sharing = output.shape[1] // len(values)
    scale = scale.view(kv_heads, -1).amax(1, keepdim=True).expand(-1, len(values) // kv_heads)
    places = scale[:, None].expand(-1, sharing, -1).flatten()
    return values / scale.flatten()[:, None], output * places


def smooth_values__in_place(values, output, absmax, *, kv_heads, alpha):
    """The numbers are right, but you change the weights that you were given: work on copies."""
    scale, places = _smooth(values, output, absmax, kv_heads, alpha)
    return values.div_(scale[:, None]), output.mul_(places)


# ---------------------------------------------------------------- greedy_obq


def _obq(
    weight,
    hessian,
    scale,
    zero_point,
    bits,
    *,
    cost=lambda error, inverse, h: error**2 / inverse.diagonal(),
    next_one=torch.argmin,
    share=lambda error, inverse, h, p: error / inverse[p, p] * inverse[p],
    shrink=True,
    most=None,
    clamp=True,
    freeze=True,
):
    w, h = weight.double().clone(), hessian.double()
    inverse = torch.linalg.inv(h)
    result, order = w.clone(), []
    end = math.inf if next_one is torch.argmin else -math.inf
    for _ in range(len(w)):
        codes = (w / scale).round() + zero_point
        if clamp:
            codes = codes.clamp(0, 2**bits - 1 if most is None else most)
        error = w - scale * (codes - zero_point)
        costs = cost(error, inverse, h).nan_to_num(0)
        costs[order] = end
        p = int(next_one(costs))
        order.append(p)
        result[p] = w[p] - error[p]
        change = share(error[p], inverse, h, p)
        w = w - change
        if not freeze:
            others = [i for i in order if i != p]
            result[others] = result[others] - change[others]
        if shrink:
            inverse = inverse - torch.outer(inverse[p], inverse[p]) / inverse[p, p]
            inverse[p, p] = 1
    return result, order


def greedy_obq__nearest(weight, hessian, *, scale, zero_point, bits):
    """Every weight goes to the number that is nearest to where it started: the others do not make
    up for it. (With what inverse do you change them?)"""
    return _obq(weight, hessian, scale, zero_point, bits, share=lambda *_: 0)


def greedy_obq__wrong_sign(weight, hessian, *, scale, zero_point, bits):
    """The others are moved in the wrong direction: a sign."""

    def share(e, inverse, h, p):
        return -e / inverse[p, p] * inverse[p]

    return _obq(weight, hessian, scale, zero_point, bits, share=share)


def greedy_obq__left_to_right(weight, hessian, *, scale, zero_point, bits):
    """You go from left to right, as the library's `obq` does. The weight that costs least is
    next."""

    def cost(e, inverse, h):
        return torch.arange(len(e)).double()

    return _obq(weight, hessian, scale, zero_point, bits, cost=cost)


def greedy_obq__costliest_first(weight, hessian, *, scale, zero_point, bits):
    """You take the weight that costs *most*."""
    return _obq(weight, hessian, scale, zero_point, bits, next_one=torch.argmax)


def greedy_obq__error_alone(weight, hessian, *, scale, zero_point, bits):
    """You choose by the rounding error alone: the inverse Hessian belongs into the cost."""
    return _obq(weight, hessian, scale, zero_point, bits, cost=lambda e, inverse, h: e**2)


def greedy_obq__weight_for_error(weight, hessian, *, scale, zero_point, bits):
    """You choose by the size of the weight, as optimal brain surgeon does for removing it. What
    counts here is how far it is moved by rounding."""
    state = {}

    def cost(error, inverse, h):
        state.setdefault("w", weight.double().clone())
        return state["w"] ** 2 / inverse.diagonal()

    def share(e, inverse, h, p):
        change = e / inverse[p, p] * inverse[p]
        state["w"] = state["w"] - change
        return change

    return _obq(weight, hessian, scale, zero_point, bits, cost=cost, share=share)


def greedy_obq__hessian_for_inverse(weight, hessian, *, scale, zero_point, bits):
    """You have the Hessian where its inverse belongs."""

    def cost(e, inverse, h):
        return e**2 / h.diagonal()

    def share(e, inverse, h, p):
        return e / h[p, p] * h[p]

    return _obq(weight, hessian, scale, zero_point, bits, cost=cost, share=share)


def greedy_obq__inverse_of_the_diagonal(weight, hessian, *, scale, zero_point, bits):
    """You divide by 1 / H_pp. The diagonal of the inverse is something else than the inverse of the
    diagonal."""

    def cost(e, inverse, h):
        return e**2 * h.diagonal()

    def share(e, inverse, h, p):
        return e * h[p, p] * inverse[p]

    return _obq(weight, hessian, scale, zero_point, bits, cost=cost, share=share)


def greedy_obq__inverse_kept(weight, hessian, *, scale, zero_point, bits):
    """The inverse is still that of all weights, after some of them have been fixed."""
    return _obq(weight, hessian, scale, zero_point, bits, shrink=False)


def greedy_obq__moves_what_is_rounded(weight, hessian, *, scale, zero_point, bits):
    """Weights that are rounded already are moved again, off the grid: they are fixed."""
    return _obq(weight, hessian, scale, zero_point, bits, shrink=False, freeze=False)


def greedy_obq__not_divided(weight, hessian, *, scale, zero_point, bits):
    """The change of the others has to be divided by the diagonal entry of the inverse."""

    def share(e, inverse, h, p):
        return e * inverse[p]

    return _obq(weight, hessian, scale, zero_point, bits, share=share)


def greedy_obq__order_of_the_start(weight, hessian, *, scale, zero_point, bits):
    """The order is that of the costs at the start. They change with every weight that is
    rounded."""
    first = {}

    def cost(error, inverse, h):
        return first.setdefault("costs", error**2 / inverse.diagonal()).clone()

    return _obq(weight, hessian, scale, zero_point, bits, cost=cost)


def greedy_obq__no_ends(weight, hessian, *, scale, zero_point, bits):
    """The grid has no ends here: a code goes from 0 to 2**bits − 1."""
    return _obq(weight, hessian, scale, zero_point, bits, clamp=False)


def greedy_obq__one_code_too_many(weight, hessian, *, scale, zero_point, bits):
    """The largest code is too large by one."""
    return _obq(weight, hessian, scale, zero_point, bits, most=2**bits)


def greedy_obq__codes(weight, hessian, *, scale, zero_point, bits):
    """The order is right. The first result has codes in it, or numbers without the zero point;
    numbers of the grid are wanted."""
    rounded, order = _obq(weight, hessian, scale, zero_point, bits)
    return rounded / scale + zero_point, order


def greedy_obq__in_the_order_of_rounding(weight, hessian, *, scale, zero_point, bits):
    """The rounded weights stand in the order in which they were rounded. They belong to their
    places."""
    rounded, order = _obq(weight, hessian, scale, zero_point, bits)
    return rounded[order], order


def greedy_obq__ranks(weight, hessian, *, scale, zero_point, bits):
    """You give back at which turn each place was rounded. The other way round: which place was
    rounded at each turn."""
    rounded, order = _obq(weight, hessian, scale, zero_point, bits)
    return rounded, [order.index(i) for i in range(len(order))]


def greedy_obq__in_place(weight, hessian, *, scale, zero_point, bits):
    """The numbers are right, but you change the weights that you were given: work on a copy."""
    rounded, order = _obq(weight, hessian, scale, zero_point, bits)
    return weight.copy_(rounded), order
