"""Whether a quantity that was sampled over time grows."""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import stats

_BLOCKS = 40  # samples beside each other are not independent: their medians nearly are


@dataclasses.dataclass(frozen=True)
class Flatness:
    """How much a quantity grows.

    Attributes:
      name: of the quantity, with its unit.
      level: its median.
      growth: an hour, by Theil and Sen's slope, which outliers do not move.
      low: of the 95 % interval of `growth`.
      high: of it.
      bound: of the growth that counts as none.
    """

    name: str
    level: float
    growth: float
    low: float
    high: float
    bound: float

    @property
    def verdict(self) -> str:
        """ "flat", "grows", or "cannot tell" where the interval holds the bound."""
        if self.high < self.bound:
            return "flat"
        return "grows" if self.low > self.bound else "cannot tell"

    def sentence(self) -> str:
        return (
            f"{self.name}: {self.verdict}, {self.level:.4g}, growth an hour {self.growth:.2g} "
            f"[{self.low:.2g}, {self.high:.2g}], bound {self.bound:.2g}"
        )


def flatness(
    name: str, seconds: Sequence[float], values: Sequence[float], bound: float
) -> Flatness:
    """Of samples after the warm-up; `bound` is in the unit of the values, an hour.

    Raises ValueError for fewer than eight samples that are numbers.
    """
    pairs = [(t, v) for t, v in zip(seconds, values, strict=True) if math.isfinite(v)]
    if len(pairs) < 8:
        raise ValueError(f"{name} has {len(pairs)} samples but needs 8")
    blocks = np.array_split(np.array(pairs), min(_BLOCKS, len(pairs)))
    times, levels = np.array([np.median(block, axis=0) for block in blocks]).T
    slope = stats.theilslopes(levels, times / 3600, 0.95)
    growth, low, high = (float(slope[i]) for i in (0, 2, 3))
    return Flatness(name, float(np.median(levels)), growth, low, high, bound)
