"""What the recipe together_llama gives to llama.cpp."""

import re

import torch

from compresslab.assets import fetch
from compresslab.models import GGUF
from compresslab.quantization.gguf import read_gguf
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
