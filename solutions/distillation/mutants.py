"""Typical mistakes in the exercises on distillation, and what the instant check says of each.

A function is called after its exercise and its mistake; its docstring is the sentence for the
student, which names the mistake and never tells the answer. Those without a docstring are caught
by hidden inputs only, or by a shape or type: there is nothing to say about them on SHOWN inputs.
"""

import math

import torch
from torch.nn import functional as F

# ---------------------------------------------------------------- ensemble_logits


def _mean(logits, weights, temperature):
    """The mean of the probabilities."""
    share = weights / weights.sum()
    return (share[:, None, None] * (logits / temperature).softmax(-1)).sum(0)


def ensemble_logits__mean_of_logits(logits, weights, *, temperature):
    """You take the mean of the logits. That is the geometric mean of the probabilities, up to a
    factor; the arithmetic one is wanted."""
    share = (weights / weights.sum())[:, None, None]
    return temperature * ((share * logits).sum(0) / temperature).log_softmax(-1)


def ensemble_logits__mean_of_logarithms(logits, weights, *, temperature):
    """You take the mean of the logarithms of the probabilities. The mean of the probabilities
    themselves is wanted."""
    share = (weights / weights.sum())[:, None, None]
    return temperature * (share * (logits / temperature).log_softmax(-1)).sum(0)


def ensemble_logits__probabilities(logits, weights, *, temperature):
    """You give back probabilities. Logits are wanted."""
    return _mean(logits, weights, temperature)


def ensemble_logits__temperature_not_undone(logits, weights, *, temperature):
    """The result is divided by the temperature already. Whoever uses it divides again."""
    return _mean(logits, weights, temperature).log()


def ensemble_logits__temperature_undone_twice(logits, weights, *, temperature):
    """You multiply by the temperature more often than you divided by it."""
    return temperature**2 * _mean(logits, weights, temperature).log()


def ensemble_logits__no_temperature(logits, weights, *, temperature):
    """You take the mean of the probabilities at temperature 1, whatever the temperature is. It is
    the soft targets that are to be averaged."""
    return _mean(logits, weights, 1.0).log()


def ensemble_logits__temperature_multiplies(logits, weights, *, temperature):
    """You multiply by the temperature where soft targets divide by it."""
    return _mean(logits, weights, 1 / temperature).log() / temperature


def ensemble_logits__all_alike(logits, weights, *, temperature):
    """All teachers count the same here. They have weights."""
    return temperature * _mean(logits, torch.ones_like(weights), temperature).log()


def ensemble_logits__weights_as_they_are(logits, weights, *, temperature):
    """Your probabilities do not add up to 1: the weights need not, so that you have to divide by
    their sum."""
    return temperature * (_mean(logits, weights, temperature) * weights.sum()).log()


def ensemble_logits__softmax_of_the_weights(logits, weights, *, temperature):
    """You take a softmax of the weights. They are proportions already."""
    return temperature * _mean(logits, weights.softmax(0), temperature).log()


def ensemble_logits__no_constant(logits, weights, *, temperature):
    """The soft targets are right. But exp(result / temperature) does not add up to 1: the constant
    that the docstring fixes is another one."""
    found = temperature * _mean(logits, weights, temperature).log()
    return found - found.amax(-1, keepdim=True)


def ensemble_logits__too_small_for_a_number(logits, weights, *, temperature):
    """A probability that is too small for a number becomes 0 here, and its logarithm infinite.
    Stay with logarithms, and add probabilities up without leaving them."""
    return temperature * _mean(logits, weights, temperature).log()


def ensemble_logits__zero_is_clamped(logits, weights, *, temperature):
    """You put a small number in the place of a probability that is too small. What it was is then
    lost; stay with logarithms."""
    return temperature * _mean(logits, weights, temperature).clamp(min=1e-30).log()


def ensemble_logits__over_the_batch(logits, weights, *, temperature):
    share = (weights / weights.sum())[:, None, None]
    return temperature * ((logits / temperature).log_softmax(1) + share.log()).logsumexp(0)


