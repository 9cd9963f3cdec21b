"""What the losses on tokens share: padding does not count.

mask is the `attention_mask` of a batch, (batch, time): not zero where a token is real. Every real
token of a batch weighs the same, so a long sentence weighs more than a short one. With no real
token at all a loss is zero.
"""

from torch import Tensor


def check_same(student: Tensor, teacher: Tensor, axes: str, mask: Tensor) -> None:
    """Refuse tensors of two models that do not belong together, or to this mask.

    Args:
        axes: what the shape is, in words, beginning with batch and having time second to last.

    Raises:
        ValueError: shapes differ or have not as many axes, or mask is not (batch, time).
    """
    if student.shape != teacher.shape or student.ndim != 1 + axes.count(","):
        raise ValueError(
            f"student and teacher must be of one shape {axes}, not "
            f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        )
    expected = (student.shape[0], student.shape[-2])
    if mask.shape != expected:
        raise ValueError(f"mask must have shape {expected}, (batch, time), not {tuple(mask.shape)}")


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the `values` where `mask` is not zero, a number; 0 if it is zero everywhere.

    Args:
        values: any shape; what is masked reaches neither the mean nor a gradient.
        mask: that can be expanded to that shape.
    """
    keep = mask.bool().expand_as(values)
    return values.masked_fill(~keep, 0).sum() / keep.sum().clamp(min=1)


def pairs(mask: Tensor) -> Tensor:
    """(batch, time) -> (batch, 1, time, time) bool: query and key are both real."""
    mask = mask.bool()
    return mask[:, None, :, None] & mask[:, None, None, :]
