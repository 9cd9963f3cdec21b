"""The capstone beside its peers: torch, torchao, ONNX Runtime, OpenVINO with NNCF, torch-pruning.

    make .venv/bench
    .venv/bench/bin/python -m compresslab.recipes.together_peers

Every peer gets the classifier and our student, and does what its own documentation advises for a
BERT on a processor (see its function). In one process, each result is written as a user would ship
it; measured are its bytes, its answers on validation and test, and the time for 32 sentences, one
by one and at once, with one thread and with all, in rounds with the float32 classifier.

Nobody's vocabulary counts: peers leave it to a file of its own, and its part of our file is taken
off. `zipped` is the size after deflate, since our file is compressed and theirs are not. A peer
that fails is named with its reason, and one that is far too slow is timed in a single call. The
peers are not in the course's environment, since transformers imports some of them: `make bench`
installs them in .venv/bench, and prints the same figures. What torch-pruning leaves is trained by
`together_pruned` before. About 45 minutes on two cores, which must be idle.
"""

import copy
import itertools
import logging
import shutil
import tempfile
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from .. import storage
from ..corpora import load_reviews
from ..export import export, load, sections
from ..inference import Logits, trace
from ..layers import bert_layers
from ..measure import accuracy, compare_accuracy, compare_latency, correct_answers
from ..models import load_classifier
from ..scoreboard import BATCH_SIZES, correct_of, pack_bits, runner
from ..training import TextBatches
from . import launch, record, together_capstone, together_pruned, together_student
from .quantization_latency import TOO_SLOW, onnx_session, seconds
from .tuning import SEED

SENTENCES = 300  # of the training split, that ranges are collected from
SPLITS = ("validation", "test")
GROUP = 32  # weights that share a scale, where there are 4 bits
EIGHT = (7, 8)  # bits of our linear layers and tables: 8, but for sums in 16 bits
PACKAGES = {  # module -> distribution
    "nncf": "nncf",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "torch_pruning": "torch-pruning",
    "torchao": "torchao",
}
DENSE = ("torch, float32", "classifier")
Start = Callable[[], Callable]  # gives what is called as the classifier is, for torch's threads


@dataclass(frozen=True)
class Source:
    """What a peer is given: a classifier in float32, and a folder for what several peers need."""

    name: str
    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    scratch: Path

    def inputs(self) -> Iterator[dict[str, Tensor]]:
        """Sentences to collect ranges from, one a batch, so that there is no padding."""
        train = load_reviews()["train"].select(range(SENTENCES))
        for batch in TextBatches(train, self.tokenizer, batch_size=1):
            yield {name: batch[name] for name in ("input_ids", "attention_mask")}

    def arrays(self) -> Iterator[dict]:
        for batch in self.inputs():
            yield {name: tensor.numpy() for name, tensor in batch.items()}


# ---------------------------------------------------------------- the peers
# Each writes to `folder` what is shipped, and gives back how that is started.


def torch_float(source: Source, folder: Path) -> Start:
    storage.save(source.model, folder / "model.safetensors")
    return lambda: source.model


def torch_int8(source: Source, folder: Path, *, table: bool = False) -> Start:
    """torch.ao.quantization, dynamic, a scale a row: linear layers, and the table of tokens if
    wanted; recorded once, as ours is.

    Not the tables of positions and types: its int8 table refuses indices that are no array of
    their own, as those are. Not in 4 bits: torch 2.13 looks such a table up as if it had 8.
    """
    kinds = torch.ao.quantization
    of_tokens = {
        name: kinds.float_qparams_weight_only_qconfig
        for name, module in source.model.named_modules()
        if table and isinstance(module, nn.Embedding) and "word_embeddings" in name
    }
    model = kinds.quantize_dynamic(
        copy.deepcopy(source.model), {nn.Linear: kinds.per_channel_dynamic_qconfig} | of_tokens
    )
    torch.save(model.state_dict(), folder / "model.pt")
    batch = next(iter(TextBatches(load_reviews()["train"].select(range(2)), source.tokenizer)))
    inputs = batch["input_ids"], batch["attention_mask"]
    with torch.no_grad():  # of two lengths: without padding, there would be no mask
        traced = torch.jit.trace(Logits(model).eval(), inputs)
    return lambda: lambda **inputs: SimpleNamespace(logits=traced(*inputs.values()))