# ---------------------------------------------------------------- best_temperature


def _search(loss, low, high):
    """The temperature where a loss with one valley is lowest."""
    ratio = (5**0.5 - 1) / 2
    a, b = math.log(low), math.log(high)
    for _ in range(60):
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        a, b = (a, d) if loss(math.exp(c)) < loss(math.exp(d)) else (c, b)
    return math.exp((a + b) / 2)


def _likelihood(logits, labels):
    return lambda t: F.cross_entropy(logits.double() / t, labels).item()


def best_temperature__inverse(logits, labels, *, low, high):
    """You give back the factor of the logits. The temperature is one over it."""
    return 1 / _search(_likelihood(logits, labels), low, high)


def best_temperature__multiplies(logits, labels, *, low, high):
    """You multiply the logits by the temperature. They are to be divided by it."""
    return _search(lambda t: F.cross_entropy(logits.double() * t, labels).item(), low, high)


def best_temperature__likelihood_upside_down(logits, labels, *, low, high):
    """You have the temperature at which the labels are *least* likely, of the two ends."""
    return max(low, high, key=_likelihood(logits, labels))


def best_temperature__confidence_is_accuracy(logits, labels, *, low, high):
    """At your temperature the mean confidence is the accuracy. That is a good thing, but another
    one than the least negative log-likelihood."""
    hits = (logits.argmax(1) == labels).double().mean()
    a, b = low, high
    for _ in range(60):
        t = (a * b) ** 0.5
        confidence = (logits.double() / t).softmax(1).amax(1).mean()
        a, b = (t, b) if confidence > hits else (a, t)
    return t


def best_temperature__least_squares(logits, labels, *, low, high):
    """You minimise the squared error of the probabilities. The negative log-likelihood is
    wanted."""
    target = F.one_hot(labels, logits.shape[1])

    def loss(t):
        return ((logits.double() / t).softmax(1) - target).square().sum(1).mean().item()

    return _search(loss, low, high)


def best_temperature__own_labels(logits, labels, *, low, high):
    """You look only at what the classifier gets right, or take its own answers for the labels: then
    no temperature is too low. It is mistakes that speak against being sure."""
    return _search(_likelihood(logits, logits.argmax(1)), low, high)


def best_temperature__no_logarithm(logits, labels, *, low, high):
    """You maximise the mean probability of the labels. The mean of its *logarithm* is wanted, which
    makes a sure mistake expensive."""

    def loss(t):
        return -(logits.double() / t).softmax(1).gather(1, labels[:, None]).mean().item()

    return min(torch.logspace(math.log10(low), math.log10(high), 4001).tolist(), key=loss)


def best_temperature__softmax_twice(logits, labels, *, low, high):
    """You give probabilities to a function that takes a softmax itself."""

    def loss(t):
        return F.cross_entropy((logits.double() / t).softmax(1), labels).item()

    return min(torch.logspace(math.log10(low), math.log10(high), 4001).tolist(), key=loss)


def best_temperature__coarse(logits, labels, *, low, high):
    """Your temperature is near, but not right to five digits: the grid is too coarse, or the search
    ends too early."""
    return min(torch.linspace(low, high, 200).tolist(), key=_likelihood(logits, labels))


def best_temperature__short_search(logits, labels, *, low, high):
    """Your temperature is not right to five digits: the search ends too early."""
    t = _search(_likelihood(logits, labels), low, high)
    return round(t, 2)


def best_temperature__not_below_one(logits, labels, *, low, high):
    """You look at temperatures from 1 on only. A classifier can also be too unsure."""
    return _search(_likelihood(logits, labels), 1.0, high)


def best_temperature__no_low_end(logits, labels, *, low, high):
    """Your temperature is below the lower end."""
    return _search(_likelihood(logits, labels), low / 100, high)


