"""The library's quantization beside its peers: `make bench`.

int8 beside torch's own, torchao and ONNX Runtime, as in the recipe `quantization_latency`; a single
layer of each shape; and for each format of weights the time beside the library that defines it,
with whether the codes are the same. Speed is a ratio within rounds, with its 95 % interval.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from compresslab.machine import processor
from compresslab.measure import compare_latency
from compresslab.models import load_language_model
from compresslab.quantization import gguf as formats
from compresslab.quantization.affine import quantize_tensor
from compresslab.quantization.hqq import hqq
from compresslab.quantization.int8 import Int8Linear, int8_matmul
from compresslab.quantization.nf4 import dequantize_nf4, quantize_nf4
from compresslab.recipes import quantization_latency as latency

SHAPES = ((384, 384), (384, 1536), (1536, 384))  # in, out features of the classifier's layers
TOKENS = (8, 16, 32, 64, 32 * 55)


def bench_classifier(folder: Path) -> None:
    """The classifier on its first 32 test sentences; accuracy on 1,000 validation sentences."""
    candidates = latency.measure(folder)["candidates"]
    for size in map(str, latency.BATCH_SIZES):
        print(f"\n  {'batch ' + size:38} times as fast as float32   as ours                  ms")
        for each in candidates:
            if "reason" in each:
                print(f"  {each['name']:38} not measured: {each['reason']}")
                continue
            found = each["latency"][size]
            if "once" in found:
                print(f"  {each['name']:38} {found['once']:.3f}, in one call")
                continue
            ratios = [found["speedup"], found["against_ours"]]
            shown = "   ".join(
                f"{r['value']:5.2f} ({r['low']:.2f} to {r['high']:.2f})" for r in ratios
            )
            print(f"  {each['name']:38} {shown}   {found['milliseconds']:8.1f}")
    print("\n  accuracy on validation")
    for each in candidates:
        if "accuracy" in each:
            size = f", {each['bytes'] / 1e6:.1f} MB" if "bytes" in each else ""
            print(f"  {each['name']:38} {each['accuracy']['value']:.1%}{size}")


def bench_layers() -> None:
    print("\nOne linear layer: milliseconds, and times as fast as float32")
    kinds = ("float32", "one operator", "static", "in steps", "int8_matmul alone", "torch")
    print(f"  {'tokens, in, out':18} " + " ".join(f"{kind:>18}" for kind in kinds))
    for columns, rows in SHAPES:
        linear = nn.Linear(columns, rows)
        weight = quantize_tensor(linear.weight, bits=7, symmetric=True)
        fused, steps = (Int8Linear(weight, linear.bias, fused=f) for f in (True, False))
        static = Int8Linear(weight, linear.bias, input_range=(-3.0, 3.0))
        torchs = latency.torch_dynamic(nn.Sequential(linear), Path())
        for tokens in TOKENS:
            x = torch.randn(tokens, columns)
            codes = quantize_tensor(x, bits=8).codes
            calls = dict(
                zip(
                    kinds,
                    (
                        lambda x=x, m=linear: m(x),
                        lambda x=x, m=fused: m(x),
                        lambda x=x, m=static: m(x),
                        lambda x=x, m=steps: m(x),
                        lambda c=codes, w=weight.codes.T: int8_matmul(c, w),
                        lambda x=x, m=torchs: m(x),
                    ),
                    strict=True,
                )
            )
            times = compare_latency(calls, baseline="float32", rounds=11)
            cells = [f"{t.milliseconds:9.3f} ({t.speedup.value:5.2f}×)" for t in times.values()]
            print(f"  {f'{tokens}, {columns}, {rows}':18} " + " ".join(cells), flush=True)


def bench_formats() -> None:
    """A matrix of SmolLM2: quantize and dequantize it here and in the library of the format."""
    model, _ = load_language_model()
    weight = model.model.layers[5].mlp.gate_proj.weight.detach()
    print("\nFormats of weights, a matrix of 1536 × 576: times as fast as the peer")
    for name, peer in {
        "NF4": _bitsandbytes, "HQQ, 4 bits": _hqq, "GGUF Q4_1": _gguf, "GGUF Q8_0": _gguf
    }.items():  # fmt: skip
        try:
            calls, same = peer(weight, name)
        except Exception as error:  # whatever a peer raises is its reason
            print(f"  {name:12} not measured: {type(error).__name__}: {error}")
            continue
        for what, (ours, theirs) in calls.items():
            times = compare_latency({"theirs": theirs, "ours": ours}, baseline="theirs", rounds=7)
            r = times["ours"].speedup
            print(
                f"  {name:12} {what:10} {r.value:6.2f} ({r.low:.2f} to {r.high:.2f}), "
                f"{times['ours'].milliseconds:.1f} ms; {same}"
            )


def _bitsandbytes(weight, name):
    import bitsandbytes.functional as peer

    codes, absmax = quantize_nf4(weight)
    theirs, state = peer.quantize_4bit(weight, quant_type="nf4")
    calls = {
        "quantize": (
            lambda: quantize_nf4(weight),
            lambda: peer.quantize_4bit(weight, quant_type="nf4"),
        ),
        "dequantize": (
            lambda: dequantize_nf4(codes, absmax, weight.shape),
            lambda: peer.dequantize_4bit(theirs, state),
        ),
    }
    return calls, _agreement((codes == theirs.flatten()).float().mean())


def _hqq(weight, name):
    from hqq.core.quantize import BaseQuantizeConfig, Quantizer

    config = BaseQuantizeConfig(nbits=4, group_size=64, axis=1)["weight_quant_params"]

    def theirs():
        return Quantizer.quantize(weight, device="cpu", compute_dtype=torch.float32, **config)

    w, meta = theirs()
    error, other = (
        (weight - x).norm() / weight.norm()
        for x in (hqq(weight, bits=4, group_size=64).dequantize(), Quantizer.dequantize(w, meta))
    )
    calls = {"quantize": (lambda: hqq(weight, bits=4, group_size=64), theirs)}
    return calls, f"error {error:.3%}, theirs {other:.3%}"


def _gguf(weight, name):
    from gguf import GGMLQuantizationType, quants

    kind = name.removeprefix("GGUF ")
    theirs, x = GGMLQuantizationType[kind], weight.numpy()
    ours = formats.FORMATS[theirs.value]
    data, other = ours.quantize(weight), quants.quantize(x, theirs)
    calls = {
        "quantize": (lambda: ours.quantize(weight), lambda: quants.quantize(x, theirs)),
        "dequantize": (lambda: ours.dequantize(data), lambda: quants.dequantize(other, theirs)),
    }
    same = (data.flatten() == torch.from_numpy(other).flatten()).float().mean()
    return calls, _agreement(same)


def _agreement(share) -> str:
    return "the same bytes" if share == 1 else f"{share:.3%} of the bytes are the same"


def main() -> None:
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    vnni = "with" if torch.cpu._is_vnni_supported() else "without"
    print(
        f"{processor()} {vnni} AVX-512 VNNI, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}"
    )
    with tempfile.TemporaryDirectory() as folder:
        bench_classifier(Path(folder))
    bench_layers()
    bench_formats()


if __name__ == "__main__":
    main()
