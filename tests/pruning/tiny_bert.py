"""What the tests on small BERTs share."""

import torch
from torch.nn import functional as F


def logits(model, data):
    with torch.no_grad():
        return model(data["input_ids"], attention_mask=data["attention_mask"]).logits


def double_loss(model, batch):
    """`classification_loss` computes in float32, too coarse for the comparisons here."""
    out = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    return F.cross_entropy(out, batch["labels"])