def best_temperature__no_high_end(logits, labels, *, low, high):
    """Your temperature is above the higher end."""
    return _search(_likelihood(logits, labels), low, 100 * high)


def best_temperature__root(logits, labels, *, low, high):
    """You have the square root of the temperature."""
    return _search(_likelihood(logits, labels), low, high) ** 0.5


def best_temperature__with_the_loss(logits, labels, *, low, high):
    t = _search(_likelihood(logits, labels), low, high)
    return t, _likelihood(logits, labels)(t)


# ---------------------------------------------------------------- relational_loss


def _relations(states, *, scale=torch.mean):
    distances = torch.pdist(states)
    return distances / scale(distances) if distances.any() else distances


def relational_loss__no_mean(student, teacher):
    """You compare the distances as they are. Divide those of each model by their own mean."""
    return F.huber_loss(torch.pdist(student), torch.pdist(teacher))


def relational_loss__one_mean(student, teacher):
    """You divide the distances of both models by the mean of the teacher's. Each has a scale of its
    own."""
    mean = torch.pdist(teacher).mean()
    return F.huber_loss(torch.pdist(student) / mean, torch.pdist(teacher) / mean)


def relational_loss__mean_with_the_diagonal(student, teacher):
    """Your mean has the distance of each sentence to itself in it."""

    def mean(distances):
        n = len(student)
        return 2 * distances.sum() / n**2

    return F.huber_loss(_relations(student, scale=mean), _relations(teacher, scale=mean))


def relational_loss__diagonal_in_the_loss(student, teacher):
    """The mean of your loss has the pair of each sentence with itself in it, which can have no
    error."""
    n = len(student)
    return F.huber_loss(_relations(student), _relations(teacher)) * (n - 1) / n


def relational_loss__sum(student, teacher):
    """You take the sum over the pairs. The mean is wanted."""
    return F.huber_loss(_relations(student), _relations(teacher), reduction="sum")


def relational_loss__squares(student, teacher):
    """You take the mean of the squared differences. Huber's loss is half of the square where the
    difference is small, and grows more slowly where it is large."""
    return F.mse_loss(_relations(student), _relations(teacher))


def relational_loss__half_squares(student, teacher):
    """You take half of the square also where the difference is above 1. From there on Huber's loss
    is a straight line."""
    return F.mse_loss(_relations(student), _relations(teacher)) / 2


def relational_loss__absolute(student, teacher):
    """You take the absolute differences. Huber's loss is half of the square where they are
    small."""
    return F.l1_loss(_relations(student), _relations(teacher))


def relational_loss__squared_distances(student, teacher):
    """Your distances are squares: the root is missing."""

    def relations(states):
        squares = torch.pdist(states).square()
        return squares / squares.mean() if squares.any() else squares

    return F.huber_loss(relations(student), relations(teacher))


def relational_loss__city_blocks(student, teacher):
    """You add up absolute differences for a distance. The Euclidean one is wanted."""

    def relations(states):
        distances = torch.pdist(states, p=1)
        return distances / distances.mean() if distances.any() else distances

    return F.huber_loss(relations(student), relations(teacher))


def relational_loss__cosines(student, teacher):
    """You compare cosines. Distances are wanted."""

    def cosines(states):
        rows = F.normalize(states, dim=1)
        return rows @ rows.T

    return F.huber_loss(cosines(student), cosines(teacher))


def relational_loss__largest(student, teacher):
    """You divide by the largest distance. The mean is the unit here."""
    return F.huber_loss(_relations(student, scale=torch.max), _relations(teacher, scale=torch.max))


def relational_loss__divided_by_nothing(student, teacher):
    """Where all states of a model are the same you divide zeros by zero. The distances are 0
    there."""
    distances = [torch.pdist(x) for x in (student, teacher)]
    return F.huber_loss(*[d / d.mean() for d in distances])


