import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import randn

from compresslab.attention.recurrence import (
    associative_scan,
    initial,
    over_chunks,
    over_tokens,
    random_linear,
)


def running_sum(state, x):
    sums = state + x.cumsum(1)
    return sums[:, -1:], sums


@given(st.integers(1, 40), st.integers(1, 50))
def test_chunks_and_tokens_visit_everything_once_in_order(time, chunk_size):
    x = randn(2, time, 3)
    state, outputs = over_chunks(
        running_sum, torch.zeros(2, 1, 3).double(), x, dim=1, chunk_size=chunk_size
    )
    torch.testing.assert_close(outputs, x.cumsum(1))
    torch.testing.assert_close(state, x.sum(1, keepdim=True))
    state, outputs = over_tokens(lambda s, token: (s + token, s + token), 0.0, x, dim=1)
    torch.testing.assert_close(outputs, x.cumsum(1))
    torch.testing.assert_close(state, x.sum(1))


@given(st.integers(1, 40))
def test_a_scan_merges_in_order_even_where_order_matters(time):
    """Products of matrices do not commute."""
    x = randn(2, time, 3, 3)
    (products,) = associative_scan(lambda a, b: [b[0] @ a[0]], [x])
    expected = x[:, 0]
    for t in range(time):
        expected = x[:, t] @ expected if t else expected
        torch.testing.assert_close(products[:, t], expected)


def test_a_scan_needs_as_many_rounds_as_time_has_bits():
    for time, rounds in ((1, 0), (2, 1), (3, 2), (64, 6), (65, 7)):
        calls = []
        associative_scan(lambda a, b, c=calls: c.append(1) or [a[0] + b[0]], [randn(1, time)])
        assert len(calls) == rounds


def test_a_state_begins_with_zeros_or_is_taken_as_it_is():
    like = randn(1)
    assert torch.equal(initial(None, (2, 3), like=like), torch.zeros(2, 3).double())
    state = torch.ones(2, 3, dtype=torch.float32)
    assert initial(state, (2, 3), like=like).dtype == torch.float64
    with pytest.raises(ValueError, match=r"state must have shape \(2, 4\), not \(2, 3\)"):
        initial(state, (2, 4), like=like)


def test_a_random_layer_is_drawn_from_its_generator_alone():
    torch.manual_seed(0)
    one, two = (random_linear(16, 4, generator=torch.Generator().manual_seed(7)) for _ in "ab")
    assert torch.equal(one.weight, two.weight)
    assert one.bias is None
    assert one.weight.shape == (4, 16)
    assert 0.2 < one.weight.abs().max() <= 0.25


def test_a_chunk_has_at_least_one_token():
    with pytest.raises(ValueError, match="chunk_size must be at least 1, not 0"):
        over_chunks(running_sum, 0.0, randn(2, 3, 1), dim=1, chunk_size=0)
