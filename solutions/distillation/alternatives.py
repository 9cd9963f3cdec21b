"""Right answers to the exercises on distillation, written another way than the solution."""

import math

import numpy as np
import torch
from torch.nn import functional as F


def ensemble_logits__one_by_one(logits, weights, *, temperature):
    """Teachers that count for nothing are left out, so that no logarithm of 0 is needed."""
    total = sum(weights.tolist())
    found = None
    for scores, weight in zip(logits, weights.tolist(), strict=True):
        if weight > 0:
            part = F.log_softmax(scores / temperature, dim=1) + math.log(weight / total)
            found = part if found is None else torch.logaddexp(found, part)
    return found * temperature


def ensemble_logits__largest_taken_out(logits, weights, *, temperature):
    scaled = logits.numpy() / temperature
    scaled = scaled - scaled.max(-1, keepdims=True)
    log_p = scaled - np.log(np.exp(scaled).sum(-1, keepdims=True))
    used = weights.numpy() > 0
    log_p, share = log_p[used], (weights.numpy() / weights.numpy().sum())[used]
    top = log_p.max(0)
    return temperature * (top + np.log((share[:, None, None] * np.exp(log_p - top)).sum(0)))


def _nll(logits, labels, temperature):
    return F.cross_entropy(logits.double() / temperature, labels).item()


def best_temperature__golden_section(logits, labels, *, low, high):
    """In the logarithm of the temperature; of what it is a function of, the loss has one valley."""
    ratio = (5**0.5 - 1) / 2
    a, b = math.log(low), math.log(high)
    while b - a > 1e-7:
        c, d = b - ratio * (b - a), a + ratio * (b - a)
        if _nll(logits, labels, math.exp(c)) < _nll(logits, labels, math.exp(d)):
            b = d
        else:
            a = c
    return math.exp((a + b) / 2)


def best_temperature__grids(logits, labels, *, low, high):
    """A grid between the neighbours of the best point of the last one, five times."""
    first, last = low, high
    for _ in range(5):
        grid = np.geomspace(first, last, 101)
        best = int(np.argmin([_nll(logits, labels, t) for t in grid]))
        first, last = grid[max(best - 1, 0)], grid[min(best + 1, 100)]
    return float(grid[best])


def relational_loss__loops(student, teacher):
    def relations(states):
        rows = states.double().numpy()
        n = len(rows)
        found = [np.sqrt(((rows[i] - rows[j]) ** 2).sum()) for i in range(n) for j in range(i)]
        mean = sum(found) / len(found)
        return [d / mean if mean > 0 else 0.0 for d in found]

    total, count = 0.0, 0
    for s, t in zip(relations(student), relations(teacher), strict=True):
        e = abs(s - t)
        total, count = total + (e * e / 2 if e <= 1 else e - 0.5), count + 1
    return total / count


def relational_loss__whole_matrices(student, teacher):
    """Every pair twice, and the diagonal left out of both means."""
    n = len(student)
    other = ~torch.eye(n, dtype=torch.bool)
    found = []
    for states in (student, teacher):
        distances = (states[:, None] - states[None]).norm(dim=-1)
        mean = distances.sum() / (n * (n - 1))
        found.append((distances / mean if mean > 0 else distances)[other])
    return F.huber_loss(*found, delta=1.0)


def align_tokens__characters(student, teacher):
    """Through the characters: which tokens has each?"""
    length = max((end for _, end in [*student, *teacher]), default=0)

    def marks(tokens):
        found = torch.zeros(len(tokens), length, dtype=torch.float64)
        for i, (start, end) in enumerate(tokens):
            found[i, start:end] = 1
        return found

    shared = marks(student) @ marks(teacher).T
    special = [[i for i, (a, b) in enumerate(tokens) if a == b] for tokens in (student, teacher)]
    for i, j in zip(*special, strict=False):
        shared[i, j] = 1
    total = shared.sum(1, keepdim=True)
    return torch.where(total > 0, shared / total.where(total > 0, 1), 0)


def align_tokens__lists(student, teacher):
    places = iter([j for j, (start, end) in enumerate(teacher) if start == end])
    rows = []
    for start, end in student:
        if start == end:
            mine = next(places, None)
            row = [float(j == mine) for j in range(len(teacher))]
        else:
            row = [max(0, min(end, e) - max(start, s)) for s, e in teacher]
            row = [x / (sum(row) or 1) for x in row]
        rows.append(row)
    return np.array(rows)


def jensen_shannon_loss__entropies(student, teacher, mask, *, beta):
    """The entropy of the mixture less the mean of the entropies."""
    if not mask.any():
        return 0.0
    p, q = (x[mask.bool()].softmax(-1) for x in (teacher, student))
    log_p, log_q = (x[mask.bool()].log_softmax(-1) for x in (teacher, student))
    if beta in (0, 1):
        a, log_a, log_b = (p, log_p, log_q) if beta == 0 else (q, log_q, log_p)
        return (a * (log_a - log_b)).masked_fill(a == 0, 0).sum(-1).mean()
    entropy = torch.special.entr
    mixed = entropy(beta * p + (1 - beta) * q).sum(-1)
    apart = beta * entropy(p).sum(-1) + (1 - beta) * entropy(q).sum(-1)
    return (mixed - apart).mean() / (beta * (1 - beta))


def jensen_shannon_loss__positions(student, teacher, mask, *, beta):
    """One position after another, only with the tokens that have a probability."""

    def divergence(p, log_p, log_q):
        some = p > 0
        return (p[some] * (log_p[some] - log_q[some])).sum()

    total, count = torch.zeros(()).double(), 0
    for b, t in mask.nonzero().tolist():
        log_p, log_q = teacher[b, t].log_softmax(0), student[b, t].log_softmax(0)
        p, q = log_p.exp(), log_q.exp()
        if beta == 0:
            value = divergence(p, log_p, log_q)
        elif beta == 1:
            value = divergence(q, log_q, log_p)
        else:
            m = beta * p + (1 - beta) * q
            value = divergence(p, log_p, m.log()) / (1 - beta)
            value = value + divergence(q, log_q, m.log()) / beta
        total, count = total + value, count + 1
    return total / max(count, 1)


def choose_questions__all_pairs(logits, states, count):
    """All inner products at once, and numpy."""
    z, h = logits.double().numpy(), states.double().numpy()
    e = np.exp(z - z.max(1, keepdims=True))
    a = e / e.sum(1, keepdims=True)
    a[np.arange(len(a)), z.argmax(1)] -= 1
    inner = (a @ a.T) * (h @ h.T)
    size = inner.diagonal()
    distances = size[:, None] + size - 2 * inner
    chosen = [int(size.argmax())]
    while len(chosen) < count:
        nearest = distances[:, chosen].min(1)
        nearest[chosen] = -np.inf
        chosen.append(int(nearest.argmax()))
    return chosen


def choose_questions__one_by_one(logits, states, count):
    def length(i):
        return (a[i] @ a[i]) * (h[i] @ h[i])

    def distance(i, j):
        return length(i) + length(j) - 2 * (a[i] @ a[j]) * (h[i] @ h[j])

    a, h = logits.double().softmax(1), states.double()
    a[range(len(a)), logits.argmax(1)] -= 1
    far = {i: length(i) for i in range(len(a))}
    chosen = []
    for _ in range(count):
        last = max(far, key=far.get)  # the first of equals
        del far[last]
        for i in far:
            far[i] = min(far[i], distance(i, last)) if chosen else distance(i, last)
        chosen.append(last)
    return torch.tensor(chosen)