def relational_loss__neighbours(student, teacher):
    """You compare each sentence with the next one only. All pairs are wanted."""

    def relations(states):
        distances = (states[1:] - states[:-1]).norm(dim=1)
        return distances / distances.mean() if distances.any() else distances

    return F.huber_loss(relations(student), relations(teacher))


def relational_loss__squares_expanded(student, teacher):
    def relations(states):
        squares = states.square().sum(1)
        squares = squares[:, None] + squares - 2 * states @ states.T
        first, second = torch.triu_indices(len(states), len(states), 1)
        distances = squares[first, second].clamp(min=0).sqrt()
        return distances / distances.mean() if distances.any() else distances

    return F.huber_loss(relations(student), relations(teacher))


# ---------------------------------------------------------------- align_tokens


def _shared(student, teacher):
    """Characters that each token of the student has in common with each of the teacher."""
    s, t = (torch.tensor(tokens).view(-1, 2).double() for tokens in (student, teacher))
    ends = torch.minimum(s[:, 1, None], t[:, 1])
    return (ends - torch.maximum(s[:, 0, None], t[:, 0])).clamp(min=0)


def _special(student, teacher):
    """Pairs of special tokens."""
    places = [[i for i, (a, b) in enumerate(x) if a == b] for x in (student, teacher)]
    return list(zip(*places, strict=False))


def _with_special(weights, student, teacher):
    for i, j in _special(student, teacher):
        weights[i, j] = 1
    return weights


def _to_one(weights, dim=1):
    total = weights.sum(dim, keepdim=True)
    return weights / total.where(total > 0, 1)


def _aligned(student, teacher):
    return _to_one(_with_special(_shared(student, teacher), student, teacher))


def align_tokens__by_place(student, teacher):
    """You align tokens by their place in the sentence. As soon as one word is cut otherwise, all
    that comes after it is shifted."""
    return torch.eye(len(student), len(teacher))


def align_tokens__characters_counted(student, teacher):
    """You give back how many characters are shared. The weights of a token have to add up to 1."""
    return _with_special(_shared(student, teacher), student, teacher)


def align_tokens__all_pieces_alike(student, teacher):
    """All pieces of the teacher count the same here, whatever their length. They count by the
    characters that they share with the token."""
    some = (_shared(student, teacher) > 0).double()
    return _to_one(_with_special(some, student, teacher))


def align_tokens__first_piece(student, teacher):
    """You take the first piece of the teacher that has a part of the token. It may have several."""
    weights, shared = torch.zeros(len(student), len(teacher)), _shared(student, teacher)
    for i, row in enumerate(shared):
        if row.any():
            weights[i, int((row > 0).int().argmax())] = 1
    return _with_special(weights, student, teacher)


def align_tokens__largest_piece(student, teacher):
    """You take the one piece of the teacher that has most of the token. The others have a weight,
    too."""
    weights, shared = torch.zeros(len(student), len(teacher)), _shared(student, teacher)
    for i, row in enumerate(shared):
        if row.any():
            weights[i, int(row.argmax())] = 1
    return _with_special(weights, student, teacher)


def align_tokens__same_start(student, teacher):
    """You look for a token of the teacher that begins at the same character. A piece in the middle
    of a word has none."""
    starts = {start: j for j, (start, end) in enumerate(teacher) if start < end}
    weights = torch.zeros(len(student), len(teacher))
    for i, (start, end) in enumerate(student):
        if start < end and start in starts:
            weights[i, starts[start]] = 1
    return _with_special(weights, student, teacher)


def align_tokens__columns_add_up(student, teacher):
    """In your matrix the weights of each token of the *teacher* add up to 1. It is the student's
    tokens that receive a mean."""
    return _to_one(_with_special(_shared(student, teacher), student, teacher), dim=0)


def align_tokens__own_length(student, teacher):
    """You divide by the length of the student's token. Some of its characters may belong to no
    token of the teacher; the weights have to add up to 1 all the same."""
    own = torch.tensor([max(end - start, 1) for start, end in student])[:, None]
    return _with_special(_shared(student, teacher) / own, student, teacher)


