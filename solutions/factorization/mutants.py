"""Typical mistakes in the exercises on factorization, and what the instant check says of each.

A function is called after its exercise and its mistake; its docstring is the sentence for the
student, which names the mistake and never tells the answer. Those without a docstring are caught
by hidden inputs only, or by a shape or type: there is nothing to say about them on SHOWN inputs.
"""

import math

import torch

# ---------------------------------------------------------------- energy_rank


def _rank(values, fraction, *, keep=torch.square, enough=torch.ge):
    """The first rank whose part of what `keep` makes of the values is enough of it."""
    kept = keep(values.double()).cumsum(0)
    reached = enough(kept, fraction * kept[-1])
    return int((~reached).sum()) + 1


def _stored(rank, shape):
    return min(rank * sum(shape), math.prod(shape))


def _both(rank, shape):
    return rank, _stored(rank, shape)


def energy_rank__values_added(singular_values, fraction, *, shape):
    """You add up the singular values as they are. The energy is made of their squares."""
    return _both(_rank(singular_values, fraction, keep=lambda s: s), shape)


def energy_rank__index(singular_values, fraction, *, shape):
    """Your rank is one too small: a place counted from 0 is not yet a number of values."""
    return _both(_rank(singular_values, fraction) - 1, shape)


def energy_rank__more_than_enough(singular_values, fraction, *, shape):
    """A rank that keeps exactly the fraction is enough. You want more than that."""
    values = singular_values
    return _both(min(_rank(values, fraction, enough=torch.gt), len(values)), shape)


def energy_rank__fraction_dropped(singular_values, fraction, *, shape):
    """You take the fraction for what may be lost. It is what is to be kept."""
    return _both(_rank(singular_values, 1 - fraction), shape)


def energy_rank__share_of_the_values(singular_values, fraction, *, shape):
    """You keep a fraction of the *number* of values. They are not of one size."""
    return _both(math.ceil(fraction * len(singular_values)), shape)


def energy_rank__share_of_the_largest(singular_values, fraction, *, shape):
    """You compare each value with the largest one. What counts is what the first ones have
    together."""
    limit = (1 - fraction) * singular_values[0]
    return _both(max(1, int((singular_values > limit).sum())), shape)


def energy_rank__root_of_the_energy(singular_values, fraction, *, shape):
    """You compare norms, which are roots of energies. The fraction is one of the energy itself."""
    return _both(_rank(singular_values, fraction**2), shape)


def energy_rank__no_zeros(singular_values, fraction, *, shape):
    """A matrix of zeros has no energy to divide by; its rank here is 1."""
    kept = singular_values.double().square().cumsum(0)
    share = kept / kept[-1]
    return _both(int((share < fraction).sum()) + 1 if kept[-1] > 0 else 0, shape)


def energy_rank__always_factors(singular_values, fraction, *, shape):
    """The rank is right. But you store two factors even where they have more numbers than the
    matrix."""
    rank = _rank(singular_values, fraction)
    return rank, rank * sum(shape)


def energy_rank__one_factor(singular_values, fraction, *, shape):
    """The rank is right. You count the numbers of one factor only."""
    rank = _rank(singular_values, fraction)
    return rank, min(rank * shape[0], math.prod(shape))


def energy_rank__with_a_diagonal(singular_values, fraction, *, shape):
    """The rank is right. You store the singular values, too: they are in the factors already."""
    rank = _rank(singular_values, fraction)
    return rank, min(rank * (sum(shape) + 1), math.prod(shape))


def energy_rank__always_the_matrix(singular_values, fraction, *, shape):
    """The rank is right. The numbers are those of the whole matrix, whatever the rank is."""
    return _rank(singular_values, fraction), math.prod(shape)


def energy_rank__in_float32(singular_values, fraction, *, shape):
    kept = singular_values.float().square().cumsum(0)
    return _both(int((kept < fraction * kept[-1]).sum()) + 1, shape)


# ---------------------------------------------------------------- shared_factor


