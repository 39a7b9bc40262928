"""Bradley-Terry scores of players."""

import numpy as np
import pytest
from scipy.special import expit

from nlhf_jax.evaluation import intervals
from nlhf_jax.evaluation.ratings import bradley_terry_scores


def votes(ratings, n: int, seed: int) -> np.ndarray:
    ratings = np.asarray(ratings)
    shape = (n, len(ratings), len(ratings))
    drawn = np.random.default_rng(seed).random(shape) < expit(ratings[:, None] - ratings)
    upper = np.triu(drawn, k=1)
    return upper + np.tril(1 - np.swapaxes(upper, 1, 2), k=-1) + np.eye(len(ratings)) / 2


@pytest.mark.parametrize("always", [False, True])
def test_they_are_evalica_s_on_the_same_votes(always):
    """With half a win of each added to every pair, as ours have; also where one always wins."""
    evalica = pytest.importorskip("evalica", reason="pip install evalica")
    scores = votes([0.0, 1.0, -0.7, 0.4], 200, seed=0)
    if always:
        scores[:, 3, :3], scores[:, :3, 3] = 1, 0
    xs, ys, winners, weights = [], [], [], []
    for i in range(4):
        for j in range(i):
            for winner, wins in (
                (evalica.Winner.X, scores[:, i, j].sum()),
                (evalica.Winner.Y, scores[:, j, i].sum()),
            ):
                xs.append(i), ys.append(j), winners.append(winner), weights.append(wins + 0.5)
    theirs = evalica.bradley_terry(xs, ys, winners, weights=weights, tolerance=1e-12, limit=100_000)
    theirs = np.log(theirs.scores.sort_index().to_numpy())
    ours = np.array([one.value for one in bradley_terry_scores(scores, seed=0)])
    np.testing.assert_allclose(ours, theirs - theirs.mean(), atol=1e-5)


def test_their_intervals_hold_the_truth(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 200)
    truth, cases, held = np.array([0.5, -0.2, -0.3]), 150, []
    for seed in range(cases):
        for score, true in zip(
            bradley_terry_scores(votes(truth, 80, seed), seed), truth, strict=True
        ):
            held.append(score.low <= true <= score.high)
    assert np.mean(held) > 0.95 - 4 * np.sqrt(0.05 * 0.95 / cases)
