"""A preference game: who is preferred to whom, for a batch of contexts.

Munos et al. 2024, sec. 3 and 4. With tau > 0 the game is regularised:
`P_tau(pi > pi') = P(pi > pi') - tau KL(pi, mu) + tau KL(pi', mu)`.
"""

from collections.abc import Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from nlhf_jax.errors import UserError

_TOLERANCE = 1e-6  # rounding of float32 inputs


@flax.struct.dataclass
class Game:
    """A pytree, so that `jax.vmap` batches whole games (of different tau, too).

    Build it with `from_matrix` or with `nlhf_jax.games.families`, which check their input.

    Attributes:
      preference: `[X, Y, Y]`, `P(y > y' | x)` in [0, 1]; antisymmetric: `P + P.T == 1`.
      log_reference: `[X, Y]`, log mu(y | x), in nats.
      tau: scalar >= 0, the preference that one nat of KL(pi, mu) costs; 0 is the plain game.
      context_probability: `[X]`, rho, summing to 1.
    """

    preference: jax.Array
    log_reference: jax.Array
    tau: jax.Array
    context_probability: jax.Array

    @property
    def num_contexts(self) -> int:
        return self.preference.shape[-3]

    @property
    def num_actions(self) -> int:
        return self.preference.shape[-1]


def from_matrix(
    preference: ArrayLike,
    *,
    tau: float = 0.0,
    reference: ArrayLike | None = None,
    context_probability: ArrayLike | None = None,
) -> Game:
    """A game from its preference matrix, checked.

    The arrays are float64 where JAX's x64 is enabled, else float32.

    Args:
      preference: `[Y, Y]` for one context or `[X, Y, Y]`: `P(y > y' | x)`.
      tau: weight of the regularisation, >= 0.
      reference: mu, positive, `[Y]` or `[X, Y]`, each row summing to 1; None for uniform.
      context_probability: rho `[X]`; None for uniform.

    Raises:
      UserError: a shape, range, sum or the antisymmetry is violated; the message says where.
    """
    preference = _numbers("preference", preference)
    if preference.ndim == 2:
        preference = preference[None]
    if preference.ndim != 3 or preference.shape[1] != preference.shape[2] or not preference.size:
        raise UserError(f"preference has the shape {preference.shape} but must be [X, Y, Y]")
    contexts, actions, _ = preference.shape
    outside = np.argwhere(~((preference >= 0) & (preference <= 1)))
    if outside.size:
        x, y, other = outside[0]
        raise UserError(
            f"preference[{x}, {y}, {other}] is {preference[x, y, other]} but must be in [0, 1]"
        )
    swapped = 1 - np.swapaxes(preference, 1, 2)
    asymmetric = np.argwhere(abs(preference - swapped) > _TOLERANCE)
    if asymmetric.size:
        x, y, other = asymmetric[0]
        raise UserError(
            f"preference[{x}, {y}, {other}] is {preference[x, y, other]:g} and "
            f"preference[{x}, {other}, {y}] is {preference[x, other, y]:g}, but they must sum to 1"
        )
    if not (np.isfinite(tau) and tau >= 0):
        raise UserError(f"tau is {tau} but must be finite and not negative")
    if reference is None:
        reference = np.full((contexts, actions), 1 / actions)
    else:
        reference = np.broadcast_to(_numbers("reference", reference), (contexts, actions))
    _check_distribution("reference", reference)
    if not np.all(reference > 0):
        raise UserError("reference has a zero, but every action needs a positive probability")
    if context_probability is None:
        context_probability = np.full(contexts, 1 / contexts)
    context_probability = _numbers("context_probability", context_probability)
    if context_probability.shape != (contexts,):
        raise UserError(
            f"context_probability has the shape {context_probability.shape} but there are "
            f"{contexts} contexts"
        )
    _check_distribution("context_probability", context_probability)
    return Game(
        preference=_device((preference + swapped) / 2),
        log_reference=_device(np.log(reference)),
        tau=_device(tau),
        context_probability=_device(context_probability),
    )


def stack(games: Sequence[Game]) -> Game:
    """Games of the same size as one pytree with a leading axis, for `jax.vmap`."""
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *games)


def restrict(game: Game, policies: ArrayLike) -> np.ndarray:
    """The game in which the actions are policies: `P(pi_i > pi_j)`, float64 `[K, K]`.

    Its Nash equilibria are those of the game in which only mixtures of these policies are allowed
    (a polytope, given by its vertices), and it is the meta-game of a tournament.

    Args:
      game: see above; its regularisation plays no part.
      policies: K probability distributions, `[K, Y]` for a game of one context, or `[K, X, Y]`.
    """
    policies = _numbers("policies", policies)
    if policies.ndim == 2 and game.num_contexts == 1:
        policies = policies[:, None]
    if policies.shape[1:] != (game.num_contexts, game.num_actions):
        raise UserError(
            f"policies have the shape {policies.shape} but must be "
            f"[K, {game.num_contexts}, {game.num_actions}]"
        )
    _check_distribution("policies", policies)
    preference = np.asarray(game.preference, np.float64)
    rho = np.asarray(game.context_probability, np.float64)
    return np.einsum("x,ixy,xyz,jxz->ij", rho, policies, preference, policies)


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} is not an array of numbers: {error}") from error


def _check_distribution(name: str, values: np.ndarray) -> None:
    if np.any(values < 0) or not np.allclose(values.sum(axis=-1), 1, rtol=0, atol=_TOLERANCE):
        raise UserError(f"{name} must not be negative and must sum to 1 over its last axis")


def _device(values: ArrayLike) -> jax.Array:
    return jnp.asarray(values, jnp.result_type(float))
