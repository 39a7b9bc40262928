"""The cases of Munos et al. 2024 whose answers are known, to 1e-6."""

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import bradley_terry, families, measures
from nlhf_jax.games.equilibrium import nash_equilibrium, regularized_equilibrium
from nlhf_jax.games.game import from_matrix, restrict
from nlhf_jax.games.solvers import NashMD, solve

EPS = (-1 / 3, -0.2, -1e-3, 0.0, 1e-3, 0.2, 1 / 3)


def close(found, wanted):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("eps", EPS)
def test_three_rater_types(eps):
    game = families.three_rater_types(eps)
    close(game.preference[0, 1, 0], 2 / 3 - eps / 2)
    close(game.preference[0, 0, 2], 2 / 3 + eps / 4)
    close(game.preference[0, 2, 1], 2 / 3 + eps / 4)
    nash = [1 / 3 + eps / 2, 1 / 3 + eps / 2, 1 / 3 - eps]
    close(nash_equilibrium(game)[0], nash)
    close(measures.exploitability(game, jnp.log(jnp.asarray([nash]))), 0)


@pytest.mark.parametrize("eps", [eps for eps in EPS if eps])
def test_the_bradley_terry_optimum_jumps_where_the_equilibrium_is_continuous(eps):
    game = families.three_rater_types(eps)
    reward = bradley_terry.fit(game, game.log_reference).reward
    best = jnp.exp(bradley_terry.optimum(game, reward))[0]
    close(best, [0, 1, 0] if eps < 0 else [1, 0, 0])
    # The next in the circle beats it: y3 beats y2, and y2 beats y1.
    beaten = 2 / 3 + eps / 4 if eps < 0 else 2 / 3 - eps / 2
    close(measures.exploitability(game, jnp.log(best)[None]), beaten - 1 / 2)


def test_the_equilibrium_moves_by_half_the_mass_that_the_raters_move():
    either = [nash_equilibrium(families.three_rater_types(eps))[0] for eps in (-1e-4, 1e-4)]
    close(either[1] - either[0], [1e-4, 1e-4, -2e-4])


def test_intransitive_dice():
    game = families.intransitive_dice()
    close([game.preference[0, i, (i + 1) % 3] for i in range(3)], [5 / 9] * 3)
    close(nash_equilibrium(game)[0], [1 / 3] * 3)
    for tau in (0.01, 1.0):  # with a uniform reference also the regularised one
        equilibrium = regularized_equilibrium(families.intransitive_dice(tau=tau))
        close(jnp.exp(equilibrium.log_policy)[0], [1 / 3] * 3)


def test_the_best_rating_of_a_constrained_set_is_not_the_best_win_rate():
    game, ratings, vertices = families.constrained_elo()
    allowed = restrict(game, vertices)
    close(vertices[np.argmax(vertices @ ratings)], [2 / 3, 1 / 3, 0])
    close(nash_equilibrium(from_matrix(allowed))[0] @ vertices, [0, 0, 1])
    close(allowed[1, 0], 50 / 99)
    # The reward need not be given: it is what Bradley-Terry finds in the game.
    reward = bradley_terry.fit(game, game.log_reference).reward[0]
    close(reward - reward[0], ratings)


def test_nash_md_finds_the_equilibrium_of_the_rater_types():
    game = families.three_rater_types(0.2, tau=0.2)
    equilibrium = regularized_equilibrium(game).log_policy
    path = solve(
        game, NashMD(), 10_000, metrics=("kl",), record_every=10_000, equilibrium=equilibrium
    )
    assert path.metrics["last"]["kl"][-1] < 1e-6
