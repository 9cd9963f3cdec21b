from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_forms import assert_causal, assert_same, assert_same_gradients, in_pieces
from small import randn
from torch.nn import functional as F
from transformers import DynamicCache, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer

from compresslab.attention.mamba import (
    Mamba,
    chunked_scan,
    parallel_scan,
    recurrent_scan,
    scan_step,
)
from compresslab.attention.s4d import System, s4d_convolution

RATE = -randn(5, 3, seed=9).exp()
FORMS = [recurrent_scan, parallel_scan, chunked_scan]
FORMS += [partial(chunked_scan, chunk_size=size) for size in (1, 5)]


def text(time):
    """x, step_size, write, read"""
    return (
        randn(2, time, 5),
        F.softplus(randn(2, time, 5, seed=1)),
        randn(2, time, 3, seed=2),
        randn(2, time, 3, seed=3),
    )


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("time", [1, 2, 13])
def test_every_form_is_the_sum_over_all_earlier_tokens(form, time):
    x, step_size, write, read = tensors = text(time)
    expected = torch.zeros_like(x)
    for t in range(time):
        for i in range(t + 1):
            clock = step_size[:, i + 1 : t + 1].sum(1)
            left = (clock[..., None] * RATE).exp() * write[:, i, None] * read[:, t, None]
            expected[:, t] += left.sum(-1) * step_size[:, i] * x[:, i]
    torch.testing.assert_close(form(*tensors, RATE)[1], expected)


@settings(max_examples=40)
@given(st.integers(1, 20), st.integers(1, 25), st.data())
def test_forms_agree_at_any_length_in_any_pieces(time, chunk_size, data):
    tensors = text(time)
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1)) if time > 1 else st.just(set())))
    whole = recurrent_scan(*tensors, RATE)
    for form in (parallel_scan, partial(chunked_scan, chunk_size=chunk_size)):
        assert_same(form(*tensors, RATE), whole)
        assert_same(in_pieces(partial(form, rate=RATE), tensors, cuts, dim=1), whole)


@pytest.mark.parametrize("form", FORMS[1:])
def test_gradients_agree_through_the_state(form):
    def run(form, *tensors):
        return form(*tensors[:-1], state=tensors[-1])

    tensors = (*text(11), RATE, randn(2, 5, 3, seed=4))
    assert_same_gradients(partial(run, form), partial(run, recurrent_scan), tensors)


def test_gradients_are_those_of_differences():
    tensors = [x.requires_grad_() for x in (*text(4), RATE.clone())]
    for form in FORMS[1:]:
        assert torch.autograd.gradcheck(form, tensors)


@pytest.mark.parametrize("form", FORMS)
def test_the_step_size_chooses_between_keeping_and_forgetting(form):
    x, step_size, write, read = text(9)
    state = randn(2, 5, 3, seed=4)
    kept, _ = form(x, 0 * step_size, write, read, RATE, state=state)
    assert torch.equal(kept, state)
    large = step_size.clone()
    large[:, 5] = 1e6
    late = [y[:, 5:] for y in (x, large, write, read)]
    after, y = form(x, large, write, read, RATE, state=state)
    assert_same((after, y[:, 5:]), form(*late, RATE))
    # With rate 0 nothing fades: a running sum.
    added = (step_size * x)[..., None] * write[:, :, None]
    after, y = form(x, step_size, write, read, 0 * RATE)
    torch.testing.assert_close(after, added.sum(1))
    torch.testing.assert_close(y, (added.cumsum(1) * read[:, :, None]).sum(-1))


def test_with_the_same_for_all_tokens_it_is_a_convolution_like_s4d():
    x, *rest = text(13)
    step_size, write, read = (y[:, :1].expand_as(y)[:1] for y in rest)
    y = chunked_scan(x[:1], step_size, write, read, RATE)[1]
    parts = (
        (step_size[0, 0, :, None] * RATE).exp(),
        step_size[0, 0, :, None] * write[0, 0],
        read[0, 0].expand(5, 3) / 2,
    )
    system = System(*(part.to(torch.complex128) for part in parts))
    torch.testing.assert_close(y, s4d_convolution(x[:1], system)[1])


@pytest.mark.parametrize("form", FORMS)
def test_nothing_leaks_from_the_future(form):
    assert_causal(partial(form, rate=RATE), text(9), dim=1)


@pytest.mark.parametrize("form", FORMS[1:3])
@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_a_long_text_with_large_numbers_stays_close_to_float64(form, scale):
    x, step_size, write, read = text(4096)
    tensors = (scale * x, scale * step_size, write, read)
    exact = form(*tensors, RATE)
    state, y = form(*(t.float() for t in tensors), RATE.float())
    assert state.isfinite().all()
    assert (y - exact[1]).norm() < 1e-5 * exact[1].norm()


