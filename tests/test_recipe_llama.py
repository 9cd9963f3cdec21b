"""What the recipe together_llama gives to llama.cpp."""

import re

import pytest
import torch

from compresslab.assets import fetch
from compresslab.models import GGUF, load_language_model
from compresslab.quantization.gguf import read_gguf
from compresslab.recipes import together_llama
from compresslab.recipes.quantization_llm import articles
from compresslab.recipes.together_llama import importance


def test_every_quantized_layer_of_the_file_gets_a_square_for_each_of_its_columns():
    file = read_gguf(fetch("smollm2") / GGUF)
    found = importance(articles("calibration", 1)[:, :16])
    layers = {
        name: tensor.shape[-1]
        for name, tensor in file.tensors.items()
        if re.fullmatch(r"blk\.\d+\.(attn|ffn)_(?!norm)\w+\.weight", name)
    }
    assert len(layers) == 7 * 30
    assert {name: len(squares) for name, squares in found.items()} == layers
    assert all(squares.isfinite().all() and (squares >= 0).all() for squares in found.values())
    # Queries, keys and values read the same.
    one = [found[f"blk.3.attn_{part}.weight"] for part in "qkv"]
    assert torch.equal(one[0], one[1])
    assert torch.equal(one[1], one[2])
    assert not torch.equal(one[0], found["blk.3.attn_output.weight"])


def test_a_square_is_the_mean_over_tokens_of_what_the_column_reads():
    windows = articles("calibration", 2)[:, :16]
    model, _ = load_language_model()
    read = []
    layer = model.model.layers[5].mlp.down_proj
    handle = layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    with torch.inference_mode():
        model(input_ids=windows)
    handle.remove()
    mean = read[0].square().mean((0, 1))
    torch.testing.assert_close(importance(windows)["blk.5.ffn_down.weight"], mean)


def test_without_llama_cpp_it_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(together_llama, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"`make \.venv/bench` .* C\+\+ compiler"):
        together_llama.measure(tmp_path)
