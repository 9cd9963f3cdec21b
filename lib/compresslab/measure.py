"""Honest measures: parameters, bytes on disk, FLOPs, latency, memory, accuracy, perplexity.

    hits = correct_answers(model, reviews["test"], tokenizer)
    print(f"{accuracy(hits):.1%}")                          87.1% (85.5% to 88.5%)
    print(compare_accuracy(hits, other_hits))               paired, on the same sentences

    compare_latency({"dense": f, "pruned": g}, baseline="dense")["pruned"].speedup

Every estimate has a 95 % interval. No function here prints.
"""

import gc
import math
import random
import statistics
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from datasets import Dataset
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import PreTrainedTokenizerBase

from . import storage
from .training import TextBatches

Z = statistics.NormalDist().inv_cdf(0.975)
aten = torch.ops.aten


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval."""

    value: float
    low: float
    high: float

    def __format__(self, spec: str) -> str:
        return f"{self.value:{spec}} ({self.low:{spec}} to {self.high:{spec}})"

    def __str__(self) -> str:
        return f"{self:.3g}"


def points(difference: Estimate | Mapping[str, float]) -> str:
    """A difference of two fractions in percentage points, "-1.8 (-3.3 to -0.4)", for tables; one
    that a recipe recorded is a mapping."""
    ends = difference if isinstance(difference, Mapping) else vars(difference)
    return f"{Estimate(*(100 * ends[end] for end in ('value', 'low', 'high'))):+.1f}"


# ---------------------------------------------------------------- size


def count_parameters(model: nn.Module) -> int:
    """Weights of `model`; a tensor that several layers share counts once."""
    return sum(p.numel() for p in model.parameters())


def count_nonzero(model: nn.Module) -> int:
    """Weights of `model` that are not exactly zero; shared tensors count once."""
    return sum(int(p.count_nonzero()) for p in model.parameters())


def bytes_on_disk(model: nn.Module, *, encoding: storage.Encoding = "dense") -> int:
    """Size of the file that `storage.save` really writes for `model`, header included.

    Args:
        encoding: as in `storage.save`: "smallest" is what one would use for a sparse model.
    """
    with tempfile.TemporaryDirectory() as folder:
        return storage.save(model, Path(folder) / "model.safetensors", encoding=encoding)


# ---------------------------------------------------------------- work


def count_flops(call: Callable[[], object]) -> int:
    """Floating-point operations of the matrix products that `call()` runs, forward only.

    A multiplication and an addition count as two. Counted: linear layers, matrix products and
    scaled dot-product attention (in full, also under a causal mask). Not counted: everything
    whose cost does not grow with a product of two sizes (norms, activations, softmax).
    """
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it would hide the products of nn.Transformer
    try:
        with _FlopCounter() as counter, torch.no_grad():
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return counter.flops


class _Operations(TorchDispatchMode):
    """Shows every operation to `see`, taking apart those that inference mode hands over whole."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        with self:
            out = func.decompose(*args, **kwargs)
        if out is NotImplemented:
            out = func(*args, **kwargs)
            self.see(func, args, kwargs, out)
        return out


class _FlopCounter(_Operations):
    PRODUCTS = frozenset({aten.mm, aten.bmm, aten.mv, aten.dot})
    SUMS_OF_PRODUCTS = frozenset({aten.addmm, aten.baddbmm, aten.addmv})
    ATTENTION = frozenset(
        {
            aten._scaled_dot_product_flash_attention_for_cpu,
            aten._scaled_dot_product_flash_attention,
            aten._scaled_dot_product_efficient_attention,
            aten._scaled_dot_product_cudnn_attention,
        }
    )

    def __init__(self):
        super().__init__()
        self.flops = 0

    def see(self, func, args, kwargs, out):
        if func.overloadpacket in self.PRODUCTS:
            self.flops += 2 * out.numel() * args[0].shape[-1]
        elif func.overloadpacket in self.SUMS_OF_PRODUCTS:
            self.flops += 2 * out.numel() * args[1].shape[-1]
        elif func.overloadpacket in self.ATTENTION:
            query, key, value = args[:3]
            pairs = query.shape[:-1].numel() * key.shape[-2]  # batch · heads · time · time
            self.flops += 2 * pairs * (query.shape[-1] + value.shape[-1])


# ---------------------------------------------------------------- time


