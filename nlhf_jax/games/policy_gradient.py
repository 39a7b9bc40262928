"""Gradients on softmax parameters: what the language-model learners do, with one logit an action.

The policy is `softmax(theta)`, theta `[X, Y]`. Exact gradients sum over all actions; sampled ones
draw responses like the learner of `nlhf_jax.learners.policy`.
"""

import abc
import dataclasses

import jax
import jax.numpy as jnp

from nlhf_jax.errors import UserError
from nlhf_jax.games import measures
from nlhf_jax.games.game import Game
from nlhf_jax.games.solvers import Schedule, State, rate


def exact_gradient(game: Game, theta: jax.Array, log_opponent: jax.Array) -> jax.Array:
    """Ascent direction `[X, Y]` of `P(pi > pi') - tau KL(pi, mu)`, pi' frozen.

    Munos et al. 2024, sec. 7: `E grad log pi(y) (P(y > pi') - 1/2 - tau log(pi(y) / mu(y)))`.
    """
    log_policy, policy = measures.normalize(theta), jax.nn.softmax(theta)
    won = measures.preference_over(game, log_opponent) - 0.5
    returns = won - game.tau * (log_policy - game.log_reference)
    baseline = jnp.sum(policy * returns, axis=-1, keepdims=True)
    return game.context_probability[:, None] * policy * (returns - baseline)


def sampled_gradient(
    game: Game, theta: jax.Array, log_opponent: jax.Array, key: jax.Array, samples: int
) -> jax.Array:
    """An unbiased estimate of `exact_gradient` from `samples` pairs (y, y') in every context."""
    log_policy = measures.normalize(theta)
    y, other = _draw_pairs(key, log_policy, log_opponent, samples)
    contexts = jnp.arange(game.num_contexts)
    won = game.preference[contexts, y, other] - 0.5  # [samples, X]
    returns = won - game.tau * (log_policy - game.log_reference)[contexts, y]
    scores = jax.nn.one_hot(y, game.num_actions, dtype=theta.dtype) - jnp.exp(log_policy)
    return game.context_probability[:, None] * jnp.mean(returns[..., None] * scores, axis=0)


@dataclasses.dataclass(frozen=True)
class _AgainstMixture(abc.ABC):
    """Gradient steps on theta against, or sampled from, `pi^(1 - beta) mu^beta`.

    Attributes:
      learning_rate: of theta, a constant or a schedule. The gradient of a context is weighted by
        its probability.
      beta: weight of the reference in the mixture, in [0, 1].
      samples: pairs that are drawn in each context for a step; None for exact gradients.
    """

    learning_rate: float | Schedule
    beta: float = 0.0
    samples: int | None = None

    def __post_init__(self):
        _check("beta", self.beta)

    def init(self, game: Game, log_start: jax.Array) -> State:
        return log_start, measures.geometric_mixture(log_start, game.log_reference, self.beta)

    @abc.abstractmethod
    def ascent(self, game: Game, theta: jax.Array, mixture: jax.Array, key: jax.Array) -> jax.Array:
        """The direction of theta's step, of its shape."""

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        theta, mixture = state
        ascent = self.ascent(game, theta, mixture, key)
        theta = theta + rate(self.learning_rate, game, index) * ascent
        return theta, measures.geometric_mixture(theta, game.log_reference, self.beta)

    def policies(self, state: State) -> dict[str, jax.Array]:
        policies = {"last": measures.normalize(state[0])}
        return policies | ({"mixture": state[1]} if 0 < self.beta < 1 else {})


@dataclasses.dataclass(frozen=True)
class PolicyGradient(_AgainstMixture):
    """Self-play (beta = 0), Nash-MD-PG (0 < beta < 1) and best response to mu (beta = 1).

    The fixed point of Nash-MD-PG is `pi_b(y) ∝ mu(y) exp(P(y > m) / tau)`, m its mixture, and
    m ("mixture" among the policies) is the equilibrium at `tau / (1 - beta)`
    (Calandriello et al. 2024, prop. 5.2).
    """

    def ascent(self, game: Game, theta: jax.Array, mixture: jax.Array, key: jax.Array) -> jax.Array:
        return _gradient(game, theta, mixture, key, self.samples)