def align_tokens__length_of_the_teachers(student, teacher):
    """A token of the teacher counts here by its whole length. What counts is what it shares with
    this token of the student."""
    own = torch.tensor([float(end - start) for start, end in teacher])
    weights = (_shared(student, teacher) > 0) * own
    return _to_one(_with_special(weights, student, teacher))


def align_tokens__touching(student, teacher):
    """Tokens that only touch share a character in your count. The end of a span is not in it."""
    weights = torch.zeros(len(student), len(teacher)).double()
    for i, (a, b) in enumerate(student):
        for j, (c, d) in enumerate(teacher):
            if a < b and c < d:
                weights[i, j] = max(0, min(b, d) - max(a, c) + 1)
    return _to_one(_with_special(weights, student, teacher))


def align_tokens__no_special_tokens(student, teacher):
    """Special tokens have a row of zeros here. They have no characters, but they have a partner."""
    return _to_one(_shared(student, teacher))


def align_tokens__special_all_alike(student, teacher):
    """Every special token is aligned with all special tokens. The first belongs to the first, the
    second to the second."""
    weights = _shared(student, teacher)
    for i, (a, b) in enumerate(student):
        for j, (c, d) in enumerate(teacher):
            if a == b and c == d:
                weights[i, j] = 1
    return _to_one(weights)


def align_tokens__special_by_place(student, teacher):
    """You look for the partner of a special token at its own place. It may be at another one."""
    weights = _shared(student, teacher)
    for i, (span, other) in enumerate(zip(student, teacher, strict=False)):
        if span[0] == span[1] and other[0] == other[1]:
            weights[i, i] = 1
    return _to_one(weights)


def align_tokens__nothing_shared(student, teacher):
    """A token of which the teacher has no character gets weights that are no numbers. It has a row
    of zeros."""
    weights = _with_special(_shared(student, teacher), student, teacher)
    return weights / weights.sum(1, keepdim=True)


def align_tokens__nothing_shared_is_the_mean(student, teacher):
    """A token of which the teacher has no character gets a mean of all tokens. It has a row of
    zeros."""
    weights = _with_special(_shared(student, teacher), student, teacher)
    weights[weights.sum(1) == 0] = 1
    return _to_one(weights)


def align_tokens__transposed(student, teacher):
    return _aligned(student, teacher).T


# ---------------------------------------------------------------- jensen_shannon_loss


def _kl(log_p, log_q):
    """Of each position, 0 where p is 0."""
    return torch.where(log_p > -torch.inf, log_p.exp() * (log_p - log_q), 0).sum(-1)


def _logs(student, teacher):
    return student.log_softmax(-1), teacher.log_softmax(-1)


def _each(student, teacher, beta):
    """The loss of each position."""
    log_q, log_p = _logs(student, teacher)
    if beta == 0:
        return _kl(log_p, log_q)
    if beta == 1:
        return _kl(log_q, log_p)
    mixed = torch.logaddexp(math.log(beta) + log_p, math.log(1 - beta) + log_q)
    return _kl(log_p, mixed) / (1 - beta) + _kl(log_q, mixed) / beta


def _over(values, mask):
    return values[mask.bool()].sum() / mask.sum().clamp(min=1)


def _whole(student, teacher, mask, beta):
    return _over(_each(student, teacher, beta), mask)


def jensen_shannon_loss__exchanged(student, teacher, mask, *, beta):
    """You have student and teacher exchanged, or beta and 1 - beta."""
    return _whole(teacher, student, mask, beta)


def jensen_shannon_loss__not_divided(student, teacher, mask, *, beta):
    """The factor 1 / (beta · (1 - beta)) is missing: near its ends the loss would vanish."""
    return _whole(student, teacher, mask, beta) * (beta * (1 - beta) if 0 < beta < 1 else 1)


