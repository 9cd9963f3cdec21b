import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qkv import assert_same, heads, padded, with_gradients
from torch.nn import functional as F

from compresslab.attention.linear import elu_plus_one, linear_attention, linear_attention_step

FORMS = ("parallel", "recurrent", "chunked")


def by_loop(query, key, value, *, causal=False, mask=None, feature_map=elu_plus_one):
    """The quotient of equation 4, token by token."""
    out = torch.zeros_like(value)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in value.shape[:3])).tolist():
        last = i + 1 if causal else value.shape[2]
        seen = torch.arange(last) if mask is None else mask[b, :last].nonzero()[:, 0]
        weights = feature_map(key[b, h, seen]) @ feature_map(query[b, h, i])
        if len(seen):
            out[b, h, i] = weights @ value[b, h, seen] / weights.sum()
    return out


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, padded(13)])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_papers_quotient(causal, mask, form):
    options = {"causal": causal, "mask": mask}
    out = linear_attention(*heads(), form=form, chunk_size=4, **options)
    torch.testing.assert_close(out, by_loop(*heads(), **options))


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 40), st.integers(1, 45), st.booleans(), st.integers(0, 2**40))
def test_the_forms_agree_forward_and_backward(time, chunk_size, causal, bits):
    mask = torch.tensor([[bits >> t & 1 for t in range(time)], [1] * time])
    options = {"causal": causal, "mask": mask}
    parallel, recurrent, chunked = (
        with_gradients(linear_attention, *heads(time), form=form, chunk_size=chunk_size, **options)
        for form in FORMS
    )
    assert_same(parallel, recurrent)
    assert_same(parallel, chunked)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "feature_map", [torch.exp, F.relu, lambda x: torch.cat([x.exp(), (-x).exp()], dim=-1)]
)
def test_other_feature_maps_may_be_passed_in(form, feature_map):
    options = {"causal": True, "feature_map": feature_map}
    out = linear_attention(*heads(), form=form, chunk_size=5, **options)
    torch.testing.assert_close(out, by_loop(*heads(), **options).nan_to_num())


def test_the_feature_map_is_above_zero_and_has_slope_one_there():
    x = torch.linspace(-20, 20, 41, dtype=torch.float64)
    assert (elu_plus_one(x) > 0).all()
    torch.testing.assert_close(elu_plus_one(x[20:]), x[20:] + 1)
    torch.testing.assert_close(elu_plus_one(x[:20]), x[:20].exp())


def test_steps_from_a_state_give_the_causal_form():
    query, key, value = heads()
    expected = linear_attention(query, key, value, causal=True)
    state = None
    for t in range(13):
        state, out = linear_attention_step(state, query[:, :, t], key[:, :, t], value[:, :, t])
        assert state.shape == (2, 3, 4, 6)  # features × (dim_value + 1), whatever came before
        torch.testing.assert_close(out, expected[:, :, t])
    _, out = linear_attention_step(None, *(x[:, :, 0].bfloat16() for x in (query, key, value)))
    assert out.dtype == torch.bfloat16


def test_a_token_whose_features_are_all_zero_sees_nothing():
    query, key, value = heads()
    out = linear_attention(-query.abs(), key, value, feature_map=F.relu)
    assert (out == 0).all()


def test_long_texts_do_not_lose_the_first_token():
    """The state of a whole text in bfloat16 would: 256 + 1 is 256 there."""
    value = torch.zeros(1, 1, 2000, 1, dtype=torch.bfloat16)
    value[0, 0, 0] = 1
    one = torch.zeros(1, 1, 2000, 2, dtype=torch.bfloat16)
    for form in FORMS:
        out = linear_attention(one, one, value, causal=True, form=form)
        torch.testing.assert_close(
            out[0, 0, -1, 0].float(), torch.tensor(1 / 2000), rtol=4e-3, atol=0
        )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="form must be one of parallel, recurrent, chunked, not"):
        linear_attention(*heads(), form="fast")
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        linear_attention(*heads(), chunk_size=0)
