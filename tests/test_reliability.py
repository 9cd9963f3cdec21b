import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.calibration import calibration_curve
from torch.nn import functional as F

from compresslab.reliability import (
    chance_error,
    fit_temperature,
    judge,
    matching_shift,
    reliability,
)


def sample(sentences: int = 500, scale: float = 3.0):
    """Logits (sentences, 2), and labels that follow their probabilities at temperature 2."""
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(sentences, 2, generator=generator)
    labels = torch.multinomial((logits / 2).softmax(-1), 1, generator=generator)[:, 0]
    return logits, labels


def test_the_error_by_hand():
    confidence = torch.tensor([0.6, 0.7, 0.9, 0.95, 1.0])
    correct = torch.tensor([True, False, True, True, False])
    bins = reliability(confidence, correct, bins=4)
    assert bins.counts.tolist() == [0, 0, 2, 3]
    assert bins.confidence[2:].tolist() == pytest.approx([0.65, 0.95])
    assert bins.accuracy[2:].tolist() == pytest.approx([0.5, 2 / 3])
    assert bins.error == pytest.approx(0.4 * 0.15 + 0.6 * (0.95 - 2 / 3))


def test_one_bin_hides_what_two_show():
    confidence = torch.tensor([0.6, 0.6, 1.0, 1.0])
    correct = torch.tensor([True, True, True, False])  # too modest, and too sure
    # 0.75 of the answers are right; 0.8 is the mean confidence.
    assert reliability(confidence, correct, bins=1).error == pytest.approx(0.05)
    assert reliability(confidence, correct, bins=4).error == pytest.approx(0.45)


@pytest.mark.parametrize(("width", "strategy"), [("equal", "uniform"), ("quantile", "quantile")])
@pytest.mark.parametrize("count", [1, 5, 15])
def test_bins_are_those_of_scikit_learn(width, strategy, count):
    confidence, correct = judge(*sample())
    bins = reliability(confidence, correct, bins=count, width=width)
    accuracy, mean = calibration_curve(
        correct.numpy(), confidence.numpy(), n_bins=count, strategy=strategy
    )
    full = bins.counts > 0
    assert bins.counts.sum() == 500
    assert bins.confidence[full].tolist() == pytest.approx(mean.tolist())
    assert bins.accuracy[full].tolist() == pytest.approx(accuracy.tolist())


def test_a_number_on_an_edge_belongs_to_the_bin_below():
    edges = torch.tensor([0.0, 0.5, 1.0])
    assert reliability(edges, edges > 0, bins=2).counts.tolist() == [2, 1]


def test_judge_takes_the_likeliest_answer():
    confidence, correct = judge(torch.tensor([[0.0, 1.0], [3.0, 0.0]]), torch.tensor([1, 1]))
    assert confidence.tolist() == pytest.approx(
        [1 / (1 + 2.718281828**-1), 1 / (1 + 2.718281828**-3)]
    )
    assert correct.tolist() == [True, False]


def test_perfect_probabilities_have_an_error_that_grows_with_the_bins():
    confidence, correct = judge(*sample(1000))
    generator = torch.Generator().manual_seed(1)
    few, many = (
        chance_error(confidence, draws=100, bins=bins, generator=generator) for bins in (5, 50)
    )
    assert 0 < few.mean() < many.mean()
    # The sample is right as often as its logits say at temperature 2: too sure at 1, not at 2.
    assert reliability(confidence, correct, bins=5).error > few.max()
    logits, labels = sample(1000)
    assert reliability(*judge(logits / 2, labels), bins=5).error < few.max()


@pytest.mark.parametrize("width", ["equal", "quantile"])
def test_a_draw_has_the_error_of_its_bins(width):
    confidence, _ = judge(*sample(100))
    options = {"bins": 7, "width": width}
    found = chance_error(confidence, draws=3, generator=torch.Generator().manual_seed(0), **options)
    generator = torch.Generator().manual_seed(0)
    for error, luck in zip(
        found, torch.rand(3, 100, dtype=torch.float64, generator=generator), strict=True
    ):
        expected = reliability(confidence, luck < confidence, **options).error
        assert error.item() == pytest.approx(expected)


