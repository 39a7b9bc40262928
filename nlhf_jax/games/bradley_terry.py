"""Bradley-Terry beside the game: the reward that RLHF would learn from it, and what it leads to.

`P(y > y') ≈ sigmoid(r(y) - r(y'))`. The reward depends on which pairs are shown to the raters; the
Nash equilibrium does not (Munos et al. 2024, sec. 3).
"""

import functools

import flax
import jax
import jax.numpy as jnp

from nlhf_jax.games import measures
from nlhf_jax.games.game import Game

_STEP_SIZES = 16  # 1, 1/2, 1/4, ...


@flax.struct.dataclass
class BradleyTerry:
    """A fitted reward.

    Attributes:
      reward: `[X, Y]`; the mean over each context's actions is 0, since only differences count.
      residual: `[X]`, the largest entry of the loss's gradient. Where some actions always win over
        all the others there is no finite reward: then it is not near 0, or the rewards are huge.
    """

    reward: jax.Array
    residual: jax.Array


@functools.partial(jax.jit, static_argnames="max_iterations")
def fit(game: Game, log_sampler: jax.Array, max_iterations: int = 100) -> BradleyTerry:
    """The reward of infinitely many comparisons: Newton's method on the convex cross-entropy.

    Args:
      game: who is preferred to whom.
      log_sampler: `[X, Y]`, log-probabilities with which both responses of a pair are drawn.
    """

    def of_context(preference, log_probability):
        shown = jnp.exp(log_probability)[:, None] * jnp.exp(log_probability)
        return _newton(preference, shown, max_iterations)

    return BradleyTerry(*jax.vmap(of_context)(game.preference, log_sampler))


def _newton(preference, shown, max_iterations):
    actions = preference.shape[0]
    steps = 0.5 ** jnp.arange(_STEP_SIZES, dtype=preference.dtype)

    def margins(reward):
        return reward[..., :, None] - reward[..., None, :]

    def loss(reward):
        entropies = shown * preference * jax.nn.log_sigmoid(margins(reward))
        return -jnp.sum(entropies, axis=(-2, -1))

    def gradient(reward):
        """Zero where the model wins as often as the action does, each over those it meets."""
        return jnp.sum(shown * (jax.nn.sigmoid(margins(reward)) - preference), axis=-1)

    def step(reward):
        won = jax.nn.sigmoid(margins(reward))
        weights = shown * won * (1 - won)
        curvature = jnp.diag(jnp.sum(weights, axis=-1)) - weights
        # The loss does not change along the direction of ones, which the added 1 makes regular.
        return -jnp.linalg.solve(curvature + 1.0, gradient(reward))

    def improve(state):
        reward, best, iteration, _ = state
        moved = reward + steps[:, None] * step(reward)
        losses = loss(moved)
        chosen = jnp.nanargmin(losses)
        better = losses[chosen] < best
        reward = jnp.where(better, moved[chosen], reward)
        return reward, jnp.where(better, losses[chosen], best), iteration + 1, better

    def unfinished(state):
        return state[3] & (state[2] < max_iterations)

    zero = jnp.zeros(actions, preference.dtype)
    start = (zero, loss(zero), jnp.int32(0), jnp.bool_(True))
    reward = jax.lax.while_loop(unfinished, improve, start)[0]
    # The loss cannot tell the last digits of the reward, but its gradient can: one more step.
    last = step(reward)
    reward = reward + jnp.where(jnp.all(jnp.isfinite(last)), last, 0.0)
    return reward - jnp.mean(reward), jnp.max(jnp.abs(gradient(reward)))


def optimum(game: Game, reward: jax.Array) -> jax.Array:
    """RLHF's policy: argmax of `E r - tau KL(pi, mu)`, log-probabilities `[X, Y]`.

    At tau = 0 a single action (or several of equal reward), whatever the raters disagree about.
    """
    return measures.optimal_policy(game, reward)


@functools.partial(jax.jit, static_argnames="max_iterations")
def self_consistent(game: Game, beta: float, max_iterations: int = 100_000) -> jax.Array:
    """Where online DPO stays: the policy whose own samples give the reward that it is optimal for.

    `pi(y) ∝ mu(y) exp(r(y) / beta)` with r fitted to comparisons of responses of pi: an action wins
    as often as its reward says against those that pi writes. Found by small steps from mu; log-
    probabilities `[X, Y]`, NaN where they did not arrive.

    Args:
      game: who is preferred to whom.
      beta: DPO's: what a nat of the log ratio is worth as a logit of preference, > 0.
      max_iterations: of each context.
    """
    step = jnp.minimum(beta, 1.0)  # the larger, the nearer to turning round the fixed point

    def of_context(preference, log_reference):
        def left(reward):
            """How much oftener than its reward says each action wins against pi."""
            policy = jnp.exp(measures.normalize(log_reference + reward / beta))
            said = jax.nn.sigmoid(reward[:, None] - reward[None, :])
            return (preference - said) @ policy

        def improve(state):
            reward, _, iteration = state
            reward = reward + step * left(reward)
            return reward, jnp.max(jnp.abs(left(reward))), iteration + 1

        def unfinished(state):
            return (state[1] > 1e-12) & (state[2] < max_iterations)

        start = (jnp.zeros_like(log_reference), jnp.inf, jnp.int32(0))
        reward, least, _ = jax.lax.while_loop(unfinished, improve, start)
        found = measures.normalize(log_reference + reward / beta)
        return jnp.where(least < 1e-6, found, jnp.nan)

    return jax.vmap(of_context)(game.preference, game.log_reference)


def preference(reward: jax.Array) -> jax.Array:
    """`sigmoid(r(y) - r(y'))`: `[X, Y]` to `[X, Y, Y]`."""
    return jax.nn.sigmoid(reward[..., :, None] - reward[..., None, :])
