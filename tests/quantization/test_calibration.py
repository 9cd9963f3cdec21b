from functools import partial

import pytest
import torch
from torch import nn

from compresslab.quantization.affine import fake_quantize, min_max, quantize_tensor
from compresslab.quantization.calibration import (
    collect_ranges,
    kl,
    kl_threshold,
    mse,
    percentile,
)

GRIDS = [(bits, symmetric) for bits in (8, 4, 2) for symmetric in (False, True)]


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def error(x, choose, **options):
    return (x - fake_quantize(x, choose=choose, **options)).square().sum(1)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.99, 1.0])
@pytest.mark.parametrize("size", [1, 2, 10, 1001])
def test_a_percentile_is_what_sorting_gives(p, size):
    x = numbers(3, size)
    low, high = percentile(x, bits=8, symmetric=False, p=p)
    out = round((1 - p) * size, 6)
    cut = min(int(out / 2), (size - 1) // 2)
    ordered = x.sort(1).values
    assert torch.equal(low, ordered[:, cut, None])
    assert torch.equal(high, ordered[:, size - 1 - cut, None])
    low, high = percentile(x, bits=8, symmetric=True, p=p)
    assert torch.equal(high, x.abs().sort(1).values[:, size - 1 - int(out), None])
    assert torch.equal(low, -high)


@pytest.mark.parametrize("symmetric", [False, True])
def test_a_percentile_holds_its_share_and_cuts_off_an_outlier(symmetric):
    x = numbers(4, 1000)
    x[:, 7] = 1000
    low, high = percentile(x, bits=8, symmetric=symmetric, p=0.99)
    inside = ((low <= x) & (x <= high)).float().mean(1)
    assert (inside >= 0.99).all()
    assert (inside < 0.995).all()
    assert high.max() < 4


@pytest.mark.parametrize("choose", [partial(percentile, p=1.0), partial(mse, steps=0)])
@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_at_their_limits_they_are_min_max(choose, bits, symmetric):
    x, options = numbers(5, 64), {"bits": bits, "symmetric": symmetric}
    same = quantize_tensor(x, choose=choose, **options)
    assert torch.equal(same.codes, quantize_tensor(x, choose=min_max, **options).codes)


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_mse_is_the_best_of_an_exhaustive_search(bits, symmetric):
    x = numbers(6, 40)
    ours = error(x, mse, bits=bits, symmetric=symmetric)
    best = torch.full((6,), float("inf"))
    for f in torch.linspace(1, 0.2, 81).tolist():
        clipped = x.clamp(x.amin(1, keepdim=True) * f, x.amax(1, keepdim=True) * f)
        if symmetric:
            top = x.abs().amax(1, keepdim=True) * f
            clipped = x.clamp(-top, top)
        # Clipped by hand and rounded over its whole range: the same grid.
        e = (x - fake_quantize(clipped, bits=bits, symmetric=symmetric)).square().sum(1)
        best = torch.minimum(best, e)
    torch.testing.assert_close(ours, best, rtol=1e-4, atol=1e-5)


def test_mse_clips_an_outlier_at_few_bits_and_keeps_it_at_many():
    x = torch.cat([numbers(1, 4095), torch.tensor([[12.0]])], 1)
    assert mse(x, bits=3, symmetric=True)[1] < 4
    assert mse(x, bits=8, symmetric=True)[1] > 11


def divergence(x, bins, end, levels):
    """KL(P ‖ Q) as the slides of TensorRT have it, bin by bin."""
    hist, top = [0] * bins, max(abs(v) for v in x)
    for v in x:
        hist[min(int(abs(v) / top * bins), bins - 1)] += 1
    p = [*hist[: end - 1], hist[end - 1] + sum(hist[end:])]
    q = [0.0] * end
    for level in range(levels):
        mine = [i for i in range(end) if i * levels // end == level and hist[i]]
        for i in mine:
            q[i] = sum(hist[j] for j in mine) / len(mine)
    total = torch.tensor(0.0, dtype=torch.float64)
    for a, b in zip(p, q, strict=True):
        if a and not b:
            return float("inf")
        if a:
            a, b = a / sum(p), b / sum(q)
            total += a * torch.tensor(a / b, dtype=torch.float64).log()
    return total.item()


@pytest.mark.parametrize("seed", range(5))
def test_the_kl_threshold_is_the_best_of_all(seed):
    x, bins, levels = numbers(300, seed=seed).abs() + seed / 4, 32, 4
    t = kl_threshold(x, levels, bins, 1)
    costs = {end: divergence(x.tolist(), bins, end, levels) for end in range(levels, bins + 1)}
    end = round(t / x.abs().max().item() * bins)
    assert costs[end] == pytest.approx(min(costs.values()), rel=1e-4)


def test_kl_cuts_what_lies_beyond_its_threshold_on_either_side():
    x = torch.cat([numbers(2, 5000).clamp(max=1), torch.tensor([[-50.0], [50.0]])], 1)
    low, high = kl(x, bits=4, symmetric=False)
    assert -10 < low[0] < high[0] == 1
    assert -10 < low[1] < 0 < high[1] < 10


def test_as_many_levels_as_bins_leave_nothing_to_gain():
    assert kl_threshold(numbers(100), levels=64, bins=64) == numbers(100).abs().max()


@pytest.mark.parametrize("choose", [percentile, mse, kl])
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_group_of_zeros_or_of_one_number_does_no_harm(choose, symmetric):
    for x in (torch.zeros(2, 16), torch.full((2, 1), -3.0)):
        back = fake_quantize(x, bits=8, symmetric=symmetric, choose=choose)
        torch.testing.assert_close(back, x)


class Reader(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.a, self.b = nn.Embedding(50, 8), nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, input_ids, attention_mask):
        return self.b(self.a(self.embed(input_ids)).relu() * attention_mask[..., None])


def batches(count=4):
    ids = torch.randint(50, (count, 3, 7), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": i, "attention_mask": torch.ones_like(i)} for i in ids]


@pytest.mark.parametrize("choose", [min_max, mse, partial(percentile, p=0.9)])
def test_ranges_are_those_of_all_inputs_together(choose):
    model = Reader()
    x = model.embed(torch.cat([b["input_ids"] for b in batches()])).detach()
    inputs = {"a": x, "b": model.a(x).relu().detach()}
    ranges = collect_ranges(model, batches(), choose=choose)
    assert ranges.keys() == inputs.keys()
    for name, x in inputs.items():
        # The ends are added to the sample, which is all of x here.
        x = torch.cat([x.flatten(), torch.stack(x.aminmax())])[None]
        low, high = choose(x, bits=8, symmetric=False)
        assert ranges[name] == pytest.approx((low.item(), high.item()))


def test_a_small_sample_keeps_the_ends_and_stands_for_all():
    model, many = Reader(), batches(200)
    exact = collect_ranges(model, many)
    assert collect_ranges(model, many, sample=5) == exact
    share = partial(percentile, p=0.5)
    all_of_it, some = (collect_ranges(model, many, choose=share, sample=s) for s in (10**6, 2000))
    for name, (low, high) in all_of_it.items():
        assert some[name] == pytest.approx(
            (low, high), abs=0.05 * (exact[name][1] - exact[name][0])
        )


def test_the_sample_stays_as_small_as_it_should():
    seen = []

    def look(groups, **options):
        seen.append(groups.shape)
        return min_max(groups, **options)

    collect_ranges(Reader(), batches(30), choose=look, sample=100)
    assert seen == [(1, 102), (1, 102)]


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="p must be above 0 and at most 1, not 99"):
        percentile(numbers(1, 4), bits=8, symmetric=False, p=99)
    with pytest.raises(ValueError, match="batches is empty"):
        collect_ranges(Reader(), [])
