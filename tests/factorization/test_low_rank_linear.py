"""A factorized layer computes what the product of its factors does."""

import pytest
import torch
from torch import nn

from compresslab.factorization.linear import LowRankLinear, factorize_linears_
from compresslab.factorization.svd import truncated_svd
from compresslab.measure import count_flops, count_parameters


@pytest.mark.parametrize("bias", [True, False])
def test_factors_one_after_the_other_equal_the_merged_matrix(bias):
    torch.manual_seed(0)
    linear = nn.Linear(6, 8, bias=bias).double()
    factors = truncated_svd(linear.weight, 3)
    low = LowRankLinear(factors, linear.bias)
    x = torch.randn(4, 5, 6, dtype=torch.float64)
    expected = nn.functional.linear(x, factors.product(), linear.bias)
    torch.testing.assert_close(low(x), expected)
    torch.testing.assert_close(low.merged()(x), expected)
    assert (low.left.bias is not None) == bias
    assert count_parameters(low) == 3 * (6 + 8) + 8 * bias
    assert count_flops(lambda: low(x)) == 2 * 4 * 5 * 3 * (6 + 8)


def test_full_rank_changes_nothing_and_gradients_reach_both_factors():
    torch.manual_seed(0)
    linear = nn.Linear(6, 8)
    low = LowRankLinear(truncated_svd(linear.weight, 6), linear.bias)
    x = torch.randn(5, 6)
    torch.testing.assert_close(low(x), linear(x))
    low(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in low.parameters())
    assert low.left.weight.data_ptr() != linear.weight.data_ptr()


def test_chosen_layers_are_replaced_and_others_stay():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6), nn.Linear(6, 2)).eval()
    last = model[3]
    seen = []

    def factorize(name, weight):
        seen.append(name)
        return truncated_svd(weight, 2) if name != "2" else None

    factorize_linears_(model, factorize, ["0", "2"])
    assert seen == ["0", "2"]
    assert isinstance(model[0], LowRankLinear)
    assert isinstance(model[2], nn.Linear)
    assert model[3] is last
    assert not any(module.training for module in model.modules())


def test_a_shared_weight_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="0 shares its weight"):
        factorize_linears_(model, lambda name, w: truncated_svd(w, 1))