def test_chance_has_the_expected_size_for_one_bin():
    # One bin of n answers with confidence c: |mean of n coins - c|, half-normal of mean √(2/π) σ.
    error = chance_error(
        torch.full((400,), 0.8), draws=2000, bins=1, generator=torch.Generator().manual_seed(0)
    )
    assert error.mean().item() == pytest.approx(
        (2 / torch.pi) ** 0.5 * (0.16 / 400) ** 0.5, rel=0.1
    )


@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_the_temperature_is_the_one_that_an_optimizer_finds(scale):
    logits, labels = sample()
    logits = (logits * scale / 3).double()
    found = minimize_scalar(
        lambda factor: F.cross_entropy(factor * logits, labels).item(),
        bounds=(1e-4, 20),
        method="bounded",
        options={"xatol": 1e-10},
    )
    assert fit_temperature(logits, labels) == pytest.approx(1 / found.x, rel=1e-4)


def test_a_temperature_for_more_classes_than_two_leaves_the_answers():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(400, 5, generator=generator)
    labels = torch.multinomial((logits / 3).softmax(-1), 1, generator=generator)[:, 0]
    temperature = fit_temperature(logits, labels)
    assert temperature == pytest.approx(3, rel=0.2)
    assert torch.equal(judge(logits, labels)[1], judge(logits / temperature, labels)[1])
    before, after = (F.cross_entropy(logits / t, labels) for t in (1.0, temperature))
    assert after < before


@pytest.mark.parametrize("label", [0, 1])
def test_where_no_temperature_is_best_it_says_so(label):
    logits = torch.tensor([[2.0, 0.0], [1.0, 0.5]])
    with pytest.raises(ValueError, match="no temperature is best"):
        fit_temperature(logits, torch.full((2,), label))


def test_a_shift_gives_both_labels_as_often_as_they_are_right():
    logits = torch.tensor([[0.0, 5.0], [0.0, 4.0], [1.0, 4.0], [0.0, 1.0]])  # all for label 1
    labels = torch.tensor([0, 1, 1, 0])
    assert matching_shift(logits, labels) == -3.5  # margins 5, 4, 3 and 1
    logits[:, 1] -= 3.4
    assert matching_shift(logits, labels) == pytest.approx(-0.1)
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(101, 2, generator=generator), torch.arange(101) % 3 == 0
    shift = matching_shift(logits, labels.long())
    assert ((logits[:, 1] + shift) > logits[:, 0]).sum() == labels.sum()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: reliability(torch.ones(3), torch.ones(2).bool()), r"\(3,\) and \(2,\)"),
        (lambda: reliability(torch.ones(0), torch.ones(0).bool()), r"\(0,\)"),
        (lambda: reliability(torch.tensor([1.2]), torch.ones(1).bool()), "from 0 to 1"),
        (lambda: reliability(torch.tensor([torch.nan]), torch.ones(1).bool()), "from 0 to 1"),
        (lambda: reliability(torch.ones(1), torch.ones(1).bool(), bins=0), "bins must be"),
        (lambda: reliability(torch.ones(1), torch.ones(1).bool(), width="log"), "width must be"),
        (lambda: judge(torch.ones(3), torch.ones(3).long()), r"\(3,\) and \(3,\)"),
        (lambda: judge(torch.full((1, 2), torch.nan), torch.ones(1).long()), "finite"),
        (lambda: matching_shift(torch.ones(2, 2), torch.ones(2).long()), "2 of 2 labels"),
        (lambda: matching_shift(torch.ones(2, 3), torch.arange(2)), r"not \(2, 3\)"),
        (lambda: fit_temperature(torch.ones(3, 2), torch.ones(2).long()), r"\(3, 2\) and \(2,\)"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
