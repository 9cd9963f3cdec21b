import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recurrent_forms import assert_causal, assert_same, assert_same_gradients, in_pieces
from small import randn

from compresslab.attention.s4d import (
    S4D,
    System,
    discretize,
    s4d_convolution,
    s4d_inv,
    s4d_kernel,
    s4d_lin,
    s4d_recurrence,
    s4d_step,
)

CHANNELS, PAIRS = 3, 4
FORMS = [s4d_convolution, s4d_recurrence]


def rates():
    return s4d_lin(2 * PAIRS).to(torch.complex128)


def steps():
    return torch.tensor([0.001, 0.1, 0.5], dtype=torch.float64)


def reads():
    return torch.view_as_complex(randn(CHANNELS, PAIRS, 2, seed=1))


def system():
    return discretize(rates(), steps(), reads())


def make(decay, write=1.0, read=0.5):
    """One mode for each of three channels."""
    full = (torch.full((3, 1), x, dtype=torch.complex128) for x in (decay, write, read))
    return System(*full)


def test_a_channel_is_the_differential_equation_solved_by_the_matrix_exponential():
    """Of the whole system, both of each pair, with the input as one more variable that stands."""
    x, expected = randn(2, 13, CHANNELS), []
    for channel, (step, read) in enumerate(zip(steps(), reads(), strict=True)):
        a = torch.zeros(2 * PAIRS + 1, 2 * PAIRS + 1, dtype=torch.complex128)
        a[:-1, :-1] = torch.diag(torch.cat([rates(), rates().conj()]))
        a[:-1, -1] = 1
        flow = torch.linalg.matrix_exp(step * a)
        h, ys = torch.zeros(2, 2 * PAIRS, dtype=torch.complex128), []
        for t in range(13):
            held = torch.cat([h, x[:, t, channel, None].to(h)], dim=1)
            h = (held @ flow.T)[:, :-1]
            ys.append(h @ torch.cat([read, read.conj()]))
        y = torch.stack(ys, dim=1)
        assert y.imag.abs().max() < 1e-12
        expected.append(y.real)
    for form in FORMS:
        torch.testing.assert_close(form(x, system())[1], torch.stack(expected, dim=2))


def test_the_step_is_exact_for_an_input_that_stands():
    """Two half steps with the same input are one whole step."""
    half, whole = (discretize(rates(), step * steps(), reads()) for step in (0.5, 1.0))
    x = randn(2, 7, CHANNELS)
    state, y = s4d_recurrence(x.repeat_interleave(2, dim=1), half)
    assert_same((state, y[:, 1::2]), s4d_recurrence(x, whole))


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 17, 100])
def test_the_kernel_is_a_sum_of_powers(length):
    decay, write, read = system()
    terms = [2 * (read * write * decay**t).sum(-1).real for t in range(length)]
    torch.testing.assert_close(s4d_kernel(system(), length), torch.stack(terms, dim=1))


@settings(max_examples=40)
@given(st.integers(1, 40), st.data())
def test_convolution_and_recurrence_agree_at_any_length_in_any_pieces(time, data):
    x = randn(2, time, CHANNELS)
    cuts = sorted(data.draw(st.sets(st.integers(1, time - 1)) if time > 1 else st.just(set())))
    whole = s4d_convolution(x, system())
    assert_same(s4d_recurrence(x, system()), whole)
    for form in FORMS:
        assert_same(in_pieces(partial(form, system=system()), [x], cuts, dim=1), whole)


def run(form, x, rate, log_step, read, state):
    return form(x, discretize(rate, log_step.exp(), read), state=state)


def test_gradients_agree_for_everything_that_is_learned():
    state = torch.view_as_complex(randn(2, CHANNELS, PAIRS, 2, seed=4))
    tensors = (randn(2, 11, CHANNELS), rates(), steps().log(), reads(), state)
    assert_same_gradients(partial(run, s4d_convolution), partial(run, s4d_recurrence), tensors)


def test_gradients_are_those_of_differences():
    x, decay, write, read = (
        x.requires_grad_()
        for x in (randn(1, 5, CHANNELS), *(part.detach().clone() for part in system()))
    )

    def output(x, *parts):
        return s4d_convolution(x, System(*parts))[1]

    assert torch.autograd.gradcheck(output, (x, decay, write, read))


def test_initialisations_are_the_papers():
    n = torch.arange(4)
    assert torch.equal(s4d_lin(8).real, torch.full((4,), -0.5))
    torch.testing.assert_close(s4d_lin(8).imag, math.pi * n)
    assert torch.equal(s4d_inv(8).real, torch.full((4,), -0.5))
    expected = torch.tensor([8 / math.pi * (8 / m - 1) for m in (1, 3, 5, 7)])
    torch.testing.assert_close(s4d_inv(8).imag, expected)


