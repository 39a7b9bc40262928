"""Objectives own who plays and what is learned of the scores."""

import dataclasses

import numpy as np
import pytest

from nlhf_jax import objectives, opponents
from nlhf_jax.raters import PreferenceScorer, RewardScorer

MIXTURE = opponents.geometric_mixture(0.25).weights
PREFERENCE, REWARD = PreferenceScorer(None, both_orders=True), RewardScorer(None)
SCORES = np.asarray([0.9, 0.2, 0.4], np.float32)
EVENLY = np.full(3, 1 / 3, np.float32)


def test_the_policy_writes_y_and_the_opponent_the_other_response():
    objective = objectives.policy_gradient(0.1, "exact")
    assert objective.players(MIXTURE, PREFERENCE) == [opponents.POLICY, MIXTURE]
    assert objective.players(None, REWARD) == [opponents.POLICY]
    assert objective.learned == 1


def test_of_ipo_one_player_writes_both_and_both_are_learned_from():
    objective = objectives.ipo(0.1)
    assert objective.players(MIXTURE, PREFERENCE) == [MIXTURE, MIXTURE]
    assert objective.learned == 2


def test_the_policy_gradient_learns_from_advantages_and_ipo_from_preferences():
    gradient = objectives.policy_gradient(0.1, "sampled").targets
    np.testing.assert_allclose(gradient(PREFERENCE, SCORES, EVENLY), SCORES - 0.5, rtol=1e-6)
    others = [np.mean(np.delete(SCORES, i)) for i in range(3)]
    np.testing.assert_allclose(gradient(REWARD, SCORES, EVENLY), SCORES - others, atol=1e-6)
    assert objectives.ipo(0.1).targets(PREFERENCE, SCORES, EVENLY) is SCORES


@pytest.mark.parametrize(
    "make", [objectives.ipo, lambda tau: objectives.policy_gradient(tau, "exact")]
)
def test_objectives_are_values(make):
    """Two of the same settings are the same, and what is one cannot be changed."""
    assert make(0.1) == make(0.1) != make(0.2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        make(0.1).tau = 0.2
