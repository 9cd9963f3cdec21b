from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_forms import assert_causal, assert_same, assert_same_gradients, in_pieces
from small import randn
from transformers import RwkvConfig
from transformers.models.rwkv.modeling_rwkv import (
    RwkvFeedForward,
    RwkvSelfAttention,
    rwkv_linear_attention_cpu,
)

from compresslab.attention.rwkv import (
    ChannelMix,
    TimeMix,
    chunked_wkv,
    recurrent_wkv,
    token_shift,
    wkv_step,
)

DECAY = -torch.tensor([0.001, 0.1, 1.0, 20.0], dtype=torch.float64)
BONUS = randn(4, seed=9)
FORMS = [recurrent_wkv, chunked_wkv]
FORMS += [partial(chunked_wkv, chunk_size=size) for size in (1, 5)]


def text(time):
    """key, value"""
    return 2 * randn(2, time, 4), randn(2, time, 4, seed=1)


def formula(key, value, log_decay, bonus):
    """The quotient of the paper's two sums, in plain exponentials."""
    output = torch.zeros_like(value)
    for t in range(key.shape[1]):
        weight = (bonus + key[:, t]).exp()
        above, below = weight * value[:, t], weight
        for i in range(t):
            faded = (t - 1 - i) * log_decay if t - 1 > i else 0
            weight = (faded + key[:, i]).exp()
            above, below = above + weight * value[:, i], below + weight
        output[:, t] = above / below
    return output


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time", [1, 2, 13])
def test_every_form_is_the_papers_quotient(form, time):
    tensors = text(time)
    torch.testing.assert_close(form(*tensors, DECAY, BONUS)[1], formula(*tensors, DECAY, BONUS))


@pytest.mark.parametrize("form", FORMS)
def test_transformers_gives_the_same_outputs_and_states(form):
    """Theirs takes log w, and computes in float32."""
    key, value = text(40)
    ours = theirs = None
    for part in (slice(0, 23), slice(23, 40)):
        expected, theirs = rwkv_linear_attention_cpu(
            (-DECAY).log(), BONUS, key[:, part], value[:, part], theirs, return_state=True
        )
        ours, output = form(key[:, part], value[:, part], DECAY, BONUS, state=ours)
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
        assert_same(ours, [x.double() for x in theirs], rtol=1e-5, atol=1e-5)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 25), st.data())
def test_forms_agree_at_any_length_in_any_pieces(time, chunk_size, data):
    tensors = text(time)
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1)) if time > 1 else st.just(set())))
    whole = recurrent_wkv(*tensors, DECAY, BONUS)
    chunked = partial(chunked_wkv, chunk_size=chunk_size)
    assert_same(chunked(*tensors, DECAY, BONUS), whole)
    for form in (chunked, recurrent_wkv):
        form = partial(form, log_decay=DECAY, bonus=BONUS)
        assert_same(in_pieces(form, tensors, cuts, dim=1), whole)


def run(form, key, value, log_decay, bonus, first_key, first_value):
    """What comes before is read by a step, so that the state is one that can be."""
    state, _ = wkv_step(None, first_key, first_value, log_decay, bonus)
    state, output = form(key, value, log_decay, bonus, state=state)
    a, b, p = state
    return a / b, b.log() + p, output  # the state but for how it is split


@pytest.mark.parametrize("form", FORMS[1:])
def test_gradients_agree_through_the_state(form):
    tensors = (*text(11), DECAY, BONUS, randn(2, 4, seed=4), randn(2, 4, seed=5))
    assert_same_gradients(partial(run, form), partial(run, recurrent_wkv), tensors)


def test_gradients_are_those_of_differences():
    tensors = [x.requires_grad_() for x in (*text(4), DECAY.clone(), BONUS.clone())]
    for form in FORMS:
        assert torch.autograd.gradcheck(lambda *t, f=form: f(*t)[1], tensors)


