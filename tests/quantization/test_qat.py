import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compresslab.measure import bytes_on_disk
from compresslab.quantization.affine import affine_parameters, code_range, fake_quantize
from compresslab.quantization.linear import PackedLinear
from compresslab.quantization.qat import (
    LSQ,
    MinMax,
    add_quantizers_,
    fake_quantize_ste,
    finish_,
    initial_step,
    lsq,
    round_ste,
)
from compresslab.training import train

GRIDS = [(bits, symmetric) for bits in (8, 4, 2) for symmetric in (False, True)]
MAKERS = {
    "lsq 2": lambda w: LSQ(w, bits=2),
    "lsq 3": lambda w: LSQ(w, bits=3, granularity=8),
    "lsq 8": lambda w: LSQ(w, bits=8, granularity="tensor"),
    "min-max 2": lambda w: MinMax(bits=2),
    "min-max 4": lambda w: MinMax(bits=4, granularity=8),
}


def numbers(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def make(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8, bias=False))


def test_rounding_goes_to_the_even_number_and_has_the_gradient_of_a_line():
    x = torch.tensor([-1.5, 0.5, 0.7, 2.5], requires_grad=True)
    y = round_ste(x)
    y.backward(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert y.tolist() == [-2, 0, 1, 2]
    assert x.grad.tolist() == [1, 2, 3, 4]


def gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(numbers(*y.shape, seed=9))
    return y.detach(), x.grad


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_value_and_gradient_of_a_tensor_are_torchs_also_outside_the_range(bits, symmetric):
    x = 3 * numbers(40, 30)
    scale, zero = affine_parameters(  # of [-1, 2]: many numbers lie outside
        torch.tensor(-1.0), torch.tensor(2.0), bits=bits, symmetric=symmetric
    )
    y, g = gradient(lambda x: fake_quantize_ste(x, scale, zero, bits=bits, symmetric=symmetric), x)
    limits = code_range(bits, symmetric=symmetric)
    torch_y, torch_g = gradient(
        lambda x: torch.fake_quantize_per_tensor_affine(x, scale, zero, *limits), x
    )
    torch.testing.assert_close(y, torch_y)
    torch.testing.assert_close(g, torch_g)
    assert torch.equal(g == 0, torch_g == 0)
    assert 0.2 < (g == 0).float().mean() < 0.9


@pytest.mark.parametrize(("bits", "symmetric"), GRIDS)
def test_value_and_gradient_of_channels_are_torchs(bits, symmetric):
    x = numbers(6, 50) * torch.tensor([[0.01], [1], [100], [1], [3], [1e-4]])
    low, high = 0.5 * x.amin(1, keepdim=True), 0.8 * x.amax(1, keepdim=True)
    scale, zero = affine_parameters(low, high, bits=bits, symmetric=symmetric)
    y, g = gradient(lambda x: fake_quantize_ste(x, scale, zero, bits=bits, symmetric=symmetric), x)
    limits = code_range(bits, symmetric=symmetric)
    torch_y, torch_g = gradient(
        lambda x: torch.fake_quantize_per_channel_affine(x, scale[:, 0], zero[:, 0], 0, *limits), x
    )
    torch.testing.assert_close(y, torch_y)
    torch.testing.assert_close(g, torch_g)
    assert torch.equal(g == 0, torch_g == 0)


def test_min_max_rounds_as_after_training_and_has_torchs_gradient():
    weight = numbers(8, 32)
    y, g = gradient(MinMax(bits=3, granularity=16), weight)
    torch.testing.assert_close(y, fake_quantize(weight, bits=3, granularity=16))
    torch.testing.assert_close(g, numbers(8, 32, seed=9))  # nothing is clipped


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_lsq_has_the_values_and_gradients_of_the_paper(bits):
    x = numbers(5, 40, dtype=torch.float64).requires_grad_()
    step = torch.tensor([[0.02], [0.1], [0.4], [1.0], [3.0]], dtype=torch.float64)
    step.requires_grad_()
    outer = numbers(5, 40, seed=1, dtype=torch.float64)
    y = lsq(x, step, bits=bits)
    y.backward(outer)
    below, above = 2 ** (bits - 1), 2 ** (bits - 1) - 1
    for i in range(5):
        s, total = step[i].item(), 0.0
        for j in range(40):
            v = x[i, j].item() / s
            inside = -below < v < above
            code = round(v) if inside else (-below if v < 0 else above)
            assert y[i, j].item() == pytest.approx(code * s)
            assert x.grad[i, j].item() == pytest.approx(outer[i, j].item() * inside, rel=1e-12)
            total += outer[i, j].item() * (code - v if inside else code)
        assert step.grad[i].item() == pytest.approx(total / (40 * above) ** 0.5)


def test_the_first_steps_are_those_of_the_paper_and_zeros_do_no_harm():
    weight = torch.tensor([[1.0, -2.0, 3.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    assert initial_step(weight, bits=2).tolist() == [[3.0], [1.0]]
    assert initial_step(weight, bits=3)[0].item() == pytest.approx(3 / 3**0.5)
    assert (LSQ(weight, bits=2)(weight)[1] == 0).all()


@pytest.mark.parametrize("maker", MAKERS)
def test_packed_layers_compute_what_the_trained_ones_did(maker):
    model, x = make(), numbers(4, 16)
    add_quantizers_(model, MAKERS[maker])
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("step"):  # -0.3 to 0.3 in float16: packing rounds nothing
                p.copy_(numbers(*p.shape).sign() * (0.3 * numbers(*p.shape).abs()).half())
    before, weight, expected = model(x), model[0].weight.detach(), copy.deepcopy(model.state_dict())
    packed = copy.deepcopy(model)
    finish_(packed)
    assert type(packed[0]) is type(packed[2]) is PackedLinear
    close = {"rtol": 0, "atol": 1e-7} if maker.startswith("lsq") else {"rtol": 1e-3, "atol": 1e-3}
    torch.testing.assert_close(packed[0].dequantize(), weight, **close)
    close = {"rtol": 1e-5, "atol": 1e-5} if maker.startswith("lsq") else {"rtol": 0, "atol": 1e-2}
    torch.testing.assert_close(packed(x), before, **close)
    assert all(torch.equal(tensor, expected[n]) for n, tensor in model.state_dict().items())


def test_two_bits_are_an_eighth_of_a_half():
    model = nn.Sequential(nn.Linear(512, 512))
    add_quantizers_(model, lambda w: LSQ(w, bits=2))
    finish_(model)
    content = 512 * 512 // 4 + 512 * 2 + 512 // 4 + 512 * 4  # codes, steps, zero points, bias
    assert content < bytes_on_disk(model) < content + 500


def test_a_negative_step_mirrors_the_grid():
    weight = torch.tensor([[-3.0, -0.6, 0.6, 3.0]])
    step = torch.tensor([[1.0]])
    assert lsq(weight, step, bits=2).tolist() == [[-2, -1, 1, 1]]
    assert lsq(weight, -step, bits=2).tolist() == [[-1, -1, 1, 2]]


class Batches(list):
    """What `train` iterates: here of (x, y)."""


def trained(maker, **options):
    """The mean squared error of a small model in few bits, before and after training."""
    teacher, x = make(), numbers(256, 16)
    batches = Batches([{"x": p, "y": teacher(p).detach()} for p in x.split(32)])

    def loss(model, batch):
        return (model(batch["x"]) - batch["y"]).square().mean()

    model = copy.deepcopy(teacher)
    add_quantizers_(model, maker)
    whole = {"x": x, "y": teacher(x)}
    before = loss(model, whole).item()
    train(model, batches, loss, epochs=15, learning_rate=5e-3, progress=False, **options)
    finish_(model)
    return before, loss(model, whole).item()


def test_training_makes_up_for_most_of_what_two_bits_lose():
    for maker, options in [
        (lambda w: MinMax(bits=2), {}),
        (lambda w: LSQ(w, bits=2), {"own_rates": {"step": 1e-3}}),
    ]:
        before, after = trained(maker, **options)
        assert after < 0.6 * before


def test_the_float_weight_and_the_steps_train_and_nothing_is_lost():
    model = make()
    weight, state = model[0].weight, torch.get_rng_state()
    add_quantizers_(model, lambda w: LSQ(w, bits=2))
    assert torch.equal(torch.get_rng_state(), state)
    names = {name for name, _ in model.named_parameters()}
    original = "parametrizations.weight.original"
    assert names == {"0.bias"} | {
        f"{i}.parametrizations.weight.{n}" for i in (0, 2) for n in ("original", "0.step")
    }
    assert model[0].get_parameter(original) is weight
    F.mse_loss(model(numbers(4, 16)), torch.zeros(4, 8)).backward()
    assert all(p.grad.any() for p in model.parameters())


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="bits must be 2 to 8, not 1"):
        LSQ(torch.ones(2, 2), bits=1)
    with pytest.raises(ValueError, match="bits must be 1 to 8, not 9"):
        fake_quantize_ste(torch.ones(1), torch.ones(1), torch.zeros(1), bits=9)
    model = make()
    with pytest.raises(ValueError, match="Sequential has no quantizer"):
        finish_(model)
    add_quantizers_(model, lambda w: MinMax(bits=2))
    for odd in (model, nn.Sequential(nn.Tanh())):
        with pytest.raises(ValueError, match="no linear layer, or one with a quantizer"):
            add_quantizers_(odd, lambda w: MinMax(bits=2))
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    with pytest.raises(ValueError, match="0 shares its weight with another layer"):
        add_quantizers_(tied, lambda w: MinMax(bits=2))
