"""Divergences, win rates and exploitability against their definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.games import families, measures
from nlhf_jax.games.game import from_matrix, restrict


def some_policies(shape, seed=0):
    return measures.normalize(jnp.asarray(np.random.default_rng(seed).normal(size=shape)))


@pytest.fixture(scope="module")
def game():
    with jax.enable_x64(True):
        return families.random_game(
            3, 5, contexts=3, scale=2.0, tau=0.2, context_probability=[0.5, 0.3, 0.2]
        )


def test_kl_is_its_definition_and_accurate_where_the_two_agree():
    p, q = np.exp(some_policies(6)), np.exp(some_policies(6, 1))
    np.testing.assert_allclose(measures.kl(jnp.log(p), jnp.log(q)), np.sum(p * np.log(p / q)))
    tiny = 1e-9 * np.array([1, -1, 2, -2, 3, -3])
    near = measures.normalize(jnp.log(p) + tiny)
    second_order = 0.5 * (p @ tiny**2 - (p @ tiny) ** 2)
    np.testing.assert_allclose(measures.kl(jnp.log(p), near), second_order, rtol=1e-6)
    assert measures.kl(jnp.log(p), jnp.log(p)) == 0
    certain = jnp.log(jnp.array([1.0, 0.0]))
    np.testing.assert_allclose(measures.kl(certain, jnp.log(jnp.array([0.25, 0.75]))), np.log(4))


def test_win_rates_are_sums_over_contexts_and_actions(game):
    one, other = some_policies((3, 5)), some_policies((3, 5), 1)
    by_hand = sum(
        game.context_probability[x]
        * jnp.exp(one[x, i] + other[x, j])
        * game.preference[x, i, j]
        for x in range(3) for i in range(5) for j in range(5)
    )  # fmt: skip
    np.testing.assert_allclose(measures.win_rate(game, one, other), by_hand)
    np.testing.assert_allclose(measures.win_rate(game, other, one), 1 - by_hand)
    costs = [measures.divergence(game, policy, game.log_reference) for policy in (one, other)]
    np.testing.assert_allclose(
        measures.regularized_win_rate(game, one, other), by_hand - 0.2 * (costs[0] - costs[1])
    )


def test_no_policy_does_better_than_the_best_response(game):
    opponent = some_policies((3, 5))
    best = measures.regularized_win_rate(game, measures.best_response(game, opponent), opponent)
    np.testing.assert_allclose(
        measures.regularized_exploitability(game, opponent), best - 0.5, atol=1e-12
    )
    for seed in range(100):
        policy = some_policies((3, 5), seed)
        assert measures.regularized_win_rate(game, policy, opponent) <= best
        assert measures.win_rate(game, policy, opponent) - 0.5 <= measures.exploitability(
            game, opponent
        )
    plain = game.replace(tau=jnp.asarray(0.0))
    np.testing.assert_allclose(
        measures.win_rate(plain, measures.best_response(plain, opponent), opponent) - 0.5,
        measures.exploitability(plain, opponent),
    )


def test_the_duality_gap_of_a_policy_with_itself_is_twice_its_exploitability(game):
    policy = some_policies((3, 5))
    np.testing.assert_allclose(
        measures.duality_gap(game, policy, policy),
        2 * measures.regularized_exploitability(game, policy),
    )
    plain = game.replace(tau=jnp.asarray(0.0))
    gap = measures.duality_gap(plain, policy, some_policies((3, 5), 1))
    parts = [measures.exploitability(game, some_policies((3, 5), seed)) for seed in (0, 1)]
    np.testing.assert_allclose(gap, sum(parts))


def test_a_best_response_spreads_over_ties():
    game = families.rock_paper_scissors()
    uniform = jnp.log(jnp.full((1, 3), 1 / 3))
    np.testing.assert_allclose(jnp.exp(measures.best_response(game, uniform)), 1 / 3)


def test_restricted_games_are_games_between_policies(game):
    policies = np.exp([some_policies((3, 5), seed) for seed in range(4)])
    matrix = restrict(game, policies)
    for i in range(4):
        for j in range(4):
            wanted = measures.win_rate(game, jnp.log(policies[i]), jnp.log(policies[j]))
            np.testing.assert_allclose(matrix[i, j], wanted)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"preference": [[0.5, 1.2], [-0.2, 0.5]]}, r"preference\[0, 0, 1\] is 1.2 but must be"),
        ({"preference": [[0.5, 0.7], [0.2, 0.5]]}, "they must sum to 1"),
        ({"preference": [[0.4, 0.7], [0.3, 0.5]]}, r"preference\[0, 0, 0\] is 0.4 and"),
        ({"preference": [[0.5, np.nan], [np.nan, 0.5]]}, "must be in"),
        ({"preference": [0.5, 0.5]}, "shape"),
        ({"preference": [["a"]]}, "not an array of numbers"),
        ({"tau": -0.1}, "tau is -0.1"),
        ({"reference": [1.0, 0.0]}, "positive probability"),
        ({"reference": [0.9, 0.3]}, "sum to 1"),
        ({"context_probability": [0.5, 0.5]}, "1 contexts"),
    ],
)
def test_what_is_no_game_is_refused(arguments, says):
    with pytest.raises(UserError, match=says):
        from_matrix(**({"preference": [[0.5, 0.7], [0.3, 0.5]]} | arguments))


def test_float64_is_asked_for_by_enabling_it():
    assert from_matrix([[0.5]]).preference.dtype == jnp.float64
    with jax.enable_x64(False):
        assert from_matrix([[0.5]]).preference.dtype == jnp.float32
