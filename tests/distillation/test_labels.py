import math

import pytest
import torch
from small import randn
from torch.nn import functional as F

from compresslab.distillation.labels import smooth_labels, smoothed_loss
from compresslab.distillation.soft_targets import soft_target_loss

LABELS = torch.tensor([0, 3, 1, 1, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5, 1.0])
def test_equals_torch_in_value_and_gradient(smoothing):
    ours, theirs = (randn(5, 4).float().requires_grad_() for _ in range(2))
    loss = smoothed_loss(ours, LABELS, smoothing=smoothing)
    expected = F.cross_entropy(theirs, LABELS, label_smoothing=smoothing)
    torch.testing.assert_close(loss, expected)
    loss.backward(), expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_targets_add_up_to_one_and_the_label_gets_its_share_of_the_rest_too():
    targets = smooth_labels(LABELS, 4, smoothing=0.2)
    torch.testing.assert_close(targets.sum(1), torch.ones(5))
    for row, label in zip(targets, LABELS, strict=True):
        expected = torch.full((4,), 0.05)
        expected[label] = 0.85
        torch.testing.assert_close(row, expected)
    assert torch.equal(smooth_labels(LABELS, 4, smoothing=0), F.one_hot(LABELS, 4).float())
    torch.testing.assert_close(smooth_labels(LABELS, 4, smoothing=1), torch.full((5, 4), 0.25))


def test_it_is_distillation_from_a_teacher_that_knows_nothing():
    logits = randn(5, 4)
    nothing = torch.full((5, 4), 7.0).double()
    distilled = 0.9 * F.cross_entropy(logits, LABELS) + 0.1 * (
        soft_target_loss(logits, nothing, temperature=1.0) + math.log(4)
    )
    torch.testing.assert_close(
        smoothed_loss(logits, LABELS, smoothing=0.1), distilled, rtol=1e-6, atol=1e-6
    )


def test_half_precision_is_widened():
    half = randn(5, 4).bfloat16()
    assert torch.equal(smoothed_loss(half, LABELS), smoothed_loss(half.float(), LABELS))


def test_bad_input_is_named():
    for bad in (1.5, -0.1, float("nan")):
        with pytest.raises(ValueError, match="smoothing must be from 0 to 1"):
            smooth_labels(LABELS, 4, smoothing=bad)
    with pytest.raises(ValueError, match="labels must be from 0 to 2"):
        smooth_labels(LABELS, 3)
    with pytest.raises(ValueError, match="labels must be from 0 to 3"):
        smooth_labels(LABELS - 1, 4)
    with pytest.raises(ValueError, match=r"int64 of shape \(batch,\), not torch.float32"):
        smooth_labels(LABELS.float(), 4)
    with pytest.raises(ValueError, match=r"not torch.int64 of shape \(5, 1\)"):
        smooth_labels(LABELS[:, None], 4)
    with pytest.raises(ValueError, match=r"for 5 labels, not \(4, 4\)"):
        smoothed_loss(randn(4, 4), LABELS)
