"""Typical mistakes in the exercises on attention, and what the instant check says of each.

A function is called after its exercise and its mistake; its docstring is the sentence for the
student, which names the mistake and never tells the answer. Those without a docstring are caught
by hidden inputs only, or by a shape or type: there is nothing to say about them on SHOWN inputs.
"""

import math

import torch
from torch.nn import functional as F

# ---------------------------------------------------------------- merge_parts


def _merged(outputs, log_totals, shares):
    """With these shares, (parts, queries), and no trouble from parts without keys."""
    outputs = outputs.masked_fill(log_totals[..., None] == -torch.inf, 0)
    return (shares[..., None] * outputs).sum(0)


def _shares(log_totals):
    return log_totals.softmax(0).nan_to_num(0)


def merge_parts__mean(outputs, log_totals):
    """You take the mean of the outputs. A part counts as much as the sum of its e^score is
    large."""
    seen = (log_totals > -torch.inf).double()
    shares = seen / seen.sum(0).clamp(min=1)
    return _merged(outputs, log_totals, shares), log_totals.logsumexp(0)


def merge_parts__logarithms_as_weights(outputs, log_totals):
    """You weigh with the log totals. It is the totals themselves that say how much a part
    counts."""
    return _merged(outputs, log_totals, log_totals / log_totals.sum(0)), log_totals.logsumexp(0)


def merge_parts__softmax_over_queries(outputs, log_totals):
    """Your softmax goes over the queries. It is the parts of one query that share its attention."""
    shares = log_totals.softmax(1).nan_to_num(0)
    return _merged(outputs, log_totals, shares), log_totals.logsumexp(0)


def merge_parts__not_divided(outputs, log_totals):
    """You add up the numerators, and do not divide by the sum of all totals."""
    return _merged(outputs, log_totals, log_totals.exp()), log_totals.logsumexp(0)


def merge_parts__divided_by_the_parts(outputs, log_totals):
    """Your shares do not add up to 1: you divide by the number of parts once more."""
    shares = _shares(log_totals) / len(outputs)
    return _merged(outputs, log_totals, shares), log_totals.logsumexp(0)


def merge_parts__other_way_round(outputs, log_totals):
    """A part with a larger total gets a smaller share."""
    return _merged(outputs, log_totals, (-log_totals).softmax(0)), log_totals.logsumexp(0)


def merge_parts__largest_part(outputs, log_totals):
    """You keep the part with the largest total alone."""
    shares = F.one_hot(log_totals.argmax(0), len(outputs)).T.double()
    return _merged(outputs, log_totals, shares), log_totals.logsumexp(0)


def merge_parts__half_and_half(outputs, log_totals):
    """You merge one part after another, half of what there was and half of the new one. What there
    was has a total, too, which grows."""
    found = outputs[0]
    for part in outputs[1:]:
        found = (found + part) / 2
    return found, log_totals.logsumexp(0)


def merge_parts__overflow(outputs, log_totals):
    """The exponential of a log total is too large for a number, or 0. Take something out of the
    exponents first."""
    totals = log_totals.exp()
    shares = totals / totals.sum(0)
    return _merged(outputs, log_totals, shares), totals.sum(0).log()


def merge_parts__one_shift_for_all(outputs, log_totals):
    """You take the largest log total of all queries out of the exponents. For a query whose log
    totals lie far below it nothing is left: each needs its own."""
    top = log_totals.max()
    totals = (log_totals - top).exp()
    shares = totals / totals.sum(0)
    return _merged(outputs, log_totals, shares), totals.sum(0).log() + top


def merge_parts__nan_stays(outputs, log_totals):
    """A part in which the query sees no key makes the result nan: 0 times nan is nan."""
    return (_shares(log_totals)[..., None] * outputs).sum(0), log_totals.logsumexp(0)


def merge_parts__nothing_at_all(outputs, log_totals):
    """For a query that sees no key at all your result is nan: you divide 0 by 0, or take -inf from
    -inf."""
    return _merged(outputs, log_totals, log_totals.softmax(0)), log_totals.logsumexp(0)


def merge_parts__largest_log_total(outputs, log_totals):
    """The output is right. For the log total you take the largest of the parts."""
    return _merged(outputs, log_totals, _shares(log_totals)), log_totals.amax(0)


def merge_parts__sum_of_logarithms(outputs, log_totals):
    """The output is right. For the log total you add up logarithms, which would multiply the
    totals."""
    return _merged(outputs, log_totals, _shares(log_totals)), log_totals.sum(0)


def merge_parts__mean_of_logarithms(outputs, log_totals):
    """The output is right. For the log total you take the mean of the parts."""
    return _merged(outputs, log_totals, _shares(log_totals)), log_totals.mean(0)


