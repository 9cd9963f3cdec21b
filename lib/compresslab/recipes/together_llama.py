"""llama.cpp's own quantizations of SmolLM2, for the budgets of `together_llm`.

    make .venv/bench
    .venv/bench/bin/python -m compresslab.recipes.together_llama

llama.cpp quantizes the file that the course has anew, and is judged on the windows of validation
and test that `together_llm` has, beside the whole model in torch; tokens a second in rounds with
it. Its importance matrix, the mean square of what each column of a layer reads, is made here, from
the calibration windows of `together_llm`; as with llama.cpp's own program it has no entry for the
table. Q8_0 and Q2_0 make no use of it.

Most types below 4 bits have blocks of 256 weights, and SmolLM2's rows have 576: six matrices of
seven fall back to 4.5 bits (Q4_0 or IQ4_NL), and the seventh, 1,536 wide, has Q3_K in a file of
type Q2_K. The one type below 4 bits that fits all, Q2_0, has blocks of 64. It is made for ternary
models: the quantizer writes -d, 0 and d, where d is the largest weight of the block, so that most
weights of another model become 0. It is here for its size. On an x86 processor llama.cpp has no
code of its own for it, and takes a minute for 512 tokens: its perplexity is that of the same
weights in a file of float16. Nobody's vocabulary counts in `bytes`: our file has none.

llama-cpp-python is compiled when it is installed, which takes a compiler and a quarter of an hour.
About a quarter of an hour on two cores, which must be idle, and 6 GB.
"""

import ctypes
import json
import logging
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor

from ..assets import fetch
from ..measure import bytes_on_disk, compare_latency, perplexity
from ..models import GGUF, load_language_model
from ..pruning.wanda import collect_norms
from ..quantization.gguf import read_gguf
from . import launch, record
from .quantization_llm import EVALUATION_WINDOWS, WINDOW, articles
from .together_llm import CALIBRATION_WINDOWS, SEED, TOKENS, write_tokens

