import copy

import pytest
import small
import torch
from torch.nn import functional as F

from compresslab.layers import find_linears
from compresslab.pruning.sparsegpt import collect_hessians
from compresslab.quantization.affine import min_max, quantize_tensor
from compresslab.quantization.gptq import gptq, gptq_model_, obq
from compresslab.quantization.linear import PackedLinear, pack_linears_


def problem(rows=6, columns=32, tokens=200, seed=0):
    return small.layer(rows, columns, tokens, seed)


def error(weight, quantized, x):
    return ((weight - quantized.dequantize()) @ x.T).square().sum().item()


def clipped(groups, *, bits, symmetric):
    low, high = min_max(groups, bits=bits, symmetric=symmetric)
    return 0.8 * low, 0.8 * high


def assert_same(first, second):
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.zero_point, second.zero_point)
    torch.testing.assert_close(first.scale, second.scale)


def test_two_weights_by_hand():
    # The grid of the row has steps of 1, from 0 to 3. The first weight loses 0.4, and the second
    # gains 0.4 · H₁₂ / H₂₂ = 0.2: it goes from 3.4, which rounding would make 3, up to 3.6.
    weight, hessian = torch.tensor([[1.4, 3.4]]), torch.tensor([[1.0, 0.5], [0.5, 1.0]])
    grid = {"bits": 3, "choose": lambda groups, **_: (groups[:, :1] * 0, groups[:, :1] * 0 + 7)}
    assert quantize_tensor(weight, **grid).codes.tolist() == [[1, 3]]
    for solve in (obq, gptq):
        assert solve(weight, hessian, damping=0.0, **grid).codes.tolist() == [[1, 4]]


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("group_size", [None, 16, 4])
@pytest.mark.parametrize("choose", [min_max, clipped])
def test_it_is_brute_force_optimal_brain_quantization(bits, group_size, choose):
    weight, x = problem()
    options = {"bits": bits, "group_size": group_size, "choose": choose}
    assert_same(gptq(weight, x.T @ x, block=8, **options), obq(weight, x.T @ x, **options))


def test_each_weight_is_rounded_after_the_best_change_for_all_before_it():
    # A second form, without any inverse: the weights that are left solve a least-squares problem.
    weight, x = problem(rows=3, columns=8)
    x = x.double()
    quantized = gptq(weight, (x.T @ x).float(), bits=3, damping=0.0)
    rounded = quantized.dequantize().double()
    for j in range(1, 8):
        rest = (weight - rounded)[:, :j] @ x[:, :j].T + weight[:, j:].double() @ x[:, j:].T
        w = torch.linalg.lstsq(x[:, j:], rest.T).solution[0]
        codes = (w / quantized.scale[:, 0]).round() + quantized.zero_point[:, 0]
        assert torch.equal(codes.clamp(0, 7).byte(), quantized.codes[:, j])


@pytest.mark.parametrize("act_order", [False, True])
def test_independent_inputs_of_one_size_give_plain_rounding(act_order):
    weight, _ = problem()
    quantized = gptq(weight, 3.0 * torch.eye(32), bits=3, group_size=8, act_order=act_order)
    assert_same(quantized, quantize_tensor(weight, bits=3, granularity=8))


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4])
def test_the_outputs_are_nearer_than_those_of_rounding(bits, act_order):
    weight, x = problem(rows=32)
    quantized = gptq(weight, x.T @ x, bits=bits, group_size=8, act_order=act_order)
    plain = quantize_tensor(weight, bits=bits, granularity=8)
    assert error(weight, quantized, x) < 0.7 * error(weight, plain, x)


@pytest.mark.parametrize("group_size", [None, 16, 4])
def test_the_result_does_not_depend_on_the_block(group_size):
    weight, x = problem()
    first, *others = (
        gptq(weight, x.T @ x, bits=3, group_size=group_size, block=b) for b in (4, 8, 16, 32, 128)
    )
    for other in others:
        assert_same(first, other)


def test_a_group_s_range_comes_from_weights_that_have_made_up_for_those_before():
    weight, x = problem()
    quantized = gptq(weight, x.T @ x, bits=3, group_size=16)
    plain = quantize_tensor(weight, bits=3, granularity=16)
    first, second = (quantized.scale == plain.scale).view(6, 2).unbind(1)
    assert first.all()
    assert not second.any()


def test_in_the_order_of_the_hessian_the_ranges_are_those_of_the_weight():
    weight, x = problem()
    x = x * torch.linspace(0.1, 2, 32)  # the last column comes first
    ordered = gptq(weight, x.T @ x, bits=3, group_size=8, act_order=True)
    plain = quantize_tensor(weight, bits=3, granularity=8)
    assert torch.equal(ordered.scale, plain.scale)
    assert torch.equal(ordered.codes[:, -1], plain.codes[:, -1])
    assert not torch.equal(ordered.codes[:, 0], plain.codes[:, 0])