def jensen_shannon_loss__vanishes(student, teacher, mask, *, beta):
    """At its ends your loss is 0, or no number. It is a divergence there, too: the limit."""
    if beta in (0, 1):
        return 0.0
    return _whole(student, teacher, mask, beta)


def jensen_shannon_loss__ends_exchanged(student, teacher, mask, *, beta):
    """Between its ends your loss is right. But you have the two ends exchanged."""
    return _whole(student, teacher, mask, 1 - beta if beta in (0, 1) else beta)


def jensen_shannon_loss__only_forward(student, teacher, mask, *, beta):
    """You have the divergence of the student from the teacher only, whatever beta is."""
    return _whole(student, teacher, mask, 0)


def jensen_shannon_loss__sum_of_both(student, teacher, mask, *, beta):
    """You mix the two divergences. Here the two *distributions* are mixed, and each is compared
    with the mixture."""
    log_q, log_p = _logs(student, teacher)
    return _over((1 - beta) * _kl(log_p, log_q) + beta * _kl(log_q, log_p), mask)


def jensen_shannon_loss__logits_mixed(student, teacher, mask, *, beta):
    """You mix logits, or logarithms of probabilities. The probabilities are mixed."""
    if beta in (0, 1):
        return _whole(student, teacher, mask, beta)
    log_q, log_p = _logs(student, teacher)
    mixed = (beta * log_p + (1 - beta) * log_q).log_softmax(-1)
    return _over(_kl(log_p, mixed) / (1 - beta) + _kl(log_q, mixed) / beta, mask)


def jensen_shannon_loss__mixture_exchanged(student, teacher, mask, *, beta):
    """The mixture has beta of the student. It is the teacher's part."""
    if beta in (0, 1):
        return _whole(student, teacher, mask, beta)
    log_q, log_p = _logs(student, teacher)
    mixed = torch.logaddexp(math.log(1 - beta) + log_p, math.log(beta) + log_q)
    return _over(_kl(log_p, mixed) / (1 - beta) + _kl(log_q, mixed) / beta, mask)


def jensen_shannon_loss__weights_exchanged(student, teacher, mask, *, beta):
    """The mixture is right. The weights of the two divergences are exchanged."""
    if beta in (0, 1):
        return _whole(student, teacher, mask, beta)
    log_q, log_p = _logs(student, teacher)
    mixed = torch.logaddexp(math.log(beta) + log_p, math.log(1 - beta) + log_q)
    return _over(_kl(log_p, mixed) / beta + _kl(log_q, mixed) / (1 - beta), mask)


def jensen_shannon_loss__from_the_mixture(student, teacher, mask, *, beta):
    """Your divergences go the other way: from the mixture to the two, and not from each of the two
    to the mixture."""
    if beta in (0, 1):
        return _whole(student, teacher, mask, beta)
    log_q, log_p = _logs(student, teacher)
    mixed = torch.logaddexp(math.log(beta) + log_p, math.log(1 - beta) + log_q)
    return _over(_kl(mixed, log_p) / (1 - beta) + _kl(mixed, log_q) / beta, mask)


def jensen_shannon_loss__always_half(student, teacher, mask, *, beta):
    """You mix half and half, whatever beta is."""
    return _whole(student, teacher, mask, 0.5)


def jensen_shannon_loss__padding_counts(student, teacher, mask, *, beta):
    """Padding is in your mean."""
    if not mask.any():
        return 0.0
    return _each(student, teacher, beta).mean()


def jensen_shannon_loss__padding_in_the_count(student, teacher, mask, *, beta):
    """You set the loss of padding to 0, and still divide by the number of all positions."""
    return (_each(student, teacher, beta) * mask).mean()


def jensen_shannon_loss__mean_of_means(student, teacher, mask, *, beta):
    """You take the mean of each sentence first. Every position that counts weighs the same."""
    values = (_each(student, teacher, beta) * mask).sum(1) / mask.sum(1).clamp(min=1)
    return values.mean()


