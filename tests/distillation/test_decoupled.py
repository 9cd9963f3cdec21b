"""The two parts against their formula written out, and together against plain distillation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small import randn

from compresslab.distillation.decoupled import decoupled_loss, decoupled_parts
from compresslab.distillation.soft_targets import soft_target_loss

LABELS = torch.tensor([0, 3, 1, 1, 2])


def problem(seed=0, batch=5, classes=4):
    return 3 * randn(batch, classes, seed=seed), 3 * randn(batch, classes, seed=seed + 1)


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 999),
    batch=st.integers(1, 6),
    classes=st.integers(2, 7),
    temperature=st.floats(0.5, 10),
)
def test_weighed_by_what_the_teacher_gives_the_others_it_is_plain_distillation(
    seed, batch, classes, temperature
):
    student, teacher = problem(seed, batch, classes)
    labels = torch.arange(batch) % classes
    parts = decoupled_parts(student, teacher, labels, temperature=temperature)
    plain = soft_target_loss(student, teacher, temperature=temperature)
    ours = decoupled_loss(student, teacher, labels, beta=parts.rest, temperature=temperature)
    torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-10)


def test_each_part_is_the_divergence_of_its_distributions():
    student, teacher = problem()
    parts = decoupled_parts(student, teacher, LABELS, temperature=3.0)
    for i, label in enumerate(LABELS.tolist()):
        p, q = (x[i].div(3).exp() / x[i].div(3).exp().sum() for x in (teacher, student))
        pt, qt = p[label], q[label]
        tckd = pt * (pt / qt).log() + (1 - pt) * ((1 - pt) / (1 - qt)).log()
        nckd = sum(
            p[k] / (1 - pt) * ((p[k] / (1 - pt)) / (q[k] / (1 - qt))).log()
            for k in range(4)
            if k != label
        )
        torch.testing.assert_close(parts.label[i], tckd)
        torch.testing.assert_close(parts.others[i], nckd)
        torch.testing.assert_close(parts.rest[i], 1 - pt)


def test_the_loss_weighs_the_parts_and_has_the_factor_of_the_temperature():
    student, teacher = problem()
    parts = decoupled_parts(student, teacher, LABELS, temperature=4.0)
    loss = decoupled_loss(student, teacher, LABELS, alpha=0.5, beta=8.0, temperature=4.0)
    torch.testing.assert_close(loss, 16 * (0.5 * parts.label.mean() + 8 * parts.others.mean()))


def test_with_two_classes_there_is_nothing_to_decouple():
    student, teacher = problem(classes=2)
    labels = LABELS % 2
    assert (decoupled_parts(student, teacher, labels).others == 0).all()
    loss = decoupled_loss(student, teacher, labels, alpha=3.0, beta=8.0)
    torch.testing.assert_close(loss, 3 * soft_target_loss(student, teacher))


def test_it_stays_a_number_for_a_teacher_that_is_certain():
    student, teacher = (torch.tensor([[s, 0.0, 1.0]]) for s in (300.0, -300.0))
    student.requires_grad_()
    for first, second in ((student, teacher), (student, -teacher)):
        loss = decoupled_loss(first, second, torch.tensor([0]), beta=8.0, temperature=1.0)
        (gradient,) = torch.autograd.grad(loss, student)
        assert loss.isfinite()
        assert gradient.isfinite().all()


def test_gradients_are_right_in_the_student_and_none_reaches_the_teacher():
    student, teacher = problem()
    student.requires_grad_(), teacher.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda s: decoupled_loss(s, teacher, LABELS, beta=8.0), student, atol=1e-4
    )
    decoupled_loss(student, teacher, LABELS).backward()
    assert teacher.grad is None
    half = student.detach().bfloat16()
    assert decoupled_loss(half, teacher, LABELS).dtype == torch.float64
    assert decoupled_loss(half, teacher.bfloat16(), LABELS).dtype == torch.float32


def test_bad_input_is_named():
    student, teacher = problem()
    with pytest.raises(ValueError, match=r"one shape .* not \(5, 4\) and \(5, 3\)"):
        decoupled_loss(student, teacher[:, :3], LABELS)
    with pytest.raises(ValueError, match="2 or more classes"):
        decoupled_loss(student[:, :1], teacher[:, :1], LABELS * 0)
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(5,\), not torch.float"):
        decoupled_loss(student, teacher, LABELS.float())
    with pytest.raises(ValueError, match=r"labels must be int64 of shape \(5,\).*\(4,\)"):
        decoupled_loss(student, teacher, LABELS[:4])
    for bad in (4, -1):
        with pytest.raises(ValueError, match="labels must be from 0 to 3"):
            decoupled_loss(student, teacher, torch.full((5,), bad))
    with pytest.raises(ValueError, match="temperature must be above 0, not 0"):
        decoupled_loss(student, teacher, LABELS, temperature=0)
    for name in ("alpha", "beta"):
        with pytest.raises(ValueError, match=rf"{name} must be .* shape \(5,\), not \(5, 1\)"):
            decoupled_loss(student, teacher, LABELS, **{name: torch.ones(5, 1)})
