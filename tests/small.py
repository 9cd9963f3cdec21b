"""Small problems that tests of several methods share."""

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def llama(**sizes):
    """A language model of two layers, always the same one for the same sizes."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
        return LlamaForCausalLM(LlamaConfig(vocab_size=50, **shape, **sizes)).eval()


def layer(rows, columns, tokens=200, seed=0):
    """A weight (rows, columns) and correlated inputs (tokens, columns)."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.eye(columns) + 0.5 * torch.rand(columns, columns, generator=generator)
    x = torch.randn(tokens, columns, generator=generator) @ mix
    return torch.randn(rows, columns, generator=generator), x