def test_half_precision_is_accumulated_in_float32():
    tensors = [x.bfloat16() for x in text(100)]
    exact = recurrent_scan(*(x.float() for x in tensors), RATE)
    for form in FORMS[:3]:
        state, y = form(*tensors, RATE)
        assert state.dtype == torch.float32
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(state, exact[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(y, exact[1].bfloat16(), rtol=0.01, atol=0.01)


@pytest.fixture(scope="module")
def pair():
    """A mixer of transformers, and ours with its weights."""
    config = MambaConfig(hidden_size=24, state_size=4, num_hidden_layers=1, time_step_rank=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = MambaMixer(config, layer_idx=0)
        for p in theirs.parameters():  # stronger than at the start, or nothing would be selective
            p.data += 0.3 * torch.randn_like(p)
    ours = Mamba(24, state_size=4, rank=3)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs, config


def test_with_the_same_weights_it_is_transformers_mixer_forward_and_gradient(pair):
    ours, theirs, _ = pair
    x, weights = randn(2, 21, 24).float(), randn(2, 21, 24, seed=1).float()
    results = []
    for mixer in (lambda x: ours(x, chunk_size=8)[1], theirs):
        leaf = x.clone().requires_grad_()
        y = mixer(leaf)
        (y * weights).sum().backward()
        results.append((y, leaf.grad))
    assert_same(*results, rtol=1e-4, atol=1e-5)
    named = dict(theirs.named_parameters())
    assert len(named) == 9
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, named[name].grad, rtol=1e-3, atol=1e-4)
        assert (p.grad != 0).any()


@torch.no_grad()
def test_step_by_step_its_states_are_those_of_transformers_cache(pair):
    ours, theirs, config = pair
    x = randn(2, 9, 24).float()
    cache = DynamicCache(config=config)
    expected = [theirs(x[:, :4], cache_params=cache)]
    state, first = ours(x[:, :4])
    outputs = [first]
    for t in range(4, 9):
        expected.append(theirs(x[:, t : t + 1], cache_params=cache))
        state, y = ours.step(state, x[:, t])
        outputs.append(y[:, None])
    ours_all, theirs_all = torch.cat(outputs, dim=1), torch.cat(expected, dim=1)
    torch.testing.assert_close(ours_all, theirs_all, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ours_all, ours(x)[1], rtol=1e-4, atol=1e-5)
    conv = cache.get_conv_state(0, state_idx=0).mT[:, -3:]
    torch.testing.assert_close(state.conv, conv, rtol=1e-4, atol=1e-5)
    scan = cache.get_recurrent_state(0, state_idx=0)
    torch.testing.assert_close(state.scan, scan, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("conv_width", [1, 4])
def test_a_block_reads_a_text_in_pieces_and_only_what_came_before(conv_width):
    block = Mamba(6, conv_width=conv_width).double()
    x = randn(2, 11, 6)
    whole = block(x)
    assert whole[0].conv.shape == (2, conv_width - 1, 12)
    for cuts in ([1], [10], [1, 2, 3], [5, 8]):
        assert_same(in_pieces(lambda x, state: block(x, state), [x], cuts, dim=1), whole)
    assert_causal(block, [x], dim=1)


def test_a_block_starts_as_the_paper_says_from_its_generator_alone():
    blocks = [Mamba(32, generator=torch.Generator().manual_seed(3)) for _ in "ab"]
    for a, b in zip(*(block.parameters() for block in blocks), strict=True):
        assert torch.equal(a, b)
    block = blocks[0]
    step = F.softplus(Mamba(600, expand=1).dt_proj.bias)
    assert 0.00099 < step.min() < 0.0011
    assert 0.097 < step.max() < 0.1001
    assert block.dt_proj.weight.shape == (64, 2)
    assert block.dt_proj.weight.abs().max() <= 2**-0.5
    assert block.conv1d.weight.abs().max() <= 0.5
    torch.testing.assert_close(block.A_log.exp(), torch.arange(1.0, 17).expand(64, 16))
    assert (block.D == 1).all()
    assert sum(p.numel() for p in block.parameters()) == sum(
        p.numel() for p in MambaMixer(MambaConfig(hidden_size=32), 0).parameters()
    )


def test_bad_input_is_named():
    x, step_size, write, read = text(3)
    with pytest.raises(ValueError, match=r"step_size must have shape \(2, 3, 5\), not \(2, 2, 5\)"):
        chunked_scan(x, step_size[:, :2], write, read, RATE)
    with pytest.raises(ValueError, match=r"write must have shape \(2, 3, 3\), not \(2, 3, 2\)"):
        parallel_scan(x, step_size, write[..., :2], read, RATE)
    with pytest.raises(ValueError, match=r"read must have shape \(2, 3, 3\), not \(1, 3, 3\)"):
        recurrent_scan(x, step_size, write, read[:1], RATE)
    with pytest.raises(ValueError, match=r"rate must have shape \(5, 3\), not \(4, 3\)"):
        chunked_scan(x, step_size, write, read, RATE[:4])
    with pytest.raises(ValueError, match="rate must be at most 0"):
        chunked_scan(x, step_size, write, read, -RATE)
    with pytest.raises(ValueError, match=r"state must have shape \(2, 5, 3\), not \(5, 3\)"):
        scan_step(randn(5, 3), *(y[:, 0] for y in (x, step_size, write, read)), RATE)
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        chunked_scan(x, step_size, write, read, RATE, chunk_size=0)
    block = Mamba(6)
    with pytest.raises(ValueError, match=r"time at least 1 and the last axis 6, not \(2, 3, 5\)"):
        block(x.float())
    with pytest.raises(ValueError, match=r"the last axis 6, not \(2, 0, 6\)"):
        block(torch.zeros(2, 0, 6))
    state, _ = block(torch.zeros(1, 3, 6))
    with pytest.raises(ValueError, match=r"state must have shape \(2, 3, 12\), not \(1, 3, 12\)"):
        block(torch.zeros(2, 3, 6), state)
