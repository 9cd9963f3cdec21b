import pytest
import torch
from small import batch, classifier, randn
from torch.nn import functional as F

from compresslab.distillation.attention import Heads, observe_heads
from compresslab.distillation.minilm import minilm_loss, minilm_v2_loss, regroup, relation_loss

MASK = batch()["attention_mask"]
LENGTHS = [7, 3, 5]


def heads(seed, count=2, dim=4):
    return Heads(*(randn(3, count, 7, dim, seed=10 * seed + i) for i in range(3)))


def divergence(student, teacher, pick, count):
    """Σ KL over sentences, heads and tokens by a loop, cut to each sentence's own length."""
    total = 0.0
    for b, n in enumerate(LENGTHS):
        for head in range(count):
            p, q = (
                torch.softmax(x[b, head, :n] @ y[b, head, :n].T / x.shape[-1] ** 0.5, dim=-1)
                for x, y in (pick(teacher), pick(student))
            )
            total += F.kl_div(q.log(), p, reduction="sum")
    return total / (count * sum(LENGTHS))


def test_the_first_form_is_the_papers_formula_whatever_the_width():
    student, teacher = heads(1, dim=4), heads(2, dim=6)
    expected = divergence(student, teacher, lambda h: (h.query, h.key), 2)
    expected += divergence(student, teacher, lambda h: (h.value, h.value), 2)
    torch.testing.assert_close(minilm_loss(student, teacher, MASK), expected)


def cut(x, count):
    """Relation heads by slices of the joined width."""
    joined = torch.cat([x[:, h] for h in range(x.shape[1])], dim=-1)
    return torch.stack(joined.chunk(count, dim=-1), dim=1)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_the_second_form_is_the_papers_formula_with_other_heads_and_widths(count):
    student, teacher = heads(1, count=2, dim=4), heads(2, count=3, dim=4)
    ours, theirs = (Heads(*(cut(x, count) for x in h)) for h in (student, teacher))
    expected = sum(
        weight * divergence(ours, theirs, lambda h, i=i: (h[i], h[i]), count)
        for i, weight in enumerate((1.0, 2.0, 3.0))
    )
    loss = minilm_v2_loss(student, teacher, MASK, relation_heads=count, weights=(1.0, 2.0, 3.0))
    torch.testing.assert_close(loss, expected)


def test_regrouping_into_the_same_heads_changes_nothing_and_goes_back():
    x = randn(3, 2, 7, 6)
    assert torch.equal(regroup(x, 2), x)
    assert torch.equal(regroup(x, 4), cut(x, 4))
    assert torch.equal(regroup(regroup(x, 3), 2), x)


def test_both_are_zero_for_the_teacher_itself_and_above_elsewhere():
    one, other = heads(1), heads(2)
    for loss in (minilm_loss, lambda s, t, m: minilm_v2_loss(s, t, m, relation_heads=4)):
        assert loss(one, one, MASK).abs() < 1e-12
        assert loss(other, one, MASK) > 0.1


def test_the_teachers_distribution_weighs_not_the_students():
    student, teacher = randn(3, 2, 7, 7), randn(3, 2, 7, 7, seed=1)
    assert relation_loss(student, teacher, MASK) != relation_loss(teacher, student, MASK)


def test_padding_counts_nowhere_and_gets_no_gradient():
    student, teacher = heads(1), heads(2)
    losses = []
    for fill in (0.0, 50.0):
        padded = MASK[:, None, :, None] == 0
        ours, theirs = (
            Heads(*(x.masked_fill(padded, fill).requires_grad_() for x in h))
            for h in (student, teacher)
        )
        loss = minilm_loss(ours, theirs, MASK)
        loss = loss + minilm_v2_loss(ours, theirs, MASK, relation_heads=4)
        losses.append(loss)
        gradients = torch.autograd.grad(loss, ours)
        for gradient in gradients:
            assert (gradient[1, :, 3:] == 0).all()
            assert (gradient[1, :, :3] != 0).any()
    torch.testing.assert_close(losses[0], losses[1])


def test_a_sentence_of_padding_alone_does_no_harm():
    mask = MASK.clone()
    mask[1] = 0
    student = randn(3, 2, 7, 7).requires_grad_()
    loss = relation_loss(student, randn(3, 2, 7, 7, seed=1), mask)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()
    assert (student.grad[1] == 0).all()
    kept = [0, 2]
    torch.testing.assert_close(
        loss, relation_loss(student[kept], randn(3, 2, 7, 7, seed=1)[kept], mask[kept])
    )


def test_gradients_are_right_and_none_reaches_the_teacher():
    student, teacher = randn(3, 2, 7, 7).requires_grad_(), randn(3, 2, 7, 7, seed=1)
    teacher.requires_grad_()
    relation_loss(student, teacher, MASK).backward()
    assert teacher.grad is None
    p, q = (
        x.masked_fill(MASK[:, None, None] == 0, -torch.inf).softmax(-1) for x in (teacher, student)
    )
    expected = (q - p) * MASK[:, None, :, None] / (2 * 15)
    torch.testing.assert_close(student.grad, expected)
    assert relation_loss(student.bfloat16(), teacher.bfloat16(), MASK).dtype == torch.float32


def test_a_narrow_student_learns_a_wide_teachers_last_layer():
    teacher, data = classifier(layers=3, width=16, heads=4), batch()
    student = classifier(seed=1, layers=2, width=8, heads=2)
    with torch.no_grad(), observe_heads(teacher) as theirs:
        teacher(**data)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.02)
    losses = []
    with observe_heads(student) as ours:
        for _ in range(30):
            student(**data)
            loss = minilm_v2_loss(ours[1], theirs[2], MASK, relation_heads=4)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_bad_input_is_named():
    two, three = heads(1), heads(2, count=3)
    with pytest.raises(ValueError, match=r"not \(3, 2, 7, 7\) and \(3, 3, 7, 7\)"):
        minilm_loss(two, three, MASK)
    with pytest.raises(ValueError, match="heads must divide the width 8, not 3"):
        minilm_v2_loss(two, three, MASK, relation_heads=3)
    with pytest.raises(ValueError, match="heads must divide the width 8, not 0"):
        regroup(two.query, 0)
    with pytest.raises(ValueError, match="weights must be three"):
        minilm_v2_loss(two, two, MASK, relation_heads=2, weights=(1.0, 1.0))
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 7\)"):
        minilm_loss(two, two, MASK[:, :5])
