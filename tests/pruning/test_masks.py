import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from compresslab.pruning.masks import (
    apply_masks_,
    hold_masks,
    keep_largest,
    keep_largest_globally,
    keep_largest_in_rows,
    keep_n_of_m,
    sparsity_of,
)

SPARSITIES = st.floats(0, 1)


@given(st.integers(1, 60), SPARSITIES, st.integers(0, 3))
def test_the_count_is_exact_also_when_everything_ties(n, sparsity, levels):
    scores = torch.randint(0, levels + 1, (n,), generator=torch.Generator().manual_seed(n)).float()
    assert (~keep_largest(scores, sparsity)).sum() == round(sparsity * n)


def test_of_two_equal_scores_the_first_is_kept():
    assert keep_largest(torch.ones(2, 2), 0.5).tolist() == [[True, True], [False, False]]


@given(st.integers(2, 40), SPARSITIES)
def test_nothing_removed_is_larger_than_what_is_kept(n, sparsity):
    scores = torch.randn(n, generator=torch.Generator().manual_seed(n))
    mask = keep_largest(scores, sparsity)
    if mask.any() and not mask.all():
        assert scores[mask].min() >= scores[~mask].max()


def test_globally_equals_one_long_tensor_and_lets_layers_differ():
    scores = {"a": torch.tensor([[9.0, 8.0]]), "b": torch.tensor([1.0, 2.0, 10.0])}
    masks = keep_largest_globally(scores, 0.4)
    assert masks["a"].tolist() == [[True, True]]
    assert masks["b"].tolist() == [False, False, True]


@given(st.integers(1, 5), st.integers(1, 9), SPARSITIES)
def test_rows_lose_the_same_number_each(rows, columns, sparsity):
    scores = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows))
    mask = keep_largest_in_rows(scores, sparsity)
    assert ((~mask).sum(1) == int(sparsity * columns)).all()
    for row, kept in zip(scores, mask, strict=True):
        best = row.argsort(descending=True)[: int(kept.sum())]
        assert set(kept.nonzero().flatten().tolist()) == set(best.tolist())


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8), (0, 4), (4, 4)])
def test_n_of_m_is_the_best_of_all_choices_in_every_group(n, m):
    scores = torch.randn(3, 3 * m, generator=torch.Generator().manual_seed(m))
    mask = keep_n_of_m(scores, n, m)
    for group, kept in zip(scores.view(-1, m), mask.view(-1, m), strict=True):
        assert kept.sum() == n
        best = max(sum(c) for c in itertools.combinations(group.tolist(), n))
        assert group[kept].sum() == pytest.approx(best, abs=1e-6)


def test_groups_run_along_in_features():
    weight = torch.tensor([[4.0, 3, 2, 1], [1, 2, 3, 4]])
    assert keep_n_of_m(weight, 2, 4).int().tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]


def test_masks_zero_the_weights_and_hold_them_there_while_training():
    model = nn.Sequential(nn.Linear(4, 4))
    masks = {"0": keep_largest(model[0].weight.detach().abs(), 0.5)}
    hold = hold_masks(model, masks)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    for step in range(1, 3):
        model(torch.ones(1, 4)).sum().backward()
        optimizer.step()
        hold(step, 2)
    assert (model[0].weight[~masks["0"]] == 0).all()
    assert (model[0].weight[masks["0"]] != 0).all()
    assert sparsity_of(masks) == 0.5


@pytest.mark.parametrize("sparsity", [-0.1, 1.1, float("nan")])
def test_a_sparsity_that_is_no_fraction_is_refused(sparsity):
    with pytest.raises(ValueError, match="sparsity must be between"):
        keep_largest(torch.ones(3), sparsity)


def test_other_bad_input_is_named():
    with pytest.raises(ValueError, match="NaN"):
        keep_largest(torch.tensor([float("nan")]), 0.5)
    with pytest.raises(ValueError, match="empty"):
        keep_largest_globally({}, 0.5)
    with pytest.raises(ValueError, match="matrix"):
        keep_largest_in_rows(torch.ones(3), 0.5)
    with pytest.raises(ValueError, match=r"\(2, 6\) is no multiple of 4"):
        keep_n_of_m(torch.ones(2, 6), 2, 4)
    with pytest.raises(ValueError, match="5 of 4"):
        keep_n_of_m(torch.ones(2, 4), 5, 4)
    with pytest.raises(ValueError, match=r"has shape \(3,\)"):
        apply_masks_(nn.Sequential(nn.Linear(2, 2)), {"0": torch.ones(3).bool()})
