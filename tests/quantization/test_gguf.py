import struct
from contextlib import suppress

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from compresslab.assets import fetch, file_sha256
from compresslab.models import GGUF as NAME
from compresslab.models import language_model_folder
from compresslab.quantization import gguf as module
from compresslab.quantization.gguf import (
    F16,
    F32,
    FORMATS,
    HEADER,
    Q4_0,
    Q4_1,
    Q4_K,
    Q8_0,
    GGUFTensor,
    Value,
    gguf_state,
    read_gguf,
    write_gguf,
)

every_format = pytest.mark.parametrize("form", FORMATS.values(), ids=lambda f: f.name)
SCALES = {Q4_0: 1, Q8_0: 1, Q4_1: 2, Q4_K: 2, F16: 1}  # float16 numbers at the start of a block


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def any_blocks(form, *shape):
    """Random bytes, but for the exponents of the scales: none is infinite or NaN."""
    generator = torch.Generator().manual_seed(form.number)
    blocks = torch.randint(256, (*shape, form.block_bytes), generator=generator).byte()
    for i in range(SCALES.get(form, 0)):
        blocks[..., 2 * i + 1] &= 0b10111111
    return blocks.flatten(-2)


def same_bits(a, b):
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def theirs(function, x, form):
    return torch.from_numpy(function(x.numpy(), GGMLQuantizationType(form.number)))


# ---------------------------------------------------------------- blocks


@every_format
def test_a_format_has_the_number_and_the_sizes_that_it_has_in_ggml(form):
    kind = GGMLQuantizationType(form.number)
    assert kind.name == form.name
    assert gguf.GGML_QUANT_SIZES[kind] == (form.block_size, form.block_bytes)


def test_bits_a_weight_count_scales_too():
    assert [f.bits_per_weight for f in (F16, Q4_0, Q4_1, Q8_0, Q4_K)] == [16, 4.5, 5, 8.5, 4.5]


@every_format
def test_any_block_is_decoded_as_gguf_does_bit_for_bit(form):
    blocks = any_blocks(form, 3, 50, 2)
    numbers = form.dequantize(blocks)
    assert numbers.shape == (3, 50, 2 * form.block_size)
    assert same_bits(numbers, theirs(gguf.quants.dequantize, blocks, form))


@pytest.mark.parametrize("form", [F32, F16, Q4_0, Q4_1, Q8_0], ids=lambda f: f.name)
def test_numbers_are_coded_as_gguf_does_bit_for_bit(form):
    generator = torch.Generator().manual_seed(1)
    small = torch.randint(-4, 5, (4000, 64), generator=generator) / 8  # ties, zeros, equal numbers
    for values in (noise(4000, 64), 1e-6 * noise(500, 64), small, torch.zeros(1, 64)):
        assert same_bits(form.quantize(values), theirs(gguf.quants.quantize, values, form))


numbers = st.floats(-(2.0**15), 2.0**15, width=32, allow_subnormal=False).filter(
    lambda x: x == 0 or abs(x) > 1e-30
)


@pytest.mark.parametrize("form", [Q4_0, Q4_1, Q8_0], ids=lambda f: f.name)
@given(values=st.lists(numbers, min_size=32, max_size=32))
def test_odd_numbers_are_coded_as_gguf_does(form, values):
    values = torch.tensor([values]) + 0.0  # of 0.0 and -0.0, which is the minimum?
    assert same_bits(form.quantize(values), theirs(gguf.quants.quantize, values, form))


def test_a_block_of_q4_1_by_hand():
    block = struct.pack("<ee16B", 0.5, -1.0, 0x20, *[0x31] * 15)
    numbers = Q4_1.dequantize(torch.frombuffer(bytearray(block), dtype=torch.uint8))
    assert numbers.tolist() == [-1.0] + [-0.5] * 15 + [0.0] + [0.5] * 15


