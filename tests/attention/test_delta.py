import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_forms import assert_causal, assert_same, assert_same_gradients, in_pieces
from small import randn
from torch.nn import functional as F
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule,
    torch_recurrent_gated_delta_rule,
)

from compresslab.attention.delta import chunked_delta, delta_step, recurrent_delta


def text(time, heads=3, dim=4, value_dim=5):
    """query, key, value, beta, log_decay"""
    return (
        randn(2, heads, time, dim),
        randn(2, heads, time, dim, seed=1),
        randn(2, heads, time, value_dim, seed=2),
        randn(2, heads, time, seed=3).sigmoid(),
        -randn(2, heads, time, seed=4).exp(),
    )


def gated(form, **options):
    """The form with all tensors in a row, state as option."""

    def run(query, key, value, beta, log_decay, state=None):
        return form(query, key, value, beta, log_decay=log_decay, state=state, **options)

    return run


FORMS = [gated(recurrent_delta), gated(chunked_delta)]
FORMS += [gated(chunked_delta, chunk_size=size) for size in (1, 5)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time", [1, 2, 13])
def test_every_form_is_the_papers_product_of_matrices(form, time):
    query, key, value, beta, log_decay = tensors = text(time)
    state, outputs = torch.zeros(2, 3, 4, 5).double(), []
    for t in range(time):
        k = key[:, :, t, :, None] / key[:, :, t, :, None].norm(dim=2, keepdim=True)
        b = beta[:, :, t, None, None]
        reflect = torch.eye(4).double() - b * k @ k.mT
        state = log_decay[:, :, t, None, None].exp() * reflect @ state
        state = state + b * k @ value[:, :, t, None, :]
        outputs.append((state.mT @ query[:, :, t, :, None]).squeeze(-1))
    assert_same(form(*tensors), (state, torch.stack(outputs, 2)))


@pytest.mark.parametrize("form", FORMS)
def test_transformers_gives_the_same(form):
    """Theirs has time before heads, divides queries by √dim, and computes in float32."""
    query, key, value, beta, log_decay = tensors = text(70)
    turned = (
        x.transpose(1, 2) for x in (2 * query, F.normalize(key, dim=-1), value, log_decay, beta)
    )
    query, key, value, log_decay, beta = (x.contiguous() for x in turned)
    for oracle in (torch_recurrent_gated_delta_rule, torch_chunk_gated_delta_rule):
        output, state = oracle(query, key, value, log_decay, beta, output_final_state=True)
        expected = (state.double(), output.double().transpose(1, 2))
        assert_same(form(*tensors), expected, rtol=1e-4, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 25), st.booleans(), st.data())
def test_forms_agree_at_any_length_in_any_pieces(time, chunk_size, gate, data):
    *tensors, log_decay = text(time)
    tensors = (*tensors, log_decay if gate else 0 * log_decay)
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1)) if time > 1 else st.just(set())))
    whole = gated(recurrent_delta)(*tensors)
    chunked = gated(chunked_delta, chunk_size=chunk_size)
    assert_same(chunked(*tensors), whole)
    assert_same(in_pieces(chunked, tensors, cuts, dim=2), whole)
    assert_same(in_pieces(gated(recurrent_delta), tensors, cuts, dim=2), whole)
    if not gate:
        assert_same(chunked_delta(*tensors[:4], chunk_size=chunk_size), whole)


@pytest.mark.parametrize("form", FORMS[1:])
def test_gradients_agree_through_the_state(form):
    tensors = (*text(11), randn(2, 3, 4, 5, seed=5))
    assert_same_gradients(form, gated(recurrent_delta), tensors)


def test_gradients_are_those_of_differences():
    tensors = [x.requires_grad_() for x in text(4, heads=1, dim=2, value_dim=2)]
    assert torch.autograd.gradcheck(gated(chunked_delta, chunk_size=3), tensors)


def test_a_step_is_one_of_gradient_descent_on_what_the_key_reads():
    query, key, value, beta, _ = (x[:, :, 0] for x in text(1))
    state = randn(2, 3, 4, 5, seed=5).requires_grad_()
    k = F.normalize(key, dim=-1)
    error = (k[..., None, :] @ state).squeeze(-2) - value
    (gradient,) = torch.autograd.grad(error.square().sum() / 2, state)
    stepped = state - beta[..., None, None] * gradient
    torch.testing.assert_close(delta_step(state, query, key, value, beta)[0], stepped)


