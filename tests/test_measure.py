import copy
import gc
import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import small
import torch
from datasets import Dataset
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compresslab import measure, storage
from compresslab.measure import (
    Estimate,
    accuracy,
    bytes_on_disk,
    compare_accuracy,
    compare_latency,
    correct_answers,
    count_flops,
    count_nonzero,
    count_parameters,
    median_interval,
    peak_memory,
    perplexity,
    points,
    predict,
)
from compresslab.models import load_classifier, load_language_model
from compresslab.training import TextBatches


@pytest.fixture(scope="module")
def classifier():
    return load_classifier(adapter=None)


@pytest.fixture(scope="module")
def language_model():
    return load_language_model()


@pytest.fixture(scope="module")
def tiny_llama():
    return small.llama(hidden_size=16, intermediate_size=24, initializer_range=0.5)


# ---------------------------------------------------------------- size


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20)
        self.head.weight = self.embedding.weight
        self.register_buffer("table", torch.ones(3))


def test_shared_parameters_count_once_and_buffers_not():
    assert count_parameters(Tied()) == 20 * 8 + 20


def test_language_model_has_the_published_number_of_parameters(language_model):
    assert count_parameters(language_model[0]) == 134_515_008


def test_zeros_are_not_counted_as_nonzero():
    model = Tied()
    nn.init.ones_(model.head.bias)
    nn.init.ones_(model.embedding.weight)
    with torch.no_grad():
        model.embedding.weight[:5] = 0
        model.head.bias[0] = -0.0
    assert count_nonzero(model) == 15 * 8 + 19


@pytest.mark.parametrize("encoding", ["dense", "bitmap", "csr", "smallest"])
def test_bytes_on_disk_are_those_of_the_saved_file(tmp_path, encoding):
    model, path = Tied(), tmp_path / "model.safetensors"
    storage.save(model, path, encoding=encoding)
    assert bytes_on_disk(model, encoding=encoding) == path.stat().st_size


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dense_bytes_are_the_tensors_once_and_a_small_header(dtype):
    model = Tied().to(dtype)
    tensors = (20 * 8 + 20 + 3) * dtype.itemsize
    assert 0 < bytes_on_disk(model) - tensors < 400


def test_bytes_of_a_pruned_model_fall_when_stored_sparse():
    model = nn.Linear(256, 256, bias=False)
    with torch.no_grad():
        model.weight[:, 26:] = 0
    assert bytes_on_disk(model, encoding="smallest") < 0.2 * bytes_on_disk(model)


# ---------------------------------------------------------------- work


def counted_by_torch(call):
    """torch's counter knows no fused attention on a CPU; taken apart, it is matrix products."""
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        call()
    return counter.get_total_flops()


def assert_counts_as_torch_does(call):
    expected = counted_by_torch(call)
    assert expected > 0
    assert count_flops(call) == expected
    with torch.inference_mode():
        assert count_flops(call) == expected


def test_flops_of_a_perceptron_are_the_formula_and_torchs_count():
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3, bias=False))
    x = torch.ones(2, 4, 5)
    assert_counts_as_torch_does(lambda: model(x))
    assert count_flops(lambda: model(x)) == 2 * (2 * 4) * (5 * 7 + 7 * 3)


@pytest.mark.parametrize(
    "call",
    [
        lambda a, b: a @ b,
        lambda a, b: torch.matmul(input=a, other=b),
        lambda a, b: a[0] @ b,
        lambda a, b: a[:, None] @ b[None],
        lambda a, b: torch.bmm(a, b),
        lambda a, b: torch.baddbmm(torch.ones(1, 1, 6), a, b),
        lambda a, b: a[0].mm(b[0]),
        lambda a, b: torch.addmm(torch.ones(6), a[0], b[0]),
        lambda a, b: torch.ones(6).addmm(a[0], b[0], beta=2),
        lambda a, b: torch.einsum("bik,bkj->bij", a, b),
        lambda a, b: torch.einsum("bik,ckj->bcij", a, b),
        lambda a, b: torch.tensordot(a, b[0], 1),
        lambda a, b: F.linear(input=a, weight=b[0].T, bias=torch.ones(6)),
    ],
)
def test_flops_of_every_way_to_write_a_product(call):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 4, 5, generator=generator), torch.randn(3, 5, 6, generator=generator)
    assert_counts_as_torch_does(lambda: call(a, b))