@dataclass(frozen=True)
class Latency:
    """How fast a candidate is: `speedup` over the baseline (above 1 is faster), median time a
    call in milliseconds, and the number of threads it was measured with."""

    speedup: Estimate
    milliseconds: float
    threads: int


def compare_latency(
    candidates: dict[str, Callable[[], object]],
    *,
    baseline: str,
    rounds: int = 21,
    seconds: float = 0.02,
    seed: int = 0,
) -> dict[str, Latency]:
    """Time candidates against each other, paired: every round runs them all, in a new order.

    A machine that slows down for a while slows a whole round, and the ratio within the round
    hardly moves. The speed-up is the median of the rounds' ratios, its interval the exact
    distribution-free one for a median.

    Args:
        candidates: functions without arguments.
        baseline: the candidate that the others are compared with.
        rounds: at least 6, below which no 95 % interval for a median exists.
        seconds: a candidate is called as often in a round as this takes, at least once.

    Raises:
        ValueError: unknown baseline, or too few rounds.
    """
    if baseline not in candidates:
        raise ValueError(f"baseline {baseline!r} is not among {', '.join(candidates)}")
    if rounds < 6:
        raise ValueError(f"rounds must be at least 6, not {rounds}")
    with torch.inference_mode():
        repeats = {name: _repeats(call, seconds) for name, call in candidates.items()}
        times = {name: [] for name in candidates}
        order = list(candidates)
        generator = random.Random(seed)
        gc.collect()
        collects = gc.isenabled()
        gc.disable()
        try:
            for _ in range(rounds):
                generator.shuffle(order)
                for name in order:
                    times[name].append(_time(candidates[name], repeats[name]))
        finally:
            if collects:
                gc.enable()
    return {
        name: Latency(
            speedup=median_interval([b / t for b, t in zip(times[baseline], own, strict=True)]),
            milliseconds=1000 * statistics.median(own),
            threads=torch.get_num_threads(),
        )
        for name, own in times.items()
    }


def _time(call: Callable[[], object], repeats: int) -> float:
    _synchronize()
    start = time.perf_counter()
    for _ in range(repeats):
        call()
    _synchronize()
    return (time.perf_counter() - start) / repeats


def _repeats(call: Callable[[], object], seconds: float) -> int:
    _time(call, 1)  # the first call compiles, allocates and fills caches
    return max(1, round(seconds / _time(call, 1)))


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_interval(values: list[float]) -> Estimate:
    """Median of at least 6 values; the interval's ends are order statistics, and no shape of the
    distribution is assumed.
    """
    n, values = len(values), sorted(values)
    # The largest k for which fewer than k of n values fall below the true median with at most
    # 2.5 % probability: the interval runs from the k-th smallest to the k-th largest.
    k, tail = 0, 1  # tail counts outcomes out of 2ⁿ
    while 40 * tail <= 2**n:
        k += 1
        tail += math.comb(n, k)
    if k == 0:
        raise ValueError(f"a 95 % interval for a median needs 6 values, not {n}")
    return Estimate(statistics.median(values), values[k - 1], values[n - k])


# ---------------------------------------------------------------- memory


def peak_memory(call: Callable[[], object], *, device: str | torch.device = "cpu") -> int:
    """Bytes of tensors that were alive at once, at most, among those made while `call()` ran.

    What existed before (weights, inputs) is not counted. On a GPU this is the allocator's own
    peak. On a CPU it is the sum of live tensor storages: the same on every machine, but without
    the scratch memory inside an operation and without the interpreter.

    Args:
        device: on which `call` computes.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _LiveStorages() as tracker:
        call()
    return tracker.peak


def saved_for_backward(model: nn.Module, call: Callable[[], object]) -> int:
    """Bytes of tensors that autograd keeps while `call()` runs, `model`'s weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def see(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(see, lambda t: t):
        result = call()  # held until here, so that no storage's place is used twice
    del result
    return sum(kept.values())


