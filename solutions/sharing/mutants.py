"""Typical mistakes in the exercises on weight sharing, and what the instant check says of each.

A function is called after its exercise and its mistake; its docstring is the sentence for the
student, which names the mistake and never tells the answer. Those without a docstring are caught
by hidden inputs only, or by a shape or type: there is nothing to say about them on SHOWN inputs.
"""

import heapq
import math
from itertools import pairwise

import torch

# ---------------------------------------------------------------- pair_offsets


def _cut(w, rank):
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    return u[:, :rank] * s[:rank] @ vh[:rank]


def pair_offsets__of_what_the_mean_lacks(first, second, rank):
    """You share the mean, and give each layer the nearest offset to what it then lacks. Both
    offsets then use the same directions: together they could use more."""
    mean = (first + second) / 2
    return mean + _cut(first - mean, rank), mean + _cut(second - mean, rank)


def pair_offsets__one_layer_as_it_is(first, second, rank):
    """You share the first layer, and the offset of the second is all that there is: the other
    offset is not used."""
    return first, first + _cut(second - first, rank)


def pair_offsets__all_error_in_one(first, second, rank):
    """One of the two layers has all of the error. Divided between both, its squares are less."""
    return first, first + _cut(second - first, 2 * rank)


def pair_offsets__layers_cut(first, second, rank):
    """You cut each layer to a low rank, and nothing is shared."""
    return _cut(first, rank), _cut(second, rank)


def pair_offsets__layers_added_to_the_mean(first, second, rank):
    """Your offsets come near to the layers themselves, and the shared matrix is added to them. They
    are for what the shared matrix leaves."""
    mean = (first + second) / 2
    return mean + _cut(first, rank), mean + _cut(second, rank)


def pair_offsets__offsets_before_sharing(first, second, rank):
    """You first choose an offset for each layer by itself, and then share what is left. The two
    have to be chosen together."""
    one, two = _cut(first, rank), _cut(second, rank)
    shared = (first - one + second - two) / 2
    return shared + one, shared + two


def pair_offsets__low_rank_shared(first, second, rank):
    """Your shared matrix is of low rank. It may be any matrix."""
    mean = _cut((first + second) / 2, 2 * rank)
    half = _cut(first - second, 2 * rank) / 2
    return mean + half, mean - half


def pair_offsets__no_offsets(first, second, rank):
    """Both layers are the mean: they have no offsets."""
    mean = (first + second) / 2
    return mean, mean.clone()


def pair_offsets__twice_apart(first, second, rank):
    """Your two layers are too far apart: their difference is twice what it should be."""
    mean, apart = (first + second) / 2, _cut(first - second, 2 * rank)
    return mean + apart, mean - apart


def pair_offsets__exchanged(first, second, rank):
    """You have the two layers exchanged."""
    mean, half = (first + second) / 2, _cut(first - second, 2 * rank) / 2
    return mean - half, mean + half


def pair_offsets__rank_too_high(first, second, rank):
    """Your offsets have a higher rank than they may have."""
    mean, half = (first + second) / 2, _cut(first - second, 4 * rank) / 2
    return mean + half, mean - half


def pair_offsets__shared_and_offset(first, second, rank):
    """You give back the shared matrix and an offset. What becomes of the two layers is wanted."""
    return (first + second) / 2, _cut(first - second, 2 * rank) / 2


def pair_offsets__one_matrix(first, second, rank):
    return (first + second) / 2 + _cut(first - second, 2 * rank) / 2


# ---------------------------------------------------------------- turn_heads


def _turns(heads, target, *, reflections=True):
    u, _, vh = torch.linalg.svd(target @ heads.transpose(1, 2))
    if not reflections:
        u = u.clone()
        u[:, :, -1] *= torch.linalg.det(u @ vh).sign()[:, None]
    return u @ vh


def turn_heads__as_they_are(heads, readers, *, rounds):
    """You take the mean of the heads as they are. They are to be turned first."""
    return heads.mean(0), readers


def turn_heads__turned_back(heads, readers, *, rounds):
    """You turn the heads by the matrix that would bring the target to them: the wrong way."""
    target = heads[0]
    for _ in range(rounds):
        turns = _turns(heads, target).transpose(1, 2)
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__readers_as_they_were(heads, readers, *, rounds):
    """The shared head is right. But you give back the readers as they were: they have to be turned
    with their heads."""
    target = heads[0]
    for _ in range(rounds):
        target = (_turns(heads, target) @ heads).mean(0)
    return target, readers


