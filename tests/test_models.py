"""The two running models, as their loaders give them."""

import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from compresslab import models
from compresslab.factorization.lora import LoRALinear
from compresslab.measure import count_parameters
from compresslab.models import (
    ADAPTER,
    add_adapter_,
    load_classifier,
    load_language_model,
)


@pytest.fixture(scope="module")
def untuned():
    return load_classifier(adapter=None)


@pytest.fixture(scope="module")
def tuned():
    return load_classifier()


@pytest.fixture(scope="module")
def language_model():
    return load_language_model()


def dtypes(model: nn.Module) -> set[torch.dtype]:
    return {tensor.dtype for tensor in model.state_dict().values()}


# ---------------------------------------------------------------- the classifier


def test_the_classifier_is_minilm_with_two_labels(untuned):
    model, tokenizer = untuned
    assert type(model).__name__ == "BertForSequenceClassification"
    assert (model.config.num_hidden_layers, model.config.hidden_size) == (6, 384)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert count_parameters(model) == 22_713_986
    assert dtypes(model) == {torch.float32}
    assert not any(module.training for module in model.modules())
    assert model(
        **tokenizer(["good", "a bad film"], padding=True, return_tensors="pt")
    ).logits.shape == (2, 2)


def test_the_untuned_classifier_is_the_same_every_time(untuned):
    torch.manual_seed(1234)
    again, _ = load_classifier(adapter=None)
    for name, tensor in untuned[0].state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    assert untuned[0].classifier.weight.std() > 0  # a head of zeros could not be trained


def test_loading_leaves_random_numbers_alone(monkeypatch):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    torch.manual_seed(5)
    before = torch.get_rng_state(), random.getstate()
    seeded.clear()
    load_classifier(adapter=None)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert seeded == []  # nor those of a GPU


def test_the_classifier_comes_in_the_dtype_asked_for():
    model, _ = load_classifier(adapter=None, dtype=torch.bfloat16)
    assert dtypes(model) == {torch.bfloat16}


def test_an_adapter_makes_encoder_pooler_and_head_trainable_in_part():
    model, _ = load_classifier(adapter=None)
    add_adapter_(model, rank=2)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    layers = sum(isinstance(module, LoRALinear) for module in model.modules())
    assert layers == 6 * 6
    assert len(trainable) == 2 * layers + 2 + 2
    assert all("lora_" in n or n.startswith(("bert.pooler.", "classifier.")) for n in trainable)


# ---------------------------------------------------------------- its adapter


def test_the_adapter_is_small():
    assert ADAPTER.stat().st_size < 3_000_000


def test_the_tuned_classifier_has_the_architecture_of_the_untuned(tuned, untuned):
    shapes = [{name: t.shape for name, t in m.state_dict().items()} for m, _ in (tuned, untuned)]
    assert shapes[0] == shapes[1]
    assert not any(isinstance(module, LoRALinear) for module in tuned[0].modules())
    assert not any(module.training for module in tuned[0].modules())
    assert all(p.requires_grad for p in tuned[0].parameters())


# ---------------------------------------------------------------- the language model


def test_the_language_model_is_smollm2(language_model):
    model, _ = language_model
    assert type(model).__name__ == "LlamaForCausalLM"
    assert (model.config.num_attention_heads, model.config.num_key_value_heads) == (9, 3)
    assert count_parameters(model) == 134_515_008
    assert dtypes(model) == {torch.float32}
    assert not any(module.training for module in model.modules())


def test_embedding_and_output_are_one_tensor(language_model):
    model, _ = language_model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_language_model_knows_some_english(language_model):
    model, tokenizer = language_model
    with torch.inference_mode():
        logits = model(**tokenizer("The capital of France is", return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"


def test_its_layers_lie_on_a_4_bit_grid(language_model):
    for layer in language_model[0].model.layers[::15]:
        for linear in (layer.self_attn.q_proj, layer.mlp.down_proj):
            blocks = linear.weight[:8].reshape(-1, 32)
            assert max(len(block.unique()) for block in blocks) <= 16


def test_the_language_model_comes_in_the_dtype_asked_for():
    model, _ = load_language_model(dtype=torch.bfloat16)
    assert dtypes(model) == {torch.bfloat16}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


# ---------------------------------------------------------------- both


@pytest.mark.usefixtures("no_network")
def test_loading_needs_no_network():
    assert count_parameters(load_classifier(adapter=None)[0]) == 22_713_986
    assert count_parameters(load_language_model()[0]) == 134_515_008


def test_loading_is_silent():
    """In a process of its own: libraries hold on to the stderr that they find when imported."""
    script = (
        "from compresslab.models import load_classifier, load_language_model\n"
        "load_classifier(adapter=None)\n"
        "load_language_model()\n"
    )
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("load", "hub"),
    [
        (load_classifier, "sentence-transformers/all-MiniLM-L6-v2"),
        (load_language_model, "HuggingFaceTB/SmolLM2-135M-Instruct"),
    ],
    ids=["bert", "llama"],
)
def test_the_hub_is_asked_for_model_and_tokenizer(monkeypatch, load, hub):
    asked = []

    def from_pretrained(name, **options):
        asked.append(name)
        return nn.Linear(1, 1)

    auto = SimpleNamespace(from_pretrained=from_pretrained)
    for name in ("ForSequenceClassification", "ForCausalLM"):
        monkeypatch.setattr(models, f"AutoModel{name}", auto)
    monkeypatch.setattr(models, "AutoTokenizer", auto)
    load(source="hub", **({"adapter": None} if load is load_classifier else {}))
    assert asked == [hub, hub]


def test_another_language_model_comes_from_the_hub_by_name_or_by_the_environment(monkeypatch):
    asked = []

    def from_pretrained(name, **options):
        asked.append(name)
        return nn.Linear(1, 1)

    for name in ("AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(models, name, SimpleNamespace(from_pretrained=from_pretrained))
    load_language_model(source="someone/larger")
    monkeypatch.setenv("COMPRESSLAB_LANGUAGE_MODEL", "someone/other")
    load_language_model()
    monkeypatch.setenv("COMPRESSLAB_LANGUAGE_MODEL", "hub")
    load_language_model()
    load_language_model(source="someone/larger")
    names = ["someone/larger", "someone/other", models.LANGUAGE_MODEL_HUB, "someone/larger"]
    assert asked == [name for name in names for _ in range(2)]


@pytest.mark.parametrize("load", [load_classifier, load_language_model])
def test_an_unknown_source_is_a_value_error(load):
    with pytest.raises(ValueError, match="source must be 'pypi' or 'hub', not 'pip'"):
        load(source="pip")
