"""Right answers to the exercises on attention, written another way than the solution."""

import math

import numpy as np
import torch


def merge_parts__one_after_another(outputs, log_totals):
    """As the online softmax does it."""
    output = torch.zeros_like(outputs[0])
    log_total = torch.full_like(log_totals[0], -torch.inf)
    for part, new in zip(outputs, log_totals, strict=True):
        both = torch.logaddexp(log_total, new)
        seen = new > -torch.inf
        old_share = torch.where(seen, (log_total - both).exp(), 1)
        new_share = torch.where(seen, (new - both).exp(), 0)
        part = torch.where(seen[:, None], part, 0)
        output = old_share[:, None] * output + new_share[:, None] * part
        log_total = both
    return output, log_total


def merge_parts__query_by_query(outputs, log_totals):
    """In numpy, with the parts that have a key."""
    outputs, log_totals = outputs.numpy(), log_totals.numpy()
    results, totals = np.zeros(outputs.shape[1:]), np.full(outputs.shape[1], -np.inf)
    for i in range(outputs.shape[1]):
        seen = np.isfinite(log_totals[:, i])
        if seen.any():
            top = log_totals[seen, i].max()
            weights = np.exp(log_totals[seen, i] - top)
            results[i] = weights @ outputs[seen, i] / weights.sum()
            totals[i] = top + math.log(weights.sum())
    return results, totals


def plan_tiles__loops(time, *, sinks, window, tile):
    """Every tile on its own: the number of allowed keys, counted for its first and last query."""
    starts = range(0, time, tile)
    plan = []
    for q in starts:
        row = []
        last_query = min(q + tile, time) - 1
        for k in starts:
            last_key = min(k + tile, time) - 1
            # The key that is allowed most often: the last that is no later, or the first.
            candidates = [(max(q, key), key) for key in (k, min(last_key, last_query))]
            some = k <= last_query and any(
                key <= query <= last_query and (query - key < window or key < sinks)
                for query, key in candidates
            )
            left = max(k, sinks)  # the first key that is no sink
            every = last_key <= q and (left > last_key or last_query - left < window)
            row.append(2 if every else int(some))
        plan.append(row)
    return plan


def plan_tiles__numpy(time, *, sinks, window, tile):
    """How far behind are the nearest and the farthest pair?"""
    first = np.arange(0, time, tile)
    last = np.minimum(first + tile, time) - 1
    nearest = np.maximum(first[:, None] - last, 0)
    in_past = last[:, None] - first >= 0
    some = in_past & ((nearest < window) | (first < sinks))
    # Without the sinks the tile begins later.
    farthest = last[:, None] - np.minimum(np.maximum(first, sinks), last + 1)
    only_sinks = last < sinks
    every = (first[:, None] >= last) & (only_sinks | (farthest < window))
    plan = np.zeros(some.shape, dtype=int)
    plan[some] = 1
    plan[every] = 2
    return plan


def keep_heavy__lists(scores, *, kv_heads, budget, recent):
    """One cache after another, with a list of what is in it."""
    heads, time, _ = scores.shape
    z = scores.double().numpy()
    sharing = heads // kv_heads
    pattern = np.zeros((kv_heads, time, time), dtype=bool)
    for c in range(kv_heads):
        held, account = [], {}
        for t in range(time):
            if len(held) == budget:
                free = [j for j in held if j < t - recent]
                held.remove(min(free, key=lambda j: (account[j], j)))
            held.append(t)
            account[t] = 0.0
            for h in range(c * sharing, (c + 1) * sharing):
                row = z[h, t, held]
                weights = np.exp(row - row.max())
                for j, weight in zip(held, weights / weights.sum(), strict=True):
                    account[j] += weight
            pattern[c, t, held] = True
    return pattern