def turn_heads__readers_turned_back(heads, readers, *, rounds):
    """The shared head is right. But you turn the readers the other way round than their heads."""
    target = heads[0]
    for _ in range(rounds):
        turns = _turns(heads, target)
        target = (turns @ heads).mean(0)
    return target, turns.transpose(1, 2) @ readers


def turn_heads__rotations_only(heads, readers, *, rounds):
    """You allow rotations only. A reflection is an orthogonal matrix, too."""
    target = heads[0]
    for _ in range(rounds):
        turns = _turns(heads, target, reflections=False)
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__first_target_for_ever(heads, readers, *, rounds):
    """Your target is the first head in every round. After a round it is the mean of the turned
    heads."""
    turns = _turns(heads, heads[0])
    return (turns @ heads).mean(0), turns @ readers


def turn_heads__begins_with_the_mean(heads, readers, *, rounds):
    """You begin with the mean of the heads as they are for a target. It is the first head."""
    target = heads.mean(0)
    for _ in range(rounds):
        turns = _turns(heads, target)
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__first_head_stays(heads, readers, *, rounds):
    """You never turn the first head. From the second round on its target is another one than
    itself."""
    target = heads[0]
    for _ in range(rounds):
        turns = _turns(heads, target)
        turns[0] = torch.eye(heads.shape[1])
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__stretched(heads, readers, *, rounds):
    """You stretch the heads, too. An orthogonal matrix changes no length."""
    target = heads[0]
    for _ in range(rounds):
        products = target @ heads.transpose(1, 2)
        size = torch.linalg.svdvals(products).sum(1) / heads.square().sum((1, 2))
        turns = _turns(heads, target) * size[:, None, None]
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__any_matrix(heads, readers, *, rounds):
    """Your matrices are not orthogonal: each is the best of *all* matrices, found by least
    squares."""
    target = heads[0]
    for _ in range(rounds):
        turns = target @ torch.linalg.pinv(heads)
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__not_orthogonal(heads, readers, *, rounds):
    """You multiply the heads by their product with the target. It is not an orthogonal matrix."""
    target = heads[0]
    for _ in range(rounds):
        turns = target @ heads.transpose(1, 2)
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__inputs_turned(heads, readers, *, rounds):
    """You turn the inputs of the heads, which are the same for all. It is the other side that is
    free."""
    target = heads[0]
    for _ in range(rounds):
        u, _, vh = torch.linalg.svd(heads.transpose(1, 2) @ target)
        target = (heads @ u @ vh).mean(0)
    return target, readers


def turn_heads__a_round_too_few(heads, readers, *, rounds):
    """You end a round too early, or do not turn in the first round."""
    target, turns = heads[0], torch.eye(heads.shape[1], dtype=heads.dtype)
    for _ in range(rounds - 1):
        turns = _turns(heads, target)
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__a_round_too_many(heads, readers, *, rounds):
    """You turn once more than there are rounds."""
    target = heads[0]
    for _ in range(rounds + 1):
        turns = _turns(heads, target)
        target = (turns @ heads).mean(0)
    return target, turns @ readers


def turn_heads__only_the_last_turn(heads, readers, *, rounds):
    """Your heads stay turned from round to round, but their readers have the turn of the last round
    only."""
    target = heads[0]
    for _ in range(rounds):
        turns = _turns(heads, target)
        heads = turns @ heads
        target = heads.mean(0)
    return target, turns @ readers


def turn_heads__target_moves_at_once(heads, readers, *, rounds):
    """Your target changes within a round. All heads of a round have the same one."""
    target = heads[0]
    for _ in range(rounds):
        turned, turns = [], []
        for head in heads:
            turns.append(_turns(head[None], target)[0])
            turned.append(turns[-1] @ head)
            target = sum(turned) / len(turned)
    return target, torch.stack(turns) @ readers


def turn_heads__sum(heads, readers, *, rounds):
    """Your shared head is the sum of the turned heads. The mean is wanted."""
    target = heads[0]
    for _ in range(rounds):
        turns = _turns(heads, target)
        target = (turns @ heads).sum(0)
    return target, turns @ readers


def turn_heads__turned_heads(heads, readers, *, rounds):
    target = heads[0]
    for _ in range(rounds):
        turned = _turns(heads, target) @ heads
        target = turned.mean(0)
    return target, turned