@pytest.mark.parametrize(("form", "partner"), [(Q4_0, 16), (Q4_1, 16), (Q4_K, 32)])
def test_a_byte_of_codes_holds_the_numbers_i_and_i_plus_16_or_32(form, partner):
    blocks = torch.zeros(form.block_bytes, dtype=torch.uint8)
    blocks[:2] = torch.tensor([1.0]).half().view(torch.uint8)
    if form is Q4_K:
        blocks[4:16] = 1  # s and m of the first four groups are 1, and so are s of the others
    before = form.dequantize(blocks)
    blocks[-form.block_size // 2 + 5] = 0xA7
    change = form.dequantize(blocks) - before
    assert change.nonzero().flatten().tolist() == [5, 5 + partner]
    assert change[[5, 5 + partner]].tolist() == [7, 10]


def test_q4_k_takes_the_nearest_of_16_numbers_and_these_reach_the_ends_of_the_range():
    skewed = noise(400, 512) * noise(400, 1).exp() + noise(400, 1)
    for values in (skewed, 1 + skewed.abs(), -skewed.abs(), 0.01 * skewed):
        data = Q4_K.quantize(values)
        groups = values.view(-1, 8, 32)
        error = (groups - theirs(gguf.quants.dequantize, data, Q4_K).view(-1, 8, 32)).abs()
        blocks = data.view(-1, 144)
        d, dmin = blocks[:, :4].clone().view(torch.float16).float().T[:, :, None]
        s, m = map(torch.from_numpy, gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16].numpy()))
        grid = (d * s)[:, :, None] * torch.arange(16) - (dmin * m)[:, :, None]
        nearest = torch.stack([(groups - g[..., None]).abs() for g in grid.unbind(2)]).amin(0)
        assert (error <= nearest + 1e-5 * groups.abs().amax()).all()
        # The step may be d / 2 too small, 15 times over, and the minimum dmin / 2 too high.
        bound = d * s / 2 + torch.maximum(7.5 * d, dmin / 2)
        assert (error.amax(2) <= bound * (1 + 1e-5)).all()


def test_q4_k_has_the_error_of_q4_1_in_the_bits_of_q4_0():
    values = noise(100, 512)
    q4_0, q4_1, q4_k = (
        (f.dequantize(f.quantize(values)) - values).square().mean() for f in (Q4_0, Q4_1, Q4_K)
    )
    assert q4_k < 1.05 * q4_1 < 0.9 * q4_0


@every_format
def test_zeros_stay_zeros_and_decoded_numbers_come_back(form):
    zeros = torch.zeros(2, 3, 512)
    assert torch.equal(form.dequantize(form.quantize(zeros)), zeros)
    values = noise(2, 3, 512).bfloat16()
    once = form.dequantize(form.quantize(values))
    assert once.shape == values.shape
    torch.testing.assert_close(form.dequantize(form.quantize(once)), once, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("form", [F16, Q4_0, Q4_1, Q8_0, Q4_K], ids=lambda f: f.name)
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e30])
def test_numbers_that_float16_cannot_scale_are_refused(form, bad):
    values = noise(2, 512)
    values[1, 40] = bad
    with pytest.raises(ValueError, match="values must be finite, and small enough"):
        form.quantize(values)


