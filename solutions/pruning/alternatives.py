"""Right answers to the exercises on pruning, written another way than the solution."""

import math

import numpy as np
import torch

from compresslab.pruning.masks import keep_largest


def layer_sparsities__bisection(shapes, sparsity):
    """Kept weights grow with ε, cut at 1 or not: look for the ε that keeps as many as wanted."""
    sizes = torch.tensor([m * n for m, n in shapes], dtype=torch.float64)
    sums = torch.tensor([m + n for m, n in shapes], dtype=torch.float64)
    low, high = 0.0, float((sizes / sums).max())
    for _ in range(200):
        epsilon = (low + high) / 2
        kept = (epsilon * sums / sizes).clamp(max=1)
        low, high = (
            (epsilon, high) if kept @ sizes < (1 - sparsity) * sizes.sum() else (low, epsilon)
        )
    return 1 - kept


def layer_sparsities__one_at_a_time(shapes, sparsity):
    dense, target = [], (1 - sparsity) * sum(m * n for m, n in shapes)
    while True:
        rest = [i for i in range(len(shapes)) if i not in dense]
        if not rest:
            return (0.0,) * len(shapes)
        left = target - sum(math.prod(shapes[i]) for i in dense)
        epsilon = left / sum(sum(shapes[i]) for i in rest)
        density = {i: epsilon * sum(shapes[i]) / math.prod(shapes[i]) for i in rest}
        largest = max(density, key=density.get)
        if density[largest] <= 1:
            return tuple(1 - density.get(i, 1.0) for i in range(len(shapes)))
        dense.append(largest)


def keep_blocks__loop(scores, block, sparsity):
    rows, columns = scores.shape
    if rows % block or columns % block:
        raise ValueError("no multiple of the block")
    corners = [(r, c) for r in range(0, rows, block) for c in range(0, columns, block)]
    total = {(r, c): scores[r : r + block, c : c + block].sum().item() for r, c in corners}
    gone = sorted(corners, key=lambda corner: (total[corner], -corners.index(corner)))
    mask = np.ones((rows, columns), dtype=bool)
    for r, c in gone[: round(sparsity * len(corners))]:
        mask[r : r + block, c : c + block] = False
    return mask


def keep_blocks__library(scores, block, sparsity):
    if any(side % block for side in scores.shape):
        raise ValueError("no multiple of the block")
    tiles = scores.double().unfold(0, block, block).unfold(1, block, block)
    return torch.kron(keep_largest(tiles.sum((2, 3)), sparsity), torch.ones(block, block)).bool()


def gap_bytes__loop(mask, *, bits, value_bits):
    entries, distance = 0, 0
    for kept in mask.flatten().tolist():
        distance += 1
        if kept:
            while distance > 2**bits:
                entries, distance = entries + 1, distance - 2**bits
            entries, distance = entries + 1, 0
    return -(-entries * (bits + value_bits) // 8)


def gap_bytes__numpy(mask, *, bits, value_bits):
    places = np.flatnonzero(mask.numpy()) + 1
    entries = np.ceil(np.diff(places, prepend=0) / 2**bits).sum()
    return np.ceil(entries * (bits + value_bits) / 8)


def drop_and_grow__loop(weight, mask, gradient, fraction):
    cells = [(r, c) for r in range(mask.shape[0]) for c in range(mask.shape[1])]
    there = sorted((cell for cell in cells if mask[cell]), key=lambda cell: abs(weight[cell]))
    free = sorted((c for c in cells if not mask[c]), key=lambda cell: -abs(gradient[cell]))
    new = mask.clone()
    count = round(fraction * len(there))
    for old_cell, new_cell in zip(there[:count], free, strict=False):
        new[old_cell], new[new_cell] = False, True
    return new


def drop_and_grow__topk(weight, mask, gradient, fraction):
    count = min(round(fraction * mask.sum().item()), (~mask).sum().item())
    there, free = mask.flatten().nonzero()[:, 0], (~mask).flatten().nonzero()[:, 0]
    drop = there[weight.flatten()[there].abs().topk(count, largest=False).indices]
    grow = free[gradient.flatten()[free].abs().topk(count).indices]
    change = torch.zeros(mask.numel(), dtype=torch.bool)
    change[torch.cat([drop, grow])] = True
    return mask ^ change.view(mask.shape)


def trim_vocabulary__loop(embedding, ids, unknown):
    used = set(ids.flatten().tolist()) | {unknown}
    rows, numbers = [], {}
    for token in range(len(embedding)):
        if token in used:
            numbers[token] = len(rows)
            rows.append(embedding[token].tolist())
    return rows, [numbers.get(token, numbers[unknown]) for token in range(len(embedding))]


def trim_vocabulary__cumsum(embedding, ids, unknown):
    used = torch.zeros(len(embedding), dtype=torch.bool)
    used[ids.reshape(-1)] = True
    used[unknown] = True
    new = used.int().cumsum(0) - 1
    return embedding[used], torch.where(used, new, new[unknown])
