"""Weighted decompositions against their own error, and against any other matrix of the rank."""

import pytest
import torch
from torch import nn

from compresslab.factorization.svd import truncated_svd
from compresslab.factorization.weighted_svd import (
    asvd,
    collect_fisher,
    fisher_weighted_svd,
    scaled_svd,
    whitened_singular_values,
    whitened_svd,
)
from compresslab.training import classification_loss

GENERATOR = torch.Generator().manual_seed(0)
WEIGHT = torch.randn(8, 6, dtype=torch.float64, generator=GENERATOR)
INPUTS = torch.randn(50, 6, dtype=torch.float64, generator=GENERATOR) * torch.tensor(
    [5.0, 1, 1, 0.1, 1, 3]
)
INPUTS[:, 1] += INPUTS[:, 0]  # inputs that resemble each other are what whitening is for
HESSIAN = INPUTS.T @ INPUTS


def descend(loss, rank: int) -> float:
    """The least loss of two factors that gradient descent finds from some random starts."""
    best = float("inf")
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        left, right = (
            torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()
            for shape in ((8, rank), (rank, 6))
        )
        optimizer = torch.optim.LBFGS([left, right], max_iter=300, line_search_fn="strong_wolfe")

        def closure(left=left, right=right, optimizer=optimizer):
            optimizer.zero_grad()
            value = loss(left @ right)
            value.backward()
            return value

        optimizer.step(closure)
        best = min(best, loss(left @ right).item())
    return best


@pytest.mark.parametrize("rank", [1, 3])
def test_descent_finds_nothing_better_than_whitening(rank):
    def loss(approximation):
        return ((WEIGHT - approximation) @ INPUTS.T).square().sum()

    ours = loss(whitened_svd(WEIGHT, HESSIAN, rank, damping=0).product())
    assert ours == pytest.approx(descend(loss, rank), rel=1e-6)
    assert ours < 0.9 * loss(truncated_svd(WEIGHT, rank).product())


@pytest.mark.parametrize("rank", [1, 3])
def test_descent_finds_nothing_better_than_a_scale(rank):
    scale = torch.tensor([3.0, 1, 0.2, 1, 2, 1], dtype=torch.float64)

    def loss(approximation):
        return ((WEIGHT - approximation) * scale).square().sum()

    assert loss(scaled_svd(WEIGHT, scale, rank).product()) == pytest.approx(
        descend(loss, rank), rel=1e-6
    )


