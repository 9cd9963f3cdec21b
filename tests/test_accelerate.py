"""Recipes on several processes, and one model on several, as docs/outgrowing.md has it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from compresslab import recipes

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs/outgrowing.md"
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
ACCELERATE += ["--num_processes", "2", "--main_process_port", "0"]

RECIPE = '''
import json, os, sys, tempfile, time
from pathlib import Path

import torch
from torch import nn

from compresslab import recipes
from compresslab.recipes import in_parallel, launch, record

recipes.RESULTS = Path(sys.argv[1])
PACE = 240  # seconds that one process waits for the other, at most


def together(folder):
    """Of several processes, none goes on before two are here."""
    (folder / f"{os.getpid()}.here").touch()
    start = time.monotonic()
    while "RANK" in os.environ and len(list(folder.glob("*.here"))) < 2:
        assert time.monotonic() - start < PACE, "nobody else works"
        time.sleep(0.01)


def train(seed, bulk, folder):
    together(folder)
    torch.manual_seed(seed)
    model, data = nn.Sequential(nn.Linear(8, 4), nn.Dropout(0.5), nn.Linear(4, 1)), bulk[:160]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(20):
        loss = model(data.view(20, 8)).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.save(model.state_dict(), folder / f"{seed}.pt")
    return {"seed": seed, "loss": loss.item(), "bulk": bulk}


def check(number):
    if number == 2:
        raise ValueError("two is too many")
    return number


def main():
    torch.manual_seed(7)
    runs, bulk = [], torch.randn(3_000_000)  # 12 MB: more than the store takes at once
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tasks = [{"seed": seed, "bulk": bulk, "folder": folder} for seed in range(5)]
        for result in in_parallel(train, tasks):
            assert torch.equal(result.pop("bulk"), bulk)
            weights = torch.load(folder / f"{result['seed']}.pt")["0.weight"]
            runs.append(result | {"weights": weights.tolist()})
            print("seed", result["seed"], flush=True)
    assert list(in_parallel(check, [])) == []
    figures = {"runs": runs, "again": list(in_parallel(check, [{"number": n} for n in (1, 0)]))}
    figures["drawn after"] = torch.rand(2).tolist()
    print("recorded", record("small", seed=0, figures=figures).name, flush=True)
    if "fail" in sys.argv:
        list(in_parallel(check, [{"number": 1}, {"number": 2}]))


if __name__ == "__main__":
    launch(main)
'''


# A recipe of the course as it is, on a model and sentences that take seconds.
REAL = """
import sys
from pathlib import Path

from test_recipe_allocation import shrink

from compresslab import recipes
from compresslab.recipes import together_allocation

recipes.RESULTS = Path(sys.argv[1])
shrink(setattr)

if __name__ == "__main__":
    recipes.launch(together_allocation.main)
"""


def run(command, folder, name, *arguments):
    """Standard output and error of a module of `folder`, in one thread a process."""
    paths = os.pathsep.join([str(folder), str(ROOT / "lib"), str(ROOT / "tests")])
    plain = {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}
    environment = plain | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*command, "-m", name, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_two_processes_get_the_result_of_one_to_the_last_bit(tmp_path):
    (tmp_path / "small.py").write_text(RECIPE)
    outputs, figures = {}, {}
    for name, command in {"one": [sys.executable], "two": ACCELERATE}.items():
        done = run(command, tmp_path, "small", tmp_path / name)
        assert done.returncode == 0, done.stderr
        outputs[name] = done.stdout
        figures[name] = json.loads((tmp_path / name / "small.json").read_text())["figures"]
    assert figures["one"] == figures["two"]
    assert outputs["one"] == outputs["two"]
    assert outputs["two"].split("\n")[-2] == "recorded small.json"


def test_a_recipe_of_the_course_records_the_same(tmp_path):
    (tmp_path / "shrunk.py").write_text(REAL)
    figures = []
    for name, command in {"one": [sys.executable], "two": ACCELERATE}.items():
        done = run(command, tmp_path, "shrunk", tmp_path / name)
        assert done.returncode == 0, done.stderr
        result = json.loads((tmp_path / name / "together_allocation.json").read_text())
        figures.append(result["figures"])
    assert figures[0] == figures[1]
    assert len(figures[0]["matrices"]) == 8


def test_an_error_of_either_process_ends_both(tmp_path):
    (tmp_path / "small.py").write_text(RECIPE)
    done = run(ACCELERATE, tmp_path, "small", tmp_path / "two", "fail")
    assert done.returncode != 0
    assert "ValueError: two is too many" in done.stderr
    assert re.search(r"In process [01]:\nTraceback", done.stderr)


@pytest.mark.parametrize(
    "path",
    [p for p in Path(recipes.__file__).parent.glob("*.py") if "def main()" in p.read_text()],
    ids=lambda path: path.stem,
)
def test_every_recipe_is_launched(path):
    assert path.read_text().endswith('\n\nif __name__ == "__main__":\n    launch(main)\n')


TOGETHER = """
import copy, sys

import torch
from torch import nn

sys.path.insert(0, "TESTS")
from small import classifier
from tune import Share, accelerator, count, loss
from compresslab.training import classification_loss, train

model = classifier()
for module in model.modules():
    if isinstance(module, nn.Dropout):
        module.p = 0.0
generator, batches = torch.Generator().manual_seed(0), []
for rows in (6, 6, 5, 3):  # for two processes: equal shares, and unequal ones
    ids = torch.randint(1, 40, (rows, 7), generator=generator)
    mask = (torch.arange(7) < torch.randint(2, 8, (rows, 1), generator=generator)).long()
    labels = torch.randint(2, (rows,), generator=generator)
    batches.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
options = {"epochs": 3, "learning_rate": 1e-2, "progress": False}
alone, before = copy.deepcopy(model), copy.deepcopy(model.state_dict())
train(alone, batches, classification_loss, **options)
train(accelerator.prepare_model(model), Share(batches), loss, **options)
expected, found = alone.state_dict(), model.state_dict()
moved = max((found[name] - before[name]).abs().max().item() for name in found)
off = max((found[name] - expected[name]).abs().max().item() for name in found)
assert count == 2 and moved > 1e-2 and off < 1e-7, (count, moved, off)
print("equal", flush=True)
"""


def test_a_model_on_two_processes_learns_as_on_one(tmp_path):
    [program] = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    (tmp_path / "tune.py").write_text(program)
    (tmp_path / "check.py").write_text(TOGETHER.replace("TESTS", str(ROOT / "tests")))
    done = run(ACCELERATE, tmp_path, "check")
    # Two processes may write into each other's lines.
    assert (done.returncode, done.stdout.count("equal")) == (0, 2), done.stderr