@pytest.mark.parametrize("form", FORMS)
def test_decay_zero_keeps_only_the_token_and_decay_one_adds_up(form):
    x = randn(2, 9, 3)
    torch.testing.assert_close(form(x, make(0.0))[1], x)
    torch.testing.assert_close(form(x, make(1.0))[1], x.cumsum(1))
    torch.testing.assert_close(form(x, make(1.0))[0].real[..., 0], x.sum(1))


@pytest.mark.parametrize("form", FORMS)
def test_nothing_leaks_from_the_future_and_nothing_wraps_around(form):
    assert_causal(partial(form, system=system()), [randn(2, 9, CHANNELS)], dim=1)
    x = torch.zeros(1, 9, 3).double()
    x[:, -1] = 1.0
    assert form(x, make(1.0))[1][:, :-1].abs().max() < 1e-12


@pytest.mark.parametrize("start", [s4d_lin, s4d_inv])
def test_a_long_text_with_large_numbers_stays_close_to_float64(start):
    x = 1e4 * randn(1, 4096, CHANNELS)
    made = discretize(start(64), steps().float(), reads().repeat(1, 8).to(torch.complex64))
    exact = System(*(part.to(torch.complex128) for part in made))
    for form in FORMS:
        state, y = form(x.float(), made)
        assert y.isfinite().all()
        assert (y - s4d_convolution(x, exact)[1]).norm() < 1e-4 * y.norm()
        assert state.isfinite().all()


@pytest.mark.parametrize("initialization", ["lin", "inv"])
def test_the_layer_reads_a_text_in_pieces_and_all_its_parameters_learn(initialization):
    layer = S4D(6, state_size=8, initialization=initialization).double()
    x = randn(2, 12, 6)
    whole = layer(x)
    state, first = layer(x[:, :5])
    outputs = [first]
    for t in range(5, 12):
        state, y = layer.step(state, x[:, t])
        outputs.append(y[:, None])
    assert_same((state, torch.cat(outputs, dim=1)), whole)
    whole[1].square().sum().backward()
    assert all((p.grad != 0).any() for p in layer.parameters())
    torch.testing.assert_close(whole[1] - s4d_recurrence(x, layer.system())[1], layer.skip * x)


def test_the_layer_starts_as_the_paper_says_from_its_generator_alone():
    layers = [S4D(500, generator=torch.Generator().manual_seed(3)) for _ in "ab"]
    for a, b in zip(*(layer.parameters() for layer in layers), strict=True):
        assert torch.equal(a, b)
    layer = layers[0]
    step = layer.log_step.exp()
    assert step.min() >= 0.001
    assert step.max() <= 0.1
    assert 0.005 < step.median() < 0.02
    assert layer.read.shape == (500, 32, 2)
    assert abs(layer.read.square().sum(-1).mean() - 1) < 0.05
    assert (layer.system().decay.abs() < 1).all()


def test_half_precision_is_accumulated_in_float32():
    x = randn(2, 50, CHANNELS).bfloat16()
    made = System(*(part.to(torch.complex64) for part in system()))
    exact = s4d_recurrence(x.float(), made)
    for form in FORMS:
        state, y = form(x, made)
        assert state.dtype == torch.complex64
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y, exact[1].bfloat16(), rtol=0.01, atol=0.01)


def test_bad_input_is_named():
    x = randn(2, 5, CHANNELS)
    with pytest.raises(ValueError, match=r"the last axis 3, not \(2, 5, 2\)"):
        s4d_convolution(x[..., :2], system())
    with pytest.raises(ValueError, match=r"time at least 1 and the last axis 3, not \(2, 0, 3\)"):
        s4d_recurrence(x[:, :0], system())
    with pytest.raises(ValueError, match=r"state must have shape \(2, 3, 4\), not \(1, 3, 4\)"):
        s4d_step(torch.zeros(1, 3, 4), x[:, 0], system())
    with pytest.raises(ValueError, match=r"step_size must have shape \(3,\), not \(2,\)"):
        discretize(rates(), steps()[:2], reads())
    with pytest.raises(ValueError, match=r"rate must have shape \(3, 4\) or its last axis"):
        discretize(rates()[:3], steps(), reads())
    with pytest.raises(ValueError, match="state_size must be even and at least 2, not 5"):
        s4d_lin(5)
    with pytest.raises(ValueError, match="initialization must be 'lin' or 'inv', not 'legs'"):
        S4D(4, initialization="legs")
