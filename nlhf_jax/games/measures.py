"""What is measured of policies in a game: divergences, win rates, best responses, exploitability.

Policies are log-probabilities `[X, Y]`, in nats; results are scalars, averaged over the contexts
with rho, unless a shape is given. KL in nats, win rates and exploitability in probability.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from nlhf_jax.games.game import Game


def normalize(logits: jax.Array) -> jax.Array:
    """Logits to log-probabilities, over the last axis."""
    return jax.nn.log_softmax(logits, axis=-1)


def geometric_mixture(
    log_policy: jax.Array, log_reference: jax.Array, beta: jax.Array | float
) -> jax.Array:
    """`pi^(1 - beta) mu^beta`, normalised: `[..., Y]`; `beta` in [0, 1] broadcasts."""
    return normalize((1 - beta) * log_policy + beta * log_reference)


def preference_over(game: Game, log_opponent: jax.Array) -> jax.Array:
    """`P(y > pi' | x)` of every action: `[X, Y]`."""
    # Accelerators would round the inputs of a product to bfloat16 or TF32.
    return jnp.einsum("xij,xj->xi", game.preference, jnp.exp(log_opponent), precision="highest")


def kl(log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """KL(p, q) along the last axis, `[..., Y]` twice to `[...]`, never negative.

    Accurate to a few units in the last place also where p and q nearly agree, where the sum of
    `p log(p / q)` would be rounding errors: every term is `p - q` larger, which sums to 0, and so
    not negative.
    """
    ratio = log_q - log_p
    p = jnp.exp(log_p)
    near = jnp.abs(ratio) < 0.01
    # exp(r) - 1 - r, by its series where that difference cancels.
    small = jnp.where(near, ratio, 0.0)
    series = small**2 * (1 / 2 + small / 6 + small**2 / 24 + small**3 / 120 + small**4 / 720)
    # Actions that p never takes may have log_p = -inf, and contribute q.
    far = jnp.exp(log_q) - p - p * jnp.where(p > 0, ratio, 0.0)
    term = jnp.where(near, p * series, far)
    return jnp.sum(term, axis=-1)


def divergence(game: Game, log_p: jax.Array, log_q: jax.Array) -> jax.Array:
    """E_x KL(p(. | x), q(. | x))."""
    return jnp.sum(game.context_probability * kl(log_p, log_q))


def win_rate(game: Game, log_policy: jax.Array, log_opponent: jax.Array) -> jax.Array:
    """`P(pi > pi')`, the value of the plain game for the first player."""
    by_context = jnp.sum(jnp.exp(log_policy) * preference_over(game, log_opponent), axis=-1)
    return jnp.sum(game.context_probability * by_context)


def regularized_win_rate(game: Game, log_policy: jax.Array, log_opponent: jax.Array) -> jax.Array:
    """`P_tau(pi > pi') = P(pi > pi') - tau KL(pi, mu) + tau KL(pi', mu)`."""
    costs = kl(log_policy, game.log_reference) - kl(log_opponent, game.log_reference)
    regularization = game.tau * jnp.sum(game.context_probability * costs)
    return win_rate(game, log_policy, log_opponent) - regularization


def optimal_policy(game: Game, values: jax.Array) -> jax.Array:
    """argmax over pi of `E_pi values - tau KL(pi, mu)`, for values `[X, Y]`: log-probabilities.

    With tau > 0 it is `mu(y) exp(values(y) / tau)`, normalised; with tau = 0 it spreads evenly over
    the best actions, equal up to rounding.
    """
    regular = game.tau > 0
    soft = normalize(game.log_reference + values / jnp.where(regular, game.tau, 1.0))
    top = jnp.max(values, axis=-1, keepdims=True)
    rounding = 8 * jnp.finfo(values.dtype).eps * jnp.maximum(jnp.abs(top), 1.0)
    best = values >= top - rounding
    return jnp.where(regular, soft, normalize(jnp.where(best, 0.0, -jnp.inf)))


def best_response(game: Game, log_opponent: jax.Array) -> jax.Array:
    """The policy that does best against an opponent: `optimal_policy` for `P(y > pi')`."""
    return optimal_policy(game, preference_over(game, log_opponent))


def exploitability(game: Game, log_policy: jax.Array) -> jax.Array:
    """`max_pi' P(pi' > pi) - 1/2` of the plain game, in [0, 1/2]; 0 for a Nash equilibrium only.

    The duality gap of the pair (pi, pi) is twice that, since the game is symmetric.
    """
    best = jnp.max(preference_over(game, log_policy), axis=-1)
    return jnp.sum(game.context_probability * best) - 0.5


def regularized_exploitability(game: Game, log_policy: jax.Array) -> jax.Array:
    """`max_pi' P_tau(pi' > pi) - 1/2` of the regularised game, >= 0; half the duality gap.

    It equals `tau KL(pi, pi')` for the best response pi' (put pi' into P_tau), and is at least
    `tau KL(pi, pi*_tau)` (put pi*_tau there): see `nlhf_jax.games.equilibrium`.
    """
    return game.tau * divergence(game, log_policy, best_response(game, log_policy))


def duality_gap(game: Game, log_policy: jax.Array, log_opponent: jax.Array) -> jax.Array:
    """`max P_tau(. > pi') - min P_tau(pi > .)` of a pair of policies; at tau = 0 the plain game's.

    0 for a pair of equilibria only.
    """

    def best(log_of: jax.Array) -> jax.Array:
        """max over pi'' of `P_tau(pi'' > pi)`."""
        plain = exploitability(game, log_of) + 0.5
        return jnp.where(game.tau > 0, regularized_exploitability(game, log_of) + 0.5, plain)

    return best(log_opponent) + best(log_policy) - 1.0


def entropy(game: Game, log_policy: jax.Array) -> jax.Array:
    """E_x H(pi(. | x)) in nats."""
    terms = jnp.where(log_policy > -jnp.inf, jnp.exp(log_policy) * log_policy, 0.0)
    return -jnp.sum(game.context_probability * jnp.sum(terms, axis=-1))


# What a solver can be asked to record: functions of the game, the policy, and the policy that was
# given as the equilibrium (None if none was).
METRICS: Mapping[str, Callable[[Game, jax.Array, Any], jax.Array]] = {
    "kl": lambda game, policy, equilibrium: divergence(game, equilibrium, policy),
    "exploitability": lambda game, policy, _: exploitability(game, policy),
    "regularized_exploitability": lambda game, policy, _: regularized_exploitability(game, policy),
    "kl_to_reference": lambda game, policy, _: divergence(game, policy, game.log_reference),
    "win_rate_over_reference": lambda game, policy, _: win_rate(game, policy, game.log_reference),
    "entropy": lambda game, policy, _: entropy(game, policy),
}
