"""Alpha-rank: how often evolution is at each policy (Omidshafiei et al. 2019).

In NumPy and float64, as `meta_game` is, beside whose Nash average it stands. Unlike that it is not
invariant to copies: a copy is one more way to leave what it beats, and to be left.
"""

import numpy as np
from numpy.typing import ArrayLike

from nlhf_jax.games.meta_game import as_win_rates

_TIE = 1e-7  # rates that are nearer to 1/2, as by float32's noise, are equal


def alpha_rank(rate: ArrayLike) -> np.ndarray:
    """The share of time for which a population of players plays each policy.

    All of them play one policy until a mutant with another, drawn evenly, dies out or takes over,
    which is the likelier the more it is preferred to the one that they play. What is given is the
    stationary distribution of that Markov chain at infinite ranking intensity, towards which the
    paper's sweep goes: a mutant takes over if it is preferred, in half of the cases if the two tie,
    else never.

    With win rates of every pair the chain needs no perturbation, as it does in games of several
    populations: between two policies there is always a way, so only one set of policies is never
    left, and the distribution is unique. That set is the top cycle, the least set whose members
    are all preferred to all outside it. There lies all the mass.

    Args:
      rate: `[..., K, K]`, as of `meta_game.nash_average`.

    Returns:
      probabilities `[..., K]`.

    Raises:
      ValueError: the matrices are no win rates.

    Source: Omidshafiei et al. 2019, "alpha-Rank: Multi-Agent Evaluation by Evolution" (arXiv
    1903.01373), and for ties Rowland et al. 2019 (arXiv 1909.09849), sec. 2.
    """
    rate = as_win_rates(rate)
    policies = rate.shape[-1]
    better = np.swapaxes(rate, -1, -2) - 0.5  # [i, j]: by how much the mutant j is better than i
    takes_over = np.where(np.abs(better) <= _TIE, 0.5, (better > 0) * 1.0)
    moves = takes_over * (1 - np.eye(policies))
    # What flows into each policy is what flows out of it. One of these equations follows from the
    # others; in its place stands that all masses sum to 1.
    balance = np.swapaxes(moves, -1, -2) - moves.sum(axis=-1)[..., None] * np.eye(policies)
    balance[..., -1, :] = 1
    one = np.broadcast_to(np.eye(policies)[-1], rate.shape[:-1])
    mass = np.clip(np.linalg.solve(balance, one[..., None])[..., 0], 0, None)
    return mass / mass.sum(axis=-1, keepdims=True)
