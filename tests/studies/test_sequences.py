"""The game over all responses of a language model, against the networks and against theory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import opponents
from nlhf_jax.errors import UserError
from nlhf_jax.games import families, measures
from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.games.game import from_matrix
from nlhf_jax.studies.sequence_learning import learn, log_probs_of_all, sequence_game
from nlhf_jax.studies.sequences import ResponseTree, TableScorer, fixed_point
from tests import tiny

PROMPTS = np.array([[2, 1], [3, 1]], np.int32)
TREE = ResponseTree(4, 3)
MIXTURE = opponents.geometric_mixture(0.3).weights


def random_policies(seed, spread=1.0):
    logits = np.random.default_rng(seed).normal(size=(2, TREE.size))
    return measures.normalize(jnp.asarray(spread * logits))


def game(tau=0.1):
    reference = np.exp(random_policies(0))
    return families.random_game(0, TREE.size, 2, scale=4.0, tau=tau, reference=reference)


def test_the_tree_has_every_response_once():
    """1 + 3 + 9 with EOS after 0, 1 and 2 tokens, and 27 without."""
    assert TREE.size == 1 + 3 + 9 + 27
    assert len(np.unique(TREE.responses, axis=0)) == TREE.size


def test_the_index_inverts_the_enumeration_whatever_follows_eos():
    np.testing.assert_array_equal(TREE.index(jnp.asarray(TREE.responses)), np.arange(TREE.size))
    number = int(TREE.index(jnp.array([2, 1, 0])))
    assert int(TREE.index(jnp.array([2, 1, 3]))) == number


def test_the_table_is_looked_up_by_prompt_and_response():
    scorer = TableScorer(TREE, PROMPTS)
    table = jnp.asarray(game().preference)
    rng = np.random.default_rng(0)
    x, y, other = rng.integers(0, 2, 50), *rng.integers(0, TREE.size, (2, 50))
    found = scorer.score(table, jnp.asarray(PROMPTS[x]), TREE.responses[y], TREE.responses[other])
    np.testing.assert_allclose(found, table[x, y, other])
    advantages = scorer.advantages(found, jnp.full(50, 0.02))
    np.testing.assert_allclose(advantages, table[x, y, other] - 0.5)
    unknown = scorer.win_rate(
        table, jnp.array([[9, 1]]), TREE.responses[y[:1]], TREE.responses[other[:1]]
    )
    assert np.isnan(unknown[0])


def test_the_mixture_on_the_tree_is_that_of_the_networks():
    network = tiny.model(4)
    sets = {"policy": tiny.params(network, 1, 2.0), "reference": tiny.params(network, 2, 2.0)}

    def of_networks(player):
        return log_probs_of_all(network, player, sets, PROMPTS, TREE.responses)

    apart = {name: jnp.asarray(of_networks({name: 1.0})) for name in sets}
    np.testing.assert_allclose(TREE.mixture(MIXTURE, apart), of_networks(MIXTURE), atol=2e-5)
    np.testing.assert_allclose(np.exp(of_networks(MIXTURE)).sum(axis=1), 1)


def test_token_level_and_sequence_level_mixtures_differ_but_for_one_token():
    policy, reference = random_policies(1), random_policies(2)
    sets = {"policy": policy, "reference": reference}
    sequence_level = measures.geometric_mixture(policy, reference, 0.3)
    assert np.max(abs(TREE.mixture(MIXTURE, sets) - sequence_level)) > 0.05
    short = ResponseTree(4, 1)
    sets = {name: measures.normalize(values[:, : short.size]) for name, values in sets.items()}
    wanted = measures.geometric_mixture(sets["policy"], sets["reference"], 0.3)
    np.testing.assert_allclose(short.mixture(MIXTURE, sets), wanted, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.25, 1.0])
def test_the_fixed_point_is_the_best_response_to_its_opponent(beta):
    played = game()
    found = fixed_point(played, TREE, beta)
    assert np.max(found.residual) < 1e-9
    sets = {"policy": found.log_policy, "reference": played.log_reference}
    opponent = TREE.mixture({"policy": 1 - beta, "reference": beta}, sets)
    np.testing.assert_allclose(
        found.log_policy, measures.best_response(played, opponent), rtol=0, atol=1e-8
    )


def test_fixed_points_at_the_ends_are_the_equilibrium_and_the_best_response():
    played = game()
    equilibrium = regularized_equilibrium(played).log_policy
    np.testing.assert_allclose(fixed_point(played, TREE, 0.0).log_policy, equilibrium, atol=1e-8)
    best = measures.best_response(played, played.log_reference)
    np.testing.assert_allclose(fixed_point(played, TREE, 1.0).log_policy, best, atol=1e-8)
    between = fixed_point(played, TREE, 0.25).log_policy
    assert (
        1e-3
        < measures.divergence(played, equilibrium, between)
        < measures.divergence(played, equilibrium, best)
    )


@pytest.mark.parametrize(("length", "holds"), [(1, True), (3, False)])
def test_of_one_token_the_mixture_at_the_fixed_point_is_the_equilibrium_of_another_tau(
    length, holds
):
    """Calandriello et al. 2024, prop. 5.2, is about mixtures of whole responses."""
    tree = ResponseTree(4, length)
    played = families.random_game(0, tree.size, 2, scale=4.0, tau=0.1)
    player = opponents.geometric_mixture(0.5).weights
    found = fixed_point(played, tree, 0.5).log_policy
    mixture = tree.mixture(player, {"policy": found, "reference": played.log_reference})
    other = regularized_equilibrium(played.replace(tau=played.tau / 0.5)).log_policy
    assert (measures.divergence(played, other, mixture) < 1e-12) == holds


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"record_every": 3}, "record_every is 3 but must divide steps, 10"),
        ({"batch_size": 5}, "multiple of the 2 prompts"),
    ],
)
def test_learning_refuses_numbers_that_do_not_fit(settings, says):
    network = tiny.model(4)
    params = tiny.params(network, 1)
    played = sequence_game(network, params, PROMPTS, game().preference, length=3, tau=0.2)
    settings = {"steps": 10, "record_every": 5, "batch_size": 4, "learning_rate": 0.1} | settings
    with pytest.raises(UserError, match=says):
        learn(played, opponents.self_play(), **settings)


def test_a_sequence_game_has_the_network_s_probabilities_as_reference():
    network = tiny.model(4)
    params = tiny.params(network, 1, 2.0)
    played = sequence_game(network, params, PROMPTS, game().preference, length=3, tau=0.2)
    exact = log_probs_of_all(network, {"p": 1.0}, {"p": params}, PROMPTS, TREE.responses)
    np.testing.assert_allclose(played.game.log_reference, exact, atol=1e-12)
    assert float(played.game.tau) == 0.2
    with jax.enable_x64(False):
        assert from_matrix(played.game.preference).preference.dtype == jnp.float32
