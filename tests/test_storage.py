import json
import math
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from compresslab.storage import load, save

ENCODINGS = ("dense", "bitmap", "csr", "smallest")
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8)


class Holder(nn.Module):
    """A module whose state is the tensors it is given."""

    def __init__(self, **tensors):
        super().__init__()
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor)


def bits(tensor):
    integer = {1: torch.int8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.contiguous().view(integer)


def assert_same_bits(loaded, tensor):
    assert loaded.shape == tensor.shape
    assert loaded.dtype == tensor.dtype
    assert torch.equal(bits(loaded), bits(tensor))


def stored(path):
    """What lies in the file, by name."""
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def random_matrix(rows, columns, density, dtype=torch.float32, seed=0):
    """Random bit patterns (infinities, NaN and subnormal numbers among them); the rest is +0."""
    generator = torch.Generator().manual_seed(seed)
    size = rows * columns * dtype.itemsize
    raw = torch.randint(0, 256, (size,), generator=generator, dtype=torch.uint8)
    matrix = raw.view(dtype).view(rows, columns).clone()
    kept = torch.rand(rows, columns, generator=generator) < density
    matrix[~kept | (matrix == 0)] = 0
    return matrix


def formula(matrix, encoding):
    n, m, k, b = (
        matrix.numel(),
        matrix.shape[0],
        int(matrix.count_nonzero()),
        matrix.element_size(),
    )
    index = 2 if matrix.shape[1] <= 32768 else 4
    sizes = {"dense": n * b, "bitmap": k * b + math.ceil(n / 8), "csr": k * (b + index) + 4 * m + 4}
    return min(sizes.values()) if encoding == "smallest" else sizes[encoding]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("storage") / "model.safetensors"


@settings(deadline=None, max_examples=200)
@given(
    rows=st.integers(0, 9),
    columns=st.integers(0, 19),
    density=st.sampled_from([0.0, 0.03, 0.5, 1.0]),
    dtype=st.sampled_from(DTYPES),
    encoding=st.sampled_from(ENCODINGS),
    seed=st.integers(0, 2**32),
)
def test_matrix_comes_back_bit_for_bit_in_the_bytes_of_the_formula(
    file, rows, columns, density, dtype, encoding, seed
):
    matrix = random_matrix(rows, columns, density, dtype, seed)
    save(Holder(w=matrix), file, encoding=encoding)
    assert_same_bits(load(file)["w"], matrix)
    assert sum(part.nbytes for part in stored(file).values()) == formula(matrix, encoding)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("columns", [32767, 32768, 32769, 40000])
def test_wide_matrix_keeps_its_last_columns(file, encoding, columns):
    matrix = torch.zeros(3, columns)
    matrix[0, -1], matrix[2, 0], matrix[2, -2] = 1.0, 2.0, 3.0
    save(Holder(w=matrix), file, encoding=encoding)
    assert_same_bits(load(file)["w"], matrix)
    assert sum(part.nbytes for part in stored(file).values()) == formula(matrix, encoding)


def test_bitmap_and_csr_lie_in_the_file_as_described(file):
    matrix = torch.tensor([[0.0, 0, 0, 1, 2], [0, 0, 0, 0, 0], [3, 0, 0, 0, 0]])
    save(Holder(w=matrix), file, encoding="bitmap")
    assert {n: p.tolist() for n, p in stored(file).items()} == {
        "w:values": [1.0, 2.0, 3.0],
        "w:bitmap": [0b00011000, 0b00100000],
    }
    save(Holder(w=matrix), file, encoding="csr")
    parts = stored(file)
    assert {n: p.tolist() for n, p in parts.items()} == {
        "w:values": [1.0, 2.0, 3.0],
        "w:columns": [3, 4, 0],
        "w:rows": [0, 2, 2, 3],
    }
    assert (parts["w:columns"].dtype, parts["w:rows"].dtype) == (torch.int16, torch.int32)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_only_the_sparse_forms_lose_the_sign_of_negative_zero(file, encoding):
    matrix = torch.tensor([[-0.0, 0.0, float("nan"), -float("inf")]])
    save(Holder(w=matrix), file, encoding=encoding)
    expected = matrix if encoding == "dense" else torch.where(matrix == 0, 0.0, matrix)
    assert_same_bits(load(file)["w"], expected)


@pytest.mark.parametrize(
    ("density", "winner"), [(1.0, "w"), (0.5, "w:bitmap"), (0.01, "w:columns")]
)
def test_smallest_picks_the_form_that_suits_the_density(file, density, winner):
    matrix = random_matrix(64, 64, density)
    size = save(Holder(w=matrix), file, encoding="smallest")
    assert winner in stored(file)
    assert size == min(save(Holder(w=matrix), file, encoding=e) for e in ENCODINGS)


def test_smallest_decides_for_each_tensor(file):
    matrices = {
        name: random_matrix(64, 64, density)
        for name, density in (("a", 1), ("b", 0.5), ("c", 0.01))
    }
    save(Holder(**matrices), file, encoding="smallest")
    assert set(stored(file)) == {
        *("a", "b:values", "b:bitmap"),
        *("c:values", "c:columns", "c:rows"),
    }
    state = load(file)
    for name, matrix in matrices.items():
        assert_same_bits(state[name], matrix)


def test_a_function_chooses_the_encoding_by_name_and_value(file):
    matrix = random_matrix(8, 8, 0.5)
    asked = {}

    def choose(name, tensor):
        asked[name] = tensor
        return "csr" if name == "b" else "dense"

    save(Holder(a=matrix, b=matrix.clone()), file, encoding=choose)
    assert set(stored(file)) == {"a", "b:values", "b:columns", "b:rows"}
    assert torch.equal(bits(asked["b"]), bits(matrix))


@pytest.mark.parametrize("shape", [(), (7,), (2, 3, 4), (0,)])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_no_matrix_is_stored_dense(file, shape, encoding):
    tensor = torch.zeros(shape)
    save(Holder(t=tensor), file, encoding=encoding)
    assert set(stored(file)) == {"t"}
    assert_same_bits(load(file)["t"], tensor)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_matrix_that_is_not_contiguous_comes_back_the_same(file, encoding):
    matrix = random_matrix(6, 10, 0.3).T[::2]
    save(Holder(w=matrix), file, encoding=encoding)
    assert_same_bits(load(file)["w"], matrix)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 50, bias=False)
        self.head.weight = self.embedding.weight
        with torch.no_grad():
            self.embedding.weight[torch.rand(50, 8) < 0.7] = 0