TYPES = {  # a type of file, and one for the table where it is not what the type implies
    "Q8_0": ("Q8_0", None),
    "Q4_K_M": ("Q4_K_M", None),
    "IQ4_NL, table too": ("IQ4_NL", "IQ4_NL"),
    "Q2_K": ("Q2_K", None),
    "Q2_K, table IQ4_NL": ("Q2_K", "IQ4_NL"),
    "Q2_0, table IQ4_NL": ("Q2_0", "IQ4_NL"),
    "Q2_0, table too": ("Q2_0", "Q2_0"),
}
READ_AS = {"Q2_0": "F16"}  # for perplexity
DENSE = "torch, float32"
PARTS = {  # of a layer, in transformers and in llama.cpp
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def importance(windows: Tensor) -> dict[str, Tensor]:
    """What llama.cpp calls importance matrix: tensor's name there -> (in_features,)."""
    model, _ = load_language_model()
    found = {}
    for name, norms in collect_norms(model.model, windows.split(4)).items():
        _, layer, part = name.split(".", 2)
        found[f"blk.{layer}.{PARTS[part]}.weight"] = norms.square() / windows.numel()
    return found


def quantize(path: Path, out: Path, kind: str, table: str | None, squares: dict) -> None:
    """Let llama.cpp write `out`, whose tensors are of the type `kind`, or what that falls back to.

    Raises:
        RuntimeError: llama.cpp refuses.
    """
    import llama_cpp

    # It would print a line for each tensor.
    logging.getLogger("llama-cpp-python").setLevel(logging.CRITICAL)
    rows = [(name.encode(), (ctypes.c_float * len(x))(*x.tolist())) for name, x in squares.items()]
    entries = (llama_cpp.llama_cpp.llama_model_imatrix_data * (len(rows) + 1))()  # the last is null
    for entry, (name, values) in zip(entries, rows, strict=False):
        entry.name, entry.size = name, len(values)
        entry.data = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
    options = llama_cpp.llama_model_quantize_default_params()
    options.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    options.allow_requantize = True  # from 4 bits: all others start there, too
    options.imatrix = entries
    if table:
        kinds = getattr(llama_cpp, f"GGML_TYPE_{table}")
        options.token_embedding_type = options.output_tensor_type = kinds
    if llama_cpp.llama_model_quantize(str(path).encode(), str(out).encode(), options):
        raise RuntimeError(f"llama.cpp could not make {kind} of {path}")


class LlamaCpp:
    """A model that llama.cpp runs, called as those of transformers are."""

    def __init__(self, path: Path):
        from llama_cpp import Llama

        threads = torch.get_num_threads()
        self.model = Llama(
            str(path),
            n_ctx=WINDOW,
            n_batch=WINDOW,
            n_threads=threads,
            n_threads_batch=threads,
            logits_all=True,
            verbose=False,
        )

    def __call__(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=torch.stack([self.read(row) for row in input_ids]))

    def read(self, ids: Tensor) -> Tensor:
        self.model.reset()
        self.model.eval(ids.tolist())
        return torch.from_numpy(self.model.scores[: len(ids)].copy())

    def write(self, count: int = TOKENS) -> None:
        """One text, from one token on, always the likeliest, as `write_tokens` does."""
        self.model.reset()
        token = 0
        for i in range(count):
            self.model.eval([token])
            token = int(self.model.scores[i].argmax())


def measure(folder: Path) -> list[dict]:
    """Of every type and of the whole model in torch, by `name`: `bytes`, perplexity on `validation`
    and `test`, `tokens` a second, and the `speedup` beside torch.

    Raises:
        ModuleNotFoundError: llama-cpp-python is missing; says how to install it.
    """
    if find_spec("llama_cpp") is None:
        raise ModuleNotFoundError(
            "llama-cpp-python is missing: `make .venv/bench` installs it, where there is a C++ "
            "compiler; then run `.venv/bench/bin/python -m compresslab.recipes.together_llama`"
        )
    source = fetch("smollm2") / GGUF
    squares = importance(articles("calibration", CALIBRATION_WINDOWS))
    paths = {"as it comes, Q4_1": source}
    for name, (kind, table) in TYPES.items():
        paths[name] = folder / f"{name}.gguf"
        quantize(source, paths[name], kind, table, squares)
    models = {name: LlamaCpp(path) for name, path in paths.items()}
    dense, _ = load_language_model()
    calls = {name: model.write for name, model in models.items()}
    calls[DENSE] = lambda: write_tokens(dense)
    times = compare_latency(calls, baseline=DENSE, rounds=7, seconds=0.5)
    readers = models | {DENSE: dense}
    for name, (kind, _) in TYPES.items():
        if kind in READ_AS:
            quantize(paths[name], folder / f"{name}, read.gguf", READ_AS[kind], None, {})
            readers[name] = LlamaCpp(folder / f"{name}, read.gguf")
    words = source.stat().st_size - sum(t.data.numel() for t in read_gguf(source).tensors.values())
    sizes = {name: path.stat().st_size - words for name, path in paths.items()}
    sizes[DENSE] = bytes_on_disk(dense)
    return [
        {
            "name": name,
            "bytes": sizes[name],
            "tokens": 1000 * TOKENS / times[name].milliseconds,
            "speedup": vars(times[name].speedup),
        }
        | {
            split: vars(perplexity(model, articles(split, EVALUATION_WINDOWS)))
            for split in ("validation", "test")
        }
        for name, model in readers.items()
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found = measure(Path(folder))
    for each in found:
        print(json.dumps(each))
    figures = {
        "version": version("llama-cpp-python"),
        "windows": EVALUATION_WINDOWS,
        "calibration_tokens": articles("calibration", CALIBRATION_WINDOWS).numel(),
        "types": found,
    }
    print(record("together_llama", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