def test_bad_blocks_and_rows_are_named():
    with pytest.raises(ValueError, match=r"multiple of 32 numbers for Q8_0, not .* \(2, 33\)"):
        Q8_0.quantize(torch.ones(2, 33))
    with pytest.raises(ValueError, match=r"multiple of 256 numbers for Q4_K, not .* \(\)"):
        Q4_K.quantize(torch.tensor(1.0))
    with pytest.raises(ValueError, match=r"multiple of 20 bytes for Q4_1, not .*uint8 .* \(21,\)"):
        Q4_1.dequantize(torch.zeros(21, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"data must be uint8 .*, not torch\.float32"):
        Q4_1.dequantize(torch.zeros(20))


# ---------------------------------------------------------------- the file

METADATA = {
    "general.architecture": Value("string", "tést"),
    "a.uint8": Value("uint8", 255),
    "a.int8": Value("int8", -128),
    "a.uint16": Value("uint16", 65535),
    "a.int16": Value("int16", -32768),
    "a.uint32": Value("uint32", 2**32 - 1),
    "a.int32": Value("int32", -(2**31)),
    "a.uint64": Value("uint64", 2**64 - 1),
    "a.int64": Value("int64", -(2**63)),
    "a.float32": Value("float32", 0.15625),
    "a.float64": Value("float64", 0.1),
    "a.bool": Value("bool", True),
    "a.strings": Value("string[]", ["", "Ġ", "<|im_end|>"]),
    "a.numbers": Value("int16[]", [3, -4]),
    "a.bools": Value("bool[]", [True, False]),
}
NESTED = {
    "b.empty": Value("float32[]", []),
    "b.nested": Value(
        "array[]",
        [Value("int8[]", [1]), Value("array[]", [Value("string[]", ["a"]), Value("bool[]", [])])],
    ),
}


def some_tensors():
    shapes = {
        F32: (3,),
        F16: (2, 5),
        Q4_0: (3, 64),
        Q4_1: (2, 3, 32),
        Q8_0: (1, 96),
        Q4_K: (2, 256),
    }
    return {f"{f.name}.weight": GGUFTensor(f, f.quantize(noise(*s))) for f, s in shapes.items()}


def same_tensors(a, b):
    return list(a) == list(b) and all(
        a[n].format is b[n].format and torch.equal(a[n].data, b[n].data) for n in a
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "model.gguf"


@pytest.mark.parametrize("alignment", [None, 8, 64])
def test_what_is_written_is_read_again(path, alignment):
    metadata = METADATA | NESTED
    if alignment:
        metadata |= {"general.alignment": Value("uint32", alignment)}
    assert write_gguf(path, metadata, some_tensors()) == path.stat().st_size
    file = read_gguf(path)
    assert list(file.metadata.items()) == list(metadata.items())
    assert same_tensors(file.tensors, some_tensors())
    places = [tensor.data.storage_offset() for tensor in file.tensors.values()]
    assert all(place % (alignment or 32) == 0 for place in places)
    assert [t.shape for t in file.tensors.values()][2:4] == [(3, 64), (2, 3, 32)]
    state = gguf_state(file)
    assert all(torch.equal(state[n], t.dequantize()) for n, t in some_tensors().items())


def test_the_first_24_bytes_are_magic_version_and_counts(path):
    write_gguf(path, METADATA, some_tensors())
    start = path.read_bytes()[:24]
    assert start[:8] == b"GGUF\x03\x00\x00\x00"
    assert int.from_bytes(start[8:16], "little") == len(some_tensors())
    assert int.from_bytes(start[16:24], "little") == len(METADATA)
    assert HEADER.unpack(start) == (b"GGUF", 3, len(some_tensors()), len(METADATA))


@pytest.mark.parametrize("alignment", [{}, {"general.alignment": Value("uint32", 128)}])
def test_gguf_reads_what_is_written_here(path, alignment):
    write_gguf(path, METADATA | alignment, some_tensors())
    reader = gguf.GGUFReader(path)
    fields = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    assert fields == {key: value.value for key, value in (METADATA | alignment).items()}
    types = [reader.fields[key].types[-1].name.lower() for key in METADATA]
    assert types == [value.kind.removesuffix("[]") for value in METADATA.values()]
    for ours, tensor in zip(some_tensors().items(), reader.tensors, strict=True):
        assert ours[0] == tensor.name
        assert ours[1].format.number == tensor.tensor_type
        assert ours[1].shape == tuple(reversed(tensor.shape.tolist()))
        assert bytes(ours[1].data.flatten().tolist()) == tensor.data.tobytes()


def test_what_gguf_writes_is_read_here_and_written_as_the_same_bytes(path):
    writer = gguf.GGUFWriter(path, "test")
    writer.add_custom_alignment(64)
    for key, (kind, value) in METADATA.items():
        if key == "general.architecture":
            continue
        if kind.endswith("[]"):
            sub = GGUFValueType[kind[:-2].upper()]
            writer.add_key_value(key, value, GGUFValueType.ARRAY, sub)
        else:
            writer.add_key_value(key, value, GGUFValueType[kind.upper()])
    for name, tensor in some_tensors().items():
        data = tensor.data.numpy()
        if tensor.format in (F32, F16):
            data = data.view(np.float32 if tensor.format is F32 else np.float16)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType(tensor.format.number))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    file = read_gguf(path)
    assert file.metadata == METADATA | {
        "general.architecture": Value("string", "test"),
        "general.alignment": Value("uint32", 64),
    }
    assert same_tensors(file.tensors, some_tensors())
    before = path.read_bytes()
    write_gguf(path, file.metadata, file.tensors)  # over the file that is mapped
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_tensors_are_mapped_and_writing_to_them_leaves_the_file_alone(path):
    write_gguf(path, METADATA, some_tensors())
    before = path.read_bytes()
    tensors = read_gguf(path).tensors
    assert len({t.data.untyped_storage().data_ptr() for t in tensors.values()}) == 1
    data = tensors["Q8_0.weight"].data
    place = data.storage_offset()
    assert bytes(data.flatten().tolist()) == before[place : place + data.numel()]
    numbers = tensors["F32.weight"].dequantize()
    for tensor in tensors.values():
        tensor.data.zero_()
    assert torch.equal(numbers, some_tensors()["F32.weight"].dequantize())
    assert path.read_bytes() == before


def test_a_file_cut_off_anywhere_is_refused(path):
    write_gguf(path, METADATA | NESTED, some_tensors())
    whole = path.read_bytes()
    last = list(read_gguf(path).tensors.values())[-1].data
    end = last.storage_offset() + last.numel()
    for size in [*range(0, end, 13), end - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"is no GGUF file|cannot be read"):
            read_gguf(path)


@given(st.data())
def test_a_damaged_file_is_read_or_refused_and_nothing_else(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("damaged") / "model.gguf"
    write_gguf(path, METADATA | NESTED, some_tensors())
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(4, 1300))] = data.draw(st.sampled_from([0, 1, 9, 127, 255]))
    path.write_bytes(content)
    with suppress(ValueError):
        gguf_state(read_gguf(path))