def merge_parts__no_logarithm(outputs, log_totals):
    """The output is right. The second result is the total: its logarithm is wanted."""
    return _merged(outputs, log_totals, _shares(log_totals)), log_totals.exp().sum(0)


def merge_parts__shift_forgotten(outputs, log_totals):
    """The output is right. What you took out of the exponents is missing in the log total."""
    log_total = (log_totals - log_totals.amax(0).nan_to_num(neginf=0)).logsumexp(0)
    return _merged(outputs, log_totals, _shares(log_totals)), log_total


def merge_parts__output_alone(outputs, log_totals):
    return _merged(outputs, log_totals, _shares(log_totals))


# ---------------------------------------------------------------- plan_tiles


def _pattern(time, sinks, window):
    """All pairs, for small texts."""
    behind = torch.arange(time)[:, None] - torch.arange(time)
    return (behind >= 0) & ((behind < window) | (torch.arange(time) < sinks))


def _plan(pattern, tile):
    """0, 1 or 2 for each tile of a pattern."""
    rows = []
    for block in pattern.split(tile):
        row = []
        for part in block.split(tile, 1):
            row.append(int(part.any()) + int(part.all()))
        rows.append(row)
    return torch.tensor(rows)


def _ends(time, tile):
    first = torch.arange(0, time, tile)
    return first, (first + tile).clamp(max=time) - 1


def _both(some, every):
    return some.long() + (some & every).long()


def plan_tiles__later_tokens(time, *, sinks, window, tile):
    """You compute tiles that lie in the future. No token sees a later one."""
    behind = torch.arange(time)[:, None] - torch.arange(time)
    return _plan((behind < window) | (torch.arange(time) < sinks), tile)


def plan_tiles__later_sinks(time, *, sinks, window, tile):
    """A tile of sinks that come later than its queries is computed. Nobody sees a later token, and
    be it a sink."""
    sink = torch.arange(time) < sinks
    return _plan(_pattern(time, 0, window) | sink, tile)


def plan_tiles__both_sides(time, *, sinks, window, tile):
    """Your window reaches to both sides. A token sees none that comes later."""
    behind = (torch.arange(time)[:, None] - torch.arange(time)).abs()
    sink = (torch.arange(time) < sinks) & torch.ones(time, time).tril().bool()
    return _plan((behind < window) | sink, tile)


def plan_tiles__diagonal_whole(time, *, sinks, window, tile):
    """A tile on the diagonal has later keys in it: it needs a mask."""
    plan = _plan(_pattern(time, sinks, window), tile)
    plan.fill_diagonal_(2)
    return plan


def plan_tiles__diagonal_masked(time, *, sinks, window, tile):
    """A tile on the diagonal needs no mask if it has one token alone."""
    return _plan(_pattern(time, sinks, window), tile).fill_diagonal_(1)


def plan_tiles__window_too_long(time, *, sinks, window, tile):
    """Your window has one token too many: it counts the token itself."""
    return _plan(_pattern(time, sinks, window + 1), tile)


def plan_tiles__window_too_short(time, *, sinks, window, tile):
    """Your window has one token too few."""
    return _plan(_pattern(time, sinks, window - 1), tile)


def plan_tiles__no_sinks(time, *, sinks, window, tile):
    """The sinks are missing: all later tokens see them."""
    return _plan(_pattern(time, 0, window), tile)


