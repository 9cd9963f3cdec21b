"""Floating-point formats: which numbers a few bits can hold, and rounding to them.

Source: IEEE 754-2019 for float32 and float16; Kalamkar et al. (2019), A Study of BFLOAT16 for Deep
Learning Training, arXiv:1905.12322; Micikevicius et al. (2022), FP8 Formats for Deep Learning,
arXiv:2209.05433, section 3.1; Rouhani et al. (2023), Microscaling Data Formats for Deep Learning,
arXiv:2310.10537, for float4.

A number is a sign, E bits of exponent e and M bits of mantissa m:

    (-1)ˢ · 2^(e - bias) · (1 + m / 2ᴹ)    and without the 1, for e = 0, near zero (subnormal)

So between two powers of two lie 2ᴹ numbers in equal steps, and each power doubles the step. The
bias is 2ᴱ⁻¹ - 1. What the largest exponent is for differs: in IEEE formats it means infinity and
NaN, in E4M3 only its last number means NaN, in float4 it is a number like all others.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FloatFormat:
    """A format by its number of exponent and mantissa bits.

    Args:
        reserved: of the numbers with the largest exponent, how many are no numbers: "all", "last"
            or "none".
    """

    name: str
    exponent: int
    mantissa: int
    reserved: str = "all"

    @property
    def bits(self) -> int:
        """Of one number, its sign included."""
        return 1 + self.exponent + self.mantissa

    @property
    def bias(self) -> int:
        """What is subtracted from the stored exponent."""
        return 2 ** (self.exponent - 1) - 1

    @property
    def largest(self) -> float:
        """The largest finite number."""
        exponent = 2**self.exponent - 1 - (self.reserved == "all") - self.bias
        mantissa = 2**self.mantissa - 1 - (self.reserved == "last")
        return 2.0**exponent * (1 + mantissa / 2**self.mantissa)

    @property
    def smallest(self) -> float:
        """The smallest number above 0; all steps are multiples of it."""
        return 2.0 ** (1 - self.bias - self.mantissa)

    def round(self, x: Tensor) -> Tensor:
        """The nearest number of this format, float64; a tie goes to the even mantissa. What is too
        large becomes infinite, or the largest number where the format has no infinity."""
        x = x.double()
        _, exponent = torch.frexp(x)  # |x| is in [2^(exponent - 1), 2^exponent)
        power = (exponent - 1).clamp(min=1 - self.bias) - self.mantissa
        step = torch.ldexp(torch.ones_like(x), power)
        rounded = (x / step).round() * step
        beyond = torch.inf if self.reserved == "all" else self.largest
        return torch.where(rounded.abs() > self.largest, x.sign() * beyond, rounded)

    def values(self) -> Tensor:
        """Every finite number of the format in order, float64; 0 once. For 16 bits or fewer.

        Raises:
            ValueError: the format has more than 16 bits, some four billion numbers.
        """
        if self.bits > 16:
            raise ValueError(f"{self.name} has too many numbers to list: 2 to the {self.bits}")
        exponent = torch.arange(2**self.exponent - (self.reserved == "all"))[:, None]
        fraction = torch.arange(2**self.mantissa).double() / 2**self.mantissa + (exponent > 0)
        positive = torch.ldexp(fraction, exponent.clamp(min=1) - self.bias).flatten()
        positive = positive[positive <= self.largest]
        return torch.cat([-positive[1:].flip(0), positive])


FLOAT32 = FloatFormat("float32", 8, 23)
BFLOAT16 = FloatFormat("bfloat16", 8, 7)
FLOAT16 = FloatFormat("float16", 5, 10)
FLOAT8_E5M2 = FloatFormat("float8 E5M2", 5, 2)
FLOAT8_E4M3 = FloatFormat("float8 E4M3", 4, 3, reserved="last")
FLOAT4_E2M1 = FloatFormat("float4 E2M1", 2, 1, reserved="none")
