"""Shared key-value heads against torch's grouped attention, and models with repeated weights."""

import copy

import pytest
import torch
from small import batch, classifier, randn
from torch import nn
from torch.nn import functional as F
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from compresslab import storage
from compresslab.attention.full import full_attention
from compresslab.costs import kv_cache_bytes
from compresslab.layers import bert_layers
from compresslab.measure import count_flops, count_parameters
from compresslab.sharing.heads import RepeatedHeads, merge_heads, repeat_heads, share_kv_heads_

LAYERS, HEADS, KV_HEADS, DIM, WIDTH = 2, 8, 4, 4, 32
STARTS = pytest.mark.parametrize("start", ["mean", "first"])
IDS = torch.randint(1, 50, (2, 7), generator=torch.Generator().manual_seed(0))


def llama(kv_heads=KV_HEADS):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        intermediate_size=24,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=kv_heads,
        attention_bias=True,
        initializer_range=0.5,
    )
    model = LlamaForCausalLM(config).double().eval()
    for name, p in model.named_parameters():
        if name.endswith("bias"):  # zero at the start
            nn.init.normal_(p)
    return model


def bert():
    return classifier(width=WIDTH, heads=HEADS)


def projections(model, *names):
    return [m for name, m in model.named_modules() if name.endswith(names)]


def logits(model, inputs=None):
    with torch.no_grad():
        return model(**(inputs or {"input_ids": IDS})).logits


def groups(weight, kv_heads, start):
    """Each row of each head, from the heads that share with it: written out."""
    heads, size = len(weight) // DIM, len(weight) // DIM // kv_heads
    rows = []
    for head in range(heads):
        first = head // size * size
        members = range(first, first + size) if start == "mean" else [first]
        rows += [sum(weight[h * DIM + d] for h in members) / len(members) for d in range(DIM)]
    return torch.stack(rows)


@pytest.mark.parametrize("kv_heads", [1, 2, 3, 6])
def test_repeated_heads_are_those_of_torchs_grouped_attention(kv_heads):
    query = randn(2, 6, 5, 4)
    key, value = randn(2, kv_heads, 5, 4, seed=1), randn(2, kv_heads, 5, 4, seed=2)
    theirs = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    ours = full_attention(query, repeat_heads(key, 6), repeat_heads(value, 6), causal=True)
    torch.testing.assert_close(ours, theirs)


@STARTS
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("shape", [(HEADS * DIM, 5), (HEADS * DIM,)])
def test_neighbours_are_merged(shape, kv_heads, start):
    weight = randn(*shape)
    merged = merge_heads(weight, HEADS, kv_heads, start=start)
    assert merged.shape == (kv_heads * DIM, *shape[1:])
    again = merged.view(1, kv_heads, DIM, -1)
    torch.testing.assert_close(
        repeat_heads(again, HEADS).reshape(shape), groups(weight, kv_heads, start)
    )


@STARTS
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_a_llama_is_one_with_fewer_heads_and_computes_as_if_they_were_repeated(kv_heads, start):
    model, full = llama(), llama()
    for linear in projections(full, "k_proj", "v_proj"):
        linear.weight.data = groups(linear.weight.data, kv_heads, start)
        linear.bias.data = groups(linear.bias.data, kv_heads, start)
    count = count_parameters(model)
    share_kv_heads_(model, kv_heads, start=start)
    torch.testing.assert_close(logits(model), logits(full))
    assert count - count_parameters(model) == (
        LAYERS * 2 * (KV_HEADS - kv_heads) * DIM * (WIDTH + 1)
    )
    rebuilt = LlamaForCausalLM(copy.deepcopy(model.config)).double().eval()
    rebuilt.load_state_dict(model.state_dict())
    assert rebuilt.config.num_key_value_heads == kv_heads
    assert torch.equal(logits(rebuilt), logits(model))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_llama_generates_with_a_cache_of_the_bytes_that_costs_says(attention):
    model = llama()
    model.set_attn_implementation(attention)
    share_kv_heads_(model, 1)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (model.generate(IDS, **options, use_cache=c) for c in (True, False))
    assert torch.equal(with_cache, without)
    with torch.no_grad():
        cache = model(input_ids=IDS, use_cache=True).past_key_values
    assert sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers) == kv_cache_bytes(
        layers=LAYERS, kv_heads=1, head_dim=DIM, tokens=7, batch=2, bits=64
    )