def test_a_wrong_start_is_named(path):
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="is no GGUF file: it has 0 bytes"):
        read_gguf(path)
    path.write_bytes(HEADER.pack(b"GGML", 3, 0, 0))
    with pytest.raises(ValueError, match="is no GGUF file: it starts with b'GGML'"):
        read_gguf(path)
    for version in (1, 4, 3 << 24):  # the last is 3 of a big-endian file
        path.write_bytes(HEADER.pack(b"GGUF", version, 0, 0))
        with pytest.raises(ValueError, match=f"must be 2 or 3, not {version}"):
            read_gguf(path)
    path.write_bytes(HEADER.pack(b"GGUF", 2, 0, 0))
    assert read_gguf(path).tensors == {}


def string(text):
    return struct.pack("<Q", len(text)) + text


def tensor_info(*, name=b"w", dims=(32,), number=3, offset=0):
    dims = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + dims + struct.pack("<IQ", number, offset)


@pytest.mark.parametrize(
    ("infos", "message"),
    [
        ([tensor_info(number=14)], "tensor w has type 14, not one of .*3 Q4_1"),
        ([tensor_info(dims=(48, 2))], r"tensor w of type Q4_1 has dimensions \[48, 2\]"),
        ([tensor_info(dims=())], r"tensor w of type Q4_1 has dimensions \[\]"),
        ([tensor_info(dims=(0, 2**63))], "tensor w of type Q4_1 has dimensions"),
        ([tensor_info(dims=(64, 2))], "tensor w is at 0 to 80 in 64 bytes of data"),
        ([tensor_info(dims=(2**62, 2**62))], "tensor w is at 0 to .* in 64 bytes"),
        ([tensor_info(offset=64)], "tensor w is at 64 to 84 in 64 bytes"),
        ([tensor_info(offset=2**64 - 32)], "tensor w is at .* in 64 bytes"),
        ([tensor_info(offset=16)], "tensor w is at 16 to 36 in 64 bytes .* aligned to 32"),
        ([tensor_info(), tensor_info()], "w is there twice"),
    ],
)
def test_a_tensor_that_cannot_be_is_refused_by_name(path, infos, message):
    content = HEADER.pack(b"GGUF", 3, len(infos), 0) + b"".join(infos)
    path.write_bytes(content + bytes(-len(content) % 32 + 64))
    with pytest.raises(ValueError, match=message):
        read_gguf(path)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            struct.pack("<Q", 2**60) + b"key",
            r"1152921504606846976 bytes are to follow byte 32, and",
        ),
        (string(b"key") + struct.pack("<IQ", 8, 2**63), "9223372036854775808 bytes are to follow"),
        (string(b"key") + struct.pack("<IIQ", 9, 0, 2**62), "4611686018427387904 bytes"),
        (string(b"key") + struct.pack("<IIQ", 9, 8, 2**62), "8 bytes are to follow"),
        (string(b"key") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000, "recursion"),
        (string(b"key") + struct.pack("<IB", 13, 0), "there is no type 13"),
        (string(b"\xff\xfe") + struct.pack("<IB", 0, 0), "codec can't decode byte 0xff"),
        (2 * (string(b"key") + struct.pack("<IB", 0, 0)), "key is there twice"),
    ],
)
def test_lengths_and_types_that_cannot_be_are_refused(path, entry, message):
    path.write_bytes(HEADER.pack(b"GGUF", 3, 0, 2) + entry)
    with pytest.raises(ValueError, match=message):
        read_gguf(path)


def test_huge_counts_end_with_the_file(path):
    for counts in [(2**64 - 1, 0), (0, 2**64 - 1)]:
        path.write_bytes(HEADER.pack(b"GGUF", 3, *counts))
        with pytest.raises(ValueError, match="8 bytes are to follow byte 24, and 0 are left"):
            read_gguf(path)


@pytest.mark.parametrize(
    "alignment", [Value("uint32", n) for n in (0, 4, 24)] + [Value("uint64", 32)]
)
def test_alignment_is_a_power_of_two_from_8_on(path, alignment):
    with pytest.raises(ValueError, match=r"general\.alignment must be 8, 16, 32"):
        write_gguf(path, {"general.alignment": alignment}, {})
    key, value = string(b"general.alignment"), module._pack_value(alignment)
    path.write_bytes(HEADER.pack(b"GGUF", 3, 0, 1) + key + value)
    with pytest.raises(ValueError, match=r"general\.alignment must be 8, 16, 32"):
        read_gguf(path)


