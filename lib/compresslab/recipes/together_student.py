"""The capstone's student: what two teachers, and being led along, are worth.

    python -m compresslab.recipes.together_student

Two shapes of three layers, from which the heads and neurons went that matter least, with a trimmed
vocabulary and a factorized table. They learn the answers that `together_teachers` has recorded.
"matched" first learns the classifier's hidden states and the relations of its last layer
(MiniLMv2), for one of its epochs; the classifier reads the student's tokens then. What it is worth
is asked of the thin shape in four epochs; the medium one has eight. Which is best is decided on
validation; its weights go, in float16, to data/student.clab.
About two hours on two cores, less on a GPU, which is used if there is one.
"""

import json
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ..assets import DATA
from ..corpora import load_reviews
from ..distillation.attention import observe_heads
from ..distillation.hidden import hidden_states_loss, uniform_layers
from ..distillation.minilm import minilm_v2_loss
from ..export import export, round_to_half_
from ..measure import count_parameters
from ..training import Batch, TextBatches, train
from . import in_parallel, launch, record
from .distillation_data import answer_loss
from .distillation_sentiment import new_student
from .factorization_embeddings import smaller
from .together_teachers import answers, sentences
from .tuning import DEVICE, SEED, Loss, judge, teacher_logits, transfer_accuracy

TOKENS, LAYERS = 8_000, 3
SHARED = {"tokens": TOKENS, "layers": LAYERS, "rank": 96}
SHAPES = {  # fractions of heads and neurons that go
    "thin": SHARED | {"heads": 9 / 12, "neurons": 0.9},
    "medium": SHARED | {"heads": 8 / 12, "neurons": 0.8},
}
EPOCHS, BRIEF, MATCHING_EPOCHS = 8, 4, 1
CHOICES = (  # the longest first, so that two processes end together
    {"shape": "medium", "teacher": "both", "matched": True, "epochs": EPOCHS},
    {"shape": "thin", "teacher": "classifier", "matched": False, "epochs": BRIEF},
    {"shape": "thin", "teacher": "both", "matched": False, "epochs": BRIEF},
    {"shape": "thin", "teacher": "both", "matched": True, "epochs": BRIEF},
)
BATCH, LEARNING_RATE = 128, 1e-3
RELATION_HEADS = 8
PATH = DATA / "student.clab"


def state_loss() -> Loss:
    """Hidden states of the student's layers, and relations of its last; the teacher has the
    student's tokens, but all heads, neurons and layers.
    """
    teacher, _ = smaller(tokens=TOKENS)
    teacher.to(DEVICE)
    layers = uniform_layers(LAYERS, teacher.config.num_hidden_layers)

    def loss(student: nn.Module, batch: Batch) -> Tensor:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        mask = batch["attention_mask"]
        with torch.no_grad(), observe_heads(teacher) as theirs:
            hidden = teacher(**inputs, output_hidden_states=True).hidden_states
        with observe_heads(student) as ours:
            own = student(**inputs, output_hidden_states=True).hidden_states
        relations = minilm_v2_loss(
            ours[LAYERS - 1], theirs[layers[-1]], mask, relation_heads=RELATION_HEADS
        )
        return hidden_states_loss(own, hidden, layers, mask) + relations

    return loss


def run(
    shape: str, teacher: str, matched: bool, epochs: int, classifier: Tensor, path: Path
) -> dict:
    """Train one student, and save its weights. It is judged on validation, beside the classifier's
    logits.
    """
    student, tokenizer = new_student(**SHAPES[shape])
    batches = TextBatches(sentences(), tokenizer, batch_size=BATCH, shuffle=True, seed=SEED)
    options = {"learning_rate": LEARNING_RATE, "device": DEVICE, "progress": False}
    validation = load_reviews()["validation"]

    def validate(model: nn.Module) -> dict:
        return judge(model, tokenizer, validation, classifier, device=DEVICE)

    torch.manual_seed(SEED)  # dropout
    led = []
    if matched:
        epochs -= MATCHING_EPOCHS
        led = train(student, batches, state_loss(), epochs=MATCHING_EPOCHS, **options)
    logits = answers()[teacher].to(DEVICE)
    history = train(
        student, batches, answer_loss(logits), epochs=epochs, validate=validate, **options
    )
    save_file(student.cpu().state_dict(), path)
    return {
        "shape": shape,
        "teacher": teacher,
        "matched": led,
        "parameters": count_parameters(student),
        "history": history,
        "transfer": transfer_accuracy(student, tokenizer),
    }


def main() -> None:
    classifier, runs = teacher_logits(load_reviews()["validation"]), []
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.safetensors" for i in range(len(CHOICES))]
        tasks = [
            choice | {"classifier": classifier, "path": path}
            for choice, path in zip(CHOICES, paths, strict=True)
        ]
        for result in in_parallel(run, tasks):
            runs.append(result)
            print(json.dumps(result), flush=True)
        best = max(runs, key=lambda run: run["history"][-1]["accuracy"])
        student, tokenizer = new_student(**SHAPES[best["shape"]])
        student.load_state_dict(load_file(paths[runs.index(best)]))
    round_to_half_(student)
    figures = {
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "runs": runs,
        "best": best,
        "bytes": export(student, tokenizer, PATH),
    }
    print(record("together_student", seed=SEED, figures=figures))


if __name__ == "__main__":
    launch(main)
