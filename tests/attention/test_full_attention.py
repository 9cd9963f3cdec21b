import math

import pytest
import torch
from qkv import assert_same, heads, oracle, padded, with_gradients

from compresslab.attention.full import full_attention

PATTERN = torch.rand(3, 13, 13, generator=torch.Generator().manual_seed(0)) < 0.4


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mask", [None, padded(13)])
@pytest.mark.parametrize("pattern", [None, PATTERN[0], PATTERN])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_torchs_attention_and_gradient(causal, mask, pattern, scale):
    options = {"causal": causal, "mask": mask, "pattern": pattern, "scale": scale}
    ours = with_gradients(full_attention, *heads(), **options)
    assert_same(ours, with_gradients(oracle, *heads(), **options))


def test_an_example_by_hand():
    # Scores 0 and log 3 after the division by √4: weights 1/4 and 3/4.
    query = torch.tensor([[0.0, 0, 0, 0], [2, 0, 0, 0]]).view(1, 1, 2, 4)
    key = torch.tensor([[0.0, 0, 0, 0], [math.log(3), 0, 0, 0]]).view(1, 1, 2, 4)
    value = torch.tensor([4.0, 8.0]).view(1, 1, 2, 1)
    out = full_attention(query, key, value)
    torch.testing.assert_close(out.flatten(), torch.tensor([6.0, 7.0]))


def test_a_row_without_keys_is_zero():
    pattern = torch.ones(13, 13, dtype=torch.bool)
    pattern[4] = False
    out = full_attention(*heads(), pattern=pattern)
    assert (out[:, :, 4] == 0).all()
    assert (out[:, :, 3] != 0).all()


def test_a_pattern_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"\(13, 13\) or \(3, 13, 13\), not \(2, 13, 13\)"):
        full_attention(*heads(), pattern=PATTERN[:2])