def _cut(matrix, rank):
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def _highest(weights, budget):
    rows, columns = sum(len(w) for w in weights), weights[0].shape[1]
    rank = min(budget // (rows + columns), rows, columns)
    if rank < 1:
        raise ValueError("the budget is too small")
    return rank


def _apart(stacked, weights):
    return list(stacked.split([len(w) for w in weights]))


def _shared(weights, rank):
    return _apart(_cut(torch.cat(weights), rank), weights), rank


def _project(weights, source, rank):
    """All layers with the leading directions of `source` as the right factor."""
    right = torch.linalg.svd(source, full_matrices=False).Vh[:rank]
    return [w @ right.T @ right for w in weights], rank


def shared_factor__each_its_own(weights, *, budget):
    """Each layer has a right factor of its own here. They are to have the same."""
    rank = _highest(weights, budget)
    return [_cut(w, rank) for w in weights], rank


def shared_factor__of_the_first(weights, *, budget):
    """The right factor is the best one for the first layer. It has to serve all of them."""
    return _project(weights, weights[0], _highest(weights, budget))


def shared_factor__of_the_sum(weights, *, budget):
    """You add the layers up before you decompose them: then they may cancel, and what they have in
    common is not seen."""
    rank = _highest(weights, budget)
    height = max(len(w) for w in weights)
    padded = [torch.nn.functional.pad(w, (0, 0, 0, height - len(w))) for w in weights]
    return _project(weights, sum(padded), rank)


def shared_factor__side_by_side(weights, *, budget):
    """You put the layers side by side. Then they share the *left* factor, which makes outputs; what
    they have in common is what they read."""
    rank, width = _highest(weights, budget), weights[0].shape[1]
    height = max(len(w) for w in weights)
    padded = [torch.nn.functional.pad(w, (0, 0, 0, height - len(w))) for w in weights]
    parts = _cut(torch.cat(padded, 1), rank).split(width, 1)
    return [part[: len(w)] for part, w in zip(parts, weights, strict=True)], rank


def shared_factor__no_singular_values(weights, *, budget):
    """The singular values are missing from the product."""
    rank = _highest(weights, budget)
    u, _, vh = torch.linalg.svd(torch.cat(weights), full_matrices=False)
    return _apart(u[:, :rank] @ vh[:rank], weights), rank


def shared_factor__right_counted_for_each(weights, *, budget):
    """You count the right factor once for each layer. There is only one."""
    cost = sum(sum(w.shape) for w in weights)
    if budget < cost:
        raise ValueError("the budget is too small")
    return _shared(weights, min(budget // cost, *torch.cat(weights).shape))


def shared_factor__right_for_nothing(weights, *, budget):
    """You do not count the numbers of the right factor."""
    stacked = torch.cat(weights)
    rank = min(budget // len(stacked), *stacked.shape)
    if rank < 1:
        raise ValueError("the budget is too small")
    return _shared(weights, rank)


def shared_factor__left_of_one(weights, *, budget):
    """You count the left factor of one layer. Each has its own."""
    stacked = torch.cat(weights)
    rank = min(budget // sum(weights[0].shape), *stacked.shape)
    if rank < 1:
        raise ValueError("the budget is too small")
    return _shared(weights, rank)


def shared_factor__rounded_up(weights, *, budget):
    """Your rank costs more than the budget: round down."""
    stacked = torch.cat(weights)
    rank = min(math.ceil(budget / sum(stacked.shape)), *stacked.shape)
    if budget < sum(stacked.shape):
        raise ValueError("the budget is too small")
    return _shared(weights, rank)


def shared_factor__rank_without_end(weights, *, budget):
    """The products are right. The rank is one that no matrix of this shape has: it cannot be higher
    than the number of its rows or columns."""
    rank = _highest(weights, budget)
    return _shared(weights, rank)[0], budget // sum(torch.cat(weights).shape)


def shared_factor__at_least_one(weights, *, budget):
    """A budget that does not allow rank 1 has to raise a ValueError. You take rank 1 all the
    same, or give back what is no product at all."""
    stacked = torch.cat(weights)
    return _shared(weights, max(1, min(budget // sum(stacked.shape), *stacked.shape)))


def shared_factor__not_taken_apart(weights, *, budget):
    rank = _highest(weights, budget)
    return _cut(torch.cat(weights), rank), rank


def shared_factor__rank_alone(weights, *, budget):
    return _highest(weights, budget)


# ---------------------------------------------------------------- refit_factors


def _best_left(weight, right, hessian):
    read = right @ hessian
    return torch.linalg.solve(read @ right.T, read @ weight.T).T


def _best_right(weight, left):
    return torch.linalg.solve(left.T @ left, left.T @ weight)


def _turns(weight, right, hessian, rounds, *, to_left=_best_left, to_right=_best_right):
    for _ in range(rounds):
        left = to_left(weight, right, hessian)
        right = to_right(weight, left)
    return left, right


def refit_factors__nearest_weights(weight, right, hessian, *, rounds):
    """Your factors come near to the *weight*: the Hessian has no say in them. The outputs are to
    be near."""
    alike = torch.eye(len(hessian), dtype=hessian.dtype)
    return _turns(weight, right, alike, rounds)


def refit_factors__diagonal(weight, right, hessian, *, rounds):
    """You take the diagonal of the Hessian alone. That says how large inputs are, and not how
    they go together."""
    return _turns(weight, right, hessian.diagonal().diag(), rounds)


def refit_factors__hessian_of_the_wrong_half(weight, right, hessian, *, rounds):
    """In the equations for the left factor the Hessian stands on one side only."""

    def to_left(weight, right, hessian):
        return torch.linalg.solve(right @ right.T, right @ hessian @ weight.T).T

    return _turns(weight, right, hessian, rounds, to_left=to_left)


def refit_factors__hessian_for_the_right(weight, right, hessian, *, rounds):
    """The right factor is not the best one. The Hessian stands on both sides of its equations, so
    that it should cancel."""

    def to_right(weight, left):
        return torch.linalg.solve(left.T @ left, left.T @ weight @ hessian)

    return _turns(weight, right, hessian, rounds, to_right=to_right)


def refit_factors__inverse_hessian(weight, right, hessian, *, rounds):
    """You have the inverse of the Hessian where it itself belongs."""
    return _turns(weight, right, torch.linalg.inv(hessian), rounds)


def refit_factors__hessian_squared(weight, right, hessian, *, rounds):
    """The Hessian comes in twice. It is made of products of two inputs already: it needs no
    square."""
    return _turns(weight, right, hessian @ hessian, rounds)


def refit_factors__not_solved(weight, right, hessian, *, rounds):
    """There is no system solved: you multiply by the transpose, which would do if the rows of the
    right factor were orthonormal."""
    return _turns(weight, right, hessian, rounds, to_left=lambda w, r, h: w @ h @ r.T)


def refit_factors__left_alone(weight, right, hessian, *, rounds):
    """The left factor is the best for the right one that was given; the right one has not
    changed."""
    return _best_left(weight, right, hessian), right.clone()


def refit_factors__begins_anew(weight, right, hessian, *, rounds):
    """All your rounds begin with the right factor that was given: a round has to begin with that of
    the round before."""
    return _turns(weight, right, hessian, 1)


def refit_factors__one_round_too_many(weight, right, hessian, *, rounds):
    """You do one round too many."""
    return _turns(weight, right, hessian, rounds + 1)


def refit_factors__left_once_more(weight, right, hessian, *, rounds):
    """At the end you fit the left factor once more. A round ends with the right one."""
    _, right = _turns(weight, right, hessian, rounds)
    return _best_left(weight, right, hessian), right


def refit_factors__at_the_same_time(weight, right, hessian, *, rounds):
    """The right factor is fitted to an older left one. It has to see the one that was just
    made."""
    older = _best_left(weight, right, hessian)
    for _ in range(rounds):
        left, right = _best_left(weight, right, hessian), _best_right(weight, older)
        older = left
    return _best_left(weight, right, hessian), right


def refit_factors__exchanged(weight, right, hessian, *, rounds):
    """The right factor comes first here. The left one is wanted first."""
    return _turns(weight, right, hessian, rounds)[::-1]


def refit_factors__left_transposed(weight, right, hessian, *, rounds):
    left, right = _turns(weight, right, hessian, rounds)
    return left.T, right


def refit_factors__product(weight, right, hessian, *, rounds):
    left, right = _turns(weight, right, hessian, rounds)
    return left @ right


def refit_factors__in_place(weight, right, hessian, *, rounds):
    """The numbers are right, but you change the factor that you were given: work on a copy."""
    left, new = _turns(weight, right, hessian, rounds)
    return left, right.copy_(new)


# ---------------------------------------------------------------- two_sided_svd


def _sided(weight, front, back, rank):
    """front @ weight @ back cut to the rank, and both taken off again."""
    cut = _cut(front @ weight @ back, rank)
    return torch.linalg.inv(front) @ cut @ torch.linalg.inv(back)


def two_sided_svd__inputs_alone(weight, outputs, inputs, rank):
    """Only the inputs are weighed here: that is whitening. The outputs count, too."""
    alike = torch.eye(len(outputs), dtype=outputs.dtype)
    return _sided(weight, alike, torch.linalg.cholesky(inputs), rank)


def two_sided_svd__outputs_alone(weight, outputs, inputs, rank):
    """Only the outputs are weighed here."""
    alike = torch.eye(len(inputs), dtype=inputs.dtype)
    return _sided(weight, torch.linalg.cholesky(outputs).T, alike, rank)


def two_sided_svd__plain(weight, outputs, inputs, rank):
    """Neither side is weighed: this is the truncated singular value decomposition of the
    weight."""
    return _cut(weight, rank)


def two_sided_svd__diagonals(weight, outputs, inputs, rank):
    """You take the diagonals alone. What goes together is in the other entries."""
    front, back = (matrix.diagonal().sqrt().diag() for matrix in (outputs, inputs))
    return _sided(weight, front, back, rank)


def two_sided_svd__no_roots(weight, outputs, inputs, rank):
    """You multiply by the matrices themselves. A sum of squares has their roots in it."""
    return _sided(weight, outputs, inputs, rank)


def two_sided_svd__outputs_not_transposed(weight, outputs, inputs, rank):
    """On the side of the outputs the Cholesky factor stands the wrong way round. Which of E.T @ L
    and E.T @ L.T is in the trace?"""
    front, back = torch.linalg.cholesky(outputs), torch.linalg.cholesky(inputs)
    return _sided(weight, front, back, rank)


def two_sided_svd__inputs_transposed(weight, outputs, inputs, rank):
    """On the side of the inputs the Cholesky factor stands the wrong way round."""
    front, back = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs).T
    return _sided(weight, front, back, rank)


def two_sided_svd__both_turned(weight, outputs, inputs, rank):
    """Both Cholesky factors stand the wrong way round."""
    front, back = torch.linalg.cholesky(outputs), torch.linalg.cholesky(inputs).T
    return _sided(weight, front, back, rank)


def two_sided_svd__inverse_roots(weight, outputs, inputs, rank):
    """You divide by the roots before you cut, and multiply after it: so what matters most is cut
    first."""
    front = torch.linalg.inv(torch.linalg.cholesky(outputs).T)
    back = torch.linalg.inv(torch.linalg.cholesky(inputs))
    return _sided(weight, front, back, rank)


def two_sided_svd__not_undone(weight, outputs, inputs, rank):
    """The result is still in the units in which you cut it: undo them on both sides."""
    front, back = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs)
    return _cut(front @ weight @ back, rank)


def two_sided_svd__outputs_not_undone(weight, outputs, inputs, rank):
    """The units of the outputs are not undone."""
    front, back = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs)
    return front @ _sided(weight, front, back, rank)


def two_sided_svd__inputs_not_undone(weight, outputs, inputs, rank):
    """The units of the inputs are not undone."""
    front, back = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs)
    return _sided(weight, front, back, rank) @ back


def two_sided_svd__undone_by_the_transpose(weight, outputs, inputs, rank):
    """You undo the units with a transpose. A Cholesky factor is not orthogonal: its inverse is
    something else."""
    front, back = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs)
    return front.T @ _cut(front @ weight @ back, rank) @ back.T


def two_sided_svd__no_singular_values(weight, outputs, inputs, rank):
    """The singular values are missing from the product."""
    front, back = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs)
    u, _, vh = torch.linalg.svd(front @ weight @ back, full_matrices=False)
    return torch.linalg.inv(front) @ u[:, :rank] @ vh[:rank] @ torch.linalg.inv(back)


def two_sided_svd__exchanged(weight, outputs, inputs, rank):
    """You have outputs and inputs exchanged. `outputs` belongs to the rows of the weight."""
    if len(outputs) != len(inputs):
        return _sided(weight, torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs), rank)
    return _sided(weight, torch.linalg.cholesky(inputs).T, torch.linalg.cholesky(outputs), rank)


def two_sided_svd__one_rank_too_many(weight, outputs, inputs, rank):
    """The rank of your result is one too high."""
    front, back = torch.linalg.cholesky(outputs).T, torch.linalg.cholesky(inputs)
    return _sided(weight, front, back, rank + 1)


# ---------------------------------------------------------------- merge_adapters


def _fix_signs(b, a):
    largest = a.gather(1, a.abs().argmax(1, keepdim=True))
    signs = torch.where(largest < 0, -1, 1)
    return b * signs.T, a * signs


def _stack(adapters, *, front=lambda scale: scale, back=lambda scale: 1.0):
    b = torch.cat([front(scale) * lora_b for lora_b, _, scale in adapters], 1)
    return b, torch.cat([back(scale) * lora_a for _, lora_a, scale in adapters])


def _parts(b, a, rank):
    """Leading left and right singular vectors of b @ a, and the values."""
    (left, b), (right, a) = torch.linalg.qr(b), torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(b @ a.T)
    return left @ u[:, :rank], s[:rank], vh[:rank] @ right.T


def _merge(b, a, rank):
    u, s, vh = _parts(b, a, rank)
    return _fix_signs(u * s.sqrt(), s.sqrt()[:, None] * vh)


def merge_adapters__no_scale(adapters, rank):
    """The scales of the adapters are missing."""
    return _merge(*_stack(adapters, front=lambda scale: 1.0), rank)


def merge_adapters__scale_on_both_sides(adapters, rank):
    """The scale of an adapter comes in twice, with lora_b and with lora_a."""
    return _merge(*_stack(adapters, back=lambda scale: scale), rank)


def merge_adapters__mean(adapters, rank):
    """You take the mean of the updates. The sum is wanted."""
    b, a = _stack(adapters)
    return _merge(b / len(adapters), a, rank)


def merge_adapters__factors_added(adapters, rank):
    """You add the lora_b to each other, and the lora_a. The product of sums has terms that mix
    two adapters; put them side by side instead."""
    most = max(lora_a.shape[0] for _, lora_a, _ in adapters)
    pad = torch.nn.functional.pad
    b = sum(scale * pad(lora_b, (0, most - lora_b.shape[1])) for lora_b, _, scale in adapters)
    a = sum(pad(lora_a, (0, 0, 0, most - len(lora_a))) for _, lora_a, _ in adapters)
    b, a = _merge(b, a, min(rank, most))
    return pad(b, (0, rank - b.shape[1])), pad(a, (0, 0, 0, rank - len(a)))


def merge_adapters__first_columns(adapters, rank):
    """You keep the first columns of lora_b and the first rows of lora_a, as they stand. In an
    adapter they are in no order."""
    b, a = _stack(adapters)
    return _merge(b[:, :rank], a[:rank], rank)


def merge_adapters__longest_columns(adapters, rank):
    """You keep the columns and rows that are longest. They are not orthogonal, so that what is
    longest together is something else."""
    b, a = _stack(adapters)
    order = (b.norm(dim=0) * a.norm(dim=1)).argsort(descending=True)[:rank]
    return _merge(b[:, order], a[order], rank)


def merge_adapters__cut_one_by_one(adapters, rank):
    """You cut each adapter to the rank before you add them up. The sum is to be cut, once."""
    cut = [
        (*_merge(scale * b, a, min(rank, len(a)) - (len(a) > 1)), 1.0) for b, a, scale in adapters
    ]
    b, a = _stack(cut)
    rank_left = min(rank, len(a))
    b, a = _merge(b, a, rank_left)
    pad = torch.nn.functional.pad
    return pad(b, (0, rank - rank_left)), pad(a, (0, 0, 0, rank - rank_left))


def merge_adapters__one_factor_orthogonal(adapters, rank):
    """You decompose lora_b alone, as if the rows of lora_a were orthonormal."""
    b, a = _stack(adapters)
    u, s, vh = torch.linalg.svd(b, full_matrices=False)
    s, rest = s[:rank].sqrt(), vh[:rank] @ a
    return _fix_signs(u[:, :rank] * s, s[:, None] * rest)


def merge_adapters__values_on_the_left(adapters, rank):
    """The update is right. But the singular values are all in lora_b: their root belongs to each
    side."""
    u, s, vh = _parts(*_stack(adapters), rank)
    return _fix_signs(u * s, vh)


def merge_adapters__values_on_the_right(adapters, rank):
    """The update is right. But the singular values are all in lora_a: their root belongs to each
    side."""
    u, s, vh = _parts(*_stack(adapters), rank)
    return _fix_signs(u, s[:, None] * vh)


def merge_adapters__values_on_both_sides(adapters, rank):
    """The singular values are on both sides, so that the product has them twice."""
    u, s, vh = _parts(*_stack(adapters), rank)
    return _fix_signs(u * s, s[:, None] * vh)


def merge_adapters__no_values(adapters, rank):
    """The singular values are missing."""
    u, _, vh = _parts(*_stack(adapters), rank)
    return _fix_signs(u, vh)


def merge_adapters__smallest(adapters, rank):
    """You keep the smallest singular values, or have them in the wrong order."""
    b, a = _stack(adapters)
    most = min(b.shape[0], b.shape[1], a.shape[1])
    b, a = _merge(b, a, most)
    return b[:, -rank:].flip(1), a[-rank:].flip(0)


def merge_adapters__signs(adapters, rank):
    """The update is right, and so is the order. The signs are not those of `fix_signs`."""
    b, a = _merge(*_stack(adapters), rank)
    return -b, -a


def merge_adapters__exchanged(adapters, rank):
    """You give back lora_a first. lora_b is wanted first."""
    return _merge(*_stack(adapters), rank)[::-1]


def merge_adapters__update(adapters, rank):
    b, a = _merge(*_stack(adapters), rank)
    return b @ a


# ---------------------------------------------------------------- band_table


def _check(table, bands):
    if sum(size for size, _ in bands) != len(table):
        raise ValueError("the bands do not fit the table")


def _order(counts):
    return counts.argsort(descending=True, stable=True)


def _bands(table, order, bands, *, cut=_cut):
    """The rows of the table after each band was cut, and how many numbers are stored."""
    width, rebuilt, numbers = table.shape[1], table.clone(), 0
    for rows, (size, rank) in zip(order.split([size for size, _ in bands]), bands, strict=True):
        if rank * (size + width) < size * width:
            rebuilt[rows] = cut(table[rows], rank)
            numbers += rank * (size + width)
        else:
            numbers += size * width
    return rebuilt, numbers


def _whole(table, counts, bands):
    _check(table, bands)
    rebuilt, numbers = _bands(table, _order(counts), bands)
    return rebuilt, 4 * (numbers + len(table))


def band_table__rarest_first(table, counts, bands):
    """Your first band has the *rarest* tokens."""
    _check(table, bands)
    rebuilt, numbers = _bands(table, counts.argsort(stable=True), bands)
    return rebuilt, 4 * (numbers + len(table))


def band_table__as_numbered(table, counts, bands):
    """The bands are cut in the order of the table. The counts decide."""
    _check(table, bands)
    rebuilt, numbers = _bands(table, torch.arange(len(table)), bands)
    return rebuilt, 4 * (numbers + len(table))


def band_table__equal_counts_turned(table, counts, bands):
    """Of tokens that occur equally often, the one with the smaller number comes first. You have
    them in another order."""
    _check(table, bands)
    order = counts.flip(0).argsort(descending=True, stable=True)
    rebuilt, numbers = _bands(table, len(table) - 1 - order, bands)
    return rebuilt, 4 * (numbers + len(table))


def band_table__left_sorted(table, counts, bands):
    """The rows stand in the order of the bands. Put them back to where they were."""
    rebuilt, size = _whole(table, counts, bands)
    return rebuilt[_order(counts)], size


def band_table__put_back_wrongly(table, counts, bands):
    """You put the rows back with the order by which you took them out. The way back is the inverse
    of it."""
    rebuilt, size = _whole(table, counts, bands)
    order = _order(counts)
    return rebuilt[order][order], size


def band_table__cut_together(table, counts, bands):
    """You decompose the whole table, and give each band its rank of that. Each band is to have a
    decomposition of its own."""
    _, stored = _whole(table, counts, bands)
    u, s, vh = torch.linalg.svd(table, full_matrices=False)
    rebuilt, width = table.clone(), table.shape[1]
    for rows, (size, rank) in zip(_order(counts).split([n for n, _ in bands]), bands, strict=True):
        if rank * (size + width) < size * width:
            rebuilt[rows] = u[rows][:, :rank] * s[:rank] @ vh[:rank]
    return rebuilt, stored


def band_table__weighted(table, counts, bands):
    """Within a band, rows that occur more often count more here. They should all count the
    same."""
    _check(table, bands)
    order = _order(counts)
    scale = (counts + 1).double().sqrt()[:, None]
    rebuilt, numbers = _bands(table * scale, order, bands)
    return rebuilt / scale, 4 * (numbers + len(table))


def band_table__centred(table, counts, bands):
    """You take the mean of a band off before you decompose it, and do not store it."""

    def cut(rows, rank):
        return _cut(rows - rows.mean(0), rank) + rows.mean(0)

    _check(table, bands)
    rebuilt, numbers = _bands(table, _order(counts), bands, cut=cut)
    return rebuilt, 4 * (numbers + len(table))


def band_table__always_factors(table, counts, bands):
    """You factorize a band even where that saves nothing. There its rows stay as they are."""
    _check(table, bands)
    rebuilt, numbers, width = table.clone(), 0, table.shape[1]
    for rows, (size, rank) in zip(_order(counts).split([n for n, _ in bands]), bands, strict=True):
        rebuilt[rows] = _cut(table[rows], rank)
        numbers += rank * (size + width)
    return rebuilt, 4 * (numbers + len(table))


def band_table__equal_is_factorized(table, counts, bands):
    """Factors that have *as many* numbers as the rows save nothing either."""
    _check(table, bands)
    rebuilt, numbers, width = table.clone(), 0, table.shape[1]
    for rows, (size, rank) in zip(_order(counts).split([n for n, _ in bands]), bands, strict=True):
        if rank * (size + width) <= size * width:
            rebuilt[rows] = _cut(table[rows], rank)
        numbers += min(rank * (size + width), size * width)
    return rebuilt, 4 * (numbers + len(table))


def band_table__by_rank_alone(table, counts, bands):
    """You leave a band as it is only if its rank is the width. Factors can be too large below that,
    too."""
    _check(table, bands)
    rebuilt, numbers, width = table.clone(), 0, table.shape[1]
    for rows, (size, rank) in zip(_order(counts).split([n for n, _ in bands]), bands, strict=True):
        if rank < min(size, width):
            rebuilt[rows] = _cut(table[rows], rank)
            numbers += rank * (size + width)
        else:
            numbers += size * width
    return rebuilt, 4 * (numbers + len(table))


def band_table__numbers(table, counts, bands):
    """The rows are right. You give back how many numbers are stored; bytes are wanted."""
    rebuilt, size = _whole(table, counts, bands)
    return rebuilt, size // 4


def band_table__places_for_nothing(table, counts, bands):
    """The rows are right. But you do not count what tells where the row of a token is."""
    rebuilt, size = _whole(table, counts, bands)
    return rebuilt, size - 4 * len(table)


def band_table__projections_for_nothing(table, counts, bands):
    """The rows are right. But the projections of the bands are not counted."""
    rebuilt, size = _whole(table, counts, bands)
    width = table.shape[1]
    saved = sum(rank * width for n, rank in bands if rank * (n + width) < n * width)
    return rebuilt, size - 4 * saved


def band_table__one_projection(table, counts, bands):
    """The rows are right. You count one projection; each band that is factorized has its own."""
    rebuilt, size = _whole(table, counts, bands)
    width = table.shape[1]
    own = [rank * width for n, rank in bands if rank * (n + width) < n * width]
    return rebuilt, size - 4 * (sum(own) - max(own, default=0))


def band_table__no_error(table, counts, bands):
    """Bands that leave tokens out, or have too many, have to raise a ValueError."""
    if sum(size for size, _ in bands) == len(table):
        return _whole(table, counts, bands)
    return table.clone(), 4 * (table.numel() + len(table))


def band_table__in_place(table, counts, bands):
    """The numbers are right, but you change the table that you were given: work on a copy."""
    rebuilt, size = _whole(table, counts, bands)
    return table.copy_(rebuilt), size
