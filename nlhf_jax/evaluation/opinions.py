"""What other judges say of a tournament's responses, beside the one that decides it."""

import dataclasses

import numpy as np

from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.statistics import WinRates


@dataclasses.dataclass(frozen=True)
class Opinion:
    """One more judge's tournament of the same responses.

    Attributes:
      judge: its name.
      votes: whether it votes, or gives probabilities.
      win_rates: of all players, as of the result's judge.
      mean_win_rates: policy -> over the other policies, as in `PlayerSummary`.
      gaps: policy -> how much more this judge gives it than the result's judge does, in [-1, 1]:
        the mean over prompts of the difference. Of a policy that was trained against this judge, a
        gap above zero is what its judge alone sees (preference hacking).
      same_choice: the share of pairs of different texts of which both judges prefer the same.
      trained_against: names of the policies whose rater in training was this judge.
    """

    judge: str
    votes: bool
    win_rates: WinRates
    mean_win_rates: dict[str, Estimate]
    gaps: dict[str, Estimate]
    same_choice: float | None
    trained_against: tuple[str, ...] = ()


def gap(own: np.ndarray, other: np.ndarray, seed: int) -> Estimate:
    """The mean of `own - other`, `[N]` each in [0, 1], with its bootstrap interval over prompts."""
    half = intervals.bootstrap_mean((1 + own - other) / 2, seed)
    return Estimate(*(2 * end - 1 for end in dataclasses.astuple(half)))


def same_choice(one: np.ndarray, other: np.ndarray, different: np.ndarray) -> float | None:
    """Of the pairs above the diagonal, `[N, K, K]`, that are of different texts and that neither
    judge calls even: the share of which both say the same. None if there are none."""
    above = np.triu(np.ones(one.shape[1:], bool), k=1)
    counted = different & above & (one != 0.5) & (other != 0.5)
    return float(np.mean(((one > 0.5) == (other > 0.5))[counted])) if counted.any() else None