class _LiveStorages(_Operations):
    def __init__(self):
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def see(self, func, args, kwargs, out):
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if _is_tensor(t)}
        if func is aten.lift_fresh.default:  # torch.tensor: the storage is new
            given = set()
        for tensor in tree_leaves(out):
            if _is_tensor(tensor):
                key = id(tensor.untyped_storage())
                if key not in given and key not in self.live:
                    self._follow(tensor.untyped_storage())

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = id(storage)
        self.live[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self.now -= self.live.pop(key)


def _is_tensor(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.layout == torch.strided


# ---------------------------------------------------------------- quality


def predict(
    model: nn.Module, batches: TextBatches, *, device: str | torch.device = "cpu"
) -> Tensor:
    """Logits (sentences, labels) in float32 on the CPU, in the order of the dataset.

    Raises:
        ValueError: `batches` is shuffled.
    """
    if batches.shuffle:
        raise ValueError("batches must not be shuffled: predictions would lose their order")
    with torch.inference_mode():
        rows = [
            model(
                input_ids=batch["input_ids"].to(device),
                attention_mask=batch["attention_mask"].to(device),
            )
            .logits.float()
            .cpu()
            for batch in batches
        ]
    logits = torch.cat(rows)
    ordered = torch.empty_like(logits)
    ordered[torch.tensor(batches.index)] = logits
    return ordered


def correct_answers(
    model: nn.Module,
    data: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    *,
    batch_size: int = 32,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Whether the most likely label is the right one: bool (sentences,)."""
    batches = TextBatches(data, tokenizer, batch_size=batch_size)
    return predict(model, batches, device=device).argmax(-1) == torch.tensor(list(data["label"]))


def accuracy(correct: Tensor) -> Estimate:
    """Fraction of `correct` (bool, one a sentence) with the Wilson score interval.

    Source: Wilson (1927), Journal of the American Statistical Association 22, 209-212.
    """
    n, p = correct.numel(), correct.float().mean().item()
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    return Estimate(p, max(0.0, centre - half), min(1.0, centre + half))


@dataclass(frozen=True)
class Comparison:
    """Two classifiers on the same sentences: accuracy of the second minus that of the first, how
    many sentences only the one or the other has right, and the exact McNemar p-value."""

    difference: Estimate
    only_first: int
    only_second: int
    p_value: float

    def __str__(self) -> str:
        d = self.difference
        return (
            f"{100 * d.value:+.1f} points ({100 * d.low:+.1f} to {100 * d.high:+.1f}), "
            f"p = {self.p_value:.2g}"
        )


def compare_accuracy(first: Tensor, second: Tensor) -> Comparison:
    """Paired test of two classifiers: only sentences on which they differ carry information.

    The p-value is McNemar's (1947), exact; the interval is Wald's with half a count added to
    each cell (Agresti and Min, 2005, Statistics in Medicine 24, 729-740).

    Args:
        first, second: bool (sentences,), right or wrong, in the same order.

    Raises:
        ValueError: shapes differ.
    """
    if first.shape != second.shape:
        raise ValueError(f"shapes differ: {tuple(first.shape)} and {tuple(second.shape)}")
    only_first = int((first & ~second).sum())
    only_second = int((second & ~first).sum())
    n = first.numel() + 2
    b, c = only_first + 0.5, only_second + 0.5
    centre, half = (c - b) / n, Z * math.sqrt(b + c - (c - b) ** 2 / n) / n
    difference = (only_second - only_first) / first.numel()
    differ = only_first + only_second
    tail = sum(math.comb(differ, i) for i in range(min(only_first, only_second) + 1)) / 2**differ
    return Comparison(
        Estimate(difference, centre - half, centre + half),
        only_first,
        only_second,
        min(1.0, 2 * tail),
    )


def perplexity(model: nn.Module, windows: Tensor, *, batch_size: int = 4) -> Estimate:
    """Exponential of the mean negative log-likelihood of each window's tokens but the first.

    Args:
        windows: token numbers (windows, time), every window judged on its own; on the model's
            device. `corpora.token_windows` makes them.

    The interval takes the windows as independent.

    Raises:
        ValueError: fewer than two windows, or windows of one token.
    """
    if windows.ndim != 2 or windows.shape[0] < 2 or windows.shape[1] < 2:
        raise ValueError(f"windows must be (2 or more, 2 or more), not {tuple(windows.shape)}")
    losses = []
    with torch.inference_mode():
        for batch in windows.split(batch_size):
            logits = model(input_ids=batch).logits[:, :-1].float()
            loss = F.cross_entropy(logits.transpose(1, 2), batch[:, 1:], reduction="none")
            losses.append(loss.mean(1))
    losses = torch.cat(losses)
    mean, error = losses.mean().item(), (losses.std() / math.sqrt(len(losses))).item()
    return Estimate(math.exp(mean), math.exp(mean - Z * error), math.exp(mean + Z * error))
