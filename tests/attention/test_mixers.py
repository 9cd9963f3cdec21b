import pytest
import torch
from recurrent_forms import flat
from small import randn
from torch.nn import functional as F

from compresslab.attention.linear import linear_attention_step
from compresslab.attention.mixers import MIXERS, ShortConvolution, SmallModel
from compresslab.attention.retention import chunked_retention
from compresslab.measure import count_parameters

WIDTH = 16
NAMES = list(MIXERS)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def mixer(name, *, state_size=4):
    return MIXERS[name](WIDTH, state_size, generator()).double()


def model(name, **sizes):
    sizes = {"width": WIDTH, "state_size": 4} | sizes
    return SmallModel(20, name, generator=generator(), **sizes)


@pytest.mark.parametrize("name", NAMES)
def test_what_comes_later_changes_nothing_and_what_comes_now_does(name):
    small = model(name).double()
    ids = torch.randint(20, (2, 70), generator=generator())
    before = small(ids)
    for t in (1, 40, 69):
        changed = ids.clone()
        changed[:, t:] = (changed[:, t:] + 7) % 20
        after = small(changed)
        torch.testing.assert_close(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_learns(name):
    small = model(name)
    ids = torch.randint(20, (2, 9), generator=generator())
    (small(ids) * randn(2, 9, 20).float()).sum().backward()
    for key, parameter in small.named_parameters():
        assert (parameter.grad != 0).any(), key


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_makes_the_same_model(name):
    torch.manual_seed(0)
    one = model(name).state_dict()
    torch.manual_seed(1)
    other = model(name).state_dict()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["S4D", "Mamba", "RWKV"])
def test_what_a_core_keeps_is_the_size_of_its_state(name):
    layer = mixer(name, state_size=8)
    state, _ = layer.core(randn(1, 9, WIDTH))
    numbers = sum(x.numel() * (2 if x.is_complex() else 1) for x in flat(state))
    assert layer.kept(9) == layer.kept(1000) == numbers


def test_what_heads_keep_is_the_size_of_their_states():
    heads = [randn(1, 4, 4, seed=i) for i in range(3)]  # one token, 4 heads of 4
    assert mixer("linear attention").kept(50) == linear_attention_step(None, *heads)[0].numel()
    state, _ = chunked_retention(*(x[:, :, None] for x in heads), torch.ones(4))
    for name in ("RetNet", "delta rule", "gated delta rule"):
        assert mixer(name).kept(50) == state.numel() == WIDTH * 4
    assert mixer("full attention").kept(50) == 2 * WIDTH * 50
    assert mixer("sliding window").window == 2
    assert mixer("sliding window").kept(50) == 2 * WIDTH * 2
    assert mixer("sliding window").kept(1) == 2 * WIDTH


@pytest.mark.parametrize("state_size", [4, 16])
def test_states_and_models_are_of_one_size(state_size):
    kept = {name: mixer(name, state_size=state_size).kept(10**6) for name in NAMES}
    assert kept.pop("full attention") == 2 * WIDTH * 10**6
    assert kept.pop("RWKV") == 4 * WIDTH
    kept["Mamba"] -= 2 * WIDTH * 3  # of its convolution
    sizes = set(kept.values())
    assert sizes <= {WIDTH * state_size, WIDTH * (state_size + 1)}
    numbers = [count_parameters(model(name, width=64, state_size=16)) for name in NAMES]
    assert max(numbers) - min(numbers) < 2 * 2 * 64  # a neuron of the network in both layers


def test_full_attention_is_that_of_torch_and_a_window_of_all_tokens_is_the_same():
    full, window = mixer("full attention"), mixer("sliding window")
    x = randn(2, 9, WIDTH)
    query, key, value = (
        y.view(2, 9, 4, 4).transpose(1, 2) for y in full.inputs(x).split(WIDTH, dim=-1)
    )
    attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    expected = full.output(attended.transpose(1, 2).reshape(2, 9, WIDTH))
    torch.testing.assert_close(full(x), expected)
    window.load_state_dict(full.state_dict())
    assert not torch.allclose(window(x), expected)
    window.window = 9
    torch.testing.assert_close(window(x), expected)


def test_a_gate_that_forgets_nothing_changes_nothing():
    plain, gated = mixer("delta rule"), mixer("gated delta rule")
    gated.load_state_dict(plain.state_dict(), strict=False)
    x = randn(2, 9, WIDTH)
    assert not torch.allclose(gated(x), plain(x))
    with torch.no_grad():
        gated.gate.weight.zero_()
    gated.gate.register_forward_hook(lambda module, args, output: output + 100)
    torch.testing.assert_close(gated(x), plain(x))


def test_the_short_convolution_adds_the_last_four_tokens():
    conv, x = ShortConvolution(3, generator()).double(), randn(1, 7, 3)
    for t in range(7):
        for c in range(3):
            seen = [x[0, t - i, c] * conv.weight[c, 0, 3 - i] for i in range(min(4, t + 1))]
            torch.testing.assert_close(conv(x)[0, t, c], x[0, t, c] + sum(seen))


def test_shapes_and_bad_input():
    ids = torch.zeros(2, 3, dtype=torch.long)
    assert model("RetNet")(ids).shape == (2, 3, 20)
    assert model("RetNet", outputs=5)(ids).shape == (2, 3, 5)
    assert model("S4D", layers=3).kept(9) == 3 * WIDTH * 4
    with pytest.raises(ValueError, match=r"mixer must be one of full attention, .* not 'fast'"):
        model("fast")
    with pytest.raises(ValueError, match="state_size must divide the width 16, not be 5"):
        model("delta rule", state_size=5)
    with pytest.raises(ValueError, match="state_size 200 is too large for a width of 16"):
        model("S4D", state_size=200)
