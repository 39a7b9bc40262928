"""Where games come from: raters, ratings, dice and chance.

`**regularization` is what `game.from_matrix` takes beside the matrix: tau, reference and
context_probability.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from nlhf_jax.errors import UserError
from nlhf_jax.games.game import Game, from_matrix


def from_elo(ratings: ArrayLike, **regularization: Any) -> Game:
    """Bradley-Terry: `P(y > y') = sigmoid(r(y) - r(y'))`; ratings `[Y]` or `[X, Y]`, in nats."""
    ratings = np.asarray(ratings, np.float64)
    return from_matrix(
        special.expit(ratings[..., :, None] - ratings[..., None, :]), **regularization
    )


def from_rater_types(masses: ArrayLike, preferences: ArrayLike, **regularization: Any) -> Game:
    """A population: P is the mean of what its types prefer.

    Args:
      masses: `[R]`, each type's share of the raters, summing to 1.
      preferences: `[R, Y, Y]` or `[R, X, Y, Y]`, what a type prefers: 1, 0, or 1/2 for a tie (any
        probability will do). A type with a total order has `ordered(utilities)`.
    """
    masses = np.asarray(masses, np.float64)
    if np.any(masses < 0) or abs(masses.sum() - 1) > 1e-9:
        raise UserError(f"the masses {masses.tolist()} must not be negative and must sum to 1")
    return from_matrix(
        np.tensordot(masses, np.asarray(preferences, np.float64), axes=1), **regularization
    )


def ordered(utilities: ArrayLike) -> np.ndarray:
    """What a rater with these utilities `[..., Y]` prefers: `[..., Y, Y]`, 1/2 between equals."""
    utilities = np.asarray(utilities, np.float64)
    return 0.5 + 0.5 * np.sign(utilities[..., :, None] - utilities[..., None, :])


def from_dice(faces: Sequence[Sequence[float]], **regularization: Any) -> Game:
    """Dice that are thrown against each other: the higher face wins, equal faces tie."""
    matrix = [[np.mean(0.5 + 0.5 * np.sign(np.subtract.outer(a, b))) for b in faces] for a in faces]
    return from_matrix(matrix, **regularization)


def rock_paper_scissors(**regularization: Any) -> Game:
    """Each action always beats the one before it, in a circle of three."""
    return from_matrix([[0.5, 0, 1], [1, 0.5, 0], [0, 1, 0.5]], **regularization)


def three_rater_types(eps: float, **regularization: Any) -> Game:
    """The example of Munos et al. 2024, sec. 3.2; abs(eps) <= 1/3.

    Type 1 (mass 1/3 - eps) prefers y2 to y1, type 2 (1/3 + eps/2) y1 to y3, type 3 (1/3 + eps/2)
    y3 to y2; all other pairs tie. The Nash equilibrium is (1/3 + eps/2, 1/3 + eps/2, 1/3 - eps).
    """
    preferences = np.full((3, 3, 3), 0.5)
    for rater, (winner, loser) in enumerate([(1, 0), (0, 2), (2, 1)]):
        preferences[rater, winner, loser] = 1
        preferences[rater, loser, winner] = 0
    return from_rater_types(
        [1 / 3 - eps, 1 / 3 + eps / 2, 1 / 3 + eps / 2], preferences, **regularization
    )


def intransitive_dice(**regularization: Any) -> Game:
    """Munos et al. 2024, app. C: three dice, each beating the next with 5/9; Nash is uniform."""
    return from_dice([(2, 4, 9), (1, 6, 8), (3, 5, 7)], **regularization)


def constrained_elo() -> tuple[Game, np.ndarray, np.ndarray]:
    """Munos et al. 2024, app. A: the best Elo rating is not the best win rate.

    Returns:
      The game of the ratings (0, log 9, log 2), those ratings `[3]`, and the vertices `[2, 3]` of
      the allowed policies, those with `pi(y1) = 2 pi(y2)`.
    """
    ratings = np.log([1.0, 9.0, 2.0])
    return from_elo(ratings), ratings, np.array([[2 / 3, 1 / 3, 0], [0, 0, 1]])


def random_game(
    seed: int,
    actions: int,
    contexts: int = 1,
    intransitivity: float = 1.0,
    scale: float = 1.0,
    **regularization: Any,
) -> Game:
    """A random game with a chosen share of cyclic preference.

    The logits of P are `scale * (sqrt(1 - c) T + sqrt(c) C)`: T differences of normal ratings, C
    normal, antisymmetric, with all row sums 0, and the mean square of each is 1. Every
    antisymmetric matrix is such a sum in one way, and the two parts are orthogonal (Jiang et al.
    2011, HodgeRank), so `cyclic_share` gives c back.

    Args:
      seed: of the game.
      actions: Y.
      contexts: X, independent of each other.
      intransitivity: c in [0, 1]; 0 is Bradley-Terry, 1 has no transitive part at all.
      scale: root mean square of the logits; large ones make P nearly deterministic.

    Raises:
      UserError: c outside [0, 1], or above 0 with fewer than three actions.
    """
    if not 0 <= intransitivity <= 1:
        raise UserError(f"intransitivity is {intransitivity} but must be in [0, 1]")
    if actions < 2 or (actions < 3 and intransitivity > 0):
        raise UserError(f"there is no cycle among {actions} actions: intransitivity must be 0")
    rng = np.random.default_rng(seed)
    ratings = rng.normal(size=(contexts, actions))
    transitive = ratings[:, :, None] - ratings[:, None, :]
    noise = rng.normal(size=(contexts, actions, actions))
    antisymmetric = noise - np.swapaxes(noise, 1, 2)
    logits = scale * np.sqrt(1 - intransitivity) * _unit(transitive)
    if intransitivity:
        cyclic = antisymmetric - _gradient_part(antisymmetric)
        logits = logits + scale * np.sqrt(intransitivity) * _unit(cyclic)
    return from_matrix(special.expit(logits), **regularization)


def cyclic_share(game: Game) -> np.ndarray:
    """Share of the squared logits of P that no rating explains, in [0, 1]: float64 `[X]`.

    0 for Bradley-Terry, 1 for rock-paper-scissors. P must be in (0, 1).
    """
    logits = special.logit(np.asarray(game.preference, np.float64))
    if not np.all(np.isfinite(logits)):
        raise UserError("a preference of 0 or 1 has no logit: cyclic_share needs P in (0, 1)")
    left = logits - _gradient_part(logits)
    total = np.sum(logits**2, axis=(1, 2))
    return np.sum(left**2, axis=(1, 2)) / np.where(total > 0, total, 1.0)


def _gradient_part(antisymmetric: np.ndarray) -> np.ndarray:
    """The nearest matrix of rating differences, `[..., Y, Y]`: the ratings are the row means."""
    ratings = antisymmetric.mean(axis=-1)
    return ratings[..., :, None] - ratings[..., None, :]


def _unit(matrices: np.ndarray) -> np.ndarray:
    """Scaled so that the entries off the diagonal have mean square 1."""
    actions = matrices.shape[-1]
    square = np.sum(matrices**2, axis=(-2, -1), keepdims=True) / (actions * (actions - 1))
    return matrices / np.sqrt(square)
