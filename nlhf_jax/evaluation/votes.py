"""How well raters predict votes that they were not trained on."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation import intervals, judges
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.evaluation.judges import Judge


@dataclasses.dataclass(frozen=True)
class RaterAccuracy:
    """One row of the table of raters.

    Attributes:
      name: the rater's.
      accuracy: share of the votes that agree with what the rater prefers, with its bootstrap
        interval over posts: votes on one post are alike, so they are drawn together.
      comparisons: how many it was measured on.
      posts: how many different prompts these have; None in files from before they were counted.
    """

    name: str
    accuracy: Estimate
    comparisons: int
    posts: int | None = None


def rater_accuracy(
    name: str,
    judge: Judge,
    prompts: Sequence[str],
    chosen: Sequence[str],
    rejected: Sequence[str],
    vote_shares: np.ndarray,
    seed: int,
) -> RaterAccuracy:
    """Compares a judge's preference with votes; where it prefers neither, half of them agree.

    Args:
      name: how reports call the rater.
      judge: the rater.
      prompts, chosen, rejected: N texts each.
      vote_shares: float `[N]` in (0.5, 1], how many of the raters chose `chosen`; 1 for one vote.
      seed: of the bootstrap.

    Raises:
      UserError: there are no comparisons.
    """
    if not prompts:
        raise UserError(f"there are no comparisons on which to measure the rater '{name}'")
    preferred = judges.answers(judge, prompts, chosen, rejected)
    shares = np.asarray(vote_shares, np.float64)
    agreeing = np.select([preferred > 0.5, preferred < 0.5], [shares, 1 - shares], 0.5)
    posts, post_of = np.unique(np.asarray(prompts, object), return_inverse=True)
    accuracy = intervals.bootstrap_mean_of_groups(agreeing, post_of, seed)
    return RaterAccuracy(name, accuracy, len(prompts), len(posts))
