"""Shared layers against ALBERT's with the same weights, and against a plain loop."""

import copy

import pytest
import torch
from small import batch, classifier, llama
from torch import nn
from transformers import AlbertConfig, AlbertModel

from compresslab import storage
from compresslab.layers import bert_layers
from compresslab.measure import bytes_on_disk, count_flops, count_parameters
from compresslab.pruning.width import remove_neurons_
from compresslab.sharing.layers import relative_updates, share_layers_
from compresslab.sharing.tied import shared_tensors

DEPTH, WIDTH, NEURONS = 6, 8, 12
LAYER = 4 * WIDTH * (WIDTH + 1) + 2 * WIDTH * NEURONS + NEURONS + WIDTH + 4 * WIDTH
ONE, PAIRS, BLOCKS = [3] * 6, [0, 0, 2, 2, 4, 4], [0, 1, 2, 0, 1, 2]
PLANS = pytest.mark.parametrize("plan", [ONE, PAIRS, BLOCKS], ids=["one", "pairs", "blocks"])
ALBERT = {  # name in a layer of ALBERT -> in one of BERT
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.dense": "attention.output.dense",
    "attention.LayerNorm": "attention.output.LayerNorm",
    "ffn": "intermediate.dense",
    "ffn_output": "output.dense",
    "full_layer_layer_norm": "output.LayerNorm",
}


@pytest.fixture
def model():
    """Six layers, whose norms differ."""
    model = classifier(layers=DEPTH)
    generator = torch.Generator().manual_seed(2)
    for name, p in model.named_parameters():
        if "LayerNorm" in name:
            p.data += 0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype)
    return model


def logits(model):
    with torch.no_grad():
        return model(**batch()).logits


def loss(model):
    return model(**batch(), labels=torch.tensor([0, 1, 1])).loss


def albert(model, groups, block):
    """ALBERT with the layers of `model`, from the bottom: `groups` of `block` layers."""
    config = AlbertConfig(
        vocab_size=40,
        embedding_size=WIDTH,
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH // block,
        num_hidden_groups=groups,
        inner_group_num=block,
        num_attention_heads=2,
        intermediate_size=NEURONS,
        max_position_embeddings=16,
        hidden_act="gelu",
        attn_implementation="eager",
    )
    oracle = AlbertModel(config, add_pooling_layer=False).double().eval()
    oracle.embeddings.load_state_dict(model.bert.embeddings.state_dict())
    nn.init.eye_(oracle.encoder.embedding_hidden_mapping_in.weight)
    nn.init.zeros_(oracle.encoder.embedding_hidden_mapping_in.bias)
    for i in range(groups):
        for j, theirs in enumerate(oracle.encoder.albert_layer_groups[i].albert_layers):
            ours = bert_layers(model)[i * DEPTH // groups + j]
            for name, other in ALBERT.items():
                theirs.get_submodule(name).load_state_dict(ours.get_submodule(other).state_dict())
    return oracle


@pytest.mark.parametrize("start", ["layer", "mean"])
@pytest.mark.parametrize(("plan", "groups", "block"), [(ONE, 1, 1), (PAIRS, 3, 1), (BLOCKS, 1, 3)])
def test_it_computes_what_albert_does(model, plan, groups, block, start):
    share_layers_(bert_layers(model), plan, start=start)
    with torch.no_grad():
        ours = model.bert(**batch()).last_hidden_state
        theirs = albert(model, groups, block)(**batch()).last_hidden_state
    torch.testing.assert_close(ours, theirs)


@PLANS
@pytest.mark.parametrize("own_norms", [False, True])
@pytest.mark.parametrize("start", ["layer", "mean"])
def test_each_depth_has_what_the_plan_says(model, plan, own_norms, start):
    old = [dict(copy.deepcopy(layer).named_parameters()) for layer in bert_layers(model)]
    share_layers_(bert_layers(model), plan, start=start, own_norms=own_norms)
    for depth, layer in enumerate(bert_layers(model)):
        for name, parameter in layer.named_parameters():
            sources = [plan[depth]]
            if start == "mean":
                sources = [d for d, n in enumerate(plan) if n == plan[depth]]
            if own_norms and "LayerNorm" in name:
                sources = [depth]
            mean = sum(old[i][name] for i in sources) / len(sources)
            torch.testing.assert_close(parameter.detach(), mean.detach())


@PLANS
@pytest.mark.parametrize("own_norms", [False, True])
def test_parameters_and_bytes_shrink_and_the_work_does_not(model, plan, own_norms):
    sizes = count_parameters(model), bytes_on_disk(model)
    work = count_flops(lambda: logits(model))
    share_layers_(bert_layers(model), plan, own_norms=own_norms)
    saved = (DEPTH - len(set(plan))) * (LAYER - own_norms * 4 * WIDTH)
    assert sizes[0] - count_parameters(model) == saved
    assert len(list(model.parameters())) == len({id(p) for p in model.parameters()})
    # Shared names move from the file's list of tensors to the note of what is the same.
    assert sizes[1] - bytes_on_disk(model) == pytest.approx(8 * saved, abs=16 * DEPTH * 100)
    assert len(shared_tensors(model)) == len(set(plan)) * (12 if own_norms else 16)
    assert count_flops(lambda: logits(model)) == work


@PLANS
@pytest.mark.parametrize("own_norms", [False, True])
def test_the_gradient_is_the_sum_over_depths(model, plan, own_norms):
    plain = copy.deepcopy(model)
    share_layers_(bert_layers(model), plan, own_norms=own_norms)
    plain.load_state_dict(model.state_dict())  # the same function with parameters of its own
    assert torch.equal(logits(plain), logits(model))
    for m in (plain, model):
        loss(m).backward()
    for depth, layer in enumerate(bert_layers(model)):
        for name, parameter in layer.named_parameters():
            depths = [d for d, n in enumerate(plan) if n == plan[depth]]
            if own_norms and "LayerNorm" in name:
                depths = [depth]
            parts = [bert_layers(plain)[d].get_parameter(name).grad for d in depths]
            torch.testing.assert_close(parameter.grad, sum(parts))


def test_it_is_saved_and_comes_back_as_shared(model, tmp_path):
    share_layers_(bert_layers(model), PAIRS, start="mean", own_norms=True)
    path = tmp_path / "model.safetensors"
    storage.save(model, path)
    other = classifier(seed=1, layers=DEPTH)
    share_layers_(bert_layers(other), PAIRS, own_norms=True)
    other.load_state_dict(storage.load(path))
    assert torch.equal(logits(other), logits(model))
    assert count_parameters(other) == count_parameters(model)
    assert count_parameters(copy.deepcopy(model)) == count_parameters(model)
    with pytest.raises(RuntimeError, match="shared tensors"):
        model.save_pretrained(tmp_path)


def test_a_step_keeps_the_depths_the_same(model):
    share_layers_(bert_layers(model), BLOCKS, own_norms=True)
    before = logits(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss(model).backward()
    optimizer.step()
    low, high = (dict(bert_layers(model)[i].named_parameters()) for i in (1, 4))
    for name, parameter in low.items():
        assert torch.equal(parameter, high[name]) is ("LayerNorm" not in name)
    assert not torch.allclose(logits(model), before)


def test_a_plan_without_sharing_changes_nothing(model):
    before = logits(model)
    for start in ("layer", "mean"):
        share_layers_(bert_layers(model), range(DEPTH), start=start)
        assert torch.equal(logits(model), before)
    count = count_parameters(model)
    share_layers_(bert_layers(model), [1, 0, 2, 3, 4, 5])  # two change places
    assert count_parameters(model) == count
    assert not torch.allclose(logits(model), before)
    share_layers_(bert_layers(model), [1, 0, 2, 3, 4, 5])
    assert torch.equal(logits(model), before)


def test_half_precision_and_frozen_layers_stay_what_they_are(model):
    layers = bert_layers(model.bfloat16()).requires_grad_(False)
    share_layers_(layers, ONE, start="mean")
    for parameter in layers.parameters():
        assert parameter.dtype == torch.bfloat16
        assert not parameter.requires_grad


@pytest.mark.parametrize("own_norms", [False, True])
def test_a_llama_with_shared_layers_generates_with_its_cache(own_norms):
    model = llama(hidden_size=16, intermediate_size=24)
    count = count_parameters(model)
    share_layers_(model.model.layers, [0, 0], own_norms=own_norms)
    layer = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16
    assert count - count_parameters(model) == layer - own_norms * 2 * 16
    ids = batch()["input_ids"][:1]
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with_cache, without = (model.generate(ids, **options, use_cache=c) for c in (True, False))
    assert torch.equal(with_cache, without)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    assert [layer.keys.shape[2] for layer in cache.layers] == [7, 7]


def test_any_list_of_layers_can_share():
    layers = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 12) for _ in range(3))
    share_layers_(layers, [1, 1, 2], own_norms=True)
    first, second = (dict(layer.named_parameters()) for layer in layers[:2])
    own = {name for name in first if first[name] is not second[name]}
    assert own == {"norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"}


