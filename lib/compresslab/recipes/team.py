"""Several processes that work on one recipe. No recipe itself.

Under `accelerate launch` every process starts the same module. The first one runs the recipe; the
others do tasks that it shares out, and nothing else, so that all that a recipe prints, saves or
times happens once. They talk through the store by which the processes of torch find each other:
any launcher will do that sets RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT.
"""

import itertools
import pickle
import traceback
from collections.abc import Callable, Iterator
from datetime import timedelta

import torch
from torch import distributed

PIECE = 2**22  # bytes; the store takes up to twice as many at once
PATIENCE = timedelta(days=30)  # one waits while another trains


class Team:
    """This process and the others: `rank` is its number, of `size`."""

    def __init__(self):
        self.store, self.rank, self.size = next(distributed.rendezvous("env://", timeout=PATIENCE))
        self.lots = itertools.count()  # one for each call of `share`

    def share(self, run: Callable, tasks: list[dict]) -> Iterator:
        """In the first process: the results of `run(**task)`, in order. Whoever is free takes the
        next task, this process too.
        """
        lot = f"lot {next(self.lots)}"
        self._put(lot, (run, tasks))
        for i in range(len(tasks)):
            # Between two tasks of its own, what has arrived goes out.
            while not self.store.check([f"{lot} result {i}"]) and self._work(lot, run, tasks):
                pass
            result, error = self._get(f"{lot} result {i}")
            if error is not None:
                raise error
            yield result

    def dismiss(self) -> None:
        """In the first process: nothing more to do. Waits until all the others know."""
        self._put(f"lot {next(self.lots)}", None)
        self.store.wait([f"{rank} has left" for rank in range(1, self.size)], PATIENCE)

    def serve(self) -> None:
        """In every other process: do tasks until dismissed."""
        while (work := self._get(lot := f"lot {next(self.lots)}")) is not None:
            while self._work(lot, *work):
                pass
        self.store.set(f"{self.rank} has left", "")

    def _work(self, lot: str, run: Callable, tasks: list[dict]) -> bool:
        """Do one task, if one is left."""
        i = self.store.add(f"{lot} taken", 1) - 1
        if i >= len(tasks):
            return False
        result, error = None, None
        try:
            with torch.random.fork_rng(devices=[]):  # the recipe may draw numbers after this
                result = run(**tasks[i])
        except Exception as caught:
            error = caught
            error.add_note(f"In process {self.rank}:\n{traceback.format_exc()}")
        self._put(f"{lot} result {i}", (result, error))
        return True

    def _put(self, key: str, value: object) -> None:
        data = pickle.dumps(value)
        pieces = range(0, len(data), PIECE)
        for start in pieces:
            self.store.set(f"{key} from {start}", data[start : start + PIECE])
        self.store.set(key, str(len(data)))

    def _get(self, key: str) -> object:
        pieces = range(0, int(self.store.get(key)), PIECE)
        return pickle.loads(b"".join(self.store.get(f"{key} from {start}") for start in pieces))