def torchao_int8(source: Source, folder: Path, *, inputs: bool) -> Start:
    """Int8 weights and tables, with int8 inputs if wanted, compiled as torchao advises.

    Not in 4 bits: none of torchao 0.18's packed formats has a kernel in the wheel for x86. Not by
    export and its quantizer for x86, which is another road to the same operators.
    """
    import torch._inductor.config
    import torchao.quantization as ao

    config = ao.Int8WeightOnlyConfig()
    if inputs:
        vnni = torch.cpu._is_vnni_supported()
        config = ao.Int8DynamicActivationInt8WeightConfig(reduce_range=not vnni)
    model = copy.deepcopy(source.model)
    ao.quantize_(model, config)
    ao.quantize_(
        model,
        ao.IntxWeightOnlyConfig(torch.int8, ao.PerAxis(0)),
        filter_fn=lambda module, name: isinstance(module, nn.Embedding),
    )
    torch.save(model.state_dict(), folder / "model.pt")

    def start() -> Callable:
        # Compiled code is made for a number of threads, and a model counts as one more version of
        # the same function, of which there may be so many before torch gives up silently.
        torch._dynamo.config.recompile_limit = 64
        torch._inductor.config.freezing = True  # weights are constants: else none is packed
        torch._inductor.config.cpp.threads = torch.get_num_threads()
        torch._dynamo.reset()
        return torch.compile(copy.deepcopy(model), dynamic=True)

    return start


def onnx_graph(source: Source) -> Path:
    """The graph, by torch's older exporter and from eager attention: there ONNX Runtime's optimizer
    finds the attention of transformers 5, and nowhere else.
    """
    path = source.scratch / "graph.onnx"
    if not path.exists():
        model, ids = copy.deepcopy(source.model), torch.randint(1000, (2, 16))
        model.config._attn_implementation = "eager"
        mask = torch.ones(2, 16, dtype=torch.int64)
        mask[1, 8:] = 0  # without padding, the graph would have no mask
        names = ["input_ids", "attention_mask"]
        torch.onnx.export(
            Logits(model).eval(),
            (ids, mask),
            path,
            dynamo=False,
            input_names=names,
            dynamic_axes={name: {0: "batch", 1: "time"} for name in names},
        )
    return path


def onnx_fused(source: Source, *, apart: bool = False) -> Path:
    """The graph after ONNX Runtime's optimizer for transformers: one operator for attention, and
    one each around GELU and LayerNorm.

    Args:
        apart: queries, keys and values are not made inside of the operator, but before it, and
            tables are looked up by operators of their own.
    """
    from onnxruntime.transformers import fusion_options, optimizer

    path = source.scratch / ("apart.onnx" if apart else "fused.onnx")
    if not path.exists():
        layers = [layer.attention.self for layer in bert_layers(source.model)]
        options = fusion_options.FusionOptions("bert")
        options.use_multi_head_attention = apart
        options.enable_embed_layer_norm = not apart
        fused = optimizer.optimize_model(
            str(onnx_graph(source)),
            num_heads=layers[0].num_attention_heads,
            hidden_size=layers[0].all_head_size,
            optimization_options=options,
            opt_level=0,
        )
        nodes = fused.get_nodes_by_op_type("MultiHeadAttention" if apart else "Attention")
        if len(nodes) != len(layers):
            raise ValueError(f"attention was found in {len(nodes)} of {len(layers)} layers")
        # It takes all layers to have as many heads as the first.
        for node, layer in zip(nodes, layers, strict=True):
            (heads,) = (a for a in node.attribute if a.name == "num_heads")
            heads.i = layer.num_attention_heads
        fused.save_model_to_file(str(path))
    return path


def onnx_float(source: Source, folder: Path) -> Start:
    path = shutil.copy(onnx_fused(source), folder / "model.onnx")
    return lambda: onnx_session(path)


def onnx_dynamic(source: Source, folder: Path) -> Start:
    """What ONNX Runtime advises for transformers: the optimizer, then int8 weights and inputs."""
    from onnx import TensorProto
    from onnxruntime.quantization import QuantType, quantize_dynamic

    path = folder / "model.onnx"
    quantize_dynamic(
        onnx_fused(source),
        path,
        per_channel=True,
        weight_type=QuantType.QInt8,
        reduce_range=not torch.cpu._is_vnni_supported(),  # else 16-bit sums are cut off
        extra_options={"DefaultTensorType": TensorProto.FLOAT},  # behind operators of its own
    )
    return lambda: onnx_session(path)