def jensen_shannon_loss__sum(student, teacher, mask, *, beta):
    """You take the sum over the positions. The mean is wanted."""
    return (_each(student, teacher, beta) * mask).sum()


def jensen_shannon_loss__mean_over_tokens(student, teacher, mask, *, beta):
    """You take the mean over the tokens of the vocabulary. A divergence is their sum."""
    return _whole(student, teacher, mask, beta) / student.shape[-1]


def jensen_shannon_loss__nothing_counts(student, teacher, mask, *, beta):
    """Where no position counts you divide by 0."""
    return _each(student, teacher, beta)[mask.bool()].mean()


def jensen_shannon_loss__zero_times_infinity(student, teacher, mask, *, beta):
    """A token without any probability makes your loss no number: 0 times infinity. It adds nothing
    to a divergence."""
    log_q, log_p = _logs(student, teacher)

    def kl(a, b):
        return (a.exp() * (a - b)).sum(-1)

    if beta in (0, 1):
        return _over(kl(log_p, log_q) if beta == 0 else kl(log_q, log_p), mask)
    mixed = torch.logaddexp(math.log(beta) + log_p, math.log(1 - beta) + log_q)
    return _over(kl(log_p, mixed) / (1 - beta) + kl(log_q, mixed) / beta, mask)


def jensen_shannon_loss__in_bits(student, teacher, mask, *, beta):
    """Your logarithm is the one to the base 2. Divergences are in nats here."""
    return _whole(student, teacher, mask, beta) / math.log(2)


def jensen_shannon_loss__each_position(student, teacher, mask, *, beta):
    return _each(student, teacher, beta) * mask


# ---------------------------------------------------------------- choose_questions


def _gradients(logits):
    """Of the loss with respect to the logits, for the student's own answer."""
    own = F.one_hot(logits.argmax(1), logits.shape[1])
    return logits.double().softmax(1) - own


def _spread(distances, first, count, *, far=torch.amin):
    """From one sentence on always the one that is farthest from those chosen."""
    chosen = [int(first)]
    while len(chosen) < count:
        nearest = far(distances[:, chosen], 1)
        nearest[chosen] = -1
        chosen.append(int(nearest.argmax()))
    return chosen


def _distances(vectors):
    return (vectors[:, None] - vectors[None]).norm(dim=-1)


def _outer(logits, states):
    return (_gradients(logits)[:, :, None] * states.double()[:, None]).flatten(1)


def choose_questions__least_sure(logits, states, count):
    """You take the sentences of which the student is least sure. Whether they are alike has no say
    in it."""
    unsure = _gradients(logits).norm(dim=1)
    return unsure.argsort(descending=True, stable=True)[:count].tolist()


def choose_questions__longest(logits, states, count):
    """You take the longest gradients. From the second one on it is the distance from those chosen
    that counts."""
    sizes = _outer(logits, states).norm(dim=1)
    return sizes.argsort(descending=True, stable=True)[:count].tolist()


def choose_questions__states_alone(logits, states, count):
    """You measure how far the states are apart. How sure the student is has no say in it: its
    gradients are wanted."""
    first = states.norm(dim=1).argmax()
    return _spread(_distances(states.double()), first, count)


def choose_questions__logits_alone(logits, states, count):
    """You take the gradient with respect to the logits. That with respect to the weights has the
    states in it, too."""
    vectors = _gradients(logits)
    return _spread(_distances(vectors), vectors.norm(dim=1).argmax(), count)


def choose_questions__side_by_side(logits, states, count):
    """You put the gradient of the logits and the state side by side. Every entry of the one is
    multiplied by every entry of the other."""
    vectors = torch.cat([_gradients(logits), states.double()], 1)
    return _spread(_distances(vectors), vectors.norm(dim=1).argmax(), count)


def choose_questions__no_target(logits, states, count):
    """You have the probabilities where the gradient belongs: the target is missing, which is 1 for
    the label that the student would choose."""
    vectors = (logits.double().softmax(1)[:, :, None] * states.double()[:, None]).flatten(1)
    return _spread(_distances(vectors), vectors.norm(dim=1).argmax(), count)


