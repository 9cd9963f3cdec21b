"""Long runs. `python -m compresslab.recipes.NAME` writes `data/results/NAME.json`, which holds
the command, seed, versions, machine and date beside the figures, so that a notebook can plot what
it has no time to run, and anyone can run it again.
"""

import json
import os
import platform
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

from ..assets import DATA
from ..machine import processor

RESULTS = DATA / "results"
PACKAGES = ("torch", "transformers", "datasets", "numpy")


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
        },
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
