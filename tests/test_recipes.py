"""What recipes share. Their results are checked in test_data.py."""

from operator import itemgetter

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification

from compresslab import recipes
from compresslab.factorization.allocation import uniform_ranks
from compresslab.factorization.weighted_svd import whitened_svd
from compresslab.layers import find_linears
from compresslab.pruning.sparsegpt import collect_hessians
from compresslab.recipes import (
    factorization_oneshot,
    in_parallel,
    quantization_latency,
)
from compresslab.recipes.tuning import distillation, smallest


def threads(number: int) -> tuple[int, int]:
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number, torch.get_num_threads()


def test_results_come_in_the_order_of_the_tasks_from_processes_with_one_thread(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    results = list(in_parallel(threads, [{"number": n} for n in (3, 1, 2)]))
    assert results == [(3, 1), (1, 1), (2, 1)]


def test_an_error_in_a_process_arrives():
    with pytest.raises(ValueError, match="-1 is negative"):
        list(in_parallel(threads, [{"number": -1}]))


def test_an_unknown_result_says_how_to_make_it():
    with pytest.raises(FileNotFoundError, match=r"python -m compresslab\.recipes\.nothing"):
        recipes.recorded("nothing")


class Fixed(torch.nn.Module):
    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, input_ids, attention_mask):
        return self


def test_distillation_looks_up_the_teacher_of_each_row():
    teacher = torch.tensor([[9.0, 9.0], [2.0, -1.0], [0.5, 3.0]])
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    batch = {
        "input_ids": None,
        "attention_mask": None,
        "labels": torch.tensor([0, 1]),
        "rows": torch.tensor([2, 1]),
    }
    hard = F.cross_entropy(logits, batch["labels"])
    soft = 4 * F.kl_div(
        F.log_softmax(logits / 2, -1), F.softmax(teacher[[2, 1]] / 2, -1), reduction="batchmean"
    )
    value = distillation(teacher)(Fixed(logits), batch)
    torch.testing.assert_close(value, (hard + soft) / 2)


def test_the_smallest_of_those_that_lost_at_most_a_point_is_taken():
    def run(size, value):
        return {"bytes": size, "after": {"value": value}}

    runs = [run(10, -0.02), run(30, 0.01), run(20, -0.01), run(25, 0.0)]
    assert smallest(runs, of=itemgetter("after")) is runs[2]
    bad = [run(10, -0.05), run(30, -0.02), run(20, -0.03)]
    assert smallest(bad, of=itemgetter("after")) is bad[1]


class Peers(torch.nn.Module):
    """Gives the logits it was made with, whatever it reads."""

    def __init__(self, logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, input_ids, attention_mask):
        return self


def test_a_peer_is_measured_only_if_it_decides_as_the_classifier_does(tmp_path):
    classifier = Peers([[1.0, 0.0]] * 9 + [[0.0, 1.0]])
    batch = {"input_ids": torch.zeros(10, 3), "attention_mask": torch.ones(10, 3)}

    def missing(classifier, folder):
        raise ModuleNotFoundError("No module named 'peer'\nand so on")

    def prepared(make):
        return quantization_latency.prepare(make, classifier, tmp_path, batch)

    near, far = Peers([[3.0, 1.0]] * 10), Peers([[0.0, 1.0]] * 10)
    assert prepared(lambda classifier, folder: near) is near
    assert "float32 for only 10% of" in prepared(lambda classifier, folder: far)
    assert prepared(missing) == "ModuleNotFoundError: No module named 'peer'"


def test_a_peer_too_slow_for_rounds_is_timed_once(monkeypatch):
    times = {quantization_latency.FLOAT: 1.0, quantization_latency.OURS: 0.5, "slow": 9.0}
    calls = {name: (lambda name=name: name) for name in times}
    monkeypatch.setattr(quantization_latency, "seconds", lambda call: times[call()])
    found = quantization_latency.compare(calls)
    assert found["slow"] == {"once": 1 / 9}
    assert found[quantization_latency.FLOAT]["speedup"]["value"] > 0


def test_damage_is_what_a_cut_of_one_layer_does_to_the_answers_by_its_squared_error():
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertForSequenceClassification(
            BertConfig(**sizes, intermediate_size=32, vocab_size=50, initializer_range=0.5)
        ).eval()
    ids = torch.randint(50, (40, 8), generator=torch.Generator().manual_seed(0))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hessians = {
        name.removeprefix("bert.encoder."): h for name, h in collect_hessians(model, [ids]).items()
    }
    encoder = model.bert.encoder
    found = {
        "hessians": hessians,
        "spectra": factorization_oneshot.whitened_spectra(encoder, hessians),
    }
    damage = factorization_oneshot.damage(model, [{"input_ids": ids}], found)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    def answers():
        return torch.softmax(model(input_ids=ids).logits, -1)

    whole, name = answers(), "layer.1.output.dense"
    linear, rank = find_linears(encoder)[name], uniform_ranks({"": (16, 32)}, 0.5)[""]
    weight, h = linear.weight.detach().clone(), hessians[name]
    with torch.no_grad():
        linear.weight.copy_(whitened_svd(weight, h, rank).product())
        far, off = (whole * (whole / answers()).log()).sum(-1).mean(), weight - linear.weight
        damped = h + 0.01 * h.diagonal().mean() * torch.eye(32)
    assert damage[name] == pytest.approx((far / ((off @ damped) * off).sum()).item(), rel=1e-2)
