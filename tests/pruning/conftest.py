import pytest
import torch


@pytest.fixture(scope="module")
def data():
    """Eight sentences of up to 7 tokens, padded."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(40, (8, 7), generator=generator)
    lengths = torch.tensor([7, 3, 5, 7, 4, 6, 2, 7])
    mask = (torch.arange(7) < lengths[:, None]).long()
    labels = torch.randint(2, (8,), generator=generator)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}
