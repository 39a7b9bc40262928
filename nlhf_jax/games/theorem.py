"""Theorem 1 of Munos et al. 2024, measured: how close Nash-MD comes to its bounds."""

import flax
import jax
import jax.numpy as jnp

from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.games.game import Game
from nlhf_jax.games.solvers import NashMD, Schedule, TheoremSchedule, rate, solve

_SCHEDULE = TheoremSchedule()


@flax.struct.dataclass
class Ratios:
    """Each is a measured KL(pi*, pi) over its bound, at most 1 if the theorem holds.

    Attributes:
      one_step: `[T]`, `KL_{t+1} / ((1 - eta tau) KL_t + 2 eta^2)`, from t = 0.
      last_iterate: `[T + 1]`, `KL_t tau^2 (t + 1) / 8`; bounded for `TheoremSchedule` only.
      certificate: KL between the computed equilibrium and the exact one, at most, in nats.
    """

    one_step: jax.Array
    last_iterate: jax.Array
    certificate: jax.Array


def ratios(game: Game, steps: int, learning_rate: float | Schedule = _SCHEDULE) -> Ratios:
    """Runs Nash-MD for `steps` steps from the reference, and compares it with Theorem 1.

    Args:
      game: with tau > 0; `jax.vmap` over games for many of them.
      steps: T.
      learning_rate: eta, with eta tau <= 1.
    """
    equilibrium = regularized_equilibrium(game)
    path = solve(
        game,
        NashMD(learning_rate),
        steps,
        metrics=("kl",),
        equilibrium=equilibrium.log_policy,
    )
    kl = path.metrics["last"]["kl"]
    eta = jax.vmap(lambda index: rate(learning_rate, game, index))(jnp.arange(steps))
    return Ratios(
        one_step=kl[1:] / ((1 - eta * game.tau) * kl[:-1] + 2 * eta**2),
        last_iterate=kl * game.tau**2 * (jnp.arange(steps + 1) + 1) / 8,
        certificate=jnp.sum(game.context_probability * equilibrium.certificate),
    )
