"""A classifier as a file: the same logits from every kind of layer, and no way in for others."""

import copy
import json
import pickletools
import random
import subprocess
import sys

import pytest
import small
import torch
from forgery import description_of, forge
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models
from torch import nn
from transformers import PreTrainedTokenizerFast

from compresslab import archive
from compresslab import export as module
from compresslab.export import export, load, main, round_to_half_, sections, uncoded
from compresslab.factorization.embedding import factorize_embedding_
from compresslab.factorization.linear import factorize_linears_
from compresslab.factorization.svd import truncated_svd
from compresslab.factorization.vocabulary import trim_embedding_
from compresslab.inference import fuse_bert_
from compresslab.layers import bert_layers, replace_
from compresslab.pruning.depth import keep_layers_
from compresslab.pruning.heads import remove_heads_
from compresslab.pruning.width import remove_neurons_
from compresslab.quantization.affine import Quantized, quantize_tensor
from compresslab.quantization.hqq import hqq
from compresslab.quantization.int8 import (
    Int8Linear,
    fuse_bert_layers_,
    quantize_embeddings_int8_,
    quantize_linears_int8_,
)
from compresslab.quantization.linear import PackedLinear, pack_embedding_, pack_linears_
from compresslab.quantization.qat import LSQ, add_quantizers_, finish_
from compresslab.quantization.ternary import Ternary, TernaryLinear
from compresslab.sharing.codebooks import cluster, cluster_linears_
from compresslab.sharing.layers import share_layers_
from compresslab.sharing.product_quantization import (
    PQLinear,
    product_quantize,
    product_quantize_embedding_,
)

WORD, POSITION = "bert.embeddings.word_embeddings", "bert.embeddings.position_embeddings"
TEXTS = ["a good film", "not a film", "bad bad bad good a a", "é unknown word", ""]


@pytest.fixture(scope="module")
def tokenizer():
    return small.wordpiece()


def classifier(**sizes):
    model = small.classifier(width=16, neurons=24, attention="sdpa", **sizes).float()
    model.config.id2label = {0: "negative", 1: "positive"}
    return model


def logits(model, tokenizer):
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        one = model(input_ids=inputs["input_ids"][:1, :4]).logits  # nothing is padded
        return torch.cat([model(**inputs).logits, one])


def lsq_as_int8(weight, bias):
    """Codes of few bits, with a step a row, in a layer that computes with int8."""
    codes = (weight.codes.int() - weight.zero_point).to(torch.int8)
    zero = torch.zeros_like(weight.zero_point)
    return Int8Linear(Quantized(codes, weight.scale, zero, weight.bits), bias)


def dense(model):
    pass


def half(model):
    round_to_half_(model)


def packed(model, bits=4):
    pack_linears_(model, lambda _, w: quantize_tensor(w, bits=bits, granularity=8))
    pack_embedding_(model, WORD, lambda _, w: quantize_tensor(w, bits=bits))


def hqq_zeros(model):
    pack_linears_(model.bert, lambda _, w: hqq(w, bits=3, group_size=8))


def trained(model, bits=2):
    add_quantizers_(model.bert.encoder, lambda w: LSQ(w, bits=bits))
    finish_(model.bert.encoder)


def ternary(model):
    add_quantizers_(model.bert.encoder, lambda w: Ternary())
    finish_(model.bert.encoder, TernaryLinear)


def few_bits_in_int8(model):
    add_quantizers_(model.bert.encoder, lambda w: LSQ(w, bits=3))
    finish_(model.bert.encoder, lsq_as_int8)


def clustered(model):
    cluster_linears_(model, lambda _, w: cluster(w, bits=3, mask=w.abs() > 0.3), trained=True)


def clustered_rows(model):
    cluster_linears_(model, lambda _, w: cluster(w, bits=1, granularity="channel"))


def product(model):
    product_quantize_embedding_(model, WORD, width=2, bits=4)
    product_quantize_embedding_(model, POSITION, width=2, bits=2, shared=True)
    for layer in bert_layers(model):
        old = layer.intermediate.dense
        layer.intermediate.dense = PQLinear(product_quantize(old.weight, width=4, bits=3), old.bias)


def int8(model):
    quantize_linears_int8_(model)
    quantize_embeddings_int8_(model)


def int8_tokens(model):
    quantize_linears_int8_(model, per_token=True, bits=8)


