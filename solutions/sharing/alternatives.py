"""Right answers to the exercises on weight sharing, written another way than the solution."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import torch


def pair_offsets__all_in_one_offset(first, second, rank):
    """The directions are dealt out: the first offset gets some, the second the others."""
    u, s, vh = torch.linalg.svd(first - second, full_matrices=False)
    parts = [u[:, i : i + rank] * s[i : i + rank] @ vh[i : i + rank] for i in (0, rank)]
    shared = (first - parts[0] + second + parts[1]) / 2
    return shared + parts[0], shared - parts[1]


def pair_offsets__projection(first, second, rank):
    """What of the difference lies outside its strongest directions is divided between the two."""
    difference = first.numpy() - second.numpy()
    _, vectors = np.linalg.eigh(difference @ difference.T)
    strongest = vectors[:, ::-1][:, : 2 * rank]
    lost = difference - strongest @ (strongest.T @ difference)
    return [first.numpy() - lost / 2, second.numpy() + lost / 2]


def turn_heads__again_and_again(heads, readers, *, rounds):
    """Heads and readers stay turned, and are turned further in the next round."""
    heads, readers = list(heads), list(readers)
    target = heads[0]
    for _ in range(rounds):
        for i, head in enumerate(heads):
            u, _, vh = torch.linalg.svd(head @ target.T)
            turn = (u @ vh).T
            heads[i], readers[i] = turn @ head, turn @ readers[i]
        target = sum(heads) / len(heads)
    return target, torch.stack(readers)


def turn_heads__polar(heads, readers, *, rounds):
    """The nearest orthogonal matrix from eigenvalues: (M Mᵀ)^(-1/2) M."""
    heads, readers = heads.numpy(), readers.numpy()
    target = heads[0]
    for _ in range(rounds):
        turns = []
        for head in heads:
            product = target @ head.T
            values, vectors = np.linalg.eigh(product @ product.T)
            turns.append(vectors / np.sqrt(values) @ vectors.T @ product)
        target = np.mean([turn @ head for turn, head in zip(turns, heads, strict=True)], axis=0)
    return target, np.stack([turn @ reader for turn, reader in zip(turns, readers, strict=True)])


def _points(values, importance):
    """Pairs of a value and its importance, ascending, each value once."""
    found = {}
    for value, weight in zip(values.tolist(), importance.tolist(), strict=True):
        if weight > 0:
            found[value] = found.get(value, 0) + weight
    return sorted(found.items())


def best_codebook__last_run_first(values, importance, clusters):
    """Where the last run begins, with numpy and a loop over where it ends."""
    points = np.array(_points(values, importance))
    x, w = points.T
    sums = [np.concatenate([[0], np.cumsum(w * x**p)]) for p in range(3)]

    def costs(end):
        """Of the runs from 0, 1, ... to `end`."""
        size, total, squares = (s[end] - s[:end] for s in sums)
        return squares - total**2 / size

    n, k = len(x), min(clusters, len(x))
    best = np.full((k + 1, n + 1), np.inf)
    begin = np.zeros((k + 1, n + 1), dtype=int)
    best[0, 0] = 0
    for end in range(1, n + 1):
        run = costs(end)
        for c in range(1, k + 1):
            whole = best[c - 1, :end] + run
            begin[c, end] = whole.argmin()
            best[c, end] = whole[begin[c, end]]
    book, end = [], n
    for c in range(k, 0, -1):
        start = begin[c, end]
        book.append(float((sums[1][end] - sums[1][start]) / (sums[0][end] - sums[0][start])))
        end = start
    return book[::-1]


def best_codebook__divide_and_conquer(values, importance, clusters):
    """The last cut moves to the right when the end does: half of the ends need half of the cuts."""
    points = _points(values, importance)
    sums = [[0.0] * (len(points) + 1) for _ in range(3)]
    for j, (x, w) in enumerate(points):
        for p in range(3):
            sums[p][j + 1] = sums[p][j] + w * x**p

    def cost(i, j):
        size, total, squares = (s[j] - s[i] for s in sums)
        return squares - total * total / size

    n, k = len(points), min(clusters, len(points))
    best, cuts = [math.inf] + [cost(0, j) for j in range(1, n + 1)], []
    for c in range(2, k + 1):
        new, cut = [math.inf] * (n + 1), [0] * (n + 1)
        todo = [(c, n, c - 1, n - 1)]
        while todo:
            low, high, first, last = todo.pop()
            if low > high:
                continue
            j = (low + high) // 2
            new[j], cut[j] = min(
                (best[i] + cost(i, j), i) for i in range(first, min(last, j - 1) + 1)
            )
            todo += [(low, j - 1, first, cut[j]), (j + 1, high, cut[j], last)]
        best = new
        cuts.append(cut)
    ends = [n]
    for cut in reversed(cuts):
        ends.insert(0, cut[ends[0]])
    ends.insert(0, 0)
    found = [
        sum(w * x for x, w in points[a:b]) / sum(w for _, w in points[a:b])
        for a, b in pairwise(ends)
    ]
    return torch.tensor(found, dtype=torch.float64)


def best_pairs__one_first_code_at_a_time(vectors, first, second):
    """For each vector of the first codebook the best of the second; the best of these so far is
    kept."""
    least = torch.full((len(vectors),), torch.inf, dtype=torch.float64)
    codes = torch.zeros(len(vectors), 2, dtype=torch.int64)
    for i, start in enumerate(first):
        distance, j = torch.cdist(vectors - start, second).min(1)
        better = distance < least
        least = torch.where(better, distance, least)
        codes[better] = torch.stack([torch.full_like(j, i), j], 1)[better]
    return codes


def best_pairs__products(vectors, first, second):
    """The square of a sum, multiplied out: nothing is ever as wide as the vectors but they."""
    together = (first * first).sum(1)[:, None] + (second * second).sum(1) + 2 * first @ second.T
    found = []
    for v, a, b in zip(vectors, vectors @ first.T, vectors @ second.T, strict=True):
        cost = v @ v + together - 2 * a[:, None] - 2 * b
        found.append(divmod(int(cost.argmin()), len(second)))
    return found


def entropy_codes__dead_codes_left_out(values, codebook, bits, *, price, rounds):
    codebook, bits, x = codebook.numpy().copy(), bits.numpy().copy(), values.numpy()
    for _ in range(rounds):
        alive = np.flatnonzero(np.isfinite(bits))
        cost = (x[:, None] - codebook[alive]) ** 2 + price * bits[alive]
        codes = alive[cost.argmin(1)]
        bits = np.full(len(codebook), np.inf)
        for code in np.unique(codes):
            own = x[codes == code]
            codebook[code], bits[code] = own.mean(), math.log2(len(x) / len(own))
    return codes, codebook, bits


def entropy_codes__code_by_code(values, codebook, bits, *, price, rounds):
    """The best code so far is kept, one code after another."""
    book, bits, x = codebook.tolist(), bits.tolist(), values
    for _ in range(rounds):
        least, codes = torch.full_like(x, torch.inf), torch.zeros(len(x), dtype=torch.int64)
        for code, (number, length) in enumerate(zip(book, bits, strict=True)):
            cost = (x - number) ** 2 + (price * length if length < math.inf else math.inf)
            codes = torch.where(cost < least, code, codes)
            least = torch.minimum(cost, least)
        members = [x[codes == code] for code in range(len(book))]
        book = [m.mean().item() if len(m) else old for m, old in zip(members, book, strict=True)]
        bits = [math.log2(len(x) / len(m)) if len(m) else math.inf for m in members]
    return codes.tolist(), book, bits


def limited_lengths__level_by_level(counts, longest):
    """From the root down: how many codes end on each level? Rare symbols have the longer codes."""
    order = sorted((i for i, n in enumerate(counts) if n), key=lambda i: -counts[i])
    n = len(order)
    if n > 2**longest:
        raise ValueError("too many symbols")
    lengths = [-1] * len(counts)
    rest = [0] * (n + 1)  # counts of all symbols from i on
    for i in reversed(range(n)):
        rest[i] = rest[i + 1] + counts[order[i]]

    @cache
    def best(level, placed, nodes):
        """The least cost of what is not placed yet, and how many codes end on this level."""
        if nodes >= n - placed:
            return (0, n - placed) if nodes == n - placed else (math.inf, 0)
        if level == longest:
            return math.inf, 0
        return min(
            (rest[placed + ends] + best(level + 1, placed + ends, 2 * (nodes - ends))[0], ends)
            for ends in range(nodes)
        )

    level, placed, nodes = 0, 0, 1
    while placed < n:
        _, ends = best(level, placed, nodes)
        for i in order[placed : placed + ends]:
            lengths[i] = level
        level, placed, nodes = level + 1, placed + ends, 2 * (nodes - ends)
    return lengths


def limited_lengths__counted(counts, longest):
    """Package-merge with an array of how often each symbol is in a package."""
    used = np.flatnonzero(np.array(counts))
    if len(used) > 2**longest:
        raise ValueError("too many symbols")
    prices, content = np.array(counts)[used], np.eye(len(used), dtype=int)
    row, inside = prices, content
    row, inside = row[np.argsort(row)], inside[np.argsort(row)]
    for _ in range(longest - 1):
        even = len(row) // 2 * 2
        row = np.concatenate([prices, row[:even].reshape(-1, 2).sum(1)])
        inside = np.concatenate([content, inside[:even].reshape(-1, 2, len(used)).sum(1)])
        order = np.argsort(row, kind="stable")
        row, inside = row[order], inside[order]
    lengths = np.full(len(counts), -1)
    lengths[used] = inside[: 2 * (len(used) - 1)].sum(0)
    return torch.from_numpy(lengths)
