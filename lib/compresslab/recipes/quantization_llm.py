"""Round SmolLM2 to 4, 3 and 2 bits in groups: plainly, with HQQ, AWQ and GPTQ.

    python -m compresslab.recipes.quantization_llm

Every linear layer of the decoder is packed; the embedding, which is also the output layer, is not.
Calibration on 16 windows of 512 tokens of the calibration articles; perplexity on the first 16
windows of the test articles, once for each variant. The ablation at 3 bits in groups of 64, which
decided what "GPTQ" means in the table, is measured on validation articles. Three more at 3 bits in
groups of 64: AWQ without clipping, GPTQ calibrated on 64 windows, and the same after AWQ's scales.

Groups of 128, as papers have them, do not divide rows of 576; the third size is 96. The weights lie
on a 4-bit grid from the start (see the model's card). Seconds are those of one thread and include
calibration. About 60 minutes on two cores.
"""

import json
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from ..corpora import load_articles, token_windows
from ..measure import bytes_on_disk, perplexity
from ..models import load_language_model
from ..pruning.sparsegpt import collect_hessians
from ..quantization.affine import min_max, quantize_tensor
from ..quantization.awq import awq_, scale_inputs_
from ..quantization.calibration import mse
from ..quantization.gptq import gptq_model_
from ..quantization.hqq import hqq
from ..quantization.linear import pack_linears_
from ..quantization.outliers import collect_means
from . import in_parallel, launch, record

SEED = 0  # nothing here is random
WINDOW = 512
CALIBRATION_WINDOWS, EVALUATION_WINDOWS, LONG = 16, 16, 64
CASES = tuple((bits, group_size) for bits in (4, 3, 2) for group_size in (32, 64, 96))
SCALED = "AWQ's scales, then GPTQ"
METHODS = ("rounding", "rounding, searched ranges", "HQQ", "AWQ", "GPTQ")
ABLATION = {
    "GPTQ, neither option": {},
    "GPTQ, searched ranges": {"choose": mse},
    "GPTQ, columns by importance": {"act_order": True},
    "GPTQ, both options": {"act_order": True, "choose": mse},
}
BEST = ABLATION["GPTQ, both options"]  # what is called GPTQ in the table


def articles(split: str, count: int) -> Tensor:
    _, tokenizer = load_language_model()
    return token_windows(load_articles()[split]["text"], tokenizer, length=WINDOW)[:count]


def collect(path: Path, windows: Tensor) -> None:
    """Save what AWQ has to know of inputs, and how long that took."""
    model, _ = load_language_model()
    start = time.perf_counter()
    batches = windows.split(4)
    means, hessians = collect_means(model.model, batches), collect_hessians(model.model, batches)
    seconds = time.perf_counter() - start
    torch.save({"means": means, "hessians": hessians, "seconds": seconds}, path)


def quantize_(model: nn.Module, method: str, bits: int, group_size: int, statistics: dict) -> None:
    """Pack the linear layers of the decoder, in place."""
    options = {"bits": bits, "group_size": group_size}
    observed = statistics["means"], statistics["hessians"]
    if method.startswith("rounding"):
        choose = mse if method.endswith("searched ranges") else min_max
        rounding = {"bits": bits, "granularity": group_size, "choose": choose}
        pack_linears_(model.model, lambda _, w: quantize_tensor(w, **rounding))
    elif method == "HQQ":
        pack_linears_(model.model, lambda _, w: hqq(w, **options))
    elif method in ("AWQ", "AWQ, whole ranges"):
        awq_(model.model, *observed, clip=method == "AWQ", **options)
    else:
        if method == SCALED:
            scale_inputs_(model.model, *observed, **options)
        count = LONG if method in (SCALED, "GPTQ, 64 windows") else CALIBRATION_WINDOWS
        windows = articles("calibration", count)
        block = group_size * max(1, 128 // group_size)
        gptq_model_(model, windows, block=block, **ABLATION.get(method, BEST), **options)


def run(split: str, method: str, path: Path, **case) -> dict:
    """Quantize SmolLM2 in one way and measure it; `case` has bits and group_size, or nothing."""
    model, _ = load_language_model()
    statistics = torch.load(path, mmap=True)
    seconds = 0.0
    if case:
        start = time.perf_counter()
        quantize_(model, method, **case, statistics=statistics)
        seconds = time.perf_counter() - start
        if method.startswith("AWQ"):
            seconds += statistics["seconds"]
    size = bytes_on_disk(model.model.layers)
    found = vars(perplexity(model, articles(split, EVALUATION_WINDOWS)))
    return {"split": split, "method": method} | case | {"seconds": seconds, "bytes": size} | found


def main() -> None:
    three = {"bits": 3, "group_size": 64}
    tasks = [{"split": "validation", "method": "float32"}]
    tasks += [{"split": "validation", "method": method} | three for method in ABLATION]
    tasks += [{"split": "test", "method": "float32"}]
    more = ("AWQ, whole ranges", "GPTQ, 64 windows", SCALED)
    tasks += [{"split": "test", "method": method} | three for method in more]
    tasks += [
        {"split": "test", "method": method, "bits": bits, "group_size": group_size}
        for bits, group_size in CASES
        for method in METHODS
    ]
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "statistics.pt"
        calibration = articles("calibration", CALIBRATION_WINDOWS)
        list(in_parallel(collect, [{"path": path, "windows": calibration}]))
        for result in in_parallel(run, [task | {"path": path} for task in tasks]):
            runs.append(result)
            print(json.dumps(result), flush=True)
    figures = {
        "window": WINDOW,
        "test_tokens": articles("test", EVALUATION_WINDOWS).numel(),
        "calibration_tokens": calibration.numel(),
        "long_calibration_tokens": articles("calibration", LONG).numel(),
        "ablation": [run for run in runs if run["split"] == "validation"],
        "runs": [run for run in runs if run["split"] == "test"],
    }
    print(record("quantization_llm", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
