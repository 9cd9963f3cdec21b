import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qkv import assert_same, heads, oracle, padded, with_gradients
from small import randn
from transformers import BigBirdConfig, BigBirdModel
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from compresslab.attention.bigbird import bigbird_attention, bigbird_pattern, draw_random_blocks


def draw(blocks, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return draw_random_blocks(blocks, heads=3, count=count, generator=generator)


def test_random_blocks_are_different_ones_outside_of_window_and_ends():
    table = draw(9, count=4)
    assert table.shape == (3, 9, 4)
    for rows in table.tolist():
        for i, row in enumerate(rows):
            assert len(set(row)) == 4
            assert not set(row) & {0, 8, i - 1, i, i + 1}
    assert torch.equal(table, draw(9, count=4))
    assert not torch.equal(table, draw(9, count=4, seed=1))
    assert not torch.equal(table[0], table[1])
    counts = torch.bincount(draw(12, count=3)[:, 5].flatten(), minlength=12)
    many = torch.stack([draw(12, count=3, seed=s)[:, 5] for s in range(200)]).flatten()
    counts = torch.bincount(many, minlength=12)  # 257 each of 7 blocks on average
    assert ((counts > 200) == torch.tensor([i in (1, 2, 3, 7, 8, 9, 10) for i in range(12)])).all()


def test_the_pattern_is_ends_neighbours_and_random_blocks():
    table, size, time = draw(8), 3, 22
    expected = torch.zeros(3, time, time, dtype=torch.bool)
    for h in range(3):
        for i in range(time):
            for j in range(time):
                a, b = i // size, j // size
                ends = {a, b} & {0, 7}
                expected[h, i, j] = bool(ends) or abs(a - b) <= 1 or b in table[h, a]
    pattern = bigbird_pattern(time, table, block_size=size)
    assert torch.equal(pattern, expected)
    assert not pattern.all()
    causal = bigbird_pattern(time, table, block_size=size, causal=True)
    assert torch.equal(causal, expected.tril())


@settings(deadline=None, max_examples=60)
@given(st.data(), st.integers(1, 40), st.integers(1, 12), st.booleans())
def test_gathered_blocks_give_masked_full_attention_and_its_gradient(
    data, time, block_size, causal
):
    blocks = -(-time // block_size)
    row = st.lists(st.integers(0, blocks - 1), min_size=2, max_size=2)  # also repeated, also near
    table = torch.tensor([[data.draw(row)] * blocks for _ in range(3)])
    table = (table + torch.arange(blocks)[:, None]) % blocks
    mask = torch.ones(2, time)
    mask[1, : data.draw(st.integers(0, time))] = 0
    options = {"causal": causal, "mask": mask}
    ours = with_gradients(
        bigbird_attention, *heads(time), block_size=block_size, random_blocks=table, **options
    )
    pattern = bigbird_pattern(time, table, block_size=block_size)
    assert_same(ours, with_gradients(oracle, *heads(time), pattern=pattern, **options))


def test_it_is_the_bigbird_of_transformers_with_the_random_blocks_that_it_drew():
    config = BigBirdConfig(
        hidden_size=12,
        num_attention_heads=3,
        num_random_blocks=2,
        block_size=2,
        attention_probs_dropout_prob=0,
    )
    time, mask = 30, padded(30, left=0)
    layer = BigBirdBlockSparseAttention(config, seed=3).double().train()  # draws only in training
    x = 5 * randn(2, time, 12)
    blocked, band, rows, columns = BigBirdModel.create_masks_for_block_sparse_attn(mask, 2)
    with torch.no_grad():
        expected, _ = layer(x, band, rows, columns, blocked, blocked)
        inputs = [
            getattr(layer, name)(x).unflatten(-1, (3, 4)).transpose(1, 2)
            for name in ("query", "key", "value")
        ]
    np.random.seed(3)  # noqa: NPY002
    plan = layer._get_rand_attn_plan(time, 2, 2)
    drawn = layer._bigbird_block_rand_mask_with_head(time, time, 2, 2, 3, *plan)
    table = torch.nn.functional.pad(torch.tensor(np.stack(drawn)).long(), (0, 0, 1, 1))
    out = bigbird_attention(*inputs, mask=mask, block_size=2, random_blocks=table)
    out, real = out.transpose(1, 2).flatten(2), mask.bool()
    torch.testing.assert_close(out[real], expected[real])
    other = bigbird_attention(*inputs, mask=mask, block_size=2, random_blocks=draw(15))
    assert not torch.allclose(other.transpose(1, 2).flatten(2)[real], expected[real], atol=0.01)


def test_a_block_that_is_there_twice_counts_once():
    inputs, none = heads(24), torch.zeros(3, 8, 0, dtype=torch.long)
    own = torch.arange(8).expand(3, 8)[..., None].repeat(1, 1, 2)
    torch.testing.assert_close(
        bigbird_attention(*inputs, block_size=3, random_blocks=own),
        bigbird_attention(*inputs, block_size=3, random_blocks=none),
    )


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="count must be 0 to blocks - 5, not 3 of 7 blocks"):
        draw(7, count=3)
    with pytest.raises(ValueError, match=r"must be \(heads, 5 blocks, count\), not \(3, 8, 2\)"):
        bigbird_attention(*heads(), block_size=3, random_blocks=draw(8))
    with pytest.raises(ValueError, match=r"random_blocks must have 3 heads, not \(2, 7, 2\)"):
        bigbird_attention(*heads(), block_size=2, random_blocks=draw(7)[:2])
    with pytest.raises(ValueError, match="random_blocks must be 0 to 6"):
        bigbird_attention(*heads(), block_size=2, random_blocks=draw(7) + 2)
    with pytest.raises(ValueError, match="block_size must be at least 1, not 0"):
        bigbird_pattern(13, draw(7), block_size=0)
