import pytest
import small
import torch
from torch import nn

from compresslab.pruning.masks import keep_largest
from compresslab.pruning.sparsegpt import collect_hessians, prune_sparsegpt_, sparsegpt


def problem(rows=5, columns=12, tokens=200, seed=0):
    return small.layer(rows, columns, tokens, seed)


def error(weight, pruned, x):
    return ((weight - pruned) @ x.T).square().sum().item()


def exact(weight, mask, x):
    """For every row the least-squares weights on the inputs that its mask keeps."""
    out = torch.zeros_like(weight, dtype=torch.float64)
    x, weight = x.double(), weight.double()
    for i, kept in enumerate(mask):
        out[i, kept] = torch.linalg.lstsq(x[:, kept], x @ weight[i]).solution
    return out.float()


def test_it_lies_between_zeroing_and_exact_least_squares_under_its_own_mask():
    weight, x = problem()
    pruned = sparsegpt(weight, x.T @ x, 0.5, damping=1e-6)
    mask = pruned != 0
    assert error(weight, exact(weight, mask, x), x) <= error(weight, pruned, x) * (1 + 1e-4)
    assert error(weight, pruned, x) < error(weight, weight * mask, x)


def test_one_removed_weight_is_optimal_brain_surgeon_s():
    # The first column is removed from every row: all others make up for it, which is exact.
    weight, x = problem(rows=3)
    weight[:, 0] = 1e-4
    pruned = sparsegpt(weight, x.T @ x, 1 / 12, damping=0.0)
    assert (pruned[:, 0] == 0).all()
    torch.testing.assert_close(pruned, exact(weight, pruned != 0, x), rtol=1e-3, atol=1e-4)


def test_the_mask_is_chosen_in_each_block_over_all_rows():
    weight, x = problem(rows=6, columns=16)
    pruned = sparsegpt(weight, x.T @ x, 0.25, block=8)
    zeros = pruned == 0
    assert zeros[:, :8].sum() == zeros[:, 8:].sum() == 12
    assert len(set(zeros[:, :8].sum(1).tolist())) > 1


def test_independent_inputs_of_one_size_give_magnitude_pruning():
    weight, _ = problem()
    pruned = sparsegpt(weight, torch.eye(12), 0.5, block=12, damping=0.0)
    assert torch.equal(pruned, weight * keep_largest(weight.abs(), 0.5))


@pytest.mark.parametrize("block", [4, 8, 16])
def test_a_pattern_keeps_two_of_four(block):
    weight, x = problem(columns=16)
    zeros = sparsegpt(weight, x.T @ x, pattern=(2, 4), block=block) == 0
    assert (zeros.view(-1, 4).sum(1) == 2).all()


def test_the_result_of_a_pattern_does_not_depend_on_the_block():
    weight, x = problem(columns=16)
    small, large = (sparsegpt(weight, x.T @ x, pattern=(2, 4), block=b) for b in (4, 16))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-4)


def test_nothing_and_everything_removed():
    weight, x = problem()
    torch.testing.assert_close(sparsegpt(weight, x.T @ x, 0.0), weight)
    assert (sparsegpt(weight, x.T @ x, 1.0) == 0).all()


def test_an_input_that_is_always_zero_does_no_harm():
    weight, x = problem()
    x[:, 3] = 0
    pruned = sparsegpt(weight, x.T @ x, 0.5)
    assert pruned.isfinite().all()
    assert (pruned[:, 3] == 0).all()


def test_hessians_equal_those_of_all_inputs_together_and_the_model_is_pruned():
    torch.manual_seed(0)

    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.layer = nn.Embedding(10, 8), nn.Linear(8, 8)

        def forward(self, input_ids):
            return self.layer(self.embed(input_ids))

    model, batches = Reader(), torch.randint(10, (2, 3, 5)).unbind()
    hessians = collect_hessians(model, batches)
    x = model.embed(torch.cat(batches)).detach().flatten(0, 1)
    torch.testing.assert_close(hessians["layer"], x.T @ x)
    prune_sparsegpt_(model, hessians, sparsity=0.5)
    assert (model.layer.weight == 0).sum() == 32


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"hessian must have shape \(12, 12\)"):
        sparsegpt(problem()[0], torch.eye(5))
    with pytest.raises(ValueError, match="groups of 4 do not divide"):
        sparsegpt(torch.ones(2, 6), torch.eye(6), pattern=(2, 4))
