"""The reward that comparisons of a game lead to."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from nlhf_jax.games import bradley_terry, families, measures
from nlhf_jax.games.equilibrium import nash_equilibrium
from nlhf_jax.games.game import from_matrix


@pytest.mark.parametrize("sampler", [[0.25, 0.25, 0.25, 0.25], [0.7, 0.1, 0.1, 0.1]])
def test_ratings_are_found_again_whatever_pairs_are_shown(sampler):
    ratings = np.array([0.0, 2.0, -1.0, 0.5])
    game = families.from_elo(ratings)
    fitted = bradley_terry.fit(game, jnp.log(jnp.asarray([sampler])))
    np.testing.assert_allclose(fitted.reward[0], ratings - ratings.mean(), atol=1e-10)
    np.testing.assert_allclose(bradley_terry.preference(fitted.reward), game.preference, atol=1e-10)
    assert fitted.residual[0] < 1e-14


def test_the_fit_is_the_minimum_of_the_cross_entropy():
    game = families.random_game(0, 5, scale=3.0)
    shown = np.random.default_rng(0).dirichlet(np.ones(5))

    def loss(reward):
        margin = np.subtract.outer(reward, reward)
        return np.sum(np.outer(shown, shown) * game.preference[0] * np.log1p(np.exp(-margin)))

    found = optimize.minimize(loss, np.zeros(5), tol=1e-12).x
    fitted = bradley_terry.fit(game, jnp.log(shown)[None]).reward[0]
    np.testing.assert_allclose(fitted, found - found.mean(), atol=1e-4)
    assert loss(fitted) <= loss(found) + 1e-12


def test_the_optimum_depends_on_what_raters_are_shown_and_the_equilibrium_does_not():
    game = families.rock_paper_scissors()
    chosen = set()
    for sampler in ([0.6, 0.3, 0.1], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]):
        reward = bradley_terry.fit(game, jnp.log(jnp.asarray([sampler]))).reward
        chosen.add(int(jnp.argmax(bradley_terry.optimum(game, reward)[0])))
    assert chosen == {0, 1, 2}
    np.testing.assert_allclose(nash_equilibrium(game)[0], 1 / 3)


def test_rlhf_weighs_the_reward_against_the_reference():
    game = families.from_elo([0.0, 1.0], tau=0.5, reference=[0.8, 0.2])
    reward = bradley_terry.fit(game, game.log_reference).reward
    policy = bradley_terry.optimum(game, reward)[0]
    np.testing.assert_allclose(policy[1] - policy[0], np.log(0.2 / 0.8) + 1 / 0.5)


def test_an_action_that_always_wins_gets_a_huge_reward():
    game = from_matrix([[0.5, 1.0], [0.0, 0.5]])
    reward = bradley_terry.fit(game, game.log_reference).reward[0]
    assert reward[0] - reward[1] > 20
    assert measures.exploitability(game, bradley_terry.optimum(game, reward[None])) == 0


def test_online_dpo_stays_where_its_own_samples_confirm_its_reward():
    """The reward fitted to pairs of the policy, by another method, is the policy's own."""
    game = families.random_game(1, 6, contexts=2, intransitivity=0.5, scale=2.0, tau=0.5)
    beta = 0.5
    found = bradley_terry.self_consistent(game, beta)
    fitted = bradley_terry.fit(game, found).reward
    implied = beta * (found - game.log_reference)
    np.testing.assert_allclose(fitted, implied - implied.mean(axis=-1, keepdims=True), atol=1e-6)
    assert np.std(fitted) > 0.1


def test_of_bradley_terry_raters_that_is_rlhf_s_optimum():
    game = families.from_elo([0.0, 2.0, -1.0, 0.5], tau=0.3)
    found = bradley_terry.self_consistent(game, 0.3)
    expected = bradley_terry.optimum(game, jnp.asarray([[0.0, 2.0, -1.0, 0.5]]))
    np.testing.assert_allclose(found, expected, atol=1e-8)
