"""Equilibria: of the regularised game by Newton's method, certified; of the plain one by LP.

The regularised exploitability of a policy is `f(pi) = tau KL(pi, BR(pi))`, a convex function (a
log-sum-exp of a linear map plus tau KL(pi, mu)) whose only zero is the equilibrium. From
`pi*(y) ∝ mu(y) exp(P(y > pi*) / tau)` and antisymmetry, `P_tau(pi* > pi) - 1/2 = tau KL(pi, pi*)`.
The best response does at least as well, hence for every policy

    KL(pi, pi*) <= KL(pi, BR(pi)).

The right side needs no knowledge of pi*: it is the certificate.
"""

import functools

import flax
import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize

from nlhf_jax.errors import UserError
from nlhf_jax.games import measures
from nlhf_jax.games.game import Game

_STEP_SIZES = 16  # 1, 1/2, 1/4, ...


@flax.struct.dataclass
class Equilibrium:
    """The equilibrium of a regularised game, and how close it is.

    Attributes:
      log_policy: `[X, Y]`.
      certificate: `[X]`, an upper bound of KL(log_policy, exact equilibrium) in nats; of the order
        of the square of the floats' resolution over tau where Newton's method has ended.
      iterations: `[X]` int32, Newton steps taken.
    """

    log_policy: jax.Array
    certificate: jax.Array
    iterations: jax.Array


@functools.partial(jax.jit, static_argnames="max_iterations")
def regularized_equilibrium(game: Game, max_iterations: int = 1000) -> Equilibrium:
    """`pi*_tau`, the one equilibrium of the regularised game (Munos et al. 2024, sec. 4).

    Newton's method on the convex `f` above, with a line search, until rounding stops it. That is
    some ten steps at tau = 0.1 and a hundred at 0.001. With much smaller tau no step may improve
    `f` long before its zero: the certificate then says so (`nlhf_jax.games.meta_game` solves those
    games, of a uniform reference, in another way).

    Args:
      game: with tau > 0 (at tau = 0 the result is NaN: see `nash_equilibrium`).
      max_iterations: of each context.
    """

    def of_context(preference, log_reference):
        return _newton(preference, log_reference, game.tau, max_iterations)

    # Accelerators would round the inputs of products to bfloat16 or TF32.
    with jax.default_matmul_precision("highest"):
        return Equilibrium(*jax.vmap(of_context)(game.preference, game.log_reference))


def _newton(preference, log_reference, tau, max_iterations):
    actions = preference.shape[-1]
    # P d = (P - 1/2) d for every direction d in the simplex; the latter rounds less.
    skew = preference - 0.5
    steps = 0.5 ** jnp.arange(_STEP_SIZES, dtype=preference.dtype)
    # Log-probabilities are known to about eps / tau, and the gap is of the second order.
    resolution = (jnp.finfo(preference.dtype).eps / tau) ** 2

    def response(log_policy):
        won = jnp.exp(log_policy) @ skew.T
        return measures.normalize(log_reference + won / tau)

    def gap(log_policy):
        return measures.kl(log_policy, response(log_policy))

    def direction(log_policy):
        """The Newton step in log pi: solves H d + grad = const with sum(d) = 0, d = pi * step.

        H = S^T (diag(b) - b b^T) S / tau + tau diag(1 / pi), b the best response, S = P - 1/2. The
        equations are divided by tau, and columns scaled by pi, so that zeros of pi do no harm.
        """
        policy, best = jnp.exp(log_policy), jnp.exp(response(log_policy))
        won = skew.T @ best
        curvature = skew.T @ (best[:, None] * skew) - won[:, None] * won
        matrix = jnp.eye(actions, dtype=policy.dtype) + curvature * policy / tau**2
        gradient = log_policy - log_reference + won / tau
        sides = jnp.stack([gradient, jnp.ones_like(gradient)], axis=1)
        down, up = jnp.linalg.solve(matrix, sides).T
        return (policy @ down) / (policy @ up) * up - down

    def improve(state):
        log_policy, best_gap, iteration, _ = state
        moved = log_policy + steps[:, None] * direction(log_policy)
        candidates = measures.normalize(moved)
        gaps = gap(candidates)
        gaps = jnp.where(jnp.isnan(gaps), jnp.inf, gaps)
        chosen = jnp.argmin(gaps)
        better = gaps[chosen] < best_gap
        log_policy = jnp.where(better, candidates[chosen], log_policy)
        return log_policy, jnp.where(better, gaps[chosen], best_gap), iteration + 1, better

    def unfinished(state):
        _, best_gap, iteration, better = state
        return better & (best_gap > resolution) & (iteration < max_iterations)

    start = (log_reference, gap(log_reference), jnp.int32(0), jnp.bool_(True))
    log_policy, best_gap, iterations, _ = jax.lax.while_loop(unfinished, improve, start)
    # The gap does not see actions of probability e^-500; a last step puts their logs right too.
    last = measures.normalize(log_policy + direction(log_policy))
    last_gap = gap(last)
    log_policy = jnp.where(last_gap <= jnp.maximum(best_gap, resolution), last, log_policy)
    return log_policy, gap(log_policy), iterations


def nash_equilibrium(game: Game) -> np.ndarray:
    """A Nash equilibrium of the plain game in every context, by linear programming: `[X, Y]`.

    Probabilities (not logs, since many are 0), float64. Where there are several equilibria it is
    one of them; `nlhf_jax.games.meta_game` picks the one of largest entropy.
    """
    return np.stack([_linear_program(matrix) for matrix in np.asarray(game.preference, np.float64)])


def _linear_program(preference: np.ndarray) -> np.ndarray:
    """argmax over pi of min over y' of `sum_y pi(y) P(y > y')`."""
    actions = len(preference)
    # Variables: pi, and the value v, which is maximised subject to v <= P(pi > y') for every y'.
    found = optimize.linprog(
        c=np.append(np.zeros(actions), -1.0),
        A_ub=np.hstack([-preference.T, np.ones((actions, 1))]),
        b_ub=np.zeros(actions),
        A_eq=np.append(np.ones(actions), 0.0)[None],
        b_eq=[1.0],
        bounds=[(0, 1)] * actions + [(None, None)],
        method="highs",
    )
    if not found.success:
        raise UserError(
            f"the linear program of a game of {actions} actions failed: {found.message}"
        )
    policy = np.maximum(found.x[:-1], 0.0)
    return policy / policy.sum()