@pytest.mark.parametrize("form", FORMS)
def test_without_decay_it_is_a_softmax_and_with_all_of_it_the_last_two_tokens(form):
    key, value = text(9)
    zero = torch.zeros(4).double()
    output = form(key, value, zero, zero)[1]
    past = torch.ones(9, 9).tril().bool()[None, :, :, None]
    weights = key[:, None].expand(2, 9, 9, 4).masked_fill(~past, -torch.inf).softmax(2)
    torch.testing.assert_close(output, (weights * value[:, None]).sum(2))
    output = form(key, value, zero - torch.inf, BONUS)[1]
    new = (key[:, 1:] + BONUS - key[:, :-1]).sigmoid()
    torch.testing.assert_close(output[:, 1:], new * value[:, 1:] + (1 - new) * value[:, :-1])
    torch.testing.assert_close(output[:, 0], value[:, 0])


def test_gradients_stay_numbers_where_all_of_the_past_is_forgotten():
    key, value = (x.requires_grad_() for x in text(9))
    log_decay = torch.full((4,), -torch.inf).double().requires_grad_()
    for form in FORMS:
        total = form(key, value, log_decay, BONUS)[1].square().sum()
        for gradient in torch.autograd.grad(total, (key, value, log_decay)):
            assert gradient.isfinite().all()


@settings(max_examples=20)
@given(st.sampled_from([1.0, 1e2, 1e4]), st.integers(0, 2**31))
def test_the_output_is_a_mean_and_a_constant_in_all_keys_does_not_matter(scale, seed):
    key, value = scale * randn(2, 30, 4, seed=seed), randn(2, 30, 4, seed=seed + 1)
    for form in FORMS:
        output = form(key, value, DECAY, BONUS)[1]
        assert (output <= value.cummax(1).values + 1e-9).all()
        assert (output >= value.cummin(1).values - 1e-9).all()
        moved = form(key + scale, value, DECAY, BONUS)[1]
        torch.testing.assert_close(moved, output, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_leaks_from_the_future(form):
    assert_causal(
        partial(form, log_decay=DECAY[:3], bonus=BONUS[:3]), [x[..., :3] for x in text(9)], dim=1
    )


@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_a_long_text_with_large_keys_stays_close_to_float64(form, scale):
    """e^1000 is no number, and neither is e^(20 · 4096)."""
    key, value = text(4096)
    key = (scale * key).float().double()
    exact = chunked_wkv(key, value, DECAY, BONUS)[1]
    tensors = (x.float() for x in (key, value, DECAY, BONUS))
    state, output = form(*tensors)
    assert all(x.isfinite().all() for x in state)
    assert (output - exact).norm() < 1e-3 * exact.norm()


def test_half_precision_is_accumulated_in_float32():
    tensors = [x.bfloat16() for x in text(100)]
    exact = recurrent_wkv(*(x.float() for x in tensors), DECAY, BONUS)
    for form in FORMS[:2]:
        state, output = form(*tensors, DECAY, BONUS)
        assert {x.dtype for x in state} == {torch.float32}
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output, exact[1].bfloat16(), rtol=0.01, atol=0.01)


@pytest.mark.parametrize("names", [(TimeMix, RwkvSelfAttention), (ChannelMix, RwkvFeedForward)])
def test_with_the_same_weights_the_modules_are_those_of_transformers(names):
    ours, theirs = names[0](12), names[1](RwkvConfig(hidden_size=12))
    generator = torch.Generator().manual_seed(0)
    for p in theirs.parameters():
        p.data = torch.randn(p.shape, generator=generator) / 2
    ours.load_state_dict(theirs.state_dict())
    x, weights = randn(2, 21, 12).float(), randn(2, 21, 12, seed=1).float()
    results = []
    for output in (lambda x: ours(x)[1], lambda x: theirs(x)[0]):
        leaf = x.clone().requires_grad_()
        y = output(leaf)
        (y * weights).sum().backward()
        results.append((y, leaf.grad))
    assert_same(*results, rtol=1e-4, atol=1e-5)
    named = dict(theirs.named_parameters())
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, named[name].grad, rtol=1e-3, atol=1e-4)
        assert (p.grad != 0).any()


