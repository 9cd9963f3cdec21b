"""The classifier in int8, beside float32 and the int8 of torch, torchao and ONNX Runtime.

    python -m compresslab.recipes.quantization_latency

The same model, sentences and threads in one process. Speed is a ratio within rounds that run every
candidate once, in a new order each, with its 95 % interval; accuracy is that of validation. A peer
that is missing, fails, decides otherwise than the classifier or is too slow for such rounds is
named with its reason. `make bench` installs the peers and prints the same. About 8 minutes on two
cores, which must be idle.
"""

import copy
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ..corpora import load_reviews
from ..inference import Logits
from ..measure import accuracy, bytes_on_disk, compare_latency, correct_answers
from ..models import load_classifier
from ..quantization.calibration import collect_ranges
from ..quantization.int8 import (
    fuse_bert_layers_,
    quantize_embeddings_int8_,
    quantize_linears_int8_,
)
from ..scoreboard import BATCH_SIZES, runner
from ..training import TextBatches
from . import launch, record

SEED = 0  # nothing here is random
FLOAT, OURS = "float32, torch", "int8 dynamic, ours"
SENTENCES = 256  # that ranges are collected from, one a batch: no padding
TOO_SLOW = 8  # times as slow as float32: one call is enough to say so


def ours(classifier: nn.Module, ranges=None, *, joined: bool = True, **options) -> nn.Module:
    """A copy of the classifier in int8; options of `quantize_linears_int8_`."""
    model = copy.deepcopy(classifier)
    quantize_linears_int8_(model, ranges, **options)
    quantize_embeddings_int8_(model)
    if joined:
        fuse_bert_layers_(model)
    return model


def torch_dynamic(classifier: nn.Module, folder: Path) -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(
        copy.deepcopy(classifier), {nn.Linear}, dtype=torch.qint8
    )


def torchao_dynamic(classifier: nn.Module, folder: Path) -> nn.Module:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    model = copy.deepcopy(classifier)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return model


def onnx_file(classifier: nn.Module, folder: Path) -> Path:
    path = folder / "float32.onnx"
    if not path.exists():
        ids, mask = torch.randint(1000, (2, 16)), torch.ones(2, 16, dtype=torch.int64)
        mask[1, 8:] = 0  # without padding, the graph would have no mask
        sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("time", max=512)}
        torch.onnx.export(
            Logits(classifier).eval(),
            (ids, mask),
            path,
            dynamo=True,
            input_names=["input_ids", "attention_mask"],
            dynamic_shapes=(sizes, sizes),
        )
    return path


def onnx_session(path: Path) -> Callable:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Between calls its threads would wait busily, and slow down whoever is timed next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return SimpleNamespace(logits=torch.from_numpy(session.run(None, feed)[0]))

    return run


def onnx_float(classifier: nn.Module, folder: Path) -> Callable:
    return onnx_session(onnx_file(classifier, folder))


def onnx_int8(classifier: nn.Module, folder: Path) -> Callable:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "int8.onnx"
    quantize_dynamic(
        onnx_file(classifier, folder),
        path,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=not torch.cpu._is_vnni_supported(),  # else 16-bit sums are cut off
    )
    return onnx_session(path)


PEERS = {
    "int8 dynamic, torch": torch_dynamic,
    "int8 dynamic, torchao": torchao_dynamic,
    "float32, ONNX Runtime": onnx_float,
    "int8 dynamic, ONNX Runtime": onnx_int8,
}


def seconds(call: Callable[[], object]) -> float:
    with torch.inference_mode():
        start = time.perf_counter()
        call()
        return time.perf_counter() - start


def prepare(make: Callable, classifier: nn.Module, folder: Path, batch: dict) -> Callable | str:
    """The candidate, or why there is none: it must decide nearly as the classifier does."""
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()), torch.inference_mode():
            model = make(classifier, folder)
            theirs, exact = model(**inputs).logits, classifier(**inputs).logits
        if (same := (theirs.argmax(1) == exact.argmax(1)).float().mean()) < 0.9:
            raise ValueError(f"decides as float32 for only {same:.0%} of the sentences")
        return model
    except Exception as error:  # whatever a peer raises is its reason
        return f"{type(error).__name__}: {str(error).splitlines()[0][:90]}"


def measure(folder: Path) -> dict:
    """Speed of every candidate, its accuracy on validation, its bytes if it has a file of ours.

    Returns:
        `candidates`, a dictionary each with its `name` and either the `reason` why there is no
        more, or `accuracy`, `bytes` and `latency`. That has, for every batch size, `milliseconds`
        and the speed-up against FLOAT and OURS, or `once`, that of a single call of the too slow.
    """
    reviews = load_reviews()
    classifier, tokenizer = load_classifier()
    data = reviews["test"].select(range(32))
    padded = next(iter(TextBatches(data, tokenizer)))
    train = TextBatches(reviews["train"].select(range(SENTENCES)), tokenizer, batch_size=1)
    models = {
        FLOAT: classifier,
        OURS: ours(classifier),
        "int8 static, ours": ours(classifier, collect_ranges(classifier, train)),
        "int8 dynamic, ours, layers apart": ours(classifier, joined=False),
        "int8 dynamic, ours, in steps": ours(classifier, fused=False),
        "int8 a scale a token, ours, in steps": ours(classifier, per_token=True, bits=8),
    } | {name: prepare(make, classifier, folder, padded) for name, make in PEERS.items()}
    found = {name: {"name": name} for name in models}
    for name, model in list(models.items()):
        if isinstance(model, str):
            found[name]["reason"] = models.pop(name)
    for size in BATCH_SIZES:
        batches = list(TextBatches(data, tokenizer, batch_size=size))
        calls = {name: runner(model, batches) for name, model in models.items()}
        for name, latency in compare(calls).items():
            found[name].setdefault("latency", {})[str(size)] = latency
    for name, model in models.items():
        if "once" in found[name]["latency"]["32"]:
            continue  # it would take minutes
        hits = correct_answers(model, reviews["validation"], tokenizer)
        found[name]["accuracy"] = vars(accuracy(hits))
        if "ours" in name or name == FLOAT:
            found[name]["bytes"] = bytes_on_disk(model)
    return {"candidates": list(found.values())}


def compare(calls: dict[str, Callable[[], None]]) -> dict[str, dict]:
    """Speed against float32, and against ours, of all that one call shows to be fast enough."""
    once = {}
    for name, call in calls.items():
        seconds(call)
        once[name] = seconds(call)
    fast = {n: call for n, call in calls.items() if once[n] < TOO_SLOW * once[FLOAT]}
    against = {base: compare_latency(fast, baseline=base) for base in (FLOAT, OURS)}
    return {
        name: {
            "milliseconds": against[FLOAT][name].milliseconds,
            "speedup": vars(against[FLOAT][name].speedup),
            "against_ours": vars(against[OURS][name].speedup),
        }
        if name in fast
        else {"once": once[FLOAT] / once[name]}
        for name in calls
    }


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder))
    figures["vnni"] = torch.cpu._is_vnni_supported()
    print(record("quantization_latency", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
