"""Product quantization against scikit-learn's k-means in each place, and against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import nn
from torch.nn import functional as F

from compresslab import storage
from compresslab.sharing import product_quantization
from compresslab.sharing.product_quantization import (
    PQEmbedding,
    PQLinear,
    k_means,
    product_bytes,
    product_quantize,
    product_quantize_embedding_,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def quantized(rows=40, columns=24, **options):
    return product_quantize(randn(rows, columns), generator=generator(), **options)


def begins(count, clusters, parts):
    """The vectors at which k-means starts, for each part."""
    draw = generator()
    return [torch.randperm(count, generator=draw)[:clusters] for _ in range(parts)]


@pytest.mark.parametrize("width", [1, 3, 8])
def test_each_part_ends_where_scikit_learn_ends_from_the_same_start(width):
    weight = randn(200, 24)
    found = product_quantize(weight, width=width, bits=3, iterations=300, generator=generator())
    parts = weight.view(200, -1, width).unbind(1)
    for j, (part, begin) in enumerate(zip(parts, begins(200, 8, len(parts)), strict=True)):
        oracle = KMeans(8, init=part[begin].numpy(), n_init=1, tol=0, max_iter=300)
        oracle.fit(part.numpy())
        torch.testing.assert_close(found.codebooks[j], torch.from_numpy(oracle.cluster_centers_))
        assert found.codes[:, j].tolist() == oracle.labels_.tolist()


def test_a_shared_codebook_is_that_of_the_vectors_of_all_places():
    weight = randn(50, 12)
    found = product_quantize(weight, width=4, bits=3, shared=True, generator=generator())
    vectors = weight.view(150, 4)
    codes, codebook = k_means(vectors, vectors[begins(150, 8, 1)[0]])
    assert torch.equal(found.codebooks[0], codebook)
    assert torch.equal(found.codes.flatten().long(), codes)
    assert torch.equal(found.reconstruct(), codebook[codes].view(50, 12))


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(1, 4), st.integers(0, 2**31))
def test_each_vector_is_at_the_nearest_centroid_and_each_centroid_in_the_middle(
    count, clusters, width, seed
):
    points = torch.randint(-4, 5, (count, width), generator=generator(seed)).double()
    begin = torch.randint(-4, 5, (clusters, width), generator=generator(seed + 1)).double()
    codes, centroids = k_means(points, begin, iterations=200)
    distance = torch.cdist(points, centroids)
    torch.testing.assert_close(distance.gather(1, codes[:, None])[:, 0], distance.amin(1))
    for k in range(clusters):
        if (codes == k).any():
            torch.testing.assert_close(centroids[k], points[codes == k].mean(0))


def test_the_first_of_equally_near_centroids_counts_and_an_empty_one_stays(monkeypatch):
    monkeypatch.setattr(product_quantization, "CHUNK", 2)
    points = torch.tensor([[0.0, 0], [2, 0], [4, 0], [1, 9]])
    begin = torch.tensor([[1.0, 0], [3, 0], [3, 0], [1, 8]])
    codes, centroids = k_means(points, begin, iterations=0)
    assert codes.tolist() == [0, 0, 1, 3]
    assert torch.equal(centroids, begin)
    codes, centroids = k_means(points, begin)
    assert centroids.tolist() == [[1, 0], [4, 0], [3, 0], [1, 9]]


def test_with_a_centroid_for_each_row_there_is_no_error_and_with_equal_rows_neither():
    weight = randn(8, 12).float()
    found = product_quantize(weight, width=4, bits=3, generator=generator())
    assert torch.equal(found.reconstruct(), weight)
    equal = randn(1, 12).expand(9, 12)
    found = product_quantize(equal, width=4, bits=2, generator=generator())
    torch.testing.assert_close(found.reconstruct(), equal)


def test_a_seed_gives_the_same_and_half_precision_a_codebook_in_float32():
    weight = randn(30, 12).bfloat16()
    a, b = (product_quantize(weight, width=4, bits=2, generator=generator(s)) for s in (3, 3))
    assert torch.equal(a.codes, b.codes)
    assert a.codebooks.dtype == torch.float32
    assert torch.equal(a.codebooks, b.codebooks)


@pytest.mark.parametrize("shared", [False, True])
def test_with_inputs_the_error_of_the_output_is_smaller(shared):
    mix = randn(12, 12, seed=1) + 2 * torch.eye(12)
    weight, x = randn(60, 12), randn(500, 12, seed=2) @ mix * torch.logspace(-1, 1, 4).repeat(3)
    options = {"width": 4, "bits": 3, "shared": shared, "iterations": 100}
    errors = {}
    for name, gram in (("plain", None), ("aware", x.T @ x)):
        draws = [
            product_quantize(weight, gram=gram, **options, generator=generator(s)).reconstruct()
            for s in range(5)
        ]
        errors[name] = [(x @ (weight - w).T).square().mean().item() for w in draws]
        errors[f"{name} weight"] = [(weight - w).square().mean().item() for w in draws]
    assert max(errors["aware"]) < min(errors["plain"])
    assert min(errors["aware weight"]) > max(errors["plain weight"])


@pytest.mark.parametrize("shared", [False, True])
def test_the_metric_is_that_of_the_inputs(shared):
    mix = randn(6, 6, seed=2) * torch.arange(1.0, 7)
    weight, x = randn(40, 6), randn(100, 6, seed=1) @ mix
    options = {"width": 3, "bits": 2, "shared": shared, "damping": 0, "iterations": 100}
    found = product_quantize(weight, gram=x.T @ x, **options, generator=generator())
    inputs = list(x.split(3, 1))
    for j, part in enumerate(weight.split(3, 1)):
        seen = torch.cat(inputs) if shared else inputs[j]
        distance = torch.cdist(part @ seen.T, found.codebooks[0 if shared else j] @ seen.T)
        assert torch.equal(distance.argmin(1), found.codes[:, j].long())


def test_inputs_that_are_alike_change_nothing():
    weight = randn(40, 12)
    plain = product_quantize(weight, width=4, bits=2, generator=generator())
    aware = product_quantize(weight, width=4, bits=2, gram=7 * torch.eye(12), generator=generator())
    assert torch.equal(plain.codes, aware.codes)
    torch.testing.assert_close(plain.codebooks, aware.codebooks)


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("shared", [False, True])
def test_an_embedding_looks_up_rows_from_as_many_bytes_as_the_formula_says(bits, shared, tmp_path):
    model = nn.ModuleDict({"words": nn.Embedding(300, 24)}).eval()
    options = {"width": 3, "bits": bits, "shared": shared, "iterations": 2}
    expected = product_quantize(model["words"].weight, **options, generator=generator())
    product_quantize_embedding_(model, "words", **options, generator=generator())
    words = model["words"]
    assert isinstance(words, PQEmbedding)
    assert not words.training
    assert torch.equal(words.reconstruct(), expected.reconstruct())
    ids = torch.tensor([[299, 0, 7], [7, 5, 111]])
    assert torch.equal(words(ids), F.embedding(ids, expected.reconstruct()))
    count = product_bytes(300, 24, width=3, bits=bits, shared=shared)
    assert count == 300 * 8 * bits // 8 + 4 * 2**bits * (3 if shared else 24)
    assert sum(t.nbytes for t in words.state_dict().values()) == count
    size = storage.save(words, tmp_path / "words")
    assert count < size < count + 300
    other = PQEmbedding(product_quantize(torch.randn(300, 24), **options | {"iterations": 0}))
    other.load_state_dict(storage.load(tmp_path / "words"))
    assert torch.equal(other(ids), words(ids))


def test_rows_of_three_codes_of_8_bits_are_whole_bytes():
    expected = quantized(rows=300, width=8)
    words, ids = PQEmbedding(expected), torch.tensor([299, 1])
    assert torch.equal(words(ids), expected.reconstruct()[ids])
    assert words(ids[:0]).shape == (0, 24)


def test_a_layer_computes_with_its_matrix():
    weight, bias, x = quantized(width=4, bits=3), randn(40), randn(2, 5, 24)
    linear = PQLinear(weight, bias)
    assert torch.equal(linear(x), F.linear(x, weight.reconstruct(), bias))
    assert linear(x.double()).dtype == torch.float64
    assert not list(linear.parameters())
    assert torch.equal(PQLinear(weight)(x), F.linear(x, weight.reconstruct()))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"width must divide the columns of \(40, 24\), not 5"):
        quantized(width=5)
    with pytest.raises(ValueError, match="bits must be 1 to 8, not 0"):
        quantized(width=4, bits=0)
    with pytest.raises(ValueError, match="8 bits are 256 centroids, for 40 vectors"):
        quantized(width=4)
    assert quantized(width=2, shared=True).codebooks.shape == (1, 256, 2)
    with pytest.raises(ValueError, match=r"gram must be \(24, 24\), not \(4, 4\)"):
        quantized(width=4, bits=2, gram=torch.eye(4))
    with pytest.raises(ValueError, match="6 codes of 2 bits a row are not whole octets"):
        PQEmbedding(quantized(width=4, bits=2))
    with pytest.raises(ValueError, match="has no embedding '0'"):
        product_quantize_embedding_(nn.Sequential(nn.Linear(3, 3)), "0", width=1)
