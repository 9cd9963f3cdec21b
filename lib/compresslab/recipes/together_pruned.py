"""What torch-pruning makes of the classifier and of our student, tuned as our student was.

    python -m compresslab.recipes.together_pruned

As in torch-pruning's example for BERT: a first-order importance from labelled sentences, all layers
cut alike, in one step: heads, neurons and, where `hidden` says so, the width of everything. What is
left learns the answers of both teachers to the sentences of `together_teachers`, with batch, epochs
and learning rate of `together_student`. The models go to the cache, and `together_peers` measures
them. About 90 minutes on two cores, less on a GPU, which is used if there is one.
"""

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn

from ..assets import cache_folder
from ..corpora import load_reviews
from ..export import export, load, round_to_half_
from ..layers import bert_layers
from ..measure import count_parameters
from ..models import load_classifier
from ..training import TextBatches, classification_loss, train
from . import in_parallel, launch, record, together_student
from .distillation_data import answer_loss
from .pruning_structured import SENTENCES
from .together_student import BATCH, EPOCHS, LEARNING_RATE
from .together_teachers import answers, sentences
from .tuning import DEVICE, SEED, judge, teacher_logits

FRACTIONS = {  # that go, by source
    "classifier": {"neurons": 0.75, "heads": 0.5, "hidden": 0.5},
    "student": {"neurons": 0.25},
}


def path(source: str) -> Path:
    """Where the model is. Raises FileNotFoundError if it has not been trained."""
    file = file_of(source)
    if not file.exists():
        raise FileNotFoundError("not trained: run `python -m compresslab.recipes.together_pruned`")
    return file


def file_of(source: str) -> Path:
    return cache_folder() / "torch-pruning" / f"{source}.clab"


def prune_(
    model: nn.Module,
    batches: list,
    *,
    neurons: float,
    heads: float = 0.0,
    hidden: float = 0.0,
    globally: bool = False,
) -> None:
    """torch-pruning with its Taylor importance on a BERT, in place.

    Args:
        batches: labelled; the importances come from the gradients of all of them.
        neurons, heads, hidden: fractions that go, of each layer, and of what runs between layers.
            `hidden` needs a table of tokens that is not factorized: torch-pruning does not see
            that a product with a matrix changes the width.
        globally: neurons of all layers are ranked together.
    """
    import torch_pruning

    for batch in batches:
        (len(batch["labels"]) * classification_loss(model, batch)).backward()
    ups = [layer.intermediate.dense for layer in bert_layers(model)]
    attention = [layer.attention.self for layer in bert_layers(model)]
    tables, roots, fractions, options = model.bert.embeddings, list(ups), {}, {}
    if heads:
        roots += [linear for a in attention for linear in (a.query, a.key, a.value)]
        options = {
            "num_heads": {
                linear: a.num_attention_heads
                for a in attention
                for linear in (a.query, a.key, a.value)
            },
            "prune_num_heads": True,
            "prune_head_dims": False,
            "head_pruning_ratio": heads,
        }
    if hidden:  # everything that is added up between the layers
        between = [
            m for layer in bert_layers(model) for m in (layer.attention.output, layer.output)
        ]
        roots += [m for block in (tables, *between) for m in block.modules()]
        fractions = dict.fromkeys([block.dense for block in between], hidden)
    keep = {id(root) for root in roots}
    pruner = torch_pruning.pruner.BasePruner(
        model,
        {name: batches[0][name][:1] for name in ("input_ids", "attention_mask")},
        torch_pruning.importance.GroupTaylorImportance(),
        global_pruning=globally,
        pruning_ratio=neurons,
        pruning_ratio_dict=fractions,
        ignored_layers=[m for m in model.modules() if not list(m.children()) and id(m) not in keep],
        root_module_types=[nn.Linear],
        output_transform=lambda out: out.logits.sum(),
        **options,
    )
    pruner.step()
    for a in attention:
        a.num_attention_heads = pruner.num_heads.get(a.query, a.num_attention_heads)
        a.all_head_size = a.query.out_features
    # Of so many numbers, and with heads as wide as they were: what a new model is made from.
    width, head = tables.LayerNorm.weight.numel(), attention[0].attention_head_size
    model.config.hidden_size, model.config.num_attention_heads = width, width // head
    model.zero_grad()


def new(source: str):
    """A pruned model and its tokenizer; nothing is frozen."""
    model, tokenizer = load_classifier() if source == "classifier" else load(together_student.PATH)
    model.requires_grad_(True)
    batches = TextBatches(load_reviews()["train"].select(range(SENTENCES)), tokenizer)
    prune_(model, list(batches), **FRACTIONS[source])
    return model, tokenizer


def run(source: str, classifier: torch.Tensor) -> dict:
    """Prune, tune and save one. It is judged on validation, beside the classifier's logits."""
    model, tokenizer = new(source)
    batches = TextBatches(sentences(), tokenizer, batch_size=BATCH, shuffle=True, seed=SEED)
    validation = load_reviews()["validation"]
    before = judge(model, tokenizer, validation, classifier)
    torch.manual_seed(SEED)  # dropout
    history = train(
        model,
        batches,
        answer_loss(answers()["both"].to(DEVICE)),
        epochs=EPOCHS,
        learning_rate=LEARNING_RATE,
        validate=lambda m: judge(m, tokenizer, validation, classifier, device=DEVICE),
        device=DEVICE,
        progress=False,
    )
    model.cpu()
    round_to_half_(model)
    file = file_of(source)
    file.parent.mkdir(parents=True, exist_ok=True)
    export(model, tokenizer, file)
    return {
        "source": source,
        "fractions": FRACTIONS[source],
        "parameters": count_parameters(model),
        "before": before,
        "history": history,
    }


def make(sources: Iterable[str]) -> list[dict]:
    """Prune, tune and save these, and say how it went."""
    classifier, runs = teacher_logits(load_reviews()["validation"]), []
    tasks = [{"source": source, "classifier": classifier} for source in sources]
    for result in in_parallel(run, tasks):
        runs.append(result)
        print(json.dumps(result), flush=True)
    return runs


def main() -> None:
    runs = make(FRACTIONS)
    figures = {"epochs": EPOCHS, "batch": BATCH, "learning_rate": LEARNING_RATE, "runs": runs}
    print(record("together_pruned", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
