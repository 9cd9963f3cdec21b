import pytest
import torch
from qkv import assert_same, heads, oracle, padded, with_gradients
from small import randn
from torch.nn import functional as F

from compresslab.attention.linformer import Linformer, linformer_attention


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_mixtures_of_one_token_each_are_full_attention():
    inputs, one = heads(), torch.eye(13, dtype=torch.float64)
    ours = with_gradients(linformer_attention, *inputs, key_mix=one, value_mix=one)
    assert_same(ours, with_gradients(oracle, *inputs))


def test_it_is_attention_to_mixed_keys_and_values():
    query, key, value = heads()
    mixes = {"key_mix": randn(6, 13), "value_mix": randn(6, 13, seed=1)}
    mask = padded(13)
    out = linformer_attention(query, key, value, mask=mask, **mixes)
    for b, real in enumerate(mask.bool()):  # each text cut to its own tokens
        k = mixes["key_mix"][:, real] @ key[b][:, real]
        v = mixes["value_mix"][:, real] @ value[b][:, real]
        torch.testing.assert_close(out[b], F.scaled_dot_product_attention(query[b], k, v))


def test_a_shorter_text_has_the_first_columns():
    layer = Linformer(20, 6, generator=generator()).double()
    mixes = {"key_mix": layer.key_mix[:, :13], "value_mix": layer.value_mix[:, :13]}
    torch.testing.assert_close(layer(*heads()), linformer_attention(*heads(), **mixes))


def test_the_mixtures_are_parameters_that_learn_and_may_be_shared():
    layer = Linformer(13, 6, generator=generator())
    assert sum(p.numel() for p in layer.parameters()) == 2 * 6 * 13
    layer.double()(*heads(), mask=padded(13)).square().sum().backward()
    assert all((p.grad != 0).any() for p in layer.parameters())
    shared = Linformer(13, 6, shared=True, generator=generator())
    assert sum(p.numel() for p in shared.parameters()) == 6 * 13
    assert torch.equal(shared.key_mix, Linformer(13, 6, generator=generator()).key_mix)
    assert not torch.equal(shared.key_mix, Linformer(13, 6, generator=generator(1)).key_mix)


def test_mixed_keys_begin_as_large_as_keys():
    layer = Linformer(400, 100, generator=generator())
    key = randn(400, 8).float()
    assert 0.9 < (layer.key_mix @ key).std() / key.std() < 1.1


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"time at least 13, not \(6, 12\) and \(6, 12\)"):
        Linformer(12, 6).double()(*heads())
    with pytest.raises(ValueError, match=r"not \(6, 13\) and \(5, 13\)"):
        linformer_attention(*heads(), key_mix=randn(6, 13), value_mix=randn(5, 13))
    with pytest.raises(ValueError, match="causal must be False: Linformer"):
        Linformer(13, 6)(*heads(), causal=True)
    with pytest.raises(ValueError, match="rank must be 1 to 12, the number of tokens, not 13"):
        Linformer(12, 13)
