"""Best of N: of several responses to a prompt the one that is sent, by what a rater says of all.

With a reward the best of N is its maximum. Preferences may go in circles, where there is none: the
small game whose actions are the N responses has a Nash mixture all the same, which none of them
beats.
"""

from collections.abc import Sequence

import numpy as np

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.judges import Judge
from nlhf_jax.evaluation.response_games import preference_matrices
from nlhf_jax.games.meta_game import nash_average

BY = ("nash", "borda", "reward")


def best_of(
    prompts: Sequence[str],
    responses: Sequence[Sequence[str]],
    judge: Judge,
    by: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """Which of its N responses each of X prompts is answered with: int `[X]`.

    Args:
      prompts: X texts.
      responses: N texts for each.
      judge: says what is preferred.
      by: "nash" draws from the Nash mixture of largest entropy; "borda" takes the one that is
        preferred most to the others on average; "reward" the one that no other is preferred to, of
        a judge whose preferences are those of a reward.
      rng: draws, and breaks ties.

    Raises:
      UserError: `by` is none of these, or, by "reward", a response that no other is preferred to
        does not exist: the judge has no reward.
    """
    if by not in BY:
        raise UserError(f"best of N by {by!r} is unknown: choose one of {', '.join(BY)}")
    rates = preference_matrices(prompts, responses, judge)
    count = rates.shape[-1]
    if by == "nash":
        mixture = nash_average(rates)
    else:
        worth = rates.mean(axis=2)
        if by == "reward":
            worth = rates.min(axis=2)
            if np.any(worth.max(axis=1) < 0.5 - 1e-6):
                raise UserError(
                    "best of N by 'reward' needs a reward model: this rater's preferences go in "
                    "circles; use 'nash' or 'borda'"
                )
        best = worth >= worth.max(axis=1, keepdims=True) - 1e-9
        mixture = best / best.sum(axis=1, keepdims=True)
    ends = np.cumsum(mixture, axis=1)
    drawn = rng.random(len(rates))[:, None] * ends[:, -1:]
    return np.minimum((drawn >= ends).sum(axis=1), count - 1)