def test_flops_of_products_with_a_vector():
    matrix, vector = torch.ones(4, 5), torch.ones(5)
    assert count_flops(lambda: matrix @ vector) == 2 * 4 * 5
    assert count_flops(lambda: vector @ vector) == 2 * 5
    assert count_flops(lambda: torch.addmv(torch.ones(4), matrix, vector)) == 2 * 4 * 5


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("kv_heads", "value_dim"), [(4, 8), (2, 8), (4, 6)])
def test_flops_of_attention(causal, kv_heads, value_dim):
    query, key = torch.ones(2, 4, 5, 8), torch.ones(2, kv_heads, 7, 8)
    value = torch.ones(2, kv_heads, 7, value_dim)

    def call():
        F.scaled_dot_product_attention(query, key, value, is_causal=causal, enable_gqa=True)

    assert_counts_as_torch_does(call)
    assert count_flops(call) == 2 * (2 * 4) * (5 * 7) * (8 + value_dim)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("need_weights", [True, False])
def test_flops_of_torchs_own_attention_layer(training, need_weights):
    layer = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    x = torch.ones(3, 5, 8)
    count = count_flops(lambda: layer(x, x, x, need_weights=need_weights))
    assert count == 2 * 3 * (4 * 5 * 8 * 8 + 2 * 5 * 5 * 8)
    layer.train()  # in evaluation torch's own counter misses the fused layer
    assert count == counted_by_torch(lambda: layer(x, x, x, need_weights=need_weights))


@pytest.mark.parametrize("enabled", [True, False])
def test_counting_leaves_torchs_fused_layers_as_they_were(enabled):
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        count_flops(lambda: None)
        assert torch.backends.mha.get_fastpath_enabled() is enabled
        with pytest.raises(ZeroDivisionError):
            count_flops(lambda: 1 / 0)
        assert torch.backends.mha.get_fastpath_enabled() is enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_flops_of_the_classifier(classifier):
    model, tokenizer = classifier
    batch = tokenizer(["a fine film", "dull beyond words"], padding=True, return_tensors="pt")
    assert_counts_as_torch_does(lambda: model(**batch))


def test_flops_of_the_language_model(language_model):
    model, _ = language_model
    tokens = torch.arange(5).view(1, 5)
    count = count_flops(lambda: model(input_ids=tokens))
    assert count == counted_by_torch(lambda: model(input_ids=tokens))
    weights = 134_515_008 - 61 * 576  # but for the norms, every weight is used once a token
    assert count == 2 * 5 * weights + 30 * 2 * 9 * 5 * 5 * (64 + 64)


def test_flops_need_no_gradient():
    weight = nn.Parameter(torch.ones(3, 3))
    outputs = []
    count_flops(lambda: outputs.append(weight @ weight))
    assert not outputs[0].requires_grad


# ---------------------------------------------------------------- time


class Clock:
    """A clock that only moves when a candidate says so."""

    def __init__(self):
        self.now, self.log = 0.0, []
        self.slowness = lambda calls: 1.0

    def perf_counter(self):
        return self.now

    def candidate(self, name, seconds):
        def call():
            self.now += seconds * self.slowness(len(self.log))
            self.log.append(name)

        return call


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(measure, "time", clock)
    return clock


def test_twice_the_work_is_half_the_speed(clock):
    result = compare_latency(
        {"one": clock.candidate("one", 0.25), "two": clock.candidate("two", 0.5)}, baseline="one"
    )
    assert result["one"].speedup == Estimate(1.0, 1.0, 1.0)
    assert result["two"].speedup == Estimate(0.5, 0.5, 0.5)
    assert (result["one"].milliseconds, result["two"].milliseconds) == (250.0, 500.0)
    assert {latency.threads for latency in result.values()} == {torch.get_num_threads()}


def test_speedup_does_not_notice_that_whole_rounds_are_slow(clock):
    clock.slowness = lambda calls: 1.0 + calls // 2 % 5  # two calls are a round
    result = compare_latency(
        {"one": clock.candidate("one", 0.25), "two": clock.candidate("two", 0.5)}, baseline="two"
    )
    assert result["one"].speedup == Estimate(2.0, 2.0, 2.0)


def test_interval_spans_the_order_statistics_of_the_rounds_ratios(clock):
    steps = iter(range(1, 100))

    def uneven():
        clock.now += 1.0 / next(steps)

    result = compare_latency(
        {"base": clock.candidate("base", 1.0), "uneven": uneven},
        baseline="base",
        rounds=9,
        seconds=0.0,
    )
    # Two calls find the number of repeats; the nine ratios after them are 3 ... 11.
    assert result["uneven"].speedup.value == pytest.approx(7.0)
    assert result["uneven"].speedup.low == pytest.approx(4.0)
    assert result["uneven"].speedup.high == pytest.approx(10.0)
    assert result["uneven"].milliseconds == pytest.approx(1000 / 7)


