"""The capstone beside its peers: `make bench`.

Trains what torch-pruning makes, if it is not there, which takes 90 minutes. Prints what the recipe
`together_peers` measures: the classifier and our student in every peer's best form, with bytes,
accuracy and speed, and where a peer's model dominates one of ours. Then what `together_llama`
measures: SmolLM2 in types of llama.cpp, if llama-cpp-python could be built.
"""

import logging
import tempfile
import warnings
from pathlib import Path

import torch

from compresslab.machine import processor
from compresslab.measure import Estimate, points
from compresslab.recipes import together_llama, together_peers, together_pruned
from compresslab.scoreboard import BATCH_SIZES


def show(candidates: list[dict]) -> None:
    measured = [candidate for candidate in candidates if "reason" not in candidate]
    threads = list(measured[0]["latency"])
    columns = [f"{t} threads, batch {size}" for t in threads for size in BATCH_SIZES]
    print(f"  {'':49} {'MB':>6} {'zipped':>6}  test    " + "  ".join(f"{c:>19}" for c in columns))
    for each in candidates:
        name = f"{each['source']:10} {each['name']:38}"
        if "reason" in each:
            print(f"  {name} not measured: {each['reason']}")
            continue
        timings = [each["latency"][t][str(size)] for t in threads for size in BATCH_SIZES]
        speeds = [
            f"{s['value']:6.2f}, in one call" if "once" in timing
            else f"{s['value']:6.2f} ({s['low']:.2f}–{s['high']:.2f})"
            for timing in timings
            for s in (timing["speedup"],)
        ]  # fmt: skip
        sizes = f"{each['bytes'] / 1e6:6.2f} {each['zipped'] / 1e6:6.2f}"
        right = f"{100 * each['test']['accuracy']['value']:.1f} %"
        print(f"  {name} {sizes}  {right}  " + "  ".join(f"{s:>19}" for s in speeds))


def show_dominated(candidates: list[dict]) -> None:
    for split in together_peers.SPLITS:
        found = together_peers.dominated(candidates, split=split)
        print(
            f"\n{len(found)} times a peer's model is at least as accurate on {split} as one of "
            "ours at no more of a cost, and better in one of the two"
        )
        for each in found:
            lost = points(each["difference"])
            print(f"  {each['ours']}: {each['peer']} in {each['cost']}, {lost} points")


def show_llama() -> None:
    print("\nSmolLM2, writing one text: times as fast as torch in float32")
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = together_llama.measure(Path(folder))
        except ModuleNotFoundError as error:  # it takes a compiler
            print(f"  not measured: {error}")
            return
    for each in found:
        print(
            f"  {each['name']:20} {each['bytes'] / 1e6:6.1f} MB  perplexity on test "
            f"{each['test']['value']:13,.1f}  {each['tokens']:5.1f} tokens a second  "
            f"{Estimate(**each['speedup']):.2f}"
        )


def main() -> None:
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    files = {source: together_pruned.file_of(source) for source in together_pruned.FRACTIONS}
    if missing := [source for source, file in files.items() if not file.exists()]:
        print(f"First, torch-pruning's models are trained, of: {', '.join(missing)}", flush=True)
        together_pruned.make(missing)
    vnni = "with" if torch.cpu._is_vnni_supported() else "without"
    print(
        f"{processor()} {vnni} AVX-512 VNNI, {torch.get_num_threads()} threads, "
        f"torch {torch.__version__}\n\nTimes as fast as the float32 classifier in torch"
    )
    with tempfile.TemporaryDirectory() as folder:
        candidates = together_peers.measure(Path(folder))
    show(candidates)
    show_dominated(candidates)
    show_llama()


if __name__ == "__main__":
    main()
