import pytest
import torch
from small import batch, classifier, randn
from torch import nn
from torch.nn import functional as F

from compresslab.distillation.attention import attention_loss, attention_scores, observe_heads

MASK = batch()["attention_mask"]


def test_the_softmax_of_observed_scores_is_what_transformers_reports():
    model, data = classifier(), batch()
    with torch.no_grad(), observe_heads(model) as seen:
        reported = model(**data, output_attentions=True).attentions
    assert list(seen) == [0, 1]
    keys = MASK.bool()[:, None, None, :]
    for i, probabilities in enumerate(reported):
        assert seen[i].query.shape == (3, 2, 7, 4)
        scores = attention_scores(seen[i].query, seen[i].key)
        ours = scores.masked_fill(~keys, -torch.inf).softmax(-1)
        torch.testing.assert_close(ours, probabilities)
        assert (probabilities[0].std() > 0.05).all()  # not almost uniform: the test would be weak


def test_with_the_values_they_give_the_layers_attention():
    model, data = classifier(), batch()
    outputs = []
    handle = model.bert.encoder.layer[1].attention.self.register_forward_hook(
        lambda module, args, output: outputs.append(output[0])
    )
    with torch.no_grad(), observe_heads(model) as seen:
        model(**data)
    handle.remove()
    query, key, value = seen[1]
    mask = MASK.bool()[:, None, None, :]
    ours = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    torch.testing.assert_close(ours.transpose(1, 2).flatten(2), outputs[0])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_form_of_attention_is_observed_and_the_answer_stays(attention):
    model, data = classifier(attention=attention), batch()
    with torch.no_grad():
        before = model(**data).logits
        with observe_heads(model) as seen:
            assert seen == {}
            during = model(**data).logits
            first = seen[0].query
            model(input_ids=data["input_ids"][:2])
        assert torch.equal(before, during)
        assert seen[0].query.shape[0] == 2  # of the latest pass
        model(**data)
    assert seen[0].query.shape[0] == 2  # the context is closed
    assert first.shape[0] == 3
    assert not any(m._forward_hooks for m in model.modules())


def test_hooks_go_even_after_an_error():
    model = classifier()
    with pytest.raises(RuntimeError, match="stop"), observe_heads(model):
        raise RuntimeError("stop")
    assert not any(m._forward_hooks for m in model.modules())


def test_a_loss_on_scores_trains_queries_and_keys():
    student, teacher, data = classifier(seed=0), classifier(seed=1, layers=3), batch()
    with observe_heads(student) as ours:
        student(**data)
    with torch.no_grad(), observe_heads(teacher) as theirs:
        teacher(**data)
    s, t = (attention_scores(x.query, x.key) for x in (ours[1], theirs[2]))
    attention_loss(s, t, MASK).backward()
    attention = student.bert.encoder.layer[1].attention.self
    assert attention.query.weight.grad.abs().sum() > 0
    assert attention.key.weight.grad.abs().sum() > 0
    assert attention.value.weight.grad is None  # the last layer's values are not in its scores
    assert all(p.grad is None for p in teacher.parameters())


def test_the_loss_is_the_mse_of_each_sentences_own_square():
    student, teacher = randn(3, 2, 7, 7), randn(3, 2, 7, 7, seed=1)
    total, count = 0.0, 0
    for b, n in enumerate([7, 3, 5]):
        total += F.mse_loss(student[b, :, :n, :n], teacher[b, :, :n, :n], reduction="sum")
        count += 2 * n * n
    loss = attention_loss(student, teacher, MASK)
    torch.testing.assert_close(loss, total / count)
    # With heads averaged first and squares after, it would be smaller.
    torch.testing.assert_close(
        loss, sum(attention_loss(student[:, [h]], teacher[:, [h]], MASK) for h in (0, 1)) / 2
    )


def test_padding_and_teacher_get_no_gradient_and_half_precision_is_widened():
    student, teacher = randn(3, 2, 7, 7).requires_grad_(), randn(3, 2, 7, 7).requires_grad_()
    attention_loss(student, 1 + teacher, MASK).backward()
    assert teacher.grad is None
    assert (student.grad[1, :, :3, :3] != 0).all()
    assert (student.grad[1, :, 3:] == 0).all()
    assert (student.grad[1, :, :, 3:] == 0).all()
    assert attention_loss(student.bfloat16(), teacher.bfloat16(), MASK).dtype == torch.float32
    assert attention_scores(student.bfloat16(), student.bfloat16()).dtype == torch.float32


def test_scores_differ_by_a_constant_where_probabilities_do_not():
    """Why the choice between them is one: scores hold more than the softmax lets through."""
    scores = randn(3, 2, 7, 7)
    torch.testing.assert_close((scores + 3).softmax(-1), scores.softmax(-1))
    torch.testing.assert_close(attention_loss(scores + 3, scores, MASK), torch.tensor(9.0).double())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"not \(3, 2, 7, 7\) and \(3, 4, 7, 7\)"):
        attention_loss(randn(3, 2, 7, 7), randn(3, 4, 7, 7), MASK)
    with pytest.raises(ValueError, match=r"mask must have shape \(3, 7\)"):
        attention_loss(randn(3, 2, 7, 7), randn(3, 2, 7, 7), MASK[:2])
    with pytest.raises(ValueError, match="query and key must be of one shape"):
        attention_scores(randn(3, 2, 7, 4), randn(3, 2, 7, 2))
    with (
        pytest.raises(ValueError, match="Linear has no layers of a BERT"),
        observe_heads(nn.Linear(2, 2)),
    ):
        pass
