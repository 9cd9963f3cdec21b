"""Round SmolLM2 to 4, 3 and 2 bits in groups: plainly, with HQQ, AWQ and GPTQ.

    python -m compresslab.recipes.quantization_llm

Every linear layer of the decoder is packed; the embedding, which is also the output layer, is not.
Calibration on 16 windows of 512 tokens of the calibration articles; perplexity on the first 16
windows of the test articles, once for each variant. The ablation at 3 bits in groups of 64, which
decided what "GPTQ" means in the table, is measured on validation articles. The last run goes for
the best: AWQ's scales, then GPTQ, calibrated on 64 windows.

Groups of 128, as papers have them, do not divide rows of 576: the third size is 96. The weights lie
on a 4-bit grid from the start (see the model's card). About 35 minutes on two cores.
"""

import json
import time
from collections.abc import Callable

from torch import nn

from ..corpora import load_articles, token_windows
from ..measure import bytes_on_disk, perplexity
from ..models import load_language_model
from ..pruning.sparsegpt import collect_hessians
from ..quantization.affine import quantize_tensor
from ..quantization.awq import awq_, scale_inputs_
from ..quantization.calibration import mse
from ..quantization.gptq import gptq_model_
from ..quantization.hqq import hqq
from ..quantization.linear import pack_linears_
from ..quantization.outliers import collect_means
from . import record

SEED = 0  # nothing here is random
WINDOW = 512
CALIBRATION_WINDOWS, EVALUATION_WINDOWS = 16, 16
LONG = 64  # calibration windows of the best method
CASES = ((3, 64), (4, 64), (2, 64), (3, 32), (3, 96))  # bits, group size
METHODS = ("rounding", "HQQ", "AWQ", "GPTQ")
GPTQ = {"act_order": True, "choose": mse}


def main() -> None:
    articles = load_articles()
    model, tokenizer = load_language_model()
    windows = {
        split: token_windows(articles[split]["text"], tokenizer, length=WINDOW)[:count]
        for split, count in (
            ("calibration", CALIBRATION_WINDOWS),
            ("validation", EVALUATION_WINDOWS),
            ("test", EVALUATION_WINDOWS),
        )
    }
    long = token_windows(articles["calibration"]["text"], tokenizer, length=WINDOW)[:LONG]
    batches = windows["calibration"].split(4)
    start = time.perf_counter()
    means, hessians = collect_means(model.model, batches), collect_hessians(model.model, batches)
    collected = time.perf_counter() - start

    def quantize_(model: nn.Module, method: str, bits: int, group_size: int) -> None:
        options = {"bits": bits, "group_size": group_size}
        if method == "rounding":
            pack_linears_(
                model.model, lambda _, w: quantize_tensor(w, bits=bits, granularity=group_size)
            )
        elif method == "HQQ":
            pack_linears_(model.model, lambda _, w: hqq(w, **options))
        elif method == "AWQ":
            awq_(model.model, means, hessians, **options)
        else:
            block = group_size * max(1, 128 // group_size)
            gptq_model_(model, windows["calibration"], block=block, **GPTQ, **options)

    def measure(split: str, quantize_: Callable[[nn.Module], None], **what) -> dict:
        model, _ = load_language_model()
        start = time.perf_counter()
        quantize_(model)
        seconds = time.perf_counter() - start
        size = bytes_on_disk(model.model.layers)
        run = what | {"seconds": seconds, "bytes": size}
        run |= vars(perplexity(model, windows[split]))
        print(json.dumps(run), flush=True)
        return run

    ablation = [measure("validation", lambda m: None, method="float32")]
    for name, options in {
        "GPTQ": {},
        "GPTQ, ranges of least error": {"choose": mse},
        "GPTQ, columns by importance": {"act_order": True},
        "GPTQ, both": GPTQ,
    }.items():
        ablation.append(
            measure(
                "validation",
                lambda m, o=options: gptq_model_(
                    m, windows["calibration"], bits=3, group_size=64, **o
                ),
                method=name,
            )
        )
    runs = [measure("test", lambda m: None, method="float32")]
    for bits, group_size in CASES:
        for method in METHODS:
            runs.append(
                measure(
                    "test",
                    lambda m, a=(method, bits, group_size): quantize_(m, *a),
                    method=method,
                    bits=bits,
                    group_size=group_size,
                )
            )

    def both_(model: nn.Module) -> None:
        scale_inputs_(model.model, means, hessians, bits=3, group_size=64)
        gptq_model_(model, long, bits=3, group_size=64, **GPTQ)

    runs.append(
        measure("test", both_, method="AWQ's scales, then GPTQ", bits=3, group_size=64)
        | {"calibration_tokens": long.numel()}
    )
    figures = {
        "window": WINDOW,
        "test_tokens": windows["test"].numel(),
        "calibration_tokens": windows["calibration"].numel(),
        "collect_seconds": collected,  # before AWQ
        "ablation": ablation,
        "runs": runs,
    }
    print(record("quantization_llm", seed=SEED, figures=figures))


if __name__ == "__main__":
    main()
