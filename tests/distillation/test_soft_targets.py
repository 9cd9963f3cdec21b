import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from compresslab.distillation.soft_targets import soft_target_loss


def logits(seed, batch=5, classes=3, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, classes, generator=generator, dtype=dtype)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 9),
    classes=st.integers(2, 7),
    temperature=st.floats(0.5, 20),
)
def test_equals_torch_kl_div_batchmean_times_the_temperature_squared(
    seed, batch, classes, temperature
):
    student, teacher = (logits(seed + i, batch, classes, torch.float64) for i in (0, 1))
    expected = temperature**2 * F.kl_div(
        F.log_softmax(student / temperature, -1),
        F.softmax(teacher / temperature, -1),
        reduction="batchmean",
    )
    ours = soft_target_loss(student, teacher, temperature=temperature)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_is_zero_where_they_agree_up_to_a_constant_and_above_zero_elsewhere():
    student = logits(0)
    assert soft_target_loss(student, student + 7).abs() < 1e-6
    assert soft_target_loss(student, logits(1)) > 0.1


def test_gradient_is_that_of_hintons_cross_entropy():
    student, teacher = logits(0).requires_grad_(), logits(1)
    soft_target_loss(student, teacher, temperature=4.0).backward()
    # T² times its equation 2, (softmax(z / T) − softmax(v / T)) / T, mean over the batch
    expected = 4 * ((student / 4).softmax(-1) - (teacher / 4).softmax(-1)) / len(student)
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-4, atol=1e-6)


def test_no_gradient_reaches_the_teacher_and_half_precision_is_widened():
    student = logits(0).bfloat16().requires_grad_()
    teacher = logits(1).requires_grad_()
    loss = soft_target_loss(student, teacher)
    loss.backward()
    assert loss.dtype == torch.float32
    assert teacher.grad is None
    assert student.grad is not None


@pytest.mark.parametrize(
    ("student", "teacher"), [((2, 3), (2, 4)), ((3,), (3,)), ((1, 2, 3), (1, 2, 3))]
)
def test_other_shapes_are_refused_and_named(student, teacher):
    with pytest.raises(ValueError, match=rf"not \({student[0]}.*\) and \({teacher[0]}"):
        soft_target_loss(torch.zeros(student), torch.zeros(teacher))


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_a_temperature_that_is_not_above_zero_is_refused(temperature):
    with pytest.raises(ValueError, match="temperature must be above 0"):
        soft_target_loss(logits(0), logits(1), temperature=temperature)
