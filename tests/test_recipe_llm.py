"""What the recipe together_llm is made of: grids, their file, and candidates of one size."""

import json
from types import SimpleNamespace

import pytest
import torch
from small import layer, llama

from compresslab.pruning.sparsegpt import collect_hessians
from compresslab.recipes import grids, together_llm
from compresslab.recipes.grids import TABLE, ZERO, Grid
from compresslab.recipes.together_llm import (
    WITHIN,
    best,
    candidate,
    cheapest_layers,
    form,
    speeds,
    squared_gradients,
    steps_and_scales,
    tune_,
    unclipped,
)
from compresslab.sharing.tied import state_bytes


def tied(width=32, **sizes):
    model = llama(hidden_size=width, intermediate_size=width + 8, tie_word_embeddings=True, **sizes)
    model.generation_config = None
    return model


def ids(windows=6, time=12, seed=0):
    return torch.randint(50, (windows, time), generator=torch.Generator().manual_seed(seed))


def some_grids(model, seed=0):
    """Grids with steps and scales of all sizes, and the largest and smallest codes."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, module in grids.matrices(model).items():
        rows, columns = module.weight.shape
        step = grids.half(0.02 * (2 * torch.randn(rows, generator=generator)).exp())
        scale = torch.ones(columns)
        if name != TABLE:
            scale = grids.half(torch.randn(columns, generator=generator).exp())
        grid = grids.nearest(module.weight.detach(), step, scale)
        grid.codes[0, :2] = torch.tensor([0, 255])
        found[name] = grid._replace(root=grids.half(grid.root))
    return found


def even_grids(model, part):
    """Grids whose step is a part of the spread of each matrix."""
    found = {}
    for name, module in grids.matrices(model).items():
        weight = module.weight.detach()
        step = grids.half(part * weight.std().expand(len(weight)))
        found[name] = grids.nearest(weight, step, torch.ones(weight.shape[1]))
        found[name] = found[name]._replace(root=grids.half(found[name].root))
    return found


def statistics(model, windows):
    return {
        "hessians": collect_hessians(model, [windows]),
        "gradients": squared_gradients(model, windows),
    }


def test_a_file_gives_the_same_numbers_and_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "CHUNK", 1000)
    monkeypatch.setattr(grids, "LANES", 16)
    model = tied()
    with torch.no_grad():
        model.model.norm.weight.mul_(1.2345)
    found = some_grids(model)
    assert len(torch.cat([grids.classes(g).flatten() for g in found.values()]).unique()) > 6
    grids.put_(model, found)
    size = grids.write(model, found, tmp_path / "it.clab")
    assert size == (tmp_path / "it.clab").stat().st_size
    random = torch.random.get_rng_state()
    other, again = grids.read(tmp_path / "it.clab")
    assert torch.equal(random, torch.random.get_rng_state())
    for name, grid in found.items():
        for ours, theirs in zip(again[name], grid, strict=True):
            assert torch.equal(ours, theirs), name
    assert other.lm_head.weight is other.model.embed_tokens.weight
    assert torch.equal(other(input_ids=ids()).logits, model(input_ids=ids()).logits)
    weight = model.model.layers[1].mlp.down_proj.weight
    grid = found["model.layers.1.mlp.down_proj"]
    assert weight[3, 5] == (int(grid.codes[3, 5]) - 127) * grid.step[3] / grid.scale[5]


def test_a_file_is_as_long_as_its_codes_are_surprising(tmp_path, monkeypatch):
    monkeypatch.setattr(grids, "LANES", 64)
    model = tied(128)
    found = even_grids(model, 1.0)
    codes = torch.cat([grid.codes.flatten() for grid in found.values()])
    shares = torch.bincount(codes) / len(codes)
    entropy = -(shares[shares > 0] * shares[shares > 0].log2()).sum().item()
    assert entropy == pytest.approx(2.1, abs=0.05)  # normal numbers, and a step as their spread
    numbers = sum(len(grid.step) + len(grid.scale) for grid in found.values())
    expected = entropy * len(codes) / 8 + 2 * numbers
    assert grids.all_bytes(found) == pytest.approx(expected, rel=1e-3)
    grids.put_(model, found)
    size = grids.write(model, found, tmp_path / "it.clab")
    assert entropy * len(codes) / 8 < size < 1.01 * expected  # all scales are 1, and take nothing


def test_numbers_expected_to_be_larger_are_in_another_class():
    grid = Grid(
        torch.full((3, 2), ZERO, dtype=torch.uint8),
        torch.tensor([1.0, 0.5, 1e-7]),
        torch.tensor([0.8, 0.8 * 2**0.5]),
        torch.tensor(1.0),
    )
    assert grids.classes(grid).tolist() == [[8, 9], [10, 11], [15, 15]]


def test_packed_and_int8_models_say_the_same(tmp_path):
    model = tied()
    found = even_grids(model, 0.3)
    found["model.layers.0.mlp.up_proj"].codes.fill_(ZERO)  # a matrix of zeros
    grids.put_(model, found)
    grids.write(model, found, tmp_path / "it.clab")
    expected = model(input_ids=ids()).logits
    stored = grids.read(tmp_path / "it.clab")
    packed, int8 = (form(*stored, kind) for kind in ("packed", "int8"))
    torch.testing.assert_close(packed(input_ids=ids()).logits, expected, rtol=2e-3, atol=2e-3)
    assert packed.lm_head.codes is packed.model.embed_tokens.codes
    off = (int8(input_ids=ids()).logits - expected).square().mean() / expected.var()
    assert 0 < off < 0.05
    assert state_bytes(packed) < state_bytes(model) / 2
    found = speeds({"packed": packed}, model)
    assert found["dense"]["speedup"]["value"] == 1
    assert found["packed"]["tokens"] > 0


def test_without_correlations_gptq_takes_the_nearest_numbers():
    weight, _ = layer(6, 16)
    step, scale = torch.linspace(0.25, 0.75, 6), torch.ones(16)
    found = grids.round_to_grid(weight, 3 * torch.eye(16), step, scale)
    step = grids.half(step)
    assert torch.equal(found.codes, grids.nearest(weight, step, scale).codes)
    assert ((found.weight() - weight).abs() <= 0.501 * step[:, None]).all()


def test_scales_are_roots_of_what_is_left_when_later_columns_make_up_for_an_error():
    _, x = layer(1, 8)
    hessian = x.T @ x
    found = grids.column_scales(hessian).square()
    damped = (hessian + 0.01 * hessian.diagonal().mean() * torch.eye(8)).double()
    order = damped.diagonal().argsort(descending=True)
    for place, j in enumerate(order):
        later = order[place + 1 :]
        answer = torch.linalg.solve(damped[later][:, later], damped[later, j])
        assert found[j].item() == pytest.approx(
            (damped[j, j] - damped[j, later] @ answer).item(), rel=1e-3
        )


@pytest.mark.parametrize("factor", [0.3, 1.0])
def test_finer_steps_for_inputs_that_matter_leave_less_error_in_as_many_bytes(factor):
    weight, x = layer(48, 32, tokens=400)
    x = (
        x
        * torch.logspace(-1, 1, 32)[torch.randperm(32, generator=torch.Generator().manual_seed(1))]
    )
    hessian, gradient = x.T @ x, torch.ones(48)

    def made(way, factor):
        step, scale = steps_and_scales(weight, hessian, gradient, way, table=False)
        grid = grids.round_to_grid(weight, hessian, factor * step, scale)
        return grids.all_bytes({"": grid}), ((grid.weight() - weight) @ x.T).square().sum()

    size, error = made("even", factor)
    smaller, less = next(
        found for f in torch.logspace(-1, 1, 200).tolist()
        if (found := made("by inputs", factor * f))[0] <= size
    )  # fmt: skip
    assert smaller > 0.9 * size
    assert less < 0.5 * error


def test_by_both_an_error_in_each_weight_costs_as_much_in_every_matrix():
    generator = torch.Generator().manual_seed(0)
    for seed, rows in ((0, 10), (1, 5)):
        weight, x = layer(rows, 8, seed=seed)
        hessian, gradient = x.T @ x, 1 + torch.rand(rows, generator=generator)
        costs = grids.column_scales(hessian).square()
        step, scale = steps_and_scales(weight, hessian, gradient, "by both", table=False)
        assert scale.log().mean().item() == pytest.approx(0, abs=1e-5)
        each = gradient[:, None] * (step[:, None] / scale).square() * costs
        torch.testing.assert_close(each, torch.ones(rows, 8))
        step, scale = steps_and_scales(weight, hessian, gradient, "by both", table=True)
        assert (scale == 1).all()
        each = gradient[:, None] * step[:, None].square() * costs
        torch.testing.assert_close(each.mean(1), torch.ones(rows))
    rare = torch.tensor([0.0, 0.0, 0.0, 4.0, 0.0])
    step, _ = steps_and_scales(weight, hessian, rare, "by both", table=True)
    assert (step[0] / step[3]).item() == pytest.approx((4 / 0.08) ** 0.5, rel=1e-5)
    even = {
        table: steps_and_scales(weight, hessian, rare, "by both, table even", table=table)[0]
        for table in (True, False)
    }
    floored = rare.clamp(min=0.08)
    torch.testing.assert_close(even[True], step * (floored / floored.mean()).sqrt())
    assert len(even[True].unique()) == 1
    assert len(even[False].unique()) == 2


def test_squared_gradients_are_those_of_every_token():
    model, windows = tied(), ids(2, 5)
    frozen = model.model.norm.weight.requires_grad_(False)
    found = squared_gradients(model, windows)
    assert set(found) == {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    answers = torch.softmax(model(input_ids=windows).logits.detach()[:, :-1], -1)
    right = torch.nn.functional.one_hot(windows[:, 1:], 50)
    expected = (answers - right).square().sum((0, 1))  # of the cross-entropy
    torch.testing.assert_close(found["lm_head"], expected)

    name, kept = "model.layers.0.mlp.up_proj", []
    linear = model.get_submodule(name)
    handle = linear.register_forward_hook(lambda m, i, out: kept.append(out) or out.retain_grad())
    logits = model(input_ids=windows).logits[:, :-1].log_softmax(-1)
    (-logits.gather(-1, windows[:, 1:, None]).sum()).backward()
    handle.remove()
    torch.testing.assert_close(found[name], kept[0].grad.square().sum((0, 1)))
    assert not frozen.requires_grad
    assert model.lm_head.weight.requires_grad


def test_only_what_would_be_clipped_gets_a_coarser_grid():
    weight = torch.tensor([[1.0, 0.1, -500.0], [0.2, 0.3, 3.0]])
    step, scale = torch.tensor([1.0, 0.5]), torch.tensor([1.0, 2.0, 1.0])
    limit = 0.9 * ZERO
    same, less = unclipped(weight, step, scale, table=False)
    assert torch.equal(same, step)
    torch.testing.assert_close(less, torch.tensor([1.0, 2.0, limit / 500]))
    more, same = unclipped(weight, step, scale, table=True)
    assert torch.equal(same, scale)
    torch.testing.assert_close(more, torch.tensor([500 / limit, 0.5]))


@pytest.mark.parametrize("way", together_llm.WAYS)
def test_every_candidate_has_the_size_that_was_asked_for(way):
    model = tied(64)
    found = statistics(model, ids())
    whole = model(input_ids=ids(seed=1)).logits
    errors = []
    for budget in (25_000, 14_000):
        made = candidate(model, found, way, budget)
        assert WITHIN[0] * budget <= grids.all_bytes(made) <= WITHIN[1] * budget
        other = tied(64)
        grids.put_(other, made)
        errors.append((other(input_ids=ids(seed=1)).logits - whole).square().mean() / whole.var())
    assert 0 < errors[0] < errors[1] / 4


def test_the_layers_that_go_are_those_that_cost_least_alone(monkeypatch):
    model, costs = tied(num_hidden_layers=5), (9.0, 2.0, 7.0, 1.0, 3.0)
    for i, one in enumerate(model.model.layers):
        one.input_layernorm.weight.detach().fill_(costs[i])

    def without(model, windows):
        left = [one.input_layernorm.weight[0].item() for one in model.model.layers]
        assert len(left) == model.config.num_hidden_layers == 4
        return SimpleNamespace(value=sum(costs) - sum(left))

    monkeypatch.setattr(together_llm, "perplexity", without)
    assert cheapest_layers(model, ids(), 2) == [0, 2, 4]
    assert len(model.model.layers) == 5


def test_tuning_brings_a_model_nearer_to_its_teacher_and_leaves_all_codes(monkeypatch):
    teacher, model = tied(), tied()
    monkeypatch.setattr(together_llm, "load_language_model", lambda: (teacher, None))
    found = even_grids(model, 0.5)
    for name, grid in found.items():
        if name.endswith(("v_proj", "o_proj")):  # wrong by a factor that can be trained
            found[name] = grid._replace(step=2 * grid.step)
    grids.put_(model, found)
    table = model.lm_head.weight.clone()
    windows = ids(60)

    def distance():
        with torch.no_grad():
            ours, theirs = (m(input_ids=windows).logits.log_softmax(-1) for m in (model, teacher))
            return (theirs.exp() * (theirs - ours)).sum(-1).mean().item()

    before = distance()
    tuned, loss = tune_(model, found, windows, 3e-2)
    assert distance() < 0.5 * before
    assert loss[0] < before
    assert torch.equal(model.lm_head.weight, table)
    assert not any("parametrizations" in name for name in model.state_dict())
    for name, grid in tuned.items():
        assert torch.equal(grid.codes, found[name].codes)
        assert torch.equal(grid.weight(), model.get_submodule(name).weight)
        assert torch.equal(grid.step, found[name].step) == (name == TABLE)


@pytest.mark.parametrize(
    ("better", "size", "kept"),
    [(True, 90, "tuned"), (True, 101, "before"), (False, 90, "before")],
)
def test_what_is_worse_or_too_large_after_tuning_stays_as_it_was(
    better, size, kept, tmp_path, monkeypatch
):
    model, other = tied(), tied()
    found = even_grids(model, 0.5)
    choice = {"budget": 100, "way": "even", "layers": 2}
    torch.save({n: tuple(g) for n, g in found.items()}, together_llm.saved(tmp_path, **choice))
    values = iter([50.0, 40.0 if better else 60.0])
    written = []

    def write(model, grids, path):
        written.append(grids)
        path.write_bytes(bytes(size if grids == "tuned" else 95))
        return path.stat().st_size

    monkeypatch.setattr(together_llm, "prepared", lambda path: (other, {}))
    monkeypatch.setattr(together_llm, "articles", lambda split, count: ids(4))
    monkeypatch.setattr(together_llm, "judge", lambda model: {"value": next(values)})
    monkeypatch.setattr(together_llm, "tune_", lambda *args: ("tuned", [1.0]))
    monkeypatch.setattr(together_llm, "write", write)
    result = together_llm.tune({2: None}, tmp_path, choice, 1e-3, 1.0)
    assert result["kept"] == kept
    assert result["bytes"] == (size if kept == "tuned" else 95)
    assert result["validation"]["value"] == (40.0 if kept == "tuned" else 50.0)
    assert (written[-1] == "tuned") == (kept == "tuned")


def test_the_best_of_a_budget_is_taken_by_validation():
    def made(budget, value, way="even"):
        return {"budget": budget, "way": way, "layers": 30, "validation": {"value": value}}

    runs = [made(50, 60.0), made(35, 90.0), made(35, 80.0, "by both"), made(35, 85.0)]
    assert best(runs, 35) == {"budget": 35, "way": "by both", "layers": 30}


def test_from_a_model_to_a_file_for_every_budget(monkeypatch):
    budgets, found = (9_000, 7_000, 6_000), {}
    small = {
        "BUDGETS": budgets,
        "TRIED": 7_000,
        "LAYERS": (3, 2),
        "FEW": 2,
        "GROUPS": ({"bits": 2, "group_size": 8},),
        "RATES": (1e-3, 1e-2),
        "load_language_model": lambda: (tied(num_hidden_layers=3), None),
        "articles": lambda split, count: ids(8, seed=len(split))[:count],
        "in_parallel": lambda function, tasks: (function(**task) for task in tasks),
        "record": lambda name, **result: found.update(result),
    }
    for name, value in small.items():
        monkeypatch.setattr(together_llm, name, value)
    monkeypatch.setattr(grids, "LANES", 2)
    tune = together_llm.tune

    def turned(*args, **options):
        """What was the worse one before tuning is the better one after it."""
        result = tune(*args, **options)
        return result | {"validation": {"value": 1e6 / result["before"]["value"]}}

    monkeypatch.setattr(together_llm, "tune", turned)
    together_llm.main()
    figures = json.loads(json.dumps(found["figures"]))
    assert [start["layers"] for start in figures["starts"]] == [2, 3]
    assert [run["way"] for run in figures["runs"][:4]] == list(together_llm.WAYS)
    assert len(figures["runs"]) == 4 + 2 * 3 - 1
    chosen = [trial["learning_rate"] for trial in figures["trials"]]
    assert chosen == [1e-3, 1e-2]
    same = ("budget", "way", "layers")
    for tuned in figures["tuned"]:
        (run,) = (run for run in figures["runs"] if all(run[k] == tuned[k] for k in same))
        assert tuned["before"] == run["validation"]
        assert tuned["bytes"] == pytest.approx(tuned["budget"], abs=2_500)
    for budget, winner in zip(budgets, figures["winners"], strict=True):
        of = [tuned for tuned in figures["tuned"] if tuned["budget"] == budget]
        least = min(of, key=lambda tuned: tuned["validation"]["value"])
        assert len(of) == 2
        assert (winner["layers"], winner["bytes"]) == (least["layers"], least["bytes"])
        assert winner["forms"]["packed"]["memory"] < winner["forms"]["float32"]["memory"]
        assert winner["test"]["value"] == pytest.approx(least["before"]["value"], rel=0.3)