def test_every_round_runs_every_candidate_in_an_order_that_changes(clock):
    names = ("a", "b", "c")
    calls = {name: clock.candidate(name, 1.0) for name in names}
    compare_latency(calls, baseline="a", rounds=20)
    timed = clock.log[-60:]
    rounds = [tuple(timed[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(each) == list(names) for each in rounds)
    assert len(set(rounds)) > 3
    first = clock.log.copy()
    clock.log.clear()
    compare_latency(calls, baseline="a", rounds=20)
    assert clock.log == first
    clock.log.clear()
    compare_latency(calls, baseline="a", rounds=20, seed=1)
    assert clock.log != first


def test_fast_candidates_are_called_more_often_a_round(clock):
    calls = {"slow": clock.candidate("slow", 2.0), "fast": clock.candidate("fast", 0.125)}
    result = compare_latency(calls, baseline="slow", rounds=6, seconds=1.0)
    assert clock.log.count("slow") == 2 + 6
    assert clock.log.count("fast") == 2 + 6 * 8
    assert result["fast"].speedup.value == 16.0


def test_candidates_run_without_gradients_and_without_garbage_collection(clock):
    weight, seen = nn.Parameter(torch.ones(2)), []

    def call():
        clock.now += 1
        seen.append((gc.isenabled(), (weight * 2).requires_grad))

    compare_latency({"x": call}, baseline="x", rounds=6)
    assert set(seen[-6:]) == {(False, False)}
    assert gc.isenabled()


def test_garbage_collection_is_on_again_after_an_exception(clock):
    calls = []

    def call():
        clock.now += 1
        calls.append(gc.isenabled())
        if len(calls) == 5:
            raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        compare_latency({"x": call}, baseline="x")
    assert calls[-1] is False
    assert gc.isenabled()


def test_latency_refuses_an_unknown_baseline_and_too_few_rounds():
    with pytest.raises(ValueError, match="baseline 'z' is not among x, y"):
        compare_latency({"x": int, "y": int}, baseline="z")
    with pytest.raises(ValueError, match="rounds must be at least 6, not 5"):
        compare_latency({"x": int}, baseline="x", rounds=5)


@pytest.mark.parametrize("n", range(6, 61))
def test_median_interval_is_the_narrowest_pair_of_order_statistics_that_covers(n):
    def coverage(k):  # of the k-th smallest to the k-th largest
        return 1 - 2 * stats.binom.cdf(k - 1, n, 0.5)

    k = max(k for k in range(1, n // 2 + 1) if coverage(k) >= 0.95)
    values = torch.randperm(n, generator=torch.Generator().manual_seed(n)).double() + 1
    assert median_interval(values.tolist()) == Estimate((n + 1) / 2, k, n + 1 - k)


@pytest.mark.parametrize("n", range(6))
def test_median_interval_needs_six_values(n):
    with pytest.raises(ValueError, match=f"needs 6 values, not {n}"):
        median_interval([1.0] * n)


def test_median_interval_holds_for_thousands_of_values():
    interval = median_interval([float(i) for i in range(1, 3001)])
    k = int(stats.binom.ppf(0.025, 3000, 0.5))
    assert interval == Estimate(1500.5, k, 3001 - k)


@pytest.mark.parametrize("n", [6, 21])
def test_median_interval_covers_the_median_of_a_skewed_distribution(n):
    values = torch.empty(4000, n).exponential_(generator=torch.Generator().manual_seed(0))
    intervals = [median_interval(row) for row in values.tolist()]
    covered = sum(i.low <= math.log(2) <= i.high for i in intervals) / 4000
    assert 0.945 < covered < 0.985  # exact: 0.969 and 0.973


# ---------------------------------------------------------------- memory

KB = 1000  # bytes of `x` below, 250 numbers


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def x(on_cpu):
    return torch.ones(250)


def freed_before_the_next(x):
    a = x + 1
    del a
    b = x + 2
    del b


def held_together(x):
    a = x + 1
    b = x + 2
    return a, b


MEMORY = {
    "nothing": (lambda x: None, 0),
    "one result": (lambda x: x + 1, 1 * KB),
    "freed before the next": (freed_before_the_next, 1 * KB),
    "held together": (held_together, 2 * KB),
    "chain": (lambda x: (((x + 1) + 1) + 1) + 1, 2 * KB),
    "views of the input": (lambda x: x.view(10, 25).T[2:].unsqueeze(0).expand(4, -1, -1), 0),
    "views of a result": (lambda x: [v.T for v in (x + 1).view(10, 25).split(3)], 1 * KB),
    "a view keeps the whole result": (lambda x: ((x + 1)[:2], x * 2), 2 * KB),
    "in place": (lambda x: x.add_(1).mul_(2).relu_(), 0),
    "in place on a result": (lambda x: (x + 1).mul_(2), 1 * KB),
    "given output": (lambda x: torch.add(x, 1, out=x), 0),
    "no copy needed": (lambda x: (x.contiguous(), x.float(), x.detach(), x.to("cpu")), 0),
    "another dtype": (lambda x: (x.double(), x.half()), 2.5 * KB),
    "several results": (lambda x: x.sort(), 3 * KB),
    "list of results": (lambda x: torch._foreach_add([x, x, x], 1.0), 3 * KB),
    "made from nothing": (lambda x: torch.zeros(250), 1 * KB),
    "made from a list": (lambda x: torch.tensor([1.0] * 250), 1 * KB),
    # Log-probabilities, and 8 bytes of label and 4 each of loss and total weight.
    "inside a composite operation": (lambda x: F.cross_entropy(x[None], torch.tensor([3])), 1016),
    "broadcast product": (lambda x: x.view(25, 10) @ x[:10], 100),
}


@pytest.mark.parametrize(("call", "expected"), MEMORY.values(), ids=MEMORY)
@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_memory_is_exact(x, call, expected, mode):
    with mode():
        assert peak_memory(lambda: call(x)) == expected


def test_memory_counts_anew_at_every_call(x):
    held = []
    assert [peak_memory(lambda: held.append(x + 1)) for _ in range(3)] == [KB, KB, KB]


def test_memory_does_not_count_the_weights(on_cpu):
    layer = nn.Linear(100, 50)
    inputs = torch.ones(3, 100)
    assert peak_memory(lambda: layer(inputs)) == 3 * 50 * 4


@pytest.mark.parametrize("layers", [1, 2, 5])
def test_memory_of_training_grows_with_the_activations_that_are_saved(on_cpu, layers):
    weight = nn.Parameter(torch.ones(250))

    def forward():
        y = weight
        for _ in range(layers):
            y = y.exp()
        return y.sum()

    def step():
        weight.grad = None
        forward().backward()

    with torch.no_grad():
        assert peak_memory(forward) == min(layers, 2) * KB + (4 if layers == 1 else 0)
    # Every exp saves its result. Backward adds the loss, its gradient (4 bytes each) and the
    # gradient of one layer, which takes the place of that layer's result from then on.
    assert peak_memory(forward) == layers * KB + 4
    assert peak_memory(step) == (layers + 1) * KB + 8


# ---------------------------------------------------------------- quality


class Words:
    pad_token_id = 0

    def __call__(self, texts, truncation, max_length):
        return {"input_ids": [[int(w) for w in text.split()][:max_length] for text in texts]}


class FirstWord(nn.Module):
    """Logits that tell a sentence's first word, and how many words it has by the mask."""

    def forward(self, input_ids, attention_mask):
        logits = torch.stack([input_ids[:, 0], attention_mask.sum(1)], 1)
        return SimpleNamespace(logits=logits.to(torch.bfloat16))


TEXTS = Dataset.from_dict(
    {
        "text": ["5 1", "1 1 1 1", "2", "3 1 1 1 1", "0 1 1", "7", "6 1 1"],
        "label": [0, 1, 1, 0, 1, 0, 0],
    }
)


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_predictions_are_in_the_order_of_the_dataset(batch_size):
    logits = predict(FirstWord(), TextBatches(TEXTS, Words(), batch_size=batch_size))
    assert logits.dtype == torch.float32
    assert logits.tolist() == [[5, 2], [1, 4], [2, 1], [3, 5], [0, 3], [7, 1], [6, 3]]


def test_predictions_refuse_shuffled_batches():
    with pytest.raises(ValueError, match="must not be shuffled"):
        predict(FirstWord(), TextBatches(TEXTS, Words(), shuffle=True))


@pytest.mark.parametrize("batch_size", [2, 32])
def test_answers_are_right_where_the_largest_logit_is_the_label(batch_size):
    hits = correct_answers(FirstWord(), TEXTS, Words(), batch_size=batch_size)
    assert hits.tolist() == [True, True, False, False, True, True, True]


def test_padding_does_not_change_the_classifiers_predictions(classifier):
    model, tokenizer = classifier
    data = Dataset.from_dict(
        {"text": ["dull", "a fine film that I have never seen before, ever"], "label": [0, 1]}
    )
    together = predict(model, TextBatches(data, tokenizer, batch_size=2))
    alone = predict(model, TextBatches(data, tokenizer, batch_size=1))
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def bools(right, n):
    return torch.arange(n) < right


@pytest.mark.parametrize("n", [1, 2, 7, 50, 1000])
def test_accuracy_has_the_wilson_interval(n):
    for right in sorted({0, 1, n // 3, n - 1, n}):
        estimate = accuracy(bools(right, n))
        expected = stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
        assert estimate.value == pytest.approx(right / n, abs=1e-7)
        assert (estimate.low, estimate.high) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("n", range(1, 200, 7))
def test_accuracy_stays_within_0_and_1_at_the_limits(n):
    none, every = accuracy(bools(0, n)), accuracy(bools(n, n))
    assert none.value == 0
    assert none.low == pytest.approx(0, abs=1e-15)
    assert every.high == pytest.approx(1, abs=1e-15)
    assert none.low >= 0
    assert every.high <= 1
    assert f"{none:.1%}".startswith("0.0% (0.0% to ")


def test_estimates_print_with_their_interval():
    estimate = Estimate(0.87123, 0.8551, 0.885)
    assert f"{estimate:.1%}" == "87.1% (85.5% to 88.5%)"
    assert str(estimate) == "0.871 (0.855 to 0.885)"


def test_a_difference_is_told_in_points_measured_or_recorded():
    difference = Estimate(-0.018, -0.0331, 0.0042)
    assert points(difference) == "-1.8 (-3.3 to +0.4)"
    assert points(vars(difference) | {"split": "test"}) == points(difference)


def pair(both, only_first, only_second, neither):
    """Two classifiers with these counts, sentences in a random order."""
    counts = torch.tensor([both, only_first, only_second, neither])
    kind = torch.arange(4).repeat_interleave(counts)
    kind = kind[torch.randperm(len(kind), generator=torch.Generator().manual_seed(0))]
    return (kind == 0) | (kind == 1), (kind == 0) | (kind == 2)


def random_tables(number):
    generator = torch.Generator().manual_seed(0)
    sizes = torch.tensor([300, 40, 40, 100])
    return (torch.rand(number, 4, generator=generator) * sizes).long().tolist()


@pytest.mark.parametrize("table", [*random_tables(20), [5, 0, 3, 0], [0, 1, 0, 0], [9, 9, 9, 9]])
def test_p_value_is_mcnemars(table):
    both, only_first, only_second, neither = table
    result = compare_accuracy(*pair(*table))
    assert (result.only_first, result.only_second) == (only_first, only_second)
    exact = mcnemar([[both, only_first], [only_second, neither]], exact=True).pvalue
    assert result.p_value == pytest.approx(exact, rel=1e-9)


def test_p_value_does_not_overflow_when_thousands_of_answers_differ():
    result = compare_accuracy(*pair(10, 2500, 2600, 10))
    assert result.p_value == pytest.approx(stats.binomtest(2500, 5100).pvalue, rel=1e-9)


def test_equal_classifiers_do_not_differ():
    first, _ = pair(30, 10, 0, 10)
    result = compare_accuracy(first, first.clone())
    assert result.p_value == 1
    assert result.difference.value == 0
    assert result.difference.low == -result.difference.high < 0


@pytest.mark.parametrize("table", random_tables(5))
def test_difference_has_the_interval_of_agresti_and_min(table):
    _, only_first, only_second, _ = table
    difference = compare_accuracy(*pair(*table)).difference
    n = sum(table)
    first, second = (Fraction(2 * count + 1, 2 * n + 4) for count in (only_first, only_second))
    variance = (first + second - (second - first) ** 2) / (n + 2)
    margin = stats.norm.ppf(0.975) * math.sqrt(variance)
    assert difference.value == pytest.approx((only_second - only_first) / n)
    assert difference.low == pytest.approx(float(second - first) - margin)
    assert difference.high == pytest.approx(float(second - first) + margin)


def test_comparison_changes_its_sign_with_the_order():
    first, second = pair(30, 4, 11, 5)
    one, other = compare_accuracy(first, second), compare_accuracy(second, first)
    assert one.difference.value == -other.difference.value == pytest.approx(0.14)
    assert one.difference.low == pytest.approx(-other.difference.high)
    assert one.p_value == other.p_value
    assert str(one).startswith("+14.0 points (")
    assert str(other).startswith("-14.0 points (-")


@pytest.mark.parametrize("chances", [(0.8, 0.05, 0.05, 0.1), (0.7, 0.12, 0.03, 0.15)])
def test_difference_interval_covers_the_true_difference(chances):
    chances = torch.tensor(chances)
    truth = float(chances[2] - chances[1])
    drawn = torch.multinomial(
        chances, 2000 * 200, replacement=True, generator=torch.Generator().manual_seed(0)
    ).view(2000, 200)
    first, second = (drawn == 0) | (drawn == 1), (drawn == 0) | (drawn == 2)
    covered = 0
    for a, b in zip(first, second, strict=True):
        difference = compare_accuracy(a, b).difference
        covered += difference.low <= truth <= difference.high
    assert 0.935 < covered / 2000 < 0.975


def test_comparison_refuses_different_shapes():
    with pytest.raises(ValueError, match=r"shapes differ: \(3,\) and \(4,\)"):
        compare_accuracy(bools(1, 3), bools(1, 4))


# ---------------------------------------------------------------- perplexity


@pytest.fixture
def windows():
    return torch.randint(0, 50, (7, 9), generator=torch.Generator().manual_seed(0))


def test_perplexity_of_uniform_logits_is_the_vocabulary_size():
    def uniform(input_ids):
        return SimpleNamespace(logits=torch.full((*input_ids.shape, 49_152), 3.0))

    estimate = perplexity(uniform, torch.arange(8).view(2, 4))
    assert tuple(vars(estimate).values()) == pytest.approx((49_152, 49_152, 49_152), rel=1e-5)


def test_perplexity_of_one_who_knows_the_next_token_is_one():
    def knows(input_ids):
        following = input_ids.roll(-1, 1)
        return SimpleNamespace(logits=100.0 * F.one_hot(following, 50))

    assert perplexity(knows, torch.arange(12).view(3, 4)).value == pytest.approx(1.0)


def test_perplexity_equals_a_computation_token_by_token(tiny_llama, windows):
    losses = []
    with torch.no_grad():
        for window in windows:
            total = 0.0
            for t in range(1, len(window)):
                logits = tiny_llama(input_ids=window[None, :t]).logits[0, -1].double()
                total -= logits.log_softmax(-1)[window[t]].item()
            losses.append(total / (len(window) - 1))
    mean = sum(losses) / 7
    error = math.sqrt(sum((loss - mean) ** 2 for loss in losses) / 6 / 7)
    estimate = perplexity(tiny_llama, windows)
    assert estimate.value == pytest.approx(math.exp(mean), rel=1e-5)
    assert estimate.low == pytest.approx(math.exp(mean - 1.959964 * error), rel=1e-5)
    assert estimate.high == pytest.approx(math.exp(mean + 1.959964 * error), rel=1e-5)


def test_perplexity_is_the_exponential_of_the_loss_in_transformers(tiny_llama, windows):
    with torch.no_grad():
        loss = tiny_llama(input_ids=windows, labels=windows).loss.item()
    assert perplexity(tiny_llama, windows).value == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 20])
def test_perplexity_does_not_depend_on_the_batch_size(tiny_llama, windows, batch_size):
    estimate = perplexity(tiny_llama, windows, batch_size=batch_size)
    assert estimate.value == pytest.approx(perplexity(tiny_llama, windows).value, rel=1e-5)


def test_perplexity_in_bfloat16_is_computed_from_float32_logits(tiny_llama, windows):
    model = copy.deepcopy(tiny_llama).bfloat16()
    with torch.no_grad():
        logits = model(input_ids=windows).logits[:, :-1].double().log_softmax(-1)
    loss = -logits.gather(2, windows[:, 1:, None]).mean().item()
    estimate = perplexity(model, windows, batch_size=7)
    assert estimate.value == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (0, 8), (8,), (2, 2, 2)])
def test_perplexity_refuses_too_few_windows_or_tokens(shape):
    with pytest.raises(ValueError, match="2 or more, 2 or more"):
        perplexity(None, torch.zeros(shape, dtype=torch.long))