def choose_questions__least_likely_target(logits, states, count):
    """Your target is the label that the student takes for the least likely."""
    own = F.one_hot(logits.argmin(1), logits.shape[1])
    vectors = (logits.double().softmax(1) - own)[:, :, None] * states.double()[:, None]
    vectors = vectors.flatten(1)
    return _spread(_distances(vectors), vectors.norm(dim=1).argmax(), count)


def choose_questions__no_softmax(logits, states, count):
    """You use logits as if they were probabilities."""
    vectors = (logits - F.one_hot(logits.argmax(1), logits.shape[1]))[:, :, None] * states[:, None]
    vectors = vectors.flatten(1)
    return _spread(_distances(vectors), vectors.norm(dim=1).argmax(), count)


def choose_questions__begins_with_the_first(logits, states, count):
    """You begin with sentence 0. The one with the longest gradient comes first."""
    return _spread(_distances(_outer(logits, states)), 0, count)


def choose_questions__begins_with_the_shortest(logits, states, count):
    """You begin with the shortest gradient."""
    vectors = _outer(logits, states)
    return _spread(_distances(vectors), vectors.norm(dim=1).argmin(), count)


def choose_questions__from_the_last(logits, states, count):
    """You look for the sentence that is farthest from the one chosen *last*. All that were chosen
    have to be far."""
    vectors = _outer(logits, states)
    distances, chosen = _distances(vectors), [int(vectors.norm(dim=1).argmax())]
    while len(chosen) < count:
        found = distances[chosen[-1]].clone()
        found[chosen] = -1
        chosen.append(int(found.argmax()))
    return chosen


def choose_questions__far_from_one(logits, states, count):
    """You look for the sentence that is far from *some* that were chosen. The nearest of them is
    the one that counts."""
    vectors = _outer(logits, states)
    first = vectors.norm(dim=1).argmax()
    return _spread(_distances(vectors), first, count, far=torch.amax)


def choose_questions__far_on_average(logits, states, count):
    """You take the mean of the distances from those chosen. The nearest of them is the one that
    counts."""
    vectors = _outer(logits, states)
    first = vectors.norm(dim=1).argmax()
    return _spread(_distances(vectors), first, count, far=torch.mean)


def choose_questions__nearest(logits, states, count):
    """You look for the sentence that is *nearest* to those chosen."""
    vectors = _outer(logits, states)
    chosen, distances = [int(vectors.norm(dim=1).argmax())], _distances(vectors)
    while len(chosen) < count:
        nearest = distances[:, chosen].amin(1)
        nearest[chosen] = torch.inf
        chosen.append(int(nearest.argmin()))
    return chosen


def choose_questions__last_of_equals(logits, states, count):
    """Of sentences that are equally far, the one with the smaller number is wanted."""
    found = _spread_backwards(logits.flip(0), states.flip(0), count)
    return [len(logits) - 1 - i for i in found]


def _spread_backwards(logits, states, count):
    vectors = _outer(logits, states)
    return _spread(_distances(vectors), vectors.norm(dim=1).argmax(), count)


def choose_questions__sorted(logits, states, count):
    """These are the right sentences, but not in the order in which they were chosen."""
    return sorted(_spread_backwards(logits, states, count))


def choose_questions__distance_times_distance(logits, states, count):
    """You multiply the distance of the logits' gradients by the distance of the states. That is not
    the distance of the products."""
    vectors, h = _gradients(logits), states.double()
    first = (vectors.norm(dim=1) * h.norm(dim=1)).argmax()
    return _spread(_distances(vectors) * _distances(h), first, count)


def choose_questions__mask(logits, states, count):
    chosen = torch.zeros(len(logits), dtype=torch.bool)
    chosen[_spread_backwards(logits, states, count)] = True
    return chosen
