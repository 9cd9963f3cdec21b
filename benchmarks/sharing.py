"""The library's weight sharing beside scikit-learn, faiss, dahuffman and zstandard: `make bench`.

Ratios are medians within rounds, with their 95 % interval: above 1 the library is faster. Errors
are of the weights, as a fraction of their size; each pair works on the same numbers and from the
same start. The peers get NumPy arrays or bytes, which is what they work on.
"""

import warnings

import dahuffman
import faiss
import numpy as np
import torch
import zstandard
from sklearn.cluster import KMeans, MiniBatchKMeans
from torch import Tensor

from compresslab.layers import find_linears
from compresslab.machine import processor
from compresslab.measure import compare_latency
from compresslab.models import load_classifier
from compresslab.sharing import arithmetic, huffman
from compresslab.sharing.codebooks import cluster
from compresslab.sharing.kmeans import assign, lloyd, start_centroids
from compresslab.sharing.product_quantization import k_means, product_quantize

BITS = (3, 4)
WIDTH, ROWS = 8, 8192  # of the product quantization: numbers of a vector, rows of the table


def show(what: str, ours, theirs, note: str = "") -> None:
    """Time two calls against each other."""
    times = compare_latency({"theirs": theirs, "ours": ours}, baseline="theirs", rounds=7)
    found = times["ours"].speedup
    line = f"  {what:44} {found.value:7.2f} ({found.low:.2f} to {found.high:.2f})"
    print(f"{line} {times['ours'].milliseconds:9.1f} ms   {note}", flush=True)


def off(weight: Tensor, other) -> float:
    other = torch.as_tensor(np.asarray(other), dtype=weight.dtype).view(weight.shape)
    return ((weight - other).norm() / weight.norm()).item()


def bench_codebooks(weight: Tensor) -> None:
    """Codebooks of one matrix, from a start in which no cluster is empty."""
    rows, columns = weight.shape
    print(f"\nCodebooks of a matrix, {rows} × {columns}, to the end: scikit-learn")
    values, points = weight.reshape(1, -1), weight.numpy().reshape(-1, 1)
    for bits in BITS:
        start = start_centroids(values, 2**bits, "density")
        first = start.numpy().reshape(-1, 1)

        def ours(start=start):
            centroids = lloyd(values, start)
            return centroids.gather(1, assign(values, centroids))

        def theirs(first=first):
            found = KMeans(len(first), init=first, n_init=1, max_iter=1000, tol=0).fit(points)
            return found.cluster_centers_[found.labels_]

        def in_batches(first=first):
            found = MiniBatchKMeans(len(first), init=first, n_init=1, random_state=0).fit(points)
            return found.cluster_centers_[found.labels_]

        error = off(weight, ours())
        for name, peer in (("KMeans", theirs), ("MiniBatchKMeans", in_batches)):
            note = f"error {error:.4f}, theirs {off(weight, peer()):.4f}"
            show(f"{bits} bits: {name}", ours, peer, note)


def bench_products(table: Tensor) -> None:
    """Product quantization of the first rows of the embedding table."""
    rows, columns = table.shape
    print(f"\nProduct quantization, {rows} × {columns} in vectors of {WIDTH}, 25 steps: faiss")
    array, parts = np.ascontiguousarray(table.numpy()), columns // WIDTH

    def ours():
        generator = torch.Generator().manual_seed(0)
        return product_quantize(table, width=WIDTH, generator=generator)

    def theirs():
        quantizer = faiss.ProductQuantizer(columns, parts, 8)
        quantizer.cp.niter, quantizer.cp.max_points_per_centroid = 25, rows
        quantizer.train(array)
        return quantizer.decode(quantizer.compute_codes(array))

    note = f"error {off(table, ours().reconstruct()):.4f}, theirs {off(table, theirs()):.4f}"
    show("codebooks and codes", ours, theirs, note)
    points = table[:, :WIDTH].contiguous()
    start = points[:256].clone()

    def their_vectors():
        found = faiss.Kmeans(WIDTH, 256, niter=25, max_points_per_centroid=rows)
        found.train(array[:, :WIDTH].copy(), init_centroids=start.numpy())
        return found

    show("k-means of one place, one start", lambda: k_means(points, start), their_vectors)


def bench_coding(weight: Tensor) -> None:
    """The codes of 4 bits of one matrix, written and read."""
    codes = cluster(weight, bits=4).codes.flatten()
    counts = torch.bincount(codes, minlength=16)
    symbols, data = codes.tolist(), bytes(codes.tolist())
    print(
        f"\n{len(codes):,} codes of 4 bits, entropy {huffman.entropy(counts):.3f}: dahuffman, zstd"
    )
    lengths, shares = huffman.code_lengths(counts), arithmetic.share_frequencies(counts)
    codec = dahuffman.HuffmanCodec.from_frequencies(dict(enumerate(counts.tolist())))
    press, unpress = zstandard.ZstdCompressor(level=19), zstandard.ZstdDecompressor()
    coded, theirs = huffman.encode(codes, lengths), codec.encode(symbols)
    pressed, ranged = press.compress(data), arithmetic.encode(codes, shares)
    assert huffman.decode(coded, lengths, len(codes)).tolist() == codec.decode(theirs) == symbols

    def bits(size: int) -> str:
        return f"{8 * size / len(codes):.3f}"

    note = f"bits {bits(len(coded))}, theirs {bits(len(theirs))}"
    show(
        "Huffman, written: dahuffman",
        lambda: huffman.encode(codes, lengths),
        lambda: codec.encode(symbols),
        note,
    )
    show(
        "Huffman, read: dahuffman",
        lambda: huffman.decode(coded, lengths, len(codes)),
        lambda: codec.decode(theirs),
    )
    note = f"bits {bits(len(ranged))}, theirs {bits(len(pressed))}"
    show(
        "range coding, written: zstd, level 19",
        lambda: arithmetic.encode(codes, shares),
        lambda: press.compress(data),
        note,
    )
    show(
        "range coding, read: zstd",
        lambda: arithmetic.decode(ranged, shares, len(codes)),
        lambda: unpress.decompress(pressed),
    )


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    faiss.omp_set_num_threads(torch.get_num_threads())
    print(f"{processor()}, {torch.get_num_threads()} threads")
    classifier, _ = load_classifier()
    weight = find_linears(classifier.bert.encoder)["layer.2.output.dense"].weight.detach()
    table = classifier.get_input_embeddings().weight.detach()[:ROWS].clone()
    bench_codebooks(weight)
    bench_products(table)
    bench_coding(weight)


if __name__ == "__main__":
    main()
