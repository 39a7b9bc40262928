"""Bradley-Terry scores of players, with intervals."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import expit

from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.intervals import Estimate
from nlhf_jax.games import bradley_terry
from nlhf_jax.games.game import from_matrix


def bradley_terry_scores(scores: np.ndarray, seed: int) -> list[Estimate]:
    """The score of every player: P(i beats j) is about `sigmoid(r_i - r_j)`.

    To every pair half a win of each is added, without which the scores of one who always wins have
    no end. A score depends on who else plays, in a tournament with cycles or copies.

    Args:
      scores: `[N, K, K]` in [0, 1]; antisymmetric, 1/2 on the diagonal.
      seed: of the bootstrap over prompts, which resamples each prompt's influence on the scores.

    Returns:
      K scores, log-odds (1 is a win rate of 73 %), with mean 0.
    """
    n, players = scores.shape[:2]
    rate = (scores.sum(axis=0) + 0.5) / (n + 1)
    with jax.enable_x64(True), jax.default_device(jax.local_devices(backend="cpu")[0]):
        evenly = jnp.full((1, players), -np.log(players))
        ratings = np.asarray(bradley_terry.fit(from_matrix(rate), evenly).reward, np.float64)[0]
    won = expit(ratings[:, None] - ratings)
    weights = won * (1 - won)
    curvature = np.diag(weights.sum(axis=1)) - weights
    # What a prompt's answers differ from the rates by moves the scores as Newton's step does.
    influences = (scores - scores.mean(axis=0)).sum(axis=2) @ np.linalg.pinv(curvature)
    return intervals.bootstrap_means(ratings + influences, seed)