@pytest.fixture
def tied():
    torch.manual_seed(0)
    return Tied()


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_shared_tensor_is_stored_once_and_comes_back_under_both_names(file, encoding, tied):
    save(tied, file, encoding=encoding)
    assert not any(name.startswith("head") for name in stored(file))
    state = load(file)
    assert set(state) == set(tied.state_dict())
    assert_same_bits(state["head.weight"], tied.embedding.weight)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_tensors_that_are_copied_from_a_device_are_neither_confused_nor_doubled(
    monkeypatch, file, encoding
):
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: tensor.clone())
    first, second = random_matrix(40, 50, 0.3, seed=1), random_matrix(40, 50, 0.3, seed=2)
    save(Holder(a=first, b=second, c=first), file, encoding=encoding)
    assert not any(name.startswith("c") for name in stored(file))
    state = load(file)
    for name, matrix in (("a", first), ("b", second), ("c", first)):
        assert_same_bits(state[name], matrix)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_different_views_of_one_buffer_are_different_tensors(file, encoding):
    buffer = random_matrix(8, 8, 0.5)
    views = {"top": buffer[:4], "bottom": buffer[4:], "turned": buffer.T}
    save(Holder(**views), file, encoding=encoding)
    state = load(file)
    for name, view in views.items():
        assert_same_bits(state[name], view)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_loaded_state_makes_another_model_the_same(file, encoding, tied):
    save(tied, file, encoding=encoding)
    torch.manual_seed(1)
    other = Tied()
    assert not torch.equal(other.body.weight, tied.body.weight)
    other.load_state_dict(load(file))
    assert other.head.weight is other.embedding.weight
    for name, tensor in tied.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_colon_in_a_name_is_no_obstacle(file, encoding):
    model = nn.ModuleDict({"a:values": nn.Linear(9, 3), "b": nn.Linear(3, 2)})
    save(model, file, encoding=encoding)
    state = load(file)
    assert set(state) == set(model.state_dict())
    assert torch.equal(state["a:values.weight"], model["a:values"].weight)


def test_model_is_left_as_it_was(file, tied):
    before = {name: tensor.clone() for name, tensor in tied.state_dict().items()}
    save(tied, file, encoding="smallest")
    assert all(torch.equal(tensor, before[name]) for name, tensor in tied.state_dict().items())
    assert tied.head.weight.requires_grad


@pytest.mark.parametrize("encoding", ["sparse", lambda name, tensor: "zip"])
def test_unknown_encoding_is_refused(tmp_path, encoding):
    with pytest.raises(ValueError, match="encoding must be dense, bitmap, csr or smallest"):
        save(nn.Linear(2, 2), tmp_path / "x.safetensors", encoding=encoding)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_file_is_a_header_in_json_and_raw_tensors_and_its_size_is_returned(file, encoding, tied):
    size = save(tied, file, encoding=encoding)
    raw = Path(file).read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    header = json.loads(raw[8 : 8 + length])
    header.pop("__metadata__", None)
    payload = sum(part.nbytes for part in stored(file).values())
    assert max(entry["data_offsets"][1] for entry in header.values()) == payload
    assert size == len(raw) == 8 + length + payload