def int8_static(model):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    quantize_linears_int8_(model, dict.fromkeys(names, (-3.0, 4.5)))


def int8_fused(model):
    remove_heads_(model, {0: {1}})
    int8(model)
    fuse_bert_layers_(model)


def static_fused(model):
    int8_static(model)
    fuse_bert_layers_(model)


def model_fused(model):
    remove_heads_(model, {0: {1}})
    int8(model)
    fuse_bert_(model)


def low_rank(model):
    factorize_linears_(model, lambda _, w: truncated_svd(w, 2) if len(w) > 2 else None)
    factorize_embedding_(model, WORD, 5)
    factorize_embedding_(model, POSITION, 3)


def low_rank_packed(model):
    low_rank(model)
    pack_linears_(model, lambda _, w: quantize_tensor(w, bits=4))


def pruned(model):
    remove_neurons_(model, {0: torch.arange(5), 1: torch.arange(3, 20)})
    remove_heads_(model, {1: {0}})


def shallow(model):
    keep_layers_(model, [1])


def shared(model):
    share_layers_(bert_layers(model), [0, 0], own_norms=True)


def eager(model):
    model.set_attn_implementation("eager")


def fewer_positions(model):
    trim_embedding_(model, POSITION, torch.arange(14))


EVERY = [
    *(dense, half, packed, hqq_zeros, trained, ternary, few_bits_in_int8, clustered),
    *(clustered_rows, product, int8, int8_tokens, int8_static, int8_fused, static_fused),
    *(model_fused, low_rank, low_rank_packed, pruned, shallow, shared, eager, fewer_positions),
]


@pytest.mark.parametrize("change_", EVERY)
def test_logits_are_the_same_bit_for_bit(change_, tokenizer, tmp_path):
    model = classifier()
    change_(model)
    expected = logits(model, tokenizer)
    before = copy.deepcopy(model.state_dict())
    path = tmp_path / "a.clab"
    size = export(model, tokenizer, path)
    assert size == path.stat().st_size == sum(sections(path).values())
    loaded, its = load(path)
    assert not loaded.training
    assert torch.equal(logits(loaded, its), expected)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    slow = (*module.LINEARS[1:], *module.EMBEDDINGS[1:])  # make their weight anew at every call
    assert not any(isinstance(m, slow) for m in loaded.modules())
    assert loaded.config.id2label == {0: "negative", 1: "positive"}
    again = tmp_path / "b.clab"
    export(loaded, its, again)
    assert torch.equal(logits(*load(again)), expected)


@settings(deadline=None, max_examples=12)
@given(st.integers(1, 8), st.sampled_from([2, 4, 8]), st.integers(0, 2**31))
def test_packed_layers_come_back_for_all_bits_and_groups(
    tokenizer, tmp_path_factory, bits, group, seed
):
    model = classifier(seed=seed)
    pack_linears_(model, lambda _, w: quantize_tensor(w, bits=bits, granularity=group))
    path = tmp_path_factory.getbasetemp() / "packed.clab"
    export(model, tokenizer, path)
    loaded, its = load(path)
    assert torch.equal(logits(loaded, its), logits(model, tokenizer))


