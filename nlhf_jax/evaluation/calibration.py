"""Temperature scaling: a judge whose certainty is that of the votes (Guo et al. 2017)."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import expit, logit

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judges
from nlhf_jax.evaluation.judges import Judge
from nlhf_jax.evaluation.votes import log_loss

_LEAST = 1e-6  # of a probability whose log-odds are taken
_TEMPERATURES = (1e-2, 1e2)


class CalibratedJudge:
    """A judge's preferences with log-odds divided by one temperature: a `judges.Judge`.

    What it prefers stays as it is, and so does the accuracy; how sure it is of it changes.
    """

    votes = False

    def __init__(self, judge: Judge, temperature: float):
        self.name = judge.name
        self.temperature = temperature
        self.judge = judge
        self.both_orders = getattr(judge, "both_orders", None)  # as they are

    def compare(
        self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]
    ) -> np.ndarray:
        """P(first > second | prompt), `[N]`; see `judges.Judge`."""
        return self._calibrated(judges.answers(self.judge, prompts, first, second))

    def of_orders(self, orders: np.ndarray) -> np.ndarray:
        """`compare` of what was said in both orders, `[N, 2]`."""
        return self._calibrated(orders.mean(axis=1))

    def _calibrated(self, probability: np.ndarray) -> np.ndarray:
        return expit(_log_odds(probability) / self.temperature)


def fit_temperature(
    judge: Judge,
    prompts: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
    vote_shares: np.ndarray,
) -> float:
    """The temperature, in [0.01, 100], under which a judge's log-loss on N votes is least.

    Args:
      judge: gives probabilities.
      prompts, chosen, rejected: texts.
      vote_shares: float `[N]` in (0.5, 1], how many of the raters chose `chosen`.

    Raises:
      UserError: there are no votes.
    """
    if not prompts:
        raise UserError("there are no votes by which to calibrate a rater")
    log_odds = _log_odds(judges.answers(judge, prompts, chosen, rejected))
    shares = np.asarray(vote_shares, np.float64)

    def loss(log_temperature: float) -> float:
        return log_loss(expit(log_odds / np.exp(log_temperature)), shares)

    # Convex in 1 / temperature, so with one minimum in its logarithm.
    low, high = np.log(_TEMPERATURES)
    return float(np.exp(minimize_scalar(loss, bounds=(low, high), method="bounded").x))


def _log_odds(probability: np.ndarray) -> np.ndarray:
    return logit(np.clip(probability, _LEAST, 1 - _LEAST))