def keep_heavy__gathered(scores, *, kv_heads, budget, recent):
    """Places of the cache instead of truth values: the table of the tokens that are in it."""
    heads, time, _ = scores.shape
    shared = scores.double().reshape(kv_heads, heads // kv_heads, time, time)
    tokens = torch.zeros(kv_heads, 0, dtype=torch.long)
    account = torch.zeros(kv_heads, 0, dtype=torch.float64)
    pattern = torch.zeros(kv_heads, time, time, dtype=torch.bool)
    for t in range(time):
        if t >= budget:
            free = account[:, : account.shape[1] - recent]  # tokens are in the order of the text
            out = free.argmin(1, keepdim=True)
            stays = torch.ones_like(account, dtype=torch.bool).scatter(1, out, False)
            tokens = tokens[stays].view(kv_heads, -1)
            account = account[stays].view(kv_heads, -1)
        tokens = torch.cat([tokens, torch.full((kv_heads, 1), t)], 1)
        account = torch.cat([account, torch.zeros(kv_heads, 1).double()], 1)
        index = tokens[:, None].expand(-1, shared.shape[1], -1)
        account = account + shared[:, :, t].gather(2, index).softmax(-1).sum(1)
        pattern[:, t].scatter_(1, tokens, True)
    return pattern


def renumber__complex(keys, positions, frequencies):
    """A pair is a complex number; places by comparison."""
    places = (positions[:, :, None] > positions[:, None]).sum(-1)
    angles = (places - positions).double()[..., None] * frequencies.double()
    x, y = keys.double().chunk(2, -1)
    turned = torch.complex(x, y) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], -1).float()


def renumber__back_and_forth(keys, positions, frequencies):
    """Key by key in numpy: back to position 0, and then to the new place."""
    k, p = keys.double().numpy(), positions.numpy()
    f = frequencies.double().numpy()
    half = len(f)
    result = np.empty_like(k)
    for h in range(len(k)):
        for i in range(k.shape[1]):
            key = k[h, i]
            for position in (-int(p[h, i]), sum(int(other) < int(p[h, i]) for other in p[h])):
                cos, sin = np.cos(position * f), np.sin(position * f)
                x, y = key[:half], key[half:]
                key = np.concatenate([x * cos - y * sin, x * sin + y * cos])
            result[h, i] = key
    return result


def features_needed__pair_by_pair(query, key, *, error):
    """With Python's numbers, and another form for large exponents."""

    def log_expm1(a):
        if a == 0:
            return -math.inf
        return math.log(math.expm1(a)) if a < 30 else a + math.log1p(-math.exp(-a))

    def log_cosh_minus_1(b):  # 2 sinh(b / 2)²
        if b == 0:
            return -math.inf
        log_sinh = math.log(math.sinh(b / 2)) if b < 60 else b / 2 - math.log(2)
        return math.log(2) + 2 * log_sinh

    positive, waves = [], []
    for q in query.tolist():
        together = [sum((x + y) ** 2 for x, y in zip(q, k, strict=True)) for k in key.tolist()]
        apart = [sum((x - y) ** 2 for x, y in zip(q, k, strict=True)) for k in key.tolist()]
        positive.append([(log_expm1(a) - 2 * math.log(error)) / math.log(10) for a in together])
        waves.append([(log_cosh_minus_1(b) - 2 * math.log(error)) / math.log(10) for b in apart])
    return np.array(positive), np.array(waves)


def features_needed__distances(query, key, *, error):
    """Distances by `torch.cdist`, without its shortcut for many vectors."""
    exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    a = torch.cdist(query, -key, **exact) ** 2
    b = torch.cdist(query, key, **exact) ** 2
    scale = math.log10(math.e)
    positive = scale * (a + torch.special.expm1(-a).neg().log()) - 2 * math.log10(error)
    small = torch.where(b < 1, 2 * torch.sinh(b.clamp(max=1) / 2) ** 2, 1).log()
    large = b + (0.5 - (-b).exp() + (-2 * b).exp() / 2).clamp(min=1e-300).log()
    return positive, scale * torch.where(b < 1, small, large) - 2 * math.log10(error)


def least_squares_step__divided_inverse(state, inverse, key, value, *, decay):
    """The decay goes into the inverse first, then the formula as it stands."""
    p = inverse.numpy() / decay
    k, v, s = key.numpy(), value.numpy(), state.numpy()
    pk = p @ k
    p = p - np.outer(pk, pk) / (1 + k @ pk)
    return s + np.outer(p @ k, v - k @ s), p


def least_squares_step__from_the_definition(state, inverse, key, value, *, decay):
    """Through the matrix under the inverse, and the sum of keys and values."""
    matrix = torch.linalg.inv(inverse)
    sums = decay * matrix @ state + key[:, None] * value
    new = torch.linalg.inv(decay * matrix + key[:, None] * key)
    return new @ sums, new
