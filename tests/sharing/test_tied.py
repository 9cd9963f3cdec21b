"""Tied embeddings: one parameter, counted, stored and stepped once, with both gradients."""

import copy
import re

import pytest
import torch
from small import classifier, llama
from torch import nn
from transformers import LlamaForCausalLM

from compresslab.measure import bytes_on_disk, count_parameters
from compresslab.sharing.tied import (
    shared_tensors,
    state_bytes,
    tie_embeddings_,
    untie_embeddings_,
)

TOKENS, WIDTH = 50, 16
IDS = torch.randint(0, 20, (3, 7), generator=torch.Generator().manual_seed(0))
NAMES = ("model.embed_tokens.weight", "lm_head.weight")
STARTS = pytest.mark.parametrize("start", ["input", "output", "mean"])


def model():
    return llama(hidden_size=WIDTH, intermediate_size=24).double()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


@STARTS
def test_one_parameter_has_both_names_and_computes_what_transformers_does(start):
    tied = model()
    table, output = tied.model.embed_tokens.weight, tied.lm_head.weight
    u, v = table.detach().clone(), output.detach().clone()
    expected = {"input": u, "output": v, "mean": (u + v) / 2}[start]
    before = count_parameters(tied), bytes_on_disk(tied), state_bytes(tied)
    tie_embeddings_(tied, start=start)
    assert tied.lm_head.weight is tied.model.embed_tokens.weight is table
    torch.testing.assert_close(table.detach(), expected)
    assert shared_tensors(tied) == [NAMES]
    assert before[0] - count_parameters(tied) == TOKENS * WIDTH
    assert before[1] - bytes_on_disk(tied) == pytest.approx(8 * TOKENS * WIDTH, abs=200)  # header
    assert before[2] - state_bytes(tied) == 8 * TOKENS * WIDTH
    assert state_bytes(tied, once=False) == before[2]
    theirs = LlamaForCausalLM(copy.deepcopy(tied.config)).double().eval()
    assert theirs.lm_head.weight is theirs.model.embed_tokens.weight
    theirs.load_state_dict(tied.state_dict())
    assert torch.equal(logits(tied), logits(theirs))


def test_its_gradient_is_the_sum_of_the_two():
    tied = model()
    tie_embeddings_(tied)
    untied = copy.deepcopy(tied)
    untie_embeddings_(untied)
    assert torch.equal(logits(tied), logits(untied))
    for m in (tied, untied):
        m(IDS, labels=IDS).loss.backward()
    table, output = untied.model.embed_tokens.weight.grad, untied.lm_head.weight.grad
    torch.testing.assert_close(tied.lm_head.weight.grad, table + output)
    occur = torch.zeros(TOKENS, dtype=torch.bool)
    occur[IDS[:, :-1]] = True  # nothing is predicted after the last
    assert torch.equal(table.abs().sum(1) > 0, occur)
    assert (output.abs().sum(1) > 0).all()


def test_untied_they_are_two_and_either_way_transformers_stores_what_there_is(tmp_path):
    tied = model()
    tied.lm_head.requires_grad_(False)
    untie_embeddings_(tied)
    assert not tied.lm_head.weight.requires_grad
    count, state = count_parameters(tied), state_bytes(tied)
    for change, groups in ((tie_embeddings_, [NAMES]), (untie_embeddings_, [])):
        change(tied)
        change(tied)  # again changes nothing
        tied.save_pretrained(tmp_path / change.__name__)
        again = LlamaForCausalLM.from_pretrained(tmp_path / change.__name__).eval()
        assert shared_tensors(tied) == shared_tensors(again) == groups
        assert torch.equal(logits(again), logits(tied))
    assert (count_parameters(tied), state_bytes(tied)) == (count, state)
    with torch.no_grad():
        tied.lm_head.weight.zero_()
    assert tied.model.embed_tokens.weight.any()


def test_what_only_lies_in_the_same_memory_is_found_too_and_no_part_of_it():
    first, second = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
    second.weight = nn.Parameter(first.weight.detach())
    modules = nn.ModuleDict({"a": first, "b": second, "c": nn.Linear(4, 2, bias=False)})
    modules["c"].weight = nn.Parameter(first.weight.detach()[:2])
    modules.register_buffer("empty", torch.zeros(0))
    modules.register_buffer("nothing", torch.zeros(0))
    assert shared_tensors(modules) == [("a.weight", "b.weight")]
    assert state_bytes(modules) == 4 * (16 + 8)
    assert state_bytes(modules, once=False) == 4 * (16 + 16 + 8)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="start must be input, output, mean, not 'first'"):
        tie_embeddings_(model(), start="first")
    for change in (tie_embeddings_, untie_embeddings_):
        with pytest.raises(ValueError, match=r"nn\.Linear as its ends, not Embedding and NoneType"):
            change(classifier())
    wide = model()
    wide.lm_head = nn.Linear(WIDTH, TOKENS + 1, bias=False)
    shapes = re.escape("not (50, 16) and (51, 16)")
    with pytest.raises(ValueError, match=f"weights of the same shape, {shapes}"):
        tie_embeddings_(wide)
