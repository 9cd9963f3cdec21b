import pytest
import torch
from qkv import assert_same, heads, oracle, padded, with_gradients
from small import randn
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from compresslab.attention.nystrom import nystrom_attention, pseudo_inverse


@pytest.mark.parametrize("landmarks", [13, 50])
@pytest.mark.parametrize("mask", [None, padded(13)])
def test_as_many_landmarks_as_tokens_are_full_attention(landmarks, mask):
    inputs = heads()
    options = {"landmarks": landmarks, "iterations": 30}
    ours = with_gradients(nystrom_attention, *inputs, mask=mask, **options)
    expected = with_gradients(oracle, *inputs, mask=mask)
    if mask is not None:  # rows of padding mean nothing, and are no landmarks
        ours, expected = ([x[:1] for x in found] for found in (ours, expected))
    assert_same(ours, expected)
    out = nystrom_attention(*inputs, mask=mask, **options)
    real = padded(13).bool()[:, None, :, None]
    torch.testing.assert_close(out * real, oracle(*inputs, mask=mask) * real)


def test_six_iterations_come_near():
    inputs = heads()
    error = (nystrom_attention(*inputs, landmarks=13) - oracle(*inputs)).abs().max()
    assert 1e-6 < error < 0.1


@pytest.mark.parametrize("landmarks", [2, 4, 8])
def test_it_is_the_nystromformer_of_transformers(landmarks):
    config = NystromformerConfig(
        hidden_size=8,
        num_attention_heads=1,  # there the largest norm of a batch and its heads divides all
        num_landmarks=landmarks,
        segment_means_seq_len=16,
        conv_kernel_size=1,
        attention_probs_dropout_prob=0,
    )
    layer = NystromformerSelfAttention(config).double()
    x = 5 * randn(1, 16, 8)
    with torch.no_grad():
        layer.conv.weight.zero_()
        (expected,) = layer(x)
        inputs = [getattr(layer, name)(x)[:, None] for name in ("query", "key", "value")]
    out = nystrom_attention(*inputs, landmarks=landmarks)
    torch.testing.assert_close(out[:, 0], expected)


def test_segments_need_not_be_equal_and_padding_is_in_none():
    """The same as each text alone, cut to its tokens, if the segments of real tokens agree."""
    query, key, value = heads(12)
    whole = nystrom_attention(query, key, value, landmarks=4)
    mask = torch.ones(2, 15)
    mask[:, 2::5] = 0  # one token more in segments 1, 2 and 3 of 5 tokens
    keep = mask[0].bool()
    wide = [torch.full((2, 3, 15, x.shape[-1]), 30.0).double() for x in (query, key, value)]
    for x, part in zip(wide, (query, key, value), strict=True):
        x[:, :, keep] = part
    padded = nystrom_attention(*wide, mask=mask, landmarks=3)
    torch.testing.assert_close(
        padded[:, :, keep], nystrom_attention(query, key, value, landmarks=3)
    )
    assert not torch.allclose(padded[:, :, keep], whole)
    uneven = nystrom_attention(query, key, value, landmarks=5)
    means = torch.zeros(5, 12).double()
    for i in range(12):
        means[i * 5 // 12, i] = 1
    means /= means.sum(1, keepdim=True)
    q, k = means @ query, means @ key
    one = torch.softmax(query @ k.mT / 2, -1)
    two = torch.softmax(q @ k.mT / 2, -1)
    three = torch.softmax(q @ key.mT / 2, -1)
    torch.testing.assert_close(uneven, one @ pseudo_inverse(two) @ three @ value)


def test_a_segment_of_padding_alone_is_no_landmark():
    query, key, value = heads(12)
    mask = torch.ones(2, 12)
    mask[:, 6:9] = 0
    part = [torch.cat([x[:, :, :6], x[:, :, 9:]], dim=2) for x in (query, key, value)]
    expected = nystrom_attention(*part, landmarks=3)
    out = nystrom_attention(query, key, value, mask=mask, landmarks=4)
    torch.testing.assert_close(torch.cat([out[:, :, :6], out[:, :, 9:]], dim=2), expected)


def test_the_pseudo_inverse_is_that_of_each_matrix_alone():
    matrices = torch.softmax(3 * randn(2, 3, 5, 5), dim=-1)
    inverse = pseudo_inverse(matrices, iterations=40)
    torch.testing.assert_close(inverse, torch.linalg.pinv(matrices))
    few = pseudo_inverse(matrices)
    torch.testing.assert_close(few[1, 2], pseudo_inverse(matrices[1, 2]))
    scaled = torch.cat([matrices[:1], 100 * matrices[1:]])
    torch.testing.assert_close(pseudo_inverse(scaled)[0], few[0])


def test_the_pseudo_inverse_of_a_matrix_without_full_rank():
    matrix = randn(5, 2) @ randn(2, 5, seed=1)
    inverse = pseudo_inverse(matrix, iterations=12)
    torch.testing.assert_close(inverse, torch.linalg.pinv(matrix))
    assert (pseudo_inverse(torch.zeros(3, 3)) == 0).all()


def test_each_iteration_cubes_the_error_once_it_is_small():
    matrix = torch.softmax(3 * randn(5, 5), dim=-1)
    errors = []
    for iterations in range(20):
        z = pseudo_inverse(matrix, iterations=iterations)
        errors.append(torch.linalg.matrix_norm(torch.eye(5) - matrix @ z, 2).item())
    first = next(i for i, error in enumerate(errors) if error < 0.3)
    assert errors[first + 1] == pytest.approx(0.75 * errors[first] ** 3, rel=0.2)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="landmarks must be at least 1, not 0"):
        nystrom_attention(*heads(), landmarks=0)
    with pytest.raises(ValueError, match="causal must be False: Nyströmformer"):
        nystrom_attention(*heads(), causal=True)
    with pytest.raises(ValueError, match=r"square, \(…, n, n\), not \(3, 4\)"):
        pseudo_inverse(randn(3, 4))
