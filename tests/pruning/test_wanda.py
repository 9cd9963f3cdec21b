import pytest
import torch
from torch import nn

from compresslab.pruning.wanda import collect_norms, wanda_masks, wanda_scores


class Reader(nn.Module):
    """Two linear layers that read one-hot tokens, with the signature of a language model."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(10, 6)
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, input_ids):
        return self.second(self.first(self.embed(input_ids)).relu())


def batches():
    return torch.randint(10, (3, 2, 5), generator=torch.Generator().manual_seed(0)).unbind()


def test_norms_equal_those_of_all_inputs_together():
    torch.manual_seed(0)
    model = Reader()
    norms = collect_norms(model, batches())
    with torch.no_grad():
        x = model.embed(torch.cat(batches())).flatten(0, 1)
        hidden = model.first(x).relu()
    torch.testing.assert_close(norms["first"], x.norm(dim=0))
    torch.testing.assert_close(norms["second"], hidden.norm(dim=0))


def test_scores_are_the_formula_and_constant_norms_give_magnitude():
    weight, norms = torch.randn(3, 4), torch.rand(4)
    expected = [[abs(weight[i, j]) * norms[j] for j in range(4)] for i in range(3)]
    assert torch.equal(wanda_scores(weight, norms), torch.tensor(expected))
    assert torch.equal(wanda_scores(weight, torch.ones(4)), weight.abs())


def test_a_small_weight_with_a_large_input_stays():
    model = nn.Sequential(nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 0.1]])
    mask = wanda_masks(model, {"0": torch.tensor([1.0, 100.0])}, 0.5)["0"]
    assert mask.tolist() == [[False, True]]


def test_every_row_loses_the_same_and_a_pattern_keeps_its_counts():
    torch.manual_seed(0)
    model = Reader()
    norms = collect_norms(model, batches())
    assert all(
        ((~m).sum(1) == int(0.3 * m.shape[1])).all()
        for m in wanda_masks(model, norms, 0.3).values()
    )
    mask = wanda_masks(model, {"second": norms["second"]}, pattern=(2, 4))["second"]
    assert (mask.view(-1, 4).sum(1) == 2).all()


def test_norms_of_another_layer_are_refused():
    with pytest.raises(ValueError, match=r"norms must have shape \(4,\)"):
        wanda_scores(torch.ones(3, 4), torch.ones(3))