@STARTS
@pytest.mark.parametrize("kv_heads", [1, 2, 4, 8])
def test_a_bert_computes_as_if_they_were_repeated(kv_heads, start, tmp_path):
    model, full = bert(), bert()
    for linear in projections(full, "self.key", "self.value"):
        linear.weight.data = groups(linear.weight.data, kv_heads, start)
        linear.bias.data = groups(linear.bias.data, kv_heads, start)
    count, work = count_parameters(model), count_flops(lambda: logits(model, batch()))
    share_kv_heads_(model, kv_heads, start=start)
    torch.testing.assert_close(logits(model, batch()), logits(full, batch()))
    gone = LAYERS * 2 * (HEADS - kv_heads) * DIM
    assert count - count_parameters(model) == gone * (WIDTH + 1)
    # Of the work, the two projections of 3 · 7 tokens.
    assert work - count_flops(lambda: logits(model, batch())) == 2 * 3 * 7 * gone * WIDTH
    storage.save(model, tmp_path / "model.safetensors")
    other = classifier(seed=1, width=WIDTH, heads=HEADS)
    share_kv_heads_(other, kv_heads)
    other.load_state_dict(storage.load(tmp_path / "model.safetensors"))
    assert torch.equal(logits(other, batch()), logits(model, batch()))


@STARTS
def test_groups_of_one_change_nothing(start):
    for model, heads, inputs in ((llama(), KV_HEADS, None), (bert(), HEADS, batch())):
        before = logits(model, inputs)
        share_kv_heads_(model, heads, start=start)
        assert torch.equal(logits(model, inputs), before)


def test_a_shared_head_trains_on_the_sum_of_its_readers():
    model, full = bert(), bert()
    share_kv_heads_(model, 2)
    for linear in projections(full, "self.key", "self.value"):
        linear.weight.data = groups(linear.weight.data, 2, "mean")
        linear.bias.data = groups(linear.bias.data, 2, "mean")
    for m in (model, full):
        m(**batch(), labels=torch.tensor([0, 1, 1])).loss.backward()
    shared, repeated = (bert_layers(m)[0].attention.self.value for m in (model, full))
    parts = repeated.weight.grad.view(2, HEADS // 2, DIM, WIDTH)
    torch.testing.assert_close(shared.linear.weight.grad, parts.sum(1).flatten(0, 1))
    assert str(shared).startswith("RepeatedHeads(\n  dim=4, repeats=4")


def test_dtype_and_frozen_weights_stay_what_they_are():
    model = llama().bfloat16().requires_grad_(False)
    share_kv_heads_(model, 2)
    for linear in projections(model, "k_proj", "v_proj"):
        for parameter in linear.parameters():
            assert parameter.dtype == torch.bfloat16
            assert not parameter.requires_grad


def test_bad_input_is_named_and_nothing_changes():
    for model, heads in ((llama(), KV_HEADS), (bert(), HEADS)):
        state = model.state_dict()
        for odd in (3, 0, -1, 2 * heads):
            with pytest.raises(
                ValueError, match=f"divide the {heads} heads there are, which {odd}"
            ):
                share_kv_heads_(model, odd)
        with pytest.raises(ValueError, match="start must be 'mean' or 'first', not 'layer'"):
            share_kv_heads_(model, 2, start="layer")
        assert model.state_dict().keys() == state.keys()
    share_kv_heads_(model, 2)
    assert isinstance(bert_layers(model)[0].attention.self.key, RepeatedHeads)
    with pytest.raises(ValueError, match=r"key must be an nn\.Linear, not a RepeatedHeads"):
        share_kv_heads_(model, 1)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_head=2, n_layer=1))
    with pytest.raises(ValueError, match="GPT2LMHeadModel has no attention of a Llama or a BERT"):
        share_kv_heads_(gpt, 1)
    with pytest.raises(ValueError, match="heads must be a multiple of the 2 of x, not 3"):
        repeat_heads(randn(1, 2, 3, 4), 3)
