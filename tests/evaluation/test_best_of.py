"""Best of N by a reward's maximum, by Borda's count, and by the Nash mixture of the small game."""

import numpy as np
import pytest

from nlhf_jax.errors import UserError
from nlhf_jax.evaluation.best_of import best_of
from nlhf_jax.evaluation.judges import PopulationJudge

NAMES = ["rock", "paper", "scissors", "mud"]
# Rock, paper, scissors, of which scissors beat mud by most; mud loses to all.
RATES = np.array(
    [
        [0.5, 0.1, 0.9, 0.6],
        [0.9, 0.5, 0.1, 0.6],
        [0.1, 0.9, 0.5, 1.0],
        [0.4, 0.4, 0.0, 0.5],
    ]
)


def by_table(rates):
    return PopulationJudge(
        lambda prompts, first, second: np.array(
            [rates[NAMES.index(a), NAMES.index(b)] for a, b in zip(first, second, strict=True)]
        )
    )


def chosen(rates, by, responses=NAMES, prompts=3000):
    rng = np.random.default_rng(0)
    found = best_of(["x"] * prompts, [responses] * prompts, by_table(rates), by, rng)
    texts = [responses[index] for index in found]
    return {name: texts.count(name) / prompts for name in NAMES}


def test_nash_draws_from_the_mixture_that_none_beats():
    found = chosen(RATES, "nash")
    np.testing.assert_allclose([found[name] for name in NAMES], [1 / 3, 1 / 3, 1 / 3, 0], atol=0.03)


def test_copies_of_a_response_leave_the_mixture_as_it_is():
    found = chosen(RATES, "nash", ["rock", "paper", "scissors", "rock", "rock"])
    np.testing.assert_allclose([found[n] for n in NAMES[:3]], [1 / 3] * 3, atol=0.03)


def test_borda_takes_what_is_preferred_most_on_average():
    assert chosen(RATES, "borda", prompts=5)["scissors"] == 1  # the others are even but for mud


def test_a_reward_has_a_maximum_and_circles_have_none():
    rewards = np.array([0.3, 1.5, -0.2, 0.9])
    rates = 1 / (1 + np.exp(-(rewards[:, None] - rewards)))
    assert chosen(rates, "reward", prompts=5)["paper"] == 1
    assert chosen(rates, "borda", prompts=5)["paper"] == 1
    assert chosen(rates, "nash", prompts=5)["paper"] == 1
    with pytest.raises(UserError, match="this rater's preferences go in circles"):
        chosen(RATES, "reward", NAMES[:3])
    with pytest.raises(UserError, match="choose one of nash, borda, reward"):
        chosen(RATES, "luck")


def test_equal_maxima_are_drawn_evenly():
    rates = np.full((4, 4), 0.5)
    found = chosen(rates, "reward")
    np.testing.assert_allclose(list(found.values()), 0.25, atol=0.03)