# ---------------------------------------------------------------- best_codebook


def _merged(values, importance):
    """Different values that count, ascending, and the importance of each."""
    used = importance > 0
    x, where = values[used].unique(return_inverse=True)
    return x, torch.zeros_like(x).index_add_(0, where, importance[used])


def _ends(x, w, clusters):
    """Where the best runs of x, in its order, end."""
    n = len(x)

    def cost(i, j):
        part, weight = x[i:j], w[i:j]
        mean = (part * weight).sum() / weight.sum()
        return (weight * (part - mean) ** 2).sum().item()

    best = [math.inf] + [cost(0, j) for j in range(1, n + 1)]
    cuts = []
    for _ in range(min(clusters, n) - 1):
        found = [
            min(((best[i] + cost(i, j), i) for i in range(1, j)), default=(math.inf, 0))
            for j in range(n + 1)
        ]
        best, cut = [list(part) for part in zip(*found, strict=True)]
        cuts.append(cut)
    ends = [n]
    for cut in reversed(cuts):
        ends.insert(0, cut[ends[0]])
    return [0, *ends]


def _means(x, w, ends):
    runs = list(pairwise(ends))
    return torch.stack([(x[a:b] * w[a:b]).sum() / w[a:b].sum() for a, b in runs])


def _best(x, w, clusters):
    return _means(x, w, _ends(x, w, clusters))


def _steps(x, w, centroids):
    for _ in range(50):
        nearest = (x[:, None] - centroids).abs().argmin(1)
        centroids = torch.stack(
            [
                (x * w)[nearest == i].sum() / w[nearest == i].sum()
                if (nearest == i).any()
                else centroids[i]
                for i in range(len(centroids))
            ]
        )
    return centroids


def best_codebook__linear_start(values, importance, clusters):
    """This is where the steps of k-means end, begun with even distances. There is a better
    codebook."""
    x, w = _merged(values, importance)
    k = min(clusters, len(x))
    return _steps(x, w, torch.linspace(x[0].item(), x[-1].item(), k, dtype=x.dtype))


