import pytest
import torch
from small import batch, classifier, randn
from torch import nn
from torch.nn import functional as F

from compresslab.distillation.hidden import (
    cosine_loss,
    embedding_loss,
    hidden_loss,
    hidden_states_loss,
    uniform_layers,
    width_projection,
)

MASK = batch()["attention_mask"]


def states(seed, width=4):
    return randn(3, 7, width, seed=seed)


def real(x):
    """What is no padding, sentence after sentence, by a loop."""
    return torch.stack([x[b, t] for b in range(3) for t in range(7) if MASK[b, t]])


def test_cosine_equals_torchs_embedding_loss_on_real_tokens():
    student, teacher = states(0), states(1)
    expected = F.cosine_embedding_loss(
        real(student), real(teacher), torch.ones(15, dtype=torch.float64)
    )
    torch.testing.assert_close(cosine_loss(student, teacher, MASK), expected)


def test_cosine_sees_directions_only():
    x = states(0)
    assert cosine_loss(5 * x, x, MASK).abs() < 1e-12
    torch.testing.assert_close(cosine_loss(-x, x, MASK), torch.tensor(2.0).double())
    assert cosine_loss(torch.zeros_like(x), x, MASK) == 1


def test_hidden_loss_equals_torchs_mse_on_real_tokens():
    student, teacher = states(0), states(1)
    expected = F.mse_loss(real(student), real(teacher))
    torch.testing.assert_close(hidden_loss(student, teacher, MASK), expected)


def test_a_projection_makes_widths_fit_and_is_trained():
    student, teacher = states(0, width=2), states(1, width=4)
    projection = width_projection(2, 4, generator=torch.Generator().manual_seed(0)).double()
    loss = hidden_loss(student, teacher, MASK, projection=projection)
    expected = F.mse_loss(real(student) @ projection.weight.T, real(teacher))
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert projection.weight.grad.abs().sum() > 0


def test_the_best_projection_is_least_squares():
    student, teacher = states(0, width=2), states(1, width=4)
    projection = nn.Linear(2, 4, bias=False).double()
    solution = torch.linalg.lstsq(real(student), real(teacher)).solution
    projection.weight.data = solution.T.contiguous()
    hidden_loss(student, teacher, MASK, projection=projection).backward()
    assert projection.weight.grad.abs().max() < 1e-12


@pytest.mark.parametrize("loss", [cosine_loss, hidden_loss])
def test_padding_and_teacher_get_no_gradient_and_half_precision_is_widened(loss):
    student, teacher = states(0).requires_grad_(), states(1).requires_grad_()
    loss(student, teacher, MASK).backward()
    assert teacher.grad is None
    assert torch.equal(student.grad.abs().sum(-1) > 0, MASK.bool())
    half = loss(student.bfloat16(), teacher.bfloat16(), MASK)
    assert half.dtype == torch.float32
    changed = torch.where(MASK[..., None].bool(), student, torch.nan)
    assert torch.equal(loss(changed, teacher, MASK), loss(student, teacher, MASK))


def test_uniform_layers_are_the_papers_and_end_with_the_last():
    assert uniform_layers(4, 12) == [2, 5, 8, 11]  # TinyBERT's g(m) = 3m, from 0
    assert uniform_layers(6, 12) == [1, 3, 5, 7, 9, 11]
    assert uniform_layers(4, 6) == [0, 2, 3, 5]
    for teacher in range(1, 13):
        for student in range(1, teacher + 1):
            layers = uniform_layers(student, teacher)
            assert len(set(layers)) == student
            assert layers == sorted(layers)
            assert layers[0] >= 0
            assert layers[-1] == teacher - 1
    for student in (0, 7):
        with pytest.raises(ValueError, match="student must have 1 to 6 layers"):
            uniform_layers(student, 6)


def test_the_states_of_real_models_are_matched_layer_by_layer():
    """A student that is the teacher's layers 1 and 3, told to learn from others and from itself."""
    teacher, data = classifier(layers=4), batch()
    with torch.no_grad():
        theirs = teacher(**data, output_hidden_states=True).hidden_states
    assert len(theirs) == 5
    student = [theirs[0] + 1, theirs[2] + 2, theirs[4] + 3]
    loss = hidden_states_loss(student, theirs, [1, 3], data["attention_mask"])
    torch.testing.assert_close(loss, torch.tensor(4.0 + 9).double())
    assert hidden_states_loss(student, theirs, [0, 3], data["attention_mask"]) > loss
    embeddings = embedding_loss(student, theirs, data["attention_mask"])
    torch.testing.assert_close(embeddings, torch.tensor(1.0).double())
    scale = nn.Linear(8, 8, bias=False).double()
    scale.weight.data = torch.eye(8).double()
    for loss, rest in ((hidden_states_loss, ([1, 3], MASK)), (embedding_loss, (MASK,))):
        plain = loss(student, theirs, *rest)
        torch.testing.assert_close(loss(student, theirs, *rest, projection=scale), plain)
        double = nn.Linear(8, 8, bias=False).double()
        double.weight.data = 2 * scale.weight.data
        assert loss(student, theirs, *rest, projection=double) != plain


def test_the_projection_is_the_same_for_the_same_seed_and_keeps_the_size():
    one, two, other = (
        width_projection(64, 256, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    )
    assert torch.equal(one.weight, two.weight)
    assert not torch.equal(one.weight, other.weight)
    assert one.bias is None
    x = randn(200, 64).float()
    assert one(x).std().item() == pytest.approx(1, abs=0.1)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"not \(3, 7, 2\) and \(3, 7, 4\)"):
        hidden_loss(states(0, width=2), states(1), MASK)
    with pytest.raises(ValueError, match=r"not \(3, 7, 2\) and \(3, 7, 4\)"):
        cosine_loss(states(0, width=2), states(1), MASK)
    with pytest.raises(ValueError, match="mask must have shape"):
        hidden_loss(states(0), states(1), MASK[:, :6])
    three = [states(i) for i in range(3)]
    with pytest.raises(ValueError, match=r"layers must have 2 numbers, not \[0\]"):
        hidden_states_loss(three, three, [0], MASK)
    for bad in ([0, 2], [-1, 1]):
        with pytest.raises(ValueError, match="layers of the teacher are 0 to 1"):
            hidden_states_loss(three, three, bad, MASK)
