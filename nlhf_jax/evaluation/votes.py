"""How well raters predict votes that they were not trained on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import judges, statistics
from nlhf_jax.evaluation.judges import Judge
from nlhf_jax.evaluation.statistics import Estimate


@dataclasses.dataclass(frozen=True)
class RaterAccuracy:
    """One row of the table of raters.

    Attributes:
      name: the rater's.
      accuracy: share of the votes that agree with what the rater prefers, with its bootstrap
        interval over comparisons.
      comparisons: how many it was measured on.
    """

    name: str
    accuracy: Estimate
    comparisons: int


def rater_accuracy(
    name: str,
    judge: Judge,
    prompts: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
    weights: np.ndarray,
    seed: int,
) -> RaterAccuracy:
    """Compares a judge's preference with votes; where it prefers neither, half of them agree.

    Args:
      name: how reports call the rater.
      judge: the rater.
      prompts, chosen, rejected: N texts each.
      weights: float `[N]` in (0.5, 1], the share of raters that chose `chosen`; 1 for single votes.
      seed: of the bootstrap.

    Raises:
      UserError: there are no comparisons.
    """
    if not prompts:
        raise UserError(f"there are no comparisons on which to measure the rater '{name}'")
    preferred = judges.answers(judge, prompts, chosen, rejected)
    weights = np.asarray(weights, np.float64)
    agreeing = np.select([preferred > 0.5, preferred < 0.5], [weights, 1 - weights], 0.5)
    return RaterAccuracy(name, statistics.bootstrap_mean(agreeing, seed), len(prompts))
