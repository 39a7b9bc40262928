"""Win rates as they would be if both responses were equally long (Dubois et al. 2024)."""

from collections.abc import Sequence

import numpy as np
from scipy.special import expit

from nlhf_jax.evaluation.statistics import INFLUENCES, WinRates, of_pairs

_RIDGE = 0.01  # what half a squared coefficient costs: bounds them where data do not
_MOST_STEPS = 100  # some 6 do; where lengths alone tell all answers, some 20
_ROUNDING = 1e-12


def length_controlled(
    names: Sequence[str], scores: np.ndarray, lengths: np.ndarray, seed: int
) -> tuple[WinRates, np.ndarray]:
    """Length-controlled win rates of every pair of players.

    For each pair (i, j) the judge's answers on N prompts are regressed, by logistic regression, on
    three things:

        logit P(i > j | x) = theta_ij + phi_ij tanh(d_x / std(d)) + psi_ij g_x

    with d_x the difference of the lengths and g_x what is left of the prompt's difficulty; the
    controlled win rate is the mean over prompts of the fitted P with d_x = 0. This is the formula
    of AlpacaEval 2, and so are the lengths in characters and the standard deviation, which does not
    take the mean off. What differs:

    - The difficulty. AlpacaEval has one number a prompt, fitted beforehand to a pool of models
      against one baseline. Here each pair has its own: how much better i does than j on this prompt
      against the other players, with what their lengths explain taken off, less its mean. It is
      made of no answer that it is to explain, and is left out with two players.
    - The penalty: 0.01 of the squared coefficients, which only bounds them, in place of L1 with a
      weight chosen by cross-validation and of two "gamed" baselines that AlpacaEval downloads.
    - AlpacaEval's standard error is of the fitted values, as if the coefficients were known. The
      intervals here count their errors: they resample the influence of each prompt on the result
      (infinitesimal jackknife), with the difficulty and std(d) as they are.

    Where one response of a pair is longer by about the same number on every prompt, no regression
    can tell length from quality: the interval is then all of [0, 1].

    Args:
      names: K players.
      scores: `[N, K, K]` in [0, 1], antisymmetric, as of `statistics.win_rates`; probabilities, or
        votes.
      lengths: `[N, K]` of the responses, in characters.
      seed: of the bootstrap.

    Returns:
      The win rates; and `[N, K, K]` values of the prompts, whose means are these rates and whose
      scatter is theirs. They are not confined to [0, 1].

    Source: Dubois et al. 2024, "Length-Controlled AlpacaEval" (arXiv 2404.04475), sec. 3.
    """
    n, players = lengths.shape
    if scores.shape != (n, players, players) or len(names) != players:
        raise ValueError(f"scores of shape {scores.shape} do not fit lengths {lengths.shape}")
    above = np.triu_indices(players, k=1)
    judged = scores[:, above[0], above[1]].T
    longer = relative_lengths(lengths[:, above[0]], lengths[:, above[1]]).T
    features = np.stack([np.ones_like(judged), longer], axis=-1)
    if players > 2:
        difficulty = _difficulty(judged - fitted(features, fit(features, judged)), above)
        features = np.concatenate([features, difficulty[..., None]], axis=-1)
    found = influences(features, judged).T
    values = np.full_like(scores, 0.5)
    values[:, above[0], above[1]], values[:, above[1], above[0]] = found, 1 - found
    return of_pairs(names, found, INFLUENCES, seed), values


def _difficulty(left: np.ndarray, above: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """g of every pair `[P, N]`, from what its lengths leave of its answers `[P, N]`.

    Of pair (i, j) the mean over others k of `left(i, k) - left(j, k)`, less its mean over prompts.
    """
    players = above[1].max() + 1
    matrix = np.zeros((left.shape[1], players, players))
    matrix[:, above[0], above[1]], matrix[:, above[1], above[0]] = left.T, -left.T
    total = matrix.sum(axis=2)
    apart = total[:, above[0]] - total[:, above[1]] - 2 * left.T
    return ((apart - apart.mean(axis=0)) / (players - 2)).T


def relative_lengths(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`tanh` of the differences of lengths over their standard deviation, `[N, ...]`.

    0 where all are alike.
    """
    difference = np.asarray(first, np.float64) - second
    ddof = min(1, len(difference) - 1)
    scale = difference.std(axis=0, ddof=ddof)
    return np.tanh(difference / np.where(scale > 0, scale, 1)) * (scale > 0)


def fit(features: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Logistic regressions without a constant: the coefficients `[..., F]`.

    The least of the log-losses, summed over prompts, and 0.01 / 2 of the squared coefficients; by
    Newton's method.

    Args:
      features: `[..., N, F]`.
      scores: `[..., N]` in [0, 1].
    """
    weights = np.zeros(features.shape[:-2] + features.shape[-1:])
    least = _loss(features, scores, weights)
    for _ in range(_MOST_STEPS):
        expected = fitted(features, weights)
        slope = _sum(features, scores - expected) - _RIDGE * weights
        step = np.linalg.solve(_curvature(features, expected), slope[..., None])[..., 0]
        size = 1.0  # of each step; halved where it would go too far
        moved = weights + step
        loss = _loss(features, scores, moved)
        while np.any(loss > least + _ROUNDING * np.abs(least)) and size > 1e-3:
            size /= 2
            moved = np.where((loss > least)[..., None], weights + size * step, moved)
            loss = _loss(features, scores, moved)
        weights, least = moved, loss
        if np.max(np.abs(step), initial=0) < 1e-9:
            break
    return weights


def fitted(features: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """What the regressions expect: `[..., N, F]` and `[..., F]` to `[..., N]`."""
    return expit((features @ weights[..., None])[..., 0])


def influences(features: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Of each prompt the controlled win rate plus N times its influence on it: `[..., N]`.

    Their mean is the rate, and the mean's error is about that of the rate.

    Args:
      features: as of `fit`; the second is set to 0.
      scores: as of `fit`.
    """
    weights = fit(features, scores)
    expected = fitted(features, weights)
    level = features.copy()
    level[..., 1] = 0
    at_level = fitted(level, weights)
    slope = _sum(level, at_level * (1 - at_level))
    turned = np.linalg.solve(_curvature(features, expected), slope[..., None])[..., 0]
    moves = (features @ turned[..., None])[..., 0] * (scores - expected)
    # The penalty is one more thing that was believed. Where data cannot tell length from quality
    # it decides, and this is by how much it may have decided wrongly.
    believed = np.sqrt(_RIDGE * (turned**2).sum(axis=-1, keepdims=True) / scores.shape[-1])
    moves += believed * np.random.default_rng(0).choice([-1.0, 1.0], scores.shape)
    return at_level + moves - moves.mean(axis=-1, keepdims=True)


def _loss(features: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> np.ndarray:
    margin = (features @ weights[..., None])[..., 0]
    log_loss = np.logaddexp(0, margin) - scores * margin
    return log_loss.sum(axis=-1) + _RIDGE / 2 * (weights**2).sum(axis=-1)


def _sum(features: np.ndarray, per_prompt: np.ndarray) -> np.ndarray:
    """Sums over prompts: `[..., N, F]` and `[..., N]` to `[..., F]`."""
    return (per_prompt[..., None, :] @ features)[..., 0, :]


def _curvature(features: np.ndarray, expected: np.ndarray) -> np.ndarray:
    weighted = features * (expected * (1 - expected))[..., None]
    return np.swapaxes(features, -1, -2) @ weighted + _RIDGE * np.eye(features.shape[-1])
