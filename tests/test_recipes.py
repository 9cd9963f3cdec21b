"""What recipes share. Their results are checked in test_data.py."""

from operator import itemgetter

import pytest
import torch
from small import batch, classifier, llama
from torch.nn import functional as F

from compresslab import recipes
from compresslab.factorization.allocation import uniform_ranks
from compresslab.factorization.weighted_svd import whitened_svd
from compresslab.layers import find_linears
from compresslab.pruning.sparsegpt import collect_hessians
from compresslab.recipes import (
    distillation_data,
    distillation_llm,
    distillation_objectives,
    distillation_targets,
    factorization_oneshot,
    in_parallel,
    quantization_latency,
)
from compresslab.recipes.tuning import distillation, judge, smallest, unlabelled


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
    model = classifier(width=16, neurons=32).float()
    ids = torch.randint(40, (40, 8), generator=torch.Generator().manual_seed(0))
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


TEACHER, LABELS = torch.tensor([[0.0, 3.0], [2.0, 1.0]]), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("labels", lambda z: F.cross_entropy(z, LABELS)),
        ("smoothed labels", lambda z: F.cross_entropy(z, LABELS, label_smoothing=0.1)),
        ("teacher, T = 1", lambda z: soft(z, 1.0)),
        ("teacher, T = 8", lambda z: soft(z, 8.0)),
        ("labels and teacher", lambda z: (F.cross_entropy(z, LABELS) + soft(z, 2.0)) / 2),
    ],
)
def test_each_target_has_its_loss(target, expected):
    logits = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    few = {"input_ids": None, "attention_mask": None, "labels": LABELS}
    loss = distillation_targets.loss_for(target, TEACHER.flip(0))
    value = loss(Fixed(logits), few | {"rows": torch.tensor([1, 0])})
    torch.testing.assert_close(value, expected(logits))


def soft(logits, temperature):
    log_q, p = (logits / temperature).log_softmax(-1), (TEACHER / temperature).softmax(-1)
    return temperature**2 * F.kl_div(log_q, p, reduction="batchmean")


def test_every_objective_is_zero_for_a_student_that_is_its_teacher_but_for_the_labels(monkeypatch):
    monkeypatch.setattr(distillation_objectives, "RELATION_HEADS", 4)
    monkeypatch.setattr(distillation_objectives, "LAYERS", 2)
    teacher, student = classifier(), classifier()
    student.projection = torch.nn.Identity()
    few = batch() | {"labels": torch.tensor([0, 1, 0]), "rows": torch.tensor([2, 0, 3])}
    answers = torch.full((4, 2), torch.nan, dtype=torch.float64)
    answers[few["rows"]] = teacher(**batch()).logits.detach()
    hard = F.cross_entropy(teacher(**batch()).logits, few["labels"])

    def objective(*terms):
        return distillation_objectives.loss_for(terms, teacher, answers)(student, few)

    terms = {term for halves in distillation_objectives.OBJECTIVES.values() for half in halves
             for term in half}  # fmt: skip
    assert len(terms) == 8
    for term in terms:
        value = objective(term)
        expected = hard if term == "hard" else torch.zeros(())
        torch.testing.assert_close(value.double(), expected.double(), atol=1e-7, rtol=1e-6)
    with torch.no_grad():
        student.bert.encoder.layer[0].attention.self.query.weight.mul_(2.0)
        student.bert.encoder.layer[1].attention.self.value.weight.mul_(0.5)
        student.bert.embeddings.word_embeddings.weight.mul_(0.5)
    each = {term: objective(term) for term in terms}
    assert all(value > 1e-4 for value in each.values()), each
    torch.testing.assert_close(objective("soft", "attention"), each["soft"] + each["attention"])
    torch.testing.assert_close(objective("soft", "hard"), each["soft"] + each["hard"])


def test_what_a_student_sees_is_every_sentence_as_often_with_the_answer_to_it(monkeypatch):
    monkeypatch.setattr(distillation_data, "SEEN", 12)
    parts = {"few": unlabelled(["a", "b"]), "rest": unlabelled(["c"]), "other": unlabelled(["d"])}
    answers = {"few": torch.tensor([[1.0], [2.0]]), "rest": torch.tensor([[3.0]]), "other": None}
    data, logits = distillation_data.answered(("few", "rest"), parts, answers)
    assert sorted(data["text"]) == [*"aaaabbbbcccc"]
    assert [" abc"[int(value)] for value in logits] == list(data["text"])


def test_a_student_is_judged_by_labels_and_by_its_teacher(monkeypatch):
    logits = torch.tensor([[0.0, 1.0], [0.0, 3.0], [2.0, 0.0]])
    monkeypatch.setattr("compresslab.recipes.tuning.predict", lambda model, batches, device: logits)
    monkeypatch.setattr("compresslab.recipes.tuning.TextBatches", lambda data, tokenizer: None)
    found = judge(
        None, None, {"label": [1, 0, 0]}, torch.tensor([[0.0, 1.0], [0.0, 3.0], [0, 2.0]])
    )
    assert found["accuracy"] == found["agreement"] == pytest.approx(2 / 3)
    assert found["divergence"] > 0.1
    assert found["surprise"] == pytest.approx(
        F.cross_entropy(logits, torch.tensor([1, 0, 0])).item()
    )


def test_a_language_model_is_taught_at_every_position_whose_target_is_inside_the_window():
    teacher, ids = llama(hidden_size=16, intermediate_size=24), torch.arange(12).view(2, 6)
    loss = distillation_llm.token_level(teacher)
    assert loss(teacher, {"input_ids": ids}) < 1e-6
    other = llama(hidden_size=16, intermediate_size=20)
    log_q, log_p = (m(input_ids=ids).logits[:, :-1].log_softmax(-1) for m in (other, teacher))
    expected = F.kl_div(log_q, log_p, log_target=True, reduction="sum") / 10
    torch.testing.assert_close(loss(other, {"input_ids": ids}), expected)