def onnx_static(source: Source, folder: Path) -> Start:
    """Int8 with ranges that are collected before: of matrix products and tables. With all operators
    the mask would be quantized too, by ranges from sentences without padding, and let padding in.
    It cannot quantize the optimizer's graph.
    """
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.left = source.arrays()

        def get_next(self):
            return next(self.left, None)

    ready, path = source.scratch / "ready.onnx", folder / "model.onnx"
    quant_pre_process(onnx_graph(source), ready, skip_symbolic_shape=True)
    quantization.quantize_static(
        ready,
        path,
        Reader(),
        op_types_to_quantize=["MatMul", "Gemm", "Gather"],
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        reduce_range=not torch.cpu._is_vnni_supported(),
    )
    return lambda: onnx_session(path)


def onnx_4bit(source: Source, folder: Path) -> Start:
    """Weights and tables in 4 bits, 8 for the products. It cannot do so inside the optimizer's
    attention: queries, keys and values are made apart.
    """
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    graph = ONNXModel(onnx.load(onnx_fused(source, apart=True)))
    graph.replace_gemm_with_matmul()  # it knows no other products
    quantizer = MatMulNBitsQuantizer(
        graph.model,
        bits=4,
        block_size=GROUP,
        accuracy_level=4,
        op_types_to_quantize=("MatMul", "Gather"),
    )
    quantizer.process()
    path = folder / "model.onnx"
    quantizer.model.save_model_to_file(str(path), False)
    return lambda: onnx_session(path)


def openvino_file(source: Source, folder: Path, *, kind: str = "float16") -> Start:
    """OpenVINO's own file, after NNCF: "8 bit" and "4 bit" for weights, "static" for inputs too.

    4 bits with AWQ and estimated scales, both with the calibration sentences. The file has
    float16 for all that is not quantized, as is its default; arithmetic is in float32.
    """
    import nncf
    import openvino

    sizes = [-1, -1]
    model = openvino.convert_model(
        Logits(source.model).eval(),
        example_input=next(source.inputs()),
        input=[(name, sizes, openvino.Type.i64) for name in ("input_ids", "attention_mask")],
    )
    data = nncf.Dataset(list(source.arrays()))
    if kind == "8 bit":
        model = nncf.compress_weights(model)
    elif kind == "4 bit":
        model = nncf.compress_weights(
            model,
            mode=nncf.CompressWeightsMode.INT4_ASYM,
            group_size=GROUP,
            all_layers=True,
            dataset=data,
            awq=True,
            scale_estimation=True,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=nncf.GroupSizeFallbackMode.ADJUST
            ),
        )
    elif kind == "static":
        model = nncf.quantize(
            model,
            data,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=SENTENCES,
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                # As with the others: in 7 bits, where sums have 16.
                overflow_fix=nncf.OverflowFix.DISABLE
                if torch.cpu._is_vnni_supported()
                else nncf.OverflowFix.ENABLE
            ),
        )
    path = folder / "model.xml"
    openvino.save_model(model, path)
    return lambda: openvino_session(path)


