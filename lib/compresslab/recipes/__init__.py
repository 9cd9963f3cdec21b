"""Long runs. `python -m compresslab.recipes.NAME` writes `data/results/NAME.json`, which holds
the command, seed, versions, machine and date beside the figures, so that a notebook can plot what
it has no time to run, and anyone can run it again. `accelerate launch -m compresslab.recipes.NAME`
runs it on several processes, with the same result: see docs/outgrowing.md.
"""

import json
import multiprocessing
import os
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ..assets import DATA
from ..machine import processor
from .team import Team

RESULTS = DATA / "results"
PACKAGES = ("torch", "transformers", "datasets", "numpy")
_team: Team | None = None  # the processes of this recipe, if there are several


def launch(main: Callable[[], None]) -> None:
    """Run the recipe `main`; of several processes that a launcher started, the first one does, and
    the others help it with `in_parallel`.
    """
    global _team
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        main()
        return
    if torch.cuda.is_available():  # "cuda" is another GPU in each process of a machine
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    _team = Team()
    if _team.rank == 0:
        main()
        _team.dismiss()
    else:
        _team.serve()


def record(name: str, *, seed: int, figures: dict, models: list[dict] = ()) -> Path:
    """Write the result of recipe `name`, whole or not at all.

    Args:
        figures: whatever the recipe measured, ready for JSON.
        models: rows for the scoreboard, see `scoreboard.row`.
    """
    result = {
        "command": f"python -m compresslab.recipes.{name}",
        "seed": seed,
        "date": datetime.now(UTC).date().isoformat(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
        "machine": {
            "processor": processor(),
            "threads": torch.get_num_threads(),
            "system": sys.platform,
        }
        | ({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        "figures": figures,
        "models": list(models),
    }
    RESULTS.mkdir(exist_ok=True)
    path, draft = RESULTS / f"{name}.json", RESULTS / f".{name}.json"
    draft.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    os.replace(draft, path)
    return path


def recorded(name: str) -> dict:
    """The recorded result of recipe `name`.

    Raises:
        FileNotFoundError: it has not been run.
    """
    path = RESULTS / f"{name}.json"
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: run `python -m compresslab.recipes.{name}` to make it"
        )
    return json.loads(path.read_text(encoding="utf-8"))


def in_parallel(run: Callable, tasks: Iterable[dict]) -> Iterator:
    """The results of `run(**task)`, in order, each as soon as it is there.

    One process a thread of torch, one thread a process: small models train half as fast again
    this way as one after the other with all threads. `run` is a function of a module and seeds
    what is random, so that its result does not depend on what runs beside it. Where a launcher
    started several processes, it is these that do the tasks.
    """
    if _team is not None:
        yield from _team.share(run, list(tasks))
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(
        torch.get_num_threads(),
        mp_context=context,
        initializer=torch.set_num_threads,
        initargs=(1,),
    ) as pool:
        futures = [pool.submit(run, **task) for task in tasks]
        for future in futures:
            yield future.result()