def test_updates_are_those_of_a_plain_loop_over_real_tokens(model):
    share_layers_(bert_layers(model), ONE, own_norms=True)
    found = relative_updates(model, bert_layers(model), batch())
    expected = []
    for ids, mask in zip(*batch().values(), strict=True):
        with torch.no_grad():  # each sentence by itself, without padding
            x = model.bert.embeddings(ids[None, mask.bool()])
            expected.append([])
            for layer in bert_layers(model):
                y = layer(x)
                expected[-1].append((y - x).norm(dim=-1) / x.norm(dim=-1))
                x = y
    expected = torch.stack([torch.cat(parts, 1).mean() for parts in zip(*expected, strict=True)])
    torch.testing.assert_close(found, expected)
    assert not any(layer._forward_hooks for layer in bert_layers(model))
    language_model = llama(hidden_size=16, intermediate_size=24)
    ids = {"input_ids": batch()["input_ids"]}
    assert (relative_updates(language_model, language_model.model.layers, ids) > 0).all()


@pytest.mark.parametrize("plan", [[0] * 5, [0] * 7, [0, 1, 2, 3, 4, 6], [-1] * 6, []])
def test_bad_plans_are_named(model, plan):
    with pytest.raises(ValueError, match="a number from 0 to 5 for each of 6 depths, not "):
        share_layers_(bert_layers(model), plan)


def test_other_bad_input_is_named_and_nothing_is_shared(model):
    layers = bert_layers(model)
    with pytest.raises(ValueError, match="start must be 'layer' or 'mean', not 'first'"):
        share_layers_(layers, ONE, start="first")
    remove_neurons_(model, {4: torch.arange(5)})
    with pytest.raises(ValueError, match=r"layers 0 and 4 must be alike .*intermediate\.dense"):
        share_layers_(layers, ONE)
    assert shared_tensors(model) == []