def openvino_session(path: Path) -> Callable:
    import openvino

    options = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(path, "CPU", options)

    def run(input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        feed = {"input_ids": input_ids.numpy(), "attention_mask": attention_mask.numpy()}
        return SimpleNamespace(logits=torch.tensor(compiled(feed)[0]))

    return run


def torch_pruned(source: Source, folder: Path) -> Start:
    """What torch-pruning left, tuned by `together_pruned`; shipped in float16, run in float32."""
    model, _ = load(together_pruned.path(source.name))
    storage.save(copy.deepcopy(model).half(), folder / "model.safetensors")
    return lambda: model


def torch_pruned_int8(source: Source, folder: Path) -> Start:
    """The same, then through ONNX Runtime as above."""
    model, _ = load(together_pruned.path(source.name))
    (scratch := source.scratch / "pruned").mkdir()
    return onnx_dynamic(replace(source, model=model, scratch=scratch), folder)


PEERS = {
    "torch, float32": torch_float,
    "torch, int8 dynamic": torch_int8,
    "torch, int8 dynamic, int8 table": partial(torch_int8, table=True),
    "torchao, int8 dynamic": partial(torchao_int8, inputs=True),
    "torchao, int8 weights": partial(torchao_int8, inputs=False),
    "ONNX Runtime, float32": onnx_float,
    "ONNX Runtime, int8 dynamic": onnx_dynamic,
    "ONNX Runtime, int8 static": onnx_static,
    "ONNX Runtime, 4-bit weights": onnx_4bit,
    "OpenVINO, float16": openvino_file,
    "OpenVINO, int8 static": partial(openvino_file, kind="static"),
    "OpenVINO, int8 weights": partial(openvino_file, kind="8 bit"),
    "OpenVINO, 4-bit weights": partial(openvino_file, kind="4 bit"),
    "torch-pruning": torch_pruned,
    "torch-pruning, ONNX Runtime int8": torch_pruned_int8,
}


# ---------------------------------------------------------------- ours


def our_float(source: Source, folder: Path) -> Start:
    model, _ = load(shutil.copy(together_student.PATH, folder))
    return lambda: model


def our_capstone(source: Source, folder: Path) -> Start:
    model, _ = load(shutil.copy(together_capstone.PATH, folder))
    return lambda: trace(model)


def our_int8(source: Source, folder: Path) -> Start:
    path = folder / "model.clab"
    export(together_capstone.compressed(source.model, *EIGHT), source.tokenizer, path)
    model, _ = load(path)
    return lambda: trace(model)


OURS = {
    "classifier": {"ours, int8": our_int8},
    "student": {
        "ours, float16": our_float,
        "ours, int8": our_int8,
        "ours, capstone": our_capstone,
    },
}


# ---------------------------------------------------------------- measuring


def check_installed() -> None:
    """Raises ModuleNotFoundError, and says how to install it, if a peer is missing."""
    missing = [name for module, name in PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise ModuleNotFoundError(
            f"{', '.join(missing)} missing: `make .venv/bench` installs them; then run "
            "`.venv/bench/bin/python -m compresslab.recipes.together_peers`"
        )


def sources(folder: Path) -> list[Source]:
    """The classifier and our student, each with an empty folder."""
    found = []
    for name, (model, tokenizer) in {
        "classifier": load_classifier(),
        "student": load(together_student.PATH),
    }.items():
        (scratch := folder / f"for {name}").mkdir()
        found.append(Source(name, model, tokenizer, scratch))
    return found


def shipped(folder: Path) -> dict[str, int]:
    """Bytes of all files in `folder`, as they are and `zipped`, without our files' vocabularies."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    size, small = sum(path.stat().st_size for path in files), 0
    for path in files:
        deflate = zlib.compressobj(9)
        small += len(deflate.compress(path.read_bytes())) + len(deflate.flush())
    words = sum(sections(path)["vocabulary"] for path in files if path.suffix == ".clab")
    return {"bytes": size - words, "zipped": small - words}


def prepare(make: Callable, source: Source, folder: Path) -> Start | str:
    """How the candidate is started, or why it cannot be; what it prints is dropped."""
    folder.mkdir(parents=True)
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            start = make(source, folder)
            batch = next(source.inputs())
            with torch.inference_mode():
                start()(**batch)
        return start
    except Exception as error:  # whatever a peer raises is its reason
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"


def answer(model: Callable, source: Source, reviews: dict, correct: dict | None) -> dict:
    """By split the accuracy, and which answers are right, as in a row of the scoreboard; and the
    difference to the float32 classifier, whose answers were `correct`.
    """
    found = {}
    for split in SPLITS:
        hits = correct_answers(model, reviews[split], source.tokenizer)
        found[split] = {"accuracy": vars(accuracy(hits)), "correct": pack_bits(hits)}
        found[split]["sentences"] = len(hits)
        if correct is not None:
            found[split]["difference"] = vars(compare_accuracy(correct[split], hits).difference)
    return found


def timed(calls: dict, *, baseline) -> dict:
    """Latency of each as a dictionary: in rounds, or of a single call, which is then `once`, if it
    takes more than `TOO_SLOW` times as long as the baseline.
    """
    first = {}
    for name, call in calls.items():
        seconds(call)
        first[name] = seconds(call)
    fast = {n: call for n, call in calls.items() if first[n] <= TOO_SLOW * first[baseline]}
    # Long enough that what the one before left behind, in caches and waiting threads, is little.
    latencies = compare_latency(fast, baseline=baseline, seconds=0.1)
    found = {n: asdict(latency) for n, latency in latencies.items()}
    for name in calls.keys() - fast.keys():
        ratio = first[baseline] / first[name]
        found[name] = {
            "speedup": {"value": ratio, "low": ratio, "high": ratio},
            "milliseconds": 1000 * first[name],
            "threads": torch.get_num_threads(),
            "once": True,
        }
    return found


def measure(folder: Path) -> list[dict]:
    """Every peer and ours, of both sources, with an empty `folder` for all files.

    Returns:
        dictionaries with `name`, `source`, whether it is `ours`, and either the `reason` why there
        is no more, or `bytes`, `zipped`, what `answer` found for `validation` and `test`, and
        `latency`, by threads and then by batch size: of the first 32 sentences of test.
    """
    check_installed()
    reviews = load_reviews()
    found, starts, batches = {}, {}, {}
    for source in sources(folder):
        for size in BATCH_SIZES:
            few = TextBatches(reviews["test"].select(range(32)), source.tokenizer, batch_size=size)
            batches[source.name, size] = list(few)
        for name, make in (PEERS | OURS[source.name]).items():
            key, place = (name, source.name), folder / f"{source.name} {name}"
            found[key] = {"name": name, "source": source.name, "ours": name in OURS[source.name]}
            start = prepare(make, source, place)
            if isinstance(start, str):
                found[key]["reason"] = start
            else:
                starts[key] = source, start
                found[key] |= shipped(place)
    threads = torch.get_num_threads()
    try:
        for number in sorted({1, threads}):
            torch.set_num_threads(number)
            running = {key: start() for key, (_, start) in starts.items()}
            for size in BATCH_SIZES:
                calls = {
                    key: runner(model, batches[key[1], size]) for key, model in running.items()
                }
                for key, latency in timed(calls, baseline=DENSE).items():
                    by_threads = found[key].setdefault("latency", {})
                    by_threads.setdefault(str(number), {})[str(size)] = latency
    finally:
        torch.set_num_threads(threads)
    correct = None
    for key, model in running.items():
        found[key] |= answer(model, starts[key][0], reviews, correct)
        if key == DENSE:
            correct = {split: correct_of(found[key][split]) for split in SPLITS}
    return list(found.values())


def costs(candidate: dict) -> dict[str, float]:
    """Everything of which less is better: bytes, zipped bytes, and milliseconds of each timing."""
    latency = {
        f"batch {size}, threads {threads}": each["milliseconds"]
        for threads, by_size in candidate["latency"].items()
        for size, each in by_size.items()
    }
    return {"bytes": candidate["bytes"], "zipped": candidate["zipped"]} | latency


def dominated(candidates: list[dict], *, split: str = "test") -> list[dict]:
    """Where a peer is at least as accurate as one of ours at no more of a cost, and better in one
    of the two: names of both, the cost, and the peer's accuracy less ours, with its interval.
    """
    measured = [candidate for candidate in candidates if "reason" not in candidate]
    found = []
    for mine, peer in itertools.product(measured, measured):
        if not mine["ours"] or peer["ours"]:
            continue
        hits = [correct_of(candidate[split]) for candidate in (mine, peer)]
        right = [int(h.sum()) for h in hits]
        theirs = costs(peer)
        for cost, own in costs(mine).items():
            beaten = right[1] >= right[0] and theirs[cost] <= own
            if beaten and (right[1] > right[0] or theirs[cost] < own):
                found.append(
                    {
                        "ours": f"{mine['name']}, {mine['source']}",
                        "peer": f"{peer['name']}, {peer['source']}",
                        "cost": cost,
                        "difference": vars(compare_accuracy(*hits).difference),
                    }
                )
    return found


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    for name in together_pruned.FRACTIONS:
        together_pruned.path(name)  # raises, for nothing is recorded without
    with tempfile.TemporaryDirectory() as folder:
        candidates = measure(Path(folder))
    for each in candidates:
        if "reason" in each:
            print(f"{each['name']}, {each['source']}: not measured: {each['reason']}")
    figures = {
        "versions": {name: version(name) for name in PACKAGES.values()},
        "vnni": torch.cpu._is_vnni_supported(),
        "sentences": SENTENCES,
        "candidates": candidates,
        "dominated": {split: dominated(candidates, split=split) for split in SPLITS},
    }
    print(record("together_peers", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