def test_the_order_of_the_hessian_is_an_order_of_the_columns():
    # One group, whose range is the same in any order.
    weight, x = problem()
    order = (x.T @ x).diagonal().argsort(descending=True)
    ordered = gptq(weight, x.T @ x, bits=3, act_order=True)
    sorted_before = gptq(weight[:, order], x[:, order].T @ x[:, order], bits=3)
    assert torch.equal(ordered.codes[:, order], sorted_before.codes)


@pytest.mark.parametrize("act_order", [False, True])
def test_an_input_that_is_always_zero_does_no_harm(act_order):
    weight, x = problem()
    x[:, 3] = 0
    weight[:, 3] = 100  # would widen the range of its group
    quantized = gptq(weight, x.T @ x, bits=3, group_size=8, act_order=act_order)
    assert (quantized.dequantize()[:, 3] == 0).all()
    weight[:, 3] = 0
    assert_same(quantized, gptq(weight, x.T @ x, bits=3, group_size=8, act_order=act_order))


def test_no_input_at_all_gives_zeros_and_a_row_of_zeros_stays():
    weight, x = problem()
    assert (gptq(weight, torch.zeros(32, 32), bits=3).dequantize() == 0).all()
    weight[2] = 0
    assert (gptq(weight, x.T @ x, bits=3, group_size=8).dequantize()[2] == 0).all()


def test_the_size_of_the_hessian_does_not_matter_and_the_input_is_left_alone():
    weight, x = problem()
    hessian = x.T @ x
    before = weight.clone(), hessian.clone()
    assert_same(gptq(weight, hessian, bits=3), gptq(weight, hessian / 1024, bits=3))
    obq(weight, hessian, bits=3)
    assert torch.equal(weight, before[0])
    assert torch.equal(hessian, before[1])


def test_the_codes_can_be_packed():
    weight, x = problem()
    quantized = gptq(weight, x.T @ x, bits=3, group_size=8)
    layer = PackedLinear(quantized)
    torch.testing.assert_close(layer(x), x @ quantized.dequantize().T, rtol=0, atol=0.05)


def test_bad_input_is_named():
    weight, hessian = problem()[0], torch.eye(32)
    with pytest.raises(ValueError, match=r"hessian must have shape \(32, 32\)"):
        gptq(weight, torch.eye(5), bits=3)
    with pytest.raises(ValueError, match="group_size must divide 32, the columns, not 5"):
        gptq(weight, hessian, bits=3, group_size=5)
    with pytest.raises(
        ValueError, match=r"block must divide 16, .* or be a multiple of it, not 24"
    ):
        gptq(weight, hessian, bits=3, group_size=16, block=24)
    with pytest.raises(ValueError, match="Linear has no blocks of a Llama"):
        gptq_model_(torch.nn.Linear(2, 2), torch.zeros(1, 2), bits=3)


# ---------------------------------------------------------------- a model


@pytest.fixture(scope="module", params=["sdpa", "eager"])  # without and with a mask
def llama(request):
    return small.llama(
        attn_implementation=request.param,
        hidden_size=32,
        intermediate_size=64,
        initializer_range=0.1,
    )


@pytest.fixture(scope="module")
def windows():
    return torch.randint(50, (40, 16), generator=torch.Generator().manual_seed(1))


def quantize_all(model, windows, **options):
    model = copy.deepcopy(model)
    gptq_model_(model, windows, **{"bits": 3, "group_size": 16} | options)
    return model


def test_all_layers_of_the_blocks_are_packed_and_no_others(llama, windows):
    steps = []
    model = quantize_all(llama, windows, after_block=lambda *step: steps.append(step))
    assert sum(isinstance(m, PackedLinear) for m in model.modules()) == 14
    assert list(find_linears(model)) == ["lm_head"]
    assert steps == [(1, 2), (2, 2)]


def test_every_block_sees_what_the_quantized_blocks_before_it_give(llama, windows):
    # The whole model reads the windows anew for every block.
    expected, batches = copy.deepcopy(llama), windows.split(16)
    for i in range(2):
        hessians = collect_hessians(expected.model, batches)
        names = [name for name in hessians if name.startswith(f"layers.{i}.")]
        solve = lambda name, w, h=hessians: gptq(w, h[name], bits=3, group_size=16)  # noqa: E731
        pack_linears_(expected.model, solve, names)
    model = quantize_all(llama, windows, batch_size=16)
    for name in find_linears(llama.model):
        ours, theirs = (m.model.get_submodule(name).dequantize() for m in (model, expected))
        # Sums in another order may move a scale by one unit in its last place.
        torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=1e-5)


def test_the_model_s_output_is_nearer_than_that_of_rounding(llama, windows):
    rounded = copy.deepcopy(llama)
    pack_linears_(rounded.model, lambda _, w: quantize_tensor(w, bits=3, granularity=16))
    with torch.no_grad():
        dense, ours, plain = (
            m(windows).logits for m in (llama, quantize_all(llama, windows), rounded)
        )
    assert F.mse_loss(ours, dense) < 0.8 * F.mse_loss(plain, dense)
