"""A judge: the response whose number of words is nearer to a wish is preferred.

A baseline that sees nothing but length; a policy that wins under it, too, may have learned length.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class LengthJudge:
    """Prefers with certainty; equal distances tie."""

    wish: int
    votes = False  # answers are probabilities, to be averaged

    @property
    def name(self) -> str:
        return f"nearest to {self.wish} words"

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        one, other = (
            np.array([abs(len(text.split()) - self.wish) for text in texts])
            for texts in (first, second)
        )
        return np.where(one == other, 0.5, one < other).astype(np.float64)