@dataclasses.dataclass(frozen=True)
class NashEMA:
    """Nash-EMA-PG: the opponent has the exponential moving average of past parameters.

    `avg_t = decay avg_{t-1} + (1 - decay) theta_t`, avg_0 the starting policy.

    Attributes:
      learning_rate, samples: as in `PolicyGradient`.
      decay: the paper's beta for EMA, in [0, 1].
    """

    learning_rate: float | Schedule
    decay: float
    samples: int | None = None

    def __post_init__(self):
        _check("decay", self.decay)

    def init(self, game: Game, log_start: jax.Array) -> State:
        return log_start, log_start

    def step(self, game: Game, state: State, index: jax.Array, key: jax.Array) -> State:
        theta, average = state
        theta = theta + rate(self.learning_rate, game, index) * _gradient(
            game, theta, measures.normalize(average), key, self.samples
        )
        return theta, self.decay * average + (1 - self.decay) * theta

    def policies(self, state: State) -> dict[str, jax.Array]:
        return {
            "last": measures.normalize(state[0]),
            "moving average": measures.normalize(state[1]),
        }


def ipo_loss(game: Game, theta: jax.Array, log_sampler: jax.Array) -> jax.Array:
    """The expected loss of online IPO: a scalar whose gradient flows through theta only.

    Calandriello et al. 2024: pairs (y, y') are drawn from the sampler, and with
    `h = log(pi(y) / mu(y)) - log(pi(y') / mu(y'))` the loss of a pair is
    `-(2 P(y > y') - 1) h + tau h^2`. Up to a constant it is tau times IPO's squared loss,
    `p (h - 1 / (2 tau))^2 + (1 - p) (h + 1 / (2 tau))^2`.
    """
    ratio = measures.normalize(theta) - game.log_reference
    sampler = jnp.exp(log_sampler)
    won = measures.preference_over(game, log_sampler)
    # E (2 P(y > y') - 1) h = 2 E ratio(y) (2 P(y > sampler) - 1), and E h^2 = 2 Var ratio.
    gain = 2 * jnp.sum(sampler * ratio * (2 * won - 1), axis=-1)
    mean = jnp.sum(sampler * ratio, axis=-1, keepdims=True)
    spread = 2 * jnp.sum(sampler * (ratio - mean) ** 2, axis=-1)
    return jnp.sum(game.context_probability * (game.tau * spread - gain))


def sampled_ipo_loss(
    game: Game, theta: jax.Array, log_sampler: jax.Array, key: jax.Array, samples: int
) -> jax.Array:
    """`ipo_loss` estimated from `samples` pairs in every context; its gradient is unbiased."""
    ratio = measures.normalize(theta) - game.log_reference
    y, other = _draw_pairs(key, log_sampler, log_sampler, samples)
    contexts = jnp.arange(game.num_contexts)
    h = ratio[contexts, y] - ratio[contexts, other]
    loss = game.tau * h**2 - (2 * game.preference[contexts, y, other] - 1) * h
    return jnp.sum(game.context_probability * jnp.mean(loss, axis=0))


@dataclasses.dataclass(frozen=True)
class IPO(_AgainstMixture):
    """Online IPO (beta = 0) and IPO-MD (beta > 0), Calandriello et al. 2024.

    Descends `ipo_loss / 4`, sampled from `pi^(1 - beta) mu^beta` with the sampler frozen. Divided
    by 4, online IPO's expected step is that of self-play with the same learning rate, and IPO-MD
    has the fixed point of Nash-MD-PG. At beta = 1 it is offline, from mu.
    """

    def ascent(self, game: Game, theta: jax.Array, mixture: jax.Array, key: jax.Array) -> jax.Array:
        if self.samples is None:
            return -jax.grad(ipo_loss, argnums=1)(game, theta, mixture) / 4
        return -jax.grad(sampled_ipo_loss, argnums=1)(game, theta, mixture, key, self.samples) / 4


def _gradient(game, theta, log_opponent, key, samples):
    if samples is None:
        return exact_gradient(game, theta, log_opponent)
    return sampled_gradient(game, theta, log_opponent, key, samples)


def _draw_pairs(key, log_first, log_second, samples) -> tuple[jax.Array, jax.Array]:
    """Independent actions of two policies, int32 `[samples, X]` each."""
    first, second = jax.random.split(key)
    shape = (samples, log_first.shape[0])
    return (
        jax.random.categorical(first, log_first, axis=-1, shape=shape),
        jax.random.categorical(second, log_second, axis=-1, shape=shape),
    )


def _check(name: str, value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UserError(f"{name} is {value} but must be in [0, 1]")
