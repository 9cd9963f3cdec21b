"""Is everything in place? One screen, and for each thing that is wrong the command that mends it.

make doctor
"""

import importlib.metadata
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from . import machine
from .assets import DATA, cache_folder, read_manifest

ROOT = DATA.parent
NEEDED_MEMORY = 3e9  # of a notebook, at most
NEEDED_DISK = 1e9  # of the cache, when it is empty


@dataclass(frozen=True)
class Check:
    """One line of the report; `mend` is empty where `ok`."""

    name: str
    ok: bool
    found: str
    mend: str = ""


def checks() -> list[Check]:
    """Every check, in the order in which one would mend them."""
    return [python(), packages(), *assets(), memory(), threads(), accelerator()]


def report() -> bool:
    """Print the checks; True if nothing is wrong."""
    results = checks()
    for check in results:
        print(f"{'ok  ' if check.ok else 'WRONG'[:5]:5} {check.name:38} {check.found}")
        if not check.ok:
            print(f"{'':6}-> {check.mend}")
    wrong = sum(not check.ok for check in results)
    print("All is well." if wrong == 0 else f"{wrong} to mend, from the top.")
    return wrong == 0


def python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    mend = "make clean lab PYTHON=python3.12 (or another of these)"
    return Check("Python 3.11 to 3.14", (3, 11) <= sys.version_info < (3, 15), found, mend)


def packages() -> Check:
    """Every package at the version of constraints.txt (a local label such as +cpu is ignored)."""
    odd = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        name, _, version = line.partition("==")
        if not version or line.startswith("#"):
            continue
        try:
            found = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            continue  # of another system, or of an extra that was not asked for
        if found != version.partition(";")[0].strip():
            odd.append(f"{name} {found} instead of {version}")
    found = ", ".join(odd[:2]) + (f" and {len(odd) - 2} more" if len(odd) > 2 else "")
    return Check("packages", not odd, found or "as in constraints.txt", "make clean lab")


def assets() -> list[Check]:
    """The models and texts, every byte read."""
    results = []
    for asset in read_manifest().values():
        damaged = asset.damaged()
        found = f"damaged or missing: {damaged[0]}" if damaged else f"in {_short(asset.folder)}"
        results.append(Check(asset.title, not damaged, found, "make assets"))
    free = shutil.disk_usage(_existing(cache_folder())).free
    if any(not check.ok for check in results):
        mend = "set COMPRESSLAB_CACHE to a folder on a larger disk"
        results.append(
            Check("disk for them", free > NEEDED_DISK, f"{free / 1e9:.1f} GB free", mend)
        )
    return results


def _short(folder: Path) -> str:
    """The folder with ~ for the home folder."""
    home = Path.home()
    return (
        f"~/{folder.relative_to(home).as_posix()}" if folder.is_relative_to(home) else str(folder)
    )


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def memory() -> Check:
    free = psutil.virtual_memory().available
    found = f"{free / 1e9:.1f} GB free, {NEEDED_MEMORY / 1e9:.0f} GB needed"
    mend = "close other programs and other notebooks (Kernel > Shut Down All Kernels)"
    return Check("memory", free >= NEEDED_MEMORY, found, mend)


def threads() -> Check:
    """Torch takes as many threads as there are cores, unless a variable says otherwise."""
    threads, cores = torch.get_num_threads(), machine.cores()
    variable = next((v for v in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if v in os.environ), None)
    mend = f"unset {variable}" if variable else "call torch.set_num_threads with fewer threads"
    found = f"{threads} for {cores} cores, {machine.processor()}"
    return Check("threads", variable is None and threads <= cores, found, mend)


def accelerator() -> Check:
    """Nothing in the course needs one."""
    if torch.cuda.is_available():
        return Check("GPU (not needed)", True, torch.cuda.get_device_name())
    return Check("GPU (not needed)", True, "none")


if __name__ == "__main__":
    sys.exit(0 if report() else 1)
