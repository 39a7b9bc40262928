"""Why a large weight of the reference in the opponent loses to a reward: a cause, by closed forms.

In the paper's Table 1 the SFT policy loses to every other with .94 to .99, Nash-MD-PG beats RLHF at
a small beta and loses to it at a large one, the best response to SFT most of all. Here the game is
transitive and known, raters are exact, policies are what the algorithms end at, and all are as far
from the reference: nothing is left but that a preference over a weak opponent is near 1 whatever
the response, so that it says little about which of two good ones is better.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from nlhf_jax.games import bradley_terry, measures
from nlhf_jax.games.equilibrium import regularized_equilibrium
from nlhf_jax.games.game import from_matrix

RESPONSES, NATS = 40, 2.5
BETAS = (0.0, 0.125, 0.5, 0.75)


def reward_of(spread):
    return spread * stats.norm.ppf((np.arange(RESPONSES) + 0.5) / RESPONSES)


@functools.cache
def over_rlhf(spread):
    """Win rates over the reward's optimum: of each beta, of the best response, and of mu's losses.

    Rewards are normal with standard deviation `spread` over responses that mu draws evenly.
    """
    reward = jnp.asarray(reward_of(spread))
    game = from_matrix(np.asarray(jax.nn.sigmoid(reward[:, None] - reward)), tau=1.0)
    mu = game.log_reference

    def nash_md(beta, tau):
        mixture = regularized_equilibrium(dataclasses.replace(game, tau=tau / (1 - beta)))
        return measures.best_response(dataclasses.replace(game, tau=tau), mixture.log_policy)

    def rlhf(tau):
        return bradley_terry.optimum(dataclasses.replace(game, tau=tau), reward[None])

    def best_response(tau):
        return measures.best_response(dataclasses.replace(game, tau=tau), mu)

    def won(one, other):
        return float(jnp.exp(one[0]) @ game.preference[0] @ jnp.exp(other[0]))

    def equally_far(policy):
        low, high = np.log(1e-4), np.log(1e2)
        for _ in range(25):
            middle = (low + high) / 2
            far = float(measures.kl(policy(np.exp(middle)), mu)[0])
            low, high = (middle, high) if far > NATS else (low, middle)
        assert far == pytest.approx(NATS, abs=0.01)
        return policy(np.exp(middle))

    against = equally_far(rlhf)
    found = [won(equally_far(functools.partial(nash_md, beta)), against) for beta in BETAS]
    return [*found, won(equally_far(best_response), against)], won(against, mu)


def test_where_sft_is_weak_a_large_beta_loses_to_the_reward_and_the_best_response_most():
    rates, over_sft = over_rlhf(2.0)
    assert over_sft > 0.9
    assert rates[1] > 0.5 > rates[3] > rates[-1]
    assert rates[1:] == sorted(rates[1:], reverse=True)


def test_where_sft_is_not_they_are_alike():
    rates, over_sft = over_rlhf(0.3)
    assert over_sft < 0.65
    assert np.ptp(rates) < 0.002