def test_the_tokenizer_is_the_same(tokenizer, tmp_path):
    export(classifier(), tokenizer, tmp_path / "a.clab")
    _, its = load(tmp_path / "a.clab")
    assert its.get_vocab() == tokenizer.get_vocab()
    assert its(TEXTS, padding=True)["input_ids"] == tokenizer(TEXTS, padding=True)["input_ids"]
    assert its(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert its.special_tokens_map == tokenizer.special_tokens_map
    assert its.model_input_names == tokenizer.model_input_names
    # No more tokens than there are positions.
    assert its.model_max_length == 16
    assert len(its("a " * 100, truncation=True)["input_ids"]) == 16


def test_pruned_heads_can_be_pruned_again(tokenizer, tmp_path):
    model = classifier()
    pruned(model)
    export(model, tokenizer, tmp_path / "a.clab")
    loaded, _ = load(tmp_path / "a.clab")
    assert [layer.attention.self.num_attention_heads for layer in bert_layers(loaded)] == [2, 1]
    with pytest.raises(ValueError, match="one must stay"):
        remove_heads_(loaded, {1: {0}})


def test_bits_show_in_the_file(tokenizer, tmp_path):
    sizes = {}
    for bits in (2, 4, 8):
        model = small.classifier(width=64, neurons=256).float()
        add_quantizers_(model.bert.encoder, lambda w, bits=bits: LSQ(w, bits=bits))
        finish_(model.bert.encoder)
        export(model, tokenizer, tmp_path / "a.clab")
        found = sections(tmp_path / "a.clab")
        sizes[bits] = found["bert.encoder.layer.0.output.dense"]
        assert sizes[bits] < 256 * 64 * bits / 8 + 4 * 64 + 2 * 64 + 50
    assert sizes[2] < sizes[4] < sizes[8]


def test_uncoded_is_the_size_of_what_is_in_the_file(tokenizer, tmp_path):
    model, path = classifier(layers=1), tmp_path / "a.clab"
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator)  # no two are equal
    few_bits_in_int8(model)
    round_to_half_(model)
    size, found = export(model, tokenizer, path), sections(path)
    linears = 4 * 16 * 16 + 2 * 16 * 24  # 3 bits each, and scale and bias of a row
    rows = 5 * 16 + 24
    rest = sum(p.numel() for p in model.parameters())
    text = len(" ".join(sorted(tokenizer.get_vocab())).encode())
    same = found["head"] + found["description"] + found["check"]
    assert uncoded(path) == same + text + linears * 3 // 8 + 2 * (2 * rows + rest)
    assert size < uncoded(path)


def test_layers_that_are_shared_are_stored_once(tokenizer, tmp_path):
    model = classifier()
    alone = export(model, tokenizer, tmp_path / "a.clab")
    shared(model)
    together = export(model, tokenizer, tmp_path / "b.clab")
    numbers = sum(p.numel() for p in bert_layers(model)[0].parameters())
    assert alone - together > 3 * numbers


def test_rounding_to_half():
    model = classifier()
    quantize_linears_int8_(model)
    before = logits_of_batch(model)
    round_to_half_(model)
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.float32:
            assert torch.equal(tensor.half().float(), tensor)
    after = logits_of_batch(model)
    assert not torch.equal(after, before)  # what int8 layers make of their state is made anew
    assert torch.allclose(after, before, atol=0.1)
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight[0] = 1e6
    with pytest.raises(ValueError, match=r"cannot hold bert\.embeddings.*weight: 1e\+06"):
        round_to_half_(model)


def logits_of_batch(model):
    with torch.no_grad():
        return model(**small.batch()).logits


# ---------------------------------------------------------------- what is refused


def test_what_has_no_place_in_the_file_is_refused(tokenizer, tmp_path):
    path = tmp_path / "a.clab"
    model = classifier()
    add_quantizers_(model.bert.encoder, lambda w: LSQ(w, bits=4))
    with pytest.raises(ValueError, match=r"query.* cannot be exported: it is a Parametrized"):
        export(model, tokenizer, path)
    with pytest.raises(ValueError, match=r"must be a BertForSequenceClassification, not .*Bert"):
        export(classifier().bert, tokenizer, path)
    with pytest.raises(ValueError, match="float64"):
        export(small.classifier(), tokenizer, path)
    model = classifier()
    old = model.classifier
    weight = quantize_tensor(old.weight, bits=4)
    replace_(model, "classifier", PackedLinear(weight, old.bias, input_scale=torch.ones(16)))
    with pytest.raises(ValueError, match="AWQ"):
        export(model, tokenizer, path)
    assert not list(tmp_path.iterdir())


def test_a_table_smaller_than_the_vocabulary_is_refused(tokenizer, tmp_path):
    model = classifier()
    trim_embedding_(model, WORD, torch.arange(30))
    with pytest.raises(ValueError, match="no model that this library exports"):
        export(model, tokenizer, tmp_path / "a.clab")


def test_another_tokenizer_is_refused(tmp_path):
    inner = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    with pytest.raises(ValueError, match="must be WordPiece"):
        export(classifier(), PreTrainedTokenizerFast(tokenizer_object=inner), tmp_path / "a.clab")


