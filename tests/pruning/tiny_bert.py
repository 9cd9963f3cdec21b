"""What the tests on small BERTs share."""

import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForSequenceClassification


def build(**sizes):
    """A classifier of two layers in float64, always the same one for the same sizes."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=40,
        num_hidden_layers=2,
        max_position_embeddings=16,
        initializer_range=0.5,  # large, so that heads and neurons matter and differ
        **sizes,
    )
    return BertForSequenceClassification(config).double().eval()


def logits(model, data):
    with torch.no_grad():
        return model(data["input_ids"], attention_mask=data["attention_mask"]).logits


def double_loss(model, batch):
    """`classification_loss` computes in float32, too coarse for the comparisons here."""
    out = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(out, batch["labels"])
