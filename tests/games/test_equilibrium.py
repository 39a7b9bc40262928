"""The regularised equilibrium to machine precision, its certificate, and the linear program."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.games import families, measures
from nlhf_jax.games.equilibrium import nash_equilibrium, regularized_equilibrium
from nlhf_jax.games.game import from_matrix
from tests.games.random_games import random_games


@pytest.mark.parametrize("actions", [2, 7, 64])
def test_the_equilibrium_is_its_own_best_response(actions):
    games = random_games(actions, 60)
    found = jax.vmap(regularized_equilibrium)(games)
    response = jax.vmap(measures.best_response)(games, found.log_policy)
    np.testing.assert_allclose(found.log_policy, response, rtol=0, atol=1e-9)
    assert np.max(found.certificate) < 1e-25


def test_the_certificate_bounds_the_distance_of_any_policy():
    """KL(pi, pi*) <= KL(pi, BR(pi)), and tau KL(pi, pi*) = P_tau(pi* > pi) - 1/2 exactly."""
    for seed in range(20):
        game = families.random_game(seed, 6, contexts=2, scale=3.0, tau=0.05)
        equilibrium = regularized_equilibrium(game).log_policy
        policy = measures.normalize(jnp.asarray(np.random.default_rng(seed).normal(size=(2, 6))))
        distance = measures.divergence(game, policy, equilibrium)
        bound = measures.divergence(game, policy, measures.best_response(game, policy))
        assert distance <= bound
        won = measures.regularized_win_rate(game, equilibrium, policy)
        np.testing.assert_allclose(game.tau * distance, won - 0.5, atol=1e-12)


def test_two_actions_solve_a_scalar_equation():
    """P(y1 > pi) - P(y2 > pi) is P(y1 > y2) - 1/2 whatever pi is."""
    game = from_matrix([[0.5, 0.8], [0.2, 0.5]], tau=0.1, reference=[0.3, 0.7])
    found = regularized_equilibrium(game).log_policy[0]
    np.testing.assert_allclose(found[0] - found[1], np.log(3 / 7) + 0.3 / 0.1, rtol=1e-14)


def test_bradley_terry_games_and_cycles_at_the_limits_of_tau():
    for game in (families.from_elo([0, 1, 3]), families.rock_paper_scissors()):
        nash = nash_equilibrium(game)
        small = regularized_equilibrium(game.replace(tau=jnp.asarray(1e-3))).log_policy
        np.testing.assert_allclose(jnp.exp(small), nash, atol=1e-6)
        large = regularized_equilibrium(game.replace(tau=jnp.asarray(1e6))).log_policy
        np.testing.assert_allclose(jnp.exp(large), 1 / 3, atol=1e-6)


def test_contexts_are_solved_apart():
    game = families.random_game(0, 5, contexts=3, tau=0.1, reference=[0.1, 0.2, 0.3, 0.2, 0.2])
    together = regularized_equilibrium(game).log_policy
    for x in range(3):
        alone = from_matrix(game.preference[x], tau=0.1, reference=jnp.exp(game.log_reference[x]))
        np.testing.assert_allclose(
            regularized_equilibrium(alone).log_policy[0], together[x], atol=1e-12
        )


def test_float32_games_are_solved_to_their_precision():
    with jax.enable_x64(False):
        game = families.random_game(0, 16, scale=2.0, tau=0.05)
        found = regularized_equilibrium(game)
        assert found.log_policy.dtype == jnp.float32
        assert found.certificate[0] < 1e-9
    exact = regularized_equilibrium(families.random_game(0, 16, scale=2.0, tau=0.05)).log_policy
    np.testing.assert_allclose(found.log_policy, exact, atol=1e-4)


@pytest.mark.parametrize("actions", [2, 5, 30])
def test_no_action_beats_the_solution_of_the_linear_program(actions):
    game = families.random_game(1, actions, contexts=10, intransitivity=0.5 * (actions > 2))
    nash = nash_equilibrium(game)
    np.testing.assert_allclose(nash.sum(axis=1), 1)
    assert abs(measures.exploitability(game, jnp.log(nash))) < 1e-9


def test_a_dominating_action_is_the_equilibrium():
    game = from_matrix([[0.5, 0.6, 0.9], [0.4, 0.5, 0.1], [0.1, 0.9, 0.5]])
    np.testing.assert_allclose(nash_equilibrium(game)[0], [1, 0, 0], atol=1e-12)
