"""Learners from other papers end where their papers say, on games of sequences, with real networks.

Each on three games, from rollouts to optimiser: minutes, hence only with `-m long`.
"""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from nlhf_jax import objectives, opponents
from nlhf_jax.games import bradley_terry, measures
from nlhf_jax.games.equilibrium import nash_equilibrium, regularized_equilibrium
from nlhf_jax.studies.learner_findings import random_sequence_game
from nlhf_jax.studies.sequence_learning import learn

pytestmark = pytest.mark.long

TAU, ETA = 0.1, 0.3
GAMES = (0, 1, 2)  # their seeds
# Of opponent and objective; each ends at the equilibrium of the regularised game.
REGULARISED = {
    "EGPO": (opponents.lookahead(), objectives.policy_gradient(TAU, "exact")),
    "INPO": (opponents.previous(5), objectives.inpo(TAU, ETA)),
}
# Each nears an equilibrium of the plain game, as its reference moves four times, and so many steps.
# The gradient needs more of them than a regression to be where the reference should move to.
TOWARDS_MAGNET = objectives.policy_gradient(TAU, "exact", towards="magnet")
PLAIN = {
    "MPO": (opponents.magnetic(600), TOWARDS_MAGNET, 2400),
    "COMAL": (opponents.previous(5, 150), objectives.inpo(TAU, ETA, "magnet"), 600),
}


@functools.cache
def game(seed):
    return random_sequence_game(seed, vocab_size=4, length=3, scale=6.0, tau=TAU)


def trained(seed, opponent, objective, end, steps=600):
    return learn(
        game(seed),
        opponent,
        objective=objective,
        end=end,
        steps=steps,
        record_every=steps // 4,
        batch_size=512,
        learning_rate=4e-3,
    )


@pytest.mark.parametrize("seed", GAMES)
@pytest.mark.parametrize("name", REGULARISED)
def test_it_ends_at_the_equilibrium_of_the_regularised_game(name, seed):
    end = regularized_equilibrium(game(seed).game).log_policy
    found = trained(seed, *REGULARISED[name], end).metrics["last"]
    assert found["kl"][-1] < 0.25 * found["kl"][0]
    exploitability = found["regularized_exploitability"]
    assert exploitability[-1] < 0.25 * exploitability[0]


@pytest.mark.parametrize("seed", GAMES)
@pytest.mark.parametrize("name", PLAIN)
def test_it_goes_on_towards_an_equilibrium_of_the_plain_game(name, seed):
    """Whose exploitability is below that of the regularised game's equilibrium."""
    end = regularized_equilibrium(game(seed).game).log_policy
    opponent, objective, steps = PLAIN[name]
    found = trained(seed, opponent, objective, end, steps).metrics["last"]
    assert found["exploitability"][-1] < measures.exploitability(game(seed).game, end)


@pytest.mark.parametrize("seed", GAMES)
def test_online_dpo_ends_where_its_own_samples_confirm_its_reward(seed):
    """And not at the equilibrium."""
    beta = 1.0
    end = bradley_terry.self_consistent(game(seed).game, beta)
    assert np.all(np.isfinite(end))
    found = trained(seed, opponents.self_play(), objectives.dpo(beta), end).metrics["last"]
    assert found["kl_to_fixed_point"][-1] < 0.25 * found["kl_to_fixed_point"][0]


@pytest.mark.parametrize("seed", GAMES)
def test_an_iteration_of_sppo_is_a_step_of_multiplicative_weights(seed):
    """With pi_0 never replaced, so that the regression is seen to its end."""
    played, eta = game(seed).game, 5.0
    start = played.log_reference
    won = jnp.einsum("xij,xj->xi", played.preference, jnp.exp(start)) - 0.5
    end = jnp.asarray(start) + eta * won
    end = end - jnp.log(jnp.sum(jnp.exp(end), axis=-1, keepdims=True))
    once = opponents.previous(10**6)
    found = trained(seed, once, objectives.sppo(eta), end).metrics["last"]
    assert found["kl_to_fixed_point"][-1] < 0.25 * found["kl_to_fixed_point"][0]


@pytest.mark.parametrize("seed", GAMES)
def test_mnpo_ends_at_the_equilibrium_of_the_regularised_game(seed):
    """Past policies are one where it stays, so that INPO's fixed point is its own."""
    objective = objectives.mnpo(ETA, TAU / ETA, 2)
    end = regularized_equilibrium(game(seed).game).log_policy
    found = trained(seed, opponents.past(2, 5), objective, end).metrics["last"]
    assert found["kl"][-1] < 0.25 * found["kl"][0]


def test_nash_equilibria_are_not_the_regularised_ones():
    """Or else the tests above could not tell."""
    for seed in GAMES:
        played = game(seed).game
        regular = np.exp(regularized_equilibrium(played).log_policy)
        assert np.abs(regular - nash_equilibrium(played)).max() > 0.05