def test_the_error_of_outputs_is_the_sum_of_the_dropped_squares():
    s = whitened_singular_values(WEIGHT, HESSIAN, damping=0)
    for rank in range(1, 7):
        approximation = whitened_svd(WEIGHT, HESSIAN, rank, damping=0).product()
        error = ((WEIGHT - approximation) @ INPUTS.T).square().sum()
        torch.testing.assert_close(error, s[rank:].square().sum(), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_both_factors_are_of_one_size_whatever_the_units(scale):
    # Training suffers from other sizes: all numbers are moved by steps of about one size.
    means, fisher = scale * INPUTS.abs().mean(0), torch.ones(8, 6) / scale
    for factors in (
        whitened_svd(WEIGHT, scale * HESSIAN, 4),
        asvd(WEIGHT, means, 4),
        fisher_weighted_svd(WEIGHT, fisher, 4),
    ):
        torch.testing.assert_close(factors.left.norm(dim=0), factors.right.norm(dim=1))


def test_inputs_alike_and_of_one_size_give_plain_svd():
    plain = truncated_svd(WEIGHT, 2).product()
    ones = torch.ones(6, dtype=torch.float64)
    torch.testing.assert_close(whitened_svd(WEIGHT, 7 * torch.eye(6), 2).product(), plain)
    torch.testing.assert_close(asvd(WEIGHT, 3 * ones, 2).product(), plain)
    torch.testing.assert_close(fisher_weighted_svd(WEIGHT, ones.expand(8, 6), 2).product(), plain)


def test_asvd_at_alpha_zero_is_plain_and_at_one_half_between():
    means = INPUTS.abs().mean(0)
    torch.testing.assert_close(
        asvd(WEIGHT, means, 2, alpha=0).product(), truncated_svd(WEIGHT, 2).product()
    )
    half, root = asvd(WEIGHT, means, 2), scaled_svd(WEIGHT, means.sqrt(), 2)
    torch.testing.assert_close(half.product(), root.product())


def test_fisher_information_is_added_over_the_weights_of_an_input():
    fisher = torch.zeros(8, 6)
    fisher[0, 2], fisher[5, 2], fisher[1, 4] = 3, 1, 1  # of inputs 2 and 4, in sum 4 and 1
    factors = fisher_weighted_svd(WEIGHT, fisher, 2)
    error = (WEIGHT - factors.product()).norm(dim=0)
    # Only two inputs count, and two ranks are enough for two columns.
    torch.testing.assert_close(
        error[[2, 4]], torch.zeros(2, dtype=torch.float64), atol=0.02, rtol=0
    )
    assert error[[0, 1, 3, 5]].min() > 0.5
    by_root = scaled_svd(WEIGHT, torch.tensor([0.0, 0, 2, 0, 1, 0]), 1).product()
    torch.testing.assert_close(fisher_weighted_svd(WEIGHT, fisher, 1).product(), by_root)
    one = (WEIGHT - fisher_weighted_svd(WEIGHT, fisher, 1).product()).norm(dim=0)
    assert one[2] < one[4]


def test_inputs_that_are_always_zero_do_not_break_it():
    h = HESSIAN.clone()
    h[3], h[:, 3] = 0, 0
    assert whitened_svd(WEIGHT, h, 3).product().isfinite().all()
    nothing = torch.zeros(6, 6, dtype=torch.float64)
    plain = truncated_svd(WEIGHT, 3).product()
    torch.testing.assert_close(whitened_svd(WEIGHT, nothing, 3).product(), plain)
    torch.testing.assert_close(scaled_svd(WEIGHT, torch.zeros(6), 3).product(), plain)


def test_full_rank_is_exact_and_the_dtype_stays():
    w = WEIGHT.float()
    for factors in (
        whitened_svd(w, HESSIAN, 6),
        asvd(w, INPUTS.abs().mean(0), 6),
        fisher_weighted_svd(w, torch.rand(8, 6), 6),
    ):
        assert factors.left.dtype == torch.float32
        torch.testing.assert_close(factors.product(), w, atol=1e-4, rtol=0)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"hessian must have shape \(6, 6\)"):
        whitened_svd(WEIGHT, torch.eye(8), 2)
    with pytest.raises(ValueError, match=r"fisher must have the shape of weight, \(8, 6\)"):
        fisher_weighted_svd(WEIGHT, torch.ones(6, 8), 2)
    with pytest.raises(ValueError, match=r"a scale for each of 6 inputs, not \(8,\)"):
        asvd(WEIGHT, torch.ones(8), 2)
    with pytest.raises(ValueError, match="between 1 and 6"):
        whitened_svd(WEIGHT, HESSIAN, 7)


class Tiny(nn.Module):
    """A classifier of token numbers with two linear layers."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.hidden, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, input_ids, attention_mask):
        x = (self.embedding(input_ids) * attention_mask[..., None]).sum(1)
        return type("Output", (), {"logits": self.head(self.hidden(x).tanh())})


def batch(size: int, seed: int) -> dict:
    generator = torch.Generator().manual_seed(seed)
    return {
        "input_ids": torch.randint(10, (size, 3), generator=generator),
        "attention_mask": torch.ones(size, 3, dtype=torch.int64),
        "labels": torch.randint(2, (size,), generator=generator),
    }


def test_fisher_information_is_the_mean_square_over_examples_whatever_the_batches():
    torch.manual_seed(0)
    model = Tiny().double().eval().requires_grad_(False)
    both = [batch(3, 1), batch(2, 2)]
    found = collect_fisher(model, both, classification_loss)
    assert list(found) == ["hidden", "head"]
    assert not any(p.requires_grad for p in model.parameters())

    joined = {name: torch.cat([b[name] for b in both]) for name in both[0]}
    again = collect_fisher(model, [joined], classification_loss)

    def loss(weight, *example):
        state = dict(model.named_parameters()) | {"hidden.weight": weight}
        ids, mask, label = (part[None] for part in example)
        logits = torch.func.functional_call(model, state, (ids, mask)).logits
        return nn.functional.cross_entropy(logits, label)

    each = torch.func.vmap(torch.func.grad(loss), (None, 0, 0, 0))  # a second way to each gradient
    gradients = each(model.hidden.weight, *joined.values())
    torch.testing.assert_close(found["hidden"], gradients.square().mean(0).float().double())
    for name in found:
        torch.testing.assert_close(found[name], again[name])
    # The square of the mean gradient is something else.
    assert not torch.allclose(found["hidden"], gradients.mean(0).square(), rtol=0.1)


def test_fisher_information_of_nothing_is_refused():
    with pytest.raises(ValueError, match="batches is empty"):
        collect_fisher(Tiny(), [], classification_loss)
    with pytest.raises(ValueError, match="no linear layer 'embedding'"):
        collect_fisher(Tiny(), [batch(2, 0)], classification_loss, ["embedding"])