def test_a_failed_write_leaves_the_old_file(tokenizer, tmp_path, monkeypatch):
    path = tmp_path / "a.clab"
    export(classifier(), tokenizer, path)
    before = path.read_bytes()

    def fail(*args):
        raise OSError("disk full")

    monkeypatch.setattr(module.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        export(classifier(seed=1), tokenizer, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture(scope="module")
def written(tokenizer, tmp_path_factory):
    """The bytes of a file with most kinds of layers."""
    model = classifier(layers=1)
    factorize_embedding_(model, POSITION, 3)
    quantize_linears_int8_(model, names=["bert.pooler.dense"])
    product_quantize_embedding_(model, WORD, width=2, bits=4)
    path = tmp_path_factory.mktemp("written") / "a.clab"
    pack_linears_(model, lambda _, w: quantize_tensor(w, bits=4))
    export(model, tokenizer, path)
    return path.read_bytes()


def test_damage_is_refused_on_loading(written, tmp_path):
    path = tmp_path / "a.clab"
    for length in range(0, len(written), 97):
        path.write_bytes(written[:length])
        with pytest.raises(ValueError, match=r"a\.clab (is no file|was cut off)"):
            load(path)
    for place in range(0, len(written), 97):
        path.write_bytes(written[:place] + bytes([written[place] ^ 4]) + written[place + 1 :])
        with pytest.raises(ValueError, match=r"a\.clab (is no file|has version|was)"):
            load(path)


def change(description, **config):
    description["config"] |= config


HOSTILE = {
    "hidden size": lambda d: change(d, hidden_size=2**20),
    "other size": lambda d: change(d, hidden_size=32),
    "layers": lambda d: change(d, num_hidden_layers=10**6),
    "more layers": lambda d: change(d, num_hidden_layers=2),
    "no heads": lambda d: change(d, num_attention_heads=0),
    "activation": lambda d: change(d, hidden_act="os.system"),
    "one more field": lambda d: change(d, auto_map={}),
    "labels": lambda d: change(d, id2label={"0": "a", "1": "b", "2": "c"}),
    "code": lambda d: d.update(attention="kernels-community/flash-attn"),
    "unknown kind": lambda d: d["layers"][0].__setitem__(1, "eval"),
    "unknown form": lambda d: d["layers"][0].__setitem__(2, "pickle"),
    "unknown layer": lambda d: d["layers"][0].__setitem__(0, "bert.__class__"),
    "the model": lambda d: d["layers"][0].__setitem__(0, ""),
    "missing layer": lambda d: d["layers"].pop(),
    "too many parts": lambda d: d["layers"][-1].__setitem__(3, 1000),
    "shape": lambda d: d["parts"][1][2].reverse(),
    "no tokenizer": lambda d: d.pop("tokenizer"),
    "another tokenizer": lambda d: d["tokenizer"]["definition"]["model"].update(type="BPE"),
    "fused": lambda d: d.update(fused=True),
    "layers without numbers": lambda d: crowd(d, 60_000),
    "words": lambda d: d["tokenizer"]["definition"]["model"].update(
        type="WordLevel", unk_token="[UNK]"
    ),
    "no length": lambda d: d["tokenizer"].update(length=-1),
    "a token that is none": lambda d: d["tokenizer"]["special"].update(cls_token="nowhere"),
    "a name on the hub": lambda d: d["tokenizer"]["special"].update(name_or_path="some/model"),
    "a panic": lambda d: d["tokenizer"]["definition"].update(
        normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAAAAAAA="}
    ),
}


def crowd(description, count):
    description["config"]["num_hidden_layers"] = count
    description["layers"] += [0] * count


@pytest.mark.parametrize("name", HOSTILE)
def test_a_description_that_lies_is_refused(name, written, tmp_path):
    description = description_of(written)
    HOSTILE[name](description)
    (tmp_path / "a.clab").write_bytes(forge(written, description))
    with pytest.raises(ValueError, match=r"a\.clab is whole, but"):
        load(tmp_path / "a.clab")


def test_layers_cannot_multiply(written):
    whole = archive.read(written, "it")
    matrix = next(t for t in whole.tensors if t.ndim == 2 and t.is_floating_point())
    # Equal parts are one tensor, whatever their number; the layers made of them are not.
    whole.tensors.extend([matrix] * 10_000)
    whole.description["layers"] += [["classifier", "linear", "floats", 1, False]] * 10_000
    with pytest.raises(ValueError, match="more than 64 for each byte"):
        module._build(whole)


@pytest.mark.parametrize(
    ("form", "shapes"),
    [
        ("grid", [(250, 200), (1,), (50_000,)]),
        ("grid", [(250, 200), (50_000,), (1,)]),
        ("grid", [(250, 200), (1, 1), (1, 1)]),
        ("product", [(250, 200), (1, 1, 1, 50_000)]),
        ("product", [(1, 50_000, 1), (1, 2, 4)]),
        ("product", [(250, 200), (7, 2, 4)]),
    ],
)
def test_shapes_are_not_broadcast(form, shapes):
    with pytest.raises(ValueError, match=r"scales of|codes of"):
        module._matrix(form, [torch.zeros(shape) for shape in shapes], archive.Budget(10**7))


def test_a_panic_is_refused_as_everything_else(written, tmp_path, monkeypatch):
    class Panic(BaseException):
        pass

    def panic(*_):
        raise Panic("index out of bounds")

    monkeypatch.setattr(module, "rebuild_tokenizer", panic)
    with pytest.raises(ValueError, match=r"^it is whole, but .*out of bounds"):
        module.read(written, "it")


@pytest.mark.parametrize(
    ("function", "change_"),
    [
        (sections, lambda d: d.pop("layers")),
        (sections, lambda d: d["layers"][0].__setitem__(3, 1000)),
        (sections, lambda d: d["layers"][0].__setitem__(3, "all")),
        (uncoded, lambda d: d["parts"].clear()),
    ],
)
def test_what_only_looks_at_a_file_refuses_what_lies(function, change_, written, tmp_path):
    description = description_of(written)
    change_(description)
    streams = None if description["parts"] else b""
    (tmp_path / "a.clab").write_bytes(forge(written, description, streams))
    with pytest.raises(ValueError, match=r"a\.clab is whole, but no model"):
        function(tmp_path / "a.clab")


def test_codebooks_cannot_multiply():
    codes, codebooks = torch.zeros(2000, 64, dtype=torch.int16), torch.zeros(1, 2, 500)
    with pytest.raises(ValueError, match="64,000,000 numbers are more than"):
        module._matrix("product", [codes, codebooks], archive.Budget(300_000))


def places(value, path=()):
    """Every place in a description."""
    yield path
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from places(inner, (*path, key))


def test_no_change_of_a_description_ends_in_another_error(written, tmp_path):
    random_ = random.Random(0)
    original = description_of(written)
    every = [p for p in places(original) if p]
    values = [None, -1, 0, 1, 2, 7, 2**31, 2**70, 1.5, "", "float32", "linear", [], [1], {}, True]
    refused = 0
    for _ in range(150):
        description = copy.deepcopy(original)
        *outer, last = random_.choice(every)
        inner = description
        for key in outer:
            inner = inner[key]
        inner[last] = random_.choice(values)
        (tmp_path / "a.clab").write_bytes(forge(written, description))
        try:
            load(tmp_path / "a.clab")
        except ValueError:
            refused += 1
    assert refused > 75


def test_nothing_is_pickled(written):
    assert "pickle" not in (archive.__dict__.keys() | module.__dict__.keys())
    with pytest.raises(ValueError, match=r"opcode|at position"):
        list(pickletools.genops(written))


# ---------------------------------------------------------------- another process


def test_a_fresh_process_classifies(tokenizer, tmp_path):
    model = classifier()
    int8_fused(model)
    export(model, tokenizer, tmp_path / "a.clab")
    code = """
import sys, json, torch
from compresslab.export import load
model, tokenizer = load(sys.argv[1])
inputs = tokenizer(json.loads(sys.argv[2]), padding=True, return_tensors="pt")
with torch.no_grad():
    print(json.dumps(model(**inputs).logits.tolist()))
"""
    run = [sys.executable, "-c", code, str(tmp_path / "a.clab"), json.dumps(TEXTS)]
    out = subprocess.run(run, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    assert torch.equal(torch.tensor(json.loads(out)), logits(model, tokenizer)[:-1])


def test_the_command_line(written, tmp_path, capsys):
    path = tmp_path / "a.clab"
    path.write_bytes(written)
    main([str(path)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["24", "head"]
    assert lines[-1].split() == [f"{len(written):,}", "file"]
    main([str(path), "a good film", "bad"])
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("%  a good film")
    assert second.split()[0] in ("negative", "positive")
    path.write_bytes(written[:-1])
    with pytest.raises(SystemExit):
        main([str(path)])
    assert "was cut off" in capsys.readouterr().err
