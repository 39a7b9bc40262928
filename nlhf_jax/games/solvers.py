"""Algorithms that look for an equilibrium, behind one interface, and `solve`, which runs them.

A solver says how it starts, what one step is and which policy it holds; `solve` scans it and
records the metrics asked for. Here are the solvers that know the whole vector `P(y > pi' | x)`;
those that follow a gradient of softmax parameters are in `nlhf_jax.games.policy_gradient`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Protocol

import flax
import jax
import jax.numpy as jnp

from nlhf_jax.errors import UserError
from nlhf_jax.games import measures
from nlhf_jax.games.game import Game

State = Any
Schedule = Callable[[Game, jax.Array], jax.Array]  # of the game and the step, from 0


class Solver(Protocol):
    """An algorithm with its settings. Hashable, since `solve` compiles one program for each."""

    def init(self, game: Game, log_start: jax.Array) -> State:
        """The state at the starting policy, log-probabilities `[X, Y]`; a pytree."""

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        """One step; `index` is its int32 number from 0, `key` its own."""

    def policies(self, state: State) -> dict[str, jax.Array]:
        """Log-probabilities `[X, Y]`: "last", the iterate, and whatever else it keeps."""


@flax.struct.dataclass
class Trajectory:
    """What `solve` gives back. R records were taken, the first one before the first step.

    Attributes:
      steps: int32 `[R]`, steps done at each record.
      policies: name -> log-probabilities `[X, Y]` after the last step. "last" is the iterate,
        "average" the mean of the probabilities of all iterates, the starting policy included.
      metrics: name of the policy -> name of the metric -> `[R]`.
    """

    steps: jax.Array
    policies: dict[str, jax.Array]
    metrics: dict[str, dict[str, jax.Array]]


@functools.partial(jax.jit, static_argnames=("solver", "steps", "metrics", "record_every"))
def solve(
    game: Game,
    solver: Solver,
    steps: int,
    *,
    metrics: tuple[str, ...] = (),
    record_every: int = 1,
    equilibrium: jax.Array | None = None,
    log_start: jax.Array | None = None,
    seed: int | jax.Array = 0,
) -> Trajectory:
    """Runs a solver on a game for a number of steps, in one compiled program.

    `jax.vmap(lambda game: solve(game, ...))` runs it on a batch of games.

    Args:
      game: see `Game`.
      solver: an algorithm with its settings.
      steps: how many.
      metrics: names in `measures.METRICS`, recorded for every policy of the solver.
      record_every: steps between two records; must divide `steps`.
      equilibrium: `[X, Y]`, the policy to which "kl" measures, KL(equilibrium, policy).
      log_start: `[X, Y]`, the first policy; the reference if None.
      seed: of solvers that sample.

    Raises:
      UserError: an unknown metric, "kl" without an equilibrium, or a `record_every` that does not
        divide `steps`.
    """
    unknown = [name for name in metrics if name not in measures.METRICS]
    if unknown:
        raise UserError(
            f"there is no metric {unknown[0]!r}; there are {', '.join(measures.METRICS)}"
        )
    if "kl" in metrics and equilibrium is None:
        raise UserError("the metric 'kl' needs the argument equilibrium")
    if record_every < 1 or steps % record_every:
        raise UserError(f"record_every is {record_every} but must divide steps, {steps}")
    key = jax.random.key(seed)
    start = solver.init(game, game.log_reference if log_start is None else log_start)

    def policies(state, average):
        return solver.policies(state) | {"average": jnp.log(average)}

    def record(state, average):
        return {
            name: {
                metric: measures.METRICS[metric](game, policy, equilibrium) for metric in metrics
            }
            for name, policy in policies(state, average).items()
        }

    def step(index, carry):
        state, average = carry
        state = solver.step(game, state, index, jax.random.fold_in(key, index))
        policy = jnp.exp(solver.policies(state)["last"])
        return state, average + (policy - average) / (index + 2)

    def between_records(carry, number):
        first = number * record_every
        carry = jax.lax.fori_loop(first, first + record_every, step, carry)
        return carry, record(*carry)

    carry = (start, jnp.exp(solver.policies(start)["last"]))
    at_start = record(*carry)
    count = steps // record_every
    carry, records = jax.lax.scan(between_records, carry, jnp.arange(count, dtype=jnp.int32))
    joined = jax.tree.map(lambda one, rest: jnp.concatenate([one[None], rest]), at_start, records)
    return Trajectory(
        steps=jnp.arange(count + 1, dtype=jnp.int32) * record_every,
        policies=policies(*carry),
        metrics=joined,
    )


# --- learning rates ------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class TheoremSchedule:
    """`2 / (tau (t + 2))` of Theorem 1, which gives `KL(pi*, pi_T) <= 8 / (tau^2 (T + 1))`."""

    def __call__(self, game: Game, index: jax.Array) -> jax.Array:
        return 2.0 / (game.tau * (index + 2))


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot:
    """`scale / sqrt(t + 1)`, with which averages of the plain game's iterates converge."""

    scale: float

    def __call__(self, game: Game, index: jax.Array) -> jax.Array:
        return self.scale / jnp.sqrt(index + 1.0)


