import pytest
import torch
from small import batch, randn

from compresslab.distillation.masking import check_same, masked_mean, pairs


def test_the_mean_is_over_what_is_real_and_nothing_else_gets_a_gradient():
    values = randn(3, 7).requires_grad_()
    mask = batch()["attention_mask"]
    mean = masked_mean(values, mask)
    rows = [values[0], values[1, :3], values[2, :5]]
    torch.testing.assert_close(mean, torch.cat(rows).mean())
    mean.backward()
    torch.testing.assert_close(values.grad, mask.double() / 15)


def test_infinities_in_the_padding_do_no_harm_and_all_padding_gives_zero():
    values = randn(3, 7)
    values[1, 5] = float("inf")
    assert masked_mean(values, batch()["attention_mask"]).isfinite()
    assert masked_mean(values, torch.zeros(3, 7)) == 0


def test_a_mask_that_is_expanded_counts_what_it_is_expanded_to():
    values, mask = randn(3, 2, 7), batch()["attention_mask"]
    expected = torch.stack([masked_mean(values[:, head], mask) for head in (0, 1)]).mean()
    torch.testing.assert_close(masked_mean(values, mask[:, None]), expected)


def test_pairs_are_of_two_real_tokens():
    mask = batch()["attention_mask"]
    both = pairs(mask)
    assert both.shape == (3, 1, 7, 7)
    for b in range(3):
        n = int(mask[b].sum())
        expected = torch.zeros(7, 7, dtype=torch.bool)
        expected[:n, :n] = True
        assert torch.equal(both[b, 0], expected)


def test_bad_shapes_are_named():
    x = torch.zeros(3, 7, 4)
    axes = "(batch, time, width)"
    check_same(x, x, axes, torch.ones(3, 7))
    scores = torch.zeros(3, 2, 7, 7)
    check_same(scores, scores, "(batch, heads, time, time)", torch.ones(3, 7))
    with pytest.raises(ValueError, match=r"one shape \(batch, time, width\), not \(3, 7, 4\) and"):
        check_same(x, x[..., :2], axes, torch.ones(3, 7))
    with pytest.raises(ValueError, match="one shape"):
        check_same(x[0], x[0], axes, torch.ones(3, 7))
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 7\).*not \(3, 6\)"):
        check_same(x, x, axes, torch.ones(3, 6))
