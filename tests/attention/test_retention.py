from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_forms import assert_causal, assert_same, assert_same_gradients, in_pieces
from small import randn
from torch.nn import functional as F

from compresslab.attention.retention import (
    chunked_retention,
    head_norm,
    parallel_retention,
    recurrent_retention,
    retention_decay,
    retention_step,
)

DECAY = torch.tensor([0.0, 0.7, 1.0], dtype=torch.float64)
FORMS = [
    parallel_retention,
    recurrent_retention,
    chunked_retention,
    partial(chunked_retention, chunk_size=1),
    partial(chunked_retention, chunk_size=5),
]


def text(time, heads=3, dim=4, value_dim=5):
    return (
        randn(2, heads, time, dim),
        randn(2, heads, time, dim, seed=1),
        randn(2, heads, time, value_dim, seed=2),
    )


def formula(query, key, value, decay):
    """Σ_m γ^(n-m) (q_n · k_m) v_m, pair by pair."""
    output = torch.zeros_like(value)
    for n in range(query.shape[2]):
        for m in range(n + 1):
            score = (query[:, :, n] * key[:, :, m]).sum(-1) * decay ** (n - m)
            output[:, :, n] += score[..., None] * value[:, :, m]
    return output


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time", [1, 2, 13])
def test_every_form_is_the_papers_sum_over_pairs(form, time):
    tensors = text(time)
    torch.testing.assert_close(form(*tensors, DECAY)[1], formula(*tensors, DECAY))


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 25), st.data())
def test_forms_agree_at_any_length_in_any_pieces(time, chunk_size, data):
    tensors = text(time)
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1)) if time > 1 else st.just(set())))
    whole = parallel_retention(*tensors, DECAY)
    assert_same(recurrent_retention(*tensors, DECAY), whole)
    for form in (partial(chunked_retention, chunk_size=chunk_size), parallel_retention):
        assert_same(form(*tensors, DECAY), whole)
        assert_same(in_pieces(partial(form, decay=DECAY), tensors, cuts, dim=2), whole)


@pytest.mark.parametrize("form", FORMS[1:])
def test_gradients_agree_through_the_state_and_to_the_decay(form):
    state = randn(2, 3, 4, 5, seed=4)

    def run(form, query, key, value, decay, state):
        return form(query, key, value, decay, state=state)

    tensors = (*text(11), DECAY, state)
    assert_same_gradients(partial(run, form), partial(run, parallel_retention), tensors)


def test_gradients_are_those_of_differences():
    tensors = [x.requires_grad_() for x in text(4, heads=1, dim=2, value_dim=2)]
    decay = torch.tensor([0.6]).double().requires_grad_()
    form = partial(chunked_retention, chunk_size=3)
    assert torch.autograd.gradcheck(form, (*tensors, decay))


def test_without_decay_all_the_past_counts_and_with_all_of_it_only_the_token():
    query, key, value = text(9)
    output = chunked_retention(query, key, value, DECAY, chunk_size=4)[1]
    scores = query @ key.transpose(-1, -2)
    torch.testing.assert_close(output[:, 2], (scores.tril() @ value)[:, 2])
    itself = scores.diagonal(dim1=-2, dim2=-1)[..., None]
    torch.testing.assert_close(output[:, 0], (itself * value)[:, 0])


def test_heads_have_the_papers_scales():
    decay = retention_decay(8)
    assert torch.equal(decay, 1 - 1 / torch.tensor([32.0, 64, 128, 256, 512, 1024, 2048, 4096]))
    half = (torch.tensor(0.5).log() / decay.double().log()).round()
    assert half[0] == 22
    assert half[7] == 2839
    assert (retention_decay(20) < 1).all()


def test_the_norm_of_each_head_undoes_the_papers_other_normalisations():
    query, key, value = (10 * x for x in text(13, dim=6, value_dim=6))
    decay = retention_decay(3).double()
    gap = torch.arange(13)[:, None] - torch.arange(13)
    d = (decay[:, None, None] ** gap.clamp(min=0)).tril()
    d = d / d.sum(-1, keepdim=True).sqrt()
    scores = query @ key.transpose(-1, -2) / 6**0.5 * d
    scores = scores / scores.sum(-1, keepdim=True).abs().clamp(min=1)
    theirs = (scores @ value).transpose(1, 2)  # (batch, time, heads, dim)
    theirs = F.group_norm(theirs.reshape(26, 18), 3, eps=0).view(2, 13, 3, 6).transpose(1, 2)
    ours = head_norm(parallel_retention(query, key, value, decay)[1], eps=0)
    torch.testing.assert_close(ours, theirs)


def test_a_step_leaves_the_state_it_was_given():
    tensors = text(2)
    state = randn(2, 3, 4, 5, seed=4)
    before = state.clone()
    after, output = retention_step(state, *(x[:, :, 0] for x in tensors), DECAY)
    assert torch.equal(state, before)
    assert after.shape == state.shape
    assert output.shape == (2, 3, 5)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_leaks_from_the_future(form):
    assert_causal(partial(form, decay=torch.tensor([0.5, 0.7, 1.0])), text(9), dim=2)


def test_a_long_text_with_large_numbers_stays_close_to_float64():
    tensors = [100 * x for x in text(4096)]
    decay = retention_decay(3)
    exact = chunked_retention(*tensors, decay)
    state, output = chunked_retention(*(x.float() for x in tensors), decay)
    for a, b in ((state, exact[0]), (output, exact[1])):
        assert a.isfinite().all()
        assert (a - b).norm() < 1e-5 * b.norm()


def test_half_precision_is_accumulated_in_float32():
    tensors = [x.bfloat16() for x in text(100)]
    decay = retention_decay(3)
    for form in FORMS[:3]:
        state, output = form(*tensors, decay)
        assert state.dtype == torch.float32
        assert output.dtype == torch.bfloat16
        exact = parallel_retention(*(x.float() for x in tensors), decay)
        torch.testing.assert_close(state, exact[0])
        torch.testing.assert_close(output, exact[1].bfloat16(), rtol=0.01, atol=0.01)


def test_bad_input_is_named():
    query, key, value = text(3)
    with pytest.raises(ValueError, match=r"not \(2, 3, 3, 4\), \(2, 3, 2, 4\)"):
        parallel_retention(query, key[:, :, :2], value, DECAY)
    with pytest.raises(ValueError, match=r"time at least 1, not \(2, 3, 0, 4\)"):
        recurrent_retention(query[:, :, :0], key[:, :, :0], value[:, :, :0], DECAY)
    with pytest.raises(ValueError, match=r"decay must have shape \(3,\), not \(2,\)"):
        chunked_retention(query, key, value, DECAY[:2])
    with pytest.raises(ValueError, match="decay must be 0 to 1"):
        recurrent_retention(query, key, value, DECAY + 0.1)
    with pytest.raises(
        ValueError, match=r"state must have shape \(2, 3, 4, 5\), not \(2, 3, 5, 4\)"
    ):
        parallel_retention(query, key, value, DECAY, state=randn(2, 3, 5, 4))
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        chunked_retention(query, key, value, DECAY, chunk_size=0)
    with pytest.raises(ValueError, match="heads must be 1 to 20, not 21"):
        retention_decay(21)
