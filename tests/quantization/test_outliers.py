import pytest
import torch
from torch import nn

from compresslab.quantization.outliers import (
    Outlier,
    collect_absmax,
    collect_means,
    collect_shares,
    find_outliers,
)


class Reader(nn.Module):
    """Reads its inputs by a table, or as they are."""

    def __init__(self, embed=None):
        super().__init__()
        torch.manual_seed(0)
        self.embed = embed or nn.Embedding(10, 8)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, input_ids):
        return self.second(5 * self.first(self.embed(input_ids)))


def observed():
    """A model, batches of unlike size, and what the two layers read of all tokens."""
    model = Reader()
    batches = [torch.randint(10, shape) for shape in ((2, 3), (1, 7), (4, 2))]
    first = model.embed(torch.cat([b.flatten() for b in batches])).detach()
    return model, batches, {"first": first, "second": 5 * model.first(first).detach()}


@pytest.mark.parametrize(
    ("collect", "expected"),
    [
        (collect_absmax, lambda x: x.abs().amax(0)),
        (collect_means, lambda x: x.abs().mean(0)),
        (
            lambda *given: collect_shares(*given, threshold=2.0),
            lambda x: (x.abs() >= 2).float().mean(0),
        ),
    ],
    ids=["absmax", "means", "shares"],
)
def test_statistics_are_those_of_all_tokens_together(collect, expected):
    model, batches, inputs = observed()
    found = collect(model, batches)
    assert found.keys() == inputs.keys()
    for name, x in inputs.items():
        torch.testing.assert_close(found[name], expected(x))


def test_the_threshold_itself_counts():
    x = torch.tensor([[6.0, -6.0, 5.9, -5.9, 7, 0, 0, 0]])
    shares = collect_shares(Reader(embed=nn.Identity()), [x])
    assert shares["first"].tolist() == [1, 1, 0, 0, 1, 0, 0, 0]


def test_an_outlier_is_one_in_a_quarter_of_the_layers_and_six_percent_of_the_tokens():
    # Four layers and four features: in one layer and few tokens, in one and many, in two and few.
    shares = {
        "first": torch.tensor([0.20, 0.24, 0.10, 0]),
        "second": torch.tensor([0, 0, 0.12, 0]),
        "third": torch.zeros(4),
        "fourth": torch.zeros(4),
    }
    (outlier,) = find_outliers(shares)
    assert (outlier.feature, outlier.layers) == (1, 0.25)
    assert outlier.tokens == pytest.approx(0.06)
    assert [o.feature for o in find_outliers(shares, tokens=0)] == [1, 2, 0]
    assert [o.feature for o in find_outliers(shares, layers=0.5, tokens=0.05)] == [2]


def test_with_no_lower_limit_every_feature_that_reached_the_threshold_is_listed():
    shares = {"a": torch.tensor([0, 0.5, 0]), "b": torch.tensor([0.25, 0.5, 0])}
    assert find_outliers(shares, layers=0, tokens=0) == [
        Outlier(1, 1.0, 0.5),
        Outlier(0, 0.5, 0.125),
    ]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"one width, not \[2, 3\]"):
        find_outliers({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"one width, not \[\]"):
        find_outliers({})