def best_codebook__density_start(values, importance, clusters):
    """This is where the steps of k-means end, begun at quantiles. There is a better codebook."""
    x, w = _merged(values, importance)
    k = min(clusters, len(x))
    return _steps(x, w, x[(2 * torch.arange(k) + 1) * len(x) // (2 * k)])


def best_codebook__all_alike(values, importance, clusters):
    """All values count the same here. They have an importance."""
    x, _ = _merged(values, importance)
    used = values[importance > 0]
    count = torch.stack([(used == value).sum() for value in x]).double()
    return _best(x, count, clusters)


def best_codebook__plain_means(values, importance, clusters):
    """Your clusters are the right ones. But their numbers are plain means: that of a cluster is
    weighted by importance."""
    x, w = _merged(values, importance)
    used = values[importance > 0]
    count = torch.stack([(used == value).sum() for value in x]).double()
    return _means(x, count, _ends(x, w, clusters))


def best_codebook__weighted_means_only(values, importance, clusters):
    """The numbers of your clusters are weighted means. But the clusters were found as if all
    values counted the same."""
    x, w = _merged(values, importance)
    return _means(x, w, _ends(x, torch.ones_like(w), clusters))


def best_codebook__not_sorted(values, importance, clusters):
    """You cut the values into runs in the order in which they come. They have to be sorted
    first."""
    used = importance > 0
    return _best(values[used], importance[used], clusters).sort().values


def best_codebook__equal_counts(values, importance, clusters):
    """All your clusters have about equally many values. That need not be the best."""
    x, w = _merged(values, importance)
    k = min(clusters, len(x))
    return _means(x, w, [round(i * len(x) / k) for i in range(k + 1)])


def best_codebook__even_grid(values, importance, clusters):
    """Your codebook has even distances. The numbers may lie anywhere."""
    x, _ = _merged(values, importance)
    return torch.linspace(x[0].item(), x[-1].item(), min(clusters, len(x)), dtype=x.dtype)


def best_codebook__middles(values, importance, clusters):
    """Your numbers are in the middle between the ends of a cluster. The best is its mean."""
    x, w = _merged(values, importance)
    ends = _ends(x, w, clusters)
    return torch.stack([(x[a] + x[b - 1]) / 2 for a, b in pairwise(ends)])


def best_codebook__roots(values, importance, clusters):
    """You take the root of the importance. It multiplies the squared error as it is."""
    x, w = _merged(values, importance)
    return _best(x, w.sqrt(), clusters)


def best_codebook__squares(values, importance, clusters):
    """You square the importance. It multiplies the squared error as it is."""
    x, w = _merged(values, importance)
    return _best(x, w**2, clusters)


def best_codebook__one_too_few(values, importance, clusters):
    """Your codebook has a number too few."""
    x, w = _merged(values, importance)
    return _best(x, w, max(clusters - 1, 1))


def best_codebook__one_too_many(values, importance, clusters):
    """Your codebook has a number too many."""
    x, w = _merged(values, importance)
    return _best(x, w, clusters + 1)


def best_codebook__filled_up(values, importance, clusters):
    """You repeat numbers where there are fewer values than clusters. Each is wanted once."""
    x, w = _merged(values, importance)
    found = _best(x, w, clusters)
    return torch.cat([found, found[-1:].repeat(clusters - len(found))])


def best_codebook__zeros_count(values, importance, clusters):
    """A value of importance 0 has a part in your codebook. It does not count."""
    x, where = values.unique(return_inverse=True)
    w = torch.zeros_like(x).index_add_(0, where, importance + 1e-3)
    return _best(x, w, clusters)


def best_codebook__cut_for_good(values, importance, clusters):
    """You cut in two, and then one of the parts again. A cut that was the best for two clusters
    need not be among the best for three."""
    x, w = _merged(values, importance)
    ends = [0, len(x)]
    while len(ends) <= min(clusters, len(x)):
        means = [(cut, sorted([*ends, cut])) for cut in range(1, len(x)) if cut not in ends]

        def cost(e):
            m = _means(x, w, e)
            runs = torch.bucketize(torch.arange(len(x)), torch.tensor(e[1:]), right=True)
            return (w * (x - m[runs]) ** 2).sum().item()

        ends = min((e for _, e in means), key=cost)
    return _means(x, w, ends)


def best_codebook__largest_first(values, importance, clusters):
    """Your numbers are right, but the largest comes first."""
    x, w = _merged(values, importance)
    return _best(x, w, clusters).flip(0)


def best_codebook__errors_not_squared(values, importance, clusters):
    """You make the absolute errors small. It is their squares that count."""
    x, w = _merged(values, importance)
    n, k = len(x), min(clusters, len(x))

    def median(i, j):
        half = w[i:j].sum() / 2
        return x[i + int((w[i:j].cumsum(0) < half).sum())]

    def cost(i, j):
        return (w[i:j] * (x[i:j] - median(i, j)).abs()).sum().item()

    best = {(1, j): (cost(0, j), (0,)) for j in range(1, n + 1)}
    for c in range(2, k + 1):
        for j in range(c, n + 1):
            best[c, j] = min(
                (best[c - 1, i][0] + cost(i, j), (*best[c - 1, i][1], i)) for i in range(c - 1, j)
            )
    ends = [*best[k, n][1], n]
    return torch.stack([median(a, b) for a, b in pairwise(ends)])


# ---------------------------------------------------------------- best_pairs


def _nearest(vectors, book):
    return torch.cdist(vectors, book).argmin(1)


def _pairs(vectors, first, second):
    best = _nearest(vectors, (first[:, None] + second).flatten(0, 1))
    return torch.stack([best // len(second), best % len(second)], 1)


def best_pairs__one_by_one(vectors, first, second):
    """You choose the nearest of the first codebook, and then the nearest to what is left. Another
    first code may be better once a second is added."""
    i = _nearest(vectors, first)
    return torch.stack([i, _nearest(vectors - first[i], second)], 1)


def best_pairs__second_first(vectors, first, second):
    """You choose the nearest of the second codebook, and then the nearest to what is left. Another
    second code may be better once a first is added."""
    j = _nearest(vectors, second)
    return torch.stack([_nearest(vectors - second[j], first), j], 1)


def best_pairs__each_alone(vectors, first, second):
    """You choose the code of each codebook as if the other were not there. It is the *sum* that has
    to be near."""
    return torch.stack([_nearest(vectors, first), _nearest(vectors, second)], 1)


def best_pairs__by_turns(vectors, first, second):
    """You choose one code while the other stays, by turns. That ends where neither would change
    alone, though both together might."""
    i = _nearest(vectors, first)
    for _ in range(5):
        j = _nearest(vectors - first[i], second)
        i = _nearest(vectors - second[j], first)
    return torch.stack([i, j], 1)


def best_pairs__difference(vectors, first, second):
    """You look for the pair whose *difference* is nearest. The vectors are added."""
    return _pairs(vectors, first, -second)


def best_pairs__mean(vectors, first, second):
    """You look for the pair whose *mean* is nearest. The vectors are added."""
    return _pairs(2 * vectors, first, second)


def best_pairs__largest_product(vectors, first, second):
    """You take the sum with the largest inner product. A long one has a large product and may be
    far away all the same."""
    best = (vectors @ (first[:, None] + second).flatten(0, 1).T).argmax(1)
    return torch.stack([best // len(second), best % len(second)], 1)


def best_pairs__cosine(vectors, first, second):
    """You take the sum whose direction is nearest. Its length counts, too."""
    sums = torch.nn.functional.normalize((first[:, None] + second).flatten(0, 1))
    best = (vectors @ sums.T).argmax(1)
    return torch.stack([best // len(second), best % len(second)], 1)


def best_pairs__exchanged(vectors, first, second):
    """You have the two codes exchanged: that of the first codebook comes first."""
    return _pairs(vectors, first, second).flip(1)


def best_pairs__wrong_size(vectors, first, second):
    """You take the number of a pair apart with the size of the wrong codebook."""
    best = _nearest(vectors, (first[:, None] + second).flatten(0, 1))
    return torch.stack([best // len(first), best % len(first)], 1)


def best_pairs__city_blocks(vectors, first, second):
    """You add up absolute differences. The squares are to be least."""
    sums = (first[:, None] + second).flatten(0, 1)
    best = torch.cdist(vectors, sums, p=1).argmin(1)
    return torch.stack([best // len(second), best % len(second)], 1)


def best_pairs__farthest(vectors, first, second):
    """You take the pair that is farthest away."""
    best = torch.cdist(vectors, (first[:, None] + second).flatten(0, 1)).argmax(1)
    return torch.stack([best // len(second), best % len(second)], 1)


def best_pairs__vectors(vectors, first, second):
    """You give back the sums. The codes are wanted."""
    codes = _pairs(vectors, first, second)
    return first[codes[:, 0]] + second[codes[:, 1]]


def best_pairs__number_of_the_pair(vectors, first, second):
    return _nearest(vectors, (first[:, None] + second).flatten(0, 1))


# ---------------------------------------------------------------- entropy_codes


def _toll(bits, price):
    return torch.where(bits.isinf(), torch.inf, price * bits)


def _choose(values, codebook, bits, price):
    return ((values[:, None] - codebook) ** 2 + _toll(bits, price)).argmin(1)


def _counts(codes, codebook):
    return codes.bincount(minlength=len(codebook)).double()


def _numbers(values, codes, codebook):
    count = _counts(codes, codebook)
    mean = torch.zeros_like(codebook).index_add_(0, codes, values) / count
    return torch.where(count > 0, mean, codebook)


def _bits(codes, codebook):
    return -(_counts(codes, codebook) / len(codes)).log2()


def _rounds(
    values, codebook, bits, price, rounds, *, choose=_choose, numbers=_numbers, lengths=_bits
):
    for _ in range(rounds):
        codes = choose(values, codebook, bits, price)
        codebook, bits = numbers(values, codes, codebook), lengths(codes, codebook)
    return codes, codebook, bits


def entropy_codes__nearest(values, codebook, bits, *, price, rounds):
    """Every value gets the nearest number. The bits have no say in your choice."""

    def choose(values, codebook, bits, price):
        return ((values[:, None] - codebook) ** 2 + torch.where(bits.isinf(), torch.inf, 0)).argmin(
            1
        )

    return _rounds(values, codebook, bits, price, rounds, choose=choose)


def entropy_codes__no_price(values, codebook, bits, *, price, rounds):
    """You add the bits to the squared error as they are. They have a price."""
    return _rounds(values, codebook, bits, 1.0, rounds)


def entropy_codes__price_of_the_error(values, codebook, bits, *, price, rounds):
    """You multiply the error by the price. It is the price of a bit."""

    def choose(values, codebook, bits, price):
        return (price * (values[:, None] - codebook) ** 2 + bits).argmin(1)

    return _rounds(values, codebook, bits, price, rounds, choose=choose)


def entropy_codes__errors_not_squared(values, codebook, bits, *, price, rounds):
    """Your errors are not squared."""

    def choose(values, codebook, bits, price):
        return ((values[:, None] - codebook).abs() + _toll(bits, price)).argmin(1)

    return _rounds(values, codebook, bits, price, rounds, choose=choose)


def entropy_codes__expensive_codes(values, codebook, bits, *, price, rounds):
    """Your values are drawn to codes of many bits: the sign is the wrong one."""

    def choose(values, codebook, bits, price):
        toll = torch.where(bits.isinf(), torch.inf, -price * bits)
        return ((values[:, None] - codebook) ** 2 + toll).argmin(1)

    return _rounds(values, codebook, bits, price, rounds, choose=choose)


def entropy_codes__numbers_stay(values, codebook, bits, *, price, rounds):
    """Your codebook stays what it was. Each code gets the mean of its values."""
    return _rounds(values, codebook, bits, price, rounds, numbers=lambda v, c, book: book)


def entropy_codes__bits_stay(values, codebook, bits, *, price, rounds):
    """The bits stay what they were. They follow from the shares of the codes, in each round."""
    for _ in range(rounds):
        codes = _choose(values, codebook, bits, price)
        codebook = _numbers(values, codes, codebook)
    return codes, codebook, bits


def entropy_codes__medians(values, codebook, bits, *, price, rounds):
    """Your numbers are medians. A code gets the mean of its values."""

    def numbers(values, codes, codebook):
        found = codebook.clone()
        for code in codes.unique():
            found[code] = values[codes == code].median()
        return found

    return _rounds(values, codebook, bits, price, rounds, numbers=numbers)


def entropy_codes__nats(values, codebook, bits, *, price, rounds):
    """Your logarithm is the natural one. Bits are counted with the one to the base 2."""

    def lengths(codes, codebook):
        return -(_counts(codes, codebook) / len(codes)).log()

    return _rounds(values, codebook, bits, price, rounds, lengths=lengths)


def entropy_codes__counts_not_shares(values, codebook, bits, *, price, rounds):
    """You take the logarithm of how often a code occurs. It is that of its *share* of all
    values."""

    def lengths(codes, codebook):
        return -_counts(codes, codebook).log2()

    return _rounds(values, codebook, bits, price, rounds, lengths=lengths)


def entropy_codes__part_of_the_entropy(values, codebook, bits, *, price, rounds):
    """You have -p · log2 p, the part of a code in the entropy. The bits of one code are -log2 p."""

    def lengths(codes, codebook):
        p = _counts(codes, codebook) / len(codes)
        return torch.where(p > 0, -p * p.log2(), torch.inf)

    return _rounds(values, codebook, bits, price, rounds, lengths=lengths)


def entropy_codes__whole_bits(values, codebook, bits, *, price, rounds):
    """You round the bits up. Those of an ideal code are fractions."""

    def lengths(codes, codebook):
        return _bits(codes, codebook).ceil()

    return _rounds(values, codebook, bits, price, rounds, lengths=lengths)


def entropy_codes__all_equally_long(values, codebook, bits, *, price, rounds):
    """All your codes have the same bits. Frequent ones have fewer."""

    def lengths(codes, codebook):
        return torch.full_like(codebook, math.log2(len(codebook)))

    return _rounds(values, codebook, bits, price, rounds, lengths=lengths)


def entropy_codes__empty_is_zero(values, codebook, bits, *, price, rounds):
    """A code without values gets the number 0. It keeps the one that it had."""

    def numbers(values, codes, codebook):
        sums = torch.zeros_like(codebook).index_add_(0, codes, values)
        return sums / _counts(codes, codebook).clamp(min=1)

    return _rounds(values, codebook, bits, price, rounds, numbers=numbers)


def entropy_codes__empty_is_nan(values, codebook, bits, *, price, rounds):
    """A code without values gets the mean of nothing, which is no number. It keeps the one that it
    had."""

    def numbers(values, codes, codebook):
        return torch.zeros_like(codebook).index_add_(0, codes, values) / _counts(codes, codebook)

    return _rounds(values, codebook, bits, price, rounds, numbers=numbers)


def entropy_codes__empty_costs_nothing(values, codebook, bits, *, price, rounds):
    """A code without values has 0 bits here: it would be the cheapest of all. Its bits are
    infinite."""

    def lengths(codes, codebook):
        found = _bits(codes, codebook)
        return torch.where(found.isinf(), 0, found)

    return _rounds(values, codebook, bits, price, rounds, lengths=lengths)


def entropy_codes__share_of_one_more(values, codebook, bits, *, price, rounds):
    """A code without values has finite bits here, as if it occurred. Its bits are infinite."""

    def lengths(codes, codebook):
        count = _counts(codes, codebook)
        return -(torch.where(count > 0, count, 1e-9) / len(codes)).log2()

    return _rounds(values, codebook, bits, price, rounds, lengths=lengths)


def entropy_codes__zero_times_infinity(values, codebook, bits, *, price, rounds):
    """A value chooses a code of infinite bits here. With a price of 0 they would cost 0 times
    infinity, which is no number."""

    def choose(values, codebook, bits, price):
        return ((values[:, None] - codebook) ** 2 + price * bits).argmin(1)

    return _rounds(values, codebook, bits, price, rounds, choose=choose)


def entropy_codes__infinity_forgotten(values, codebook, bits, *, price, rounds):
    """A value chooses a code of infinite bits here. It must not, whatever the price is."""

    def choose(values, codebook, bits, price):
        toll = torch.where(bits.isinf(), 0, price * bits)
        return ((values[:, None] - codebook) ** 2 + toll).argmin(1)

    return _rounds(values, codebook, bits, price, rounds, choose=choose)


def entropy_codes__chosen_once_more(values, codebook, bits, *, price, rounds):
    """You choose the codes once more after the last round. They are those of the last round."""
    _, codebook, bits = _rounds(values, codebook, bits, price, rounds)
    return _choose(values, codebook, bits, price), codebook, bits


def entropy_codes__a_round_too_many(values, codebook, bits, *, price, rounds):
    """You do a round more than was asked for."""
    return _rounds(values, codebook, bits, price, rounds + 1)


def entropy_codes__one_round(values, codebook, bits, *, price, rounds):
    """You do one round only."""
    return _rounds(values, codebook, bits, price, 1)


def entropy_codes__dictionary(values, codebook, bits, *, price, rounds):
    names = ("codes", "codebook", "bits")
    return dict(zip(names, _rounds(values, codebook, bits, price, rounds), strict=True))


# ---------------------------------------------------------------- limited_lengths


def _huffman(counts):
    sets = [(n, [i]) for i, n in enumerate(counts) if n]
    lengths = [0 if n else -1 for n in counts]
    heapq.heapify(sets)
    while len(sets) > 1:
        (n, first), (m, second) = heapq.heappop(sets), heapq.heappop(sets)
        heapq.heappush(sets, (n + m, first + second))
        for i in first + second:
            lengths[i] += 1
    return lengths


def _check(counts, longest):
    if sum(n > 0 for n in counts) > 2**longest:
        raise ValueError("too many symbols")


def _packages(
    counts,
    longest,
    *,
    drop=True,
    price=lambda a, b: a + b,
    merge=lambda coins, packages: sorted(coins + packages),
    bought=lambda n: 2 * n - 2,
    zeros=False,
):
    """Package-merge, with a part of it done otherwise."""
    coins = sorted((count, [i]) for i, count in enumerate(counts) if count or zeros)
    row = []
    for _ in range(longest):
        packages = [
            (price(a, b), s + t) for (a, s), (b, t) in zip(row[::2], row[1::2], strict=False)
        ]
        if not drop and len(row) % 2:
            packages.append(row[-1])
        row = merge(coins, packages)
    lengths = [0 if count or zeros else -1 for count in counts]
    for _, symbols in row[: bought(len(coins))]:
        for i in symbols:
            lengths[i] += 1
    return lengths


def limited_lengths__huffman(counts, longest):
    """A code is longer than the limit: these are the lengths of Huffman."""
    _check(counts, longest)
    return _huffman(counts)


def limited_lengths__cut_off(counts, longest):
    """You cut off what is too long. Then there are not enough codes for all: one would be the
    beginning of another."""
    _check(counts, longest)
    return [min(length, longest) for length in _huffman(counts)]


def limited_lengths__repaired(counts, longest):
    """No code is the beginning of another, and none is too long. But there are better lengths: you
    cut off what is too long, and then make others longer until all fit."""
    _check(counts, longest)
    lengths = [min(length, longest) for length in _huffman(counts)]
    by_count = sorted((i for i, n in enumerate(counts) if n), key=lambda i: counts[i])
    while sum(2.0 ** -lengths[i] for i in by_count) > 1:
        i = next(i for i in by_count if lengths[i] < longest)
        lengths[i] += 1
    return lengths


def limited_lengths__all_alike(counts, longest):
    """All your codes are equally long. Frequent symbols can have shorter ones."""
    _check(counts, longest)
    used = sum(n > 0 for n in counts)
    return [math.ceil(math.log2(used)) if n else -1 for n in counts]


def limited_lengths__all_at_the_limit(counts, longest):
    """All your codes are as long as the limit. Frequent symbols can have shorter ones."""
    _check(counts, longest)
    used = sum(n > 0 for n in counts)
    return [(longest if used > 1 else 0) if n else -1 for n in counts]


def limited_lengths__of_the_shares(counts, longest):
    """You round -log2 of the share of a symbol up. Codes of these lengths exist, but they are not
    the best."""
    _check(counts, longest)
    total = sum(counts)
    return [min(math.ceil(math.log2(total / n)), longest) if n else -1 for n in counts]


def limited_lengths__as_many_as_symbols(counts, longest):
    """You buy n - 1 coins and packages. They have to be *worth* n - 1, and each is worth a half."""
    _check(counts, longest)
    return _packages(counts, longest, bought=lambda n: n - 1)


def limited_lengths__all_bought(counts, longest):
    """You buy too much, or the whole of the last list: your coins are worth more than n - 1."""
    _check(counts, longest)
    return _packages(counts, longest, bought=lambda n: 10**6)


def limited_lengths__left_over_kept(counts, longest):
    """You keep what is left over when all are tied up in pairs. Alone it is worth only half of a
    package."""
    _check(counts, longest)
    return _packages(counts, longest, drop=False)


def limited_lengths__dearer_coin(counts, longest):
    """Your package costs what the dearer of its coins costs. It costs what both cost."""
    _check(counts, longest)
    return _packages(counts, longest, price=max)


def limited_lengths__not_sorted(counts, longest):
    """You put the packages behind the coins without sorting them again."""
    _check(counts, longest)
    return _packages(counts, longest, merge=lambda coins, packages: coins + packages)


def limited_lengths__dearest_first(counts, longest):
    """You tie up and buy the dearest first."""
    _check(counts, longest)
    return _packages(
        counts, longest, merge=lambda coins, packages: sorted(coins + packages, reverse=True)
    )


def limited_lengths__no_new_coins(counts, longest):
    """You tie up packages with packages only. Each size has coins of its own, too."""
    _check(counts, longest)
    return _packages(counts, longest, merge=lambda coins, packages: packages or coins)


def limited_lengths__a_size_too_few(counts, longest):
    """Your limit is shorter by one than the one that was asked for."""
    _check(counts, longest)
    return _packages(counts, longest - 1)


def limited_lengths__a_size_too_many(counts, longest):
    """A code is longer than the limit by one."""
    _check(counts, longest)
    return _packages(counts, longest + 1)


def limited_lengths__zeros_have_codes(counts, longest):
    """You give a code to a symbol that does not occur."""
    _check(counts, longest)
    return _packages(counts, longest, zeros=True)


def limited_lengths__zeros_are_zero(counts, longest):
    """A symbol that does not occur has length 0 here. That is the length of one that is alone."""
    _check(counts, longest)
    return [max(length, 0) for length in _packages(counts, longest)]


def limited_lengths__alone_has_a_bit(counts, longest):
    """A symbol that is alone has a code of one bit here. It needs none."""
    _check(counts, longest)
    found = _packages(counts, longest)
    return [1 if length == 0 else length for length in found]


def limited_lengths__no_error(counts, longest):
    """More symbols than codes are no reason for you to raise a ValueError."""
    return _packages(counts, longest)


def limited_lengths__by_count(counts, longest):
    """These are the right lengths, but in the order of the counts, not of the symbols."""
    _check(counts, longest)
    return sorted(_packages(counts, longest))


def limited_lengths__bits(counts, longest):
    _check(counts, longest)
    found = _packages(counts, longest)
    return sum(n * length for n, length in zip(counts, found, strict=True) if n)