def test_a_key_written_twice_holds_the_second_value_where_linear_attention_adds():
    keys = torch.eye(4).double()[[0, 1, 0, 2, 0]].expand(1, 1, 5, 4)
    value, beta = randn(1, 1, 5, 3), torch.ones(1, 1, 5).double()
    state, output = chunked_delta(keys, keys, value, beta)
    torch.testing.assert_close(output, value)
    torch.testing.assert_close(state[0, 0, :3], value[0, 0, [4, 1, 3]])
    half = chunked_delta(keys, keys, value, beta / 2)[1]
    torch.testing.assert_close(half[0, 0, 2], value[0, 0, 0] / 4 + value[0, 0, 2] / 2)


def test_beta_zero_writes_nothing_and_a_gate_of_zero_forgets_all():
    query, key, value, beta, log_decay = text(13)
    state = randn(2, 3, 4, 5, seed=5)
    after, output = chunked_delta(query, key, value, 0 * beta, state=state, chunk_size=5)
    torch.testing.assert_close(after, state)
    torch.testing.assert_close(output, query @ state)
    closed = log_decay.clone()
    closed[:, :, 7] = -torch.inf
    for form in FORMS:
        after, output = form(query, key, value, beta, closed, state)
        late = [x[:, :, 7:] for x in (query, key, value, beta, log_decay)]
        assert_same((after, output[:, :, 7:]), form(*late))
    tensors = (query, key, value, beta, closed)
    assert_same_gradients(gated(chunked_delta, chunk_size=5), FORMS[0], tensors)


def test_the_length_of_a_key_does_not_matter_and_zeros_write_nothing():
    query, key, value, beta, log_decay = text(13)
    scaled = key * (1 + torch.arange(13.0).double())[:, None]
    for form in FORMS[:2]:
        assert_same(
            form(query, scaled, value, beta, log_decay), form(query, key, value, beta, log_decay)
        )
    state, output = chunked_delta(query, 0 * key, value, beta)
    assert (state == 0).all()
    assert (output == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_nothing_leaks_from_the_future(form):
    assert_causal(form, text(9), dim=2)


@pytest.mark.parametrize("reach", [1.0, 2.0])
def test_a_long_text_with_large_keys_stays_close_to_float64(reach):
    query, key, value, beta, log_decay = text(4096)
    tensors = (query, 1e4 * key, value, reach * beta, log_decay / 100)
    exact = gated(chunked_delta)(*tensors)
    state, output = gated(chunked_delta)(*(x.float() for x in tensors))
    for a, b in ((state, exact[0]), (output, exact[1])):
        assert a.isfinite().all()
        assert (a - b).norm() < 1e-4 * b.norm()
    assert output.norm(dim=-1).max() < 100


def test_half_precision_is_accumulated_in_float32():
    tensors = [x.bfloat16() for x in text(100)]
    exact = gated(recurrent_delta)(*(x.float() for x in tensors))
    for form in FORMS[:2]:
        state, output = form(*tensors)
        assert state.dtype == torch.float32
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(state, exact[0])
        torch.testing.assert_close(output, exact[1].bfloat16(), rtol=0.01, atol=0.01)


def test_bad_input_is_named():
    query, key, value, beta, log_decay = text(3)
    with pytest.raises(ValueError, match=r"beta must have shape \(2, 3, 3\), not \(2, 3, 2\)"):
        chunked_delta(query, key, value, beta[..., :2])
    with pytest.raises(ValueError, match="log_decay must be at most 0, being a logarithm"):
        recurrent_delta(query, key, value, beta, log_decay=log_decay.exp())
    with pytest.raises(ValueError, match=r"log_decay must have shape \(2, 3, 3\)"):
        chunked_delta(query, key, value, beta, log_decay=log_decay[:1])
    with pytest.raises(ValueError, match=r"time at least 1, not \(2, 3, 0, 4\)"):
        chunked_delta(*(x[:, :, :0] for x in (query, key, value, beta)))
    with pytest.raises(
        ValueError, match=r"state must have shape \(2, 3, 4, 5\), not \(2, 3, 4, 4\)"
    ):
        delta_step(randn(2, 3, 4, 4), *(x[:, :, 0] for x in (query, key, value, beta)))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not -1"):
        chunked_delta(query, key, value, beta, chunk_size=-1)
    with pytest.raises(ValueError, match=r"not \(2, 3, 3, 4\), \(2, 3, 3, 3\)"):
        chunked_delta(query, key[..., :3], value, beta)
