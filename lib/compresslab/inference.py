"""The last steps before a classifier is used: less to compute, and no Python in between.

    fuse_bert_(model)       after `quantize_linears_int8_`: nothing is computed that is not read
    fast = trace(model)     fast(input_ids, attention_mask).logits, the same numbers, sooner

A small model in int8 computes so little that the rest shows: padding, tokens whose last hidden
state nobody reads, and Python, which takes as long to start an operation as that takes.
"""

import copy
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput

from .layers import bert_layers
from .quantization.int8 import Int8BertLayer, fuse_bert_layers_


class Int8Bert(nn.Module):
    """The BERT of a classifier, which computes what is read of it and nothing else.

    Padding stays outside of all layers but attention, and the last layer finishes the first token
    of a sentence only, the one that is classified. With dynamic ranges the logits differ a little
    from those of the model that padded: padding has no part in the ranges any more.

    Args:
        bert: transformers' BertModel with a pooler, its layers `Int8BertLayer`.
    """

    def __init__(self, bert: nn.Module):
        super().__init__()
        self.config = bert.config
        self.embeddings, self.encoder, self.pooler = bert.embeddings, bert.encoder, bert.pooler

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        **_,
    ) -> BaseModelOutputWithPooling:
        """Input (batch, time), where sentences begin in the first column. Of the hidden states only
        those of the first tokens are given back, (batch, 1, dim).
        """
        batch, time = input_ids.shape
        embed, mask = self.embeddings, None
        positions, first = embed.position_ids[:, :time], lambda x: x[:, 0]
        spread = gather = lambda x: x
        if attention_mask is not None and not attention_mask.all():
            mask = attention_mask.bool()
            real = mask.flatten().nonzero().flatten()  # tokens that are no padding, row after row
            starts = torch.searchsorted(real, torch.arange(0, batch * time, time))
            mask, positions = mask[:, None, None], positions.expand(batch, time).flatten()[real]
            input_ids = input_ids.flatten()[real]
            if token_type_ids is not None:
                token_type_ids = token_type_ids.flatten()[real]

            def spread(x: Tensor) -> Tensor:
                padded = x.new_zeros(batch * time, x.shape[1])
                return padded.index_copy_(0, real, x).view(batch, time, -1)

            def gather(x: Tensor) -> Tensor:
                return x.flatten(0, 1)[real]

            def first(x: Tensor) -> Tensor:
                return x[starts]

        if token_type_ids is None:
            token_type_ids = torch.zeros_like(positions)
        x = embed.word_embeddings(input_ids) + embed.token_type_embeddings(token_type_ids)
        x = embed.LayerNorm(x + embed.position_embeddings(positions))
        *layers, last = self.encoder.layer
        for layer in layers:
            mixed = layer.attend(spread(layer.query_key_value(x)), mask)
            x = layer.finish(x, gather(mixed))
        mixed = last.attend(spread(last.query_key_value(x)), mask, queries=1)
        x = last.finish(first(x)[:, None], mixed)
        return BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=self.pooler(x))


def fuse_bert_(model: nn.Module) -> None:
    """Make the BERT of a classifier an `Int8Bert`, in place, and its layers `Int8BertLayer`.

    Raises:
        ValueError: as `fuse_bert_layers_`, if the layers are not `Int8BertLayer` already.
    """
    if not all(isinstance(layer, Int8BertLayer) for layer in bert_layers(model)):
        fuse_bert_layers_(model)
    model.bert = Int8Bert(model.bert)


class Logits(nn.Module):
    """A classifier that gives a tensor, which is all that tracing and exporters understand."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask).logits


def trace(model: nn.Module) -> Callable:
    """The classifier as a function of input_ids and attention_mask (batch, time), whose operations
    torch has recorded and repeats without Python; what is done to the model later does not change
    it. It gives back what transformers' classifiers do, with `logits` alone.

    torch has announced the end of `torch.jit`. What follows it, `torch.compile`, needs a compiler
    of C++, which a laptop may not have.

    Args:
        model: after `fuse_bert_`.

    Raises:
        ValueError: not after `fuse_bert_`. Other models may ask in Python what is not recorded.
    """
    if not isinstance(model.base_model, Int8Bert):
        raise ValueError(f"{type(model).__name__} has no Int8Bert: call fuse_bert_ first")
    logits = Logits(copy.deepcopy(model).eval())
    ids = torch.zeros((2, 3), dtype=torch.int64)
    mask = torch.tensor([[1, 1, 1], [1, 1, 0]])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of that end, and of what does not depend on the text
        full = torch.jit.trace(logits, ids)
        padded = torch.jit.trace(logits, (ids, mask))

    def run(input_ids: Tensor, attention_mask: Tensor | None = None) -> SequenceClassifierOutput:
        if attention_mask is None or attention_mask.all():
            return SequenceClassifierOutput(logits=full(input_ids))
        return SequenceClassifierOutput(logits=padded(input_ids, attention_mask))

    return run