def plan_tiles__whole_blocks_of_sinks(time, *, sinks, window, tile):
    """You look at blocks that have sinks alone. A tile with one sink in it has to be computed, too,
    with a mask."""
    return _plan(_pattern(time, sinks // tile * tile, window), tile)


def plan_tiles__sinks_rounded_up(time, *, sinks, window, tile):
    """You take all tokens of a block for sinks if one of them is. The others need a mask."""
    return _plan(_pattern(time, -(-sinks // tile) * tile, window), tile)


def plan_tiles__one_sink_too_many(time, *, sinks, window, tile):
    """You have one sink too many."""
    return _plan(_pattern(time, sinks + 1, window), tile)


def plan_tiles__sinks_or_window(time, *, sinks, window, tile):
    """A tile of which some keys are sinks and all others lie in the window needs no mask: all of
    its pairs are allowed."""
    first, last = _ends(time, tile)
    some = (first <= last[:, None]) & ((first[:, None] - last < window) | (first < sinks))
    every = (last <= first[:, None]) & ((last < sinks) | (last[:, None] - first < window))
    return _both(some, every)


def plan_tiles__first_query_for_all(time, *, sinks, window, tile):
    """You ask whether the *first* query of a tile sees all keys. The last one is farther away."""
    first, last = _ends(time, tile)
    some = (first <= last[:, None]) & ((first[:, None] - last < window) | (first < sinks))
    outside = first.clamp(min=sinks)
    every = (last <= first[:, None]) & ((outside > last) | (first[:, None] - outside < window))
    return _both(some, every)


def plan_tiles__last_key_for_all(time, *, sinks, window, tile):
    """A tile in the past that is needed is without a mask for you. The window may end within it."""
    first, last = _ends(time, tile)
    some = (first <= last[:, None]) & ((first[:, None] - last < window) | (first < sinks))
    return _both(some, last <= first[:, None])


def plan_tiles__last_query_for_some(time, *, sinks, window, tile):
    """You leave out a tile because its *last* query does not see it any more, or because its
    *first* key lies before the window. Other pairs of it may be allowed."""
    first, last = _ends(time, tile)
    some = (first <= last[:, None]) & ((last[:, None] - last < window) | (first < sinks))
    return _both(some, _plan(_pattern(time, sinks, window), tile) == 2)


def plan_tiles__last_block_is_full(time, *, sinks, window, tile):
    """You take the last block to be as long as the others. It ends with the text, and then a tile
    may need no mask."""
    blocks = -(-time // tile)
    return _plan(_pattern(blocks * tile, sinks, window), tile)


def plan_tiles__no_last_block(time, *, sinks, window, tile):
    """The last block is missing, which is shorter than the others."""
    blocks = time // tile
    return _plan(_pattern(time, sinks, window), tile)[:blocks, :blocks]


def plan_tiles__keys_before_queries(time, *, sinks, window, tile):
    """Rows and columns are exchanged: rows are blocks of queries."""
    return _plan(_pattern(time, sinks, window), tile).T


def plan_tiles__one_is_whole(time, *, sinks, window, tile):
    """1 and 2 are exchanged: 2 is a tile that needs no mask."""
    plan = _plan(_pattern(time, sinks, window), tile)
    return torch.where(plan > 0, 3 - plan, 0)


def plan_tiles__pairs(time, *, sinks, window, tile):
    """You give back how many pairs of a tile are allowed. One of the numbers 0, 1 and 2 is
    wanted."""
    pattern = _pattern(time, sinks, window)
    rows = [[part.sum() for part in rows.split(tile, 1)] for rows in pattern.split(tile)]
    return torch.tensor(rows)


def plan_tiles__never_two(time, *, sinks, window, tile):
    """You never give back 2: a tile in which all pairs are allowed needs no mask."""
    return _plan(_pattern(time, sinks, window), tile).clamp(max=1)


def plan_tiles__all_pairs_in_memory(time, *, sinks, window, tile):
    if time > 100_000:
        raise MemoryError(f"a matrix of {time:,} times {time:,}")
    return _plan(_pattern(time, sinks, window), tile)


# ---------------------------------------------------------------- keep_heavy


def _weights(scores):
    """The softmax of all scores with tokens that are no later."""
    past = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    return scores.double().masked_fill(~past, -torch.inf).softmax(-1)


def _keep(
    scores,
    kv_heads,
    budget,
    recent,
    *,
    pay=lambda row, held: row.masked_fill(~held[:, None], -torch.inf).softmax(-1).sum(1),
    gather=torch.add,
    worth=lambda account, age: account,
    split=lambda scores, kv_heads: scores.unflatten(0, (kv_heads, -1)),
    forever=True,
):
    """The solution, with parts that can be exchanged."""
    time = scores.shape[-1]
    shared = split(scores.double(), kv_heads)
    account = torch.zeros(kv_heads, time).double()
    held = torch.zeros(kv_heads, time, dtype=torch.bool)
    pattern = torch.zeros(kv_heads, time, time, dtype=torch.bool)
    for t in range(time):
        age = t - torch.arange(time).double()
        while held.any() and int(held[0].sum()) >= budget:
            costs = worth(account, age).masked_fill(~held, torch.inf)
            costs[:, max(t - recent, 0) :] = torch.inf
            held[torch.arange(kv_heads), costs.argmin(1)] = False
        held[:, t] = True
        account = gather(account, pay(shared[:, :, t], held))
        pattern[:, t] = held
    return pattern


def keep_heavy__window(scores, *, kv_heads, budget, recent):
    """You keep the last keys. Beyond those that are safe it is the accounts that decide."""
    time = scores.shape[-1]
    behind = torch.arange(time)[:, None] - torch.arange(time)
    return ((behind >= 0) & (behind < budget)).expand(kv_heads, -1, -1)


def keep_heavy__all_keys(scores, *, kv_heads, budget, recent):
    """Your softmax goes over all keys of the past. What was dropped cannot be attended to any more:
    its share goes to the others."""
    weights = _weights(scores)

    def split(scores, kv_heads):
        return weights.unflatten(0, (kv_heads, -1))

    return _keep(scores, kv_heads, budget, recent, split=split, pay=lambda row, held: row.sum(1))


def keep_heavy__future(scores, *, kv_heads, budget, recent):
    """Keys of later tokens are paid, too. There is no such key yet."""

    def pay(row, held):
        later = torch.arange(row.shape[-1]) > held.long().cumsum(1).argmax(1)[:, None]
        return row.masked_fill(~(held | later)[:, None], -torch.inf).softmax(-1).sum(1)

    return _keep(scores, kv_heads, budget, recent, pay=pay)


def keep_heavy__scores(scores, *, kv_heads, budget, recent):
    """You add up scores. It is attention weights that are paid, after the softmax."""

    def pay(row, held):
        return row.masked_fill(~held[:, None], 0).sum(1)

    return _keep(scores, kv_heads, budget, recent, pay=pay)


def keep_heavy__last_payment(scores, *, kv_heads, budget, recent):
    """Your account has what the last token paid, and nothing of before."""
    return _keep(scores, kv_heads, budget, recent, gather=lambda account, paid: paid)


def keep_heavy__mean(scores, *, kv_heads, budget, recent):
    """You divide an account by how long the key has been there. It is the sum that counts."""

    def worth(account, age):
        return account / age.clamp(min=1)

    return _keep(scores, kv_heads, budget, recent, worth=worth)


def keep_heavy__largest_payment(scores, *, kv_heads, budget, recent):
    """Your account has the largest payment of all tokens. Payments are added up."""
    return _keep(scores, kv_heads, budget, recent, gather=torch.maximum)


def keep_heavy__drops_the_heaviest(scores, *, kv_heads, budget, recent):
    """You drop the key with the largest account."""
    return _keep(scores, kv_heads, budget, recent, worth=lambda account, age: -account)


def keep_heavy__own_not_paid(scores, *, kv_heads, budget, recent):
    """What a token pays to its own key is missing in the account."""

    def pay(row, held):
        paid = row.masked_fill(~held[:, None], -torch.inf).softmax(-1).sum(1)
        newest = held.long().cumsum(1).argmax(1)
        return paid.scatter(1, newest[:, None], 0.0)

    return _keep(scores, kv_heads, budget, recent, pay=pay)


def keep_heavy__first_head_pays(scores, *, kv_heads, budget, recent):
    """Of the query heads that share a cache, one alone pays. All of them do."""

    def pay(row, held):
        return row[:, 0].masked_fill(~held, -torch.inf).softmax(-1)

    return _keep(scores, kv_heads, budget, recent, pay=pay)


def keep_heavy__mean_of_scores(scores, *, kv_heads, budget, recent):
    """You put the scores of the query heads together before the softmax. Each head has a softmax of
    its own."""

    def pay(row, held):
        return row.mean(1).masked_fill(~held, -torch.inf).softmax(-1)

    return _keep(scores, kv_heads, budget, recent, pay=pay)


def keep_heavy__largest_of_the_heads(scores, *, kv_heads, budget, recent):
    """You take the largest payment of the query heads that share a cache. The sum is wanted."""

    def pay(row, held):
        return row.masked_fill(~held[:, None], -torch.inf).softmax(-1).amax(1)

    return _keep(scores, kv_heads, budget, recent, pay=pay)


def keep_heavy__every_second_head(scores, *, kv_heads, budget, recent):
    """You deal the query heads out to the caches one by one. It is neighbours that share a
    cache."""

    def split(scores, kv_heads):
        return scores.unflatten(0, (-1, kv_heads)).transpose(0, 1)

    return _keep(scores, kv_heads, budget, recent, split=split)


def keep_heavy__one_cache(scores, *, kv_heads, budget, recent):
    """All caches drop the same key. Each has accounts of its own."""
    return _keep(scores, 1, budget, recent).expand(kv_heads, -1, -1)


def keep_heavy__a_cache_for_each_head(scores, *, kv_heads, budget, recent):
    """Each query head has a cache of its own. There are `kv_heads` caches, which heads share."""
    return _keep(scores, len(scores), budget, recent)


def keep_heavy__nothing_safe(scores, *, kv_heads, budget, recent):
    """You drop tokens that are safe: the last `recent` ones."""
    return _keep(scores, kv_heads, budget, 0)


def keep_heavy__one_safe_too_few(scores, *, kv_heads, budget, recent):
    """One token too few is safe: the last `recent` ones are those *before* the new one."""
    return _keep(scores, kv_heads, budget, max(recent - 1, 0))


def keep_heavy__one_safe_too_many(scores, *, kv_heads, budget, recent):
    """One token too many is safe."""
    return _keep(scores, kv_heads, budget, min(recent + 1, budget - 1))


def keep_heavy__one_key_too_many(scores, *, kv_heads, budget, recent):
    """A token sees more than `budget` keys: the cache drops one before the new key joins."""
    return _keep(scores, kv_heads, budget + 1, recent)


def keep_heavy__one_key_too_few(scores, *, kv_heads, budget, recent):
    """A token sees fewer than `budget` keys, its own included."""
    return _keep(scores, kv_heads, max(budget - 1, 1), min(recent, max(budget - 2, 0)))


def keep_heavy__latest_of_equals(scores, *, kv_heads, budget, recent):
    """Of keys with the same account you drop the latest. The earliest is to be dropped."""
    return _keep(scores, kv_heads, budget, recent, worth=lambda account, age: account + 1e-9 * age)


def keep_heavy__dropped_comes_back(scores, *, kv_heads, budget, recent):
    """A key that was dropped is back later. What is dropped is gone."""
    account = _weights(scores).unflatten(0, (kv_heads, -1)).sum(1).cumsum(1)
    time = scores.shape[-1]
    pattern = torch.zeros(kv_heads, time, time, dtype=torch.bool)
    for t in range(time):
        pattern[:, t, max(t - recent, 0) : t + 1] = True
        others = account[:, t - 1, : max(t - recent, 0)]
        count = min(budget - 1 - recent, others.shape[1])
        best = others.topk(count).indices if count > 0 else others[:, :0].long()
        pattern[:, t].scatter_(1, best, True)
    return pattern


def keep_heavy__weights(scores, *, kv_heads, budget, recent):
    pattern = _keep(scores, kv_heads, budget, recent)
    return pattern.double() / pattern.sum(-1, keepdim=True)


# ---------------------------------------------------------------- renumber


def _turn(keys, angles, *, sign=1):
    x, y = keys.double().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([x * cos - y * sin, sign * (x * sin) + y * cos], dim=-1).to(keys.dtype)


def _places(positions):
    return (positions[:, :, None] > positions[:, None]).sum(-1)


def _angles(steps, frequencies):
    return steps.double()[..., None] * frequencies.double()


def renumber__new_position_alone(keys, positions, frequencies):
    """You turn the keys by the angle of the new position. They have been turned for the old one
    already."""
    return _turn(keys, _angles(_places(positions), frequencies))


def renumber__old_position_alone(keys, positions, frequencies):
    """You turn the keys back, all of them to position 0. The new position is missing."""
    return _turn(keys, _angles(-positions, frequencies))


def renumber__both_added(keys, positions, frequencies):
    """You turn by the old and the new position together. The old one has to be taken back."""
    return _turn(keys, _angles(_places(positions) + positions, frequencies))


def renumber__wrong_direction(keys, positions, frequencies):
    """You turn the keys in the wrong direction: they end up even farther from position 0."""
    return _turn(keys, _angles(positions - _places(positions), frequencies))


def renumber__neighbours_are_pairs(keys, positions, frequencies):
    """Your pairs are numbers that stand next to each other. Numbers i and i + dim / 2 are a
    pair."""
    angles = _angles(_places(positions) - positions, frequencies)
    found = _turn(torch.cat([keys[..., ::2], keys[..., 1::2]], -1), angles)
    return torch.stack(found.chunk(2, -1), -1).flatten(-2)


def renumber__a_mirror(keys, positions, frequencies):
    """What you do to a pair is no turn: one of the signs is wrong."""
    return _turn(keys, _angles(_places(positions) - positions, frequencies), sign=-1)


def renumber__order_in_memory(keys, positions, frequencies):
    """You number the keys as they lie in memory. The order of the text is wanted."""
    places = torch.arange(positions.shape[1]).expand_as(positions)
    return _turn(keys, _angles(places - positions, frequencies))


def renumber__one_argsort(keys, positions, frequencies):
    """Your `argsort` says which key is the first in the text, and which the second. The place of
    each key is wanted."""
    return _turn(keys, _angles(positions.argsort(1) - positions, frequencies))


def renumber__order_reversed(keys, positions, frequencies):
    """The last key of the text is at position 0 with you. The first one has to be there."""
    places = positions.shape[1] - 1 - _places(positions)
    return _turn(keys, _angles(places - positions, frequencies))


def renumber__sorted(keys, positions, frequencies):
    """You give the keys back in the order of the text. They have to stay in the order in which they
    came."""
    found = _turn(keys, _angles(_places(positions) - positions, frequencies))
    order = positions.argsort(1)[..., None].expand_as(found)
    return found.gather(1, order)


def renumber__from_one(keys, positions, frequencies):
    """Your positions begin with 1."""
    return _turn(keys, _angles(_places(positions) + 1 - positions, frequencies))


def renumber__one_step_for_all(keys, positions, frequencies):
    """You move all keys of a head by the same number of positions. The gaps between them have to
    close, too."""
    first = positions.amin(1, keepdim=True).expand_as(positions)
    return _turn(keys, _angles(-first, frequencies))


def renumber__first_head_for_all(keys, positions, frequencies):
    """All heads are moved like the first. Each holds tokens of its own."""
    steps = (_places(positions) - positions)[:1].expand_as(positions)
    return _turn(keys, _angles(steps, frequencies))


def renumber__all_heads_together(keys, positions, frequencies):
    """You number the keys of all heads together. Each head begins with 0."""
    places = _places(positions.flatten()[None])[0].view_as(positions)
    return _turn(keys, _angles(places - positions, frequencies))


def renumber__float32(keys, positions, frequencies):
    """Your angles are computed in float32. Of an angle of millions, what is left after full turns
    has no correct digit there."""
    angles = (_places(positions) - positions).float()[..., None] * frequencies.float()
    return _turn(keys, angles)


def renumber__one_frequency(keys, positions, frequencies):
    """All pairs are turned by the first frequency. Each pair has its own."""
    return _turn(keys, _angles(_places(positions) - positions, frequencies[:1]))


def renumber__places(keys, positions, frequencies):
    return _places(positions)


# ---------------------------------------------------------------- features_needed


def _squares(query, key):
    """of q + k, and of q - k."""
    return [(query[:, None] + s * key).square().sum(-1) for s in (1, -1)]


def _positive(a):
    return a + (-torch.expm1(-a)).log()


def _waves(b):
    return b - math.log(2) + 2 * (-torch.expm1(-b)).log()


def _logs(positive, waves, error, *, power=2, base=10.0):
    return tuple((x - power * math.log(error)) / math.log(base) for x in (positive, waves))


def features_needed__exchanged(query, key, *, error):
    """The two results are exchanged: positive features come first."""
    a, b = _squares(query, key)
    return _logs(_waves(b), _positive(a), error)


def features_needed__sum_and_difference(query, key, *, error):
    """You have ‖q − k‖ where ‖q + k‖ belongs, and the other way round."""
    a, b = _squares(query, key)
    return _logs(_positive(b), _waves(a), error)


def features_needed__natural_logarithm(query, key, *, error):
    """You give back the natural logarithm. That to the base 10 is wanted."""
    a, b = _squares(query, key)
    return _logs(_positive(a), _waves(b), error, base=math.e)


def features_needed__no_logarithm(query, key, *, error):
    """You give back the numbers of directions themselves. Their logarithm to the base 10 is
    wanted."""
    a, b = _squares(query, key)
    return tuple(10**x for x in _logs(_positive(a), _waves(b), error))


def features_needed__error_not_squared(query, key, *, error):
    """The error falls with the square root of the number of directions: you divide by the error
    once, instead of twice."""
    a, b = _squares(query, key)
    return _logs(_positive(a), _waves(b), error, power=1)


def features_needed__no_error(query, key, *, error):
    """Your result does not depend on the error that is asked for."""
    a, b = _squares(query, key)
    return _logs(_positive(a), _waves(b), 1.0)


def features_needed__standard_deviation(query, key, *, error):
    """You have the standard deviation where the variance belongs."""
    a, b = _squares(query, key)
    return _logs(_positive(a) / 2, _waves(b) / 2, error)


def features_needed__mean_of_the_square(query, key, *, error):
    """You take the mean of the square for the variance: the square of the mean has to be
    subtracted."""
    a, b = _squares(query, key)
    return _logs(a, b + (1 + (-2 * b).exp()).log() - math.log(2), error)


def features_needed__absolute_error(query, key, *, error):
    """Your error is absolute. It is to be measured in units of e^(q · k)."""
    a, b = _squares(query, key)
    size = 2 * query @ key.T
    return _logs(_positive(a) + size, _waves(b) + size, error)


def features_needed__divided_once(query, key, *, error):
    """You divide the variance by e^(q · k). It is the square of that by which a variance has to be
    divided."""
    a, b = _squares(query, key)
    size = query @ key.T
    return _logs(_positive(a) + size, _waves(b) + size, error)


def features_needed__half_the_square(query, key, *, error):
    """You have ‖u‖² / 2 in the exponent of the mean of the square. The square of e^(w·u) is that of
    a vector which is twice as long, and that has four times the square."""
    a, b = _squares(query, key)
    return _logs(_positive(a / 2), _waves(b / 2), error)


def features_needed__not_squared(query, key, *, error):
    """You use lengths where their squares belong."""
    a, b = _squares(query, key)
    return _logs(_positive(a.sqrt()), _waves(b.sqrt()), error)


def features_needed__waves_not_halved(query, key, *, error):
    """The positive features are right. For waves your number is twice as large: the mean of a
    squared cosine is about one half. (It is directions that are counted, not features.)"""
    a, b = _squares(query, key)
    return _logs(_positive(a), _waves(b) + math.log(2), error)


def features_needed__waves_like_positive(query, key, *, error):
    """The positive features are right. For waves you have the same formula with ‖q − k‖. But the
    mean of a squared cosine has two parts."""
    a, b = _squares(query, key)
    return _logs(_positive(a), _positive(b), error)


def features_needed__waves_large_only(query, key, *, error):
    """The positive features are right. For waves you leave out what is small if q and k are far
    apart. It counts where they are near."""
    a, b = _squares(query, key)
    return _logs(_positive(a), b - math.log(2), error)


def features_needed__overflow(query, key, *, error):
    """For long vectors your number is infinite. Take the largest exponential out before you take
    the logarithm."""
    a, b = _squares(query, key)
    return _logs(torch.expm1(a).log(), (2 * torch.sinh(b / 2).square()).log(), error)


def features_needed__small_are_lost(query, key, *, error):
    """Where q and k are nearly the same, or nearly opposite, your digits are lost: 1 is subtracted
    from something that is hardly more."""
    a, b = _squares(query, key)
    return _logs(a + (1 - (-a).exp()).log(), b - math.log(2) + 2 * (1 - (-b).exp()).log(), error)


def features_needed__cancelled(query, key, *, error):
    """Where q and k are long, and nearly the same or nearly opposite, your digits are lost: you
    subtract large numbers that are nearly equal."""
    sizes = query.square().sum(1)[:, None] + key.square().sum(1)
    a, b = ((sizes + s * query @ key.T).clamp(min=0) for s in (2, -2))
    return _logs(_positive(a), _waves(b), error)


def features_needed__keys_before_queries(query, key, *, error):
    """Rows and columns are exchanged: a row belongs to a query."""
    a, b = _squares(key, query)
    return _logs(_positive(a), _waves(b), error)


def features_needed__rounded_up(query, key, *, error):
    """You round the numbers of directions up. They are wanted as they are."""
    a, b = _squares(query, key)
    return tuple((10**x).ceil().log10() for x in _logs(_positive(a), _waves(b), error))


def features_needed__one_kind(query, key, *, error):
    a, b = _squares(query, key)
    return _logs(_positive(a), _waves(b), error)[0]


# ---------------------------------------------------------------- least_squares_step


def _new(inverse, key, decay):
    """Gain and new inverse."""
    read = inverse @ key
    gain = read / (decay + key @ read)
    return gain, (inverse - torch.outer(gain, read)) / decay


def least_squares_step__sum(state, inverse, key, value, *, decay):
    """You add key ⊗ value to the state. That is linear attention: what the state reads for the key
    already has to be taken into account."""
    return state + torch.outer(key, value), _new(inverse, key, decay)[1]


def least_squares_step__delta(state, inverse, key, value, *, decay):
    """You correct along the key, as the delta rule does. Other keys are disturbed then: the
    direction in which to go depends on all of them."""
    return state + torch.outer(key, value - key @ state), _new(inverse, key, decay)[1]


def least_squares_step__nothing_is_read(state, inverse, key, value, *, decay):
    """The direction is right. But you add the value itself: what the state reads for the key
    already has to be subtracted."""
    gain, inverse = _new(inverse, key, decay)
    return state + torch.outer(gain, value), inverse


def least_squares_step__sign(state, inverse, key, value, *, decay):
    """You correct in the wrong direction: from the new value to what is read."""
    gain, inverse = _new(inverse, key, decay)
    return state + torch.outer(gain, key @ state - value), inverse


def least_squares_step__state_fades(state, inverse, key, value, *, decay):
    """You multiply the state by the decay. A decay changes how much earlier pairs count, not the
    values that are read for them."""
    gain, inverse = _new(inverse, key, decay)
    return decay * state + torch.outer(gain, value - decay * key @ state), inverse


def least_squares_step__state_alone_fades(state, inverse, key, value, *, decay):
    """You multiply the state by the decay after the value was compared with it. It does not fade at
    all."""
    gain, inverse = _new(inverse, key, decay)
    return decay * state + torch.outer(gain, value - key @ state), inverse


def least_squares_step__no_decay(state, inverse, key, value, *, decay):
    """The decay is missing."""
    gain, inverse = _new(inverse, key, 1.0)
    return state + torch.outer(gain, value - key @ state), inverse


def least_squares_step__inverse_does_not_grow(state, inverse, key, value, *, decay):
    """The state is right. The inverse has to be divided by the decay: what counts less leaves more
    room."""
    gain, new = _new(inverse, key, decay)
    return state + torch.outer(gain, value - key @ state), decay * new


def least_squares_step__inverse_shrinks(state, inverse, key, value, *, decay):
    """The state is right. You multiply the inverse by the decay. It is the matrix under it that is
    multiplied."""
    gain, new = _new(inverse, key, decay)
    return state + torch.outer(gain, value - key @ state), decay**2 * new


def least_squares_step__one_below(state, inverse, key, value, *, decay):
    """Your gain has 1 + keyᵀ · inverse · key below the line. With a decay, something has to be done
    to the inverse there, too."""
    read = inverse @ key
    gain = read / (1 + key @ read)
    state = state + torch.outer(gain, value - key @ state)
    return state, (inverse - torch.outer(gain, read)) / decay


def least_squares_step__not_divided(state, inverse, key, value, *, decay):
    """You go in the direction of the *old* inverse times the key, which is too far."""
    gain = inverse @ key
    return state + torch.outer(gain, value - key @ state), _new(inverse, key, decay)[1]


def least_squares_step__divided_twice(state, inverse, key, value, *, decay):
    """Your gain is divided twice: the new inverse times the key is the gain already."""
    gain, new = _new(inverse, key, decay)
    gain = gain / (decay + key @ inverse @ key)
    return state + torch.outer(gain, value - key @ state), new


def least_squares_step__exact_for_the_key(state, inverse, key, value, *, decay):
    """After your step exactly the new value is read for the key. Least squares weighs it against
    the earlier ones: something is missing below the line."""
    read = inverse @ key
    size = key @ read
    gain = read / size if size > 0 else read
    return state + torch.outer(gain, value - key @ state), _new(inverse, key, decay)[1]


def least_squares_step__inverse_stays(state, inverse, key, value, *, decay):
    """The state is right. The inverse is still the old one: the key has to go into it."""
    gain, _ = _new(inverse, key, decay)
    return state + torch.outer(gain, value - key @ state), inverse


def least_squares_step__inverse_plus(state, inverse, key, value, *, decay):
    """The state is right. You add to the inverse what has to be subtracted: with every key it gets
    smaller in that direction."""
    gain, _ = _new(inverse, key, decay)
    new = (inverse + torch.outer(gain, inverse @ key)) / decay
    return state + torch.outer(gain, value - key @ state), new


def least_squares_step__not_inverted(state, inverse, key, value, *, decay):
    """The state is right. You add key keyᵀ to the inverse itself. It belongs to the matrix of which
    it is the inverse."""
    gain, _ = _new(inverse, key, decay)
    new = decay * inverse + torch.outer(key, key)
    return state + torch.outer(gain, value - key @ state), new


def least_squares_step__matrix(state, inverse, key, value, *, decay):
    """The state is right. The second result is the matrix under the inverse, and not the
    inverse."""
    gain, new = _new(inverse, key, decay)
    return state + torch.outer(gain, value - key @ state), torch.linalg.inv(new)


def least_squares_step__unit_key(state, inverse, key, value, *, decay):
    """You divide the key by its length. It has to be taken as it comes."""
    key = F.normalize(key, dim=0)
    gain, new = _new(inverse, key, decay)
    return state + torch.outer(gain, value - key @ state), new


def least_squares_step__inverse_first(state, inverse, key, value, *, decay):
    """You bring the inverse up to date first, and then compute the gain from it as if it were the
    old one."""
    read = inverse @ key
    inverse = (inverse - torch.outer(read, read) / (decay + key @ read)) / decay
    read = inverse @ key
    gain = read / (decay + key @ read)
    return state + torch.outer(gain, value - key @ state), inverse


def least_squares_step__inverse_before_state(state, inverse, key, value, *, decay):
    gain, new = _new(inverse, key, decay)
    return new, state + torch.outer(gain, value - key @ state)


def least_squares_step__in_place(state, inverse, key, value, *, decay):
    gain, new = _new(inverse, key, decay)
    state += torch.outer(gain, value - key @ state)
    return state, new