@pytest.mark.parametrize("kind", [TimeMix, ChannelMix])
def test_the_modules_read_a_text_in_pieces_and_only_what_came_before(kind):
    module = kind(12, generator=torch.Generator().manual_seed(0)).double()
    x = randn(2, 11, 12)
    for cuts in ([1], [10], [1, 2, 3], [5, 8], list(range(1, 11))):
        pieces = in_pieces(lambda x, state: module(x, state), [x], cuts, dim=1)
        assert_same(pieces, module(x))
    assert_causal(module, [x], dim=1)


def test_a_step_of_the_module_is_a_text_of_one_token():
    module = TimeMix(6)
    x = randn(2, 2, 6).float()
    state, _ = module(x[:, :1])
    assert_same(module.step(state, x[:, 1]), (module(x)[0], module(x)[1][:, 1]))


def test_modules_start_as_the_authors_code_from_their_generator_alone():
    for kind in (TimeMix, ChannelMix):
        modules = [kind(12, generator=torch.Generator().manual_seed(3)) for _ in "ab"]
        for a, b in zip(*(module.parameters() for module in modules), strict=True):
            assert torch.equal(a, b)
    mix = TimeMix(5)
    torch.testing.assert_close(mix.time_decay[[0, 4]], torch.tensor([-5.0, 3.0]))
    zigzag = torch.tensor([0.0, 0.5, -0.5, 0.0, 0.5])
    torch.testing.assert_close(mix.time_first, zigzag + torch.tensor(0.3).log())
    torch.testing.assert_close(mix.time_mix_key.flatten(), torch.arange(5) / 5)
    torch.testing.assert_close(mix.time_mix_receptance.square(), mix.time_mix_key)
    assert ChannelMix(5).key.weight.shape == (20, 5)
    assert ChannelMix(5, inside=7).value.weight.shape == (5, 7)


def test_the_shift_gives_each_token_the_one_before():
    x = randn(2, 4, 3)
    assert torch.equal(token_shift(x, None)[:, 1:], x[:, :-1])
    assert (token_shift(x, None)[:, 0] == 0).all()
    assert torch.equal(token_shift(x, x[:, 3])[:, 0], x[:, 3])


def test_bad_input_is_named():
    key, value = text(3)
    with pytest.raises(ValueError, match=r"value must have shape \(2, 3, 4\), not \(2, 2, 4\)"):
        chunked_wkv(key, value[:, :2], DECAY, BONUS)
    with pytest.raises(ValueError, match=r"log_decay must have shape \(4,\), not \(3,\)"):
        recurrent_wkv(key, value, DECAY[:3], BONUS)
    with pytest.raises(ValueError, match=r"bonus must have shape \(4,\), not \(1, 4\)"):
        recurrent_wkv(key, value, DECAY, BONUS[None])
    with pytest.raises(ValueError, match="log_decay must be at most 0, being a logarithm, not 20"):
        chunked_wkv(key, value, -DECAY, BONUS)
    with pytest.raises(ValueError, match=r"time at least 1, not \(2, 0, 4\)"):
        chunked_wkv(key[:, :0], value[:, :0], DECAY, BONUS)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        chunked_wkv(key, value, DECAY, BONUS, chunk_size=0)
    state, _ = recurrent_wkv(key[:1], value[:1], DECAY, BONUS)
    with pytest.raises(ValueError, match=r"state.values must have shape \(2, 4\), not \(1, 4\)"):
        wkv_step(state, key[:, 0], value[:, 0], DECAY, BONUS)
    with pytest.raises(ValueError, match=r"last must have shape \(2, 4\), not \(2, 3\)"):
        token_shift(key, torch.zeros(2, 3))
    for kind in (TimeMix, ChannelMix):
        with pytest.raises(ValueError, match=r"the last axis 6, not \(2, 3, 4\)"):
            kind(6)(key.float())