@pytest.mark.parametrize(
    "value",
    [
        Value("uint8", 256),
        Value("int32", 1.5),
        Value("float32", 1e39),
        Value("string", 3),
        Value("int", 3),
        Value("array", [3]),
        Value("int8[]", 3),
        Value("int8[]", ["a"]),
        Value("array[]", [3]),
        Value("array[]", [Value("int8", 3)]),
    ],
    ids=str,
)
def test_a_value_that_does_not_fit_its_type_is_refused_by_its_key(path, value):
    with pytest.raises(ValueError, match=r"a\.key does not fit its type"):
        write_gguf(path, {"a.key": value}, {})
    assert not path.exists()


def test_data_that_cannot_be_written_are_refused(path):
    with pytest.raises(ValueError, match="multiple of 20 bytes for Q4_1"):
        write_gguf(path, {}, {"w": GGUFTensor(Q4_1, torch.zeros(2, 18, dtype=torch.uint8))})
    with pytest.raises(ValueError, match=r"tensor w of shape \(0, 32\) is empty"):
        write_gguf(path, {}, {"w": GGUFTensor(Q4_1, torch.zeros(0, 20, dtype=torch.uint8))})


# ---------------------------------------------------------------- the language model


@pytest.fixture(scope="module")
def real():
    return fetch("smollm2") / NAME


@pytest.fixture(scope="module")
def model(real):
    return read_gguf(real)


def test_the_language_model_is_written_as_the_same_bytes(real, model, path):
    assert write_gguf(path, model.metadata, model.tensors) == 98_362_432
    assert file_sha256(path) == file_sha256(real)


def test_gguf_finds_the_metadata_and_tensors_of_the_language_model(model, path):
    # Without the vocabulary, over which its reader takes five seconds.
    metadata = {k: v for k, v in model.metadata.items() if not k.startswith("tokenizer.ggml.t")}
    del metadata["tokenizer.ggml.merges"]
    write_gguf(path, metadata, model.tensors)
    reader = gguf.GGUFReader(path)
    fields = {n: f.contents() for n, f in reader.fields.items() if not n.startswith("GGUF.")}
    assert fields == {key: value.value for key, value in metadata.items()}
    checked = set()
    for tensor in reader.tensors:
        ours = model.tensors[tensor.name]
        assert (np.asarray(ours.data).ravel() == tensor.data.view(np.uint8).ravel()).all()
        if tensor.name.startswith(("token_embd", "blk.7.", "output_norm")):
            rows = np.array(tensor.data[-2000:])
            expected = torch.from_numpy(gguf.quants.dequantize(rows, tensor.tensor_type))
            assert same_bits(ours.dequantize()[-2000:], expected)
            checked.add(ours.format)
    assert len(reader.tensors) == len(model.tensors) == 272
    assert checked == {t.format for t in model.tensors.values()} == {F32, Q4_1, Q8_0}


def test_the_vocabulary_is_read(model):
    tokens = model.metadata["tokenizer.ggml.tokens"]
    assert tokens.kind == "string[]"
    assert len(tokens.value) == model.metadata["llama.vocab_size"].value == 49152
    assert tokens.value[:3] == ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def test_the_numbers_are_those_that_transformers_loads(model):
    def permuted(weight, heads):  # as llama.cpp orders the rows of a head
        return weight.view(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)

    with safe_open(language_model_folder() / "model.safetensors", framework="pt") as file:
        layer = "model.layers.3."
        expected = {
            "token_embd.weight": file.get_tensor("model.embed_tokens.weight"),
            "output_norm.weight": file.get_tensor("model.norm.weight"),
            "blk.3.ffn_down.weight": file.get_tensor(layer + "mlp.down_proj.weight"),
            "blk.3.attn_v.weight": file.get_tensor(layer + "self_attn.v_proj.weight"),
            "blk.3.attn_q.weight": permuted(
                file.get_tensor(layer + "self_attn.q_proj.weight"),
                model.metadata["llama.attention.head_count"].value,
            ),
            "blk.3.attn_k.weight": permuted(
                file.get_tensor(layer + "self_attn.k_proj.weight"),
                model.metadata["llama.attention.head_count_kv"].value,
            ),
        }
    for name, weight in expected.items():
        assert model.tensors[name].shape == weight.shape
        assert torch.equal(model.tensors[name].dequantize(), weight), name