@dataclasses.dataclass(frozen=True)
class ShareOfInverseTau:
    """The constant `share / tau`, so that `eta tau = share` in games of different tau."""

    share: float

    def __call__(self, game: Game, index: jax.Array) -> jax.Array:
        return self.share / game.tau


def rate(learning_rate: float | Schedule, game: Game, index: jax.Array) -> jax.Array:
    """The learning rate at a step, from a constant or a schedule."""
    value = learning_rate(game, index) if callable(learning_rate) else learning_rate
    return jnp.asarray(value, game.preference.dtype)


# --- solvers -------------------------------------------------------------------------------------


class _OnePolicy:
    """A solver whose state is its policy's log-probabilities."""

    def init(self, game: Game, log_start: jax.Array) -> jax.Array:
        return log_start

    def policies(self, state: jax.Array) -> dict[str, jax.Array]:
        return {"last": state}


@dataclasses.dataclass(frozen=True)
class NashMD(_OnePolicy):
    """Nash-MD (Munos et al. 2024, sec. 6): mirror descent against the geometric mixture.

    `m_t = pi_t^(1 - eta tau) mu^(eta tau)`, `pi_{t+1}(y) ∝ m_t(y) exp(eta P(y > m_t))`.
    The last iterate converges: `KL(pi*, pi_{t+1}) <= (1 - eta tau) KL(pi*, pi_t) + 2 eta^2`.

    Attributes:
      learning_rate: eta, a constant or a schedule, with eta tau <= 1.
    """

    learning_rate: float | Schedule = TheoremSchedule()

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        eta = rate(self.learning_rate, game, index)
        mixture = measures.geometric_mixture(state, game.log_reference, eta * game.tau)
        return measures.normalize(mixture + eta * measures.preference_over(game, mixture))


@dataclasses.dataclass(frozen=True)
class MirrorDescent(_OnePolicy):
    """Online mirror descent, that is self-play: Nash-MD with `P(y > pi_t)` for `P(y > m_t)`.

    Its average converges. Its last iterate may cycle, and does when tau is 0 or eta large.

    Attributes:
      learning_rate: eta, a constant or a schedule, with eta tau <= 1.
    """

    learning_rate: float | Schedule

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        return _mirror_step(game, state, state, rate(self.learning_rate, game, index))


@dataclasses.dataclass(frozen=True)
class Extragradient(_OnePolicy):
    """EGPO (Zhou et al. 2025, arXiv 2503.08942): two mirror steps from the same policy.

    The first, against the policy itself, gives `pi_{t+1/2}`; the second, against that one, gives
    `pi_{t+1}`. The last iterate converges linearly if eta is small enough, with no floor.

    Attributes:
      learning_rate: eta, a constant or a schedule, with eta tau <= 1.
    """

    learning_rate: float | Schedule

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        eta = rate(self.learning_rate, game, index)
        return _mirror_step(game, state, _mirror_step(game, state, state, eta), eta)


@dataclasses.dataclass(frozen=True)
class MagneticMirrorDescent:
    """MPO (Wang et al. 2025, arXiv 2410.16714): mirror descent whose reference moves.

    Every `period` steps the *magnet*, which takes mu's place, becomes the policy. Between two moves
    the policy nears the equilibrium of the game that is regularised towards the magnet; these come
    near an equilibrium of the plain game, so that the last iterate does, whatever tau is. With many
    steps between two moves it is the proximal point method of COMAL (Liu et al. 2024, arXiv
    2410.23223).

    Attributes:
      learning_rate: eta, a constant or a schedule, with eta tau <= 1.
      period: steps between two moves of the magnet, >= 1.
    """

    learning_rate: float | Schedule
    period: int

    def init(self, game: Game, log_start: jax.Array) -> State:
        return log_start, game.log_reference

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        policy, magnet = state
        drawn = dataclasses.replace(game, log_reference=magnet)
        policy = _mirror_step(drawn, policy, policy, rate(self.learning_rate, game, index))
        return policy, jnp.where((index + 1) % self.period == 0, policy, magnet)

    def policies(self, state: State) -> dict[str, jax.Array]:
        return {"last": state[0]}


def _mirror_step(game: Game, policy: jax.Array, opponent: jax.Array, eta: jax.Array) -> jax.Array:
    """`pi(y)^(1 - eta tau) mu(y)^(eta tau) exp(eta P(y > opponent))`, normalised."""
    mixture = (1 - eta * game.tau) * policy + eta * game.tau * game.log_reference
    return measures.normalize(mixture + eta * measures.preference_over(game, opponent))


@dataclasses.dataclass(frozen=True)
class FictitiousPlay:
    """Fictitious play (Brown 1951): the best response to the average of all past policies.

    The average converges. With tau > 0 the best response is that of the regularised game.
    """

    def init(self, game: Game, log_start: jax.Array) -> State:
        return log_start, jnp.exp(log_start)

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        _, average = state
        policy = measures.best_response(game, jnp.log(average))
        return policy, average + (jnp.exp(policy) - average) / (index + 2)

    def policies(self, state: State) -> dict[str, jax.Array]:
        return {"last": state[0]}
