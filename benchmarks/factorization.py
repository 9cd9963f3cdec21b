"""The library's factorization beside scikit-learn, tensorly and peft: `make bench`.

Ratios are medians within rounds, with their 95 % interval: above 1 the library is faster. Errors
are of the weights, as a fraction of their size; each pair works on the same numbers. The peers of
the first two get NumPy arrays, which is what they work on fastest here.
"""

import copy
import warnings

import numpy as np
import tensorly
import torch
from peft import LoraConfig, get_peft_model
from sklearn.decomposition import TruncatedSVD
from sklearn.utils.extmath import randomized_svd as sklearn_svd
from tensorly.decomposition import tensor_train as tensorly_train
from tensorly.decomposition import tucker as tensorly_tucker
from torch import Tensor, nn

from compresslab.corpora import load_reviews
from compresslab.factorization.lora import add_lora_, merge_lora_
from compresslab.factorization.svd import randomized_svd, truncated_svd
from compresslab.factorization.tensor_train import tensor_train, tt_to_tensor
from compresslab.factorization.tucker import tucker, tucker_to_tensor
from compresslab.layers import find_linears
from compresslab.machine import processor
from compresslab.measure import compare_latency
from compresslab.models import load_classifier, load_language_model
from compresslab.training import TextBatches

RANK = 64
ITERATIONS = 2  # of the randomized ones


def off(weight: Tensor, approximation) -> float:
    approximation = torch.as_tensor(np.asarray(approximation), dtype=weight.dtype)
    return ((weight - approximation).norm() / weight.norm()).item()


def show(what: str, ours, theirs, *, errors: tuple[float, float] | None = None) -> None:
    """Time two calls against each other; `errors` are ours and theirs."""
    times = compare_latency({"theirs": theirs, "ours": ours}, baseline="theirs", rounds=9)
    found = times["ours"].speedup
    line = f"  {what:44} {found.value:6.2f} ({found.low:.2f} to {found.high:.2f})"
    line += f" {times['ours'].milliseconds:9.1f} ms"
    if errors:
        line += f"   error {errors[0]:.4f}, theirs {errors[1]:.4f}"
    print(line, flush=True)


def bench_svd(weights: dict[str, Tensor]) -> None:
    print(
        f"\nRank {RANK}: randomized SVD and TruncatedSVD of scikit-learn, {ITERATIONS} iterations"
    )
    for name, weight in weights.items():
        array = weight.numpy()
        exact = truncated_svd(weight, RANK)

        def ours(weight=weight):
            return randomized_svd(weight, RANK, iterations=ITERATIONS)

        def theirs(array=array):
            return sklearn_svd(
                array,
                RANK,
                n_iter=ITERATIONS,
                power_iteration_normalizer="QR",
                random_state=0,
            )

        def truncated(array=array):
            model = TruncatedSVD(RANK, n_iter=ITERATIONS, random_state=0)
            return model.fit_transform(array), model.components_

        u, s, vh = theirs()
        scores, components = truncated()
        shape = f"{name}, {weight.shape[0]} × {weight.shape[1]}"
        error = off(weight, ours().product())
        show(f"{shape}: randomized_svd", ours, theirs, errors=(error, off(weight, u * s @ vh)))
        show(f"{shape}: TruncatedSVD", ours, truncated,
             errors=(error, off(weight, scores @ components)))  # fmt: skip
        show(
            f"{shape}: exact, against numpy.linalg.svd",
            lambda weight=weight: truncated_svd(weight, RANK),
            lambda array=array: np.linalg.svd(array, full_matrices=False),
            errors=(off(weight, exact.product()), exact_error(weight)),
        )


def exact_error(weight: Tensor) -> float:
    s = torch.from_numpy(np.linalg.svd(weight.numpy(), compute_uv=False))
    return (s[RANK:].square().sum() / s.square().sum()).sqrt().item()


def bench_tensors(stacked: Tensor) -> None:
    """Six matrices of the same kind, one of each layer, as a tensor."""
    print(f"\nA tensor of {' × '.join(map(str, stacked.shape))}: tensorly")
    array, ranks = tensorly.tensor(stacked.numpy()), (6, 128, 128)

    def theirs():
        return tensorly_tucker(array, ranks, n_iter_max=3, tol=0, init="svd")

    def ours():
        return tucker(stacked, ranks, iterations=3)

    errors = (
        off(stacked, tucker_to_tensor(*ours())),
        off(stacked, tensorly.tucker_to_tensor(theirs())),
    )
    show(f"Tucker {ranks}, 3 iterations", ours, theirs, errors=errors)

    def their_train():
        return tensorly_train(array, (1, 6, 128, 1))

    def our_train():
        return tensor_train(stacked, (6, 128))

    errors = (
        off(stacked, tt_to_tensor(our_train())),
        off(stacked, tensorly.tt_to_tensor(their_train())),
    )
    show("tensor train, ranks 6 and 128", our_train, their_train, errors=errors)


def bench_lora() -> None:
    """Forward, a training step and merging, with rank 8 on every linear layer of the encoder."""
    print("\nLoRA of rank 8 on the classifier, 32 sentences: peft")
    classifier, tokenizer = load_classifier()
    ours = copy.deepcopy(classifier).requires_grad_(False)
    add_lora_(ours.bert.encoder, rank=8)
    names = [f"bert.encoder.{name}" for name in find_linears(classifier.bert.encoder)]
    settings = LoraConfig(r=8, lora_alpha=16, target_modules=names)
    theirs = get_peft_model(copy.deepcopy(classifier), settings)
    batch = next(iter(TextBatches(load_reviews()["train"].select(range(32)), tokenizer)))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}

    def trainable(model: nn.Module) -> int:
        return sum(p.numel() for p in model.parameters() if p.requires_grad)

    def step(model: nn.Module):
        def run():
            with torch.inference_mode(False), torch.enable_grad():
                model(**inputs).logits.sum().backward()

        return run

    print(f"  trainable: ours {trainable(ours):,}, peft {trainable(theirs):,}")
    show("forward", lambda: ours(**inputs), lambda: theirs(**inputs))
    show("forward and backward", step(ours), step(theirs))

    def merge(model: nn.Module) -> None:
        merge_lora_(copy.deepcopy(model))

    def merge_peft(model: nn.Module) -> None:
        copy.deepcopy(model).merge_and_unload()

    with torch.inference_mode(False):
        show("copy and merge", lambda: merge(ours), lambda: merge_peft(theirs))


def main() -> None:
    warnings.filterwarnings("ignore")
    torch.manual_seed(0)
    print(f"{processor()}, {torch.get_num_threads()} threads")
    classifier, _ = load_classifier()
    model, _ = load_language_model()
    encoder = find_linears(classifier.bert.encoder)
    weights = {
        "attention": encoder["layer.2.attention.self.query"].weight,
        "feed-forward": encoder["layer.2.intermediate.dense"].weight,
        "SmolLM2": model.model.layers[5].mlp.gate_proj.weight,
        "SmolLM2's embedding, a quarter": model.model.embed_tokens.weight[: 49152 // 4],
        "SmolLM2's embedding": model.model.embed_tokens.weight,
    }
    with torch.no_grad():
        bench_svd({name: weight.detach().clone() for name, weight in weights.items()})
        queries = [encoder[f"layer.{i}.attention.self.query"].weight for i in range(6)]
        bench_tensors(torch.stack(queries).clone())
    bench_lora()


if __name__ == "__main__":
    main()
