"""What other judges say of a tournament's responses, beside the one that decides it."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.agreement import between
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
      kappa: Cohen's, with the result's judge, over pairs of different texts; None if undefined.
      agreeing: the share of these of which both prefer the same, or neither.
      trained_against: names of the policies whose rater in training was this judge.
    """

    judge: str
    votes: bool
    win_rates: WinRates
    mean_win_rates: dict[str, Estimate]
    gaps: dict[str, Estimate]
    kappa: Estimate | None
    agreeing: float | None
    trained_against: tuple[str, ...] = ()


def gap(own: np.ndarray, other: np.ndarray, seed: int) -> Estimate:
    """The mean of `own - other`, `[N]` each in [0, 1], with its bootstrap interval over prompts."""
    half = intervals.bootstrap_mean((1 + own - other) / 2, seed)
    return Estimate(*(2 * end - 1 for end in dataclasses.astuple(half)))


def agreement(
    judges: Sequence[np.ndarray], different: np.ndarray, seed: int
) -> tuple[Estimate | None, float | None]:
    """Kappa of judges (Cohen's of two, Fleiss' of more), and the share of pairs of equal answers.

    Args:
      judges: of each, `[N, K, K]`.
      different: `[N, K, K]` bool: pairs of other texts than these are not counted.
      seed: of the bootstrap over prompts.

    Returns:
      None for what is not defined, as where one kind of answer is all there is.
    """
    counted = different & np.triu(np.ones(different.shape[1:], bool), k=1)
    if not counted.any():
        return None, None
    answers = np.stack([one[counted] for one in judges])
    found = between(answers, np.nonzero(counted)[0], seed, both_orders=True)
    known = np.all(np.isfinite(dataclasses.astuple(found.kappa)))
    return (found.kappa if known else None), found.agreeing
