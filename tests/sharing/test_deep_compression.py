"""Deep Compression's file: what goes in comes out, every byte has a name, and damage is refused."""

import copy
import struct

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from compresslab import storage
from compresslab.pruning.masks import apply_masks_, keep_largest
from compresslab.sharing import deep_compression
from compresslab.sharing.codebooks import Clustered, CodebookLinear, cluster, cluster_linears_
from compresslab.sharing.deep_compression import (
    from_entries,
    from_sections,
    load,
    read,
    save,
    to_entries,
    to_sections,
)
from compresslab.sharing.huffman import code_lengths, encoded_bytes


def clustered(codes, bits=2, zero=True):
    book = torch.arange(2.0**bits)[None]
    return Clustered(torch.tensor(codes, dtype=torch.uint8), book, bits, zero)


def small_model():
    """A table, two linear layers of which the first is pruned, and a norm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Embedding(20, 16), nn.Linear(16, 24), nn.LayerNorm(24), nn.Linear(24, 3)
        model = nn.Sequential(*layers).eval()
    apply_masks_(model, {"1": keep_largest(model[1].weight.abs(), 0.8)})
    return model


def compress_(model, **options):
    def choose(name, weight):
        return cluster(weight, bits=3, mask=weight != 0, **options)

    cluster_linears_(model, choose)
    return model


def assert_same(state, expected):
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype
        assert state[name].shape == tensor.shape
        assert torch.equal(state[name], tensor)
        assert torch.equal(state[name].signbit(), tensor.signbit())


def dense_state(model):
    """The state that the layers would have without codebooks."""
    state = {n: t for n, t in model.state_dict().items() if not n.endswith((".codes", ".codebook"))}
    for name, module in model.named_modules():
        if isinstance(module, CodebookLinear):
            state[f"{name}.weight"] = module.clustered().reconstruct()
    return state


def test_entries_are_those_of_the_papers_figure_2():
    # Kept at 1, 4 and 15; the gap of 10 zeros is more than the 7 of 3 bits, so there is a filler.
    codes = [0, 2, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    gaps, values = to_entries(clustered([codes]), gap_bits=3)
    assert gaps.tolist() == [1, 2, 7, 2]
    assert values.tolist() == [2, 1, 0, 3]
    assert from_entries(gaps, values, (1, 16)).tolist() == [codes]


def test_gaps_run_on_over_rows_and_none_is_stored_behind_the_last_weight():
    gaps, values = to_entries(clustered([[0, 1, 0], [0, 2, 0]]), gap_bits=1)
    assert gaps.tolist() == [1, 1, 0]
    assert values.tolist() == [1, 0, 2]
    gaps, values = to_entries(clustered([[0, 0], [0, 0]]))
    assert gaps.tolist() == values.tolist() == []


def test_without_a_zero_every_weight_is_an_entry():
    gaps, values = to_entries(clustered([[0, 3], [0, 1]], zero=False))
    assert gaps.tolist() == [0, 0, 0, 0]
    assert values.tolist() == [0, 3, 0, 1]


@settings(deadline=None)
@given(
    st.integers(1, 8),
    st.integers(1, 8),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.3, 0.9, 0.99, 1.0]),
    st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]),
    st.integers(0, 2**31),
)
def test_a_matrix_comes_back_from_sections_of_the_bytes_that_were_said(
    bits, gap_bits, rows, columns, sparsity, dtype, seed
):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    mask = keep_largest(weight.abs(), sparsity) if sparsity else None
    shared = cluster(weight, bits=bits, granularity="channel", mask=mask)
    shared = Clustered(shared.codes, shared.codebook.to(dtype), bits, shared.zero)
    sections = to_sections(shared, gap_bits=gap_bits)
    back = from_sections(torch.cat(list(sections.values())))
    assert torch.equal(back.codes, shared.codes)
    assert torch.equal(back.codebook, shared.codebook)
    assert back.codebook.dtype == dtype
    assert (back.bits, back.zero) == (bits, shared.zero)
    gaps, codes = to_entries(shared, gap_bits=gap_bits)
    streams = []
    for symbols, size in ((codes, 2**bits), (gaps, 2**gap_bits)):
        counts = torch.bincount(symbols, minlength=size)
        streams.append(encoded_bytes(counts, code_lengths(counts)))
    assert {name: len(part) for name, part in sections.items()} == {
        "head": 24,
        "codebooks": rows * (2**bits - shared.zero) * dtype.itemsize,
        "tables": 2**bits + 2**gap_bits,
        "codes": streams[0],
        "gaps": streams[1],
    }
    if not sparsity:
        assert streams[1] == 0


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_model_comes_back_bit_for_bit(granularity, tmp_path):
    model = compress_(small_model(), granularity=granularity)
    before = copy.deepcopy(model.state_dict())
    save(model, tmp_path / "model")
    state = load(tmp_path / "model")
    assert_same(state, dense_state(model))
    assert_same(model.state_dict(), before)
    other, ids = small_model(), torch.tensor([[3, 7, 19]])
    other[1].weight.data.zero_()
    other.load_state_dict(state)
    assert torch.equal(other(ids), model(ids))
    assert (other[1].weight == 0).float().mean() == pytest.approx(0.8, abs=2e-3)


def test_the_bytes_by_section_are_the_file(tmp_path):
    model = compress_(small_model())
    table = cluster(model[0].weight, bits=4)
    sizes = save(model, tmp_path / "model", clustered={"0.weight": table}, gap_bits=4)
    raw = (tmp_path / "model").read_bytes()
    (header,) = struct.unpack("<Q", raw[:8])
    each = [to_sections(w, gap_bits=4) for w in (model[1].clustered(), model[3].clustered(), table)]
    assert sizes == {
        **{s: sum(len(parts[s]) for parts in each) for s in each[0]},
        "dense": 4 * (24 + 2 * 24 + 3),  # biases and the norm
        "file": 8 + header + 16,
    }
    assert sum(sizes.values()) == len(raw)
    assert_same(load(tmp_path / "model"), dense_state(model) | {"0.weight": table.reconstruct()})
    found = read(tmp_path / "model")
    assert torch.equal(found["0.weight"].codes, table.codes)
    assert torch.equal(found["1.weight"].codebook, model[1].clustered().codebook)


def test_what_layers_share_is_stored_once(tmp_path):
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 50, bias=False))
    model[1].weight = model[0].weight
    once = save(model, tmp_path / "dense")
    assert once["dense"] == 4 * 50 * 16
    assert_same(load(tmp_path / "dense"), model.state_dict())
    shared = cluster(model[0].weight, bits=3)
    one = save(model, tmp_path / "one", clustered={"0.weight": shared, "1.weight": shared})
    assert one["dense"] == 0
    assert one["codebooks"] == 4 * 8
    state = load(tmp_path / "one")
    assert torch.equal(state["0.weight"], shared.reconstruct())
    assert torch.equal(state["0.weight"], state["1.weight"])


def test_a_layer_that_is_used_twice_is_stored_once(tmp_path):
    layer = compress_(nn.Sequential(nn.Linear(8, 8)))[0]
    model = nn.Sequential(layer, nn.ReLU(), layer)
    once = save(nn.Sequential(layer), tmp_path / "once")
    twice = save(model, tmp_path / "twice")
    assert {s: n for s, n in twice.items() if s != "file"} == {
        s: n for s, n in once.items() if s != "file"
    }
    state = load(tmp_path / "twice")
    assert set(state) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert torch.equal(state["2.weight"], layer.clustered().reconstruct())


def test_a_lone_layer_and_a_model_without_codebooks(tmp_path):
    layer = compress_(small_model())[1]
    save(layer, tmp_path / "layer")
    assert set(load(tmp_path / "layer")) == {"weight", "bias"}
    assert torch.equal(load(tmp_path / "layer")["weight"], layer.clustered().reconstruct())
    model = nn.BatchNorm1d(3)  # has a count, a tensor without dimensions
    save(model, tmp_path / "model")
    state = load(tmp_path / "model")
    assert all(torch.equal(state[n], t) for n, t in model.state_dict().items())


@pytest.mark.parametrize("tied", [False, True])
def test_every_altered_byte_is_noticed(tied, tmp_path):
    path = tmp_path / "model"
    if tied:
        model = nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False))
        model[1].weight = model[0].weight
    else:
        model = compress_(nn.Sequential(nn.Linear(6, 4)))
    save(model, path)
    raw = path.read_bytes()
    for i in range(len(raw)):
        path.write_bytes(raw[:i] + bytes([raw[i] ^ 1 << i % 8]) + raw[i + 1 :])
        with pytest.raises(ValueError, match=r"cannot be read|was altered|version|no file of"):
            load(path)
    path.write_bytes(raw)
    assert_same(load(path), dense_state(model))


def test_a_file_that_is_cut_off_or_another_is_refused(tmp_path):
    path = tmp_path / "model"
    save(compress_(small_model()), path)
    raw = path.read_bytes()
    for size in (0, 5, 8, 100, len(raw) - 1):
        path.write_bytes(raw[:size])
        with pytest.raises(ValueError, match="cannot be read, it was cut off or altered"):
            load(path)
    path.write_bytes(raw + b"\0")
    with pytest.raises(ValueError, match="cannot be read, it was cut off or altered"):
        load(path)
    storage.save(nn.Linear(2, 2), path)
    with pytest.raises(ValueError, match="is no file of Deep Compression"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


@pytest.mark.parametrize(
    ("old", "new"), [(b'"shape":[20,16]', b'"shape":[16,20]'), (b'"dtype":"F32"', b'"dtype":"I32"')]
)
def test_another_shape_or_dtype_of_the_same_bytes_is_noticed(old, new, tmp_path):
    path = tmp_path / "model"
    save(compress_(small_model()), path)
    raw = path.read_bytes()
    assert old in raw
    path.write_bytes(raw.replace(old, new))
    with pytest.raises(ValueError, match="was altered: its checksum is"):
        load(path)


def test_another_version_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(deep_compression, "VERSION", 2)
    save(small_model(), tmp_path / "model")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"the version of .* must be 1, not 2"):
        load(tmp_path / "model")


def test_bad_input_is_named(tmp_path):
    model, path = small_model(), tmp_path / "model"
    table = cluster(model[0].weight, bits=2)
    with pytest.raises(ValueError, match="gap_bits must be 1 to 8, not 9"):
        to_entries(table, gap_bits=9)
    with pytest.raises(ValueError, match=r"clustered has words \(20, 16\): not in the model"):
        save(model, path, clustered={"words": table})
    with pytest.raises(ValueError, match=r"clustered has 1.weight \(20, 16\): not in the model"):
        save(model, path, clustered={"1.weight": table})
    with pytest.raises(ValueError, match=r"weight must be a matrix .* not of shape \(1, 20, 16\)"):
        to_sections(Clustered(table.codes[None], table.codebook, 2))
    for odd in ("a:deep", "deep_compression"):
        own = nn.ParameterDict({odd: torch.zeros(2)})
        with pytest.raises(ValueError, match=f"{odd} is a name that the file has for itself"):
            save(own, path)
    with pytest.raises(ValueError, match="gaps lead to entry 4 of a matrix"):
        from_entries(torch.tensor([1, 2]), torch.tensor([1, 1], dtype=torch.uint8), (2, 2))
    assert not path.exists()
