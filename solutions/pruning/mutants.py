"""Typical mistakes in the exercises on pruning, and what the instant check says of each.

A function is called after its exercise and its mistake; its docstring is the sentence for the
student, which names the mistake and never tells the answer. Those without a docstring are caught
by hidden inputs only, or by a shape or type: there is nothing to say about them on SHOWN inputs.
"""

import math

import torch

# ---------------------------------------------------------------- layer_sparsities


def _densities(shapes, sparsity):
    """Without the rule for layers that exceed 1."""
    sizes = [m * n for m, n in shapes]
    epsilon = (1 - sparsity) * sum(sizes) / sum(m + n for m, n in shapes)
    return [epsilon * (m + n) / (m * n) for m, n in shapes]


def _solve(shapes, sparsity, *, rounds=99):
    kept = [1.0] * len(shapes)
    left, budget = set(range(len(shapes))), (1 - sparsity) * sum(m * n for m, n in shapes)
    for _ in range(rounds):
        epsilon = budget / max(1, sum(sum(shapes[i]) for i in left))
        for i in left:
            kept[i] = epsilon * sum(shapes[i]) / math.prod(shapes[i])
        full = {i for i in left if kept[i] > 1}
        if not full:
            break
        budget -= sum(math.prod(shapes[i]) for i in full)
        left -= full
        kept = [1.0 if i in full else k for i, k in enumerate(kept)]
    return [min(1.0, k) for k in kept]


def layer_sparsities__uniform(shapes, sparsity):
    """Every layer loses the same here. Small layers should keep a larger fraction."""
    return [sparsity] * len(shapes)


def layer_sparsities__densities(shapes, sparsity):
    """Kept and removed are exchanged somewhere: `sparsity` is the fraction *removed*, and so is
    what you return."""
    return _solve(shapes, sparsity)


def layer_sparsities__negative(shapes, sparsity):
    """A sparsity below 0: a layer cannot keep more than all its weights."""
    return [1 - d for d in _densities(shapes, sparsity)]


def layer_sparsities__cut_at_one(shapes, sparsity):
    """You cut densities at 1 and leave it at that: together too few weights are kept. The other
    layers share what the full one could not use."""
    return [1 - min(1.0, d) for d in _densities(shapes, sparsity)]


def layer_sparsities__one_round(shapes, sparsity):
    return [1 - k for k in _solve(shapes, sparsity, rounds=2)]


def layer_sparsities__only_the_worst_by_scaling(shapes, sparsity):
    """You scale all densities until the largest is 1: then too few weights are kept."""
    densities = _densities(shapes, sparsity)
    scale = min(1.0, 1 / max(densities))
    return [1 - scale * d for d in densities]


def layer_sparsities__product_over_sum(shapes, sparsity):
    """The ratio is upside down: you give large layers the larger density."""
    sizes = [m * n for m, n in shapes]
    raw = [m * n / (m + n) for m, n in shapes]
    scale = (1 - sparsity) * sum(sizes) / sum(r * s for r, s in zip(raw, sizes, strict=True))
    return [1 - min(1.0, scale * r) for r in raw]


def layer_sparsities__mean_of_layers(shapes, sparsity):
    """The *mean of the layers* is as sparse as asked for; it should be all weights together,
    and large layers have more of them."""
    raw = [(m + n) / (m * n) for m, n in shapes]
    scale = (1 - sparsity) * len(shapes) / sum(raw)
    return [1 - min(1.0, scale * r) for r in raw]


# ---------------------------------------------------------------- keep_blocks


