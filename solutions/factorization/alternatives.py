"""Right answers to the exercises on factorization, written another way than the solution."""

import math
from itertools import accumulate

import numpy as np
import torch

from compresslab.factorization.svd import break_even_rank, truncated_svd


def energy_rank__loop(singular_values, fraction, *, shape):
    squares = [float(s) ** 2 for s in singular_values]
    *_, total = accumulate(squares)
    rank = next(r for r, kept in enumerate(accumulate(squares), 1) if kept >= fraction * total)
    pays = rank <= break_even_rank(*shape)
    return rank, rank * sum(shape) if pays else math.prod(shape)


def energy_rank__numpy(singular_values, fraction, *, shape):
    kept = np.cumsum(np.asarray(singular_values, dtype=np.float64) ** 2)
    rank = 1 + np.searchsorted(kept, fraction * kept[-1])
    m, n = shape
    return int(rank), int(min(m * n, (m + n) * rank))


def shared_factor__projection(weights, *, budget):
    """The right factor spans the leading eigenvectors of the sum of all Wᵀ W."""
    columns = weights[0].shape[1]
    rows = sum(len(w) for w in weights)
    rank = min(budget // (rows + columns), rows, columns)
    if rank == 0:
        raise ValueError("too small")
    vectors = torch.linalg.eigh(sum(w.T @ w for w in weights)).eigenvectors[:, -rank:]
    return [w @ vectors @ vectors.T for w in weights], rank


def shared_factor__library(weights, *, budget):
    cost = weights[0].shape[1] + sum(w.shape[0] for w in weights)
    if budget < cost:
        raise ValueError(f"{budget} < {cost}")
    stacked = torch.vstack(weights)
    rank = min(int(budget / cost), min(stacked.shape))
    left, right = truncated_svd(stacked, rank)
    found, start = [], 0
    for w in weights:
        found.append(left[start : start + len(w)] @ right)
        start += len(w)
    return found, rank


def refit_factors__least_squares(weight, right, hessian, *, rounds):
    """With the Cholesky factor of the Hessian in place of the inputs."""
    root = torch.linalg.cholesky(hessian)
    for _ in range(rounds):
        left = torch.linalg.lstsq((right @ root).T, (weight @ root).T).solution.T
        right = torch.linalg.lstsq(left, weight).solution
    return left, right


def refit_factors__pseudoinverse(weight, right, hessian, *, rounds):
    values, vectors = np.linalg.eigh(hessian.numpy())
    root = vectors * np.sqrt(values) @ vectors.T
    w, r = weight.numpy(), right.numpy()
    for _ in range(rounds):
        l = w @ root @ np.linalg.pinv(r @ root)  # noqa: E741
        # The weighted problem itself, for all entries of the right factor at once.
        a, b = np.kron(l, root), (w @ root).flatten()
        r = np.linalg.lstsq(a, b, rcond=None)[0].reshape(r.shape)
    return l, r


def two_sided_svd__symmetric_roots(weight, outputs, inputs, rank):
    def power(matrix, exponent):
        values, vectors = torch.linalg.eigh(matrix)
        return vectors * values**exponent @ vectors.T

    cut = truncated_svd(power(outputs, 0.5) @ weight @ power(inputs, 0.5), rank).product()
    return power(outputs, -0.5) @ cut @ power(inputs, -0.5)


def two_sided_svd__projection(weight, outputs, inputs, rank):
    """No decomposition of the weight: only of a Gram matrix of its inputs."""
    root = torch.linalg.cholesky(inputs)
    into = weight @ root
    vectors = torch.linalg.eigh(into.T @ outputs @ into).eigenvectors[:, -rank:]
    return into @ vectors @ vectors.T @ torch.linalg.inv(root)


def _positive(b, a):
    """Signs as `fix_signs` gives them."""
    b, a = b.clone(), a.clone()
    for i, row in enumerate(a):
        if row[row.abs().argmax()] < 0:
            b[:, i] *= -1
            a[i] *= -1
    return b, a


def merge_adapters__one_side(adapters, rank):
    """Only one end is orthogonalized; the other is as wide as the layer, and no higher than the
    ranks."""
    b = torch.cat([lora_b for lora_b, _, _ in adapters], dim=1)
    a = torch.cat([scale * lora_a for _, lora_a, scale in adapters])
    q, r = torch.linalg.qr(b)
    u, s, vh = torch.linalg.svd(r @ a, full_matrices=False)
    length = s[:rank] ** 0.5
    return _positive(q @ u[:, :rank] * length, vh[:rank] * length[:, None])


def merge_adapters__gram(adapters, rank):
    """No orthogonal matrix: eigenvectors of the two Gram matrices, which are as small as the
    ranks."""
    b = torch.cat([lora_b * scale for lora_b, _, scale in adapters], dim=1)
    a = torch.cat([lora_a for _, lora_a, _ in adapters])
    values, vectors = torch.linalg.eigh(a @ a.T)
    root = vectors * values.clamp(min=0).sqrt()  # root @ root.T is the Gram matrix
    squares, directions = torch.linalg.eigh(root.T @ (b.T @ b) @ root)
    squares, directions = squares.flip(0)[:rank], directions.flip(1)[:, :rank]
    left = b @ root @ directions / squares**0.25
    right = (left.T @ b) @ a / squares.sqrt()[:, None]
    return _positive(left, right)


def band_table__library(table, counts, bands):
    tokens, width = table.shape
    if tokens != sum(size for size, _ in bands):
        raise ValueError("tokens")
    ranking = sorted(range(tokens), key=lambda token: -int(counts[token]))
    rebuilt, stored, start = torch.empty_like(table), 0, 0
    for size, rank in bands:
        rows = ranking[start : start + size]
        start += size
        if rank > break_even_rank(size, width):
            rebuilt[rows] = table[rows]
            stored += 4 * size * width
        else:
            factors = truncated_svd(table[rows], rank)
            rebuilt[rows] = factors.product()
            stored += 4 * (factors.left.numel() + factors.right.numel())
    return rebuilt, stored + 4 * tokens


def band_table__numpy(table, counts, bands):
    rows = table.numpy()
    order = np.argsort(-counts.numpy(), kind="stable")
    if len(order) != sum(size for size, _ in bands):
        raise ValueError("tokens")
    parts, numbers = [], 0
    ends = np.cumsum([size for size, _ in bands])[:-1]
    for part, (_, rank) in zip(np.split(rows[order], ends), bands, strict=True):
        factors, whole = rank * sum(part.shape), part.size
        if factors < whole:
            vectors = np.linalg.eigh(part.T @ part)[1][:, -rank:]
            part = part @ vectors @ vectors.T
        parts.append(part)
        numbers += min(factors, whole)
    return np.concatenate(parts)[np.argsort(order)], 4 * (numbers + len(rows))
