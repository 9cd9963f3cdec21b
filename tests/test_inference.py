"""A fused and traced classifier: the same logits from less work."""

import copy

import pytest
import small
import torch
from torch import nn

from compresslab.factorization.embedding import factorize_embedding_
from compresslab.inference import Int8Bert, fuse_bert_, trace
from compresslab.layers import bert_layers
from compresslab.pruning.heads import remove_heads_
from compresslab.quantization.calibration import collect_ranges
from compresslab.quantization.int8 import (
    fuse_bert_layers_,
    quantize_embeddings_int8_,
    quantize_linears_int8_,
)


def classifier():
    model = small.classifier(width=16, heads=4, neurons=24, attention="sdpa").float()
    remove_heads_(model, {0: [1]})
    factorize_embedding_(model, "bert.embeddings.word_embeddings", 6)
    return model


def batch(lengths, seed=0):
    """Sentences of these lengths, the shorter ones padded."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(40, (len(lengths), max(lengths)), generator=generator)
    mask = torch.tensor([[int(i < n) for i in range(max(lengths))] for n in lengths])
    return {"input_ids": ids, "attention_mask": mask}


PADDED, FULL, ONE = batch([9, 2, 6]), batch([5, 5]), batch([7])


def int8(kind):
    model = classifier()
    ranges = collect_ranges(model, [PADDED]) if kind == "static" else None
    options = {"per_token": True} if kind == "token" else {}
    quantize_linears_int8_(model, ranges, **options)
    quantize_embeddings_int8_(model)
    return model


@torch.inference_mode()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("inputs", [PADDED, FULL, ONE])
@pytest.mark.parametrize("kind", ["static", "token"])
def test_a_fused_classifier_computes_what_the_layers_did(kind, inputs):
    model, fused = int8(kind), int8(kind)
    fuse_bert_(fused)
    types = torch.arange(inputs["input_ids"].numel()).view_as(inputs["input_ids"]) % 2
    for more in ({}, {"token_type_ids": types}):
        torch.testing.assert_close(logits(fused, inputs | more), logits(model, inputs | more))
    without = {"input_ids": inputs["input_ids"]}
    torch.testing.assert_close(logits(fused, without), logits(model, without))


@pytest.mark.parametrize("inputs", [PADDED, FULL, ONE])
def test_ranges_that_are_measured_leave_padding_out(inputs):
    """They are other ranges than the model's, as close to float."""
    fused = int8("dynamic")
    fuse_bert_(fused)
    exact = logits(classifier(), inputs)
    torch.testing.assert_close(
        logits(fused, inputs), exact, rtol=0, atol=0.1 * exact.abs().max().item()
    )
    longer = {name: nn.functional.pad(tensor, (0, 3)) for name, tensor in inputs.items()}
    torch.testing.assert_close(logits(fused, longer), logits(fused, inputs))


def test_nothing_is_computed_that_is_not_read():
    fused, seen = int8("dynamic"), []
    fuse_bert_(fused)
    for layer in bert_layers(fused):
        layer.up.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel() // 16))
    logits(fused, PADDED)
    assert seen == [9 + 2 + 6, 3]  # tokens, then sentences


@pytest.mark.parametrize("kind", ["dynamic", "static", "token"])
def test_a_trace_gives_the_same_bits_for_every_shape(kind):
    fused = int8(kind)
    fuse_bert_layers_(fused)  # what is fused already stays
    layers = list(bert_layers(fused))
    fuse_bert_(fused)
    assert list(bert_layers(fused)) == layers
    fast = trace(fused)
    for lengths in ([7], [1], [4, 4, 4], [9, 2, 6], [1, 12], [3, 3, 3, 16, 2], [5]):
        for again in range(3):  # torch changes what it recorded in the first calls
            inputs = batch(lengths, seed=again)
            assert torch.equal(logits(fast, inputs), logits(fused, inputs))
    ids = PADDED["input_ids"]
    with torch.inference_mode():
        assert torch.equal(fast(ids).logits, fused(ids).logits)


def test_a_trace_is_of_the_model_as_it_was():
    fused = int8("static")
    fuse_bert_(fused)
    before, fast = logits(fused, PADDED), trace(fused)
    fused.classifier = nn.Linear(16, 2)
    assert not torch.equal(logits(fused, PADDED), before)
    assert torch.equal(logits(fast, PADDED), before)
    assert torch.equal(logits(copy.deepcopy(fused), PADDED), logits(fused, PADDED))


def test_what_cannot_be_fused_or_traced_is_said_and_left():
    model = classifier()
    with pytest.raises(ValueError, match="is not in int8"):
        fuse_bert_(model)
    assert not isinstance(model.bert, Int8Bert)
    with pytest.raises(ValueError, match="call fuse_bert_ first"):
        trace(model)