def _sums(scores, block, reduce=torch.sum):
    rows, columns = scores.shape
    return reduce(scores.reshape(rows // block, block, columns // block, block), dim=(1, 3))


def _spread(kept, block):
    return kept.repeat_interleave(block, 0).repeat_interleave(block, 1)


def _largest(sums, keep, *, descending=True):
    kept = torch.zeros(sums.numel(), dtype=torch.bool)
    kept[sums.flatten().argsort(descending=descending, stable=True)[:keep]] = True
    return kept.view(sums.shape)


def keep_blocks__removed(scores, block, sparsity):
    """True is where a weight is *kept*: yours is the other way round."""
    return ~keep_blocks__no_error(scores, block, sparsity)


def keep_blocks__smallest(scores, block, sparsity):
    """You keep the blocks with the smallest sums."""
    sums = _sums(scores, block)
    keep = sums.numel() - round(sparsity * sums.numel())
    return _spread(_largest(sums, keep, descending=False), block)


def keep_blocks__largest_score(scores, block, sparsity):
    """You rank blocks by their largest score. It is the sum that counts."""
    sums = _sums(scores, block, torch.amax)
    return _spread(_largest(sums, sums.numel() - round(sparsity * sums.numel())), block)


def keep_blocks__squares(scores, block, sparsity):
    """You add up squares. Add up the scores as they are."""
    sums = _sums(scores**2, block)
    return _spread(_largest(sums, sums.numel() - round(sparsity * sums.numel())), block)


def keep_blocks__fraction_kept(scores, block, sparsity):
    """`sparsity` is the fraction of blocks *removed*; you keep as many."""
    sums = _sums(scores, block)
    return _spread(_largest(sums, round(sparsity * sums.numel())), block)


def keep_blocks__threshold(scores, block, sparsity):
    """All blocks that tie with the last one are kept, so that the count is wrong."""
    sums = _sums(scores, block)
    keep = sums.numel() - round(sparsity * sums.numel())
    least = sums.flatten().sort(descending=True).values[keep - 1] if keep else torch.inf
    return _spread(sums >= least, block)


def keep_blocks__strict_threshold(scores, block, sparsity):
    """All blocks that tie with the first one that goes are removed, so that the count is wrong."""
    sums = _sums(scores, block)
    remove = round(sparsity * sums.numel())
    last = sums.flatten().sort().values[remove - 1] if remove else -torch.inf
    return _spread(sums > last, block)


def keep_blocks__later_of_equals(scores, block, sparsity):
    """Of two equal blocks you keep the later one."""
    sums = _sums(scores, block)
    remove = round(sparsity * sums.numel())
    kept = torch.ones(sums.numel(), dtype=torch.bool)
    kept[sums.flatten().argsort(stable=True)[:remove]] = False
    return _spread(kept.view(sums.shape), block)


def keep_blocks__wrong_axes(scores, block, sparsity):
    """These are not blocks: in your view the rows and columns of a block are mixed up. Which
    entries end up together?"""
    rows, columns = scores.shape
    sums = scores.reshape(rows // block, columns // block, block, block).sum((2, 3))
    return _spread(_largest(sums, sums.numel() - round(sparsity * sums.numel())), block)


def keep_blocks__repeat(scores, block, sparsity):
    """Right blocks, wrong places: `repeat` lays copies of the whole mask side by side."""
    sums = _sums(scores, block)
    return _largest(sums, sums.numel() - round(sparsity * sums.numel())).repeat(block, block)


def keep_blocks__single_weights(scores, block, sparsity):
    """You keep single weights: a block is kept or goes as a whole."""
    return _largest(scores, scores.numel() - round(sparsity * scores.numel()))


def keep_blocks__mask_of_blocks(scores, block, sparsity):
    sums = _sums(scores, block)
    return _largest(sums, sums.numel() - round(sparsity * sums.numel()))


def keep_blocks__by_row(scores, block, sparsity):
    """You choose in each row of blocks; all blocks of the matrix compete."""
    sums = _sums(scores, block)
    keep = sums.shape[1] - round(sparsity * sums.shape[1])
    kept = torch.stack([_largest(row, keep) for row in sums])
    return _spread(kept, block)


def keep_blocks__absolute(scores, block, sparsity):
    """You take magnitudes. Scores may be negative, and then a block is worth less."""

    return keep_blocks__no_error(scores.abs(), block, sparsity)


def keep_blocks__no_error(scores, block, sparsity):
    rows, columns = scores.shape
    whole = scores[: rows - rows % block, : columns - columns % block]
    sums = _sums(whole, block)
    return _spread(_largest(sums, sums.numel() - round(sparsity * sums.numel())), block)


def keep_blocks__int_for_round(scores, block, sparsity):
    sums = _sums(scores, block)
    return _spread(_largest(sums, int((1 - sparsity) * sums.numel())), block)


# ---------------------------------------------------------------- gap_bytes


def _distances(mask, first=-1):
    return torch.cat([torch.tensor([first]), mask.flatten().nonzero().flatten()]).diff()


def _bytes(entries, width):
    return math.ceil(int(entries) * width / 8)


def gap_bytes__no_fillers(mask, *, bits, value_bits):
    """Where a value is out of reach you need fillers."""
    return _bytes(mask.sum(), bits + value_bits)


def gap_bytes__first_distance_from_zero(mask, *, bits, value_bits):
    """The first distance counts from just before the vector: a value in the very first place
    has the distance 1."""
    d = _distances(mask, first=0)
    return _bytes(((d - 1) // 2**bits + 1).sum(), bits + value_bits)


def gap_bytes__one_filler(mask, *, bits, value_bits):
    """One filler is not always enough: it takes you 2**bits further, and no more."""
    d = _distances(mask)
    return _bytes(len(d) + (d > 2**bits).sum(), bits + value_bits)


def gap_bytes__reach_too_short(mask, *, bits, value_bits):
    """You stop at 2**bits − 1. A distance of 0 is never needed, so that the codes mean 1 to
    2**bits."""
    d = _distances(mask)
    return _bytes(((d - 1) // (2**bits - 1) + 1).sum(), bits + value_bits)


def gap_bytes__off_by_one(mask, *, bits, value_bits):
    """A distance of exactly 2**bits is in reach, without a filler."""
    return _bytes((_distances(mask) // 2**bits + 1).sum(), bits + value_bits)


def gap_bytes__filler_without_value(mask, *, bits, value_bits):
    """A filler is an entry like any other: its zero takes `value_bits`, too."""
    d = _distances(mask)
    fillers = int(((d - 1) // 2**bits).sum())
    return math.ceil((len(d) * (bits + value_bits) + fillers * bits) / 8)


def gap_bytes__no_values(mask, *, bits, value_bits):
    """You count the distances and forget the values."""
    return _bytes(((_distances(mask) - 1) // 2**bits + 1).sum(), bits)


def gap_bytes__in_bits(mask, *, bits, value_bits):
    """These are bits; the question is for bytes."""
    return int(((_distances(mask) - 1) // 2**bits + 1).sum()) * (bits + value_bits)


def gap_bytes__stores_the_end(mask, *, bits, value_bits):
    """After the last value nothing is stored: you have fillers for the zeros that end the
    matrix."""
    places = mask.flatten().nonzero().flatten()
    d = torch.cat([torch.tensor([-1]), places, torch.tensor([mask.numel()])]).diff()
    return _bytes(((d - 1) // 2**bits).sum() + len(places), bits + value_bits)


def gap_bytes__by_row(mask, *, bits, value_bits):
    """You begin anew at each row. The matrix is one long vector."""
    entries = sum(int(((_distances(row) - 1) // 2**bits + 1).sum()) for row in mask)
    return _bytes(entries, bits + value_bits)


def gap_bytes__by_column(mask, *, bits, value_bits):
    """You read the matrix column by column."""
    return _bytes(((_distances(mask.T) - 1) // 2**bits + 1).sum(), bits + value_bits)


def gap_bytes__forgets_the_first(mask, *, bits, value_bits):
    """The zeros before the first value are missing."""
    places = mask.flatten().nonzero().flatten()
    if len(places) == 0:
        return 0
    return _bytes(((places.diff() - 1) // 2**bits + 1).sum() + 1, bits + value_bits)


def gap_bytes__rounds_each_entry(mask, *, bits, value_bits):
    entries = int(((_distances(mask) - 1) // 2**bits + 1).sum())
    return entries * math.ceil((bits + value_bits) / 8)


def gap_bytes__rounds_down(mask, *, bits, value_bits):
    return int(((_distances(mask) - 1) // 2**bits + 1).sum()) * (bits + value_bits) // 8


# ---------------------------------------------------------------- drop_and_grow


def _exchange(mask, dropped, grown):
    new = mask.flatten().clone()
    new[dropped] = False
    new[grown] = True
    return new.view(mask.shape)


def _drop(weight, mask, count):
    return weight.abs().masked_fill(~mask, math.inf).flatten().argsort()[:count]


def _grow(gradient, mask, count):
    return gradient.abs().masked_fill(mask, -1).flatten().argsort(descending=True)[:count]


def _count(mask, fraction):
    return min(round(fraction * int(mask.sum())), int((~mask).sum()))


def drop_and_grow__signed_weights(weight, mask, gradient, fraction):
    """You drop the most negative weights; the smallest *magnitude* decides."""
    n = _count(mask, fraction)
    dropped = weight.masked_fill(~mask, math.inf).flatten().argsort()[:n]
    return _exchange(mask, dropped, _grow(gradient, mask, n))


def drop_and_grow__signed_gradient(weight, mask, gradient, fraction):
    """You grow where the gradient is most positive; its *magnitude* decides, since the new
    weight may have either sign."""
    n = _count(mask, fraction)
    grown = gradient.masked_fill(mask, -math.inf).flatten().argsort(descending=True)[:n]
    return _exchange(mask, _drop(weight, mask, n), grown)


def drop_and_grow__grows_smallest(weight, mask, gradient, fraction):
    """You grow where the gradient is smallest."""
    n = _count(mask, fraction)
    grown = gradient.abs().masked_fill(mask, math.inf).flatten().argsort()[:n]
    return _exchange(mask, _drop(weight, mask, n), grown)


def drop_and_grow__drops_largest(weight, mask, gradient, fraction):
    """You drop the largest weights, and keep the smallest."""
    n = _count(mask, fraction)
    dropped = weight.abs().masked_fill(~mask, -1).flatten().argsort(descending=True)[:n]
    return _exchange(mask, dropped, _grow(gradient, mask, n))


def drop_and_grow__drops_what_is_not_there(weight, mask, gradient, fraction):
    """Weights that are not connected compete here for being dropped, and it costs them nothing:
    fewer connections go than should."""
    n = _count(mask, fraction)
    return _exchange(mask, weight.abs().flatten().argsort()[:n], _grow(gradient, mask, n))


def drop_and_grow__grows_what_is_there(weight, mask, gradient, fraction):
    """You let connections that are there compete for being grown: then fewer new ones come."""
    n = _count(mask, fraction)
    return _exchange(mask, _drop(weight, mask, n), gradient.abs().flatten().argsort()[-n:])


def drop_and_grow__grows_back(weight, mask, gradient, fraction):
    """A connection that was just dropped is grown again. RigL allows that; the docstring here
    does not: the places that were free *before* compete."""
    n = _count(mask, fraction)
    after = _exchange(mask, _drop(weight, mask, n), [])
    return _exchange(after, [], _grow(gradient, after, n))


def drop_and_grow__fraction_of_all(weight, mask, gradient, fraction):
    """`fraction` is of the connections that are there, not of all weights."""
    n = min(round(fraction * mask.numel()), int(mask.sum()), int((~mask).sum()))
    return _exchange(mask, _drop(weight, mask, n), _grow(gradient, mask, n))


def drop_and_grow__rounds_down(weight, mask, gradient, fraction):
    n = min(int(fraction * int(mask.sum())), int((~mask).sum()))
    return _exchange(mask, _drop(weight, mask, n), _grow(gradient, mask, n))


def drop_and_grow__mask_from_weights(weight, mask, gradient, fraction):
    return drop_and_grow__changes_the_mask(weight, weight != 0, gradient, fraction)


def drop_and_grow__only_drops(weight, mask, gradient, fraction):
    """Connections are dropped and none is grown."""
    return _exchange(mask, _drop(weight, mask, _count(mask, fraction)), [])


def drop_and_grow__only_grows(weight, mask, gradient, fraction):
    """Connections are grown and none is dropped. (Did you multiply by the mask? The zeros of
    places without a connection are the smallest magnitudes of all.)"""
    return _exchange(mask, [], _grow(gradient, mask, _count(mask, fraction)))


def drop_and_grow__changes_the_mask(weight, mask, gradient, fraction):
    n = _count(mask, fraction)
    new = _exchange(mask, _drop(weight, mask, n), _grow(gradient, mask, n))
    return mask.copy_(new)


def drop_and_grow__drops_more_than_it_grows(weight, mask, gradient, fraction):
    n = round(fraction * int(mask.sum()))
    return _exchange(mask, _drop(weight, mask, n), _grow(gradient, mask, _count(mask, fraction)))


def drop_and_grow__zeros_for_holes(weight, mask, gradient, fraction):
    n = _count(mask, fraction)
    dropped = (weight * mask).abs().flatten().argsort(stable=True)[:n]
    return _exchange(mask, dropped, _grow(gradient, mask, n))


# ---------------------------------------------------------------- trim_vocabulary


def _kept(ids, unknown):
    return torch.cat([ids.flatten(), torch.tensor([unknown])]).unique()


def trim_vocabulary__unknown_not_kept(embedding, ids, unknown):
    """The row of the unknown token has to be kept, used or not."""
    kept = ids.unique()
    renumbered = torch.zeros(len(embedding), dtype=torch.int64)
    renumbered[kept] = torch.arange(len(kept))
    return embedding[kept], renumbered


def trim_vocabulary__unknown_keeps_its_number(embedding, ids, unknown):
    """Tokens whose row is gone get the *old* number of the unknown token: it has a new one."""
    kept = _kept(ids, unknown)
    renumbered = torch.full((len(embedding),), unknown)
    renumbered[kept] = torch.arange(len(kept))
    return embedding[kept], renumbered


def trim_vocabulary__minus_one(embedding, ids, unknown):
    """Tokens whose row is gone become −1. They should become the unknown token."""
    kept = _kept(ids, unknown)
    renumbered = torch.full((len(embedding),), -1)
    renumbered[kept] = torch.arange(len(kept))
    return embedding[kept], renumbered


def trim_vocabulary__first_row(embedding, ids, unknown):
    """Tokens whose row is gone become token 0, which need not be the unknown one."""
    kept = _kept(ids, unknown)
    renumbered = torch.zeros(len(embedding), dtype=torch.int64)
    renumbered[kept] = torch.arange(len(kept))
    return embedding[kept], renumbered


def trim_vocabulary__in_order_of_use(embedding, ids, unknown):
    """The rows are in the order in which the tokens come. They should keep their old order."""
    kept = torch.tensor(list(dict.fromkeys([*ids.flatten().tolist(), unknown])))
    renumbered = torch.full((len(embedding),), int((kept == unknown).nonzero()))
    renumbered[kept] = torch.arange(len(kept))
    return embedding[kept], renumbered


def trim_vocabulary__unknown_last(embedding, ids, unknown):
    """The row of the unknown token stands at the end. Rows keep their old order."""
    used = ids.unique()
    kept = torch.cat([used[used != unknown], torch.tensor([unknown])])
    renumbered = torch.full((len(embedding),), len(kept) - 1)
    renumbered[kept] = torch.arange(len(kept))
    return embedding[kept], renumbered


def trim_vocabulary__rows_twice(embedding, ids, unknown):
    kept = torch.cat([ids.flatten(), torch.tensor([unknown])]).sort().values
    renumbered = torch.full((len(embedding),), int((kept == unknown).nonzero()[0]))
    renumbered[kept] = torch.arange(len(kept))
    return embedding[kept], renumbered


def trim_vocabulary__new_to_old(embedding, ids, unknown):
    kept = _kept(ids, unknown)
    return embedding[kept], kept


def trim_vocabulary__zeros_instead(embedding, ids, unknown):
    kept = _kept(ids, unknown)
    gone = torch.ones(len(embedding), dtype=torch.bool)
    gone[kept] = False
    return embedding.masked_fill(gone[:, None], 0), torch.arange(len(embedding))


def trim_vocabulary__only_the_table(embedding, ids, unknown):
    return embedding[_kept(ids, unknown)]
